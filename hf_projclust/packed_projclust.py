"""A factored vocabulary table in few bits: how its bytes are read, a few rows at a time, never the whole table.

Product quantisation of the coordinates, on top of the factors. The rows of a cluster are stored as

    scale    one byte b: 2^((b - 128) / 16), or 0 where b is 0; the group that it scales is the row
    bands    a byte for 1, 2, 3, 4, 6, 8 or 16 coordinates, which names a word of 256; of one it is the number itself

and a coordinate is word * scale of the row * scale of the coordinate. Bases have 16 or 8 bits a number, or 4: a byte
names a pair. All tensors but ``scales`` are integers, which no cast changes. They cannot be trained: ``dequantize``
gives the float factors that can.

How the bytes were chosen is not known here. This file travels with a checkpoint: it imports torch, transformers and its
siblings only.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as take
from transformers import initialization as init
from transformers.utils import logging

from .layout_projclust import (
    CODEBOOK_WORDS,
    PACKED_NAMES,
    Band,
    FactorLayout,
    PackedLayout,
)
from .table_projclust import FACTOR_NAMES, FactoredTable

logger = logging.get_logger(__name__)
WORD_STEPS = 24  # steps of a word's numbers in one deviation of a coordinate
SCALE_STEPS = 16  # steps of a row's scale in a factor of two
SCALE_ZERO = 128
BASIS_STEPS = {16: 32767, 8: 127, 4: 127}
_HEAD_ROWS = 8192  # rows that a head unpacks at once


class PackedTable(FactoredTable):
    """The tensors of a factored table in few bits, in place of those of floating numbers.

    Attributes:
        coefficients: Rows, cluster after cluster, uint8, flat: cluster i is a block (n_i, row bytes).
        bases: Basis vectors, cluster after cluster and band after band, uint8, flat.
        codebooks: Words of the codebooks in use, int8, flat: each is a block (256, numbers in a word).
        clusters: Cluster of each token, uint8, shape (n,).
        scales: Scale of each coordinate, cluster after cluster, shape (sum of ranks,), in the table's dtype.
        rows: Stored row of each token, int32, shape (n,); it follows from ``clusters`` and is not saved.
    """

    layout: PackedLayout
    codebooks: Tensor
    clusters: Tensor
    scales: nn.Parameter
    stored_names = (*PACKED_NAMES, "scales")
    # Scales first: the first parameter of a model is taken for one of floating numbers, as by sentence-transformers.
    factor_names = ("scales", *FACTOR_NAMES)
    copied_names = ("rows", "clusters", "codebooks")

    def _set_factors(self, layout: FactorLayout, device: torch.device, dtype: torch.dtype) -> None:
        self.layout = layout  # type: ignore[assignment]
        self._is_hf_initialized = False  # a dense weight that was filled before is gone
        sizes = self.layout.num_bytes(dtype.itemsize)
        empty = {name: torch.empty(sizes[name], device=device, dtype=torch.uint8) for name in PACKED_NAMES}
        empty["scales"] = torch.empty(sum(layout.cluster_ranks), device=device, dtype=dtype)
        for name in self.factor_names:
            self.register_parameter(name, nn.Parameter(empty[name], requires_grad=False))
        self.register_buffer("codebooks", empty["codebooks"].view(torch.int8))
        self.register_buffer("clusters", empty["clusters"])
        rows = torch.arange(layout.num_embeddings, device=device, dtype=torch.int32)
        self.register_buffer("rows", rows, persistent=False)

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take up tensors of the layout's shapes, by their names in ``stored_names``, without a copy."""
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=False) if name in self.factor_names else tensor)
        self.order_rows()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows that a look-up gives."""
        return self.scales.dtype

    @property
    def requires_grad(self) -> bool:
        """No: whole numbers have no gradient."""
        return False

    def order_rows(self) -> None:
        """Find the stored row of each token: within a cluster, rows stand in the order of tokens."""
        self.rows = self.clusters.argsort(stable=True).argsort().int()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As in the base; rows are in no file and follow from the clusters that were loaded."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.order_rows()

    def note_tensors(self) -> None:
        """Put into the layout what tells the tensors: checksums of codes, where it has none, and the mean of scales."""
        checksums = self.layout.checksums or {name: checksum(getattr(self, name)) for name in PACKED_NAMES}
        self.layout = replace(self.layout, checksums=checksums, scale_mean=self._scale_mean())

    def _scale_mean(self) -> float:
        """The mean of the scales that the layout keeps of them."""
        places = torch.arange(1, len(self.scales) + 1, device=self.scales.device, dtype=torch.float64)
        return float((places / max(1, len(places)) * self.scales.detach().double()).sum()) / max(1, len(places))

    def changed_codes(self) -> str | None:
        """Which packed tensor is not the one that the layout has a checksum of, in words; None if all are."""
        for name in PACKED_NAMES:
            tensor = getattr(self, name)
            if name in self.layout.checksums and not tensor.is_meta:
                found, expected = checksum(tensor), self.layout.checksums[name]
                if found != expected:
                    return f"{name} has the CRC-32 {found}; expected {expected}, which its config.json names"
        return None

    def damage(self) -> str | None:
        """What is wrong with the numbers that a checkpoint gave, with the name of the tensor; None if nothing is."""
        if changed := self.changed_codes():
            return changed
        if not self.clusters.is_meta:
            sizes = self.clusters.bincount(minlength=self.layout.num_clusters).tolist()
            if sizes != list(self.layout.cluster_sizes):
                return f"clusters has {sizes} tokens; expected {list(self.layout.cluster_sizes)} as in its config.json"
        if self.scales.is_meta:
            return None
        if not bool((self.scales.isfinite() & (self.scales >= 0)).all()):
            return "scales has numbers that are negative, infinite or NaN; expected scales of coordinates"
        found, expected = self._scale_mean(), self.layout.scale_mean
        limits = torch.finfo(self.dtype)
        if expected is not None and abs(found - expected) > limits.eps * (2 * abs(expected) + limits.smallest_normal):
            return f"scales has the weighted mean {found:.9g}; expected {expected:.9g}, which its config.json names"
        return None

    def train(self, mode: bool = True) -> Any:
        """As in the base; says once that this table stays as it is."""
        if mode:
            logger.warning_once(
                "The vocabulary table is in few bits, which are frozen: training leaves it as it is. Call "
                "model.dequantize_factors() before training for float factors that can be trained."
            )
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Refuse what whole numbers cannot have."""
        if requires_grad:
            raise RuntimeError(_FROZEN)
        return super().requires_grad_(False)

    def init_factors(self, std: float) -> None:
        """Fill what no checkpoint has filled: random bytes, of which the rows have deviation ``std`` or so."""
        is_fresh = not getattr(self.coefficients, "_is_hf_initialized", False)
        for name in FACTOR_NAMES:
            parameter = getattr(self, name)
            if not getattr(parameter, "_is_hf_initialized", False):
                init.copy_(parameter, torch.randint(256, parameter.shape, dtype=torch.uint8))
        sizes = torch.tensor(self.layout.cluster_sizes)
        init.copy_(self.clusters, torch.arange(len(sizes)).to(torch.uint8).repeat_interleave(sizes))
        init.copy_(self.codebooks, torch.randint(-64, 64, self.codebooks.shape, dtype=torch.int8))
        init.constant_(self.scales, std / max(1, max(self.layout.cluster_ranks)) ** 0.5)
        if is_fresh:  # any bytes will do, until they are saved
            self.layout = replace(self.layout, checksums={}, scale_mean=None)

    def blocks(self) -> list[tuple[Tensor, Tensor | None]]:
        """Every cluster as it is stored: its rows (n_i, row bytes), and the bytes of its basis or None."""
        return [self.block(number) for number in range(self.layout.num_clusters)]

    def block(self, number: int) -> tuple[Tensor, Tensor | None]:
        """One cluster of ``blocks()``, at the cost of one."""
        layout = self.layout
        size, width = layout.cluster_sizes[number], layout.row_bytes[number]
        end = layout.coefficient_byte_ends[number]
        return self.coefficients[end - size * width : end].view(size, width), self.stored_basis(number)

    def vector(self, number: int, row: int) -> Tensor:
        """As in the base."""
        layout, width = self.layout, self.layout.row_bytes[number]
        first = layout.coefficient_byte_ends[number] - (layout.row_ends[number] - row) * width
        stored = self.coefficients[first : first + width].unsqueeze(0)  # (1, row bytes)
        return self.reconstruct(number, stored, self.stored_basis(number))

    def stored_basis(self, number: int) -> Tensor | None:
        """As in the base, as bytes, flat."""
        layout = self.layout
        end = layout.basis_byte_ends[number]
        is_whole = layout.cluster_ranks[number] == layout.dim
        return None if is_whole else self.bases[end - layout.basis_bytes[number] : end]

    def unpack_rows(self, number: int, stored: Tensor) -> Tensor:
        """Coefficients (m, j_i) of some rows of a cluster, given as they are stored."""
        bands = self.layout.cluster_bands[number]
        if not bands:
            return self.scales.new_zeros(len(stored), 0)
        books = {band.per_byte: self._codebook("rows", band.per_byte) for band in bands if band.per_byte > 1}
        words = read_words(stored[:, 1:], bands, books, self.scales.dtype)
        return words * read_scales(stored[:, :1]).to(words) * self._coordinate_scales(number)

    def unpack_basis(self, number: int, stored_basis: Tensor) -> Tensor:
        """The basis (j_i, d) of a cluster, given as it is stored."""
        bands, dim = self.layout.cluster_bands[number], self.layout.dim
        parts = stored_basis.split([band.num_coordinates * band.vector_bytes(dim) for band in bands])
        vectors = []
        for part, band in zip(parts, bands, strict=True):
            codes = part.view(band.num_coordinates, band.vector_bytes(dim))
            pairs = self._codebook("bases", 2) if band.basis_bits == 4 else None
            vectors.append(read_vectors(codes, band.basis_bits, pairs, self.scales.dtype)[:, :dim])
        return torch.cat(vectors) if vectors else self.scales.new_zeros(0, dim)

    def all_bases(self) -> Tensor:
        """The bases of all clusters that have one, stacked, shape (sum of their ranks, d)."""
        bases = [
            self.unpack_basis(number, basis) for number, (_, basis) in enumerate(self.blocks()) if basis is not None
        ]
        return torch.cat([self.scales.new_zeros(0, self.layout.dim), *bases])

    def padded_rows(self, stored_rows: Tensor, clusters: Tensor) -> Tensor:
        """As in the base: each cluster unpacks a row for every token, and the right one is kept."""
        layout, widest = self.layout, max(self.layout.cluster_ranks)
        padded = self.scales.new_zeros(stored_rows.shape[0], widest)
        for number, (size, rank) in enumerate(zip(layout.cluster_sizes, layout.cluster_ranks, strict=True)):
            if size and rank:
                local_rows = (stored_rows - layout.row_ends[number] + size).clamp(0, size - 1)
                rows = self.unpack_rows(number, self.block(number)[0].index_select(0, local_rows))
                rows = torch.nn.functional.pad(rows, (0, widest - rank))
                padded = torch.where((clusters == number).unsqueeze(1), rows, padded)
        return padded

    def multiply_rows(self, number: int, stored: Tensor, coordinates: Tensor, out: Tensor | None = None) -> Tensor:
        """As in the base, unpacking some thousand rows at a time."""
        # Older compilers cannot split what has no rows.
        parts = stored.split(_HEAD_ROWS) if self.layout.cluster_sizes[number] else (stored,)
        if out is None:
            return torch.cat([coordinates @ self.unpack_rows(number, part).T for part in parts], dim=-1)
        for part, place in zip(parts, out.split(_HEAD_ROWS, dim=-1), strict=True):
            torch.matmul(coordinates, self.unpack_rows(number, part).T, out=place)
        return out

    def float_factors(self) -> tuple[FactorLayout, dict[str, Tensor]]:
        """The layout and the tensors of the float table that this one stands for, in its dtype."""
        layout = self.layout
        rows = [self.unpack_rows(number, stored).flatten() for number, (stored, _) in enumerate(self.blocks())]
        return (
            FactorLayout(layout.dim, layout.cluster_sizes, layout.cluster_ranks),
            {"coefficients": torch.cat(rows), "bases": self.all_bases(), "rows": self.rows},
        )

    def resize(self, num_embeddings: int, new_rows: Tensor) -> None:
        """Refuse it."""
        raise ValueError(
            f"the vocabulary table of {self.layout.num_embeddings:,} tokens is in few bits, and was to be resized to "
            f"{num_embeddings:,}; expected float factors. Call model.dequantize_factors() first, or resize the dense "
            "model and compress it again."
        )

    def set_rows(self, token_ids: Tensor, vectors: Tensor) -> None:
        """Refuse it."""
        raise ValueError(_FROZEN)

    def _coordinate_scales(self, number: int) -> Tensor:
        """Scale of each coordinate of a cluster, shape (j_i,)."""
        end = sum(self.layout.cluster_ranks[: number + 1])
        return self.scales[end - self.layout.cluster_ranks[number] : end] / WORD_STEPS

    def _codebook(self, of: str, width: int) -> Tensor:
        """Words of a codebook, shape (256, numbers in a word)."""
        first = 0
        for key in self.layout.codebooks:
            size = CODEBOOK_WORDS * key[1]
            if key == (of, width):
                return self.codebooks[first : first + size].view(CODEBOOK_WORDS, width).to(self.scales.dtype)
            first += size
        raise KeyError((of, width))


