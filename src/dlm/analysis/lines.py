"""Metrics over a number that is varied: panels of lines with intervals, drawn by one function."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from dlm.analysis.columns import Column, Row
from dlm.analysis.style import (
    CHECKPOINT_LINES,
    COLUMN,
    INK,
    TEXT,
    LineStyle,
    Mark,
    canvas,
    checkpoint_handle,
    fill,
    handle,
    legend,
)

UNITS = {
    "length": "tokens",
    "perplexity": "geometric mean",
    "slot_error_rate": "per fact asked for",
    "win_rate": "percent",
    "log_prior": "nats a token",
}


def point(row: Row, column: Column) -> dict[str, Any]:
    return {"value": row[column.name], "ci": row[f"{column.name}_ci"]}


def labels(column: Column) -> dict[str, str]:
    """A panel's title, with the arrow to the good end, and the label of the axis on which the column stands."""
    return {"title": column.heading + column.arrow, "y_label": UNITS.get(column.name, "share")}


def line(
    label: str, x: Sequence[Any], points: Sequence[Mapping[str, Any]], mark: Mark, checkpoint: str | None = None
) -> dict[str, Any]:
    """One line: `x` its places, `points` of `point`. `label` is what `mark` stands for; the checkpoint has its own
    entry in the legend."""
    known = [(place, entry) for place, entry in zip(x, points, strict=True) if entry["value"] is not None]
    return {
        "label": label,
        "checkpoint": checkpoint,
        "x": [place for place, _ in known],
        "value": [entry["value"] for _, entry in known],
        "ci": [entry["ci"] for _, entry in known],
        "mark": asdict(mark),
    }


def line_of(
    label: str, rows: Iterable[Row], x: str, column: Column, mark: Mark, checkpoint: str | None = None
) -> dict[str, Any]:
    """A column of rows over their `x`, from left to right."""
    ordered = sorted(rows, key=lambda row: 0 if isinstance(row[x], str) else row[x])  # names keep their order
    return line(label, [row[x] for row in ordered], [point(row, column) for row in ordered], mark, checkpoint)


def panel(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[dict[str, Any]],
    *,
    x_scale: Literal["linear", "log2"] = "linear",
    y_scale: Literal["linear", "log"] = "linear",
    marks: Mapping[str, float] | None = None,
    from_zero: bool = False,
) -> dict[str, Any]:
    """Lines in one frame.

    Args:
        x_scale: log2 has a tick at every place where all are whole numbers.
        marks: horizontal lines by their label.
        from_zero: the y axis begins at 0, so that what hardly changes looks so.
    """
    return {
        "title": title,
        "x_label": x_label,
        "y_label": y_label,
        "x_scale": x_scale,
        "y_scale": y_scale,
        "lines": list(lines),
        "marks": dict(marks or {}),
        "from_zero": from_zero,
    }


def metric_panel(
    column: Column,
    x_label: str,
    lines: Sequence[dict[str, Any]],
    *,
    where: str = "",
    x_scale: Literal["linear", "log2"] = "linear",
    y_scale: Literal["linear", "log"] = "linear",
) -> dict[str, Any]:
    """A panel of one metric, its labels those of the table's column; `where` stands behind the title."""
    texts = labels(column)
    return panel(texts["title"] + where, x_label, texts["y_label"], lines, x_scale=x_scale, y_scale=y_scale)


def draw_lines(data: dict[str, Any], path: Path) -> None:
    """`data`: {"columns": panels side by side, "panels": of `panel`}. One legend for all panels; a single column shares
    its axes."""
    panels, columns = data["panels"], data["columns"]
    rows = -(-len(panels) // columns)
    with canvas(path, COLUMN if columns == 1 else TEXT, 0.1 + 1.65 * rows) as figure:
        stacked = columns == 1
        axes = figure.subplots(rows, columns, squeeze=False, sharex=stacked, sharey=stacked).ravel()
        for axis, panel_data in zip(axes, panels, strict=False):
            _panel(axis, panel_data)
            if stacked:
                axis.label_outer()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        legend(figure, _handles(panels))


def _handles(panels: Sequence[dict[str, Any]]) -> list[Line2D]:
    """An entry for each label, each checkpoint and each horizontal line."""
    curves = [curve for panel_data in panels for curve in panel_data["lines"]]
    labels = {curve["label"]: handle(curve["label"], Mark(**curve["mark"])) for curve in curves}
    checkpoints = dict.fromkeys(curve["checkpoint"] for curve in curves if curve["checkpoint"])
    levels = dict.fromkeys(label for panel_data in panels for label in panel_data["marks"])
    level_handles = [handle(label, Mark(INK, "", _level_line(place))) for place, label in enumerate(levels)]
    return [*labels.values(), *map(checkpoint_handle, checkpoints), *level_handles]


def _level_line(place: int) -> LineStyle:
    return "-." if place % 2 else ":"


def _panel(axis: Axes, data: dict[str, Any]) -> None:
    places = list(dict.fromkeys(x for curve in data["lines"] for x in curve["x"]))
    named = any(isinstance(x, str) for x in places)
    for index, curve in enumerate(data["lines"]):
        mark = Mark(**curve["mark"])
        x = [places.index(place) for place in curve["x"]] if named else curve["x"]
        # Some per cent apart, so that the intervals can be told from each other.
        shift = index - (len(data["lines"]) - 1) / 2
        x = [place * 1.012**shift if data["x_scale"] == "log2" else place + 0.06 * named * shift for place in x]
        axis.errorbar(
            x,
            curve["value"],
            yerr=reach(curve["value"], curve["ci"]) if any(curve["ci"]) else None,
            color=mark.colour,
            marker=mark.marker,
            linestyle="none" if named else CHECKPOINT_LINES.get(curve["checkpoint"] or "", mark.line),
            fillstyle=fill(curve["checkpoint"]),
            elinewidth=0.7,
        )
    for place, value in enumerate(data["marks"].values()):
        axis.axhline(value, color=INK, linestyle=_level_line(place))
    if named:
        axis.set_xticks(range(len(places)), places)
        axis.margins(x=0.12)
    elif data["x_scale"] == "log2":
        axis.set_xscale("log", base=2)
        if all(isinstance(x, int) for x in places):
            # Kernels are odd, one more than a block: a block's tick serves both.
            axis.xaxis.set_major_locator(FixedLocator([x for x in places if x == 1 or x - 1 not in places]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_yscale(data["y_scale"])
    if data["from_zero"]:
        top = max((value for curve in data["lines"] for value in curve["value"]), default=1.0)
        axis.set_ylim(0, 1.1 * top)
    axis.set_title(data["title"])
    axis.set_xlabel(data["x_label"])
    axis.set_ylabel(data["y_label"])


def reach(values: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> list[list[float]]:
    """How far each interval reaches below and above its value; 0 without one."""
    bounds = [interval or [value] * 2 for value, interval in zip(values, intervals, strict=True)]
    below = [max(value - low, 0.0) for value, (low, _) in zip(values, bounds, strict=True)]
    above = [max(high - value, 0.0) for value, (_, high) in zip(values, bounds, strict=True)]
    return [below, above]
