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
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from .batches import check_finite
from .glue import Examples, check_task, glue_metrics

MAX_LENGTH = 128  # tokens of an example, as is usual for GLUE


def make_classifier(source: str | Path, task: str, *, seed: int = 0) -> Any:
    """Load a model with a fresh head for a task.

    Args:
        source: Hub id or folder of a model.
        task: Name of the task.
        seed: Seed of the head.

    Returns:
        The model in float32, whatever its checkpoint has; its configuration names the task's labels.

    Raises:
        ValueError: If there is no such task, or the source has an output layer already, as a classifier has.
    """
    glue_task = check_task(task)
    names: dict[str, Any] = {
        "id2label": dict(enumerate(glue_task.labels)),
        "label2id": {label: place for place, label in enumerate(glue_task.labels)},
    }
    set_seed(seed)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        source,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are refused below
        output_loading_info=True,
        problem_type="single_label_classification" if glue_task.labels else "regression",
        **(names if glue_task.labels else {"num_labels": 1}),
    )
    body = f"{model.base_model_prefix}."
    # Other layers of a head may be those of pretraining, as in ModernBERT.
    outputs = {
        name
        for name, tensor in model.state_dict().items()
        if not name.startswith(body) and tensor.shape[:1] == (glue_task.num_outputs,)
    }
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    if kept := sorted(mismatched | (outputs - set(report["missing_keys"]))):
        raise ValueError(
            f"{str(source)!r} has weights of its own for {', '.join(kept)} of a {type(model).__name__}; expected a "
            "pretrained model, which is given a fresh head. Give the model that this classifier was made from."
        )
    return model


def check_padding(model: Any, tokenizer: Any) -> None:
    """Refuse a model or tokenizer that cannot take examples of several lengths in a batch.

    Args:
        model: A sequence classifier.
        tokenizer: Its tokenizer.

    Raises:
        ValueError: If the tokenizer has no padding token, or the model needs to know its id and does not.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no padding token; expected one, since examples of a batch "
            "are padded to one length. Set tokenizer.pad_token = tokenizer.eos_token, or a token of its own, and save "
            "it; set model.config.pad_token_id to its id likewise."
        )
    if model.config.get_text_config().pad_token_id is not None:
        return
    try:  # which of the classifiers look for the last token before the padding, no attribute says
        with torch.no_grad():
            model(input_ids=torch.full((2, 1), tokenizer.pad_token_id, device=model.device))
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__} has no pad_token_id in its configuration ({error}); expected that of the "
            f"tokenizer, {tokenizer.pad_token_id}. Set model.config.pad_token_id = tokenizer.pad_token_id, and save "
            "the model."
        ) from error


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
        model: A sequence classifier; labels that named like the task's or by number may be in any order.
        tokenizer: Its tokenizer.
        examples: What to score it on.
        task: Name of the task.
        batch_size: Examples that are computed at a time.
        max_length: Tokens of an example, at most.

    Returns:
        Metrics as ``glue_metrics`` gives them, in percent.

    Raises:
        ValueError: If there is no such task, the model has not its number of outputs or names other labels, nothing
            can be padded, or a logit is not finite.
        ModuleNotFoundError: If scikit-learn or scipy is not installed.
    """
    places = _places_of_labels(model.config, task)
    check_padding(model, tokenizer)
    logits = predict(model, tokenizer, examples, batch_size=batch_size, max_length=max_length)
    check_finite(logits, "logits", "the classifier")
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
    given = [str(config.id2label.get(number)) for number in range(config.num_labels)]
    names = [name.lower().replace("-", "_").replace(" ", "_") for name in given]
    numbers = range(config.num_labels)
    for known in (
        list(glue_task.labels),
        [f"label_{number}" for number in numbers],
        [str(number) for number in numbers],
    ):
        if sorted(names) == sorted(known):
            return [known.index(name) for name in names]
    raise ValueError(
        f"the classifier names its labels {', '.join(given)}; expected {', '.join(glue_task.labels)} for the task "
        f"{task!r}, in any order, or LABEL_0 and so on. Set id2label of its configuration, or give a model that was "
        "fine-tuned for this task."
    )
