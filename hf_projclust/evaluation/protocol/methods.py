"""The methods that the protocol compares, as options of ``compress``, and which of them fit a table.

Nothing is compressed here. "adaptive-task" knows the texts that a classifier is fine-tuned on, as a user who compresses
one does; "adaptive-int4" stores its factors in few bits, which are frozen: of such a model, all but the table trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...compression import compress
from ...options import FactoringOptions
from ...searching import search_of


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        options: Options of ``compress`` beside the rate and the seed.
        counts: Whose use of tokens it knows: of none, so that all tokens count alike; of the sources that are given for
            the whole protocol; or of the texts of the task.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    counts: Literal["none", "given", "task"] = "none"


METHODS: dict[str, Method] = {
    "svd": Method({"preset": "svd"}),
    "messi": Method({"preset": "messi"}),
    "robust": Method({"preset": "robust"}),
    "adaptive": Method({"preset": "adaptive"}, "given"),
    "adaptive-task": Method({"preset": "adaptive"}, "task"),
    "adaptive-int4": Method({"preset": "adaptive", "coefficient_bits": 4, "basis_bits": 8}, "given"),
}


def compress_options(
    method: str, rate: float, seed: int, *, token_counts: Sequence[str], task_texts: Path | None = None
) -> dict[str, Any]:
    """Options of ``compress`` for a method.

    Args:
        method: Its name.
        rate: Share of the table to save.
        seed: Seed of the clustering.
        token_counts: Sources of token counts that are given for the whole protocol.
        task_texts: Text file with the training texts of the task, a text on each line.

    Returns:
        The options, by keyword.

    Raises:
        ValueError: If there is no such method, or it needs texts and there are none.
    """
    chosen = check_method(method)
    options = {**chosen.options, "compression": rate, "seed": seed}
    if chosen.counts == "given":
        options["token_counts"] = list(token_counts)
    elif chosen.counts == "task":
        if task_texts is None:
            raise ValueError(f"method {method!r} without texts; expected those of the task. Give task_texts.")
        options["token_counts"] = str(task_texts)
    return options


def check_method(method: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: If there is none.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}; expected one of {', '.join(METHODS)}. Choose one of these.")
    return METHODS[method]


def check_fit(method: str, rate: float, table: Tensor) -> None:
    """Refuse a rate that a method cannot reach for a table, before anything is computed.

    Args:
        method: Its name.
        rate: Share of the table to save.
        table: Rows, shape (n, dim); their numbers are not looked at.

    Raises:
        ValueError: If there is no such method, or it leaves too little of the table.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(compress).parameters.items()}
    given = {**check_method(method).options, "compression": rate}
    known = {option.name: given.get(option.name, defaults[option.name]) for option in fields(FactoringOptions)}
    search_of(table, FactoringOptions(**known))
