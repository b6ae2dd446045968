"""Projective clustering and its rivals at equal bytes: one table, one run, one model that each table is put into.

Measured is what the model loses without training. How the figures compare is in ``points``.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ...compression import compress
from ...factoring import row_weights
from ...inputs import own_model, tables_to_factor
from ...loading import load_tokenizer
from ...losses import share
from ...options import TokenCounts
from ...token_counts import check_sources, count_tokens
from ...whole_numbers import check_whole
from ..extras import needed
from ..fidelity import bundled_sentences, embed_sentences, mean_cosine
from .contenders import RivalTask, contenders
from .points import DENSE, OURS, OURS_FLOAT, RivalAbsence, RivalPoint

RATIOS = (2, 4, 8, 16, 20)
_ROW_BYTES = 4  # where the row of a token stands, of float factors


def compare_rivals(
    source: PreTrainedModel | str | Path,
    *,
    token_counts: TokenCounts = "tokenizer",
    ratios: Sequence[float] = RATIOS,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    score: Callable[[Any], float] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    count_exponent: float = 0.5,
    norm_exponent: float = 1.0,
) -> tuple[list[RivalPoint], list[RivalAbsence]]:
    """Measure projective clustering and every rival on the table of one model, with a progress bar.

    Args:
        source: A dense model, which is left untouched, or a folder or Hub id to load one from.
        token_counts: How often tokens are used, as of ``compress``; all methods that count tokens are given the same.
        ratios: How many times smaller the table is to be, each above 1; the most bytes that methods may take.
        texts: Texts whose embeddings are compared; by default the bundled sentences.
        seed: Seed of clusterings and codebooks.
        score: A task's figure of a model, of which more is better.
        tokenizer: The model's tokenizer; by default that of its folder or name.
        count_exponent: As of ``compress``; weighs rows for ours, and for the weighted SVD of frequency blocks.
        norm_exponent: As of ``compress``, likewise.

    Returns:
        What was measured, the dense model first and then ours; and what could not be had.

    Raises:
        ValueError: If an option is out of its range, or the model cannot be compressed.
        TypeError: If the source is neither a Transformers model nor a path.
        FileNotFoundError: If the path is neither a folder nor a model on the Hub.
        ModuleNotFoundError: If faiss is not installed.
    """
    ratios = _checked_ratios(ratios)
    _check_texts(texts)
    check_whole("seed", seed, 0, 2**31 - 1)
    for name, exponent, most in (("count_exponent", count_exponent, 2), ("norm_exponent", norm_exponent, 4)):
        if isinstance(exponent, bool) or not 0 <= exponent <= most:
            raise ValueError(f"{name}={exponent!r}; expected a number from 0 to {most}. Leave it out for the default.")
    check_sources(token_counts)
    needed("faiss")
    dense = own_model(source)
    dense = (copy.deepcopy(dense) if isinstance(source, PreTrainedModel) else dense).eval()
    modules = tables_to_factor(dense, embedding=True, head=False)["embedding"]
    tokenizer = tokenizer or load_tokenizer(dense.name_or_path)
    table: Tensor = modules[0].weight.detach().clone()  # the model gets the tables of rivals in turn
    use = count_tokens(token_counts, tokenizer, len(table))
    weights = row_weights(use, table.double().norm(dim=1), count_exponent, norm_exponent)
    unknown_id = tokenizer.unk_token_id
    has_unknown = unknown_id is not None and unknown_id < len(table)
    task = RivalTask(table, use, weights, unknown_id if has_unknown else None, seed)
    gauge = _Gauge(dense, table, use, tokenizer, list(texts or bundled_sentences()), score)
    budgets = [int(table.nbytes / ratio) for ratio in ratios]
    others = contenders(task, budgets)
    given: dict[str, Any] = {
        "tokenizer": tokenizer,
        "token_counts": use,
        "seed": seed,
        "count_exponent": count_exponent,
        "norm_exponent": norm_exponent,
    }
    points = [gauge.point(DENSE, str(table.dtype).removeprefix("torch."), table.nbytes, dense, table)]
    absences: list[RivalAbsence] = []
    with logging.tqdm(desc="Rivals", total=2 * len(ratios) + len(others), miniters=0) as progress:
        for method in (OURS, OURS_FLOAT):
            for ratio, budget in zip(ratios, budgets, strict=True):
                setting = f"ratio {ratio:g}"
                progress.set_postfix_str(f"{method}, {setting}")
                try:
                    if method == OURS:
                        model = compress(dense, ratio=ratio, **given)
                    else:
                        model = compress(dense, compression=_share_to_save(table, budget), **given)
                except ValueError as error:  # such as that a table this small has no room
                    absences.append(RivalAbsence(method, setting, str(error)))
                else:
                    points.append(gauge.point_of_ours(method, setting, model))
                progress.update()
        for contender in others:
            progress.set_postfix_str(f"{contender.method}, {contender.setting}")
            try:
                built = contender.build()
            except ValueError as error:
                absences.append(RivalAbsence(contender.method, contender.setting, str(error)))
            else:
                _put(modules, built.rows)
                points.append(gauge.point(contender.method, built.setting, built.size_bytes, dense, built.rows))
            progress.update()
    return points, absences


class _Gauge:
    """What is measured of every model alike."""

    def __init__(
        self,
        dense: Any,
        table: Tensor,
        use: Tensor,
        tokenizer: Any,
        texts: list[str],
        score: Callable[[Any], float] | None,
    ) -> None:
        """Embed the texts by the dense model."""
        self._table, self._use, self._tokenizer, self._texts, self._score = table, use, tokenizer, texts, score
        self._reference = embed_sentences(dense, tokenizer, texts)

    def point(self, method: str, setting: str, size_bytes: int, model: Any, rows: Tensor) -> RivalPoint:
        """Measure a model, whose table has these rows, shape (n, dim)."""
        embeddings = embed_sentences(model, self._tokenizer, self._texts)
        errors = (self._table.double() - rows.double()).square().sum(dim=1)
        energies = self._table.double().square().sum(dim=1)
        return RivalPoint(
            method,
            setting,
            size_bytes,
            self._table.nbytes / size_bytes,
            mean_cosine(embeddings, self._reference),
            share(float(errors.sum()), float(energies.sum())),
            share(float(self._use @ errors), float(self._use @ energies)),
            None if self._score is None else float(self._score(model)),
        )

    def point_of_ours(self, method: str, setting: str, model: Any) -> RivalPoint:
        """Measure a compressed model; bytes are those of the tensors that a file has of its table."""
        embedding = model.get_input_embeddings()
        size_bytes = sum(getattr(embedding, name).nbytes for name in embedding.stored_names)
        return self.point(method, setting, size_bytes, model, embedding.dense_weight().detach())


@torch.no_grad()
def _put(modules: list[Any], rows: Tensor) -> None:
    """Write rows, shape (n, dim), into the modules that hold the table, those tied to it among them."""
    for module in modules:
        module.weight.copy_(rows)


def _check_texts(texts: Any) -> None:
    is_list = isinstance(texts, list | tuple) and texts and all(isinstance(text, str) and text for text in texts)
    if texts is not None and not is_list:
        raise ValueError(
            f"texts={texts!r}; expected a list of one string or several, none of them empty. Leave it out for the "
            "bundled sentences."
        )


def _share_to_save(table: Tensor, budget: int) -> float:
    """The share of numbers to save so that float factors and the order of the rows take no more bytes than a budget."""
    return 1 - (budget - _ROW_BYTES * len(table)) / table.nbytes


def _checked_ratios(ratios: Any) -> list[float]:
    """The ratios, refusing what is no list of finite numbers above 1 that differ."""
    found = list(ratios) if isinstance(ratios, list | tuple) else []
    are_numbers = all(isinstance(ratio, numbers.Real) and not isinstance(ratio, bool) for ratio in found)
    if not found or not are_numbers or len(set(found)) < len(found) or not all(1 < ratio < math.inf for ratio in found):
        raise ValueError(
            f"ratios={ratios!r}; expected one or several numbers above 1 that differ: how many times smaller the table "
            "is to be, such as [4, 8, 16]."
        )
    return [float(ratio) for ratio in found]
