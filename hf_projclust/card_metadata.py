"""The metadata of a model card: what a person or a Trainer has stated stays, what is missing comes from the checkpoint.

How the rest of a card is written is in ``cards``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .card_facts import cell
from .configuration_projclust import PREFIX
from .evaluation.figures import Figure
from .provenance import INHERITED, languages

UNKNOWN = "unknown"
_TAGS = ("projclust", "projective-clustering", "model-compression")
_OF_THE_BASE = ("base_model", "base_model_relation", *INHERITED)
_SENTENCES, _COSINE = "bundled-sentences", "cosine_similarity"
_BY_US = ", by hf-projclust evaluate"  # at the end of a metric's name: what is written anew with each card


def card_metadata(
    config: Any, stated: dict[str, Any], *, title: str, former_title: str, figures: Sequence[Figure] = ()
) -> ModelCardData:
    """Complete the metadata of a card.

    Args:
        config: Configuration of the compressed model.
        stated: Metadata that a card has already; none for a new one.
        title: Name of the model.
        former_title: Name that the model had while it was a folder only.
        figures: What was measured of the weights since, in place of what a card may have of such.

    Returns:
        The metadata. Licence, languages, task and library are the base model's where nothing is stated; a licence that
        nobody knows is "other", by the name of "unknown".
    """
    provenance = config.projclust.get("provenance", {})
    trained = is_trained(config, stated)
    stated = _without_what_is_void(stated, provenance, trained)
    defaults: dict[str, Any] = {"library_name": "transformers"} | provenance.get("inherited", {})
    if "license" in stated:
        defaults = {name: value for name, value in defaults.items() if not name.startswith("license")}
    elif "license" not in defaults:
        defaults |= {"license": "other", "license_name": UNKNOWN}
    if trained:
        defaults.pop("pipeline_tag", None)  # the task may be another now
    if "base_model" in provenance and "base_model" not in stated:
        defaults["base_model"] = provenance["base_model"]
        if provenance["is_copy"] and not trained:
            defaults["base_model_relation"] = "quantized"  # the Hub's word for the same weights in fewer bytes
    merged = defaults | stated
    merged["tags"] = list(dict.fromkeys([*_listed(merged.get("tags")), *_TAGS]))
    data = ModelCardData(**merged)
    results = [result for result in data.eval_results or [] if not _is_ours(result)]
    fidelity = config.projclust.get("fidelity")
    if fidelity is not None and not trained:
        results.append(
            EvalResult(
                task_type="feature-extraction",
                dataset_type=_SENTENCES,
                dataset_name=fidelity["texts"],
                metric_type=_COSINE,
                metric_name="Mean cosine to the dense model when compressed",
                metric_value=round(fidelity["mean_cosine"], 4),
            )
        )
    results += [_result(figure) for figure in figures]
    data.eval_results = results or None
    if data.model_name in (None, former_title):
        data.model_name = title
    if not results:
        data.model_name = None
    return data


def licence_text(config: Any, data: ModelCardData) -> str | None:
    """Whose licence the model has, in words; None for one that nobody knows."""
    if data.license is None or (data.license == "other" and data.license_name in (None, UNKNOWN)):
        return None
    inherited = config.projclust.get("provenance", {}).get("inherited", {})
    name = data.license_name if data.license == "other" else ", ".join(_listed(data.license))
    link = f" ({data.license_link})" if data.license_link else ""
    whose = "That of the base model" if data.license == inherited.get("license") else "As the publisher states it"
    return f"{whose}: {name}{link}."


def is_trained(config: Any, stated: dict[str, Any]) -> bool:
    """Whether a model was trained since it was compressed, as far as its class and its card tell."""
    compressed = config.projclust.get("provenance", {}).get("architecture")
    by_trainer = "generated_from_trainer" in _listed(stated.get("tags"))
    return by_trainer or config.architectures != [f"{PREFIX}{compressed}"]


def other_scores(data: ModelCardData) -> list[dict[str, Any]]:
    """Scores that others have put into the metadata, as lines of a table: task, dataset, metric, value."""
    return [_line(result) for result in data.eval_results or [] if not _is_ours(result)]


def _line(result: EvalResult) -> dict[str, Any]:
    return {
        "task": cell(result.task_name or result.task_type),
        "dataset": cell(result.dataset_name),
        "metric": cell(result.metric_name or result.metric_type),
        "value": result.metric_value,
    }


def _without_what_is_void(stated: dict[str, Any], provenance: dict[str, Any], trained: bool) -> dict[str, Any]:
    """Metadata of a card without what was put there for want of better, or holds of another base model."""
    kept = dict(stated)
    if "language" in kept:
        kept["language"] = languages(kept["language"])
    if kept.get("license_name") == UNKNOWN and "license_link" not in kept:
        del kept["license_name"]
        if kept.get("license") == "other":
            del kept["license"]
    others = "base_model" in kept and provenance.get("base_model") not in (None, *_listed(kept["base_model"]))
    if others and not trained:
        kept = {name: value for name, value in kept.items() if name not in _OF_THE_BASE}
    return kept


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _is_ours(result: EvalResult) -> bool:
    is_fidelity = (result.dataset_type, result.metric_type) == (_SENTENCES, _COSINE)
    return is_fidelity or str(result.metric_name).endswith(_BY_US)


def _result(figure: Figure) -> EvalResult:
    kind = figure.kind
    return EvalResult(
        task_type=kind.task,
        dataset_type=figure.dataset,
        dataset_name=figure.on,
        dataset_config=figure.config,
        metric_type=kind.metric,
        metric_name=f"{kind.title[0].upper()}{kind.title[1:]}{_BY_US}",
        metric_value=round(figure.compressed, kind.digits),
    )
