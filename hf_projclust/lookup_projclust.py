"""Ways to look up rows of a factored table, all with one result, and which of them is taken when.

    few       one product a token, in plain Python: some tokens on the CPU without gradients or autocast, as in decoding
    grouped   one product a cluster, each token once: any other tokens on the CPU
    static    one product with all bases: shapes do not depend on the tokens and the host waits for nothing, for graphs
              (compiled, traced, exported, captured) and for other devices

This file knows of a table only what ``FactoredTable`` gives to its subclasses. It travels with a checkpoint: it imports
torch, transformers and its siblings only.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

from .layout_projclust import FactorLayout
from .places_projclust import clusters_at, ends_within, is_traced, of_clusters
from .table_projclust import FactoredTable

FEW_TOKENS = 8  # beyond it, a product for each token takes longer than finding the tokens of each cluster


def look_up(table: FactoredTable, token_ids: Tensor) -> Tensor:
    """Vectors of tokens, by the fastest way.

    Args:
        table: A factored table.
        token_ids: Tokens, shape (m,).

    Returns:
        Their vectors, shape (m, d), which share no memory with the table.
    """
    is_graph = is_traced(token_ids)
    if (
        is_graph
        and torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and token_ids.is_cpu
        and type(table).unpack_rows is FactoredTable.unpack_rows  # the operator unpacks nothing
        and not table.needs_gradient()
    ):
        layout = table.layout
        factors = (table.rows, table.coefficients, table.bases)
        return _as_operator(token_ids, *factors, layout.cluster_sizes, layout.cluster_ranks)
    stored_rows = table.rows.index_select(0, token_ids)  # (m,)
    # The number of tokens in a cluster is data: a graph must not hold it, nor the host wait for another device's.
    is_static = is_graph or not token_ids.is_cpu
    is_plain = not is_static and not torch.is_autocast_enabled("cpu") and not table.needs_gradient()
    if is_plain and 0 < token_ids.numel() <= FEW_TOKENS:
        return look_up_few(table, stored_rows)
    # nn.Embedding gives vectors of full precision under autocast; a matrix product would not.
    with maybe_autocast(token_ids.device.type, enabled=False):
        return (look_up_static if is_static else look_up_grouped)(table, stored_rows)


def look_up_few(table: FactoredTable, stored_rows: Tensor) -> Tensor:
    """One product a token: vectors (m, d) of stored rows (m,), of which there is at least one."""
    row_ends = table.layout.row_ends
    vectors = [table.vector(bisect_right(row_ends, row), row) for row in stored_rows.tolist()]  # (1, d) each
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def look_up_grouped(table: FactoredTable, stored_rows: Tensor) -> Tensor:
    """One product a cluster, with its own tokens and each of them once: vectors (m, d) of stored rows (m,)."""
    row_ends, sizes = table.layout.row_ends, table.layout.cluster_sizes
    distinct, places = stored_rows.unique(return_inverse=True)  # in order, so the rows of a cluster are side by side
    # With gradients every cluster takes part, tokens or not, so that no factor is without one.
    blocks = table.blocks() if table.needs_gradient() or not len(distinct) else None
    vectors, first = [], 0
    for number, last in enumerate(ends_within(distinct, row_ends)):
        if last > first or blocks is not None:
            stored, stored_basis = table.block(number) if blocks is None else blocks[number]
            local_rows = distinct[first:last] - (row_ends[number] - sizes[number])
            vectors.append(table.reconstruct(number, stored.index_select(0, local_rows), stored_basis))  # (m_i, d)
        first = last
    return torch.cat(vectors).index_select(0, places)  # (m, d)


def look_up_static(table: FactoredTable, stored_rows: Tensor) -> Tensor:
    """One product with all bases: vectors (m, d) of stored rows (m,)."""
    layout = table.layout
    clusters = clusters_at(stored_rows, layout.row_ends)  # (m,)
    rows = table.padded_rows(stored_rows, clusters)  # (m, j_max)
    own = [
        rows[:, :rank].masked_fill((clusters != number).unsqueeze(1), 0)  # (m, j_i)
        for number, rank in enumerate(layout.basis_ranks)
    ]
    vectors = torch.cat(own, dim=1) @ table.all_bases()  # (m, J) @ (J, d)
    if layout.dim not in layout.cluster_ranks:
        return vectors
    is_whole = of_clusters(layout.cluster_ranks, clusters) == layout.dim
    return torch.where(is_whole.unsqueeze(1), rows, vectors)


# A compiler takes it as it is, so that compiled code looks up as eager code does. The name is that of this module, of
# which there is another for each checkpoint that brings its code.
@torch.library.custom_op(re.sub(r"\W", "_", __name__) + "::look_up", mutates_args=())
def _as_operator(
    token_ids: Tensor, rows: Tensor, coefficients: Tensor, bases: Tensor, sizes: Sequence[int], ranks: Sequence[int]
) -> Tensor:
    table = FactoredTable()
    table.layout = FactorLayout(bases.shape[1], tuple(sizes), tuple(ranks))
    table.rows = rows
    table.coefficients, table.bases = (nn.Parameter(factor, requires_grad=False) for factor in (coefficients, bases))
    return look_up(table, token_ids)


@_as_operator.register_fake
def _(
    token_ids: Tensor, rows: Tensor, coefficients: Tensor, bases: Tensor, sizes: Sequence[int], ranks: Sequence[int]
) -> Tensor:
    return bases.new_empty(token_ids.shape[0], bases.shape[1])
