"""The benchmark of layers: contenders compute the dense table, ratios are of one round, memory is counted by hand."""

import importlib
import re
from collections.abc import Iterator
from importlib import metadata

import pytest
import torch
from packaging.version import Version
from torch import nn

from hf_projclust.evaluation.layers import benchmark as layer_benchmark
from hf_projclust.evaluation.layers.benchmark import EMBEDDING, HEAD, TRAINING, Absence, LayerRow, benchmark_layers
from hf_projclust.evaluation.layers.contenders import EMBEDDINGS, HEADS, Contender
from hf_projclust.evaluation.layers.memory import peak_bytes, resident_bytes
from hf_projclust.evaluation.layers.rounds import time_in_rounds
from hf_projclust.evaluation.layers.tables import DrawnTable, draw_table, layout_of

CPU = torch.device("cpu")
ROWS, DIM = 320, 64
NEEDS_KERNELS = "torchao int4 packed"
IS_OLD_TORCHAO = Version(metadata.version("torchao")) < Version("0.18")  # torch 2.8 takes none that is newer


def drawn(dtype: torch.dtype = torch.float32, **given: int) -> DrawnTable:
    return draw_table(**{"num_rows": ROWS, "dim": DIM, "seed": 0, **given}, device=CPU, dtype=dtype)


@pytest.fixture(scope="module")
def measured() -> tuple[list[LayerRow], list[Absence]]:
    return benchmark_layers(tokens=[1, 20], vocabulary=[ROWS, 330], dim=DIM, rounds=3)


def test_a_table_is_the_product_of_its_factors_row_by_row() -> None:
    table = drawn()
    ends = torch.tensor(table.layout.cluster_sizes).cumsum(0)
    for token in (0, 1, 77, ROWS - 1):
        stored = int(table.stored_rows[token])
        cluster = int((ends <= stored).sum())
        local = stored - (int(ends[cluster - 1]) if cluster else 0)
        torch.testing.assert_close(table.dense[token], table.coefficients[cluster][local] @ table.bases[cluster])
    assert sorted(table.stored_rows.tolist()) == list(range(ROWS))
    assert table.stored_rows.tolist() != list(range(ROWS))
    assert torch.equal(table.dense, drawn().dense)
    assert not torch.equal(table.dense, drawn(seed=1).dense)


@pytest.mark.parametrize("compression", [0.4, 0.6, 0.8])
def test_factors_save_what_they_are_said_to_and_little_more(compression: float) -> None:
    saved = 1 - layout_of(30_522, 768, compression).num_parameters / (30_522 * 768)
    assert compression <= saved < compression + 0.02


CONTENDERS = [(kind, each) for kind, all_ in (("embedding", EMBEDDINGS), ("head", HEADS)) for each in all_]


@pytest.mark.parametrize(("kind", "contender"), CONTENDERS, ids=[f"{kind} {each.name}" for kind, each in CONTENDERS])
def test_outputs_are_those_of_the_dense_table_within_the_precision(kind: str, contender: Contender) -> None:
    table = drawn()
    if contender.name == NEEDS_KERNELS:
        with pytest.raises(AssertionError, match="kernel library is not loaded"):
            contender.build(table)
        return
    if (kind, contender.name) == ("head", "torchao int4") and IS_OLD_TORCHAO:
        with pytest.raises(ImportError, match="PrototypeInt4WeightOnlyConfig"):
            contender.build(table)
        return
    module, generator = contender.build(table), torch.Generator().manual_seed(1)
    token_ids = torch.randint(ROWS, (3, 5), generator=generator)
    hidden = torch.randn(4, DIM, generator=generator)
    is_embedding = kind == "embedding"
    with torch.no_grad():
        outputs = module(token_ids if is_embedding else hidden)
    expected = table.dense[token_ids] if is_embedding else hidden @ table.dense.T
    bits = 4 if contender.name.endswith(("int4", "nf4")) else 8 if contender.name.endswith("int8") else 32
    assert outputs.shape == expected.shape
    assert outputs.dtype == torch.float32
    error = float((outputs - expected).norm() / expected.norm())
    least, most = {4: (0.03, 0.15), 8: (0.003, 0.02), 32: (0, 1e-6)}[bits]
    assert least <= error <= most
    assert contender.tolerance == (0 if bits == 32 else most)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert bool(trained) == (contender.trains or not is_embedding and bits == 32)


