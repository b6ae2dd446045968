"""Reading a table in few bits: one number at a time by hand, then every way to look up, and the head."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

from hf_projclust.embedding_projclust import ProjClustEmbedding, factor_in_place, unpack_in_place
from hf_projclust.head_projclust import ProjClustHead
from hf_projclust.layout_projclust import BASIS_BITS, PER_BYTE, Band, PackedLayout
from hf_projclust.lookup_projclust import FEW_TOKENS, look_up_few, look_up_grouped, look_up_static
from hf_projclust.packed_projclust import PackedTable, checksum

DIM = 7  # odd, so that a vector of pairs has half a byte over
# Bands of clusters: usual, one of each width with a last word that is not full, rank 0, rank d, none, one row.
LAYOUTS = {
    "one cluster": PackedLayout.of_bands(DIM, [13], [[Band(2, 1, 16), Band(3, 2, 4)]]),
    "many": PackedLayout.of_bands(
        DIM,
        [4, 1, 3, 2, 0, 2, 1],
        [
            [Band(1, 1, 16), Band(1, 2, 8), Band(1, 3, 4), Band(1, 4, 8), Band(1, 6, 16), Band(1, 8, 4)],
            [Band(5, 16, 4)],
            [],
            [Band(DIM, 2, 8)],
            [Band(3, 1, 8)],
            [Band(5, 4, 4)],
            [Band(6, 6, 8)],
        ],
    ),
    "no basis at all": PackedLayout.of_bands(DIM, [6, 7], [[Band(DIM, 1, 8)], [Band(3, 1, 8), Band(4, 8, 8)]]),
    "zero rows only": PackedLayout.of_bands(DIM, [13], [[]]),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def filled(module: nn.Module, layout: PackedLayout, seed: int = 0) -> PackedTable:
    """The counterpart in few bits of a module, with random bytes, of which a row in three has the scale 0."""
    torch.manual_seed(seed)
    factor_in_place(module, layout)
    with torch.no_grad():
        for name in ("coefficients", "bases"):
            getattr(module, name).copy_(torch.randint(256, getattr(module, name).shape))
        module.codebooks.copy_(torch.randint(-127, 128, module.codebooks.shape))
        module.scales.copy_(torch.rand(module.scales.shape) + 0.1)
        order = torch.randperm(layout.num_embeddings)
        module.clusters.copy_(
            torch.arange(layout.num_clusters).repeat_interleave(torch.tensor(layout.cluster_sizes))[order]
        )
        for stored, _ in module.blocks():
            if stored.shape[1]:
                stored[:, 0] = torch.randint(96, 160, (len(stored),))
                stored[::3, 0] = 0
    module.order_rows()
    return module.eval()


def embedding(layout: PackedLayout, **options: int) -> PackedTable:
    return filled(nn.Embedding(layout.num_embeddings, DIM, **options), layout)


def head(layout: PackedLayout, bias: bool = True) -> PackedTable:
    return filled(nn.Linear(DIM, layout.num_embeddings, bias=bias), layout)


def rebuilt(table: PackedTable) -> torch.Tensor:
    """The dense table, number by number, from the bytes as the documentation has them."""
    layout, rows = table.layout, []
    books, first = {}, 0
    for of, width in layout.codebooks:
        books[of, width] = table.codebooks[first : first + 256 * width].view(256, width).tolist()
        first += 256 * width
    used = {"coefficients": 0, "bases": 0, "scales": 0}
    for size, bands in zip(layout.cluster_sizes, layout.cluster_bands, strict=True):
        rank = sum(band.num_coordinates for band in bands)
        scales = table.scales[used["scales"] : used["scales"] + rank].tolist()
        used["scales"] += rank
        vectors = torch.eye(DIM)[:rank].tolist()
        if rank < DIM:
            vectors = []
            for band in bands:
                for _ in range(band.num_coordinates):
                    width = (DIM * band.basis_bits + 7) // 8
                    stored = table.bases[used["bases"] : used["bases"] + width].tolist()
                    used["bases"] += width
                    vectors.append(vector_of(stored, band.basis_bits, books))
        cluster = []
        for _ in range(size):
            if not bands:
                cluster.append([0.0] * DIM)
                continue
            width = 1 + sum(-(-band.num_coordinates // band.per_byte) for band in bands)
            scale, *stored = table.coefficients[used["coefficients"] : used["coefficients"] + width].tolist()
            used["coefficients"] += width
            length = 2 ** ((scale - 128) / 16) if scale else 0.0
            numbers = []
            for band in bands:
                in_band = []
                for _ in range(-(-band.num_coordinates // band.per_byte)):
                    byte = stored.pop(0)
                    in_band += [signed(byte)] if band.per_byte == 1 else books["rows", band.per_byte][byte]
                numbers += in_band[: band.num_coordinates]
            coordinates = [number / 24 * scale_of * length for number, scale_of in zip(numbers, scales, strict=True)]
            pairs = list(zip(coordinates, vectors, strict=True))
            cluster.append([sum(coordinate * vector[place] for coordinate, vector in pairs) for place in range(DIM)])
        rows.append(cluster)
    taken = [0] * layout.num_clusters
    dense = []
    for cluster in table.clusters.tolist():  # within a cluster, rows stand in the order of tokens
        dense.append(rows[cluster][taken[cluster]])
        taken[cluster] += 1
    assert (used["coefficients"], used["bases"]) == (table.coefficients.numel(), table.bases.numel())
    return torch.tensor(dense)


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def vector_of(stored: list[int], bits: int, books: dict) -> list[float]:
    """Numbers of a basis vector, from -1 to 1."""
    if bits == 16:
        return [(signed(high) * 256 + low) / 32767 for low, high in zip(stored[::2], stored[1::2], strict=True)]
    if bits == 8:
        return [signed(byte) / 127 for byte in stored]
    return [number / 127 for byte in stored for number in books["bases", 2][byte]][:DIM]


def test_a_row_by_hand() -> None:
    """One row of three coordinates, the first alone and the others a word, in a basis of 8 bits."""
    table = nn.Embedding(1, 4)
    factor_in_place(table, PackedLayout.of_bands(4, [1], [[Band(1, 1, 8), Band(2, 2, 8)]]))
    with torch.no_grad():
        table.coefficients.copy_(torch.tensor([144, 256 - 48, 9]))  # a scale of 2; -48 steps, which are -2; word 9
        table.codebooks.view(256, 2)[9] = torch.tensor([24, 12])
        table.bases.copy_(torch.tensor([127, 0, 0, 0, 0, 127, 0, 0, 0, 0, 256 - 127, 0]))
        table.scales.copy_(torch.tensor([1.0, 10.0, 100.0]))
        table.clusters.zero_()
    # 2 * (-2 * 1, 1 * 10, -0.5 * 100, 0)
    torch.testing.assert_close(table(torch.tensor([0])), torch.tensor([[-4.0, 20.0, -100.0, 0.0]]))


@every_layout
def test_the_dense_table_is_the_one_that_the_bytes_stand_for(layout: PackedLayout) -> None:
    for table in (embedding(layout), head(layout)):
        torch.testing.assert_close(table.dense_weight(), rebuilt(table))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_layout_looks_up_what_its_bytes_stand_for(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))
    bands = []
    for _ in sizes:
        ends = sorted(data.draw(st.sets(st.integers(1, DIM), max_size=3)))
        counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        numbers = st.lists(st.sampled_from(PER_BYTE), min_size=len(counts), max_size=len(counts), unique=True).map(
            sorted
        )
        widths = zip(counts, data.draw(numbers), strict=True)
        bands.append([Band(count, number, data.draw(st.sampled_from(BASIS_BITS))) for count, number in widths])
    table = embedding(PackedLayout.of_bands(DIM, sizes, bands))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=12)), dtype=torch.long)
    expected = rebuilt(table)[ids]
    for way in (look_up_grouped, look_up_static, look_up_few)[: 3 if len(ids) else 2]:
        torch.testing.assert_close(way(table, table.rows[ids]), expected)


@pytest.mark.parametrize("number", [0, 1, 2, FEW_TOKENS, FEW_TOKENS + 1, 100])
@every_layout
def test_batches_of_any_size_and_shape_give_the_rows_of_the_dense_table(layout: PackedLayout, number: int) -> None:
    table = embedding(layout)
    ids = torch.randint(13, (2, number))
    expected = table.dense_weight()[ids]
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            found = table(ids)
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
        assert found.shape == (2, number, DIM)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
@every_layout
def test_a_graph_that_is_compiled_traced_or_exported_gives_the_same(layout: PackedLayout) -> None:
    table = embedding(layout)
    seen, others = torch.zeros(13, dtype=torch.long), torch.arange(13).flip(0)
    compiled = torch.compile(table, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(torch.arange(13).repeat(3)), table.dense_weight().repeat(3, 1))
    for graph in (compiled, torch.jit.trace(table, seen), torch.export.export(table, (seen,)).module()):
        torch.testing.assert_close(graph(others), table.dense_weight()[others])


def test_a_compiled_head_gives_the_same() -> None:
    table = head(LAYOUTS["many"])
    hidden = torch.randn(3, DIM)
    compiled = torch.compile(table, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden), nn.functional.linear(hidden, table.dense_weight(), table.bias))


@every_layout
def test_a_head_equals_nn_linear_with_gradients_for_its_input(layout: PackedLayout) -> None:
    for hidden in (torch.randn(2, 3, DIM), torch.randn(DIM), torch.randn(0, DIM), torch.randn(1, DIM)):
        for bias in (True, False):
            table = head(layout, bias)
            expected = nn.functional.linear(hidden, table.dense_weight(), table.bias)
            torch.testing.assert_close(table(hidden), expected)
            with torch.no_grad():
                torch.testing.assert_close(table(hidden), expected.detach())
            inputs = [hidden.clone().requires_grad_() for _ in range(2)]
            table(inputs[0]).square().sum().backward()
            nn.functional.linear(inputs[1], table.dense_weight(), table.bias).square().sum().backward()
            torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-4, rtol=1e-4)
            if bias:
                assert table.bias.grad is not None


@every_layout
def test_the_largest_logits_are_those_of_all_logits(layout: PackedLayout) -> None:
    for hidden in (torch.randn(2, 3, DIM), torch.randn(DIM), torch.randn(0, DIM)):
        table = head(layout)
        logits = table(hidden)
        for k in (1, 4, 13):
            values, tokens = table.topk(hidden, k)
            torch.testing.assert_close(values, logits.topk(k).values)
            torch.testing.assert_close(logits.gather(-1, tokens), values)
            assert (tokens.sort().values.diff() > 0).all()


def test_a_head_of_many_rows_is_unpacked_in_parts() -> None:
    layout = PackedLayout.of_bands(DIM, [20_000, 3], [[Band(3, 2, 8)], [Band(2, 1, 8)]])
    table, hidden = head(layout), torch.randn(2, DIM)
    with torch.no_grad():
        torch.testing.assert_close(
            table(hidden), nn.functional.linear(hidden, table.dense_weight(), table.bias), atol=1e-4, rtol=1e-4
        )


def test_a_row_of_scale_zero_and_a_cluster_of_rank_zero_are_exactly_zero() -> None:
    table = embedding(LAYOUTS["many"])
    dense = table.dense_weight()
    assert not dense[table.clusters == 2].any()
    first_stored = [end - size for end, size in zip(table.layout.row_ends, table.layout.cluster_sizes, strict=True)]
    for number in (0, 1, 3, 5, 6):
        assert not dense[table.rows == first_stored[number]].any()
    assert dense[table.clusters == 0].abs().sum() > 0


def test_classes_are_those_of_a_table_and_of_the_native_module() -> None:
    assert isinstance(embedding(LAYOUTS["many"]), ProjClustEmbedding)
    assert isinstance(embedding(LAYOUTS["many"]), nn.Embedding)
    made = head(LAYOUTS["many"])
    assert isinstance(made, ProjClustHead)
    assert not isinstance(made, nn.Linear)
    scaled = filled(BartScaledWordEmbedding(13, DIM, 0, embed_scale=3.0), LAYOUTS["many"])
    assert isinstance(scaled, BartScaledWordEmbedding)
    torch.testing.assert_close(scaled(torch.arange(13)), 3.0 * scaled.dense_weight())


def test_padding_writing_to_vectors_and_tokens_out_of_range_are_as_in_nn_embedding() -> None:
    table = embedding(LAYOUTS["no basis at all"], padding_idx=4)
    before = table.dense_weight()
    assert torch.equal(table(torch.tensor([4]))[0], before[4])
    for ids in (torch.tensor([3]), torch.arange(3), torch.arange(13)):
        table(ids).add_(1)
    assert torch.equal(table.dense_weight(), before)
    for bad in (-1, 13, 10**6):
        with pytest.raises(IndexError):
            table(torch.tensor([0, bad]))


# What whole numbers cannot do.


def test_gradients_rows_and_sizes_are_refused_with_the_way_out() -> None:
    for table in (embedding(LAYOUTS["many"]), head(LAYOUTS["many"])):
        before = table.dense_weight()
        for refused in (
            lambda table=table: table.requires_grad_(),
            lambda table=table: table.set_rows(torch.tensor([1]), torch.zeros(1, DIM)),
            lambda table=table: table.resize(20, torch.zeros(7, DIM)),
        ):
            with pytest.raises((RuntimeError, ValueError), match=r"in few bits.*dequantize_factors\(\) first"):
                refused()
        with pytest.raises(AttributeError, match="can only be read"):
            table.weight.zero_()
        assert table.requires_grad_(False) is table
        assert torch.equal(table.dense_weight(), before)
        assert not table.weight.requires_grad


def test_training_mode_says_once_that_the_table_is_frozen(upstream_log) -> None:
    from transformers.utils import logging

    type(logging.get_logger("hf_projclust.packed_projclust")).warning_once.cache_clear()
    for table in (embedding(LAYOUTS["many"]), head(LAYOUTS["many"])):
        assert table.eval() is table
        assert upstream_log.records == [] or table.training is False
        for _ in range(2):
            assert table.train() is table
        assert table.training
    [record] = upstream_log.records
    assert "in few bits, which are frozen" in record.message
    assert "model.dequantize_factors() before training" in record.message


# Dtypes, copies, devices.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_leave_whole_numbers_alone(dtype: torch.dtype) -> None:
    for table, argument in [
        (embedding(LAYOUTS["many"]), torch.arange(13)),
        (head(LAYOUTS["many"]), torch.randn(2, DIM, dtype=dtype)),
    ]:
        expected = table(argument if argument.dtype == torch.long else argument.float())
        before = {
            name: getattr(table, name).clone() for name in ("coefficients", "bases", "codebooks", "clusters", "rows")
        }
        table.to(dtype)
        for name, tensor in before.items():
            assert getattr(table, name).dtype == tensor.dtype
            assert torch.equal(getattr(table, name), tensor)
        assert table.scales.dtype == table.dtype == table.weight.dtype == dtype
        output = table(argument)
        assert output.dtype == dtype
        error = (output.float() - expected).square().sum() / expected.square().sum()
        assert float(error.detach()) < 1e-4
    rows = embedding(LAYOUTS["many"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rows(torch.arange(13)).dtype == torch.float32
        assert head(LAYOUTS["many"])(torch.randn(2, DIM)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_way_to_look_up_gives_the_same_in_half_precision(dtype: torch.dtype) -> None:
    table = embedding(LAYOUTS["many"]).to(dtype)
    dense = table.dense_weight()
    for way in (look_up_few, look_up_grouped, look_up_static):
        torch.testing.assert_close(way(table, table.rows), dense, atol=0.05, rtol=0.02)


@every_layout
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_copies_are_whole_and_apart(layout: PackedLayout, copied) -> None:
    for table in (embedding(layout, padding_idx=1), head(layout)):
        twin = copied(table)
        assert type(twin) is type(table)
        assert twin.layout == table.layout
        assert torch.equal(twin.dense_weight(), table.dense_weight())
        twin.coefficients.zero_()
        assert not twin.dense_weight().any()
        assert layout is LAYOUTS["zero rows only"] or table.dense_weight().any()


@pytest.mark.parametrize("assign", [False, True])
@every_layout
def test_a_state_dict_is_what_is_stored_and_fills_another_table(layout: PackedLayout, assign: bool) -> None:
    table = embedding(layout)
    state = {key: tensor for key, tensor in table.state_dict().items() if key != "weight"}
    assert list(state) == ["scales", "coefficients", "bases", "codebooks", "clusters"]
    assert {key: tensor.nbytes for key, tensor in state.items()} == layout.num_bytes(4)
    other = filled(nn.Embedding(13, DIM), layout, seed=1)
    if layout.num_clusters > 1:
        assert not torch.equal(other.rows, table.rows)
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other.rows, table.rows)
    assert torch.equal(other.dense_weight(), table.dense_weight())


@every_layout
def test_the_meta_device_gives_shapes_and_has_no_damage(layout: PackedLayout) -> None:
    table = embedding(layout).to("meta")
    assert table(torch.zeros(2, 3, dtype=torch.long, device="meta")).shape == (2, 3, DIM)
    assert table.damage() is None
    table.order_rows()
    assert table.rows.is_meta
    logits = head(layout).to("meta")(torch.zeros(2, DIM, device="meta"))
    assert logits.shape == (2, 13)


@every_layout
def test_random_bytes_are_about_as_large_as_asked_and_whole(layout: PackedLayout) -> None:
    module = nn.Embedding(13, DIM)
    factor_in_place(module, layout)
    module.init_factors(0.02)
    module.order_rows()
    assert module.damage() is None
    dense = module.dense_weight()
    assert dense.isfinite().all()
    assert sorted(module.rows.tolist()) == list(range(13))


def test_damage_is_named() -> None:
    layout = LAYOUTS["many"]
    good = embedding(layout)
    checksums = {name: checksum(getattr(good, name)) for name in ("coefficients", "bases", "codebooks", "clusters")}
    good.layout = PackedLayout.of_bands(DIM, layout.cluster_sizes, layout.cluster_bands, checksums)
    assert good.damage() is None
    for name in checksums:
        table = copy.deepcopy(good)
        getattr(table, name).view(torch.uint8)[-1] ^= 1
        assert table.damage().startswith(f"{name} has the CRC-32 ")
    for value in (-1.0, float("nan"), float("inf")):
        table = copy.deepcopy(good)
        table.scales[2] = value
        assert table.damage().startswith("scales has numbers that are negative, infinite or NaN")
    table = copy.deepcopy(good)
    table.layout = layout  # without checksums
    table.clusters[0] = (table.clusters[0] + 1) % 7
    assert table.damage().startswith("clusters has [")


def test_a_float_table_takes_its_place_with_equal_rows() -> None:
    for layout in LAYOUTS.values():
        for table, argument in ((embedding(layout), torch.arange(13)), (head(layout), torch.randn(2, DIM))):
            expected = table(argument)
            _, tensors = table.float_factors()
            factors = {name: nn.Parameter(tensors[name]) for name in ("coefficients", "bases")}
            unpack_in_place(table, factors)
            assert not isinstance(table, PackedTable)
            torch.testing.assert_close(table(argument), expected)
            assert set(table.state_dict()) - {"weight", "bias"} == {"coefficients", "bases", "rows"}


class MostNumbers(TorchDispatchMode):
    """Records the most numbers that a floating tensor had."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Do as asked, and look at the result."""
        result = func(*args, **(kwargs or {}))
        found = [leaf.numel() for leaf in tree_leaves(result) if torch.is_tensor(leaf) and leaf.is_floating_point()]
        self.numbers = max([self.numbers, *found])
        return result


def test_neither_look_up_nor_head_nor_largest_logits_make_the_table() -> None:
    size, dim = 40_000, 64
    layout = PackedLayout.of_bands(dim, [size // 2] * 2, [[Band(8, 1, 8), Band(24, 4, 4)]] * 2)
    table, logits = nn.Embedding(size, dim), nn.Linear(dim, size, bias=False)
    for module in (table, logits):
        factor_in_place(module, layout)
        module.init_factors(0.02)
        module.order_rows()
    with torch.no_grad(), MostNumbers() as most:
        for ids in (torch.tensor([7]), torch.arange(5), torch.arange(300).repeat(2) * 50):
            table(ids)
            look_up_static(table, table.rows[ids])
        logits(torch.randn(4, dim))
        logits.topk(torch.randn(4, dim), 3)
    assert most.numbers < size * dim / 4
    with MostNumbers() as most:
        table.weight + 0
    assert most.numbers >= size * dim
