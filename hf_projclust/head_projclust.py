"""Logits from a factored table, in place of those of a linear layer.

This file knows nothing of models or of how factors are found. It travels with a checkpoint: it imports torch,
transformers and its siblings only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .places_projclust import is_traced
from .table_projclust import FactoredTable


class ProjClustHead(FactoredTable):
    """Logits from a factored table, in place of an ``nn.Linear``: (h basis^T) coefficients^T, plus the bias.

    Not an ``nn.Linear``: what looks for linear layers to replace (LoRA targets, quantisers) must leave it alone.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        """Map hidden states to logits.

        Args:
            input: Hidden states, shape (..., dim).

        Returns:
            Logits in the order of the vocabulary, shape (..., num_embeddings).
        """
        if self._is_plain(input):
            logits = self._in_stored_order(input.reshape(-1, self.layout.dim)).index_select(-1, self.rows)
            logits = logits.view(*input.shape[:-1], self.layout.num_embeddings)
            return logits if self.bias is None else logits.add_(self.bias)
        coordinates = self._coordinates(input)
        blocks = enumerate(self.blocks())
        stored = torch.cat(
            [self.multiply_rows(number, stored, coordinates[number]) for number, (stored, _) in blocks],  # (..., n_i)
            dim=-1,
        )
        logits = stored.index_select(-1, self.rows)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)  # as under autocast in nn.Linear

    def topk(self, input: Tensor, k: int) -> tuple[Tensor, Tensor]:  # noqa: A002 (the name in nn.Linear)
        """The largest logits and their tokens, without the logits of all tokens in one tensor.

        Args:
            input: Hidden states, shape (..., dim).
            k: How many; 1 for greedy decoding.

        Returns:
            The logits, largest first, and the ids of their tokens, each of shape (..., k). Which of equal logits come
            first, or at all, is left open, as in ``torch.topk``.

        Raises:
            ValueError: If k is not between 1 and the size of the vocabulary.
        """
        layout = self.layout
        if type(k) is not int or not 1 <= k <= layout.num_embeddings:
            raise ValueError(
                f"k={k!r} tokens were asked for; expected 1 to {layout.num_embeddings}, the size of the vocabulary. "
                "Ask for as many at most."
            )
        rows = self.rows.long()
        tokens = torch.zeros_like(rows).scatter(0, rows, torch.arange(len(rows), device=rows.device))  # in stored order
        values, ids = [], []
        for number, (coordinates, ids_here) in enumerate(
            zip(self._coordinates(input), tokens.split(layout.cluster_sizes), strict=True)
        ):
            logits = self.multiply_rows(number, self.block(number)[0], coordinates)  # (..., n_i)
            if self.bias is not None:
                logits = logits + self.bias.index_select(0, ids_here).to(logits.dtype)
            best, places = logits.topk(min(k, len(ids_here)), dim=-1)
            values.append(best)
            ids.append(ids_here[places])
        best, places = torch.cat(values, dim=-1).topk(k, dim=-1)
        return best, torch.cat(ids, dim=-1).gather(-1, places)

    def _is_plain(self, hidden: Tensor) -> bool:
        """Whether the logits can be written where they are wanted: no graph, no gradient, no change of dtype."""
        return not (
            is_traced(hidden)
            or torch.is_autocast_enabled(hidden.device.type)
            or self.needs_gradient()
            or (torch.is_grad_enabled() and hidden.requires_grad)
        )

    def _coordinates(self, hidden: Tensor) -> list[Tensor]:
        """Coordinates (..., j_i) of hidden states (..., d) in each basis; without a basis, the hidden states."""
        layout = self.layout
        projected = (hidden @ self.all_bases().T).split(layout.basis_ranks, dim=-1)
        ranks = zip(projected, layout.cluster_ranks, strict=True)
        return [hidden if rank == layout.dim else coordinates for coordinates, rank in ranks]

    def _in_stored_order(self, hidden: Tensor) -> Tensor:
        """Logits (m, n) of hidden states (m, d), each cluster's written to its place."""
        layout = self.layout
        logits = hidden.new_empty(len(hidden), layout.num_embeddings)
        parts = logits.split(layout.cluster_sizes, dim=1)
        for number, (coordinates, part) in enumerate(zip(self._coordinates(hidden), parts, strict=True)):
            self.multiply_rows(number, self.block(number)[0], coordinates, out=part)
        return logits

    def resize(self, num_embeddings: int, new_rows: Tensor) -> None:
        """As in the base; the bias is for the model to resize."""
        super().resize(num_embeddings, new_rows)
        self.out_features = num_embeddings

    def extra_repr(self) -> str:
        """Shape and bias, as ``nn.Linear`` shows them."""
        return f"in_features={self.layout.dim}, out_features={self.layout.num_embeddings}, bias={self.bias is not None}"

    def init_factors(self, std: float) -> None:
        """As in the base, with a bias of zeros."""
        super().init_factors(std)
        if self.bias is not None:
            init.zeros_(self.bias)
