"""Product quantisation by faiss: a byte names one of 256 words for some neighbouring coordinates of a row.

The codebooks are those of k-means without weights (Jegou et al. 2011, IEEE TPAMI 33(1)). No rotation is learned (OPQ),
and faiss draws 65,536 rows to train on where there are more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...whole_numbers import check_whole
from ..extras import needed
from .tables import RivalTable, check_table

WORDS = 256
_LEAST_WIDTH = 8  # of a word as faiss sees it: its k-means takes ten times as long for four coordinates or fewer


def product_quantize(table: Tensor, *, per_byte: int, apart: bool = False, seed: int = 0) -> RivalTable:
    """Quantise rows, or their directions, by words of ``per_byte`` neighbouring coordinates.

    Args:
        table: Rows, shape (n, dim), 256 or more.
        per_byte: Coordinates of a word; the last word of a row may be shorter.
        apart: Whether lengths are kept apart, in half precision: directions are quantised, and each row gets the
            length of the least squared error.
        seed: Seed of k-means. Equal arguments on one machine give equal results.

    Returns:
        The table; its bytes are a code for each word, the codebooks in the table's dtype, and 2 a row for lengths.

    Raises:
        ValueError: If an option is out of its range, or the table has fewer than 256 rows.
        ModuleNotFoundError: If faiss is not installed.
    """
    check_table(table)
    num_rows, dim = table.shape
    check_whole("per_byte", per_byte, 1, dim)
    check_whole("seed", seed, 0, 2**31 - 1)
    if num_rows < WORDS:
        raise ValueError(
            f"a table of {num_rows:,} rows; expected {WORDS} or more, as many as a codebook has words. A table this "
            "small is better rounded."
        )
    faiss = needed("faiss")
    rows = table.float().cpu()
    lengths = rows.norm(dim=1, keepdim=True)
    given = rows / lengths.clamp(min=torch.finfo(torch.float32).tiny) if apart else rows
    parts = pad(given, (0, -dim % per_byte)).view(num_rows, -1, per_byte)  # (n, dim) -> (n, words, per_byte)
    width = max(per_byte, _LEAST_WIDTH)
    # Columns of zeros change no distance, and no codebook stores them.
    padded = pad(parts, (0, width - per_byte)).reshape(num_rows, -1).contiguous().numpy()
    quantizer = faiss.ProductQuantizer(padded.shape[1], parts.shape[1], 8)
    quantizer.cp.seed = seed
    quantizer.cp.min_points_per_centroid = 1  # else it warns, on standard error, of tables below 9,984 rows
    quantizer.train(padded)
    codes = quantizer.compute_codes(padded)
    words = torch.from_numpy(faiss.vector_to_array(quantizer.centroids)).to(table.dtype).float()
    faiss.copy_array_to_vector(words.numpy(), quantizer.centroids)
    decoded = torch.from_numpy(quantizer.decode(codes)).view(num_rows, -1, width)
    rebuilt = decoded[:, :, :per_byte].reshape(num_rows, -1)[:, :dim].contiguous()
    if apart:
        energy = rebuilt.square().sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        rebuilt *= ((rows * rebuilt).sum(dim=1, keepdim=True) / energy).half().float()
    size_bytes = product_quantized_bytes(num_rows, dim, per_byte, table.dtype.itemsize, apart=apart)
    return RivalTable(f"{per_byte} a byte", rebuilt, size_bytes)


def product_quantized_bytes(num_rows: int, dim: int, per_byte: int, item_bytes: int, *, apart: bool = False) -> int:
    """Bytes of a quantised table: as of ``product_quantize``, for a table of num_rows x dim of ``item_bytes`` each."""
    return num_rows * (-(-dim // per_byte) + 2 * apart) + WORDS * dim * item_bytes
