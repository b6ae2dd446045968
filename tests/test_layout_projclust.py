"""The layout of a table in few bits: what it counts, what it is as JSON, and what is refused."""

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_projclust import FactorLayout, ProjClustCheckpointError
from hf_projclust.embedding_projclust import factor_in_place
from hf_projclust.layout_projclust import (
    BASIS_BITS,
    MOST_PACKED_CLUSTERS,
    PACKED_NAMES,
    PER_BYTE,
    Band,
    PackedLayout,
)

CHECKSUMS = {name: number for number, name in enumerate(PACKED_NAMES)}


def usual() -> PackedLayout:
    """Two bands, none, and rows of full width."""
    bands = [[Band(3, 1, 16), Band(5, 3, 4)], [], [Band(10, 2, 8)]]
    return PackedLayout.of_bands(10, [7, 4, 2], bands, CHECKSUMS, 1.5)


@st.composite
def layouts(draw: st.DrawFn) -> PackedLayout:
    """Any layout of a narrow table."""
    dim = draw(st.integers(1, 33))
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    bands = []
    for _ in sizes:
        ends = sorted(draw(st.sets(st.integers(1, dim), max_size=4)))
        counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        numbers = st.lists(st.sampled_from(PER_BYTE), min_size=len(counts), max_size=len(counts), unique=True).map(
            sorted
        )
        widths = zip(counts, draw(numbers), strict=True)
        bands.append([Band(count, number, draw(st.sampled_from(BASIS_BITS))) for count, number in widths])
    return PackedLayout.of_bands(dim, sizes, bands, CHECKSUMS, 1.5)


def test_counts_by_hand() -> None:
    layout = usual()
    assert (layout.num_embeddings, layout.num_clusters) == (13, 3)
    assert layout.cluster_ranks == (8, 0, 10)
    assert layout.row_bytes == (1 + 3 + 2, 0, 1 + 5)  # a scale; three numbers; two words of three, of which one is idle
    assert layout.basis_bytes == (3 * 20 + 5 * 5, 0, 0)  # rows of full width have no basis
    assert layout.coefficient_byte_ends == (42, 42, 54)
    assert layout.basis_byte_ends == (85, 85, 85)
    assert layout.codebooks == [("rows", 2), ("rows", 3), ("bases", 2)]
    assert layout.num_bytes(4) == {"coefficients": 54, "bases": 85, "codebooks": 256 * 7, "clusters": 13, "scales": 72}
    assert layout.num_bytes(2)["scales"] == 36
    assert layout.num_parameters == 7 * 8 + 2 * 10 + 8 * 10


