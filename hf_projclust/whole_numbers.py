"""The check of options that are whole numbers, with one wording for all."""

from __future__ import annotations

import numbers
from typing import Any


def check_whole(name: str, number: Any, least: int, most: int | None = None, *, way_out: str = "") -> None:
    """Refuse what is no whole number of a range.

    Args:
        name: Of the option.
        number: Its value; one of numpy is one too, a truth value is none.
        least: The least that it may be.
        most: The most; None for no limit.
        way_out: What to do, as a sentence, where the range alone does not say it.

    Raises:
        ValueError: If it is anything else.
    """
    is_whole = isinstance(number, numbers.Integral) and not isinstance(number, bool)
    if not is_whole or number < least or (most is not None and number > most):
        limit = "or more" if most is None else f"to {most:,}"
        raise ValueError(f"{name}={number!r}; expected a whole number, {least:,} {limit}. {way_out}".rstrip())