def by_hand(name: str) -> int:
    """Bytes that an embedding of 320 x 64 holds."""
    numbers = ROWS * DIM
    if name == "factored 80 % int4":
        layout = layout_of(ROWS, DIM, 0.8)
        rows = sum(
            size * (1 + (rank + 1) // 2) for size, rank in zip(layout.cluster_sizes, layout.cluster_ranks, strict=True)
        )
        return rows + sum(layout.cluster_ranks) * (DIM + 4) + 2 * 256 + (1 + 4) * ROWS  # bases, a codebook, places
    if name.startswith("factored"):
        return 4 * layout_of(ROWS, DIM, 0.8 if "80" in name else 0.4).num_parameters + 4 * ROWS
    return {
        "dense": 4 * numbers,
        "torchao int8": numbers + (4 + (8 if IS_OLD_TORCHAO else 1)) * ROWS,  # scale and zero point of a row
        "torchao int4": numbers + (4 + 1) * ROWS * DIM // 32,  # a number has four bits in a byte
        "bitsandbytes int8": numbers + 4 * ROWS,
        "bitsandbytes nf4": numbers // 2 + 4 * numbers // 64 + 4 * 16,  # scales of blocks, and the code book
    }[name]


def test_memory_that_is_held_is_that_by_hand(measured: tuple[list[LayerRow], list[Absence]]) -> None:
    rows = [row for row in measured[0] if (row.operation, row.vocabulary, row.tokens) == (EMBEDDING, ROWS, 1)]
    assert {row.contender: row.resident_bytes for row in rows} == {
        row.contender: by_hand(row.contender) for row in rows
    }
    assert len(rows) == len(EMBEDDINGS) - 1


def test_memory_is_counted_once_and_with_what_hangs_on_a_parameter() -> None:
    layer = nn.Linear(4, 4, bias=False)
    layer.again, layer.scales = layer.weight[1:], [torch.ones(3), {"more": torch.ones(5)}]
    layer.weight.extra = torch.ones(7)
    assert resident_bytes(layer) == 4 * (16 + 3 + 5 + 7)


def test_the_peak_of_a_call_is_that_by_hand() -> None:
    def call() -> torch.Tensor:
        first = torch.ones(1000)
        second = first + 1
        del first
        return second + 1  # third, beside the second

    assert 8000 <= peak_bytes(call, CPU) < 8100
    assert 12000 <= peak_bytes(lambda: (call(), torch.ones(2000)), CPU) < 12100


@pytest.mark.skipif(IS_OLD_TORCHAO, reason="this torchao looks rows up without a dense table, as ours does")
def test_a_call_of_torchao_takes_a_dense_table_and_one_of_ours_does_not(
    measured: tuple[list[LayerRow], list[Absence]],
) -> None:
    peaks = {row.contender: row.peak_bytes for row in measured[0] if (row.operation, row.tokens) == (EMBEDDING, 1)}
    assert peaks["torchao int8"] > 4 * ROWS * DIM
    assert peaks["factored 40 %"] < 4 * ROWS * DIM / 10


def test_every_round_begins_with_the_first_and_rotates_the_others() -> None:
    order: list[str] = []

    def slow(name: str) -> None:
        order.append(name)
        torch.ones(400, 400) @ torch.ones(400, 400)

    timed = time_in_rounds({name: lambda _, name=name: slow(name) for name in "abc"}, 3, CPU)
    counts = {name: timed[name].calls for name in "abc"}
    expected = [name for turn in ("abc", "acb", "abc") for name in turn for _ in range(counts[name])]
    assert order[-len(expected) :] == expected
    assert [len(each.seconds) for each in timed.values()] == [3, 3, 3]


def test_what_is_slow_takes_part_in_the_first_rounds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    calls = {"dense": lambda _: wait(0.004), "slow": lambda _: wait(7.0), "quick": lambda _: wait(0.0006)}
    timed = time_in_rounds(calls, 20, CPU)
    assert {name: len(each.seconds) for name, each in timed.items()} == {"dense": 20, "slow": 5, "quick": 20}
    assert {name: each.calls for name, each in timed.items()} == {"dense": 1, "slow": 1, "quick": 4}
    assert timed["quick"].seconds == pytest.approx([0.0006] * 20)


def test_ratios_are_to_the_dense_layer_in_the_same_round(measured: tuple[list[LayerRow], list[Absence]]) -> None:
    dense_rows = {(r.operation, r.vocabulary, r.tokens): r for r in measured[0] if r.contender == "dense"}
    for row in measured[0]:
        dense = dense_rows[row.operation, row.vocabulary, row.tokens]
        assert row.dense_seconds == dense.seconds[: len(row.seconds)]
        ratios = sorted(one / two for one, two in zip(row.seconds, row.dense_seconds, strict=True))
        assert len(ratios) == 3
        assert row.ratio == pytest.approx(ratios[1])
        assert row.ratio_low == pytest.approx((ratios[0] + ratios[1]) / 2)
        assert row.ratio_high == pytest.approx((ratios[1] + ratios[2]) / 2)


def test_every_contender_is_measured_or_listed(measured: tuple[list[LayerRow], list[Absence]]) -> None:
    rows, absences = measured
    for operation, contenders, counts in (
        (EMBEDDING, EMBEDDINGS, [1, 20]),
        (TRAINING, EMBEDDINGS, [1, 20]),
        (HEAD, HEADS, [1]),
    ):
        for vocabulary in (ROWS, 330):
            missing = {
                a.contender: a.reason for a in absences if (a.operation, a.vocabulary) == (operation, vocabulary)
            }
            for count in counts:
                found = [
                    r.contender for r in rows if (r.operation, r.vocabulary, r.tokens) == (operation, vocabulary, count)
                ]
                assert found == [each.name for each in contenders if each.name not in missing]
            if operation == TRAINING:
                assert {name for name, reason in missing.items() if "does not train" in reason} == {
                    each.name for each in contenders if not each.trains and each.name != NEEDS_KERNELS
                }
            elif operation == EMBEDDING:
                assert list(missing) == [NEEDS_KERNELS]
    reasons = {a.contender: a.reason for a in absences if (a.operation, a.vocabulary) == (HEAD, 330)}
    cause = "PrototypeInt4WeightOnlyConfig" if IS_OLD_TORCHAO else "expect N to be dividable by 16"
    assert cause in reasons["torchao int4"]
    assert {row.tokens for row in rows if row.operation == HEAD} == {1}  # 20 are more than a head generates


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Contender]]:
    contenders = [EMBEDDINGS[0]]
    monkeypatch.setattr(layer_benchmark, "EMBEDDINGS", contenders)
    return contenders


