"""What is lost by compression: a compressed folder against the dense model, on texts and tasks of the user's.

Which figures there are follows from the model: embeddings of all; predictions of language models, and their perplexity
but for encoder-decoders; a task of GLUE of classifiers. Both models are in memory while they are compared. How figures
are measured is in ``agreement``, ``perplexity``, ``similarity`` and ``classifiers``.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..configuration_projclust import ProjClustConfigMixin
from ..loading import load_model
from ..resources import Resources
from ..sizes import measure
from ..whole_numbers import check_whole
from .agreement import compare_predictions, compare_states
from .batches import MAX_LENGTH, is_causal, language_model_kind, longest, tokens_of
from .classifiers import MAX_LENGTH as TASK_MAX_LENGTH
from .classifiers import score_classifier
from .counterparts import check_counterparts, shared_tokenizer
from .extras import needed
from .fidelity import embed_sentences
from .figures import Figure
from .glue import HUB_ID, Examples, check_task, load_glue
from .machine import describe_machine, installed_versions
from .perplexity import causal_perplexity, masked_perplexity
from .similarity import Embed, is_sentence_transformer, sentence_transformer, spearman
from .steps import Steps, steps_in
from .texts import ScoredPairs, read_scored_pairs, read_texts

_CLASSIFIER = "ForSequenceClassification"
_TO_ITSELF = {"mean_cosine": 1.0, "hidden_error": 0.0, "kl": 0.0, "top1_agreement": 100.0}
_BUNDLED = "bundled-sentences"


@dataclass(frozen=True)
class Evaluation:
    """Figures of a compressed model beside those of the dense one.

    Attributes:
        folder: Name of the compressed model's folder.
        against: Id or folder's name of the dense model.
        architecture: The native class of both.
        figures: What was measured.
        num_tokens: Tokens of the texts that embeddings and predictions were compared on.
        pooling: Where the embeddings of scored pairs come from; None where no pairs were given.
        sizes: Numbers and bytes of the "dense" and the "compressed" model, by the names of ``sizes.Sizes``; of a folder
            that is not compressed the model's numbers and its bytes in memory alone.
        options: What was asked for, or taken where nothing was.
        date: Of the day (UTC).
        machine: What was measured on.
        versions: Versions of libraries.
    """

    folder: str
    against: str
    architecture: str
    figures: tuple[Figure, ...]
    num_tokens: int
    pooling: str | None
    sizes: dict[str, dict[str, int]]
    options: dict[str, Any]
    date: str
    machine: str
    versions: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON types, with the difference of each figure."""
        figures = [asdict(figure) | {"difference": figure.difference} for figure in self.figures]
        return asdict(self) | {"figures": figures}


