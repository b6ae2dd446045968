"""The factored table: look-up, head, stand-in weight."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

from hf_projclust import weight_projclust
from hf_projclust.embedding_projclust import factor_in_place
from hf_projclust.head_projclust import ProjClustHead
from hf_projclust.layout_projclust import FactorLayout
from hf_projclust.table_projclust import FactoredTable

DIM = 6
# sizes and ranks: usual, one row, rank 0 (rows of zeros), rank d (rows as they are), empty
LAYOUTS = {
    "one cluster": FactorLayout(DIM, (11,), (2,)),
    "mixed ranks": FactorLayout(DIM, (4, 1, 3, 2, 0, 1), (2, 1, 0, DIM, 3, 5)),
    "no basis at all": FactorLayout(DIM, (5, 6), (DIM, DIM)),
    "zero rows only": FactorLayout(DIM, (11,), (0,)),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def layout(request: pytest.FixtureRequest) -> FactorLayout:
    return request.param


def filled(module: nn.Module, layout: FactorLayout, seed: int = 0) -> FactoredTable:
    """The factored counterpart of a module, with random factors and a random order of rows."""
    torch.manual_seed(seed)
    factor_in_place(module, layout)
    nn.init.normal_(module.coefficients)
    nn.init.normal_(module.bases)
    module.rows.copy_(torch.randperm(layout.num_embeddings))
    return module


def embedding(layout: FactorLayout, **options: int) -> FactoredTable:
    return filled(nn.Embedding(layout.num_embeddings, DIM, **options), layout)


def head(layout: FactorLayout, bias: bool = True) -> FactoredTable:
    return filled(nn.Linear(DIM, layout.num_embeddings, bias=bias), layout)


def factor_gradients(table: FactoredTable) -> list[torch.Tensor]:
    """Gradients of the factors that hold any number."""
    return [factor.grad.clone() for factor in (table.coefficients, table.bases) if factor.numel()]


STAND_IN_CHANGES = {
    "dtype": lambda table: table.half(),
    "frozen": lambda table: table.requires_grad_(False),
    "resized": lambda table: table.resize(14, torch.randn(3, DIM)),
}


@pytest.mark.parametrize("change", STAND_IN_CHANGES.values(), ids=STAND_IN_CHANGES.keys())
def test_a_stand_in_that_is_still_held_is_not_given_for_a_table_that_was_changed(change) -> None:
    table = embedding(LAYOUTS["mixed ranks"])
    held = table.weight
    change(table)
    now = table.weight
    assert now is not held
    assert (now.dtype, now.requires_grad) == (table.coefficients.dtype, table.coefficients.requires_grad)
    assert torch.equal(now + 0, table.dense_weight())
    assert now.shape == table.dense_weight().shape


@pytest.mark.parametrize("of_another_table", [True, False])
def test_parameters_that_get_the_place_of_older_ones_get_a_stand_in_of_their_own(of_another_table: bool) -> None:
    """The stand-ins are found by the identity of parameters, which Python gives again when one is gone."""
    table = embedding(LAYOUTS["mixed ranks"])
    other = filled(nn.Embedding(11, DIM), LAYOUTS["mixed ranks"], seed=1)
    held = (other if of_another_table else table).weight
    if not of_another_table:
        table.resize(14, torch.randn(3, DIM))
    weight_projclust._STAND_INS[id(table.coefficients)] = held
    assert table.weight.shape == table.dense_weight().shape
    assert torch.equal(table.weight + 0, table.dense_weight())


def test_look_up_by_hand() -> None:
    table = nn.Embedding(3, 2)
    factor_in_place(table, FactorLayout(2, (2, 1), (1, 2)))
    table.coefficients.data = torch.tensor([10.0, 20.0, 7.0, 8.0])  # rows 0 and 1 on a line; row 2 as it is
    table.bases.data = torch.tensor([[0.6, 0.8]])
    table.rows = torch.tensor([2, 0, 1], dtype=torch.int32)
    expected = torch.tensor([[7.0, 8.0], [6.0, 8.0], [12.0, 16.0]])
    torch.testing.assert_close(table(torch.tensor([0, 1, 2])), expected)
    torch.testing.assert_close(table.dense_weight(), expected)


def test_look_up_equals_nn_embedding_forward_and_backward(layout: FactorLayout) -> None:
    table = embedding(layout)
    ids = torch.randint(layout.num_embeddings, (3, 7))
    upstream = torch.randn(3, 7, DIM)
    ours = table(ids)
    ours.backward(upstream)
    gradients = factor_gradients(table)
    table.zero_grad()
    theirs = nn.functional.embedding(ids, table.dense_weight())
    theirs.backward(upstream)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients, factor_gradients(table))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_layout_looks_up_what_its_dense_table_holds(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=13).filter(any))
    ranks = data.draw(st.lists(st.integers(0, DIM), min_size=len(sizes), max_size=len(sizes)))
    layout = FactorLayout(DIM, tuple(sizes), tuple(ranks))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=9)), dtype=torch.long)
    table = embedding(layout)
    torch.testing.assert_close(table(ids), table.dense_weight()[ids])


def test_head_equals_nn_linear(layout: FactorLayout) -> None:
    hidden = torch.randn(2, 3, DIM)
    for bias in (True, False):
        table = head(layout, bias)
        expected = nn.functional.linear(hidden, table.dense_weight(), table.bias)
        torch.testing.assert_close(table(hidden), expected)


def test_logits_are_the_same_without_gradients(layout: FactorLayout) -> None:
    for hidden in (torch.randn(2, 3, DIM), torch.randn(DIM), torch.randn(0, DIM), torch.randn(1, DIM)):
        for bias in (True, False):
            table = head(layout, bias)
            expected = nn.functional.linear(hidden, table.dense_weight(), table.bias)
            with torch.no_grad():
                torch.testing.assert_close(table(hidden), expected)
            torch.testing.assert_close(table.requires_grad_(False)(hidden), expected)
            assert table(hidden.clone().requires_grad_()).requires_grad


def test_the_largest_logits_are_those_of_all_logits(layout: FactorLayout) -> None:
    for hidden in (torch.randn(2, 3, DIM), torch.randn(DIM), torch.randn(0, DIM)):
        for bias in (True, False):
            table = head(layout, bias)
            logits = table(hidden)
            for k in (1, 4, 11):
                values, tokens = table.topk(hidden, k)
                torch.testing.assert_close(values, logits.topk(k).values)
                torch.testing.assert_close(logits.gather(-1, tokens), values)
                assert (tokens.sort().values.diff() > 0).all()  # none twice, also where logits are equal


@pytest.mark.parametrize("k", [0, -1, 12])
def test_more_tokens_than_there_are_or_none_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} tokens were asked for; expected 1 to 11, the size of the vocabulary"):
        head(LAYOUTS["mixed ranks"]).topk(torch.randn(2, DIM), k)


def test_the_largest_logits_under_autocast_and_compiled() -> None:
    table, hidden = head(LAYOUTS["mixed ranks"]), torch.randn(3, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, _ = table.topk(hidden, 4)
        assert values.dtype == torch.bfloat16
        torch.testing.assert_close(values, table(hidden).topk(4).values)
    compiled = torch.compile(table.topk, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(hidden, 4), table.topk(hidden, 4))


def test_head_is_no_linear_layer_and_keeps_its_bias() -> None:
    native = nn.Linear(DIM, 11)
    bias = native.bias
    table = filled(native, LAYOUTS["one cluster"])
    assert table is native
    assert isinstance(table, ProjClustHead)
    assert not isinstance(table, nn.Linear)
    assert table.bias is bias


def test_a_native_subclass_keeps_its_own_forward() -> None:
    layout = LAYOUTS["mixed ranks"]
    table = filled(BartScaledWordEmbedding(layout.num_embeddings, DIM, 0, embed_scale=3.0), layout)
    assert isinstance(table, BartScaledWordEmbedding)
    ids = torch.arange(layout.num_embeddings)
    torch.testing.assert_close(table(ids), 3.0 * table.dense_weight())


def test_padding_row_gets_no_gradient() -> None:
    layout = LAYOUTS["mixed ranks"]
    table = embedding(layout, padding_idx=4)
    table(torch.tensor([[4, 4, 4]])).sum().backward()
    assert torch.count_nonzero(table.coefficients.grad) == 0
    assert torch.count_nonzero(table.bases.grad) == 0
    assert torch.equal(table(torch.tensor([4]))[0], table.dense_weight()[4])


@pytest.mark.parametrize("count", [1, 11])
def test_autocast_leaves_look_up_in_full_precision(count: int) -> None:
    table = embedding(LAYOUTS["one cluster"]).requires_grad_(False)
    ids = torch.arange(count)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert table(ids).dtype == nn.Embedding(11, DIM)(ids).dtype == torch.float32


def test_head_under_autocast_has_the_dtype_and_values_of_nn_linear() -> None:
    table = head(LAYOUTS["mixed ranks"])
    hidden = torch.randn(3, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = table(hidden)
        theirs = nn.functional.linear(hidden, table.dense_weight(), table.bias)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_look_up_and_head_run_in_any_precision(dtype: torch.dtype) -> None:
    for table, argument in [
        (embedding(LAYOUTS["mixed ranks"]), torch.arange(11)),
        (head(LAYOUTS["mixed ranks"]), torch.randn(2, DIM, dtype=dtype)),
    ]:
        expected = table(argument if argument.dtype == torch.long else argument.float())
        output = table.to(dtype)(argument)
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, atol=0.1, rtol=0.05)


def test_a_batch_without_some_cluster_still_reaches_every_parameter(layout: FactorLayout) -> None:
    table = embedding(layout)
    table(torch.zeros(1, dtype=torch.long)).sum().backward()
    assert all(gradient.isfinite().all() for gradient in factor_gradients(table))


@pytest.mark.parametrize("bad", [-1, 11, 10**6])
def test_token_ids_out_of_range_raise_as_in_nn_embedding(bad: int) -> None:
    with pytest.raises(IndexError):
        embedding(LAYOUTS["one cluster"])(torch.tensor([0, bad]))


def test_no_tokens_at_all() -> None:
    assert embedding(LAYOUTS["mixed ranks"])(torch.empty(2, 0, dtype=torch.long)).shape == (2, 0, DIM)


def test_weight_answers_about_itself_without_building_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = embedding(LAYOUTS["mixed ranks"]).to(torch.bfloat16)

    def build(_: FactoredTable) -> None:
        raise AssertionError("the dense table was built")

    monkeypatch.setattr(FactoredTable, "dense_weight", build)
    weight = table.weight
    assert isinstance(weight, torch.Tensor)
    assert weight.shape == (11, DIM)
    assert (weight.size(0), weight.dim(), weight.ndim, len(weight), weight.numel()) == (11, 2, 2, 11, 66)
    assert (weight.dtype, weight.device, weight.element_size()) == (torch.bfloat16, torch.device("cpu"), 2)
    assert weight.requires_grad
    assert weight.is_floating_point()
    assert weight.data_ptr() == table.coefficients.data_ptr()


def test_modules_that_share_their_factors_have_one_weight() -> None:
    """Accelerate asks by `is` what must be sharded together."""
    table, other = embedding(LAYOUTS["mixed ranks"]), embedding(LAYOUTS["mixed ranks"])
    tied = head(LAYOUTS["mixed ranks"])
    tied.coefficients, tied.bases = table.coefficients, table.bases
    weight = table.weight
    assert tied.weight is weight
    assert other.weight is not weight
    table.to(torch.bfloat16)
    table.requires_grad_(False)
    assert (table.weight.dtype, table.weight.requires_grad) == (torch.bfloat16, False)  # not one made before


def test_operations_on_weight_see_the_dense_table_differentiably(layout: FactorLayout) -> None:
    table = embedding(layout)
    dense = table.dense_weight()
    x = torch.randn(4, DIM)
    for ours, expected in [
        (nn.functional.linear(x, table.weight), x @ dense.T),
        (x @ table.weight.T, x @ dense.T),
        (table.weight[3], dense[3]),
        (table.weight * 2, dense * 2),
        (table.weight.mean(), dense.mean()),
        (nn.functional.embedding(torch.tensor([1]), table.weight), dense[[1]]),
        (torch.cat([table.weight, x]), torch.cat([dense, x])),
        (table.weight.detach() + 0, dense.detach()),
        (table.weight.data[2:5], dense[2:5].detach()),
        (table.weight.clone(), dense),
        (torch.stack(list(table.weight)), dense),
    ]:
        assert type(ours) is torch.Tensor
        torch.testing.assert_close(ours, expected)
    table.weight.square().sum().backward()
    from_weight = table.coefficients.grad.clone()
    table.zero_grad()
    dense.square().sum().backward()
    torch.testing.assert_close(from_weight, table.coefficients.grad)


def test_weight_serves_callers_that_switch_torch_functions_off() -> None:
    table = embedding(LAYOUTS["mixed ranks"])
    with torch._C.DisableTorchFunctionSubclass():
        doubled = table.weight * 2
    torch.testing.assert_close(doubled, 2 * table.dense_weight())


@pytest.mark.parametrize(
    "change",
    [
        lambda table: setattr(table, "weight", nn.Parameter(torch.zeros(11, DIM))),
        lambda table: setattr(table, "weight", torch.zeros(11, DIM)),
        lambda table: table.weight.zero_(),
        lambda table: table.weight.copy_(torch.zeros(11, DIM)),
        lambda table: table.weight.__setitem__(0, 0.0),
        lambda table: nn.init.normal_(table.weight),
        lambda table: setattr(table.weight, "data", torch.zeros(11, DIM)),
        lambda table: table.weight.add_(1),
        lambda table: table.weight.__iadd__(1),
        lambda table: torch.add(torch.zeros(11, DIM), 1, out=table.weight),
        lambda table: table.weight.data.__setitem__(3, 0.0),
        lambda table: table.weight.data.copy_(torch.zeros(11, DIM)),
        lambda table: table.weight.detach().zero_(),
        lambda table: nn.Embedding.from_pretrained(table.weight.data),
    ],
)
def test_changing_weight_raises(change) -> None:
    table = embedding(LAYOUTS["one cluster"])
    before = table.dense_weight()
    with (
        torch.no_grad(),
        pytest.raises(AttributeError, match=r"can only be read \(.clone\(\) gives .*Give the module's set_rows"),
    ):
        change(table)
    assert torch.equal(table.dense_weight(), before)


def test_what_is_detached_from_weight_has_no_gradient() -> None:
    table = embedding(LAYOUTS["mixed ranks"])
    for detached in (table.weight.data, table.weight.detach()):
        assert detached.shape == table.weight.shape
        assert not detached.requires_grad
        assert not (detached * 2).requires_grad


def test_rows_of_tokens_that_were_added_are_set_and_no_others() -> None:
    table = embedding(LAYOUTS["mixed ranks"])
    size = table.num_embeddings
    table.resize(size + 3, torch.zeros(3, DIM))
    before, vectors = table.dense_weight().detach(), torch.randn(2, DIM)
    table.set_rows(torch.tensor([size + 2, size]), vectors)
    after = table.dense_weight().detach()
    assert torch.equal(after[[size + 2, size]], vectors)
    assert torch.equal(after[:size], before[:size])
    assert torch.equal(after[size + 1], before[size + 1])
    assert table.coefficients.requires_grad
    [constrained, *_] = (table.rows < table.layout.cluster_sizes[0]).nonzero().flatten().tolist()
    with pytest.raises(
        ValueError, match=rf"token {constrained} is in a cluster of rank \d, of {DIM}; expected tokens that"
    ):
        table.set_rows([size, constrained], vectors)
    assert torch.equal(table.dense_weight(), after)


@pytest.mark.parametrize(
    ("token_ids", "shape", "message"),
    [
        ([11, 12], (1, DIM), r"shape \(2,\) and vectors \(1, 6\); expected \(m,\) and \(m, 6\). Give one vector"),
        ([11], (1, DIM - 1), r"vectors \(1, 5\); expected"),
        ([11], (DIM,), r"vectors \(6,\); expected"),
        (11, (DIM,), r"shape \(\) and vectors"),
        ([14], (1, DIM), "no token 14; expected 0 to 13. Call resize_token_embeddings"),
        ([-1], (1, DIM), "no token -1; expected 0 to 13"),
    ],
)
def test_rows_that_do_not_fit_are_refused(token_ids, shape: tuple[int, ...], message: str) -> None:
    table = embedding(LAYOUTS["mixed ranks"])
    table.resize(14, torch.zeros(3, DIM))
    before = table.coefficients.detach().clone()
    with pytest.raises(ValueError, match=message):
        table.set_rows(token_ids, torch.ones(shape))
    assert torch.equal(table.coefficients, before)


def test_transformers_initialisers_pass_over_weight() -> None:
    from transformers import initialization as init

    table = embedding(LAYOUTS["one cluster"])
    before = table.dense_weight()
    init.normal_(table.weight)
    assert torch.equal(table.dense_weight(), before)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles_are_whole(clone) -> None:
    layout = LAYOUTS["mixed ranks"]
    scaled = filled(BartScaledWordEmbedding(layout.num_embeddings, DIM, 0, embed_scale=3.0), layout)
    for table, argument in [
        (embedding(layout), torch.arange(11)),
        (scaled, torch.arange(11)),
        (head(layout), torch.randn(2, DIM)),
    ]:
        copied = clone(table)
        assert type(copied) is type(table)
        assert copied.coefficients is not table.coefficients
        assert torch.equal(copied(argument), table(argument))


def test_the_compiled_look_up_and_head_equal_eager() -> None:
    layout = LAYOUTS["mixed ranks"]
    ids, hidden = torch.arange(11), torch.randn(3, DIM)
    for table, argument in [(embedding(layout), ids), (head(layout), hidden)]:
        compiled = torch.compile(table, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(argument), table(argument))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_traced_or_exported_look_up_holds_for_other_tokens() -> None:
    table = embedding(LAYOUTS["mixed ranks"])
    seen, others = torch.zeros(11, dtype=torch.long), torch.arange(11).flip(0)
    traced = torch.jit.trace(table, seen)
    exported = torch.export.export(table, (seen,)).module()
    for graph in (traced, exported):
        torch.testing.assert_close(graph(others), table(others))


def test_meta_tensors_pass_through() -> None:
    table = embedding(LAYOUTS["mixed ranks"]).to("meta")
    assert table(torch.zeros(2, 3, dtype=torch.long, device="meta")).shape == (2, 3, DIM)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Embedding(11, DIM, max_norm=1.0), "max_norm=1.0.*offers none of these. Leave this model dense"),
        (nn.Embedding(11, DIM, scale_grad_by_freq=True), "scale_grad_by_freq=True .*Leave this model dense"),
        (nn.Embedding(11, DIM, sparse=True), "sparse=True.*offers none of these. Leave this model dense"),
        (nn.Conv1d(11, DIM, 1), "is in a Conv1d; expected an nn.Embedding or nn.Linear. Leave this model dense"),
    ],
)
def test_modules_that_have_no_counterpart_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factor_in_place(module, LAYOUTS["one cluster"])
