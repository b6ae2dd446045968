"""One cell of the protocol: a classifier scored, dense or compressed, before or after the extra epochs.

Each cell is made by itself: its seeds are its own, and nothing depends on which cells were made before it.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...vocabulary_projclust import factored_tables
from ..classifiers import score_classifier
from ..glue import Examples, load_glue
from .models import ClassifierStore, fine_tune_more
from .plan import DENSE, Cell, Protocol

_SEED_OF_CHOICE = 0


@dataclass(frozen=True)
class TaskExamples:
    """Examples of a task.

    Attributes:
        train: Those to train on.
        validation: Those to score on.
    """

    train: Examples
    validation: Examples

    def sha256(self) -> str:
        """Digest of all of them, in hexadecimal digits."""
        return hashlib.sha256(f"{self.train.sha256()} {self.validation.sha256()}".encode()).hexdigest()


def load_examples(protocol: Protocol) -> dict[str, TaskExamples]:
    """Examples of each task, smallest task first, which is the order that the protocol takes them in.

    Args:
        protocol: The options.

    Returns:
        All validation examples, and the training examples or a random choice of them, in their order in the file.

    Raises:
        ValueError: If a file is of another layout.
        FileNotFoundError: If one is not there.
        ModuleNotFoundError: If ``datasets`` is needed and not installed.
    """
    found = {}
    for task in protocol.tasks:
        train, validation = (load_glue(task, split, protocol.data_dir) for split in ("train", "validation"))
        if not len(train) or not len(validation):
            raise ValueError(
                f"task {task!r} has {len(train)} examples to train on and {len(validation)} to score on; expected some "
                "of both. Fetch its files again."
            )
        found[task] = TaskExamples(_choice(train, protocol.max_train), validation)
    return dict(sorted(found.items(), key=lambda item: len(item[1].train)))


def make_cell(
    cell: Cell, protocol: Protocol, store: ClassifierStore, examples: TaskExamples, known: dict[Cell, dict[str, Any]]
) -> dict[str, Any]:
    """Make a cell.

    Args:
        cell: Which one.
        protocol: The options.
        store: Dense and compressed classifiers.
        examples: Those of its task.
        known: Cells that are made already; that of the dense classifier is among them, unless it is this one.

    Returns:
        What its file has, in JSON types: the cell; "metrics" in percent, "dense_score" of the dense classifier at the
        same stage, bytes and parameters of the table, its relative squared error, the options of the compression as
        the configuration records them, numbers and digest of examples, digest of the dense
        classifier, and "seconds".

    Raises:
        ValueError: If cells of the same task and seed are of another dense classifier.
    """
    model, digest, seconds_dense = store.dense(cell.task, cell.seed)
    _check_digest(cell, digest, known)
    seconds: dict[str, float] = {"fine_tune_dense": seconds_dense}
    facts: dict[str, Any] = {}
    if cell.method != DENSE:
        model, seconds["compress"] = store.compressed(cell, model, digest)
        solver = model.config.projclust["solver"]["embedding"]
        facts["relative_squared_error"] = solver["relative_squared_error"]
        facts["solver"] = solver
    facts |= _table_sizes(model)
    if cell.stage == "after":
        begin = time.perf_counter()
        epochs = protocol.extra_epochs
        fine_tune_more(model, store.tokenizer, examples.train, protocol, num_epochs=epochs, seed=cell.seed)
        seconds["fine_tune"] = time.perf_counter() - begin
    begin = time.perf_counter()
    metrics = score_classifier(model, store.tokenizer, examples.validation, cell.task, max_length=protocol.max_length)
    seconds["score"] = time.perf_counter() - begin
    dense_metrics = metrics if cell.method == DENSE else known[cell.dense()]["metrics"]
    return {
        **asdict(cell),
        "metrics": metrics,
        "dense_score": dense_metrics["score"],
        **facts,
        "num_train": len(examples.train),
        "num_validation": len(examples.validation),
        "examples_sha256": examples.sha256(),
        "dense_sha256": digest,
        "seconds": seconds,
    }


def _check_digest(cell: Cell, digest: str, known: dict[Cell, dict[str, Any]]) -> None:
    others = [other for other in known if (other.task, other.seed) == (cell.task, cell.seed)]
    differing = [other.name for other in others if known[other]["dense_sha256"] != digest]
    if differing:
        raise ValueError(
            f"the dense classifier of task {cell.task!r} and seed {cell.seed} has other weights than the one that "
            f"{len(differing)} of its cells were made with ({differing[0]}.json and so on); expected the same, so that "
            "scores can be compared. Fine-tuned again, as when it was deleted with all cells made, it is the same only "
            f"with equal versions, machine and number of threads, and on a CPU. Delete "
            f"cells/{cell.task}-{cell.seed}-*, and they are made again."
        )


def _table_sizes(model: Any) -> dict[str, int]:
    """Numbers and bytes of the vocabulary table, as a file has it."""
    tables = list(factored_tables(model).values())
    if not tables:
        weight = model.get_input_embeddings().weight
        return {"table_parameters": weight.numel(), "table_bytes": weight.nbytes}
    table = tables[0]
    size_bytes = sum(getattr(table, name).nbytes for name in table.stored_names)
    return {"table_parameters": table.layout.num_parameters, "table_bytes": size_bytes}


def _choice(examples: Examples, count: int | None) -> Examples:
    """A random choice of examples, in their order; all of them if there are no more."""
    if count is None or count >= len(examples):
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(_SEED_OF_CHOICE))
    places = sorted(order[:count].tolist())
    first, second, labels = examples.first, examples.second, examples.labels
    return Examples(
        [first[place] for place in places],
        None if second is None else [second[place] for place in places],
        [labels[place] for place in places],
    )
