"""Several processes: rows shared by two of them give what one process gives.

The file is a test and what the processes run: each scenario runs here with one process, and in two that gloo joins.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from hf_projclust.solvers import Checkpoint, Rows, adaptive_ranks, cluster, equal_ranks, rounds
from hf_projclust.solvers.ranks import whole_numbers
from hf_projclust.solvers.robust import lewis_weights
from hf_projclust.solvers.rounds import Fit, Run
from hf_projclust.solvers.rows import process_index
from hf_projclust.solvers.starts import norm_bands

N, DIM, BLOCK = 300, 6, 32
ROUNDS_BEFORE = 4  # an interruption


def table() -> torch.Tensor:
    """Three planes with noise, of different norms."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.randn(3, 2, DIM, generator=generator, dtype=torch.float64)
    rows = torch.randn(N, 2, generator=generator, dtype=torch.float64).unsqueeze(1) @ planes[torch.arange(N) % 3]
    return rows.squeeze(1) + 0.4 * torch.randn(N, DIM, generator=generator, dtype=torch.float64)


def rows() -> Rows:
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    return Rows(table(), block_rows=BLOCK).weighted(weights)


def outcome(assignment: torch.Tensor, bases: list[torch.Tensor], cost: float) -> dict[str, Any]:
    """What is compared: subspaces as projections, since the sign of a basis vector is arbitrary."""
    return {"assignment": assignment, "projections": [basis.T @ basis for basis in bases], "cost": cost}


def clustered(**options: Any) -> dict[str, Any]:
    result = cluster(rows(), **{"seed": 3, "num_starts": 3, "rule": lambda k: equal_ranks(2), **options})
    return outcome(result.assignment, result.bases, result.cost)


def equal(_: Path) -> dict[str, Any]:
    return clustered(num_clusters=4)


def adaptive(_: Path) -> dict[str, Any]:
    return clustered(num_clusters=[1, 2, 4], rule=lambda k: adaptive_ranks(900))


def below_two(_: Path) -> dict[str, Any]:
    return clustered(num_clusters=3, p=1.0)


def robust(_: Path) -> dict[str, Any]:
    return clustered(num_clusters=1, p=1.0)


def lewis(_: Path) -> dict[str, Any]:
    weights, gram = lewis_weights(rows(), 1.0)
    return {"assignment": (weights > weights.mean()).long(), "projections": [gram], "cost": float(weights.sum())}


def refilled(p: float) -> dict[str, Any]:
    """The third subspace is at a right angle to all rows, so that its cluster is empty at first."""
    wide = torch.cat([table(), torch.zeros(N, 1, dtype=torch.float64)], dim=1)
    axes = torch.eye(DIM + 1, dtype=torch.float64)
    vectors = torch.stack([axes, axes.roll(3, 0), axes.flip(0)])
    start = Fit(torch.full((N,), -1), vectors, whole_numbers([2, 2, 1], vectors.shape[-1], 0.0), float("inf"))
    with pytest.MonkeyPatch.context() as patch:
        fills, real = [], rounds.fill_empty_clusters
        patch.setattr(rounds, "fill_empty_clusters", lambda *args: fills.append(1) or real(*args))
        run = Run(Rows(wide, block_rows=BLOCK), "run", 3, equal_ranks(2), p, start=start)
        run.advance(6, 1e-9)
    bases = [basis[:rank] for basis, rank in zip(run.best.vectors, run.best.ranks, strict=True)]
    assignment = rounds.whole(run.rows, run.best.assignment)
    return {**outcome(assignment, bases, run.best.cost), "fills": len(fills)}


def refilled_at_two(_: Path) -> dict[str, Any]:
    return refilled(2.0)


def refilled_below_two(_: Path) -> dict[str, Any]:
    return refilled(1.0)


def interrupted(folder: Path) -> dict[str, Any]:
    """The first process is done with the folder when both start again."""
    owner, seen = {"table": "three planes"}, []

    def stop(_: float) -> None:
        seen.append(1)
        if len(seen) == ROUNDS_BEFORE:
            raise KeyboardInterrupt

    checkpoint = begun(folder / "interrupted", owner)
    with pytest.raises(KeyboardInterrupt):
        clustered(num_clusters=3, checkpoint=checkpoint, on_round=stop)
    wait()
    after: list[float] = []
    result = clustered(num_clusters=3, checkpoint=Checkpoint(folder / "interrupted", owner), on_round=after.append)
    return {**result, "rounds": len(after)}


