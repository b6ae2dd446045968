"""What is lost of a table: the energy of its rows and of their errors, added up block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Losses:
    """Energies of rows and errors of each cluster: squared, weighted and squared, and to the power p.

    Args:
        num_clusters: Number of clusters, k.
        p: Power of the entrywise error, in [1, 2].
    """

    def __init__(self, num_clusters: int, p: float) -> None:
        """Begin with nothing."""
        self.p = p
        self.energy = torch.zeros(num_clusters, 3, dtype=torch.float64)
        self.error = torch.zeros(num_clusters, 3, dtype=torch.float64)

    def add(self, number: int, dense: Tensor, rebuilt: Tensor, weights: Tensor) -> None:
        """Add rows of a cluster.

        Args:
            number: The cluster.
            dense: The rows, shape (m, dim).
            rebuilt: What a look-up gives for them, shape (m, dim).
            weights: What the squared error of each counts, shape (m,).
        """
        for total, values in ((self.energy, dense.double()), (self.error, dense.double() - rebuilt.double())):
            squared = values.square().sum(dim=1)
            total[number] += torch.stack([squared.sum(), weights @ squared, values.abs().pow(self.p).sum()]).cpu()

    def record(self) -> dict[str, Any]:
        """The share of energy that each cluster keeps, and relative errors of the table, of JSON types."""
        lost = zip(self.error.sum(dim=0).tolist(), self.energy.sum(dim=0).tolist(), strict=True)
        squared, weighted, power = (share(error, energy) for error, energy in lost)
        of_clusters = zip(self.error[:, 0].tolist(), self.energy[:, 0].tolist(), strict=True)
        record = {
            "energy_kept": [1 - share(error, energy) for error, energy in of_clusters],
            "relative_squared_error": squared,
            "weighted_relative_squared_error": weighted,
        }
        return record if self.p == 2 else {**record, "relative_lp_error": power}


def share(part: float, whole: float) -> float:
    """A part of a whole; 0 of nothing."""
    return part / whole if whole > 0 else 0.0
