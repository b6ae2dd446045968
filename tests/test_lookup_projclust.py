"""The ways to look up in a factored table: one result, what each may do, and what each asks of the table."""

import pytest
import torch
from test_embedding_projclust import DIM, LAYOUTS, embedding, factor_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_projclust import lookup_projclust, places_projclust
from hf_projclust.embedding_projclust import ProjClustEmbedding, factor_in_place
from hf_projclust.head_projclust import ProjClustHead
from hf_projclust.layout_projclust import FactorLayout
from hf_projclust.lookup_projclust import FEW_TOKENS, look_up, look_up_few, look_up_grouped, look_up_static
from hf_projclust.table_projclust import FactoredTable

TOKENS = {
    "one": [3],
    "repeated": [10, 0, 10, 10, 4, 0],
    "all, some twice": [*range(11), 7, 2],
    "of one cluster or few": [5, 5],
}
WAYS = {"few": look_up_few, "grouped": look_up_grouped, "static": look_up_static}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS.keys())
@every_way
@every_layout
def test_every_way_gives_the_rows_of_the_dense_table(layout: FactorLayout, way, tokens: list[int]) -> None:
    table, ids = embedding(layout), torch.tensor(tokens)
    with torch.no_grad():
        torch.testing.assert_close(way(table, table.rows[ids]), table.dense_weight()[ids])


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS.keys())
@pytest.mark.parametrize("way", [look_up_grouped, look_up_static])
@every_layout
def test_gradients_are_those_of_the_dense_table_and_add_up_over_repeated_tokens(
    layout: FactorLayout, way, tokens: list[int]
) -> None:
    table, ids = embedding(layout), torch.tensor(tokens)
    upstream = torch.randn(len(ids), DIM)
    way(table, table.rows[ids]).backward(upstream)
    found = factor_gradients(table)
    table.zero_grad()
    nn.functional.embedding(ids, table.dense_weight()).backward(upstream)
    torch.testing.assert_close(found, factor_gradients(table))


@pytest.mark.parametrize("way", [look_up_grouped, look_up_static, lambda table, rows: look_up(table, rows.long())])
@every_layout
def test_no_tokens_give_no_vectors_and_gradients_of_zero(layout: FactorLayout, way) -> None:
    table = embedding(layout)
    nothing = torch.empty(0, dtype=torch.int32)
    with torch.no_grad():
        assert way(table, nothing).shape == (0, DIM)
    way(table, nothing).sum().backward()
    assert not any(gradient.any() for gradient in factor_gradients(table))


@pytest.mark.parametrize("number", [1, 2, FEW_TOKENS, FEW_TOKENS + 1, 100])
def test_batches_of_any_size_are_looked_up_with_gradients_and_without(number: int) -> None:
    table = embedding(LAYOUTS["mixed ranks"])
    ids = torch.randint(11, (number,))
    expected = table.dense_weight()[ids]
    torch.testing.assert_close(table(ids), expected)
    with torch.no_grad():
        torch.testing.assert_close(table(ids), expected.detach())
    table.requires_grad_(False)
    torch.testing.assert_close(table(ids), expected.detach())


@every_layout
def test_writing_to_what_was_looked_up_leaves_the_table_as_it_is(layout: FactorLayout) -> None:
    table = embedding(layout)
    before = table.dense_weight().detach()
    with torch.no_grad():
        for ids in (*torch.arange(11).split(1), torch.arange(3), torch.arange(11)):
            for vectors in (table(ids), look_up_static(table, table.rows[ids])):
                vectors.add_(1)
    assert torch.equal(table.dense_weight(), before)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device: to read values, find sizes, or send numbers there."""

    waits = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "lift_fresh", "equal.default")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Refuse by name, or do as asked."""
        if any(name in str(func) for name in self.waits):
            raise AssertionError(f"{func} waits")
        return func(*args, **(kwargs or {}))


@every_layout
def test_the_static_way_waits_for_nothing_forward_and_backward(layout: FactorLayout) -> None:
    table = embedding(layout)
    rows = torch.randint(11, (9,), dtype=torch.int32)
    look_up_static(table, rows)  # makes the constants, as the warm-up before a capture does
    with NoWaiting():
        look_up_static(table, rows).sum().backward()
        with pytest.raises(AssertionError, match="waits"):
            look_up_grouped(table, rows)


def test_the_head_waits_for_nothing() -> None:
    head = nn.Linear(DIM, 11)
    factor_in_place(head, LAYOUTS["mixed ranks"])
    with NoWaiting():
        head(torch.randn(2, DIM)).sum().backward()
        with torch.no_grad():
            head(torch.randn(2, DIM))
            head.topk(torch.randn(2, DIM), 3)


