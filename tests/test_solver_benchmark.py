"""The benchmark of the solvers: the reference against a loop and by hand, and what the rows of a benchmark say."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_MODELS

from hf_projclust import compress
from hf_projclust.evaluation.machine import describe_machine
from hf_projclust.evaluation.plots import plot_benchmark
from hf_projclust.evaluation.solvers import benchmark as solver_benchmark
from hf_projclust.evaluation.solvers.benchmark import benchmark_solvers
from hf_projclust.evaluation.solvers.reference import reference_messi
from hf_projclust.evaluation.solvers.runs import SOLVERS, BenchmarkRow
from hf_projclust.evaluation.solvers.synthetic import synthetic_table
from hf_projclust.evaluation.solvers.watch import Watch
from hf_projclust.solvers.projective import SURPLUS_ROUNDS


def test_the_reference_by_hand() -> None:
    cost, assignment, bases = reference_messi(torch.tensor([[3.0, 0], [0, 1]]), num_clusters=1, rank=1)
    assert cost == pytest.approx(1)
    assert assignment.tolist() == [0, 0]
    assert bases[0].abs().tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, 14.0),  # all energy is left
        (2, 0.0),  # nothing is
    ],
)
def test_the_reference_at_the_least_and_the_largest_rank(rank: int, expected: float) -> None:
    cost, _, bases = reference_messi(torch.tensor([[3.0, 0], [0, 1], [0, 2]]), num_clusters=2, rank=rank)
    assert cost == pytest.approx(expected)
    assert [tuple(basis.shape) for basis in bases] == [(rank, 2)] * 2


def test_the_reference_equals_a_loop_over_rows() -> None:
    n, dim, k, rank, num_rounds = 23, 6, 4, 2, 3  # clusters with fewer rows than columns
    table = torch.randn(n, dim, generator=torch.Generator().manual_seed(1))
    clusters = (torch.randperm(n, generator=torch.Generator().manual_seed(7)) % k).tolist()
    rows = table.double().numpy()
    vectors = [np.eye(dim)] * k

    def fit() -> None:
        for cluster in range(k):
            members = np.array([row for row, at in zip(rows, clusters, strict=True) if at == cluster])
            if len(members):
                vectors[cluster] = np.linalg.svd(members)[2]

    def distance(row: np.ndarray, cluster: int) -> float:
        basis = vectors[cluster][:rank]
        return float(((row - row @ basis.T @ basis) ** 2).sum())

    costs = []
    fit()
    for _ in range(num_rounds):
        clusters = [min(range(k), key=lambda cluster, row=row: distance(row, cluster)) for row in rows]
        fit()
        costs.append(sum(distance(row, cluster) for row, cluster in zip(rows, clusters, strict=True)))

    seen: list[float] = []
    cost, assignment, bases = reference_messi(
        table, num_clusters=k, rank=rank, num_restarts=1, num_rounds=num_rounds, seed=7, on_round=seen.append
    )
    assert seen == pytest.approx(costs)
    assert cost == pytest.approx(costs[-1])
    assert assignment.tolist() == clusters
    for basis, expected in zip(bases, vectors, strict=True):
        torch.testing.assert_close(basis.T @ basis, torch.from_numpy(expected[:rank].T @ expected[:rank]))


def test_the_reference_finds_planted_subspaces() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(40, 2, generator=generator) @ torch.randn(2, 8, generator=generator) for _ in range(3)]
    cost, assignment, bases = reference_messi(torch.cat(parts), num_clusters=3, rank=2)
    assert cost == pytest.approx(0, abs=1e-9)
    assert [len(part.unique()) for part in assignment.split(40)] == [1, 1, 1]
    assert len(assignment.unique()) == 3
    for basis in bases:
        torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))


def test_the_reference_keeps_the_best_restart_and_leaves_the_table_alone() -> None:
    table = synthetic_table(120, 10, 3)
    before, seen = table.clone(), []
    cost, assignment, bases = reference_messi(
        table, num_clusters=3, rank=3, num_restarts=4, num_rounds=5, on_round=seen.append
    )
    assert len(seen) == 20
    assert cost == min(seen[4::5])
    rebuilt = torch.stack([row @ bases[at].T @ bases[at] for row, at in zip(table.double(), assignment, strict=True)])
    assert float((table - rebuilt).square().sum()) == pytest.approx(cost)
    assert torch.equal(table, before)


def test_an_empty_cluster_of_the_reference_keeps_its_subspace() -> None:
    _, assignment, bases = reference_messi(torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]), num_clusters=2, rank=1)
    assert assignment.tolist() == [0] * 4  # equal distances: the first
    assert bases[1].abs().tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("num_clusters", "rank"),
    [
        (0, 1),
        (4, 1),  # more than the rows
        (1, -1),
        (1, 3),  # more than the columns
    ],
)
def test_the_reference_refuses_what_no_table_has(num_clusters: int, rank: int) -> None:
    with pytest.raises(ValueError, match=f"num_clusters={num_clusters} and rank={rank} for a table of 3 x 2"):
        reference_messi(torch.ones(3, 2), num_clusters=num_clusters, rank=rank)


@pytest.fixture(scope="module")
def tiny_rows() -> list[BenchmarkRow]:
    table = synthetic_table(300, 12, 3, seed=1)
    return benchmark_solvers(table=table, num_clusters=3, sizes=[(200, 10, 2), (260, 12, 3)], reference_restarts=2)


def test_each_table_has_the_reference_and_every_preset(tiny_rows: list[BenchmarkRow]) -> None:
    tables = [("given table", 300, 12), ("synthetic, 2 subspaces", 200, 10), ("synthetic, 3 subspaces", 260, 12)]
    references = ["reference, 2 restarts", "reference, 1 restart", "reference, 1 restart"]
    assert [(row.table, row.num_rows, row.dim, row.solver) for row in tiny_rows] == [
        (*table, solver)
        for table, reference in zip(tables, references, strict=True)
        for solver in (reference, *SOLVERS)
    ]
    assert {row.device for row in tiny_rows} == {"cpu"}
    assert [row.num_clusters for row in tiny_rows if row.solver == "messi"] == [3, 2, 3]
    assert [row.rounds for row in tiny_rows[::5]] == [20, 10, 10]


def test_ratios_are_those_of_seconds(tiny_rows: list[BenchmarkRow]) -> None:
    for number, row in enumerate(tiny_rows):
        reference = tiny_rows[number // 5 * 5]
        assert row.times_faster == reference.seconds / row.seconds
        reached = [seconds for seconds, error in row.curve if error <= reference.relative_squared_error]
        if row is reference or not reached:
            assert row.seconds_to_reference_error is row.times_faster_to_reference_error is None
        else:
            assert row.seconds_to_reference_error == reached[0] <= row.seconds
            assert row.times_faster_to_reference_error == reference.seconds / reached[0]
    assert any(row.seconds_to_reference_error is not None for row in tiny_rows)


def rounds_without_an_error(row: BenchmarkRow) -> int:
    """Those of the first start before its clusters are merged; adaptive begins with one cluster, as svd does."""
    return SURPLUS_ROUNDS if row.solver == "messi" else 0


def test_curves_fall_and_end_where_the_row_says(tiny_rows: list[BenchmarkRow]) -> None:
    for row in tiny_rows:
        seconds, errors = zip(*row.curve, strict=True)
        assert len(row.curve) == (1 if row.solver == "robust" else row.rounds - rounds_without_an_error(row) + 1)
        assert list(seconds) == sorted(seconds)
        assert list(errors[:-1]) == sorted(errors[:-1], reverse=True)
        assert row.curve[-1] == (row.seconds, row.relative_squared_error)
        assert errors[-1] == pytest.approx(min(errors), rel=1e-4)  # rounding of the stored factors


def test_errors_are_those_of_a_compressed_model() -> None:
    model = TINY_MODELS["bert"].build()
    table = model.get_input_embeddings().weight
    rows = benchmark_solvers(table=table, compression=0.3, num_clusters=2, sizes=(), reference_restarts=1)
    for row in rows[1:]:
        compressed = compress(
            model,
            preset=row.solver,
            num_clusters=2 if row.solver == "messi" else None,
            compression=0.3,
            token_counts="uniform",
            norm_exponent=0,
        )
        solver = compressed.config.projclust["solver"]["embedding"]
        assert row.relative_squared_error == solver["relative_squared_error"]
        assert row.num_clusters == len(solver["energy_kept"])


def test_the_reference_gets_the_rank_of_the_preset() -> None:
    table = synthetic_table(300, 12, 3, seed=1)
    row = benchmark_solvers(table=table, compression=0.5, num_clusters=3, sizes=(), reference_restarts=1)[0]
    cost, _, _ = reference_messi(table, num_clusters=3, rank=5, num_restarts=1)  # 5 (300 + 3 * 12) <= 300 * 12 / 2
    assert row.relative_squared_error == pytest.approx(cost / float(table.double().square().sum()))


def test_by_default_the_table_is_that_of_the_packaged_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_benchmark, "run_case", lambda case, table, number, progress: [(case, table)])
    (case, table), _ = benchmark_solvers(sizes=[(64, 8, 2)])
    assert (case.name, case.restarts) == ("all-MiniLM-L6-v2", 10)
    assert table.shape == (30522, 384)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizes": [(64, 8, 2), (8, 8, 9)]}, "n=8, d=8, k=9"),  # more subspaces than rows
        ({"sizes": [(64, 8, 0)]}, "n=64, d=8, k=0"),
        ({"sizes": [(0, 8, 1)]}, "n=0, d=8, k=1"),
        ({"sizes": [(64, 1, 1)]}, "n=64, d=1, k=1"),
        ({"sizes": [(20, 8, 20)]}, "fewer clusters"),  # their bases alone are more than the table
        ({"compression": 0}, "compression=0"),
        ({"compression": 1.0}, "compression=1.0"),
        ({"compression": 0.99}, "compression=0.99 leaves"),
        ({"num_clusters": 65}, "num_clusters=65"),
        ({"seed": -1}, "seed=-1"),
        ({"device": "nowhere"}, "device='nowhere'"),
        ({"reference_restarts": 0}, "reference_restarts=0"),
        ({"reference_restarts": 1.5}, "reference_restarts=1.5"),
        ({"table": torch.ones(64)}, r"shape \(64,\)"),
        ({"table": torch.ones(64, 8, dtype=torch.int64)}, "int64"),
        ({"table": torch.full((64, 8), float("nan"))}, "expected finite"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(given: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_benchmark, "run_case", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=message):
        benchmark_solvers(**{"table": torch.ones(64, 8), "sizes": [(64, 8, 2)], **given})


def test_options_are_checked_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_benchmark, "load_model", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="compression=2"):
        benchmark_solvers(compression=2, sizes=())


def test_synthetic_tables_are_unions_of_subspaces_with_norms_that_vary() -> None:
    table = synthetic_table(3000, 16, 3, seed=5)
    assert table.shape == (3000, 16)
    assert table.dtype == torch.float32
    assert torch.equal(table, synthetic_table(3000, 16, 3, seed=5))
    assert not torch.equal(table, synthetic_table(3000, 16, 3, seed=6))
    assert float(table.norm(dim=1).log().std()) == pytest.approx(0.27, abs=0.02)
    planted, _, _ = reference_messi(table, num_clusters=3, rank=8)
    whole, _, _ = reference_messi(table, num_clusters=1, rank=8, num_restarts=1, num_rounds=1)
    assert planted < whole / 2


def test_a_watch_sees_memory_that_is_held_for_a_while_and_each_round() -> None:
    shown: list[bool] = []
    watch = Watch(torch.device("cpu"), lambda: shown.append(True))
    with watch:
        for error in (0.5, 0.625, 0.25):
            watch.mark(error)
        held = torch.ones(2**24)  # 64 MiB
        time.sleep(0.2)
        del held
    assert watch.peak_bytes >= 60 * 2**20
    assert len(shown) == 3
    assert [error for _, error in watch.curve()] == [0.5, 0.5, 0.25]


def test_a_plot_is_written(tiny_rows: list[BenchmarkRow], tmp_path: Path) -> None:
    from matplotlib.image import imread

    plot_benchmark(tiny_rows, tmp_path / "solvers.png")
    image = imread(tmp_path / "solvers.png")
    assert image.shape[0] > 400
    assert image.shape[1] > 1000
    assert image.std() > 0.05  # something is drawn


def test_a_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows to draw"):
        plot_benchmark([], tmp_path / "solvers.png")


def test_the_machine_is_described() -> None:
    described = describe_machine()
    assert f"PyTorch {torch.__version__}" in described
    assert "device cpu" in described