def read_scales(scale_bytes: Tensor) -> Tensor:
    """The scales of rows that bytes stand for, in the shape of these, float32; 0 of a row of zeros."""
    return torch.exp2((scale_bytes.float() - SCALE_ZERO) / SCALE_STEPS) * (scale_bytes > 0)


def read_words(codes: Tensor, bands: Sequence[Band], codebooks: Mapping[int, Tensor], dtype: torch.dtype) -> Tensor:
    """Read the words of rows.

    Args:
        codes: The bytes of the bands, shape (m, row bytes - 1), uint8.
        bands: The bands, at least one.
        codebooks: Words by the numbers in them, shape (256, width).
        dtype: Dtype of the result.

    Returns:
        Coordinates in steps, shape (m, rank): ``WORD_STEPS`` of them are a deviation.
    """
    parts = zip(codes.split([band.num_bytes for band in bands], dim=1), bands, strict=True)
    words = [
        _signed(part, dtype) if band.per_byte == 1 else take(part.int(), codebooks[band.per_byte].to(dtype)).flatten(1)
        for part, band in parts
    ]
    return torch.cat([word[:, : band.num_coordinates] for word, band in zip(words, bands, strict=True)], dim=1)


def read_vectors(codes: Tensor, bits: int, pairs: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Read basis vectors.

    Args:
        codes: The bytes of each vector, shape (j, bytes), uint8.
        bits: Bits of a number, 16, 8 or 4.
        pairs: The words of 4 bits, shape (256, 2); None of 16 and 8.
        dtype: Dtype of the result.

    Returns:
        Numbers from -1 to 1, shape (j, d); of 4 bits and an odd width d one more.
    """
    if pairs is not None:
        numbers = take(codes.int(), pairs.to(dtype)).flatten(1)
    elif bits == 8:
        numbers = _signed(codes, dtype)
    else:
        numbers = _signed(codes[:, 1::2], torch.float32) * 256 + codes[:, ::2].float()
    return (numbers / BASIS_STEPS[bits]).to(dtype)


def _signed(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers from -128 to 127, without a view of another dtype, which torch.jit.trace cannot have."""
    return (codes ^ 128).to(dtype) - 128


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes of a tensor of whole numbers of one byte."""
    return zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


_FROZEN = (
    "the vocabulary table is in few bits, which cannot be trained or written; expected float factors. Call "
    "model.dequantize_factors() first."
)
