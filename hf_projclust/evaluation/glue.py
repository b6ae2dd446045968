"""The GLUE benchmark: texts and labels of its tasks, from the Hub or from a folder, and their metrics.

A folder has the layout of the official download: RTE/train.tsv, RTE/dev.tsv and so on, read without quoting. Of MNLI
the matched part is taken. Nothing is trained or predicted here. Tasks and metrics: Wang et al., arXiv 1804.07461.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers.utils import logging

from .extras import needed

logger = logging.get_logger(__name__)

Split = Literal["train", "validation"]
HUB_ID = "nyu-mll/glue"
_MOST_CUT = 0.01  # of the lines of a file; two of the official training file of QQP are


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        folder: Its folder in the official download.
        columns: Its one or two texts in a file of that folder, then its label; numbers where there is no header.
        hub_columns: Its texts in the Hub's data set.
        labels: Names of its labels in their order; none where the label is a number to predict.
        metrics: Its metrics.
    """

    folder: str
    columns: tuple[str | int, ...]
    hub_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)

    @property
    def num_outputs(self) -> int:
        """Numbers that a classifier of this task gives for an example."""
        return max(1, len(self.labels))


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
GLUE_TASKS = {
    "cola": GlueTask("CoLA", (3, 1), ("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "mnli": GlueTask(
        "MNLI", (*_PAIR, "gold_label"), ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")
    ),
    "mrpc": GlueTask(
        "MRPC", ("#1 String", "#2 String", "Quality"), _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence", "label"), ("question", "sentence"), _ENTAILMENT),
    "qqp": GlueTask(
        "QQP",
        ("question1", "question2", "is_duplicate"),
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
    ),
    "rte": GlueTask("RTE", (*_PAIR, "label"), _PAIR, _ENTAILMENT),
    "sst2": GlueTask("SST-2", ("sentence", "label"), ("sentence",), ("negative", "positive")),
    "stsb": GlueTask("STS-B", (*_PAIR, "score"), _PAIR, (), ("pearson", "spearman")),
    "wnli": GlueTask("WNLI", (*_PAIR, "label"), _PAIR, ("not_entailment", "entailment")),
}


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Attributes:
        first: First or only text of each example.
        second: Second text of each, or None where a task has one.
        labels: Place of each label among the task's, or the number to predict.
    """

    first: list[str]
    second: list[str] | None
    labels: list[int] | list[float]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def texts(self) -> list[str]:
        """All texts, the first of each example and then the second ones."""
        return [*self.first, *(self.second or [])]

    def sha256(self) -> str:
        """Digest of texts and labels in their order, in hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.first, self.second, self.labels]).encode()).hexdigest()


def check_task(task: str) -> GlueTask:
    """The task of a name.

    Raises:
        ValueError: If there is none.
    """
    if task not in GLUE_TASKS:
        raise ValueError(f"task {task!r}; expected one of GLUE: {', '.join(GLUE_TASKS)}. Choose one of these.")
    return GLUE_TASKS[task]


def load_glue(task: str, split: Split, data_dir: str | Path | None = None) -> Examples:
    """Read the examples of a task.

    Args:
        task: Its name, such as "rte".
        split: "train" or "validation", the part with public labels that is reported.
        data_dir: Folder in the layout of the official download; by default the Hub's data set.

    Returns:
        The examples, in their order; without blank lines of a file, and with a warning without those that are cut.

    Raises:
        ValueError: If there is no such task or split, a file is of another layout, or more than 1 % of it is cut.
        FileNotFoundError: If the folder lacks the file.
        ConnectionError: If the Hub's data set cannot be had.
        ModuleNotFoundError: If ``datasets`` is needed and not installed.
    """
    glue_task = check_task(task)
    if split not in ("train", "validation"):
        raise ValueError(
            f'split {split!r}; expected "train" or "validation". The labels of the test part are not public.'
        )
    if data_dir is not None:
        return _read_file(glue_task, Path(data_dir), split)
    part = split if task != "mnli" or split == "train" else "validation_matched"
    datasets = needed("datasets")
    try:
        rows = datasets.load_dataset(HUB_ID, task, split=part)
    except (OSError, ValueError) as error:  # ValueError: offline, and not in the cache
        raise ConnectionError(
            f"the data set {HUB_ID!r} could not be had from the Hub for the task {task!r}; expected a Hub that can be "
            "reached from here, or the data set in its cache. Give data_dir, a folder in the layout of the official "
            f"download of GLUE. ({error})"
        ) from error
    texts = [list(rows[column]) for column in glue_task.hub_columns]
    return Examples(texts[0], texts[1] if len(texts) > 1 else None, list(rows["label"]))


