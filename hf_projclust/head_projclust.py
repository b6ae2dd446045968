"""Logits from a factored table, in place of those of a linear layer.

This file knows nothing of models or of how factors are found. It travels with a checkpoint: it imports torch,
transformers and its siblings only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

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
        projected = (input @ self.all_bases().T).split(self.layout.basis_ranks, dim=-1)  # k of (..., j_i)
        stored = torch.cat(
            [
                self.multiply_rows(number, stored, input if stored_basis is None else projected[number])  # (..., n_i)
                for number, (stored, stored_basis) in enumerate(self.blocks())
            ],
            dim=-1,
        )
        logits = stored.index_select(-1, self.rows)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)  # as under autocast in nn.Linear

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
