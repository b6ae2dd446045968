"""The factored vocabulary table: its parameters, and what look-up and head share.

A table A (n, d) whose rows lie in k clusters is kept as

    coefficients   all coordinates, cluster after cluster, flat: cluster i is a block (n_i, j_i)
    bases          all bases stacked: cluster i is a block (j_i, d); clusters of rank d have none
    rows           int32 (n,): the stored row of each token; the cluster follows from the sizes

In arXiv 2010.04290 the blocks of ``coefficients`` are the k parallel layers U^i and ``bases`` is the one
recombining layer V. Two parameters whatever k is: no cluster can be without a gradient, and the head needs
one product with all bases.

This file knows nothing of models or of how factors are found. It travels with a checkpoint: it imports torch,
transformers and its siblings only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .layout_projclust import FactorLayout
from .places_projclust import of_clusters
from .weight_projclust import WEIGHT_IS_READ_ONLY, stand_in

FACTOR_NAMES = ("coefficients", "bases")


class FactoredTable(nn.Module):
    """Parameters and buffer of a factored table, and what embedding and head share."""

    layout: FactorLayout
    coefficients: nn.Parameter
    bases: nn.Parameter
    rows: Tensor
    stored_names: tuple[str, ...] = ("coefficients", "bases", "rows")  # what a file has of it
    factor_names: tuple[str, ...] = FACTOR_NAMES  # parameters, which tied modules share
    copied_names: tuple[str, ...] = ("rows",)  # buffers, of which each tied module has a copy
    _is_hf_initialized: bool  # Transformers' mark of a module whose weights are filled

    def _set_factors(self, layout: FactorLayout, device: torch.device, dtype: torch.dtype) -> None:
        num_coefficients, num_basis_rows = sum(layout.coefficient_counts), sum(layout.basis_ranks)
        self.layout = layout
        self._is_hf_initialized = False  # a dense weight that was filled before is gone
        self.coefficients = nn.Parameter(torch.empty(num_coefficients, device=device, dtype=dtype))
        self.bases = nn.Parameter(torch.empty(num_basis_rows, layout.dim, device=device, dtype=dtype))
        self.register_buffer(
            "rows", torch.arange(layout.num_embeddings, device=device, dtype=torch.int32), persistent=True
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows that a look-up gives."""
        return self.coefficients.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether the dense table that the factors stand for would have a gradient."""
        return self.coefficients.requires_grad

    def order_rows(self) -> None:
        """Find what follows from other buffers: nothing."""

    def damage(self) -> str | None:
        """What is wrong with the numbers that a checkpoint gave, with the name of the tensor; None if nothing is."""
        for name in FACTOR_NAMES:
            factor = getattr(self, name)
            # Its ends tell of NaN too, in one pass and without a copy.
            if factor.numel() and not factor.is_meta and not torch.stack(factor.detach().aminmax()).isfinite().all():
                return f"{name} has numbers that are infinite or NaN in {factor.dtype}; expected finite ones"
        rows = self.rows
        in_order = torch.arange(len(rows), device=rows.device, dtype=rows.dtype)
        if rows.is_meta or torch.equal(rows.sort().values, in_order):
            return None
        return (
            f"rows assigns tokens to stored rows {int(rows.min())} to {int(rows.max())}; expected each of 0 to "
            f"{len(rows) - 1} once"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Add what stands in a file in place of the dense weight."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = in_place_of_dense_weight()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Pass over it."""
        state_dict.pop(f"{prefix}weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_factors(self, std: float) -> None:
        """Fill what no checkpoint has filled, so that entries of the dense table have deviation ``std``."""
        scales = [
            torch.full((count,), std * (self.layout.dim / max(rank, 1)) ** 0.5)
            for count, rank in zip(self.layout.coefficient_counts, self.layout.cluster_ranks, strict=True)
        ]
        if not getattr(self.coefficients, "_is_hf_initialized", False):
            init.normal_(self.coefficients)
            with torch.no_grad():
                self.coefficients.mul_(torch.cat(scales).to(self.coefficients))
        init.normal_(self.bases, std=self.layout.dim**-0.5)

    def blocks(self) -> list[tuple[Tensor, Tensor | None]]:
        """Every cluster as it is stored: its rows (n_i, j_i), and its basis (j_i, d), which is None where j_i = d."""
        layout = self.layout
        # One split for all clusters: its backward joins the gradients once, where slices would pad each to full size.
        coefficients = self.coefficients.split(layout.coefficient_counts)
        bases = self.bases.split(layout.basis_ranks)
        shapes = zip(layout.cluster_sizes, layout.cluster_ranks, strict=True)
        return [
            (flat.view(size, rank), basis if rank < layout.dim else None)
            for (size, rank), flat, basis in zip(shapes, coefficients, bases, strict=True)
        ]

    def block(self, number: int) -> tuple[Tensor, Tensor | None]:
        """One cluster of ``blocks()``, at the cost of one."""
        layout = self.layout
        size, rank = layout.cluster_sizes[number], layout.cluster_ranks[number]
        end = layout.coefficient_ends[number]
        return self.coefficients[end - size * rank : end].view(size, rank), self.stored_basis(number)

    def vector(self, number: int, row: int) -> Tensor:
        """One row of the dense table, by its cluster and its place among all stored rows: a copy, shape (1, d).

        The factors are read past ``nn.Module.__getattr__``, which would take a tenth of a token's whole look-up.
        """
        layout = self.layout
        rank, basis_end = layout.cluster_ranks[number], layout.basis_ends[number]
        first = layout.origins[number] + row * rank
        coefficients, bases = self._parameters.get("coefficients"), self._parameters.get("bases")
        if coefficients is None or bases is None:  # something keeps them elsewhere, such as a parametrization
            coefficients, bases = self.coefficients, self.bases
        coordinates = coefficients[first : first + rank].unsqueeze(0)
        return coordinates.clone() if rank == layout.dim else coordinates.mm(bases[basis_end - rank : basis_end])

    def stored_basis(self, number: int) -> Tensor | None:
        """The basis of a cluster as it is stored, shape (j_i, d); None where there is none."""
        layout = self.layout
        rank, end = layout.cluster_ranks[number], layout.basis_ends[number]
        return None if rank == layout.dim else self.bases[end - rank : end]

    def unpack_rows(self, number: int, stored: Tensor) -> Tensor:
        """Coefficients (m, j_i) of some rows of a cluster, given as they are stored."""
        return stored

    def unpack_basis(self, number: int, stored_basis: Tensor) -> Tensor:
        """The basis (j_i, d) of a cluster, given as it is stored."""
        return stored_basis

    def all_bases(self) -> Tensor:
        """The bases of all clusters that have one, stacked, shape (sum of their ranks, d)."""
        return self.bases

    def padded_rows(self, stored_rows: Tensor, clusters: Tensor) -> Tensor:
        """Coefficients of rows of any clusters, with shapes that do not depend on which, and no host synchronisation.

        Args:
            stored_rows: Places of rows in the order that they are stored in, shape (m,).
            clusters: The cluster of each, int64, shape (m,).

        Returns:
            Coefficients, shape (m, j_max). What stands beyond the rank of a row's cluster means nothing.
        """
        layout, widest = self.layout, max(self.layout.cluster_ranks)
        if layout.coefficient_ends[-1] < 2:  # a look-up in one number is more than inductor makes threaded code of
            return self.coefficients.sum().expand(stored_rows.shape[0], widest)
        first = of_clusters(layout.origins, clusters) + stored_rows * of_clusters(layout.cluster_ranks, clusters)
        places = first.unsqueeze(1) + torch.arange(widest, device=first.device)  # (m, j_max)
        return self.coefficients[places.clamp(max=layout.coefficient_ends[-1] - 1)]

    def multiply_rows(self, number: int, stored: Tensor, coordinates: Tensor, out: Tensor | None = None) -> Tensor:
        """Products of coordinates with every row of a cluster.

        Args:
            number: The cluster.
            stored: All its rows as they are stored, shape (n_i, width_i).
            coordinates: Coordinates in its basis, or whole vectors where it has none, shape (..., j_i).
            out: Where to put the products if no gradient is needed, shape (..., n_i); a new tensor by default.

        Returns:
            Products, shape (..., n_i).
        """
        return torch.matmul(coordinates, stored.T, out=out)

    def reconstruct(self, number: int, stored: Tensor, stored_basis: Tensor | None) -> Tensor:
        """Some rows of the dense table, shape (m, d), of rows of a cluster and its basis, given as they are stored."""
        rows = self.unpack_rows(number, stored)
        return rows if stored_basis is None else torch.mm(rows, self.unpack_basis(number, stored_basis))

    def needs_gradient(self) -> bool:
        """Whether what is computed now has a backward."""
        return torch.is_grad_enabled() and (self.coefficients.requires_grad or self.bases.requires_grad)

    def resize(self, num_embeddings: int, new_rows: Tensor) -> None:
        """Keep the first tokens and add new ones, whose rows are stored as they are, in a last cluster of rank d.

        Args:
            num_embeddings: Number of tokens after it.
            new_rows: Vectors of the tokens beyond the present ones, shape (added, d).
        """
        layout, kept = self.layout, self.rows[:num_embeddings].long()
        is_kept = torch.zeros(layout.num_embeddings, dtype=torch.bool, device=kept.device)
        is_kept[kept] = True
        masks = is_kept.split(layout.cluster_sizes)
        blocks = [coefficients[mask] for (coefficients, _), mask in zip(self.blocks(), masks, strict=True)]
        sizes, ranks = [len(block) for block in blocks], list(layout.cluster_ranks)
        if len(new_rows) and ranks[-1] < layout.dim:
            sizes, ranks = [*sizes, 0], [*ranks, layout.dim]
        sizes[-1] += len(new_rows)
        flat = torch.cat([block.detach().flatten() for block in (*blocks, new_rows.to(self.coefficients))])
        added = torch.arange(len(kept), len(kept) + len(new_rows), device=kept.device)
        self.layout = FactorLayout(layout.dim, tuple(sizes), tuple(ranks))
        self.coefficients = nn.Parameter(flat, requires_grad=self.coefficients.requires_grad)
        self.rows = torch.cat([(is_kept.cumsum(0) - 1)[kept], added]).int()

    @torch.no_grad()
    def set_rows(self, token_ids: Tensor, vectors: Tensor) -> None:
        """Write the vectors of tokens that are stored as they are: those that were added by a resize.

        Args:
            token_ids: Tokens, shape (m,).
            vectors: Their vectors, shape (m, d).

        Raises:
            ValueError: If one of the tokens is in a cluster of a smaller rank, which cannot hold every vector, or there
                is no such token, or not one vector for each.
        """
        layout, device = self.layout, self.rows.device
        token_ids, vectors = torch.as_tensor(token_ids, device=device), torch.as_tensor(vectors)
        if vectors.shape != (*token_ids.shape, layout.dim) or token_ids.dim() != 1:
            raise ValueError(
                f"token_ids have shape {tuple(token_ids.shape)} and vectors {tuple(vectors.shape)}; expected (m,) and "
                f"(m, {layout.dim}). Give one vector for each token."
            )
        if len(missing := token_ids[(token_ids < 0) | (token_ids >= layout.num_embeddings)]):
            raise ValueError(
                f"there is no token {int(missing[0])}; expected 0 to {layout.num_embeddings - 1}. Call "
                "resize_token_embeddings() first."
            )
        stored = self.rows[token_ids].long()
        row_ends = torch.tensor(layout.cluster_sizes, device=device).cumsum(0)
        clusters = torch.searchsorted(row_ends, stored, right=True)
        ranks = torch.tensor(layout.cluster_ranks, device=device)[clusters]
        if len(bad := (ranks < layout.dim).nonzero().flatten()):
            raise ValueError(
                f"token {int(token_ids[bad[0]])} is in a cluster of rank {int(ranks[bad[0]])}, of "
                f"{layout.dim}; expected tokens that resize_token_embeddings() added, whose rows are stored as they "
                "are. Set rows of other tokens in the dense model, hf_projclust.decompress(model), and compress that."
            )
        ends = torch.tensor(layout.coefficient_counts, device=device).cumsum(0)[clusters]
        first = ends - (row_ends[clusters] - stored) * layout.dim  # from the end of its cluster
        places = first.unsqueeze(1) + torch.arange(layout.dim, device=device)  # (m, d)
        self.coefficients[places] = vectors.to(self.coefficients)

    def dense_weight(self) -> Tensor:
        """Build the dense table, shape (n, d), differentiably."""
        stored = torch.cat([self.reconstruct(number, *block) for number, block in enumerate(self.blocks())])
        return stored.index_select(0, self.rows)

    @property
    def weight(self) -> Any:
        """A stand-in for the dense table: its shape costs nothing, any operation on it builds the table.

        Modules that share their factors give one object as long as it is in use, by which callers see that they are
        tied. A compiled graph gets the table itself, of which it drops what it does not use.
        """
        if torch.compiler.is_compiling():
            return self.dense_weight()
        return stand_in(self)

    @weight.setter
    def weight(self, _: Any) -> None:
        raise AttributeError(WEIGHT_IS_READ_ONLY)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a dense weight, which the factors would not follow."""
        if name == "weight":
            raise AttributeError(WEIGHT_IS_READ_ONLY)
        super().register_parameter(name, param)


def in_place_of_dense_weight() -> Tensor:
    """What a file has under the name of a dense weight that is not in it.

    A native class that is pointed at the file refuses the shape, where it would fill in at random what is missing.
    """
    return torch.zeros(1, dtype=torch.uint8)
