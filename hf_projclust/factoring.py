"""A dense table in, the tensors of a factored one out: options, their checks, and the call of the solver.

This file knows the solvers and how a factored table is stored. It knows no models and writes no files.
"""

from __future__ import annotations

import numbers
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import logging

from .configuration_projclust import FactorLayout
from .solvers import ProjectiveClustering, messi
from .solvers.ranks import uniform_rank

logger = logging.get_logger(__name__)
Preset = Literal["messi", "svd"]
_NUM_CLUSTERS_OF_PRESET = {"messi": 5, "svd": 1}


@dataclass(frozen=True, kw_only=True)
class FactoringOptions:
    """How to factor a table. The meaning of each option stands with ``hf_projclust.compress``.

    Raises:
        ValueError: If an option is out of the range that any table could need.
    """

    preset: str
    num_clusters: int | None
    compression: float | None
    rank: int | None
    seed: int
    num_starts: int
    max_rounds: int
    tolerance: float

    def __post_init__(self) -> None:
        """Refuse options that no table could make right, before a model is loaded."""
        if not isinstance(self.preset, str) or self.preset not in _NUM_CLUSTERS_OF_PRESET:
            known = ", ".join(repr(name) for name in _NUM_CLUSTERS_OF_PRESET)
            raise ValueError(f"preset={self.preset!r}; expected one of {known}. Check the spelling.")
        if (self.compression is None) == (self.rank is None):
            raise ValueError(
                f"compression={self.compression} and rank={self.rank}; expected exactly one of the two. Give the share "
                "of the table to save, such as compression=0.4, or the coordinates to keep of each row, such as "
                "rank=200."
            )
        if self.compression is not None:
            self._check_share(
                "compression", "above 0 and below 1, the share of the table to save. To save 40 %, give 0.4"
            )
        if self.rank is not None:
            self._check_count("rank", 1, "Give the coordinates to keep of each row")
        if self.num_clusters is not None:
            self._check_count("num_clusters", 1, "Five is a good first choice")
        self._check_count("seed", 0, "Any such number will do")
        self._check_count("num_starts", 1, "Leave it out for the default")
        self._check_count("max_rounds", 1, "Leave it out for the default")
        self._check_share("tolerance", "above 0 and below 1. Leave it out for the default")
        if self.num_clusters is None:
            object.__setattr__(self, "num_clusters", _NUM_CLUSTERS_OF_PRESET[self.preset])
        elif self.preset == "svd" and self.num_clusters != 1:
            raise ValueError(
                f"num_clusters={self.num_clusters} with preset='svd'; expected 1, since SVD is one subspace. "
                "Use preset='messi' for several."
            )

    def _check_count(self, name: str, least: int, way_out: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
            raise ValueError(f"{name}={value!r}; expected a whole number, {least} or more. {way_out}.")
        object.__setattr__(self, name, int(value))

    def _check_share(self, name: str, expected: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < 1:
            raise ValueError(f"{name}={value!r}; expected a number {expected}.")
        object.__setattr__(self, name, float(value))


@dataclass(frozen=True)
class Factors:
    """A factored table, as it is stored.

    Attributes:
        layout: Shapes of the factors.
        tensors: ``coefficients``, ``bases`` and ``rows``, as in ``embedding_projclust``, in the table's dtype.
        record: How they were found and what they keep, for the configuration.
    """

    layout: FactorLayout
    tensors: dict[str, Tensor]
    record: dict[str, Any]


def factor_table(table: Tensor, options: FactoringOptions) -> Factors:
    """Factor a table, with a progress bar.

    Args:
        table: Rows, shape (n, dim), of any floating dtype; left untouched.
        options: How to factor it.

    Returns:
        The factors. ``record`` has the options, the share of energy that each cluster keeps (1 - squared error of
        its rows over their squared norm) and the relative squared error of the table, both after rounding to the
        table's dtype.

    Raises:
        ValueError: If the table is not finite, or too small for the options, or its factors overflow its dtype.
    """
    num_clusters, rank = _fit_to_table(table, options)
    energy = float(torch.linalg.vector_norm(table, dtype=torch.float64)) ** 2
    with logging.tqdm(desc=f"Clustering {len(table):,} tokens", unit=" rounds") as progress:

        def show(cost: float) -> None:
            progress.set_postfix_str(f"relative squared error {_share(cost, energy):.4f}", refresh=False)
            progress.update()

        clustering = messi(
            table,
            num_clusters=num_clusters,
            rank=rank,
            seed=options.seed,
            num_starts=options.num_starts,
            max_rounds=options.max_rounds,
            tolerance=options.tolerance,
            on_round=show,
        )
    layout, tensors, energies, residuals = _stored(table, clustering)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(
            f"the factors do not fit in {table.dtype}: some are beyond its largest number. Expected a table whose rows "
            "have smaller norms; load the model with dtype=torch.float32 or bfloat16."
        )
    if layout.num_parameters >= table.numel():
        logger.warning(
            "the factors hold %s numbers, and the table %s: nothing is saved. Use a smaller rank, or give compression.",
            f"{layout.num_parameters:,}",
            f"{table.numel():,}",
        )
    record = {
        **asdict(options),
        "rank": rank,
        "energy_kept": [1 - _share(left, of) for left, of in zip(residuals, energies, strict=True)],
        "relative_squared_error": _share(sum(residuals), sum(energies)),
    }
    return Factors(layout, tensors, record)


def _fit_to_table(table: Tensor, options: FactoringOptions) -> tuple[int, int]:
    """Number of clusters and rank for a table, refusing one that cannot be factored as asked."""
    (num_tokens, dim), num_clusters = table.shape, options.num_clusters
    is_finite = table.isfinite().all(dim=1)
    if not is_finite.all():
        bad = (~is_finite).nonzero().flatten()
        raise ValueError(
            f"the vocabulary table has NaN or infinity in {len(bad):,} of {num_tokens:,} rows, the first at token id "
            f"{int(bad[0])}; expected finite numbers. Repair the model, or load it in float32 if it overflowed."
        )
    if num_clusters is None or num_clusters > num_tokens:
        raise ValueError(
            f"num_clusters={num_clusters} for a vocabulary of {num_tokens:,} tokens; expected 1 to {num_tokens:,}. "
            "Use fewer clusters."
        )
    if options.compression is not None:
        return num_clusters, uniform_rank(num_tokens, dim, num_clusters, options.compression)
    if options.rank is None or options.rank > dim:
        raise ValueError(
            f"rank={options.rank} for a table of width {dim}; expected 1 to {dim}. Use a smaller rank, or give "
            "compression instead."
        )
    return num_clusters, options.rank


def _stored(
    table: Tensor, clustering: ProjectiveClustering
) -> tuple[FactorLayout, dict[str, Tensor], list[float], list[float]]:
    """Layout and tensors of a clustering, and of each cluster the energy of its rows and what is lost of it."""
    dim, order = table.shape[1], clustering.assignment.argsort(stable=True)
    sizes = torch.bincount(clustering.assignment, minlength=len(clustering.bases)).tolist()
    coefficients, bases, energies, residuals = [], [], [], []
    for members, basis in zip(order.split(sizes), clustering.bases, strict=True):
        rows = table[members].to(basis.dtype)  # (n_i, d)
        is_whole = len(basis) == dim
        stored = (rows if is_whole else rows @ basis.T).to(table.dtype)  # (n_i, j_i)
        stored_basis = (basis[:0] if is_whole else basis).to(table.dtype)  # (j_i, d)
        kept, kept_basis = stored.to(rows.dtype), stored_basis.to(rows.dtype)
        rebuilt = kept if is_whole else kept @ kept_basis  # (n_i, d)
        energies.append(float(rows.double().square().sum()))
        residuals.append(float((rows - rebuilt).double().square().sum()))
        coefficients.append(stored.flatten())
        bases.append(stored_basis)
    tensors = {
        "coefficients": torch.cat(coefficients),
        "bases": torch.cat(bases),
        "rows": order.argsort().to(torch.int32),
    }
    layout = FactorLayout(dim, tuple(sizes), tuple(len(basis) for basis in clustering.bases))
    return layout, tensors, energies, residuals


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
