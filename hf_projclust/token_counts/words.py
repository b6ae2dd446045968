"""Tokens expected in running text of a language, from the word frequencies of the package wordfreq.

A word is tokenised once, among others, and each of its tokens gets its frequency. No text is read, so what depends on
neighbours, such as tokens of several words, is not seen. Word lists are in lower case and without punctuation, so
capitals at the beginning of sentences and marks are added at the rates of ``running_text``; other capitals (names,
German nouns) are not. The Chinese list is of simplified characters, and the Korean one of morphemes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .running_text import (
    CAPITALISED_SHARE,
    FULL_WIDTH_MARKS,
    MARKS,
    MEAN_WORDS_PER_TEXT,
    OPENING_MARKS,
    TokenUse,
)

_UNSPACED_LANGUAGES = ("ja", "zh")
_NEUTRAL = "a"  # a word of weight 0, which keeps apart what would melt into one token
_PIECES_PER_TEXT = 200
_TEXTS_PER_BATCH = 50


def count_words(
    wordfreq: Any, language: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int, description: str
) -> TokenUse:
    """Count the tokens that running text of one language is expected to have, with special tokens around each text.

    Args:
        wordfreq: The package of that name.
        language: A code that it knows, such as "en".
        tokenizer: A fast tokenizer, whose ids are below ``vocab_size``.
        vocab_size: Rows of the table.
        description: What the progress bar calls the words.

    Returns:
        Counts for as much text as the frequencies sum to (about one word), shape (vocab_size,), and how many texts of
        ``MEAN_WORDS_PER_TEXT`` words that is.

    Raises:
        ValueError: If the tokenizer does not say where its tokens stand in a text.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in a text; expected a fast tokenizer for "
            "word frequencies. Load it with AutoTokenizer, or count a text file or a data set instead."
        )
    frequencies = word_frequencies(wordfreq, language)
    pieces = [*_word_pieces(frequencies, language), *_mark_pieces(frequencies, language)]
    counts, length = torch.zeros(vocab_size, dtype=torch.float64), _PIECES_PER_TEXT * _TEXTS_PER_BATCH
    with logging.tqdm(desc=f"Counting tokens of {description}", total=len(pieces), unit=" words") as progress:
        for start in range(0, len(pieces), length):
            _add_pieces(counts, pieces[start : start + length], tokenizer)
            progress.update(len(pieces[start : start + length]))
    texts = sum(frequencies.values()) / MEAN_WORDS_PER_TEXT
    around = torch.tensor(tokenizer("")["input_ids"], dtype=torch.long)
    counts.index_add_(0, around, torch.full(around.shape, texts, dtype=torch.float64))
    return TokenUse(counts, texts)


def word_frequencies(wordfreq: Any, language: str) -> dict[str, float]:
    """Frequencies of the words of a language, with numbers in place of the shapes ("00") that wordfreq keeps.

    Args:
        wordfreq: The package of that name.
        language: A code that it knows.

    Returns:
        Share of each word in running text. Numbers of two to four digits get what ``wordfreq.word_frequency`` gives
        them, which for some languages would need a word splitter to be installed; longer ones are left out.
    """
    shapes = wordfreq.get_frequency_dict(language, "best")
    words = {word: share for word, share in shapes.items() if not re.search(r"\d\d", word)}
    for number in map(str, range(10, 10_000)):
        words[number] = shapes.get("0" * len(number), 0.0) * wordfreq.numbers.digit_freq(number)
    return words


def _word_pieces(frequencies: dict[str, float], language: str) -> Iterator[tuple[str, float]]:
    for word, share in frequencies.items():
        lead = "" if language in _UNSPACED_LANGUAGES and not word[0].isascii() else " "
        capitalised = word[0].upper() + word[1:]
        if capitalised == word:
            yield lead + word, share
        else:
            yield lead + word, share * (1 - CAPITALISED_SHARE)
            yield lead + capitalised, share * CAPITALISED_SHARE


def _mark_pieces(frequencies: dict[str, float], language: str) -> Iterator[tuple[str, float]]:
    """Marks beside neutral words, at their rates less what stands inside words ("don't")."""
    for mark, rate in (FULL_WIDTH_MARKS if language in _UNSPACED_LANGUAGES else MARKS).items():
        inside = sum(share * word.count(mark) for word, share in frequencies.items() if mark in word)
        share = max(0.0, rate / 1000 * sum(frequencies.values()) - inside)
        if mark in OPENING_MARKS or mark == '"':
            yield " " + mark, share / 2 if mark == '"' else share
            yield _NEUTRAL, 0.0
        if mark not in OPENING_MARKS:
            yield " " + _NEUTRAL, 0.0
            yield mark, share / 2 if mark == '"' else share


def _add_pieces(counts: Tensor, pieces: list[tuple[str, float]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give each token the weight of the piece in which it ends, so that a space before a word is the word's."""
    groups = [
        [(_NEUTRAL, 0.0), *pieces[start : start + _PIECES_PER_TEXT]]
        for start in range(0, len(pieces), _PIECES_PER_TEXT)
    ]
    encoded = tokenizer(
        ["".join(piece for piece, _ in group) for group in groups],
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=False,
        padding=False,
        verbose=False,
    )
    for group, ids, offsets in zip(groups, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ends = torch.tensor([len(piece) for piece, _ in group]).cumsum(0)  # (pieces,)
        weights = torch.tensor([weight for _, weight in group], dtype=torch.float64)  # (pieces,)
        last = torch.tensor([end - 1 for _, end in offsets], dtype=torch.long)  # (tokens,), -1 for a token of no text
        counts.index_add_(0, torch.tensor(ids, dtype=torch.long), weights[torch.searchsorted(ends, last, right=True)])
