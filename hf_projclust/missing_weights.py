"""Weights that a checkpoint lacks for a class that it is loaded by: refused where its outputs depend on them.

Transformers fills them at random with a warning. Which class a model is loaded by is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .outputs import states_of


def check_nothing_is_missing(model: Any, missing: Iterable[str], path: str | Path) -> None:
    """Refuse a model whose outputs depend on weights that its checkpoint lacks.

    Of a model without a head of tokens its hidden states are what it is asked for: a pooler or a classifier beyond them
    may be missing.

    Args:
        model: The model, in evaluation mode.
        missing: Names of the weights that its checkpoint lacks.
        path: The checkpoint.

    Raises:
        ValueError: If its logits of tokens, or without those its hidden states, depend on such a weight.
    """
    lacking = sorted(missing)
    if lacking and model.get_output_embeddings() is None:
        unused = _beyond_states(model, lacking)
        lacking = [name for name in lacking if name not in unused]
    if lacking:
        raise ValueError(
            f"{str(path)!r} lacks weights of a {type(model).__name__}, such as {lacking[0]} (of {len(lacking)}), which "
            "would be random; expected all of them. Give the model with its head, such as the one that the compressed "
            "model was made from."
        )


def _beyond_states(model: Any, names: list[str]) -> set[str]:
    """Those of some parameters that the last hidden states have no gradient to."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    asked = [name for name in names if name in parameters]
    if not asked:
        return set()
    ids = torch.tensor([[0, 1]], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    states = states_of(model(**inputs, output_hidden_states=True))
    total = torch.stack([each.float().sum() for each in states]).sum()
    found = torch.autograd.grad(total, [parameters[name] for name in asked], allow_unused=True)
    return {name for name, gradient in zip(asked, found, strict=True) if gradient is None}
