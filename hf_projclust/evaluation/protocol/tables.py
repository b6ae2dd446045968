"""The protocol's summary as files: table.md, table.json and drops.png, each whole or absent.

matplotlib is imported when a plot is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..whole_files import whole_file
from .methods import METHODS
from .plan import DENSE, Cell
from .summary import Spread, SummaryRow, missing_cells, summarise

STAGES = {"before": "Without fine-tuning after compression", "after": "After the extra epochs of fine-tuning"}


def write_tables(
    folder: Path, cells: Mapping[Cell, Mapping[str, Any]], plan: Sequence[Cell], noted: Mapping[str, Any]
) -> None:
    """Write table.md and table.json of the cells that are made.

    Args:
        folder: Where to.
        cells: Those that are made.
        plan: All that are to be made.
        noted: What they are made with, as the folder notes it.
    """
    rows, missing = summarise(cells, plan), missing_cells(cells, plan)
    record = {**noted, "rows": [asdict(row) for row in rows], "missing": [cell.name for cell in missing]}
    with whole_file(folder / "table.json") as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {noted['base']} on GLUE", ""]
    for stage, title in STAGES.items():
        chosen = [row for row in rows if row.stage == stage]
        if not chosen:
            continue
        headings = list(cells_of(chosen[0]))
        lines += [f"## {title}", "", f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
        lines += [f"| {' | '.join(cells_of(row).values())} |" for row in chosen]
        lines += [""]
    lines += [*notes(plan, missing), "", "Made with:", ""]
    lines += [f"- {name}: {value}" for name, value in noted["options"].items()]
    lines += [f"- {made['machine']}" for made in noted["made_with"]]
    with whole_file(folder / "table.md") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cells_of(row: SummaryRow) -> dict[str, str]:
    """A row as a line of a table: a text for each heading."""
    megabytes = "" if row.table_bytes is None else f"{row.table_bytes.mean / 1e6:,.2f}"
    seeds = max((spread.num_seeds for spread in row.tasks.values() if spread is not None), default=0)
    return {
        "method": row.method,
        "saved": "" if row.rate is None else f"{row.rate:.4g}",
        "table, MB": megabytes,
        "error": "" if row.error is None else f"{row.error.mean:.4f}",
        **{task: _text(spread, seeds) for task, spread in row.tasks.items()},
        "mean": _text(row.score, seeds),
        "drop": "" if row.method == DENSE else _text(row.drop, seeds),
    }


def notes(plan: Sequence[Cell], missing: Sequence[Cell]) -> list[str]:
    """What a reader of the tables has to know: what figures are, and what is missing."""
    num_seeds = len({cell.seed for cell in plan})
    lines = [
        "Scores of the validation part in percent, the mean of a task's metrics; saved: share of the table's numbers "
        "that is not kept, whatever the bits of the others; drop: points below the dense "
        "classifier of the same seed at the same stage, the mean over tasks; error: relative squared error of the "
        "table."
    ]
    if any(METHODS[cell.method].options.get("coefficient_bits") for cell in plan if cell.method != DENSE):
        lines.append("Factors in few bits are frozen: fine-tuning trains the rest of the model.")
    if num_seeds > 1:
        lines.append(
            f"Means over {num_seeds} seeds ± standard deviation over seeds; (n): over n of them, since cells of the "
            "others are missing."
        )
    if missing:
        names = ", ".join(cell.name for cell in missing[:3])
        lines.append(
            f"{len(missing)} of {len(plan)} cells are missing ({names}{', ...' if len(missing) > 3 else ''}); a mean "
            "over tasks is left out where one of its tasks is."
        )
    return lines


def plot_drops(rows: Sequence[SummaryRow], path: Path) -> None:
    """Draw the mean drop against the rate, a panel for each stage and a line for each method.

    Args:
        rows: What ``summarise`` returned.
        path: Image file to write, whole or not at all.
    """
    from matplotlib.figure import Figure

    stages = [stage for stage in STAGES if any(row.stage == stage for row in rows)]
    methods = list(dict.fromkeys(row.method for row in rows if row.method != DENSE))
    figure = Figure(figsize=(5.2 * len(stages), 4.2), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for stage, panel in zip(stages, panels, strict=True):
        for number, method in enumerate(methods):
            points = sorted(
                (row.rate or 0.0, row.drop.mean, row.drop.deviation or 0.0)
                for row in rows
                if (row.stage, row.method) == (stage, method) and row.drop is not None
            )
            if points:
                rates, drops, deviations = zip(*points, strict=True)
                panel.errorbar(rates, drops, deviations, fmt="o-", color=f"C{number}", markersize=4, label=method)
        panel.axhline(0, color="black", linewidth=0.8, linestyle="--")
        panel.set(title=STAGES[stage], xlabel="share of the table saved", ylabel="mean drop, points")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=150)


def _text(spread: Spread | None, num_seeds: int) -> str:
    if spread is None:
        return "-"
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.2f}"
    return f"{spread.mean:.2f}{deviation}" + (f" ({spread.num_seeds})" if spread.num_seeds < num_seeds else "")
