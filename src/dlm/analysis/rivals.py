"""Decoders that need no training, side by side: the tables and figures of the stage `rivals`."""

from collections.abc import Sequence
from typing import Any

from dlm.analysis.columns import COLUMNS, Row
from dlm.analysis.figures import ReportFigure
from dlm.analysis.lines import draw_lines, line_of, metric_panel
from dlm.analysis.style import SERIES, decoder_marks

PASSES = "forward passes (log scale)"
WINDOWS = {False: "without a window", True: "with Conv's window"}


def rival_figures(rows: Sequence[Row]) -> list[ReportFigure]:
    """Quality over forward passes: all decoders in one panel, without and with the window; and each by itself.

    Args:
        rows: of the stage, a row for each decoder, window (or not) and setting.
    """
    return [
        ReportFigure(
            "all",
            "Quality over forward passes, all decoders",
            "Look for the line that is uppermost at a number of passes, and whether the order of the lines is another "
            "with the window.",
            all_data(rows),
            draw_lines,
        ),
        ReportFigure(
            "each",
            "Each decoder without and with Conv's window",
            "Look for panels where the two lines change places: the window then helps at some numbers of passes only.",
            each_data(rows),
            draw_lines,
        ),
    ]


def all_data(rows: Sequence[Row]) -> dict[str, Any]:
    """A panel without the window and one with it, one above the other; a line for each decoder, no intervals."""
    bare = [{**row, "quality_ci": None} for row in rows]
    marks = decoder_marks(_decoders(rows))
    panels = [
        metric_panel(
            COLUMNS["quality"],
            PASSES,
            [line_of(name, _of(bare, name, windowed), "nfe", COLUMNS["quality"], mark) for name, mark in marks.items()],
            where=f", {label}",
            x_scale="log2",
        )
        for windowed, label in WINDOWS.items()
    ]
    return {"columns": 1, "panels": panels}


def each_data(rows: Sequence[Row]) -> dict[str, Any]:
    """A panel for each decoder, a line without the window and one with it."""
    quality = COLUMNS["quality"]
    panels = []
    for name in _decoders(rows):
        lines = [
            line_of(label, _of(rows, name, windowed), "nfe", quality, mark)
            for (windowed, label), mark in zip(WINDOWS.items(), (SERIES[4], SERIES[0]), strict=True)
        ]
        panels.append({**metric_panel(quality, PASSES, lines, x_scale="log2"), "title": name})
    return {"columns": 2, "panels": panels}


def to_markdown(areas: Sequence[Row], rows: Sequence[Row], passes: Sequence[int]) -> str:
    """Does the window help every rule: the areas with their difference; the figures; every setting."""
    lines = [
        f"Area: the mean quality from {passes[0]} to {passes[1]} forward passes, over their logarithm. Beyond its "
        "ends a curve is level: mind how far it was measured (passes). Intervals: 95%, bootstrap over prompts, which "
        "both curves of a decoder share.",
        "",
        "| decoder | passes | area ↑ | passes with window | area with window ↑ | difference |",
        "|" + " --- |" * 6,
    ]
    for row in areas:
        measured = [f"{low:.1f} to {high:.1f}" for low, high in (row["passes"], row["passes_with_window"])]
        values = [_value(row, name) for name in ("area", "area_with_window")]
        cells = [row["decoder"], measured[0], values[0], measured[1], values[1], _value(row, "difference", "+")]
        lines.append("| " + " | ".join(cells) + " |")
    for name in ("all", "each"):
        lines += ["", f"![{name}](figures/{name}.png)"]
    lines += ["", "| decoder | window | setting | NFE | quality ↑ | length |", "|" + " --- |" * 6]
    for row in rows:
        cells = [row["decoder"], "yes" if row["window"] else "no", row["setting"]]
        lines.append(
            "| " + " | ".join([*cells, f"{row['nfe']:.1f}", _value(row, "quality"), f"{row['length']:.1f}"]) + " |"
        )
    return "\n".join(lines) + "\n"


def _value(row: Row, name: str, sign: str = "") -> str:
    if row[name] is None:
        return "–"
    interval = row[f"{name}_ci"]
    bounds = f" [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]" if interval else ""
    return f"{row[name]:{sign}.3f}{bounds}"


def _decoders(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["decoder"] for row in rows))


def _of(rows: Sequence[Row], decoder: str, windowed: bool) -> list[Row]:
    return [row for row in rows if row["decoder"] == decoder and row["window"] == windowed]
