"""A clustering in, the packed tensors of a table in few bits out, and what is lost by them.

Coordinates are product quantised, in units of their deviations and of the scale of their row. Then the bases are fitted
to the rows once more, now that the codes are known (weighted least squares), rounded, and the rows are coded again with
the rounded bases. Rows are read block by block. How rows were clustered, and in how many bits each coordinate is
stored, is decided in ``solvers``; how the bytes are read is in ``packed_projclust``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .basis_codes import round_vectors, train_pairs
from .embedding_projclust import factor_in_place
from .layout_projclust import Band, PackedLayout
from .losses import Losses
from .packed_projclust import SCALE_STEPS, SCALE_ZERO, WORD_STEPS
from .row_codes import as_words, decode_rows, encode_rows, rough_scales, scale_of, split_bands
from .solvers import ProjectiveClustering, Rows, lp_coefficients
from .solvers.codebooks import train_codebook

_SAMPLED_ROWS = 8192  # of all clusters together, and at least so many of each:
_LEAST_SAMPLED_ROWS = 512
_RIDGE = 1e-4  # of the mean energy of a coordinate, in the fit of a basis


def quantize(
    rows: Rows, weights: Tensor, clustering: ProjectiveClustering, bands: Sequence[Sequence[Band]], p: float, seed: int
) -> tuple[PackedLayout, dict[str, Tensor], dict[str, Any]]:
    """Make the packed tensors of a clustering.

    Args:
        rows: The table, unweighted.
        weights: What the squared error of each row counts, shape (n,).
        clustering: The clusters and their bases.
        bands: How the coordinates of each cluster are stored, in their order.
        p: In [1, 2]: coordinates are those of the least entrywise l_p error; with 2 the bases are fitted once more.
        seed: Seed of the codebooks. Equal arguments on one machine give equal bytes, on CPUs.

    Returns:
        The layout; the tensors of ``packed_projclust``; and the errors of the rows that these bytes give, as ``pack``.
    """
    sizes = torch.bincount(clustering.assignment, minlength=len(clustering.bases)).tolist()
    largest = float(rows.norms.max())
    # Squares of other numbers may overflow, or vanish; and what is divided by the unit must not overflow.
    unit = max(2.0 ** round(math.log2(largest)), torch.finfo(rows.dtype).tiny) if largest > 0 else 1.0
    in_units = rows.weighted(torch.full_like(rows.norms, unit**-2.0))
    weights = weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)
    coder = _Coder(in_units, weights, clustering, PackedLayout.of_bands(rows.dim, sizes, bands), p, seed)
    if p == 2:
        coder.fit_bases()
    tensors = coder.packed(unit)
    with torch.device("meta"):
        table: Any = nn.Embedding(rows.num_rows, rows.dim, dtype=rows.table.dtype)
    factor_in_place(table, coder.layout)
    table.set_tensors(tensors)
    table.note_tensors()
    return table.layout, tensors, _losses(rows, weights, clustering, table, p).record()


class _Coder:
    """Bases and codebooks as they are stored, and the bytes of rows that follow from them.

    Attributes:
        vectors: For each cluster what a coordinate of 1 stands for, shape (j_i, d): its rounded basis, each vector as
            long as the deviation of its coordinate.
        codebooks: Words of rows, by the numbers in them.
    """

    def __init__(
        self,
        rows: Rows,
        weights: Tensor,
        clustering: ProjectiveClustering,
        layout: PackedLayout,
        p: float,
        seed: int,
    ) -> None:
        """Begin with the bases of the clustering."""
        self.rows, self.weights, self.layout, self.p = rows, weights.to(rows.dtype), layout, p
        self.assignment, self.generator = clustering.assignment, torch.Generator().manual_seed(seed)
        axes = torch.eye(rows.dim, dtype=rows.dtype, device=rows.device)
        # A cluster of rank d has no basis of its own: its coordinates are those of the table.
        self.directions = [axes if self._is_whole(number) else basis for number, basis in enumerate(clustering.bases)]
        deviations = self._deviations()
        self._take_up([basis * length for basis, length in zip(self.directions, deviations, strict=True)])

    def fit_bases(self) -> None:
        """Fit the bases to the rows by weighted least squares, given the codes of the rows."""
        zero = torch.zeros(1, 1, dtype=torch.float64, device=self.rows.device)
        grams = [zero.repeat(rank, rank) for rank in self.layout.cluster_ranks]
        products = [zero.repeat(rank, self.rows.dim) for rank in self.layout.cluster_ranks]
        for number, dense, weights in self._members():
            coded = decode_rows(self._encoded(number, dense), self.layout.cluster_bands[number], self.codebooks)
            weighted = coded * weights.unsqueeze(1)
            grams[number] += weighted.T @ coded.to(weighted)
            products[number] += weighted.T @ dense
        fitted = []
        for number, (gram, product) in enumerate(zip(grams, products, strict=True)):
            ridge = _RIDGE * gram.trace() / max(1, len(gram)) + 1e-30
            solution = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), product)
            fitted.append(self.vectors[number] if self._is_whole(number) else solution.to(self.rows.dtype))
        self._take_up(fitted)

    def packed(self, unit: float) -> dict[str, Tensor]:
        """The tensors of the table, of rows that were read in multiples of a unit."""
        layout, device = self.layout, self.rows.device
        coefficients = torch.empty(layout.coefficient_byte_ends[-1], dtype=torch.uint8, device=device)
        filled = [0, *layout.coefficient_byte_ends[:-1]]
        for number, dense, _ in self._members():
            coded = self._encoded(number, dense)
            coefficients[filled[number] : filled[number] + coded.numel()] = coded.flatten()
            filled[number] += coded.numel()
        none = torch.zeros(0, dtype=torch.uint8, device=device)
        books = [self.pairs if of == "bases" else self.codebooks[width] for of, width in layout.codebooks]
        return {
            "coefficients": coefficients,
            "bases": torch.cat([none, *self.basis_codes]),
            "codebooks": torch.cat([none.view(torch.int8), *(book.flatten() for book in books)]),
            "clusters": self.assignment.to(torch.uint8),
            "scales": (torch.cat(self.scales).double() * unit).to(self.rows.table.dtype),
        }

    def _members(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Block by block, the rows of each cluster that keeps any: its number, rows (m, d), and weights (m,)."""
        for span in self.rows.spans():
            block = self.rows.read(span)
            for number, rank in enumerate(self.layout.cluster_ranks):
                is_member = self.assignment[span] == number
                if rank and is_member.any():
                    yield number, block[is_member], self.weights[span][is_member]

    def _is_whole(self, number: int) -> bool:
        return self.layout.cluster_ranks[number] == self.layout.dim

    def _deviations(self) -> list[Tensor]:
        """Weighted deviation of each coordinate of each cluster, shape (j_i, 1)."""
        zero = torch.zeros(1, dtype=torch.float64, device=self.rows.device)
        energies = [zero.repeat(rank) for rank in self.layout.cluster_ranks]
        masses = [zero.clone() for _ in energies]
        for number, dense, weights in self._members():
            energies[number] += weights.double() @ (dense @ self.directions[number].T).double().square()
            masses[number] += weights.double().sum()
        tiny = torch.finfo(torch.float64).tiny
        found = [(energy / mass.clamp(min=tiny)).sqrt() for energy, mass in zip(energies, masses, strict=True)]
        found = [deviations.clamp(min=1e-6 * float(deviations.sum()) + tiny) for deviations in found]
        # Their ratios matter, and that ordinary rows get ordinary scales, whatever the rows are that count most.
        logarithms = [[zero[:0]] for _ in found]
        for number, dense, _ in self._members():
            lengths = ((dense @ self.directions[number].T).double() / found[number]).square().mean(dim=1).sqrt()
            logarithms[number].append(lengths[lengths > 0].log2())
        common = [_ordinary(torch.cat(parts)) for parts in logarithms]
        return [(one * 2.0**size).to(self.rows.dtype).unsqueeze(1) for one, size in zip(found, common, strict=True)]

    def _take_up(self, fitted: list[Tensor]) -> None:
        """Round bases, whose vectors are as long as the deviations of their coordinates, and find words for them."""
        parts = [
            [] if self._is_whole(number) else list(zip(bands, split_bands(basis.T, bands), strict=True))
            for number, (bands, basis) in enumerate(zip(self.layout.cluster_bands, fitted, strict=True))
        ]
        in_pairs = [part.T for cluster in parts for band, part in cluster if band.basis_bits == 4]
        self.pairs = train_pairs(in_pairs, self.generator)
        self.vectors, self.scales, self.basis_codes = list(fitted), [basis.norm(dim=1) for basis in fitted], []
        for number, cluster in enumerate(parts):
            rounded = [round_vectors(part.T, band.basis_bits, self.pairs) for band, part in cluster]
            if rounded:
                self.basis_codes += [part.codes for part in rounded]
                self.scales[number] = torch.cat([part.scales for part in rounded]).to(self.rows.table.dtype)
                numbers = torch.cat([part.numbers for part in rounded])
                self.vectors[number] = numbers * self.scales[number].to(numbers).unsqueeze(1)
        self.inverses = [_inverse(*vectors) for vectors in zip(self.vectors, fitted, strict=True)]
        self.codebooks = self._train()

    def _coordinates(self, number: int, dense: Tensor) -> Tensor:
        """Coordinates of rows of a cluster, in deviations, shape (m, j_i)."""
        if self.p < 2 and not self._is_whole(number):
            return lp_coefficients(dense, self.directions[number], self.p) / self.vectors[number].norm(dim=1)
        return dense @ self.inverses[number]

    def _encoded(self, number: int, dense: Tensor) -> Tensor:
        """Bytes of rows of a cluster, shape (m, row bytes)."""
        energies = self.vectors[number].square().sum(dim=1)
        return encode_rows(
            self._coordinates(number, dense), energies, self.layout.cluster_bands[number], self.codebooks
        )

    def _train(self) -> dict[int, Tensor]:
        """Words for each number of coordinates a byte in use, from the rows of a sample."""
        widths = [width for of, width in self.layout.codebooks if of == "rows"]
        empty = torch.zeros(0, dtype=self.rows.dtype, device=self.rows.device)
        pools = {width: [(empty.view(0, width), empty)] for width in widths}
        for number, bands in enumerate(self.layout.cluster_bands):
            size = self.layout.cluster_sizes[number]
            if not bands or not size:
                continue
            # Some of each cluster: a small one may have words of its own.
            wanted = max(_LEAST_SAMPLED_ROWS, _SAMPLED_ROWS * size // self.rows.num_rows)
            chosen = torch.randperm(size, generator=self.generator)[:wanted].sort().values.to(self.rows.device)
            chosen = (self.assignment == number).nonzero().flatten()[chosen]
            coordinates = self._coordinates(number, self.rows.take(chosen))
            lengths = scale_of(rough_scales(coordinates, bands))  # (m, 1)
            energies = split_bands(self.vectors[number].square().sum(dim=1).unsqueeze(0), bands)
            for band, part, energy in zip(bands, split_bands(coordinates / lengths, bands), energies, strict=True):
                if band.per_byte > 1:
                    words = as_words(part, band.per_byte)  # (m, bytes, width)
                    mass = self.weights[chosen].unsqueeze(1) * lengths.square() * (size / len(chosen))  # (m, 1)
                    mass = mass * as_words(energy, band.per_byte).mean(dim=2)  # (m, bytes)
                    pools[band.per_byte].append((words.flatten(0, 1), mass.flatten()))
        codebooks = {}
        for width, pool in pools.items():
            samples, masses = (torch.cat(parts) for parts in zip(*pool, strict=True))
            codebooks[width] = train_codebook(samples, masses, WORD_STEPS, self.generator)
        return codebooks


def _ordinary(logarithms: Tensor) -> float:
    """The mean of logarithms to the base of two, of which none counts as further from the median than scales reach."""
    if not len(logarithms):
        return 0.0
    median, reach = logarithms.median(), SCALE_ZERO / SCALE_STEPS
    return float(logarithms.clamp(median - reach, median + reach).mean())


def _inverse(vectors: Tensor, fitted: Tensor) -> Tensor:
    """What gives the coordinates of rows along rounded vectors (j, d) by ridge regression, shape (d, j).

    The ridge is the energy that rounding the vectors has put into each direction. Without it coordinates that are
    fainter would be spent on errors of the strong ones, and grow beyond what a byte can say.
    """
    gram = (vectors @ vectors.T).double()
    noise = (vectors - fitted).double().square().sum() / vectors.shape[1]
    ridge = noise + 1e-9 * gram.trace() / max(1, len(gram)) + 1e-30
    inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram)).to(gram))
    return (vectors.T.double() @ inverse).to(vectors)


def _losses(rows: Rows, weights: Tensor, clustering: ProjectiveClustering, table: Any, p: float) -> Losses:
    """What is lost, by the rows that a look-up in the packed tensors gives."""
    losses = Losses(table.layout.num_clusters, p)
    for span in rows.spans():
        dense, clusters = rows.read(span), clustering.assignment[span]
        with torch.no_grad():
            rebuilt = table(torch.arange(span.start, span.stop, device=rows.device))
        for number in range(table.layout.num_clusters):
            is_member = clusters == number
            losses.add(number, dense[is_member], rebuilt[is_member], weights[span][is_member])
    return losses
