"""The protocol of MESSI (arXiv 2010.04290) as one run that can be stopped and repeated.

A dense classifier is fine-tuned on a task, its vocabulary table compressed, and the result scored before and after two
more epochs, as is the dense classifier. A crash or a stop loses one cell. Nothing is computed in this file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...inputs import own_model
from ...loading import load_tokenizer
from ...locks import locked
from ...modeling_projclust import ProjClustModelMixin
from ..classifiers import check_padding, make_classifier
from ..extras import needed
from .cells import load_examples, make_cell
from .folder import ProtocolFolder
from .methods import check_fit
from .models import ClassifierStore, weights_sha256
from .plan import DENSE, Cell, Protocol
from .summary import SummaryRow, summarise
from .tables import plot_drops, write_tables


def run_protocol(
    protocol: Protocol, output: str | Path, *, keep_models: bool = False
) -> tuple[list[SummaryRow], list[Cell]]:
    """Make the cells that are not there yet, and the tables of all.

    Args:
        protocol: The options.
        output: Folder to write: cells/ and models/, run.json, table.md, table.json and drops.png. One of an earlier run
            is gone on with, whose tasks, methods, rates and seeds may be others; the tables are of those given now.
        keep_models: Keep dense classifiers whose cells are all made, for methods and rates to come. On a GPU they are
            not fine-tuned to the same bits again.

    Returns:
        The summary, and the cells of the plan.

    Raises:
        ValueError: If an option, a file or the model is not as expected, or the folder's cells were made otherwise.
        FileNotFoundError: If the model or a file of a task is not there.
        FileExistsError: If the folder holds something else.
        BlockingIOError: If another run writes it.
        ModuleNotFoundError: If a package is missing.
    """
    folder = ProtocolFolder(output)
    folder.check()
    with locked(folder.path):
        return _run(protocol, folder, keep_models=keep_models)


def _run(protocol: Protocol, folder: ProtocolFolder, *, keep_models: bool) -> tuple[list[SummaryRow], list[Cell]]:
    for module in ("sklearn.metrics", "scipy.stats"):
        needed(module)
    examples = load_examples(protocol)
    plan = protocol.cells(list(examples))
    cells = folder.read_cells(plan)
    tokenizer = load_tokenizer(protocol.base)
    base_sha256, vocab_size = _check_base(protocol, tokenizer)
    store = ClassifierStore(folder.models, protocol, tokenizer, {task: found.train for task, found in examples.items()})
    digests = {task: found.sha256() for task, found in examples.items()}
    noted = folder.begin(protocol, base_sha256, digests, store.token_counts_sha256(vocab_size))
    missing = [cell for cell in plan if cell not in cells]
    with _one_bar(len(plan), len(cells)) as progress:
        try:
            for number, cell in enumerate(missing):
                progress.set_postfix_str(cell.name)
                cells[cell] = make_cell(cell, protocol, store, examples[cell.task], cells)
                folder.write_cell(cell, cells[cell])
                write_tables(folder.path, cells, plan, noted)
                if cell.stage == "after" and cell.method != DENSE:
                    store.drop_factors(cell)
                if not keep_models and not any(_is_of_one_dense(cell, other) for other in missing[number + 1 :]):
                    store.drop(cell.task, cell.seed)
                progress.update()
        finally:
            write_tables(folder.path, cells, plan, noted)
            plot_drops(summarise(cells, plan), folder.path / "drops.png")
    return summarise(cells, plan), plan


def _check_base(protocol: Protocol, tokenizer: Any) -> tuple[str, int]:
    """Digest of the base model's weights and vocabulary, and rows of its table; what cannot be taken is refused."""
    model = own_model(protocol.base)
    if isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{str(protocol.base)!r} is compressed already; expected a dense model, which is fine-tuned first. Give "
            "the model that it was made from."
        )
    table = model.get_input_embeddings().weight.detach()
    for method in protocol.methods:
        for rate in protocol.rates:
            check_fit(method, rate, table)
    check_padding(make_classifier(protocol.base, protocol.tasks[0]), tokenizer)
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{weights_sha256(model)} {vocabulary}".encode()).hexdigest(), len(table)


def _is_of_one_dense(cell: Cell, other: Cell) -> bool:
    """Whether two cells are made from one dense classifier."""
    return (cell.task, cell.seed) == (other.task, other.seed)


@contextlib.contextmanager
def _one_bar(total: int, done: int) -> Iterator[Any]:
    """A progress bar over cells, during which those of what is done in a cell are not shown."""
    is_shown = logging.is_progress_bar_enabled()
    with logging.tqdm(total=total, initial=done, desc="GLUE", unit=" cells") as progress:
        logging.disable_progress_bar()
        try:
            yield progress
        finally:
            if is_shown:
                logging.enable_progress_bar()
