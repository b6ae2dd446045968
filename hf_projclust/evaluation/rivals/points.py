"""What a comparison with rivals measured, and how ours stand among them. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DENSE = "dense"
OURS = "projective clustering"
OURS_FLOAT = "projective clustering, float"
Figure = Literal["mean_cosine", "score"]


@dataclass(frozen=True)
class RivalPoint:
    """What was measured of one method in one setting.

    Attributes:
        method: ``DENSE``, ``OURS``, ``OURS_FLOAT`` or one of ``rivals.RIVALS``.
        setting: What was asked of it.
        table_bytes: Bytes of all tensors that it stores of the table, without the headers of files.
        times_smaller: Bytes of the dense table over these.
        mean_cosine: Of sentence embeddings to those of the dense model.
        relative_squared_error: Squared error of the rows over their squared norm.
        weighted_relative_squared_error: The same, with rows weighted by the use of their tokens.
        score: What ``score`` gave; None without one.
    """

    method: str
    setting: str
    table_bytes: int
    times_smaller: float
    mean_cosine: float
    relative_squared_error: float
    weighted_relative_squared_error: float
    score: float | None = None


@dataclass(frozen=True)
class RivalAbsence:
    """A method that could not be had in a setting.

    Attributes:
        method: As of ``RivalPoint``.
        setting: What was asked of it.
        reason: Why.
    """

    method: str
    setting: str
    reason: str


@dataclass(frozen=True)
class Standing:
    """How a point of ours stands against the rivals that take no more bytes.

    Attributes:
        point: One of ours.
        best_rival: Of those rivals the one with the best figure; None if there is none.
        is_beaten: Whether its figure is better than ours.
    """

    point: RivalPoint
    best_rival: RivalPoint | None
    is_beaten: bool


def front(points: Sequence[RivalPoint], figure: Figure = "mean_cosine") -> list[Standing]:
    """How each of our points stands against rivals that take no more bytes than it.

    Args:
        points: What ``compare_rivals`` returned.
        figure: By which: "mean_cosine" or "score".

    Returns:
        Of each of our points how it stands, in their order.

    Raises:
        ValueError: If the figure is another, or was not measured.
    """
    if figure not in ("mean_cosine", "score") or any(getattr(point, figure) is None for point in points):
        raise ValueError(
            f"figure={figure!r}; expected 'mean_cosine', or 'score' of points that have one. Give compare_rivals() a "
            "score."
        )
    standings = []
    for point in points:
        if point.method not in (OURS, OURS_FLOAT):
            continue
        rivals = [
            other
            for other in points
            if other.method not in (DENSE, OURS, OURS_FLOAT) and other.table_bytes <= point.table_bytes
        ]
        best = max(rivals, key=lambda rival: getattr(rival, figure), default=None)
        is_beaten = best is not None and getattr(best, figure) > getattr(point, figure)
        standings.append(Standing(point, best, is_beaten))
    return standings
