"""Texts to compare models on: lines of a file, or the sentences of this project; and pairs of sentences with scores.

Nothing is tokenised here, and texts with labels for a task are in ``glue``.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from ..token_counts.corpus import texts_of_path
from .fidelity import bundled_sentences

_COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class Texts:
    """Texts without labels.

    Attributes:
        name: What they are, without the folder that they are in.
        lines: The texts.
    """

    name: str
    lines: list[str]


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of sentences, and how similar people find them.

    Attributes:
        name: What they are, without the folder that they are in.
        first: First sentence of each pair.
        second: Second sentence of each.
        scores: Their similarity, on any scale.
    """

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]


def read_texts(path: str | Path | None = None) -> Texts:
    """Read the lines of a text file, or of the ``*.txt`` files of a folder, without blank ones.

    Args:
        path: A file or folder; by default the sentences that come with this project.

    Returns:
        The texts, each as it stands.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If there is no text, or a file is not UTF-8.
    """
    if path is None:
        sentences = bundled_sentences()
        return Texts(f"{len(sentences)} English sentences that come with hf_projclust", sentences)
    if not Path(path).exists():
        raise FileNotFoundError(f"no texts {str(path)!r}; expected a text file, a line a text. Check the spelling.")
    lines = list(texts_of_path(Path(path)))
    if not lines:
        raise ValueError(
            f"texts {str(path)!r} have no line that is not blank; expected plain UTF-8 text, a line a text, of a "
            "folder in files *.txt. Check that it is the file that you mean."
        )
    return Texts(f"{Path(path).resolve().name}, {len(lines):,} lines", lines)


def read_scored_pairs(path: str | Path) -> ScoredPairs:
    """Read pairs of sentences with scores: columns sentence1, sentence2 and score, in any order, others beside them.

    Columns are separated by tabs, without quoting, as in GLUE's STS-B; or by commas, with quoting, if the header line
    has no tab.

    Args:
        path: The file.

    Returns:
        The pairs, in their order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a line is cut or has no finite score, or no two scores differ.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no file {str(path)!r}; expected one with the columns {', '.join(_COLUMNS)}. Check the spelling."
        )
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            has_tabs = "\t" in file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if has_tabs else csv.reader(file)
            header, *lines = list(rows) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error}); expected lines of UTF-8 text, a header first."
        ) from error
    if missing := [column for column in _COLUMNS if column not in header]:
        raise ValueError(
            f"{str(path)!r} has no column {', '.join(missing)} but {', '.join(header)}; expected a first line that "
            f"names {', '.join(_COLUMNS)}, separated by tabs or commas."
        )
    places = [header.index(column) for column in _COLUMNS]
    pairs = [_pair(line, places, number, path) for number, line in enumerate(lines, 2) if line]
    first, second, scores = (list(column) for column in zip(*pairs, strict=True)) if pairs else ([], [], [])
    if len(set(scores)) < 2:
        raise ValueError(
            f"{str(path)!r} has {len(set(scores))} different scores; expected at least two, since ranks are compared."
        )
    return ScoredPairs(f"{Path(path).resolve().name}, {len(pairs):,} pairs", first, second, scores)


def _pair(line: list[str], places: list[int], number: int, path: str | Path) -> tuple[str, str, float]:
    try:
        first, second, score = (line[place] for place in places)
        if not math.isfinite(float(score)):
            raise ValueError
    except (IndexError, ValueError):
        raise ValueError(
            f"row {number} of {str(path)!r} is {line!r}; expected {', '.join(_COLUMNS)} in columns "
            f"{', '.join(str(place + 1) for place in places)}, and a finite number as the score."
        ) from None
    return first, second, float(score)
