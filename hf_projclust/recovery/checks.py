"""What ``recover`` is given, and what is refused of it: options, texts, the model, its teacher, the folder of a run.

Nothing is trained here, and no model is changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..evaluation.whole_files import whole_file
from ..modeling_projclust import ProjClustModelMixin
from ..packed_projclust import PackedTable
from ..solvers.rows import process_index
from ..table_projclust import FACTOR_NAMES
from ..vocabulary_projclust import factored_tables
from ..whole_numbers import check_whole

logger = logging.get_logger(__name__)

_OWNER = "recovery.json"
_STATE = "trainer_state.json"  # which the Trainer writes last


def check_options(
    num_epochs: float, max_steps: int | None, learning_rate: float, batch_size: int, max_length: int, seed: int
) -> None:
    """Refuse options that are out of their ranges.

    Args:
        num_epochs: As for ``recover``, like the others.
        max_steps: At least 1, or None.
        learning_rate: Between 0 and 1.
        batch_size: At least 1.
        max_length: At least 1.
        seed: From 0 to 2 ** 32 - 1.

    Raises:
        ValueError: If one of them is.
    """
    check_whole("batch_size", batch_size, 1)
    check_whole("max_length", max_length, 1)
    if max_steps is not None:
        check_whole("max_steps", max_steps, 1)
    check_whole("seed", seed, 0, 2**32 - 1)
    if not 0 < num_epochs < math.inf:
        raise ValueError(
            f"num_epochs={num_epochs!r}; expected a finite number above 0. Use max_steps to train on fewer texts."
        )
    if not 0 < learning_rate < 1:
        raise ValueError(
            f"learning_rate={learning_rate!r}; expected a share of the size of the factors, above 0 and below 1, such "
            "as 0.01."
        )


def check_texts(texts: Any) -> None:
    """Refuse what is no list of texts.

    Args:
        texts: What was given.

    Raises:
        TypeError: If it is no sequence, or holds anything but texts.
        ValueError: If no text has words.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(
            f"texts is a {type(texts).__name__}; expected a list of texts. Put a single text into a list; of a data "
            'set pass the column: list(dataset["text"]).'
        )
    if others := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(
            f"texts holds a {type(others[0]).__name__}; expected texts alone, which the tokenizer reads. Pass "
            "the texts, not their tokens."
        )
    if not any(text.strip() for text in texts):
        raise ValueError(f"there are {len(texts)} texts, and none has words; expected texts to train on. Give some.")


def check_model(model: Any) -> None:
    """Refuse a model without factors that can be trained.

    Args:
        model: A Transformers model.

    Raises:
        ValueError: If it is not compressed, or in few bits.
    """
    if not isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{type(model).__name__} is not compressed; expected a model made by hf_projclust.compress(). Compress it "
            "first; it is then the teacher."
        )
    if any(isinstance(table, PackedTable) for table in factored_tables(model).values()):
        raise ValueError(
            f"{type(model).__name__} has tables in few bits, which cannot be trained; expected float factors. Call "
            "model.dequantize_factors() first; the result is saved with float factors."
        )


