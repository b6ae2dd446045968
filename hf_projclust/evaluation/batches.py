"""Tokens of texts in batches without padding, and what kind of model reads them.

Texts of one length go together, so that models without a padding token are batched too, and no figure depends on how a
model treats padding. How many texts share a batch is bounded by the numbers that come out of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from ..configuration_projclust import PREFIX
from ..outputs import logits_of

LanguageModel = Literal["masked", "causal", "encoder-decoder"]
MAX_LENGTH = 512
_PROBED = 8  # tokens
_SAME = 1e-3  # relative difference of logits that are computed from equal tokens, in half precision too
_MOST_NUMBERS = 2**26  # of logits or hidden states in a batch: 256 MiB in float32; one text may have more


def tokens_of(tokenizer: Any, texts: Sequence[str], model: Any, max_length: int = MAX_LENGTH) -> list[Tensor]:
    """Tokenise texts, with special tokens, and cut those that are too long.

    Args:
        tokenizer: The tokenizer.
        texts: The texts.
        model: The model that is to read them, whose positions are a limit too.
        max_length: Tokens of a text, at most.

    Returns:
        Ids of each text, shape (tokens,), on the CPU; texts without any token are left out.
    """
    length = longest(tokenizer, model, max_length)
    ids = tokenizer(list(texts), truncation=True, max_length=length, padding=False, verbose=False)["input_ids"]
    return [torch.tensor(text, dtype=torch.long) for text in ids if text]


def longest(tokenizer: Any, model: Any, max_length: int) -> int:
    """Tokens that a text may have: what is asked for, within what tokenizer and model allow."""
    limits = [max_length, tokenizer.model_max_length]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and positions > 0:  # where there is no limit some say -1
        limits.append(positions)
    for name, module in model.named_modules():
        # With a padding index, positions begin after it (RoBERTa).
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return int(min(limits))


def batches_of_one_length(lengths: Sequence[int], batch_size: int, numbers_per_token: int) -> Iterator[list[int]]:
    """Which texts to compute together: some of one length, the shortest first.

    Args:
        lengths: Tokens of each text.
        batch_size: Texts of a batch, at most.
        numbers_per_token: What the model gives for a token: the vocabulary's size, or the width.

    Yields:
        Numbers of texts.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        groups[length].append(number)
    for length in sorted(groups):
        size = max(1, min(batch_size, _MOST_NUMBERS // (length * numbers_per_token)))
        for start in range(0, len(groups[length]), size):
            yield groups[length][start : start + size]


def language_model_kind(model: Any) -> LanguageModel | None:
    """What kind of language model a class is; None for models without a language-model head."""
    name = type(model).__name__.removeprefix(PREFIX)
    if name in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values() and model.config.is_encoder_decoder:
        return "encoder-decoder"
    if name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values():
        return "masked"
    causal = (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return "causal" if any(name in names.values() for names in causal) else None


def check_finite(numbers: Tensor, what: str, of: str) -> None:
    """Refuse numbers of a model that are NaN or infinite, from which no figure follows.

    Args:
        numbers: Any of them.
        what: What they are, in the plural.
        of: Whose they are, such as "the dense model".

    Raises:
        ValueError: If one of them is not finite.
    """
    if not bool(numbers.isfinite().all()):
        count = int((~numbers.isfinite()).sum())
        raise ValueError(
            f"{count:,} of {numbers.numel():,} {what} of {of} are NaN or infinite; expected finite numbers. Check its "
            "weights for NaN, or load it in another dtype."
        )


def is_causal(model: Any, texts: Sequence[Tensor]) -> bool:
    """Whether the logits of a language model depend on no later token, by a probe on a few tokens of one text.

    A class for causal language models may be bidirectional by its configuration, such as a BertLMHeadModel that is no
    decoder.

    Args:
        model: A language model, in evaluation mode.
        texts: Ids of each text, shape (tokens,).

    Returns:
        Whether logits stay when the last token is another one; true if no text has two tokens that differ.
    """
    for text in texts:
        for length in range(2, min(len(text), _PROBED) + 1):
            if text[length - 1] != text[0]:
                one, other = text[:length].clone(), text[:length].clone()
                other[-1] = text[0]
                logits, changed = (logits_of(model, ids.unsqueeze(0))[:, :-1].float() for ids in (one, other))
                return bool((logits - changed).norm() <= _SAME * logits.norm())
    return True