def test_constants_that_inference_made_serve_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_projclust, "_ON_DEVICE", {})
    table = embedding(LAYOUTS["mixed ranks"])
    with torch.inference_mode():
        look_up_static(table, table.rows)
    assert places_projclust._ON_DEVICE
    look_up_static(table, table.rows).sum().backward()
    assert table.coefficients.grad.any()


def test_a_resized_table_is_looked_up_by_its_new_layout() -> None:
    table = embedding(LAYOUTS["mixed ranks"])
    look_up_static(table, table.rows)
    table.resize(14, torch.randn(3, DIM))
    for way in (look_up_grouped, look_up_static):
        torch.testing.assert_close(way(table, table.rows), table.dense_weight())


@every_layout
def test_one_block_is_that_of_all_blocks(layout: FactorLayout) -> None:
    table = embedding(layout)
    for number, (stored, stored_basis) in enumerate(table.blocks()):
        one, basis = table.block(number)
        assert torch.equal(one, stored)
        assert (basis is None) == (stored_basis is None) == (layout.cluster_ranks[number] == DIM)
        assert basis is None or torch.equal(basis, stored_basis)


class _Halved(FactoredTable):
    """A table of another kind: what is stored is half of what it stands for."""

    def unpack_rows(self, number, stored):
        return 2 * super().unpack_rows(number, stored)

    def unpack_basis(self, number, stored_basis):
        return 2 * super().unpack_basis(number, stored_basis)

    def vector(self, number, row):
        return (2 if self.layout.cluster_ranks[number] == DIM else 4) * super().vector(number, row)

    def all_bases(self):
        return 2 * super().all_bases()

    def padded_rows(self, stored_rows, clusters):
        return 2 * super().padded_rows(stored_rows, clusters)

    def multiply_rows(self, number, stored, coordinates, out=None):
        return torch.mul(2, super().multiply_rows(number, stored, coordinates), out=out)


class _HalvedEmbedding(_Halved, ProjClustEmbedding):
    pass


class _HalvedHead(_Halved, ProjClustHead):
    pass


def test_a_table_of_another_kind_replaces_the_access_to_factors_and_nothing_else() -> None:
    whole = embedding(LAYOUTS["mixed ranks"])
    head = nn.Linear(DIM, 11)
    factor_in_place(head, whole.layout)
    halved = embedding(LAYOUTS["mixed ranks"])
    halved.__class__, head.__class__ = _HalvedEmbedding, _HalvedHead
    with torch.no_grad():
        for table in (halved, head):
            table.coefficients.copy_(whole.coefficients / 2)
            table.bases.copy_(whole.bases / 2)
            table.rows.copy_(whole.rows)
            torch.testing.assert_close(table.dense_weight(), whole.dense_weight())
        for way in WAYS.values():
            torch.testing.assert_close(way(halved, whole.rows), whole.dense_weight())
        compiled = torch.compile(halved, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(torch.arange(11)), whole.dense_weight())
    hidden = torch.randn(3, DIM)
    expected = nn.functional.linear(hidden, whole.dense_weight(), head.bias)
    torch.testing.assert_close(head(hidden), expected)
    with torch.no_grad():
        torch.testing.assert_close(head(hidden), expected)
        torch.testing.assert_close(head.topk(hidden, 11)[0], expected.topk(11).values)


@every_layout
def test_the_operator_of_compiled_graphs_keeps_its_promises(layout: FactorLayout) -> None:
    table = embedding(layout).requires_grad_(False)
    for ids in (torch.tensor([3]), torch.arange(11).repeat(2)):
        arguments = (ids, table.rows, table.coefficients, table.bases, layout.cluster_sizes, layout.cluster_ranks)
        torch.library.opcheck(lookup_projclust._as_operator, arguments)
        torch.testing.assert_close(lookup_projclust._as_operator(*arguments), table.dense_weight()[ids])


def test_a_graph_that_runs_elsewhere_has_no_operator_of_ours() -> None:
    table = embedding(LAYOUTS["mixed ranks"]).requires_grad_(False)
    exported = torch.export.export(table, (torch.arange(11),))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert targets
    assert all(target.startswith(("aten.", "<built-in")) for target in targets)


@every_way
@pytest.mark.parametrize("name", ["coefficients", "bases"])
def test_factors_that_something_else_keeps_are_looked_up_through_it(name: str, way) -> None:
    class Doubled(nn.Module):
        def forward(self, factor: torch.Tensor) -> torch.Tensor:
            return 2 * factor

    table, ids = embedding(LAYOUTS["mixed ranks"]), torch.arange(11)
    nn.utils.parametrize.register_parametrization(table, name, Doubled())
    with torch.no_grad():
        torch.testing.assert_close(way(table, table.rows[ids]), table.dense_weight()[ids])
