"""``hf-projclust demo``: a real model compressed in three ways, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .messages import errors_as_messages
from .options import Force, Seed


def demo(
    output: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")] = Path("projclust-demo"),
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Compress the packaged all-MiniLM-L6-v2 by 40 % with SVD, MESSI and adaptive ranks, and compare."""
    with errors_as_messages():
        from ..demo import packaged_minilm, run_demo
        from ..folders import check_output, new_folder
        from ..sizes import megabytes

        check_output(output, packaged_minilm(), force=force)
        with new_folder(output, force=force) as folder:
            rows = run_demo(folder, seed=seed)
        table = Table(
            title=f"all-MiniLM-L6-v2, vocabulary table compressed by 40 %, seed {seed}",
            caption="error: relative squared error of the table; "
            "cosine: mean cosine of 50 sentence embeddings to those of the dense model",
        )
        for heading in ("table", "table, params", "model, params", "file on disk", "error", "cosine"):
            table.add_column(heading, justify="left" if heading == "table" else "right")
        for row in rows:
            table.add_row(
                row.name,
                f"{row.sizes.table_parameters:,}",
                f"{row.sizes.model_parameters:,}",
                megabytes(row.sizes.model_disk_bytes),
                f"{row.relative_squared_error:.4f}",
                f"{row.cosine:.3f}",
            )
        console = Console()
        console.print(table)
        console.print(f"Models and the plot clusters.png are in {output}", soft_wrap=True)
