"""How well sentence embeddings rank pairs as people do: Spearman correlation of cosines with scores.

Embeddings are those of sentence-transformers where both models are folders of it, else means of the last hidden states.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForTextEncoding
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .batches import check_finite
from .extras import needed
from .texts import ScoredPairs

Embed = Callable[[Sequence[str]], Tensor]


def spearman(embed: Embed, pairs: ScoredPairs, *, of: str = "the model") -> float:
    """Spearman correlation of the cosines of embeddings with people's scores.

    Args:
        embed: Embeds sentences: n of them in, (n, dim) out.
        pairs: Pairs of sentences, with scores.
        of: Whose embeddings they are, for an error.

    Returns:
        The correlation in percent; 0 where all cosines are equal.

    Raises:
        ModuleNotFoundError: If scipy is not installed.
        ValueError: If an embedding is not finite.
    """
    stats = needed("scipy.stats")
    sentences = list(dict.fromkeys([*pairs.first, *pairs.second]))
    places = {sentence: place for place, sentence in enumerate(sentences)}
    embeddings = embed(sentences).double()
    check_finite(embeddings, "numbers in embeddings", of)
    first, second = ([places[sentence] for sentence in side] for side in (pairs.first, pairs.second))
    cosines = cosine_similarity(embeddings[first], embeddings[second], dim=-1)
    if bool((cosines == cosines[0]).all()):
        return 0.0
    return 100 * float(stats.spearmanr(cosines.numpy(), pairs.scores).statistic)


def sentence_transformer(path: str | Path, *, device: str | None = None, batch_size: int = 16) -> Embed:
    """Embed sentences as the folder of a sentence-transformers model says: its pooling, and what comes after.

    Args:
        path: Such a folder, or a model of sentence-transformers on the Hub; compressed or not.
        device: Where to compute; by default the CPU.
        batch_size: Sentences that are computed at a time.

    Returns:
        The function.
    """
    from sentence_transformers import SentenceTransformer

    try:
        safe = {"use_safetensors": True}  # pickled weights can run code when they are opened
        model: Any = SentenceTransformer(str(path), device="cpu", model_kwargs=safe)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        # T5 and its like are read there by their native class, which takes a compressed table for one of a wrong shape.
        model = SentenceTransformer(str(path), device="cpu", model_kwargs=safe | {"ignore_mismatched_sizes": True})
        model[0].model = AutoModelForTextEncoding.from_pretrained(path)
    model.to(device or "cpu").eval()

    def embed(sentences: Sequence[str]) -> Tensor:
        found: Tensor = model.encode(
            list(sentences),
            batch_size=batch_size,
            convert_to_tensor=True,
            show_progress_bar=logging.is_progress_bar_enabled(),
        )
        return found.float().cpu()

    return embed


def is_sentence_transformer(path: str | Path) -> bool:
    """Whether a folder, or a model on the Hub, is a SentenceTransformer and the package is installed."""
    if importlib.util.find_spec("sentence_transformers") is None or _found(path, "modules.json") is None:
        return False
    config = _found(path, "config_sentence_transformers.json")
    # Cross and sparse encoders say here what they are, older SentenceTransformers nothing.
    said = {} if config is None else json.loads(config.read_text(encoding="utf-8"))
    return bool(said.get("model_type", "SentenceTransformer") == "SentenceTransformer")


def _found(path: str | Path, name: str) -> Path | None:
    file = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
    return None if file is None else Path(file)
