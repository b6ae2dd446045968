"""Rivals: tables by hand, bytes of what would be stored, errors that fall as bytes grow, and what is refused."""

import math
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from few_bits import falling_table
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_projclust.evaluation.rivals.contenders import RIVALS, RivalTask, contenders
from hf_projclust.evaluation.rivals.frequency_blocks import reduce_blocks
from hf_projclust.evaluation.rivals.product_quantization import product_quantize
from hf_projclust.evaluation.rivals.rounding import round_to_nearest
from hf_projclust.evaluation.rivals.tables import RivalTable
from hf_projclust.evaluation.rivals.trimming import kept_within, trim

N, D = 600, 24


def counts_of(num_rows: int, seed: int = 3) -> torch.Tensor:
    """Zipf's law over tokens in random order."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return 1 / (1 + order.double())


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return falling_table(N, D)


def error(table: torch.Tensor, found: RivalTable, weights: torch.Tensor | None = None) -> float:
    weights = torch.ones(len(table)) if weights is None else weights
    return float(weights.double() @ (table - found.rows).double().square().sum(dim=1))


def task(table: torch.Tensor, **given: Any) -> RivalTask:
    counts = counts_of(len(table))
    return RivalTask(**{"table": table, "counts": counts, "weights": counts, "unknown_id": 1, "seed": 0, **given})


# Rounding


def test_two_by_two_is_rounded_by_hand() -> None:
    table = torch.tensor([[0.0, 3.0], [1.0, -0.5]])
    assert torch.equal(round_to_nearest(table, bits=2, group=2).rows, table)  # ends are always steps
    row = torch.tensor([[0.0, 1.2, 1.9, 3.0]])  # steps of 1 from 0
    found = round_to_nearest(row, bits=2, group=4)
    torch.testing.assert_close(found.rows, torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    assert found.size_bytes == 1 + 4
    assert found.setting == "int2, groups of 4"
    torch.testing.assert_close(round_to_nearest(row, bits=1, group=4).rows, torch.tensor([[0.0, 0.0, 3.0, 3.0]]))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("group", [5, 8, 24, 64])
def test_a_rounded_table_is_read_back_from_as_many_bytes_as_are_counted(
    table: torch.Tensor, bits: int, group: int
) -> None:
    found = round_to_nearest(table, bits=bits, group=group)
    codes, rebuilt, scales = [], torch.empty_like(table), []
    for row, values in enumerate(table):
        for first in range(0, D, group):
            part = values[first : first + group]
            least = part.min().half()
            step = ((part.max() - least.float()) / (2**bits - 1)).half()
            code = ((part - least.float()) / step.float()).round().clamp(0, 2**bits - 1)
            rebuilt[row, first : first + group] = code * step.float() + least.float()
            codes.append(code.to(torch.uint8))
            scales += [least, step]
    digits = np.unpackbits(torch.cat(codes).numpy()[:, None], axis=1)[:, -bits:]  # the last bits of each byte
    packed = np.packbits(digits.reshape(-1))
    torch.testing.assert_close(found.rows, rebuilt)
    assert found.size_bytes == packed.nbytes + torch.stack(scales).nbytes


def test_equal_numbers_are_kept_and_too_large_ones_refused() -> None:
    table = torch.full((2, 8), 0.375)
    assert torch.equal(round_to_nearest(table, bits=2, group=8).rows, table)
    with pytest.raises(ValueError, match="numbers up to 100000; expected such as half precision can hold"):
        round_to_nearest(torch.full((2, 8), 1e5), bits=8, group=8)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 8), st.integers(1, 30), st.integers(0, 10_000))
def test_no_number_is_further_off_than_half_a_step(bits: int, group: int, seed: int) -> None:
    table = torch.randn(7, 13, generator=torch.Generator().manual_seed(seed))
    found = round_to_nearest(table, bits=bits, group=group)
    for first in range(0, 13, group):
        part, rows = table[:, first : first + group], found.rows[:, first : first + group]
        spread = part.amax(dim=1) - part.amin(dim=1)
        slack = 2e-3 * part.abs().amax(dim=1).clamp(min=1)  # of half precision, in the least number and the steps
        assert bool(((part - rows).abs().amax(dim=1) <= 0.5 * spread / (2**bits - 1) + 2 * slack).all())


# Product quantisation


@pytest.mark.parametrize(("per_byte", "apart"), [(1, False), (3, True), (5, False), (24, True)])
def test_a_quantised_table_is_read_back_from_as_many_bytes_as_are_counted(
    table: torch.Tensor, per_byte: int, apart: bool
) -> None:
    found = product_quantize(table, per_byte=per_byte, apart=apart)
    codes, words, lengths = [], [], table.norm(dim=1, keepdim=True)
    for first in range(0, D, per_byte):
        part = found.rows[:, first : first + per_byte]
        if not apart:  # as many words as rows that differ, 256 at most
            book, code = part.unique(dim=0, return_inverse=True)
            assert len(book) <= 256
        else:
            book, code = torch.zeros(256, part.shape[1]), torch.zeros(N)
        words.append(torch.zeros(256, part.shape[1]).index_copy_(0, torch.arange(len(book)), book))
        codes.append(code.to(torch.uint8))
    stored = [*codes, *words, *([lengths.half()] if apart else [])]
    assert found.size_bytes == sum(tensor.nbytes for tensor in stored)
    if not apart:
        rebuilt = torch.cat([book[code.long()] for book, code in zip(words, codes, strict=True)], dim=1)
        assert torch.equal(found.rows, rebuilt)


@pytest.mark.parametrize("per_byte", [12, 3])
def test_codebooks_are_those_of_faiss(table: torch.Tensor, per_byte: int) -> None:
    quantizer = faiss.ProductQuantizer(D, D // per_byte, 8)
    quantizer.cp.seed = 5
    quantizer.train(table.numpy())
    rebuilt = torch.from_numpy(quantizer.decode(quantizer.compute_codes(table.numpy())))
    found = product_quantize(table, per_byte=per_byte, seed=5)
    assert error(table, found) == pytest.approx(error(table, RivalTable("", rebuilt, 0)), rel=0.02)
    if per_byte == 12:
        assert torch.equal(found.rows, rebuilt)
    assert torch.equal(found.rows, product_quantize(table, per_byte=per_byte, seed=5).rows)
    assert not torch.equal(found.rows, product_quantize(table, per_byte=per_byte, seed=6).rows)


def test_lengths_apart_are_those_of_the_least_error() -> None:
    directions = falling_table(N, D)
    table = directions * torch.logspace(-2, 2, N).unsqueeze(1)
    found = product_quantize(table, per_byte=4, apart=True)
    better = error(table, found)
    assert better < error(table, product_quantize(table, per_byte=4))
    for factor in (0.98, 1.02):
        assert better < error(table, RivalTable("", found.rows * factor, 0))


def test_a_byte_for_each_coordinate_all_but_gives_the_table_back(table: torch.Tensor) -> None:
    energy = float(table.double().square().sum())
    assert error(table, product_quantize(table, per_byte=1)) < 1e-3 * energy
    assert error(table, product_quantize(table, per_byte=1, apart=True)) < 1e-3 * energy


def test_words_are_in_the_dtype_of_the_table(table: torch.Tensor) -> None:
    found = product_quantize(table.bfloat16(), per_byte=8)
    assert torch.equal(found.rows, found.rows.bfloat16().float())
    assert found.size_bytes == 3 * N + 2 * 256 * D


# Frequency blocks


def test_blocks_are_stored_in_as_many_bytes_as_are_counted(table: torch.Tensor) -> None:
    counts = counts_of(N)
    budget = 4 * N * D // 3
    plain = reduce_blocks(table, counts, size_bytes=budget)
    rounded = reduce_blocks(table, counts, size_bytes=budget, bits=4)
    for found, is_rounded in ((plain, False), (rounded, True)):
        ranks = [int(rank) for rank in found.setting.partition("ranks ")[2].split(", ")]
        assert len(ranks) == 5
        total = torch.zeros(N, dtype=torch.int32).nbytes  # where the row of each token stands
        for rank, rows in zip(ranks, counts.argsort(descending=True).tensor_split(5), strict=True):
            assert torch.linalg.matrix_rank(found.rows[rows].double(), rtol=1e-4) == rank
            basis = torch.zeros(rank, D, dtype=torch.float16 if is_rounded else torch.float32)
            coefficients = torch.zeros(len(rows), rank)
            total += basis.nbytes
            total += (len(rows) * rank * 4 + 7) // 8 + 4 * len(rows) * math.ceil(rank / 32) if is_rounded else 0
            total += 0 if is_rounded else coefficients.nbytes
        assert found.size_bytes == total <= budget
        assert total > 0.9 * budget
    assert sum(plain.rows.isfinite().flatten().tolist()) == N * D


def test_blocks_with_room_for_all_ranks_give_the_table_back(table: torch.Tensor) -> None:
    counts = counts_of(N)
    whole = reduce_blocks(table, counts, size_bytes=10**9)
    torch.testing.assert_close(whole.rows, table, atol=1e-4, rtol=0)
    assert whole.size_bytes == 4 * (N * D + 5 * D * D + N)
    few = reduce_blocks(table[:40], counts[:40], size_bytes=10**9, num_blocks=5)  # blocks of fewer rows than columns
    torch.testing.assert_close(few.rows, table[:40], atol=1e-4, rtol=0)


def test_one_block_is_the_weighted_svd(table: torch.Tensor) -> None:
    counts = counts_of(N)
    found = reduce_blocks(table, counts, size_bytes=4 * (6 * (N + D) + N), num_blocks=1)
    assert found.setting == "1 blocks, ranks 6"
    scale = counts.sqrt().unsqueeze(1)
    left, values, right = torch.linalg.svd(scale * table.double(), full_matrices=False)
    expected = (left[:, :6] * values[:6]) @ right[:6] / scale
    torch.testing.assert_close(found.rows.double(), expected, atol=1e-4, rtol=0)


def test_blocks_lose_less_than_one_svd_where_frequent_tokens_have_axes_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    counts = torch.logspace(0, -4, 1000)
    table = torch.cat(
        [torch.randn(200, 8, generator=generator) @ axes[block : block + 8] for block in (0, 4, 8, 12, 16)]
    )
    budget = 4 * (4 * (1000 + D) + 1000)
    blocks = reduce_blocks(table, counts, size_bytes=budget)
    plain = reduce_blocks(table, counts, size_bytes=budget, num_blocks=1)
    assert blocks.size_bytes <= plain.size_bytes
    assert error(table, blocks, counts) < 0.6 * error(table, plain, counts)
    ranks = [int(rank) for rank in blocks.setting.partition("ranks ")[2].split(", ")]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[-1]


# Trimming


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_exactly_the_most_used_rows_are_kept(table: torch.Tensor, bits: int | None) -> None:
    counts = counts_of(N)
    found = trim(table, counts, num_kept=50, unknown_id=int(counts.argmax()), bits=bits)
    kept = counts.argsort(descending=True)[:50]
    stored = table if bits is None else round_to_nearest(table, bits=bits, group=64).rows
    expected = stored[counts.argmax()].repeat(N, 1)
    expected[kept] = stored[kept]
    assert torch.equal(found.rows, expected)
    assert found.setting == "50 rows, others the unknown token's row"
    rows = {None: table[:50].nbytes, 8: 50 * (D + 4), 4: 50 * (D // 2 + 4)}[bits]
    assert found.size_bytes == rows + torch.zeros(N, dtype=torch.int32).nbytes


def test_the_row_of_the_unknown_token_is_kept_among_them(table: torch.Tensor) -> None:
    counts = counts_of(N)
    unknown = int(counts.argmin())
    rows = trim(table, counts, num_kept=50, unknown_id=unknown).rows
    order = counts.argsort(descending=True)
    assert torch.equal(rows[order[:49]], table[order[:49]])
    assert torch.equal(rows[order[49:]], table[unknown].expand(N - 49, D))


def test_without_an_unknown_token_others_are_zeros_and_without_counts_lower_ids_are_kept(table: torch.Tensor) -> None:
    found = trim(table, None, num_kept=50)
    assert torch.equal(found.rows, torch.cat([table[:50], torch.zeros(N - 50, D)]))
    assert found.setting.endswith("others zeros")
    assert torch.equal(trim(table, None, num_kept=N).rows, table)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("budget", [3000, 10_001, 10**6])
def test_as_many_rows_are_kept_as_fit(table: torch.Tensor, bits: int | None, budget: int) -> None:
    kept = kept_within(budget, N, D, 4, bits=bits)
    assert trim(table, None, num_kept=kept, bits=bits).size_bytes <= budget
    if kept < N:
        assert trim(table, None, num_kept=kept + 1, bits=bits).size_bytes > budget
    assert kept_within(4 * N, N, D, 4, bits=bits) == 0


# All of them


def test_errors_fall_as_bytes_grow_and_no_rival_takes_more_than_the_budget() -> None:
    table = torch.randn(2003, 32, generator=torch.Generator().manual_seed(0)) * 0.9 ** torch.arange(32)
    budgets = [table.nbytes // 2, table.nbytes // 3, table.nbytes // 6]
    given_task = task(table)
    found: dict[str, list[tuple[int, float]]] = {}
    for contender in contenders(given_task, budgets):
        built = contender.build()
        weights = given_task.weights if "Reduce" in contender.method else None
        found.setdefault(contender.method, []).append((built.size_bytes, error(table, built, weights)))
        if contender.method == RIVALS[0]:
            assert built.setting == contender.setting
        else:
            assert built.size_bytes <= budgets[0]
    assert tuple(found) == RIVALS
    for method, points in found.items():
        if method != RIVALS[0]:  # whose bits and groups are two knobs
            errors = [lost for _, lost in sorted(points, reverse=True)]
            assert errors == sorted(errors), method
            assert len(points) >= 2, method  # rounded rows that are kept may be all, with room to spare
    by_bits = [lost for _, lost in found[RIVALS[0]]]  # groups of 32 alone: the width
    assert by_bits == sorted(by_bits)
    assert len(by_bits) == 4


def test_a_budget_that_is_too_small_is_refused_when_it_is_built(table: torch.Tensor) -> None:
    found = [contender for contender in contenders(task(table), [100]) if contender.method != RIVALS[0]]
    assert {contender.method for contender in found} == set(RIVALS[1:])
    for contender in found:
        assert contender.setting == "100 bytes"
        with pytest.raises(ValueError, match="100"):
            contender.build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: round_to_nearest(t, bits=0, group=8), "bits=0; expected a whole number, 1 to 8"),
        (lambda t: round_to_nearest(t, bits=4, group=0), "group=0; expected a whole number, 1 or more"),
        (lambda t: round_to_nearest(t, bits=True, group=8), "bits=True"),
        (lambda t: round_to_nearest(t.long(), bits=4, group=8), "torch.int64; expected finite floating numbers"),
        (lambda t: round_to_nearest(t / 0, bits=4, group=8), "expected finite"),
        (lambda t: product_quantize(t, per_byte=25), "per_byte=25; expected a whole number, 1 to 24"),
        (lambda t: product_quantize(t[:255], per_byte=2), "255 rows; expected 256 or more"),
        (lambda t: product_quantize(t, per_byte=2, seed=-1), "seed=-1"),
        (lambda t: reduce_blocks(t, None, size_bytes=0), "size_bytes=0"),
        (lambda t: reduce_blocks(t, None, size_bytes=2500), "leaves no room for one coordinate in any of 5 blocks"),
        (lambda t: reduce_blocks(t, None, size_bytes=9999, num_blocks=601), "num_blocks=601"),
        (lambda t: reduce_blocks(t, None, size_bytes=9999, bits=9), "bits=9"),
        (lambda t: reduce_blocks(t, torch.ones(5), size_bytes=9999), r"counts of shape \(5,\) for a table of 600"),
        (lambda t: reduce_blocks(t, None, size_bytes=9999, weights=-torch.ones(N)), "weights are not finite, negative"),
        (lambda t: trim(t, None, num_kept=0), "num_kept=0; expected a whole number, 1 to 600"),
        (lambda t: trim(t, None, num_kept=601), "num_kept=601"),
        (lambda t: trim(t, None, num_kept=5, unknown_id=600), "unknown_id=600"),
        (lambda t: trim(t, torch.zeros(N), num_kept=5), "counts are not finite, negative or all 0"),
    ],
)
def test_bad_knobs_are_refused(table: torch.Tensor, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(table)


def test_without_faiss_the_error_names_the_extra(table: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hf-projclust\[evaluate\]'"):
        product_quantize(table, per_byte=2)