def evaluate(
    folder: str | Path,
    against: str | Path,
    *,
    text: str | Path | None = None,
    sts: str | Path | None = None,
    task: str | None = None,
    data_dir: str | Path | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Evaluation:
    """Measure what a model lost against the one that it was made from.

    Args:
        folder: Folder of a compressed model; a dense one of the same architecture is taken too, such as one whose
            table was rounded.
        against: Folder or Hub id of the dense model.
        text: Text file, a line a text, or folder of such, for embeddings, predictions and perplexity; by default 50
            sentences that come with this package.
        sts: File of pairs of sentences with scores, see ``read_scored_pairs``, for their Spearman correlation.
        task: A task of GLUE that the models were fine-tuned for, scored on its validation part.
        data_dir: Folder of GLUE in its official layout; by default the Hub's.
        max_length: Tokens of a text, a window or an example of a task, at most; by default 512, and 128 of a task's
            examples. Tokenizer and model may allow fewer.
        batch_size: Texts that are computed at a time, at most.
        device: Where to compute; by default the CPU.
        seed: Seed of the tokens that are hidden from masked language models.
        checkpoint: Folder to keep each measured figure in; an evaluation that was stopped goes on from it.

    Returns:
        The figures, and what they were measured on and with.

    Raises:
        FileNotFoundError: If a model or a file is not there.
        ValueError: If the models are not alike but for their tables, or the dense one lacks weights of the other's
            class; if an option, a file or a task does not fit; if the checkpoint is of another evaluation; or if a
            model gives numbers that are not finite.
        BlockingIOError: If another run has the checkpoint.
        ModuleNotFoundError: If a library is missing.
    """
    for name, number, least in (("max_length", max_length, 2), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if number is not None or name != "max_length":
            check_whole(name, number, least)
    task_max_length = max_length or TASK_MAX_LENGTH
    max_length = max_length or MAX_LENGTH
    Resources(device=device, memory_limit=None, checkpoint=None)
    architecture = check_counterparts(folder, against, same_class=task is not None)
    _check_task(task, data_dir, architecture)
    if sts is not None:
        needed("scipy.stats")
    read = read_texts(text)
    pairs = None if sts is None else read_scored_pairs(sts)
    examples = None if task is None else load_glue(task, "validation", data_dir)
    tokenizer = shared_tokenizer(folder, against)
    paths = (against, folder)

    options = {
        "task": task,
        "max_length": max_length,
        "task_max_length": None if task is None else task_max_length,
        "batch_size": batch_size,
        "device": device,
        "seed": seed,
    }
    versions = installed_versions()
    models_of = {"folder": folder, "against": against}
    data = {"text": text, "sts": sts, "data_dir": data_dir}
    with steps_in(checkpoint, options | {"versions": versions}, models=models_of, data=data) as step:
        own_pooling = pairs is not None and all(is_sentence_transformer(path) for path in paths)
        correlations: list[float] = []
        if pairs is not None and own_pooling:  # before the models are loaded, since sentence-transformers loads its own
            own = partial(sentence_transformer, device=device, batch_size=batch_size)
            correlations = _correlations(step, [partial(own, path) for path in paths], pairs)
        compressed: Any = load_model(folder)
        # A checkpoint whose head was left out by AutoModel is compared without it too.
        dense: Any = load_model(against, as_class=getattr(type(compressed), "native_class", type(compressed)))
        models = [model.to(device or "cpu") for model in (dense, compressed)]
        if pairs is not None and not own_pooling:
            limits: dict[str, Any] = {"max_length": max_length, "batch_size": batch_size}
            means = [partial(partial, embed_sentences, model, tokenizer, **limits) for model in models]
            correlations = _correlations(step, means, pairs)
        ids = tokens_of(tokenizer, read.lines, dense, max_length)
        if not ids:
            raise ValueError(
                f"the tokenizer makes no token of {read.name}; expected texts in a language that it knows."
            )
        of_texts = _of_texts(step, models, tokenizer, read.lines, ids, max_length, batch_size, seed)
        dataset = _BUNDLED if text is None else _dataset(text)
        figures = [Figure(name, read.name, dataset, None, *values) for name, values in of_texts.items()]
        if pairs is not None:
            figures.append(Figure("spearman", pairs.name, _dataset(sts), None, *correlations))
        if task is not None and examples is not None:
            figures += _of_task(step, models, tokenizer, task, examples, batch_size, task_max_length)
    return Evaluation(
        folder=Path(folder).resolve().name,
        against=_bare(against),
        architecture=architecture,
        figures=tuple(figures),
        num_tokens=sum(len(text) for text in ids),
        pooling=None if pairs is None else "sentence-transformers" if own_pooling else "mean of the last hidden states",
        sizes=_sizes(folder, dense, compressed),
        options={"text": _bare(text), "sts": _bare(sts), **options},
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        machine=describe_machine(device),
        versions=versions,
    )


def _check_task(task: str | None, data_dir: str | Path | None, architecture: str) -> None:
    """Refuse a task that models of a class are not for, or a folder of tasks without one."""
    if task is None:
        if data_dir is not None:
            raise ValueError(f"data_dir={str(data_dir)!r} without a task; expected both. Name a task of GLUE too.")
        return
    check_task(task)
    if not architecture.endswith(_CLASSIFIER):
        raise ValueError(
            f"the models are of the class {architecture}; expected one that ends in {_CLASSIFIER}, fine-tuned for the "
            f"task {task!r}. Give such models, or leave the task out."
        )
    for module in ("scipy.stats", "sklearn.metrics"):
        needed(module)


def _correlations(step: Steps, makers: Sequence[Callable[[], Embed]], pairs: ScoredPairs) -> list[float]:
    """Of each model, which is made when it is asked for and gone before the next one is."""

    def correlate(make: Callable[[], Embed], of: str) -> float:
        return spearman(make(), pairs, of=of)

    whose = ("the dense model", "the compressed model")
    return [step(f"spearman of {of}", correlate, make, of) for make, of in zip(makers, whose, strict=True)]


def _of_texts(
    step: Steps,
    models: list[Any],
    tokenizer: Any,
    lines: list[str],
    ids: list[Tensor],
    max_length: int,
    batch_size: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Figures of texts without labels, by name: of the dense model, and of the compressed one."""
    dense, compressed = models
    kind = language_model_kind(dense)
    common: dict[str, Any] = {"tokenizer": tokenizer, "batch_size": batch_size, "seed": seed}
    closeness = step("states", compare_states, dense, compressed, ids, batch_size=batch_size)
    found = {name: (_TO_ITSELF[name], value) for name, value in closeness.items()}
    if kind is not None:
        prefix = "masked_" if kind == "masked" else ""
        predicted = step("predictions", compare_predictions, dense, compressed, ids, **common)
        found |= {f"{prefix}{name}": (_TO_ITSELF[name], value) for name, value in predicted.items()}
    if kind == "causal" and is_causal(dense, ids):
        one, other = step.of_both("perplexity", models, causal_perplexity, tokenizer, lines, max_length=max_length)
        found["perplexity"] = one, other
    if kind == "masked":
        one, other = step.of_both("masked perplexity", models, masked_perplexity, ids, **common)
        found["masked_perplexity"] = one, other
    return found


def _of_task(
    step: Steps, models: list[Any], tokenizer: Any, task: str, examples: Examples, batch_size: int, max_length: int
) -> Iterator[Figure]:
    options = {"batch_size": batch_size, "max_length": longest(tokenizer, models[0], max_length)}
    dense, compressed = step.of_both("task", models, score_classifier, tokenizer, examples, task, **options)
    on = f"{task.upper()} of GLUE, validation, {len(examples):,} examples"
    for metric in check_task(task).metrics:
        yield Figure(f"task_{metric}", on, HUB_ID, task, dense[metric], compressed[metric])


def _sizes(folder: str | Path, dense: Any, compressed: Any) -> dict[str, dict[str, int]]:
    names = ("dense", "compressed")
    if isinstance(compressed.config, ProjClustConfigMixin):
        return {name: asdict(sizes) for name, sizes in zip(names, measure(folder), strict=True)}
    return {
        name: {"model_parameters": model.num_parameters(), "model_memory_bytes": model.get_memory_footprint()}
        for name, model in zip(names, (dense, compressed), strict=True)
    }


def _bare(path: str | Path | None) -> Any:
    """A name that may be published: of what is on this machine the last part of the path alone."""
    return Path(path).resolve().name if path is not None and Path(path).exists() else path and str(path)


def _dataset(path: str | Path | None) -> str:
    """The name of a file as that of a data set in a card's metadata."""
    return re.sub(r"[^\w.-]+", "-", str(_bare(path)), flags=re.ASCII).strip("-") or "texts"