def of_others(table: DrawnTable) -> nn.Module:
    return nn.Embedding.from_pretrained(table.dense.roll(1, 0))


def without_numbers(table: DrawnTable) -> nn.Module:
    return nn.Embedding.from_pretrained(table.dense * float("nan"))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (of_others, r"its outputs are 1\.\d+ from those of the dense layer"),
        (without_numbers, "its outputs are nan from"),
        (
            lambda _: importlib.import_module("no_such_library"),
            "ModuleNotFoundError: No module named 'no_such_library'",
        ),
        (lambda _: (_ for _ in ()).throw(RuntimeError("no kernel\nmore")), "RuntimeError: no kernel$"),
    ],
)
def test_what_computes_something_else_or_cannot_run_is_listed(entered: list[Contender], build, reason: str) -> None:
    entered.append(Contender("another", build, tolerance=0.15))
    rows, absences = benchmark_layers(tokens=[20], vocabulary=[ROWS], dim=DIM, rounds=1)
    assert {row.contender for row in rows} == {"dense"}
    assert [absence.operation for absence in absences] == [EMBEDDING, TRAINING]
    for absence in absences:
        assert absence.contender == "another"
        assert re.search(reason, absence.reason)


def test_what_fails_for_some_number_of_tokens_only_is_listed_for_that(entered: list[Contender]) -> None:
    class Few(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if len(input) == 2:
                raise RuntimeError("two are too many")
            return super().forward(input)

    entered.append(Contender("few", lambda table: Few.from_pretrained(table.dense)))
    rows, absences = benchmark_layers(tokens=[20, 2], vocabulary=[ROWS], dim=DIM, rounds=1)
    assert [row.tokens for row in rows if row.contender == "few"] == [20]
    assert Absence(EMBEDDING, ROWS, 2, "few", "RuntimeError: two are too many") in absences


def test_an_error_of_the_dense_layer_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_benchmark, "EMBEDDINGS", [Contender("dense", lambda _: torch.empty(-1))])
    with pytest.raises(RuntimeError, match="negative dimension"):
        benchmark_layers(tokens=[20], vocabulary=[ROWS], dim=DIM, rounds=1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(dtype: str) -> None:
    rows, absences = benchmark_layers(tokens=[2], vocabulary=[ROWS], dim=DIM, rounds=1, dtype=dtype)
    assert {absence.contender for absence in absences if absence.operation == EMBEDDING} == {NEEDS_KERNELS}
    assert {"dense", "factored 60 %"} <= {row.contender for row in rows if row.operation == HEAD}
    (dense,) = [row for row in rows if (row.operation, row.contender) == (HEAD, "dense")]
    assert dense.resident_bytes == 2 * ROWS * DIM


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": [1, 0]}, "tokens=0; expected a whole number, 1 or more"),
        ({"tokens": []}, r"tokens=\[\]; expected one number or several"),
        ({"tokens": [2, 2]}, r"tokens=\[2, 2\]; expected one number or several that differ"),
        ({"tokens": [1.5]}, r"tokens=1\.5"),
        ({"vocabulary": [-5]}, "vocabulary=-5"),
        ({"vocabulary": [4]}, "vocabulary=4 and dim=64: 8 clusters cannot save 80%"),
        ({"dim": 0}, "dim=0"),
        ({"dim": 4}, "vocabulary=320 and dim=4"),  # one coordinate a row is more than a fifth of it
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": True}, "rounds=True"),
        ({"seed": -1}, "seed=-1; expected a whole number, 0 or more"),
        ({"dtype": "int8"}, "dtype='int8'; expected one of 'float32'"),
        ({"device": "moon"}, "device='moon'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    given: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_benchmark, "draw_table", lambda *_, **__: pytest.fail("it was drawn"))
    with pytest.raises(ValueError, match=message):
        benchmark_layers(**{"tokens": [1], "vocabulary": [ROWS], "dim": DIM, **given})
