"""What a text model gives for token ids, whatever its architecture: hidden states, logits, and what a decoder reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def last_states(model: Any, ids: Tensor) -> Tensor:
    """Last hidden states of texts; of an encoder-decoder those of the encoder.

    Args:
        model: A text model, with or without a head.
        ids: Token ids, shape (texts, tokens).

    Returns:
        Hidden states, shape (texts, tokens, width), float32.
    """
    body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    ids = ids.to(model.device)
    states: Tensor = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return states.float()


def states_of(outputs: Any) -> list[Tensor]:
    """Last hidden states among the outputs of a model.

    Args:
        outputs: Outputs with hidden states.

    Returns:
        Those of the decoder or the only part, then those of the encoder beside it, each (texts, tokens, width).
    """
    last = getattr(outputs, "last_hidden_state", None)
    if last is None:
        last = (getattr(outputs, "hidden_states", None) or outputs.decoder_hidden_states)[-1]
    encoder = getattr(outputs, "encoder_last_hidden_state", None)
    return [last] if encoder is None else [last, encoder]


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Logits of a language model for each token of texts; the decoder of an encoder-decoder reads the same text again.

    Args:
        model: A language model.
        ids: Token ids, shape (texts, tokens).

    Returns:
        Logits, shape (texts, tokens, vocabulary), in the dtype of the model.

    Raises:
        ValueError: If the configuration of an encoder-decoder names no token that the decoder begins with.
    """
    ids = ids.to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = shifted(ids, first_of_decoder(model))
    logits: Tensor = model(**inputs).logits
    return logits


def first_of_decoder(model: Any) -> int:
    """The token that the decoder of an encoder-decoder begins with, as generation takes it.

    Args:
        model: The model.

    Returns:
        Its id.

    Raises:
        ValueError: If the configuration names none.
    """
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in (model.config, getattr(model, "generation_config", None)):
            if (token := getattr(config, name, None)) is not None:
                return int(token)
    raise ValueError(
        "the configuration names neither decoder_start_token_id nor bos_token_id; expected the token that the decoder "
        "begins with. Set it in config.json."
    )


def shifted(ids: Tensor, first: int) -> Tensor:
    """What a decoder reads to give texts (texts, tokens): a first token, then all but the last."""
    return torch.cat([ids.new_full((len(ids), 1), first), ids[:, :-1]], dim=1)