def check_teacher(teacher: Any, model: Any) -> None:
    """Refuse a teacher whose outputs are none of those that the model should have; warn of one with another body.

    Args:
        teacher: A Transformers model.
        model: The compressed model.

    Raises:
        ValueError: If the teacher is compressed, or of another class, vocabulary, width or size.
    """
    if isinstance(teacher, ProjClustModelMixin):
        raise ValueError(
            f"the teacher is a {type(teacher).__name__}, which is compressed itself; expected the dense model. Load "
            "that one."
        )
    native = type(model).native_class
    if type(teacher) is not native:
        raise ValueError(
            f"the teacher is a {type(teacher).__name__} and the model was made from a {native.__name__}; expected one "
            f"class. Load both by the same Auto class, or the teacher by {native.__name__}.from_pretrained()."
        )
    sizes = [
        (table.num_embeddings, table.embedding_dim)
        for table in (teacher.get_input_embeddings(), model.get_input_embeddings())
    ]
    if sizes[0] != sizes[1]:
        (tokens, dim), (own_tokens, own_dim) = sizes
        raise ValueError(
            f"the teacher has a table of {tokens:,} x {dim} and the model one of {own_tokens:,} x {own_dim}; expected "
            "equal ones. Load the model that this one was made from; after a resize, resize the teacher likewise."
        )
    bodies = [_body(part, set(factored_tables(model))) for part in (teacher, model)]
    shapes = [{name: tuple(weight.shape) for name, weight in body.items()} for body in bodies]
    if differing := sorted(name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)):
        raise ValueError(
            f"the teacher's body has other parameters than the model's, such as {differing[0]} (of {len(differing)}); "
            "expected equal shapes. Load the model that this one was made from."
        )
    changed = [
        name for name, weight in bodies[1].items() if not torch.equal(weight.cpu(), bodies[0][name].to(weight).cpu())
    ]
    if changed:
        logger.warning(
            "The model's body has other weights than the teacher's, such as %s (of %s): the factors are trained to "
            "make up for that too. Of a model that was fine-tuned, the teacher is the dense one, fine-tuned likewise.",
            changed[0],
            len(changed),
        )


def check_factors(model: Any) -> None:
    """Refuse factors that training has made NaN or infinite.

    Args:
        model: A compressed model with float factors.

    Raises:
        ValueError: If one of them is.
    """
    for name, table in factored_tables(model).items():
        for part in ("coefficients", "bases"):
            if not bool(getattr(table, part).isfinite().all()):
                raise ValueError(
                    f"training made {part} of {name} NaN or infinite; expected finite factors. Train again with a "
                    "smaller learning_rate."
                )


def last_state(folder: Path, owner: dict[str, Any]) -> str | None:
    """Find where a run goes on; the folder is begun where there is none.

    Args:
        folder: The folder of the Trainer's checkpoints.
        owner: What identifies the run, of JSON types.

    Returns:
        The last checkpoint that was written to its end, or None.

    Raises:
        ValueError: If the folder holds other files, or a run of another model or other options.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / _OWNER).is_file() or not any(folder.iterdir()))):
        raise ValueError(
            f"checkpoint={str(folder)!r} holds other things; expected a folder that is new or empty, or that an "
            "interrupted run left. Give another folder."
        )
    if not (folder / _OWNER).is_file():
        if process_index() != 0:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / _OWNER) as partial:
            partial.write_text(json.dumps(owner, indent=2, allow_nan=False), encoding="utf-8")
    found = json.loads((folder / _OWNER).read_text(encoding="utf-8"))
    if others := sorted(name for name in owner if found.get(name) != owner[name]):
        raise ValueError(
            f"the checkpoint {str(folder)!r} belongs to another run: {', '.join(others)} differ; expected the model, "
            "the texts and the options that it was begun with. Give these, or another folder."
        )
    whole = {int(path.parent.name.rpartition("-")[2]): path.parent for path in folder.glob(f"checkpoint-*/{_STATE}")}
    return str(whole[max(whole)]) if whole else None


def digest_of(model: Any) -> str:
    """What tells the factors of a model from others.

    Args:
        model: A compressed model with float factors.

    Returns:
        A checksum.
    """
    digest = hashlib.sha256()
    for table in factored_tables(model).values():
        for part in FACTOR_NAMES:
            digest.update(getattr(table, part).detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _body(model: Any, tables: set[str]) -> dict[str, torch.Tensor]:
    """Parameters but the vocabulary's, by name."""
    of_tables = {f"{name}.{part}" for name in tables for part in ("weight", *FACTOR_NAMES)}
    return {name: weight.detach() for name, weight in model.named_parameters() if name not in of_tables}
