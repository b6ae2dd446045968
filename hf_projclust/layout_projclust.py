"""Shapes of factored vocabulary tables, as a configuration has them: of floating numbers, and in few bits.

Numbers are checked here before any memory is reserved for them; no tensor is. This file travels with a checkpoint: it
imports nothing but Python's own library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from sys import float_info
from typing import Any

PER_BYTE = (1, 2, 3, 4, 6, 8, 16)
BASIS_BITS = (16, 8, 4)
CODEBOOK_WORDS = 256
MOST_PACKED_CLUSTERS = 256
PACKED_NAMES = ("coefficients", "bases", "codebooks", "clusters")
_BAND_FIELDS = {"num_coordinates", "per_byte", "basis_bits"}
_DAMAGED = "The config.json is damaged: fetch the checkpoint again."


class ProjClustCheckpointError(ValueError):
    """A compressed checkpoint is damaged, incomplete, or not one that this version can read."""


@dataclass(frozen=True)
class FactorLayout:
    """Shapes of a factored table: the rows of cluster i have ``cluster_ranks[i]`` coordinates each.

    A cluster of rank ``dim`` keeps its rows as they are and has no basis; a cluster of rank 0 holds zero rows
    and stores nothing.

    Args:
        dim: Width of the table, d.
        cluster_sizes: Number of tokens in each cluster, n_1..n_k.
        cluster_ranks: Number of coordinates of a row in each cluster, j_1..j_k.

    Raises:
        ProjClustCheckpointError: If the numbers do not describe a table.
    """

    dim: int
    cluster_sizes: tuple[int, ...]
    cluster_ranks: tuple[int, ...]
    row_ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # where each cluster ends among the
    coefficient_ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # stored rows, coefficients
    basis_ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # and rows of stacked bases
    origins: tuple[int, ...] = field(init=False, repr=False, compare=False)  # row r of a cluster is at origin + r * j_i

    def __post_init__(self) -> None:
        """Check the numbers before any memory is reserved for them."""
        object.__setattr__(self, "cluster_sizes", tuple(self.cluster_sizes))
        object.__setattr__(self, "cluster_ranks", tuple(self.cluster_ranks))
        numbers = (self.dim, *self.cluster_sizes, *self.cluster_ranks)
        if not all(type(number) is int for number in numbers) or self.dim < 1:
            raise ProjClustCheckpointError(
                f"the factored table has dim={self.dim!r}, cluster_sizes={self.cluster_sizes!r} and "
                f"cluster_ranks={self.cluster_ranks!r}; expected whole numbers and dim >= 1. "
                f"{_DAMAGED}"
            )
        if not self.cluster_sizes or len(self.cluster_sizes) != len(self.cluster_ranks):
            raise ProjClustCheckpointError(
                f"the factored table has {len(self.cluster_sizes)} cluster_sizes and {len(self.cluster_ranks)} "
                "cluster_ranks; expected as many of each, and at least one. "
                f"{_DAMAGED}"
            )
        if min(self.cluster_sizes) < 0 or not all(0 <= rank <= self.dim for rank in self.cluster_ranks):
            raise ProjClustCheckpointError(
                f"the factored table has cluster_sizes={self.cluster_sizes} and "
                f"cluster_ranks={self.cluster_ranks}; "
                f"expected sizes >= 0 and ranks from 0 to dim={self.dim}. "
                f"{_DAMAGED}"
            )
        object.__setattr__(self, "row_ends", tuple(accumulate(self.cluster_sizes)))
        object.__setattr__(self, "coefficient_ends", tuple(accumulate(self.coefficient_counts)))
        object.__setattr__(self, "basis_ends", tuple(accumulate(self.basis_ranks)))
        ends = zip(self.coefficient_ends, self.row_ends, self.cluster_ranks, strict=True)
        object.__setattr__(self, "origins", tuple(end - row_end * rank for end, row_end, rank in ends))

    @staticmethod
    def from_dict(fields: Any) -> FactorLayout:
        """The layout that ``to_dict`` described, refusing anything else."""
        if isinstance(fields, dict) and "cluster_bands" in fields:
            return PackedLayout.from_packed(fields)
        expected = {"dim", "cluster_sizes", "cluster_ranks"}
        if (
            not isinstance(fields, dict)
            or set(fields) != expected
            or not all(isinstance(fields[key], list | tuple) for key in ("cluster_sizes", "cluster_ranks"))
        ):
            raise ProjClustCheckpointError(
                f"the checkpoint's factored table is described by {fields!r}; expected {sorted(expected)}, the "
                "last two as lists. The config.json is damaged: fetch the checkpoint again."
            )
        return FactorLayout(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {
            "dim": self.dim,
            "cluster_sizes": list(self.cluster_sizes),
            "cluster_ranks": list(self.cluster_ranks),
        }

    @property
    def num_clusters(self) -> int:
        """Number of clusters, k."""
        return len(self.cluster_sizes)

    @property
    def num_embeddings(self) -> int:
        """Number of tokens, n."""
        return sum(self.cluster_sizes)

    @property
    def coefficient_counts(self) -> list[int]:
        """Stored coordinates of each cluster, n_i * j_i."""
        return [size * rank for size, rank in zip(self.cluster_sizes, self.cluster_ranks, strict=True)]

    @property
    def basis_ranks(self) -> list[int]:
        """Stored basis vectors of each cluster: j_i, and none where the rows are kept as they are."""
        return [rank if rank < self.dim else 0 for rank in self.cluster_ranks]

    @property
    def num_parameters(self) -> int:
        """Stored numbers of the whole table, the sum of j_i * (n_i + d)."""
        return sum(self.coefficient_counts) + sum(self.basis_ranks) * self.dim


@dataclass(frozen=True)
class Band:
    """Coordinates of the rows of a cluster that are stored alike.

    Args:
        num_coordinates: How many there are, 1 or more.
        per_byte: Coordinates that one byte stands for, so that each takes 8 / per_byte bits.
        basis_bits: Bits of a number in the basis vectors of these coordinates, one of ``BASIS_BITS``.
    """

    num_coordinates: int
    per_byte: int
    basis_bits: int

    @property
    def num_bytes(self) -> int:
        """Bytes of a row that stand for these coordinates."""
        return -(-self.num_coordinates // self.per_byte)

    def vector_bytes(self, dim: int) -> int:
        """Bytes of a basis vector of width ``dim``."""
        return -(-dim * self.basis_bits // 8)


@dataclass(frozen=True)
class PackedLayout(FactorLayout):
    """Shapes of a factored table in few bits: the rows of cluster i are a scale of one byte, and bands of coordinates.

    Args:
        dim: Width of the table, d.
        cluster_sizes: Number of tokens in each cluster, n_1..n_k, at most 256 clusters.
        cluster_ranks: Number of coordinates of a row in each cluster, those of its bands together.
        cluster_bands: Bands of each cluster, in the order of their coordinates; a cluster of rank 0 has none.
        checksums: CRC-32 of each packed tensor, by name.
        scale_mean: Mean of the scales of coordinates, each weighted by its place, which a cast hardly changes.

    Raises:
        ProjClustCheckpointError: If the numbers do not describe a table.
    """

    cluster_bands: tuple[tuple[Band, ...], ...]
    checksums: dict[str, int] = field(default_factory=dict, compare=False)
    scale_mean: float | None = field(default=None, compare=False)
    row_bytes: tuple[int, ...] = field(init=False, repr=False, compare=False)  # of a row in each cluster
    basis_bytes: tuple[int, ...] = field(init=False, repr=False, compare=False)  # of the basis of each cluster
    coefficient_byte_ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # where each cluster ends
    basis_byte_ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # among the bytes of both

    def __post_init__(self) -> None:
        """Check the numbers before any memory is reserved for them."""
        super().__post_init__()
        object.__setattr__(self, "cluster_bands", tuple(map(tuple, self.cluster_bands)))
        if len(self.cluster_sizes) > MOST_PACKED_CLUSTERS:
            raise ProjClustCheckpointError(
                f"the factored table in few bits has {len(self.cluster_sizes)} clusters; expected at most "
                f"{MOST_PACKED_CLUSTERS}. {_DAMAGED}"
            )
        for band in (band for bands in self.cluster_bands for band in bands):
            is_whole = all(type(number) is int for number in (band.num_coordinates, band.per_byte, band.basis_bits))
            if not is_whole or band.num_coordinates < 1:
                raise ProjClustCheckpointError(
                    f"the factored table has {band}; expected whole numbers >= 1. {_DAMAGED}"
                )
            if band.per_byte not in PER_BYTE:
                raise ProjClustCheckpointError(
                    f"a cluster_bands entry has per_byte={band.per_byte}; expected one of {PER_BYTE} coordinates a "
                    f"byte. {_DAMAGED}"
                )
            if band.basis_bits not in BASIS_BITS:
                raise ProjClustCheckpointError(
                    f"a cluster_bands entry has basis_bits={band.basis_bits}; expected one of {BASIS_BITS}. {_DAMAGED}"
                )
        for numbers in ([band.per_byte for band in bands] for bands in self.cluster_bands):
            if numbers != sorted(set(numbers)):
                raise ProjClustCheckpointError(
                    f"the bands of a cluster have per_byte={numbers}; expected rising numbers. {_DAMAGED}"
                )
        widths = [sum(band.num_bytes for band in bands) + bool(bands) for bands in self.cluster_bands]  # with the scale
        object.__setattr__(self, "row_bytes", tuple(widths))
        of_vectors = (
            sum(band.num_coordinates * band.vector_bytes(self.dim) for band in bands) if rank < self.dim else 0
            for bands, rank in zip(self.cluster_bands, self.cluster_ranks, strict=True)
        )
        object.__setattr__(self, "basis_bytes", tuple(of_vectors))
        sizes = [size * width for size, width in zip(self.cluster_sizes, self.row_bytes, strict=True)]
        object.__setattr__(self, "coefficient_byte_ends", tuple(accumulate(sizes)))
        object.__setattr__(self, "basis_byte_ends", tuple(accumulate(self.basis_bytes)))

    @staticmethod
    def of_bands(
        dim: int,
        cluster_sizes: Sequence[int],
        cluster_bands: Sequence[Sequence[Band]],
        checksums: dict[str, int] | None = None,
        scale_mean: float | None = None,
    ) -> PackedLayout:
        """The layout whose ranks are those that the bands add up to."""
        ranks = tuple(sum(band.num_coordinates for band in bands) for bands in cluster_bands)
        bands = tuple(map(tuple, cluster_bands))
        return PackedLayout(dim, tuple(cluster_sizes), ranks, bands, checksums or {}, scale_mean)

    @staticmethod
    def from_packed(fields: dict[str, Any]) -> PackedLayout:
        """The layout that ``to_dict`` described, refusing anything else."""
        bands, checksums = fields.get("cluster_bands"), fields.get("checksums")
        is_described = (
            set(fields) == {"dim", "cluster_sizes", "cluster_bands", "checksums", "scale_mean"}
            and isinstance(fields["cluster_sizes"], list)
            and isinstance(bands, list)
            and all(isinstance(cluster, list) for cluster in bands)
            and all(isinstance(band, dict) and set(band) == _BAND_FIELDS for cluster in bands for band in cluster)
            and all(type(band["num_coordinates"]) is int for cluster in bands for band in cluster)
            and isinstance(checksums, dict)
            and set(checksums) == set(PACKED_NAMES)
            and all(type(checksum) is int for checksum in checksums.values())
            and type(fields["scale_mean"]) in (float, int)
            and 0 <= fields["scale_mean"] <= float_info.max  # which NaN is not
        )
        if not is_described:
            raise ProjClustCheckpointError(
                f"the checkpoint's factored table in few bits is described by {fields!r}; expected dim, cluster_sizes, "
                f"cluster_bands with {sorted(_BAND_FIELDS)} of each, checksums of {', '.join(PACKED_NAMES)}, and "
                f"scale_mean. {_DAMAGED}"
            )
        made = [[Band(**band) for band in cluster] for cluster in fields["cluster_bands"]]
        return PackedLayout.of_bands(fields["dim"], fields["cluster_sizes"], made, checksums, fields["scale_mean"])

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {
            "dim": self.dim,
            "cluster_sizes": list(self.cluster_sizes),
            "cluster_bands": [[asdict(band) for band in bands] for bands in self.cluster_bands],
            "checksums": dict(self.checksums),
            "scale_mean": self.scale_mean,
        }

    @cached_property
    def codebooks(self) -> list[tuple[str, int]]:
        """The codebooks in use, in the order in which they are stored: what they are of, and numbers in a word.

        One number a byte needs no codebook. Of bases the codebook is that of 4 bits, two numbers a byte.
        """
        bands = [band for cluster in self.cluster_bands for band in cluster]
        of_rows = sorted({band.per_byte for band in bands} - {1})
        of_bases = any(
            band.basis_bits == 4
            for cluster, rank in zip(self.cluster_bands, self.cluster_ranks, strict=True)
            for band in cluster
            if rank < self.dim
        )
        return [("rows", width) for width in of_rows] + ([("bases", 2)] if of_bases else [])

    def num_bytes(self, item_bytes: int) -> dict[str, int]:
        """Bytes of each tensor of the table as it is stored, with floating numbers of ``item_bytes``."""
        return {
            "coefficients": self.coefficient_byte_ends[-1],
            "bases": self.basis_byte_ends[-1],
            "codebooks": CODEBOOK_WORDS * sum(width for _, width in self.codebooks),
            "clusters": self.num_embeddings,
            "scales": sum(self.cluster_ranks) * item_bytes,
        }
