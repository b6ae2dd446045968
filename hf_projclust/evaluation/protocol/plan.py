"""The protocol's options, and the cells of its table in the order in which they are made.

MESSI (arXiv 2010.04290) compresses classifiers of GLUE, and scores them before and after two epochs of
fine-tuning. Nothing is computed here.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from ...resources import Resources
from ...token_counts import check_sources
from ...whole_numbers import check_whole
from ..classifiers import MAX_LENGTH
from ..glue import GLUE_TASKS, check_task
from .methods import METHODS, check_method

Stage = Literal["before", "after"]
DENSE = "dense"
PAPER_TASKS = ("cola", "mrpc", "rte", "sst2", "stsb", "wnli")
RATES = (0.28, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Cell:
    """One score to make.

    Attributes:
        task: Name of the task.
        seed: Seed of all that is random in it.
        method: Name of the method, or "dense".
        rate: Share of the table to save; None of the dense model.
        stage: "before" or "after" the extra epochs of fine-tuning.
    """

    task: str
    seed: int
    method: str
    rate: float | None
    stage: Stage

    @property
    def name(self) -> str:
        """Name of its file, without the ending, such as "cola-0-adaptive-0.4-before"."""
        return "-".join(str(part) for part in astuple(self) if part is not None)

    def dense(self) -> Cell:
        """The cell of the dense model that this one is compared to."""
        return Cell(self.task, self.seed, DENSE, None, self.stage)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What to compare, and how classifiers are fine-tuned.

    Attributes:
        base: Hub id or folder of the dense model that classifiers are made from.
        tasks: Names of tasks.
        methods: Names of methods.
        rates: Shares of the table to save.
        seeds: Seeds of heads, order of examples, dropout and clustering.
        data_dir: Folder in the layout of GLUE's official download; None for the Hub's data set.
        epochs: Times that the dense classifier sees each example.
        extra_epochs: Times more, of the dense classifier and of compressed ones; 0 leaves that out.
        learning_rate: The greatest one, in both.
        batch_size: Examples of a step.
        max_length: Tokens of an example, at most.
        max_train: Examples to train on, at most: drawn at random, the same for all seeds. None for all.
        token_counts: Sources of token counts of methods that take some.
        bf16: Fine-tune under autocast to bfloat16.
        device: Where to compute; by default the CPU.

    Raises:
        ValueError: If an option is out of its range, there is no such task, method or device, or one is given twice.
        FileNotFoundError: If a source of token counts is a file that is not there.
        ModuleNotFoundError: If the package that a source needs is not installed.
    """

    base: str | Path
    tasks: Sequence[str] = PAPER_TASKS
    methods: Sequence[str] = tuple(METHODS)
    rates: Sequence[float] = RATES
    seeds: Sequence[int] = (0,)
    data_dir: str | Path | None = None
    epochs: float = 3.0
    extra_epochs: float = 2.0
    learning_rate: float = 5e-5
    batch_size: int = 32
    max_length: int = MAX_LENGTH
    max_train: int | None = None
    token_counts: Sequence[str] = ("words:en",)
    bf16: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no model or data could make right."""
        for name in ("tasks", "methods", "rates", "seeds"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} {_listed(values)}; expected at least one, and none twice. Name each once.")
        for task in self.tasks:
            check_task(task)
        for method in self.methods:
            check_method(method)
        for rate in self.rates:
            if not _is_real(rate) or not 0 < rate < 1:
                raise ValueError(f"rate {rate!r}; expected a share of the table to save, above 0 and below 1.")
        for seed in self.seeds:
            check_whole("seed", seed, 0, 2**32 - 1)
        for name, least in (("batch_size", 1), ("max_length", 1), ("max_train", 1)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)
        for name in ("epochs", "extra_epochs", "learning_rate"):
            value = getattr(self, name)
            may_be_zero = name == "extra_epochs"
            if not _is_real(value) or not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
                raise ValueError(f"{name}={value!r}; expected a number {'of at least' if may_be_zero else 'above'} 0.")
        check_sources(list(self.token_counts))
        Resources(device=self.device, memory_limit=None, checkpoint=None)

    def cells(self, tasks: Sequence[str] | None = None) -> list[Cell]:
        """All cells, those without fine-tuning first, then seed after seed, so that a table is whole early.

        Args:
            tasks: The tasks in the order to take them.

        Returns:
            The cells, for each task and seed the dense one first.
        """
        stages: tuple[Stage, ...] = ("before", "after") if self.extra_epochs else ("before",)
        kinds: list[tuple[str, float | None]] = [(DENSE, None), *product(self.methods, self.rates)]
        order = product(stages, self.seeds, tasks or self.tasks, kinds)
        return [Cell(task, seed, method, rate, stage) for stage, seed, task, (method, rate) in order]


def default_tasks(data_dir: str | Path | None) -> tuple[str, ...]:
    """Tasks of a folder, or the six of the paper.

    Args:
        data_dir: Folder in the layout of GLUE's official download, or None for the Hub's data set.

    Returns:
        Names of the tasks whose training file is there; of the Hub's, those of the paper.

    Raises:
        FileNotFoundError: If there is no task in the folder.
    """
    if data_dir is None:
        return PAPER_TASKS
    found = tuple(name for name, task in GLUE_TASKS.items() if (Path(data_dir) / task.folder / "train.tsv").is_file())
    if not found:
        raise FileNotFoundError(
            f"no task in {str(data_dir)!r}; expected folders such as RTE with train.tsv and dev.tsv, as in the "
            "official download of GLUE. Give that folder, or leave it out to take the Hub's."
        )
    return found


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _listed(values: Sequence[Any]) -> str:
    return " ".join(map(str, values)) or "(none)"
