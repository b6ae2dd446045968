"""Sources counted, each by the file for its kind, and summed by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .corpus import count_texts, texts_of_dataset, texts_of_path
from .from_tokenizer import count_from_tokenizer
from .given import given_numbers
from .running_text import MEAN_WORDS_PER_TEXT, TokenUse
from .sources import (
    Source,
    check_sources,
    import_package,
    languages_of,
    no_text,
    parse_source,
    quoted,
    without_path,
    written_sources,
)
from .words import count_words


def count_tokens(
    sources: str | Sequence[str] | Sequence[float] | Tensor,
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
) -> Tensor:
    """How often each token is used in running text.

    Args:
        sources: Counts of any scale, one a token, or one or more of these, each with a weight in front if need be
            ("0.3*corpus.txt"; 1 without), which says how much it counts against the others whatever its length:

            - ``"uniform"``: all tokens alike.
            - ``"tokenizer"``: a guess from the scores or the order of the vocabulary, without any text.
            - ``"words:en,zh"``: word frequencies of languages, by the package wordfreq.
            - ``"dataset:NAME"``, ``"dataset:NAME,CONFIG"``: the string columns of a data set on the Hub or in a folder.
            - ``"prompt:TEXT"``: a text that stands once in front of every text of the other sources; its weight says
              in how many of them. Spaces at its end are those before the next word, and not counted.
            - anything else: a UTF-8 text file, or a folder of ``*.txt`` files, with a text on each line.
        tokenizer: The tokenizer of the table. Only ``"uniform"`` and given counts do without.
        vocab_size: Rows of the table; those of no token get 0.

    Returns:
        Share of running text of each token, shape (vocab_size,), float64, summing to 1. A text has the special tokens
        that the tokenizer puts around it; where sources have no texts, one is taken to be 20 words.

    Raises:
        ValueError: If a source, a weight, or the counts given are not as above, a corpus has no text, the tokenizer is
            missing, too large for the table, or cannot give what the source needs.
        FileNotFoundError: If there is no such file, folder or data set.
        ModuleNotFoundError: If the package that a source needs is not installed.
    """
    check_sources(sources)
    written = written_sources(sources)
    if written is None:
        given = given_numbers(sources)
        if len(given) != vocab_size:
            raise ValueError(
                f"{len(given):,} token counts for a table of {vocab_size:,} rows; expected one a row. Count again with "
                "the tokenizer of this model."
            )
        return given / given.sum()
    parsed = [parse_source(text) for text in written]
    prompts = [source for source in parsed if source.kind == "prompt"]
    _check_need_of_tokenizer(parsed, tokenizer, vocab_size)
    shares, texts = torch.zeros(vocab_size, dtype=torch.float64), 0.0  # texts: how many a token of running text
    for source in parsed:
        if source.kind != "prompt":
            for use in _count(source, tokenizer, vocab_size):
                shares += source.weight * use.counts
                texts += source.weight * use.texts
    for source in prompts:
        for index in _prompt_ids(source.value, tokenizer):
            shares[index] += source.weight * texts
    return shares / shares.sum()


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a tokenizer that is not the one of a table.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Rows of the table.

    Raises:
        ValueError: If an id of the tokenizer has no row.
    """
    num_ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if num_ids > vocab_size:
        raise ValueError(
            f"the tokenizer has ids for {num_ids:,} tokens and the table {vocab_size:,} rows; expected a row for each. "
            "Use the tokenizer of this model, resize the model's embeddings first, or give token_counts='uniform'."
        )


def _check_need_of_tokenizer(sources: list[Source], tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> None:
    if tokenizer is None:
        needing = [source.text for source in sources if source.kind != "uniform"]
        if needing:
            raise ValueError(
                f"token counts from {quoted(needing)} need a tokenizer, and there is none; pass tokenizer=..., or "
                'token_counts="uniform".'
            )
        return
    if any(source.kind != "uniform" for source in sources):
        check_tokenizer(tokenizer, vocab_size)


def _count(source: Source, tokenizer: Any, vocab_size: int) -> list[TokenUse]:
    """Token use of a source in shares of all its tokens; of each of several languages an equal part."""
    match source.kind:
        case "uniform":
            uses = [TokenUse(torch.ones(vocab_size, dtype=torch.float64), vocab_size / MEAN_WORDS_PER_TEXT)]
        case "tokenizer":
            uses = [count_from_tokenizer(tokenizer, vocab_size)]
        case "words":
            wordfreq = import_package("wordfreq", "words")
            uses = [
                count_words(wordfreq, language, tokenizer, vocab_size, f"words:{language}")
                for language in languages_of(source)
            ]
        case "dataset":
            name, _, config = source.value.partition(",")
            texts = texts_of_dataset(import_package("datasets", "train"), name.strip(), config.strip() or None)
            uses = [count_texts(texts, tokenizer, vocab_size, without_path(source))]
        case _:
            uses = [count_texts(texts_of_path(Path(source.value)), tokenizer, vocab_size, without_path(source))]
    shares = []
    for use in uses:
        if not use.texts:
            raise no_text(source)
        total = float(use.counts.sum()) * len(uses)
        if not total:
            raise ValueError(
                f"the tokenizer makes no token of source {source.text!r}; expected some. Check that it is the one of "
                "this model, and knows the script of the texts."
            )
        shares.append(TokenUse(use.counts / total, use.texts / total))
    return shares


def _prompt_ids(prompt: str, tokenizer: Any) -> list[int]:
    # A space at the end would be a token of its own, but melts into the word that follows it in a text.
    return tokenizer(prompt.rstrip(), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
