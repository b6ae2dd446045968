"""The solvers against the published procedure: time, memory and error on a real table and on synthetic ones.

Each solver gets the default options of ``hf_projclust.compress``, with all tokens alike and absolute errors, so that
errors compare. What is measured of one table is in ``runs``. Nothing here says what an error costs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.utils import logging

from ...demo import packaged_minilm
from ...loading import load_model
from ...resources import Resources
from ...whole_numbers import check_whole
from .runs import SOLVERS, BenchmarkRow, Case, run_case
from .synthetic import synthetic_table

SIZES = ((4_000, 64, 4), (8_000, 128, 5), (16_000, 256, 6))


def benchmark_solvers(
    *,
    table: Tensor | None = None,
    compression: float = 0.4,
    num_clusters: int = 5,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    seed: int = 0,
    device: str | None = None,
    reference_restarts: int = 10,
) -> list[BenchmarkRow]:
    """Run the reference and every preset on one real table, then on synthetic ones, with a progress bar.

    Each solver is called once on a tiny table first. Which one begins changes from table to table.

    Args:
        table: Rows, shape (n, dim), finite; by default those of the packaged all-MiniLM-L6-v2.
        compression: Share of each table's numbers to save.
        num_clusters: Subspaces of the reference and of the preset messi on this table.
        sizes: Rows, width and planted subspaces (n, d, k) of each synthetic table, see ``synthetic_table``. The
            reference has one restart there, and both it and the preset messi have k subspaces.
        seed: Seed of all random starts and of the synthetic tables.
        device: Where to compute; by default where ``table`` is.
        reference_restarts: Restarts of the reference on the first table. The paper's authors use 10.

    Returns:
        For each table the reference and then the presets, in the order of ``SOLVERS``.

    Raises:
        ValueError: If an option is out of its range, or a table is too small for it.
        ModuleNotFoundError: If no table is given and the extra ``demo`` is not installed.
    """
    # Both refuse what no table could make right, before a model is loaded.
    Resources(device=device, memory_limit=None, checkpoint=None)
    Case("", 0, 0, num_clusters, compression, seed, reference_restarts).options("messi")
    check_whole("reference_restarts", reference_restarts, 1)
    for n, d, k in sizes:
        if d < 2 or not 1 <= k <= n:
            raise ValueError(
                f"sizes has n={n}, d={d}, k={k}; expected rows, a width of 2 or more, and 1 to {n} subspaces. "
                "Use fewer subspaces, or more rows."
            )
    cases = [Case(f"synthetic, {k} subspaces", n, d, k, compression, seed, 1) for n, d, k in sizes]
    for case in cases:
        case.check()
    given = _minilm_table() if table is None else table.detach()
    if given.ndim != 2 or not given.is_floating_point() or not given.isfinite().all():
        raise ValueError(
            f"table of shape {tuple(given.shape)} and {given.dtype}; expected finite floating numbers of shape "
            "(rows, width). Give the weight of an embedding."
        )
    given = given.to(given.device if device is None else device)
    name = "all-MiniLM-L6-v2" if table is None else "given table"
    num_rows, dim = given.shape
    first = Case(name, num_rows, dim, num_clusters, compression, seed, reference_restarts)
    first.check()
    tiny = Case("warm-up", 96, 8, 2, 0.2, seed, 1)
    rows = []
    with logging.tqdm(desc="Benchmark", total=(2 + len(cases)) * (1 + len(SOLVERS)), miniters=0) as progress:
        for number, case in enumerate([tiny, first, *cases]):
            if case is first:
                dense = given
            else:
                dense = synthetic_table(case.num_rows, case.dim, case.num_clusters, seed=seed).to(given.device)
            found = run_case(case, dense, number, progress)
            rows += found if case is not tiny else []
    return rows


def _minilm_table() -> Tensor:
    weight: Any = load_model(packaged_minilm()).get_input_embeddings().weight
    return weight.detach()