def glue_metrics(task: str, predictions: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
    """Metrics of a task.

    Args:
        task: Its name.
        predictions: Predicted places of labels, or numbers, shape (n,).
        labels: What they should be, shape (n,).

    Returns:
        Each metric of the task in percent, and "score", their mean, as GLUE sums them up. A correlation with what is
        the same for all examples is 0.

    Raises:
        ValueError: If there is no such task, not one prediction for each label, or a prediction is no finite number.
        ModuleNotFoundError: If scikit-learn or scipy is not installed.
    """
    metrics, stats = needed("sklearn.metrics"), needed("scipy.stats")
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels; expected one for each of some.")
    functions = {
        "accuracy": metrics.accuracy_score,
        "f1": metrics.f1_score,
        "matthews": metrics.matthews_corrcoef,
        "pearson": lambda true, found: stats.pearsonr(true, found).statistic,
        "spearman": lambda true, found: stats.spearmanr(true, found).statistic,
    }
    found, true = np.asarray(predictions), np.asarray(labels)
    if num_bad := int(np.count_nonzero(~np.isfinite(found))):
        raise ValueError(
            f"{num_bad} of {len(found)} predictions are NaN or infinite; expected finite numbers. The training may "
            "have diverged: lower its learning rate."
        )
    figures = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        for name in check_task(task).metrics:
            value = float(functions[name](true, found))
            figures[name] = 0.0 if math.isnan(value) else 100 * value
    return {**figures, "score": sum(figures.values()) / len(figures)}


def _read_file(task: GlueTask, folder: Path, split: Split) -> Examples:
    name = "train.tsv" if split == "train" else "dev_matched.tsv" if task.folder == "MNLI" else "dev.tsv"
    path = folder / task.folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {str(path)!r}; expected the layout of the official download of GLUE. Give the folder that has "
            f"{task.folder}, or leave it out to take the Hub's."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not in UTF-8 ({error}); expected a file of GLUE's official download. Fetch it again."
        ) from error
    lines = [line.split("\t") for line in text.split("\n") if line.strip()]
    places: list[int]
    if isinstance(task.columns[0], int):
        places = [int(column) for column in task.columns]
    else:
        header, lines = (lines[0] if lines else []), lines[1:]
        if missing := [column for column in task.columns if column not in header]:
            raise ValueError(
                f"{str(path)!r} has no column {', '.join(map(repr, missing))} but {', '.join(map(repr, header))}; "
                "expected those of the official download of GLUE. Take that file."
            )
        places = [header.index(str(column)) for column in task.columns]
    cut = [number for number, line in enumerate(lines) if len(line) <= max(places)]
    if len(cut) > _MOST_CUT * len(lines):
        raise ValueError(
            f"example {cut[0] + 1} of {str(path)!r} has {len(lines[cut[0]])} columns, and {len(cut)} of {len(lines)} "
            f"have too few; expected at least {max(places) + 1}. The file is cut or of another layout: fetch it again."
        )
    if cut:
        logger.warning(
            "%d of %d examples of %s have too few columns and are left out.", len(cut), len(lines), str(path)
        )
        lines = [line for line in lines if len(line) > max(places)]
    *texts, labels = ([line[place] for line in lines] for place in places)
    return Examples(texts[0], texts[1] if len(texts) > 1 else None, [_label(task, label, path) for label in labels])


def _label(task: GlueTask, text: str, path: Path) -> Any:
    if text in task.labels:
        return task.labels.index(text)
    try:
        if not task.labels:
            if math.isfinite(float(text)):
                return float(text)
        elif 0 <= int(text) < len(task.labels):
            return int(text)
    except ValueError:
        pass
    expected = f"one of {', '.join(task.labels)}, or its place" if task.labels else "a number"
    raise ValueError(f"{str(path)!r} has the label {text!r}; expected {expected}. Fetch the file again.")