def uninterrupted(_: Path) -> dict[str, Any]:
    seen: list[float] = []
    return {**clustered(num_clusters=3, on_round=seen.append), "rounds": len(seen)}


def counted(_: Path) -> dict[str, Any]:
    """Sizes of the all-reduced tensors of two rounds."""
    with pytest.MonkeyPatch.context() as patch:
        sizes, real = [], distributed.all_reduce
        patch.setattr(distributed, "all_reduce", lambda tensor: sizes.append(tensor.numel()) or real(tensor))
        run = Run(rows(), "run", 4, equal_ranks(2), 2.0, start=norm_bands(rows().norms, 4))
        at_start = list(sizes)
        run.advance(2, 0)
    return {"at_start": at_start, "sizes": sizes[len(at_start) :], "rounds": len(run.costs)}


def begun_at_once(folder: Path) -> dict[str, Any]:
    """The second process looks at the folder while the first one is writing the record of it."""
    real, path = Path.write_text, folder / "at-once"

    def slow(self: Path, *args: Any, **kwargs: Any) -> int:
        written = real(self, *args, **kwargs)
        time.sleep(0.5)
        return written

    error = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", slow)
        if process_index() == 1:
            time.sleep(0.25)
        try:
            Checkpoint(path, {"table": "three planes"})
        except ValueError as found:
            error = str(found)
    wait()
    return {"error": error}


def begun(folder: Path, owner: dict[str, Any]) -> Checkpoint:
    """A checkpoint that the first process makes before the others look."""
    if process_index() == 0:
        Checkpoint(folder, owner)
    wait()
    return Checkpoint(folder, owner)


def wait() -> None:
    if distributed.is_initialized():
        distributed.barrier()


COMPARED: list[Callable[[Path], dict[str, Any]]] = [
    equal,
    adaptive,
    below_two,
    robust,
    lewis,
    refilled_at_two,
    refilled_below_two,
    uninterrupted,
    interrupted,
]
SCENARIOS = [*COMPARED, counted, begun_at_once]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes found, by scenario."""
    folder = tmp_path_factory.mktemp("processes")
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(index), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in (0, 1)]


@pytest.mark.parametrize("scenario", COMPARED, ids=lambda scenario: scenario.__name__)
def test_two_processes_find_what_one_finds(
    scenario: Callable[[Path], dict[str, Any]], two_processes: list[dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    alone = scenario(tmp_path)
    for found in two_processes:
        shared = found[scenario.__name__]
        assert torch.equal(shared["assignment"], alone["assignment"])
        assert shared["cost"] == pytest.approx(alone["cost"], rel=1e-9)
        torch.testing.assert_close(shared["projections"], alone["projections"], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("scenario", ["refilled_at_two", "refilled_below_two"])
def test_an_empty_cluster_is_refilled_by_both_processes(
    scenario: str, two_processes: list[dict[str, dict[str, Any]]]
) -> None:
    for found in two_processes:
        assert found[scenario]["fills"] >= 1
        assert torch.bincount(found[scenario]["assignment"], minlength=3).min() >= 1


def test_after_an_interruption_two_processes_do_only_the_rounds_that_are_left(
    two_processes: list[dict[str, dict[str, Any]]],
) -> None:
    for found in two_processes:
        assert 0 < found["interrupted"]["rounds"] < found["uninterrupted"]["rounds"]


def test_an_interruption_costs_two_processes_no_further_round(
    two_processes: list[dict[str, dict[str, Any]]],
) -> None:
    for found in two_processes:
        assert found["interrupted"]["rounds"] == found["uninterrupted"]["rounds"] - ROUNDS_BEFORE


def test_a_round_is_one_all_reduce(
    two_processes: list[dict[str, dict[str, Any]]],
) -> None:
    sums = 4 * DIM**2 + 4 + 2
    for found in two_processes:
        assert found["counted"] == {"at_start": [sums], "sizes": [sums, sums], "rounds": 2}


def test_processes_that_begin_a_checkpoint_at_once_do_not_refuse_it(
    two_processes: list[dict[str, dict[str, Any]]],
) -> None:
    assert [found["begun_at_once"]["error"] for found in two_processes] == ["", ""]


def main(index: int, folder: Path) -> None:
    """Run every scenario as one of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {scenario.__name__: scenario(folder) for scenario in SCENARIOS}
    torch.save(found, folder / f"{index}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
