"""Classifiers of GLUE tasks: made from a model, fine-tuned by the stock Trainer, and scored.

Dense and compressed models are treated alike. The tasks themselves are in ``glue``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from .glue import Examples, check_task, glue_metrics

MAX_LENGTH = 128  # tokens of an example, as is usual for GLUE


def make_classifier(source: str | Path, task: str, *, seed: int = 0) -> Any:
    """Load a model with a fresh head for a task.

    Args:
        source: Hub id or folder of a model.
        task: Name of the task.
        seed: Seed of the head.

    Returns:
        The model, whose configuration names the task's labels.

    Raises:
        ValueError: If there is no such task.
    """
    glue_task = check_task(task)
    names: dict[str, Any] = {
        "id2label": dict(enumerate(glue_task.labels)),
        "label2id": {label: place for place, label in enumerate(glue_task.labels)},
    }
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(
        source,
        problem_type="single_label_classification" if glue_task.labels else "regression",
        **(names if glue_task.labels else {"num_labels": 1}),
    )


def fine_tune(
    model: Any,
    tokenizer: Any,
    examples: Examples,
    *,
    num_epochs: float,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    bf16: bool = False,
) -> None:
    """Fine-tune a classifier in place: AdamW, a tenth of the steps to warm up, then down to zero on a line.

    Args:
        model: A sequence classifier.
        tokenizer: Its tokenizer.
        examples: What to train on.
        num_epochs: Times that each example is seen.
        learning_rate: The greatest one.
        batch_size: Examples of a step.
        max_length: Tokens of an example, at most.
        seed: Seed of the order and of dropout.
        bf16: Compute products in bfloat16, under autocast; weights stay in float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                folder,
                num_train_epochs=num_epochs,
                learning_rate=learning_rate,
                warmup_steps=0.1,
                per_device_train_batch_size=batch_size,
                train_sampling_strategy="group_by_length",
                seed=seed,
                bf16=bf16,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=not logging.is_progress_bar_enabled(),
                use_cpu=model.device.type == "cpu",
            ),
            train_dataset=encode(tokenizer, examples, max_length),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
        if not trainer.args.disable_tqdm:
            trainer.add_callback(_Progress)
        trainer.train()
    model.eval()


def score_classifier(
    model: Any, tokenizer: Any, examples: Examples, task: str, *, batch_size: int = 64, max_length: int = MAX_LENGTH
) -> dict[str, float]:
    """Score a classifier on examples of a task.

    Args:
        model: A sequence classifier; labels that its configuration names like the task's may be in another order.
        tokenizer: Its tokenizer.
        examples: What to score it on.
        task: Name of the task.
        batch_size: Examples that are computed at a time.
        max_length: Tokens of an example, at most.

    Returns:
        Metrics as ``glue_metrics`` gives them, in percent.

    Raises:
        ValueError: If there is no such task, or the model has not its number of outputs.
        ModuleNotFoundError: If scikit-learn or scipy is not installed.
    """
    places = _places_of_labels(model.config, task)
    logits = predict(model, tokenizer, examples, batch_size=batch_size, max_length=max_length)
    predictions = logits.squeeze(1) if places is None else torch.tensor(places)[logits.argmax(dim=1)]
    return glue_metrics(task, predictions.tolist(), examples.labels)


@torch.no_grad()
def predict(model: Any, tokenizer: Any, examples: Examples, *, batch_size: int, max_length: int) -> Tensor:
    """Logits of a classifier for each example, shape (n, outputs), float32, on the CPU."""
    features: Sequence[dict[str, Any]] = encode(tokenizer, examples, max_length)
    order = sorted(range(len(features)), key=lambda number: len(features[number]["input_ids"]))
    collate: Any = DataCollatorWithPadding(tokenizer)
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    was_training = model.training
    model.eval()
    found = []
    for batch in batches:
        inputs = collate([features[number] for number in batch]).to(model.device)
        found.append(model(**{name: value for name, value in inputs.items() if name != "labels"}).logits.float().cpu())
    model.train(was_training)
    return torch.cat(found)[torch.tensor(order).argsort()]


def encode(tokenizer: Any, examples: Examples, max_length: int) -> list[dict[str, Any]]:
    """Examples as a Trainer takes them: tokens of each, and its label."""
    texts = [examples.first] if examples.second is None else [examples.first, examples.second]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    return [
        {"labels": label, **{name: values[number] for name, values in encoded.items()}}
        for number, label in enumerate(examples.labels)
    ]


class _Progress(ProgressCallback):
    """The Trainer's progress bar, without the figures that it prints to standard output."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing."""


def _places_of_labels(config: Any, task: str) -> list[int] | None:
    """The place among the task's labels of each output; None where the task is to predict a number."""
    glue_task = check_task(task)
    if config.num_labels != glue_task.num_outputs:
        raise ValueError(
            f"the classifier has {config.num_labels} outputs; expected {glue_task.num_outputs} for the task {task!r}. "
            "Give a model that was fine-tuned for this task."
        )
    if not glue_task.labels:
        return None
    names = [str(config.id2label[number]).lower().replace("-", "_") for number in range(config.num_labels)]
    if sorted(names) != sorted(glue_task.labels):
        return list(range(config.num_labels))
    return [glue_task.labels.index(name) for name in names]
