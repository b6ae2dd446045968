"""What compression lost, recovered in part: the factors are trained to give the outputs of the dense model again.

A short distillation on unlabelled texts, by the stock Trainer: the body is frozen, the sizes stay as they are, and no
labels are needed. Model in, model out: neither the compressed model nor its teacher is changed. The loss is in
``distillation``, folders are written elsewhere. Not part of arXiv 2010.04290, which fine-tunes the whole model.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..evaluation.batches import longest
from ..inputs import own_model
from ..loading import load_model
from ..locks import locked
from ..outputs import first_of_decoder
from ..resources import Resources
from ..table_projclust import FACTOR_NAMES
from ..token_counts import check_tokenizer
from ..vocabulary_projclust import factored_tables
from .checks import check_factors, check_model, check_options, check_teacher, check_texts, digest_of, last_state

_SAVES = 5  # checkpoints of a run
_MEASURED = ("fidelity", "evaluation")  # of the model as it was before


def recover(
    model: PreTrainedModel,
    teacher: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    num_epochs: float = 1.0,
    max_steps: int | None = None,
    learning_rate: float = 1e-2,
    batch_size: int = 32,
    max_length: int = 128,
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | Path | None = None,
    training_arguments: Mapping[str, Any] | None = None,
) -> Any:
    """Train the factors of a compressed model to give the outputs of the dense one, on unlabelled texts.

    The loss is the squared error of the last hidden states as a share of their energy; for models with a head of tokens
    plus the Kullback-Leibler divergence from the teacher's distribution of tokens. An encoder-decoder reads each text
    on both sides. Adam's steps grow over a tenth of the run, then fall to zero. Coordinates of tokens that no text has
    stay as they are, unless a tied head trains them; bases are shared, and move.

    Args:
        model: A compressed model with float factors.
        teacher: The dense model that it was made from, of the native class of ``model``, or its folder or Hub id.
        tokenizer: Their tokenizer.
        texts: Unlabelled texts of the kind that the model is for. Some thousands are enough to gain from.
        num_epochs: How often all texts are read.
        max_steps: Number of batches to train on, in place of ``num_epochs``.
        learning_rate: Largest step, as a share of the root mean square of each factor.
        batch_size: Texts of a batch (of each process).
        max_length: Tokens of a text, at most; what is longer is cut. Tokenizer and model may allow fewer.
        seed: Seed of the order of the texts.
        device: Where to compute; by default where the model is.
        checkpoint: Folder for the Trainer's own checkpoints, five in a run; an interrupted run goes on from the last.
            It is kept when the run is done: delete it then.
        training_arguments: Further ``TrainingArguments``, such as ``{"bf16": True}``.

    Returns:
        A copy of ``model`` with other factors, and all else as it was. ``config.projclust["recovery"]`` says how it was
        trained; ``fidelity`` and ``evaluation``, which were measured before, are left out.

    Raises:
        ValueError: If the model is not compressed, or in few bits; if the teacher is compressed, or of another class,
            vocabulary or size; if an option is out of its range; if the checkpoint is of another run; or
            if the loss or a factor is not finite.
        TypeError: If the texts are no texts, or a model is none of Transformers.
        FileNotFoundError: If the teacher's path is neither a folder nor a model on the Hub.
        BlockingIOError: If another run writes the checkpoint.

    Example:
        model = recover(model, "distilbert/distilbert-base-uncased", tokenizer, texts)
    """
    resources = Resources(device=device, memory_limit=None, checkpoint=checkpoint)
    check_options(num_epochs, max_steps, learning_rate, batch_size, max_length, seed)
    batch_size, max_length, seed = int(batch_size), int(max_length), int(seed)  # JSON knows no numbers of numpy
    max_steps = None if max_steps is None else int(max_steps)
    check_texts(texts)
    model = own_model(model)
    check_model(model)
    owner = {
        "num_epochs": num_epochs,
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "max_length": max_length,
        "seed": seed,
        "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "factors": digest_of(model),
    }
    embedding: Any = model.get_input_embeddings()
    check_tokenizer(tokenizer, embedding.num_embeddings)
    is_given = isinstance(teacher, PreTrainedModel)
    reference: Any = _load_teacher(teacher, model) if isinstance(teacher, str | Path) else own_model(teacher)
    check_teacher(reference, model)
    first = first_of_decoder(model) if model.config.is_encoder_decoder else None
    rows = _tokenize(texts, tokenizer, longest(tokenizer, model, max_length))

    from .distillation import Batches, DistillationTrainer, reading_order

    # Steps are small beside the precision of half floats; what comes of them is cast back at the end.
    student = copy.deepcopy(model).float()
    student.config.use_cache = False
    target = torch.device(resources.device or model.device)
    if is_given:  # which stays as it is, and where it is
        reference = copy.deepcopy(reference)
    reference = reference.to(target).eval()
    reference.config.use_cache = False
    num_texts = max_steps * batch_size if max_steps else max(1, round(num_epochs * len(rows)))
    order = reading_order([len(row["input_ids"]) for row in rows], num_texts, batch_size, seed)
    with locked(checkpoint), _folder_of(checkpoint) as folder:
        begun = None if checkpoint is None else last_state(Path(checkpoint), owner)
        options: dict[str, Any] = {
            "output_dir": str(folder),
            "num_train_epochs": 1,  # of all that is read, which is in order
            "max_steps": max_steps or -1,
            "per_device_train_batch_size": batch_size,
            "warmup_steps": 0.1,
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
            "save_strategy": "no" if checkpoint is None else "steps",
            "save_steps": max(1, num_texts // batch_size // _SAVES),
            "save_total_limit": 1,
            "logging_steps": 10,
            "report_to": "none",
            "use_cpu": target.type == "cpu",
            "dataloader_pin_memory": target.type != "cpu",
        }
        trainer = DistillationTrainer(
            model=student,
            teacher=reference,
            learning_rate=learning_rate,
            args=TrainingArguments(**(options | dict(training_arguments or {}))),
            train_dataset=[rows[number] for number in order],
            data_collator=Batches(tokenizer.pad_token_id or 0, first),
        )
        trainer.train(resume_from_checkpoint=begun)
    check_factors(student)  # of the last step too, which no loss comes after
    recovered = copy.deepcopy(model)
    _take_factors(recovered, student)
    made = {
        **{name: owner[name] for name in ("learning_rate", "batch_size", "max_length", "seed")},
        "texts": len(set(order)),
    }
    section = {key: value for key, value in recovered.config.projclust.items() if key not in _MEASURED}
    recovered.config.projclust = section | {
        "recovery": [*section.get("recovery", []), {"steps": trainer.state.global_step, **made}]
    }
    return recovered


def hold_out(texts: Sequence[str], fallback: Sequence[str]) -> tuple[list[str], list[str]]:
    """Keep some texts back to judge a model by.

    Args:
        texts: All texts.
        fallback: What to judge by where there are fewer than ten.

    Returns:
        The texts to train on, and the last tenth, 200 at most, of which none is among the former.

    Raises:
        ValueError: If no text is left to train on.
    """
    count = min(len(texts) // 10, 200)
    if not count:
        return list(texts), list(fallback)
    held_out = list(texts[len(texts) - count :])
    known = set(held_out)
    left = [text for text in texts if text not in known]
    if not left:
        raise ValueError(
            f"all {len(texts)} texts are equal to one of the last {count}, which are kept back to judge the model by; "
            "expected others to train on. Give more texts that differ."
        )
    return left, held_out


def _load_teacher(path: str | Path, model: Any) -> Any:
    """A dense model by the class that the compressed one was made from, whatever head its checkpoint has."""
    return load_model(path, as_class=type(model).native_class)


def _tokenize(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """Token ids of each text that has any."""
    ids = tokenizer([text for text in texts if text.strip()], truncation=True, max_length=max_length)["input_ids"]
    return [{"input_ids": row} for row in ids if row]


def _take_factors(model: Any, trained: Any) -> None:
    """Copy factors, in the dtype and on the device that they have in the model; tied modules share them."""
    others = factored_tables(trained)
    with torch.no_grad():
        for name, table in factored_tables(model).items():
            for part in FACTOR_NAMES:
                getattr(table, part).copy_(getattr(others[name], part))


@contextlib.contextmanager
def _folder_of(checkpoint: str | Path | None) -> Iterator[str | Path]:
    """The folder of checkpoints; one that is gone afterwards where none is kept."""
    if checkpoint is not None:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder
