"""Coordinates in few bits: words, scales and bases that fit the rows, whatever their sizes, weights and clusters."""

import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_projclust import compress, quantizing
from hf_projclust.layout_projclust import Band
from hf_projclust.options import FactoringOptions
from hf_projclust.quantizing import quantize
from hf_projclust.searching import search_of
from hf_projclust.solvers import ProjectiveClustering, Rows

DIM = 8


def axes(rank: int) -> Tensor:
    return torch.eye(DIM)[:rank]


def quantized(
    table: Tensor, sizes: list[int], bands: list[list[Band]], weights: Tensor | None = None, p: float = 2.0
) -> dict[str, Any]:
    """The record of a table whose clusters stand one after another, each with the first axes as its basis."""
    assignment = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    bases = [axes(sum(band.num_coordinates for band in of_cluster)).to(table.dtype) for of_cluster in bands]
    weights = torch.ones(len(table), dtype=torch.float64) if weights is None else weights
    clustering = ProjectiveClustering(assignment, bases, 0.0, [])
    return quantize(Rows(table), weights, clustering, bands, p, seed=0)[2]


def test_a_small_cluster_has_words_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(60_000, DIM, generator=generator)
    table[:, 4:] = 0
    record = quantized(table, [40, 59_960], [[Band(4, 4, 8)], [Band(4, 2, 8)]])
    assert record["energy_kept"][0] > 0.99  # a word for each row
    assert record["energy_kept"][1] > 0.98


@pytest.mark.parametrize("tiny", [1e-9, 1e-20])
@pytest.mark.parametrize("count", [1, 100])
def test_rows_of_nearly_no_length_that_count_most_harm_no_other(tiny: float, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1000, DIM, generator=generator)
    plain = quantized(table, [1000], [[Band(7, 1, 8)]])["relative_squared_error"]
    table[:count] *= tiny
    weights = 1 / table.double().norm(dim=1)
    found = quantized(table, [1000], [[Band(7, 1, 8)]], weights)["relative_squared_error"]
    assert found < 1.5 * plain


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_tables_of_double_precision_with_bases_of_any_bits(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(500, DIM, generator=generator, dtype=torch.float64)
    table[:, 4:] = 0
    assert quantized(table, [500], [[Band(4, 1, bits)]])["relative_squared_error"] < 0.02


def test_fitting_the_bases_again_lowers_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3000, DIM, generator=generator)
    table[:, 4:] *= 0.01
    basis = torch.linalg.qr(torch.eye(DIM) + 0.1 * torch.randn(DIM, DIM, generator=generator)).Q.T[:4]
    clustering = ProjectiveClustering(torch.zeros(3000, dtype=torch.int64), [basis], 0.0, [])

    def error() -> float:
        arguments = (Rows(table), torch.ones(3000, dtype=torch.float64), clustering, [[Band(4, 2, 8)]])
        return quantize(*arguments, p=2.0, seed=0)[2]["relative_squared_error"]

    fitted = error()
    monkeypatch.setattr(quantizing._Coder, "fit_bases", lambda coder: None)
    assert fitted < 0.7 * error()


def test_rows_that_count_more_lose_less() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(4000, DIM, generator=generator)
    table[:2000, :4] = 0  # two groups in one cluster, each along axes of its own
    table[2000:, 4:] = 0
    table = table @ torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
    basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q[:4]
    clustering = ProjectiveClustering(torch.zeros(4000, dtype=torch.int64), [basis], 0.0, [])
    weights = torch.ones(4000, dtype=torch.float64)
    weights[:2000] = 1000
    for heavy in (weights, weights.flip(0)):
        record = quantize(Rows(table), heavy, clustering, [[Band(4, 2, 8)]], 2.0, seed=0)[2]
        assert record["weighted_relative_squared_error"] < 0.7 * record["relative_squared_error"]


def test_an_outlying_number_alone_in_its_byte_comes_back() -> None:
    table = torch.randn(300, DIM, generator=torch.Generator().manual_seed(0))
    table[:, 3:] = 0
    table[7, 0] = 40.0
    record = quantized(table, [300], [[Band(3, 1, 8)]])
    assert record["relative_squared_error"] < 0.01


def test_more_clusters_than_a_byte_can_name_are_not_tried() -> None:
    names = {field.name for field in fields(FactoringOptions)}
    signature = inspect.signature(compress).parameters.items()
    defaults = {name: parameter.default for name, parameter in signature if name in names}
    for size in ({"ratio": 2.0}, {"compression": 0.3, "coefficient_bits": 8}):
        counts = search_of(torch.zeros(17_000, 4), FactoringOptions(**{**defaults, **size})).counts
        assert max(counts) == 256
    assert max(search_of(torch.zeros(17_000, 4), FactoringOptions(**{**defaults, "compression": 0.3})).counts) == 512
