"""A vocabulary table drawn at random that factors of several sizes hold exactly: what layers are measured on.

Each row lies in one of eight subspaces, so that the dense table and its factors are one table, and layers of both must
compute the same. The rows of a cluster are spread over all tokens at random. Nothing here says how well a real table
can be factored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...embedding_projclust import factor_in_place
from ...layout_projclust import Band, FactorLayout
from ...options import COEFFICIENT_BITS
from ...quantizing import quantize
from ...solvers import ProjectiveClustering, Rows
from ...solvers.ranks import number_budget

LEAST_FACTORS = 0.8  # the share that the smallest factors save: the table is drawn from these
# Tokens and ranks of the clusters of all-MiniLM-L6-v2's table at 60 %, as the preset adaptive finds them.
_TOKENS = (4_613, 2_543, 2_700, 1_970, 1_441, 5_772, 6_051, 5_432)
_RANKS = (89, 3, 384, 53, 167, 106, 221, 119)


@dataclass(frozen=True)
class DrawnTable:
    """A table, and the factors that it was drawn from.

    Attributes:
        dense: Rows, shape (n, d).
        layout: Shapes of the factors.
        coefficients: Coordinates (n_i, j_i) of the rows of each cluster.
        bases: Basis (j_i, d) of each cluster.
        stored_rows: The stored row of each token, shape (n,), int32.
    """

    dense: Tensor
    layout: FactorLayout
    coefficients: tuple[Tensor, ...]
    bases: tuple[Tensor, ...]
    stored_rows: Tensor

    @cached_property
    def hidden_states(self) -> Tensor:
        """Hidden states to compute logits from, shape (16, d)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(16, self.layout.dim, generator=generator).to(self.dense)

    @cached_property
    def token_ids(self) -> Tensor:
        """Tokens to look up that are spread over the table, its first and last among them, at most 512."""
        num_rows = len(self.dense)
        return torch.linspace(0, num_rows - 1, min(num_rows, 512), dtype=torch.float64).long().to(self.dense.device)

    def embedding(self) -> nn.Embedding:
        """A dense embedding, trainable, that shares the table's memory."""
        return nn.Embedding.from_pretrained(self.dense, freeze=False)

    def head(self) -> nn.Linear:
        """A dense head without a bias, that shares the table's memory."""
        num_rows, dim = self.dense.shape
        linear = nn.Linear(dim, num_rows, bias=False, device="meta")
        linear.weight = nn.Parameter(self.dense)
        return linear

    @torch.no_grad()
    def factor(self, module: nn.Module, compression: float) -> nn.Module:
        """Turn a dense layer of this table into a factored one.

        Ranks above those that the table was drawn with are filled up: zero coordinates on random basis vectors, which
        compute as others do.

        Args:
            module: What ``embedding`` or ``head`` gave.
            compression: Share of the table that the factors save, no more than ``LEAST_FACTORS``.

        Returns:
            The module.
        """
        num_rows, dim = self.dense.shape
        layout = layout_of(num_rows, dim, compression)
        blocks, bases = [], []
        for coefficients, basis, rank in zip(self.coefficients, self.bases, layout.cluster_ranks, strict=True):
            if rank == dim:
                blocks.append(coefficients @ basis)
                continue
            added = rank - len(basis)
            blocks.append(torch.cat([coefficients, coefficients.new_zeros(len(coefficients), added)], dim=1))
            generator = torch.Generator().manual_seed(added)
            bases.append(torch.cat([basis, torch.randn(added, dim, generator=generator).to(basis) / dim**0.5]))
        factor_in_place(module, layout)
        factored = dict(module.named_parameters())
        factored["coefficients"].copy_(torch.cat([block.flatten() for block in blocks]))
        factored["bases"].copy_(torch.cat(bases))
        module.get_buffer("rows").copy_(self.stored_rows)
        return module

    @torch.no_grad()
    def pack(self, module: nn.Module, compression: float, bits: Literal[8, 4, 3, 2]) -> nn.Module:
        """Turn a dense layer of this table into one whose factors are in few bits, bases in 8.

        Args:
            module: What ``embedding`` or ``head`` gave.
            compression: As in ``factor``.
            bits: Bits of a coordinate.

        Returns:
            The module.
        """
        factored: Any = self.factor(self.embedding(), compression)
        rows = Rows(self.dense)
        axes = torch.eye(self.layout.dim, device=rows.device)
        bases = [(axes if basis is None else basis).to(rows.dtype) for _, basis in factored.blocks()]
        ends = torch.tensor(self.layout.row_ends, device=self.dense.device)
        clusters = torch.searchsorted(ends, self.stored_rows, right=True)
        bands = [[Band(rank, COEFFICIENT_BITS[bits], 8)] for rank in factored.layout.cluster_ranks]
        layout, tensors, _ = quantize(
            rows,
            torch.ones(len(self.dense), dtype=torch.float64, device=self.dense.device),
            ProjectiveClustering(clusters, bases, 0.0, []),
            bands,
            p=2.0,
            seed=0,
        )
        factor_in_place(module, layout)
        packed: Any = module
        packed.set_tensors(tensors)
        return module


def draw_table(num_rows: int, dim: int, *, seed: int, device: torch.device, dtype: torch.dtype) -> DrawnTable:
    """Draw a table that factors which save 80 % hold exactly; its entries have a deviation of about d^-1/2.

    Args:
        num_rows: Rows, n.
        dim: Width, d.
        seed: Equal seeds give equal tables on one device.
        device: Where to draw it and keep it.
        dtype: Dtype of table and factors.

    Returns:
        The table.

    Raises:
        ValueError: If the table is too small.
    """
    layout = layout_of(num_rows, dim, LEAST_FACTORS)
    generator = torch.Generator(device).manual_seed(seed)
    coefficients, bases = [], []
    for size, rank in zip(layout.cluster_sizes, layout.cluster_ranks, strict=True):
        drawn = torch.randn(size, rank, generator=generator, device=device)
        coefficients.append((drawn / rank**0.5).to(dtype))
        bases.append((torch.randn(rank, dim, generator=generator, device=device) / dim**0.5).to(dtype))
    stored_rows = torch.randperm(num_rows, generator=generator, device=device)
    stored = torch.cat([block @ basis for block, basis in zip(coefficients, bases, strict=True)])
    return DrawnTable(stored[stored_rows], layout, tuple(coefficients), tuple(bases), stored_rows.int())


def layout_of(num_rows: int, dim: int, compression: float) -> FactorLayout:
    """The largest ranks, in the proportions of MiniLM's clusters, whose factors save a share of a table.

    Args:
        num_rows: Rows, n.
        dim: Width, d.
        compression: Share to save, between 0 and 1.

    Returns:
        Shapes of the factors, with a rank of 1 or more in each cluster.

    Raises:
        ValueError: If no such ranks save so much of so small a table.
    """
    sizes = [num_rows * tokens // sum(_TOKENS) for tokens in _TOKENS]
    sizes[-1] += num_rows - sum(sizes)
    budget = number_budget(num_rows, dim, compression)
    for top in range(8 * dim, 0, -1):
        ranks = [min(max(top * rank // max(_RANKS), 1), dim) for rank in _RANKS]
        layout = FactorLayout(dim, tuple(sizes), tuple(ranks))
        if layout.num_parameters <= budget:
            return layout
    raise ValueError(
        f"vocabulary={num_rows:,} and dim={dim}: {len(_RANKS)} clusters cannot save {compression:.0%} of so small a "
        f"table; expected room for {num_rows + len(_RANKS) * dim:,} numbers in {budget:,}. Give a larger --vocabulary, "
        "or another --dim."
    )
