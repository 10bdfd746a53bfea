"""Metrics over a number that is varied: panels of lines with intervals, drawn by one function."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from dlm.analysis.style import DASHES, INK, MARKERS, PALETTE, canvas
from dlm.analysis.table import Column, Row

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
    """A panel's title, and the label of the axis on which the column stands."""
    unit = UNITS.get(column.name, "share")
    return {"title": column.heading, "y_label": f"{unit} ({column.better} is better)" if column.better else unit}


def line(label: str, x: Sequence[Any], points: Sequence[Mapping[str, Any]], colour: int, dash: int) -> dict[str, Any]:
    """One line: `x` its places, `points` of `point`; colour and marker, and dashes, by their number."""
    known = [(place, entry) for place, entry in zip(x, points, strict=True) if entry["value"] is not None]
    return {
        "label": label,
        "x": [place for place, _ in known],
        "value": [entry["value"] for _, entry in known],
        "ci": [entry["ci"] for _, entry in known],
        "colour": colour,
        "dash": dash,
    }


def line_of(label: str, rows: Iterable[Row], x: str, column: Column, colour: int = 0, dash: int = 0) -> dict[str, Any]:
    """A column of rows over their `x`, from left to right."""
    ordered = sorted(rows, key=lambda row: 0 if isinstance(row[x], str) else row[x])  # names keep their order
    return line(label, [row[x] for row in ordered], [point(row, column) for row in ordered], colour, dash)


def panel(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[dict[str, Any]],
    *,
    x_scale: Literal["linear", "log2"] = "linear",
    y_scale: Literal["linear", "log"] = "linear",
    marks: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Lines in one frame.

    Args:
        x_scale: log2 has a tick at every place where all are whole numbers.
        marks: horizontal lines by their label.
    """
    return {
        "title": title,
        "x_label": x_label,
        "y_label": y_label,
        "x_scale": x_scale,
        "y_scale": y_scale,
        "lines": list(lines),
        "marks": dict(marks or {}),
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
    """`data`: {"columns": panels side by side, "panels": of `panel`}. One legend for all panels."""
    panels, columns = data["panels"], data["columns"]
    rows = -(-len(panels) // columns)
    width = max(9, 3 * columns)
    with canvas(path, width, 0.6 + 3.0 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, panel_data in zip(axes, panels, strict=False):
            _panel(axis, panel_data)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        handles = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        usual = 0.6 + 0.08 * sum(map(len, handles)) / len(handles)  # an entry's inches
        ncols = max(min(len(handles), int(0.92 * width / usual)), 1)
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=ncols)


def _panel(axis: Axes, data: dict[str, Any]) -> None:
    places = list(dict.fromkeys(x for curve in data["lines"] for x in curve["x"]))
    named = any(isinstance(x, str) for x in places)
    for index, curve in enumerate(data["lines"]):
        x = [places.index(place) for place in curve["x"]] if named else curve["x"]
        # Some per cent apart, so that the intervals can be told from each other.
        shift = index - (len(data["lines"]) - 1) / 2
        x = [place * 1.012**shift if data["x_scale"] == "log2" else place + 0.06 * named * shift for place in x]
        axis.errorbar(
            x,
            curve["value"],
            yerr=reach(curve["value"], curve["ci"]) if any(curve["ci"]) else None,
            color=PALETTE[curve["colour"] % len(PALETTE)],
            marker=MARKERS[curve["colour"] % len(MARKERS)],
            linestyle="none" if named else DASHES[curve["dash"] % len(DASHES)],
            fillstyle="none" if curve["dash"] else "full",
            markersize=4.5,
            linewidth=1.2,
            elinewidth=0.8,
            label=curve["label"],
        )
    for place, (label, value) in enumerate(data["marks"].items()):
        axis.axhline(value, color=INK, linestyle=DASHES[1 + place], linewidth=1, label=label)
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
    axis.set_title(data["title"])
    axis.set_xlabel(data["x_label"])
    axis.set_ylabel(data["y_label"])


def reach(values: Sequence[float], intervals: Sequence[Sequence[float] | None]) -> list[list[float]]:
    """How far each interval reaches below and above its value; 0 without one."""
    bounds = [interval or [value] * 2 for value, interval in zip(values, intervals, strict=True)]
    below = [max(value - low, 0.0) for value, (low, _) in zip(values, bounds, strict=True)]
    above = [max(high - value, 0.0) for value, (_, high) in zip(values, bounds, strict=True)]
    return [below, above]
