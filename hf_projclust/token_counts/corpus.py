"""Tokens counted in texts: the lines of text files, and the string columns of a data set.

Texts are streamed, never held together. Which source to read, and what it weighs, is for ``sources``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .running_text import TokenUse

_TEXTS_PER_BATCH = 1000


def count_texts(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, vocab_size: int, description: str
) -> TokenUse:
    """Count the tokens of texts, with the special tokens that the tokenizer puts around each.

    Args:
        texts: Texts of any length; none is truncated.
        tokenizer: Its ids must be below ``vocab_size``.
        vocab_size: Rows of the table.
        description: What the progress bar calls the texts.

    Returns:
        The counts, shape (vocab_size,), and the number of texts.
    """
    counts, num_texts, remaining = torch.zeros(vocab_size, dtype=torch.float64), 0, iter(texts)
    with logging.tqdm(desc=f"Counting tokens of {description}", unit=" texts") as progress:
        while batch := list(itertools.islice(remaining, _TEXTS_PER_BATCH)):
            ids = tokenizer(batch, add_special_tokens=True, truncation=False, padding=False, verbose=False)["input_ids"]
            flat = torch.tensor(list(itertools.chain.from_iterable(ids)), dtype=torch.long)  # (tokens of the batch,)
            counts += torch.bincount(flat, minlength=vocab_size)
            num_texts += len(batch)
            progress.update(len(batch))
    return TokenUse(counts, num_texts)


def texts_of_path(path: Path) -> Iterator[str]:
    """Lines of a text file, or of the ``*.txt`` files of a folder in the order of their names, without blank lines.

    Args:
        path: A file or a folder that is there.

    Yields:
        A line, as it stands, without its line end.

    Raises:
        ValueError: If a file is not UTF-8.
    """
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        try:
            with file.open(encoding="utf-8-sig") as lines:
                yield from (line.rstrip("\n") for line in lines if line.strip())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"text file {str(file)!r} is not UTF-8 ({error}); expected plain UTF-8 text, a line a text. Save it "
                "in that encoding."
            ) from error


def texts_of_dataset(datasets: Any, name: str, config: str | None) -> Iterator[str]:
    """Texts of the string columns of a data set: its split "train", or else its first.

    Args:
        datasets: The package of that name.
        name: An id on the Hub, or a folder of text, CSV, JSON lines or Parquet files.
        config: Which configuration of it.

    Yields:
        A value of a string column, unless blank.

    Raises:
        FileNotFoundError: If there is no such folder and the Hub gives no such data set.
        ValueError: If it has no string column.
    """
    try:
        splits = datasets.load_dataset(name, config, streaming=True)
    except OSError as error:
        raise FileNotFoundError(
            f"data set {name!r} could not be loaded; expected a folder of text, CSV, JSON lines or Parquet files, or "
            f"the id of a data set on the Hub that can be reached from here. Check the spelling. ({error})"
        ) from error
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    first: dict[str, Any] = next(iter(rows), {})
    features = rows.features or {}  # those of plain text are unknown
    columns = [
        column
        for column, value in first.items()
        if isinstance(value, str) or getattr(features.get(column), "dtype", None) in ("string", "large_string")
    ]
    if first and not columns:
        raise ValueError(
            f"data set {name!r} has the columns {', '.join(first)}; expected at least one of strings. Choose another "
            "data set, or write its texts to a text file, a line a text."
        )
    for row in rows.select_columns(columns) if first else ():
        yield from (text for text in row.values() if isinstance(text, str) and text.strip())
