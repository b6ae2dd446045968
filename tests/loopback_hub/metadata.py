"""What the Hub checks in the metadata of a model card, from its documentation and its error texts.

It reads the YAML block at the top of README.md and judges the keys that a library writes: license, language,
base_model, tags, datasets, metrics, pipeline_tag, library_name and model-index. Other keys pass unseen, and whether a
base model or a data set exists is not asked.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
BLOCK = re.compile(r"\A\s*---[\r\n]+(.*?)[\r\n]+---(?:\r\n|\r|\n|\Z)", re.DOTALL)
LANGUAGE = re.compile(r"[a-z]{2,3}(-\w+)?|code|multilingual")
MODEL_ID = re.compile(r"(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95}")
DATASET_TYPE = re.compile(r"(?:[\w-]+/)?[\w\-.]+")

LICENSES = frozenset((_HERE / "licenses.txt").read_text(encoding="utf-8").split())
PIPELINE_TAGS = frozenset((_HERE / "pipeline_tags.txt").read_text(encoding="utf-8").split())


def read_metadata(content: str) -> Any:
    """The YAML block of a model card, parsed; None where there is none. Raises yaml.YAMLError if it does not parse."""
    block = BLOCK.match(content)
    return yaml.safe_load(block[1]) if block else None


def check_metadata(content: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings that a model card earns."""
    try:
        metadata = read_metadata(content)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {' '.join(str(error).split())}"], []
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ['"value" must be of type object'], []
    warnings = []
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        warnings.append('"license_name" is wanted where "license" is "other"')
    return list(_errors(metadata)), warnings


def _errors(metadata: dict[str, Any]) -> Iterator[str]:
    for key, known in (("license", LICENSES), ("pipeline_tag", PIPELINE_TAGS)):
        for name, value in _each(metadata, key, listed=key == "license"):
            if value not in known:
                yield f'"{name}" must be one of [{", ".join(sorted(known))}]; it is {value!r}'
    for key, pattern, advice in (
        ("language", LANGUAGE, 'It must be an ISO 639-1, 639-2 or 639-3 code, or "code" or "multilingual".'),
        ("base_model", MODEL_ID, "Use a model id from https://hf.co/models."),
    ):
        for name, value in _each(metadata, key):
            if not isinstance(value, str) or not pattern.fullmatch(value) or ".." in value or "--" in value:
                yield f'"{name}" with value "{value}" is not valid. {advice}'
    for key in ("tags", "datasets", "metrics"):
        if key == "tags" and not isinstance(metadata.get(key, []), list):
            yield f'"{key}" must be an array'
        yield from (f'"{name}" must be a string' for name, value in _each(metadata, key) if not isinstance(value, str))
    if not isinstance(metadata.get("library_name", ""), str):
        yield '"library_name" must be a string'
    if "model-index" in metadata:
        yield from _model_index_errors(metadata["model-index"])


def _each(metadata: dict[str, Any], key: str, listed: bool = True) -> list[tuple[str, Any]]:
    """The values of a key that may hold one or several, each with the name that the Hub gives it in an error."""
    if key not in metadata:
        return []
    value = metadata[key]
    if isinstance(value, list) and listed:
        return [(f"{key}[{i}]", item) for i, item in enumerate(value)]
    return [(key, value)]


def _model_index_errors(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        place = f"model-index[{i}]"
        yield from _missing(model, place, "name", "results")
        for j, result in enumerate(_inner(model, "results") or []):
            here = f"{place}.results[{j}]"
            yield from _missing(_inner(result, "task"), f"{here}.task", "type")
            dataset = _inner(result, "dataset")
            yield from _missing(dataset, f"{here}.dataset", "type", "name")
            dataset_type = _inner(dataset, "type")
            if dataset_type is not None and not DATASET_TYPE.fullmatch(str(dataset_type)):
                yield f'"{here}.dataset.type" with value "{dataset_type}" fails to match the required pattern'
            yield from _missing(result, here, "metrics")
            for k, metric in enumerate(_inner(result, "metrics") or []):
                yield from _missing(metric, f"{here}.metrics[{k}]", "type", "value")


def _inner(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _missing(value: Any, place: str, *keys: str) -> list[str]:
    return [f'"{place}.{key}" is required' for key in keys if _inner(value, key) is None]