def test_a_codebook_is_for_bands_that_use_it() -> None:
    def codebooks(*bands: Band) -> list[tuple[str, int]]:
        return PackedLayout.of_bands(10, [3], [bands]).codebooks

    assert codebooks(Band(4, 1, 16)) == codebooks(Band(4, 1, 8)) == codebooks() == []
    assert codebooks(Band(4, 1, 4)) == [("bases", 2)]
    assert codebooks(Band(10, 1, 4)) == []  # no basis, no words for it
    assert codebooks(Band(2, 2, 8), Band(2, 16, 8)) == [("rows", 2), ("rows", 16)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layout=layouts(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_bytes_are_those_of_real_tensors_and_json_gives_the_layout_again(
    layout: PackedLayout, dtype: torch.dtype
) -> None:
    again = FactorLayout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert type(again) is PackedLayout
    assert again == layout
    assert again.checksums == CHECKSUMS
    assert again.to_dict() == layout.to_dict()
    if layout.num_embeddings:
        module = nn.Embedding(layout.num_embeddings, layout.dim, dtype=dtype)
        factor_in_place(module, layout)
        found = {name: getattr(module, name).nbytes for name in (*PACKED_NAMES, "scales")}
        assert found == layout.num_bytes(dtype.itemsize)
        shapes = {(stored.shape, None if basis is None else len(basis)) for stored, basis in module.blocks()}
        expected = zip(layout.cluster_sizes, layout.row_bytes, layout.basis_bytes, layout.cluster_ranks, strict=True)
        assert shapes == {
            ((size, width), None if rank == layout.dim else basis) for size, width, basis, rank in expected
        }


def test_a_layout_of_floating_numbers_is_read_as_one() -> None:
    layout = FactorLayout(10, (7, 2), (3, 10))
    again = FactorLayout.from_dict(layout.to_dict())
    assert type(again) is FactorLayout
    assert again == layout
    assert usual() != FactorLayout(10, (7, 4, 2), (8, 0, 10))


NO_WHOLE_NUMBERS = [True, 1.0, "1", None, [1], float("nan")]


def changed(change: Any) -> dict[str, Any]:
    fields = copy.deepcopy(usual().to_dict())
    change(fields)
    return fields


def first_band(fields: dict[str, Any]) -> dict[str, Any]:
    return fields["cluster_bands"][0][0]


def refused(change: Any, message: str) -> None:
    with pytest.raises(ProjClustCheckpointError, match=message) as error:
        FactorLayout.from_dict(changed(change))
    assert "fetch the checkpoint again" in str(error.value)


@pytest.mark.parametrize("value", NO_WHOLE_NUMBERS)
def test_fields_of_another_type_are_refused_by_name(value: Any) -> None:
    refused(lambda f: f.update(dim=value), "dim")
    refused(lambda f: f["cluster_sizes"].__setitem__(1, value), "cluster_sizes")
    for name in ("num_coordinates", "per_byte", "basis_bits"):
        refused(lambda f, name=name: first_band(f).update({name: value}), name)
    for name in PACKED_NAMES:
        refused(lambda f, name=name: f["checksums"].update({name: value}), "checksums")


@pytest.mark.parametrize("value", [None, 3, "text", {}, {"a": 1}, True])
def test_lists_and_dictionaries_of_another_type_are_refused_by_name(value: Any) -> None:
    refused(lambda f: f.update(cluster_sizes=value), "is described by .*'cluster_sizes'")
    refused(lambda f: f.update(cluster_bands=value), "is described by .*'cluster_bands'")
    refused(lambda f: f["cluster_bands"].__setitem__(1, value), "is described by .*'cluster_bands'")
    refused(lambda f: f["cluster_bands"][0].__setitem__(0, value), "is described by .*'cluster_bands'")
    refused(lambda f: f.update(checksums=value), "is described by .*'checksums'")


@pytest.mark.parametrize("name", ["dim", "cluster_sizes", "checksums"])
def test_a_field_that_is_missing_is_told(name: str) -> None:
    refused(lambda f: f.pop(name), f"is described by .*expected .*{name}")


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.pop("cluster_bands"),
        lambda f: f.update(more=1),
        lambda f: f.update(cluster_ranks=[8, 0, 10]),
        lambda f: first_band(f).pop("per_byte"),
        lambda f: first_band(f).update(more=1),
        lambda f: f["checksums"].pop("bases"),
        lambda f: f["checksums"].update(scales=1),
    ],
)
def test_fields_too_many_or_too_few_are_refused(change: Any) -> None:
    refused(change, "is described by .*; expected")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(dim=0), "dim=0"),
        (lambda f: f.update(dim=-10), "dim=-10"),
        (lambda f: f.update(dim=9), "ranks from 0 to dim=9"),  # less than the bands have
        (lambda f: f["cluster_sizes"].__setitem__(0, -7), r"cluster_sizes=\(-7, 4, 2\).*expected sizes >= 0"),
        (lambda f: f.update(cluster_sizes=[]), "0 cluster_sizes and 3 cluster_ranks"),
        (lambda f: f["cluster_sizes"].append(1), "4 cluster_sizes and 3 cluster_ranks"),
        (lambda f: f["cluster_bands"].append([]), "3 cluster_sizes and 4 cluster_ranks"),
        (lambda f: f.update(cluster_sizes=[], cluster_bands=[]), "0 cluster_sizes and 0 cluster_ranks"),
        (lambda f: first_band(f).update(num_coordinates=0), "num_coordinates=0.*expected whole numbers >= 1"),
        (lambda f: first_band(f).update(num_coordinates=-3), "num_coordinates=-3|ranks from 0"),
        (lambda f: first_band(f).update(num_coordinates=10**30), "ranks from 0 to dim=10"),
        (lambda f: first_band(f).update(per_byte=0), "per_byte=0; expected one of"),
        (lambda f: first_band(f).update(per_byte=-1), "per_byte=-1; expected one of"),
        (lambda f: first_band(f).update(per_byte=7), "per_byte=7; expected one of"),
        (lambda f: first_band(f).update(per_byte=10**30), "per_byte=1000.*; expected one of"),
        (lambda f: first_band(f).update(basis_bits=5), "basis_bits=5; expected one of"),
        (lambda f: first_band(f).update(basis_bits=0), "basis_bits=0; expected one of"),
        (lambda f: first_band(f).update(basis_bits=-8), "basis_bits=-8; expected one of"),
        (lambda f: first_band(f).update(basis_bits=32), "basis_bits=32; expected one of"),
        (
            lambda f: f.update(cluster_sizes=[1] * 257, cluster_bands=[[]] * 257),
            "has 257 clusters; expected at most 256",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(change: Any, message: str) -> None:
    refused(change, message)


def test_as_many_clusters_as_a_byte_can_name_are_accepted() -> None:
    layout = PackedLayout.of_bands(4, [1] * MOST_PACKED_CLUSTERS, [[Band(2, 1, 8)]] * MOST_PACKED_CLUSTERS)
    assert FactorLayout.from_dict({**layout.to_dict(), "checksums": CHECKSUMS, "scale_mean": 1.5}).num_clusters == 256


def test_huge_sizes_are_counted_and_reserve_nothing() -> None:
    layout = PackedLayout.of_bands(10, [10**18, 3], [[Band(3, 1, 8)], []])
    assert layout.num_bytes(4)["coefficients"] == 4 * 10**18
    assert layout.num_embeddings == 10**18 + 3


def test_no_field_of_a_layout_can_be_changed() -> None:
    layout = usual()
    for name in ("dim", "cluster_sizes", "cluster_bands", "checksums"):
        with pytest.raises(AttributeError):
            setattr(layout, name, None)
    with pytest.raises(AttributeError):
        layout.cluster_bands[0][0].per_byte = 2
