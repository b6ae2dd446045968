"""Rows: blocks cover a table once, weights are in what is read, and files read as tensors do."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tables import random_table
from safetensors.torch import save_file

from hf_projclust.solvers.rows import Rows, num_processes, process_index, sum_over_processes
from hf_projclust.tables import TableFile


@settings(max_examples=60, deadline=None, derandomize=True)
@given(num_rows=st.integers(1, 60), block_rows=st.integers(1, 70))
def test_blocks_cover_each_row_once_and_are_no_larger_than_asked(num_rows: int, block_rows: int) -> None:
    rows = Rows(random_table(num_rows, 2), block_rows=block_rows)
    covered = [index for span in rows.spans() for index in range(span.start, span.stop)]
    assert covered == list(range(num_rows))
    assert max(span.stop - span.start for span in rows.spans()) <= block_rows
    assert list(rows.own_spans()) == list(rows.spans())  # one process owns all


def test_blocks_are_about_32_mib_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_projclust.solvers.rows.BLOCK_NUMBERS", 30)
    assert [span.stop - span.start for span in Rows(random_table(13, 5)).spans()] == [5, 5, 3]
    assert len(list(Rows(random_table(4, 100)).spans())) == 4  # a row wider than a block is a block


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_half_precision_is_computed_in_float32_and_norms_in_float64(dtype: torch.dtype, computed: torch.dtype) -> None:
    table = random_table(9, 4).to(dtype)
    rows = Rows(table, block_rows=4)
    assert rows.dtype == rows.read(slice(0, 4)).dtype == rows.take(torch.tensor([1])).dtype == computed
    assert rows.norms.dtype == torch.float64
    torch.testing.assert_close(rows.norms, table.double().norm(dim=1), rtol=1e-12, atol=0)


def test_a_weight_of_four_reads_as_twice_the_row() -> None:
    table = random_table(3, 2)
    plain = Rows(table)
    weighted = plain.weighted(torch.tensor([4.0, 0.0, 0.25], dtype=torch.float64))
    expected = table * torch.tensor([[2.0], [0.0], [0.5]], dtype=torch.float64)
    torch.testing.assert_close(weighted.read(slice(0, 3)), expected)
    torch.testing.assert_close(weighted.norms, expected.norm(dim=1))
    torch.testing.assert_close(weighted.take(torch.tensor([2, 0])), expected[[2, 0]])
    assert torch.equal(plain.read(slice(0, 3)), table)  # weighting made other rows
    torch.testing.assert_close(plain.norms, table.norm(dim=1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(block_rows=st.integers(1, 12), indices=st.lists(st.integers(0, 10), max_size=15))
def test_rows_are_taken_in_any_order_and_any_number_of_times(block_rows: int, indices: list[int]) -> None:
    table = random_table(11, 3)
    taken = Rows(table, block_rows=block_rows).take(torch.tensor(indices, dtype=torch.int64))
    assert torch.equal(taken, table[torch.tensor(indices, dtype=torch.int64)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_file_reads_as_the_tensor_that_it_holds(tmp_path: Path, dtype: torch.dtype) -> None:
    table = random_table(23, 5).to(dtype)
    save_file({"other": torch.zeros(2), "table": table}, tmp_path / "model.safetensors")
    file = Rows(TableFile(tmp_path / "model.safetensors", "table", (23, 5), dtype), block_rows=7)
    tensor = Rows(table, block_rows=7)
    assert (file.num_rows, file.dim, file.dtype) == (23, 5, tensor.dtype)
    assert torch.equal(file.norms, tensor.norms)
    for span in tensor.spans():
        assert torch.equal(file.read(span), tensor.read(span))


def test_reading_changes_no_table() -> None:
    table = random_table(6, 3)
    before = table.clone()
    Rows(table).weighted(torch.full((6,), 9.0, dtype=torch.float64)).read(slice(0, 6)).zero_()
    assert torch.equal(table, before)


def test_without_torch_distributed_there_is_one_process_and_a_sum_is_what_it_was() -> None:
    assert (num_processes(), process_index()) == (1, 0)
    assert sum_over_processes(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
