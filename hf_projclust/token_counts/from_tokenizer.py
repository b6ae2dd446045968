"""Tokens expected in running text, from the tokenizer alone: scores of its pieces, or the order of its vocabulary.

No text is read. Unigram tokenizers keep the log probability of each piece. Vocabularies of the other kinds (BPE,
WordPiece, WordLevel) stand about in the order of use, and Zipf's law as corrected by Mandelbrot turns an order into
shares. Whether the text for which a vocabulary was made is like the text of its user, nothing here can tell.
"""

from __future__ import annotations

import json
import math
import re

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .running_text import MARKS, MEAN_WORDS_PER_TEXT, OPENING_MARKS, TokenUse

_ZIPF_OFFSET = 2.7  # Mandelbrot's, for English
_POSITION_OF_ASCII = 50  # of a single ASCII character, which stands in code-point order
_SPACE_MARKERS = ("Ġ", "▁")
_MARKER = re.compile(r"^##(?=.)|[Ġ▁]|</w>$")
_UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def count_from_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> TokenUse:
    """Guess how often each token stands in running text from what its tokenizer holds.

    Special tokens that stand around every text get once in ``MEAN_WORDS_PER_TEXT`` tokens, other special tokens and
    unused ones nothing, and tokens that were added to the vocabulary as much as its rarest.

    Args:
        tokenizer: Its ids must be below ``vocab_size``.
        vocab_size: Rows of the table.

    Returns:
        Counts up to a factor, shape (vocab_size,), and how many texts that is.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    tokens = {
        index: token
        for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if index not in special and not _UNUSED.fullmatch(token)
    }
    learned = {index: token for index, token in tokens.items() if index not in added}
    scores = _unigram_scores(tokenizer)
    shares = _zipf_shares(learned) if scores is None else _score_shares(learned, scores)
    rarest = min(shares.values(), default=1.0)
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for index in tokens:
        counts[index] = shares.get(index, rarest)
    if scores is None:
        _raise_marks(counts, learned)
    texts = float(counts.sum()) / MEAN_WORDS_PER_TEXT
    for index in tokenizer("")["input_ids"]:
        counts[index] += texts
    return TokenUse(counts, texts)


def _unigram_scores(tokenizer: PreTrainedTokenizerBase) -> dict[str, float] | None:
    """Log probability of each piece, or None of a tokenizer of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "Unigram":
        return None
    return dict(json.loads(backend.to_str())["model"]["vocab"])


def _score_shares(tokens: dict[int, str], scores: dict[str, float]) -> dict[int, float]:
    """Share of each token of a Unigram tokenizer; a score of 0 is that of bytes and the like, and no probability."""
    return {index: math.exp(scores[token]) for index, token in tokens.items() if scores.get(token, 0.0) < 0}


def _zipf_shares(tokens: dict[int, str]) -> dict[int, float]:
    """Share of each token by its position, 1 / (position + 2.7), among the tokens of several characters.

    Single characters stand at the front in code-point order, not in the order of use. Those of ASCII get the share of
    a position that is fixed, others that of the last. If nearly all are single, as in a Chinese BERT, they are equal.
    """
    text = {index: "" if _BYTE.fullmatch(token) else _MARKER.sub("", token) for index, token in tokens.items()}
    positions = {index: place for place, index in enumerate((i for i in tokens if len(text[i]) > 1), start=1)}
    last = max(1, len(positions))
    for index in tokens.keys() - positions.keys():
        is_ascii = text[index].isascii() and not _BYTE.fullmatch(tokens[index])
        positions[index] = min(_POSITION_OF_ASCII, last) if is_ascii else last
    return {index: 1 / (position + _ZIPF_OFFSET) for index, position in positions.items()}


def _raise_marks(counts: Tensor, tokens: dict[int, str]) -> None:
    """Give each mark at least its published rate, in the form in which it is written: "word," but " (word"."""
    ids, total = {token: index for index, token in tokens.items()}, float(counts.sum())
    for mark, rate in MARKS.items():
        spaced = [marker + mark for marker in _SPACE_MARKERS]
        forms = [*spaced, mark] if mark in OPENING_MARKS else [mark, *spaced]
        found = next((ids[form] for form in forms if form in ids), None)
        if found is not None:
            counts[found] = max(float(counts[found]), rate / 1000 * total)
