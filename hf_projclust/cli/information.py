"""``hf-projclust info``: the clusters of a compressed model, and its sizes."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .messages import errors_as_messages, escaped


def info(
    folder: Annotated[Path, typer.Argument(help="Folder of a compressed model.", show_default=False)],
) -> None:
    """Show the clusters of a compressed model, and its sizes against the dense one."""
    with errors_as_messages():
        show_info(folder)


def show_info(folder: Path) -> None:
    """Print the clusters of a compressed model, and its sizes against the dense one.

    Args:
        folder: Folder of the model.
    """
    from ..sizes import bits_of_clusters, measure, megabytes, read_config

    dense, compressed = measure(folder)
    config = read_config(folder)
    console = Console()
    for name, layout in config.factor_layouts.items():
        solver = config.projclust["solver"][name]
        clusters = Table(title=f"{folder}, {name}: {layout.num_embeddings:,} tokens x {layout.dim}, {solver['preset']}")
        for heading in ("cluster", "tokens", "rank", "bits", "energy kept"):
            clusters.add_column(heading, justify="right")
        kept = [f"{share:.1%}" for share in solver["energy_kept"]]
        bits = bits_of_clusters(layout, config.dtype)
        rows = zip_longest(layout.cluster_sizes, layout.cluster_ranks, bits, kept, fillvalue="added since")
        for number, (size, rank, bit, share) in enumerate(rows, 1):
            clusters.add_row(str(number), f"{size:,}", str(rank), bit, share)
        console.print(clusters)
        console.print(f"Relative squared error when compressed: {solver['relative_squared_error']:.4f}")
        console.print(f"Token counts: {escaped(solver.get('token_counts', 'uniform'))}")
    sizes = Table(title="Sizes (dense: computed)")
    for heading in ("", "dense", "compressed", "saved"):
        sizes.add_column(heading, justify="left" if heading == "" else "right")
    for label, name, show in (
        ("table, parameters", "table_parameters", "{:,}".format),
        ("model, parameters", "model_parameters", "{:,}".format),
        ("table, bytes on disk", "table_disk_bytes", "{:,}".format),
        ("model, bytes on disk", "model_disk_bytes", "{:,}".format),
        ("table, in memory", "table_memory_bytes", megabytes),
        ("model, in memory", "model_memory_bytes", megabytes),
    ):
        before, after = getattr(dense, name), getattr(compressed, name)
        sizes.add_row(label, show(before), show(after), f"{1 - after / before:.1%}" if before else "")
    console.print(sizes)
