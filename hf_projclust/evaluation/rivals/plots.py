"""A plot of what is lost against the bytes of the table, a line for each method. matplotlib is imported when drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...sizes import megabytes
from ..machine import describe_machine
from ..plots import check_image
from ..whole_files import whole_file
from .contenders import RIVALS
from .points import DENSE, OURS, OURS_FLOAT, RivalPoint

_LEAST_LOSS = 1e-6  # below it cosines in float32 are noise
_MARKERS = "osv^D<>pX*"


def plot_rivals(points: Sequence[RivalPoint], path: str | Path, *, title: str = "", score_name: str = "score") -> None:
    """Draw what embeddings lose, and the task's figure where there is one, against bytes.

    Args:
        points: What ``compare_rivals`` returned.
        path: Image file to write, whole or not at all; its ending chooses the format.
        title: Of what, such as the name of the model.
        score_name: What the task's figure is.

    Raises:
        ValueError: If there is no dense point and one beside it, or the image's format is unknown.
    """
    dense = next((point for point in points if point.method == DENSE), None)
    if dense is None or len(points) < 2:
        raise ValueError(
            f"{len(points)} points, the dense one {'' if dense else 'not '}among them; expected it and others, as "
            "compare_rivals() returns them."
        )
    check_image(path)
    from matplotlib.figure import Figure

    is_scored = dense.score is not None
    figure = Figure(figsize=(14 if is_scored else 8.5, 5.6), layout="constrained")
    panels = figure.subplots(1, 1 + is_scored, squeeze=False)[0]
    _draw(panels[0], points, dense, [max(_LEAST_LOSS, 1 - point.mean_cosine) for point in points])
    panels[0].set(ylabel="1 - mean cosine to the dense model (upward is better)", yscale="log")
    panels[0].invert_yaxis()
    if is_scored:
        _draw(panels[1], points, dense, [float("nan") if point.score is None else point.score for point in points])
        panels[1].axhline(dense.score, color="black", linestyle=":", linewidth=1)
        panels[1].set(ylabel=score_name)
    panels[0].legend(fontsize="small")
    caption = f"{title}\n{describe_machine()}" if title else describe_machine()
    figure.suptitle(caption, fontsize="small")
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150)


def _draw(panel: Any, points: Sequence[RivalPoint], dense: RivalPoint, heights: Sequence[float]) -> None:
    """A line for each method over the bytes of its settings, ours thick; times smaller stand above."""
    for number, method in enumerate((OURS, OURS_FLOAT, *RIVALS)):
        line = sorted(
            (point.table_bytes, height) for point, height in zip(points, heights, strict=True) if point.method == method
        )
        if line:
            is_ours = method in (OURS, OURS_FLOAT)
            panel.plot(
                *zip(*line, strict=True),
                marker=_MARKERS[number],
                markersize=6 if is_ours else 4,
                linewidth=3 if is_ours else 1,
                color="black" if method == OURS else "0.5" if is_ours else f"C{number - 2}",
                zorder=3 if is_ours else 2,
                label=method,
            )
    panel.set(xlabel="bytes of the table", xscale="log")
    _label(panel.xaxis, lambda size, _: megabytes(round(size)))
    panel.grid(alpha=0.3)

    def other(sizes: Any) -> Any:
        return dense.table_bytes / np.maximum(sizes, 1e-9)

    above = panel.secondary_xaxis("top", functions=(other, other))
    above.set_xlabel("times smaller")
    _label(above.xaxis, lambda times, _: f"{times:g}")


def _label(axis: Any, text: Callable[[float, int], str]) -> None:
    """Ticks at 1, 2, 3, 4, 6 and 8 of each decade of a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6, 8)))
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_formatter(NullFormatter())
