"""A dense table in, the tensors of a factored one out: weights of rows, the call of the solver, the record.

This file knows the solvers and how a factored table is stored. It knows no models and writes no files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .layout_projclust import FactorLayout
from .losses import share
from .options import FactoringOptions
from .packing import pack
from .quantizing import quantize
from .resources import Resources
from .searching import bands_of, search_of
from .solvers import (
    Checkpoint,
    ProjectiveClustering,
    Rows,
    Table,
    cluster,
)
from .token_counts import count_tokens

logger = logging.get_logger(__name__)
_SMOOTHING = 0.1
_LEAST_NORM = 1e-6  # of the mean norm: smaller rows are nearly nothing, and their weights would be beyond float32
_Stored = tuple[FactorLayout, dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Factors:
    """A factored table, as it is stored.

    Attributes:
        layout: Shapes of the factors.
        tensors: As in ``table_projclust``, in the table's dtype; or, in few bits, as in ``packed_projclust``.
        record: How they were found and what they keep, for the configuration.
    """

    layout: FactorLayout
    tensors: dict[str, Tensor]
    record: dict[str, Any]


def factor_table(
    table: Table, options: FactoringOptions, resources: Resources, tokenizer: PreTrainedTokenizerBase | None = None
) -> Factors:
    """Factor a table, with a progress bar.

    Args:
        table: Rows, shape (n, dim), of any floating dtype: a tensor, or a file that is read in blocks.
        options: How to factor it.
        resources: What may be used for it.
        tokenizer: The tokenizer whose ids are the rows, where the options count tokens by one.

    Returns:
        The factors. ``record`` has the options, the share of energy that each cluster keeps (1 - squared error of
        its rows over their squared norm), the relative squared error of the table, and the same of the weighted
        rows, all after rounding to the table's dtype; for p < 2 also the relative entrywise l_p error.

    Raises:
        ValueError: If the table is not finite, or too small for the options, or its factors overflow its dtype, or
            the limit on memory is too small for it.
    """
    num_tokens, dim = table.shape
    search_of(table, options)  # refuses what cannot be done before tokens are counted
    use = count_tokens(options.token_counts, tokenizer, num_tokens)
    described = options.record()["token_counts"]
    with logging.tqdm(desc=f"Clustering {num_tokens:,} tokens (token counts: {described})", unit=" rounds") as progress:

        def show(error: float) -> None:
            if math.isfinite(error):
                progress.set_postfix_str(f"relative error {error:.4f}", refresh=False)
            progress.update()

        found = cluster_table(table, options, resources, use, show)
    p = options.p or 2.0
    if options.is_packed:
        bands = bands_of(found.clustering, options)
        if not any(bands):
            raise ValueError(
                f"the table of {num_tokens:,} x {dim} keeps not one coordinate in few bits; expected rows that are not "
                "all zeros, and room for some. Give more bytes, or leave the table dense."
            )
        stored: _Stored = quantize(found.rows, found.weights, found.clustering, bands, p, options.seed)
    else:
        stored = pack(found.rows, found.weights, found.clustering, p)
    layout, tensors, errors = stored
    is_finite = all(tensor.isfinite().all() for tensor in tensors.values())
    if not (is_finite and math.isfinite(errors["relative_squared_error"])):
        raise ValueError(
            f"the factors do not fit in {table.dtype}: some, or rows that they give, are beyond its largest number. "
            "Expected a table whose rows have smaller norms; load the model in a dtype of a larger range, such as "
            "dtype=torch.float32."
        )
    size_bytes = sum(tensor.nbytes for name, tensor in tensors.items() if name != "rows")
    if size_bytes >= num_tokens * dim * table.dtype.itemsize:
        logger.warning(
            "the factors take %s bytes, and the table %s: nothing is saved. Use a smaller rank, or give compression.",
            f"{size_bytes:,}",
            f"{num_tokens * dim * table.dtype.itemsize:,}",
        )
    return Factors(layout, tensors, {**options.record(), **errors})


@dataclass(frozen=True)
class ClusteredTable:
    """A table whose rows are clustered, before it is packed.

    Attributes:
        rows: The table, unweighted.
        weights: What the error of each row counts, shape (n,).
        clustering: The clusters of the weighted rows, and their bases.
    """

    rows: Rows
    weights: Tensor
    clustering: ProjectiveClustering


def cluster_table(
    table: Table,
    options: FactoringOptions,
    resources: Resources,
    use: Tensor,
    on_round: Callable[[float], None] | None = None,
) -> ClusteredTable:
    """Cluster the rows of a table, each weighted by the use of its token and its norm.

    Args:
        table: Rows, shape (n, dim), of any floating dtype: a tensor, or a file that is read in blocks.
        options: How to factor it.
        resources: What may be used for it.
        use: Share of each token in running text, shape (n,), float64.
        on_round: Called after each round, with the least cost of its start so far over the sum of norm^p of the
            weighted rows; infinity before its clusters are merged.

    Returns:
        The rows, their weights and their clustering.

    Raises:
        ValueError: If the table is not finite, or too small for the options, or the limit on memory is too small for
            it, or the checkpoint is of another run.
    """
    (num_tokens, dim), p = table.shape, options.p or 2.0
    search = search_of(table, options)
    if isinstance(table, Tensor) and resources.device is not None:
        table = table.to(resources.device)
    plain = Rows(table, device=resources.device, block_rows=resources.block_rows(num_tokens, dim, search.counts[-1]))
    _check_finite(plain.norms)
    weights = row_weights(use.to(plain.device), plain.norms, options.count_exponent, options.norm_exponent or 0.0, p)
    rows = plain.weighted(weights, p)
    energy = float(rows.norms.pow(p).sum())
    checkpoint = None
    if resources.checkpoint is not None:
        owner = {**options.record(), "rows": num_tokens, "dim": dim, "table": _fingerprint(table, use)}
        checkpoint = Checkpoint(resources.checkpoint, owner)
    clustering = cluster(
        rows,
        num_clusters=search.counts,
        rule=search.rule,
        final_rule=search.final_rule,
        p=p,
        seed=options.seed,
        num_starts=options.num_starts,
        max_rounds=options.max_rounds,
        tolerance=options.tolerance,
        on_round=None if on_round is None else lambda cost: on_round(share(cost, energy)),
        checkpoint=checkpoint,
    )
    return ClusteredTable(plain, weights, clustering)


def _fingerprint(table: Table, use: Tensor) -> str:
    """A hash of some hundred rows and of the use of tokens, the same on every device and number of threads."""
    digest = hashlib.sha256()
    for row in range(0, table.shape[0], max(1, table.shape[0] // 128)):
        digest.update(table[row : row + 1].cpu().float().numpy().tobytes())
    digest.update(use.cpu().float().numpy().tobytes())
    return digest.hexdigest()


def row_weights(use: Tensor, norms: Tensor, count_exponent: float, norm_exponent: float, p: float = 2.0) -> Tensor:
    """What the error of each row counts: (use + 0.1)^count_exponent / norm^norm_exponent.

    Use is that of a token relative to the mean token. The constant keeps rare tokens from counting nothing; it and
    the default exponents were chosen by cosines of sentence embeddings on WikiText-2 and MRPC.

    Args:
        use: Share of each token in running text, shape (n,), float64.
        norms: Norm of each row, shape (n,), float64.
        count_exponent: Power of the use.
        norm_exponent: Power of the norm: 0 for absolute errors, 2 for relative squared ones. No row counts by a norm
            of less than a millionth of the mean.
        p: Power of the errors that are weighted.

    Returns:
        Weights with which the mean of norm^p is 1, shape (n,), float64; 0 for a row of zeros.
    """
    relative = norms / norms.mean().clamp(min=torch.finfo(torch.float64).tiny)
    weights = (use * len(use) + _SMOOTHING).pow(count_exponent)
    weights = torch.where(relative > 0, weights / relative.clamp(min=_LEAST_NORM).pow(norm_exponent), 0)
    return weights / (weights * norms.pow(p)).mean().clamp(min=torch.finfo(torch.float64).tiny)


def _check_finite(norms: Tensor) -> None:
    bad = (~norms.isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"the vocabulary table has NaN or infinity in {len(bad):,} of {len(norms):,} rows, the first at token id "
            f"{int(bad[0])}; expected finite numbers. Repair the model, or load it in float32 if it overflowed."
        )
