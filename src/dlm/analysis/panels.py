"""Figures of metrics with intervals: by decoder, and over block and kernel size (the paper's Figs. 4 and 8)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from dlm.analysis.canvas import CHECKPOINT_COLOURS, DASHES, INK, MARKERS, PALETTE, canvas
from dlm.analysis.table import Column, Row, is_reference

# variant of the ablation's rows -> (the key of its size, its label)
SIZES = {"block": ("block_length", "semi-AR over block length"), "kernel": ("kernel_size", "Conv over kernel size")}
UNITS = {"length": "tokens", "perplexity": "geometric mean", "slot_error_rate": "per fact asked for"}


def decoder_data(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    """The columns' values by checkpoint and decoder, and the reference's."""
    panels = []
    for column in columns:
        series: dict[str, dict[str, Any]] = {}
        for row in rows:
            if not is_reference(row):
                series.setdefault(row["checkpoint"], {})[row["decoder"]] = _point(row, column)
        reference = next((_point(row, column) for row in rows if is_reference(row)), None)
        panels.append({"metric": column.name, **_labels(column), "series": series, "reference": reference})
    return {"panels": panels}


def _point(row: Row, column: Column) -> dict[str, Any]:
    return {"value": row[column.name], "ci": row[f"{column.name}_ci"]}


def _labels(column: Column) -> dict[str, str]:
    unit = UNITS.get(column.name, "share")
    return {"title": column.heading, "label": f"{unit} ({column.better} is better)" if column.better else unit}


def draw_decoders(data: dict[str, Any], path: Path) -> None:
    """A panel for each metric: decoders from top to bottom, a dot and its interval for each checkpoint."""
    panels = data["panels"]
    checkpoints = list(dict.fromkeys(c for panel in panels for c in panel["series"]))
    decoders = list(dict.fromkeys(d for panel in panels for found in panel["series"].values() for d in found))
    with canvas(path, 9, 1.1 + 0.42 * len(decoders)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _reference_line(axis, panel["reference"])
            for index, checkpoint in enumerate(checkpoints):
                shift = (index - (len(checkpoints) - 1) / 2) * 0.26
                points = panel["series"].get(checkpoint, {})
                known = [d for d in decoders if points.get(d, {}).get("value") is not None]
                heights = [decoders.index(d) + shift for d in known]
                _dots(axis, heights, [points[d] for d in known], checkpoint, index)
            axis.set_title(panel["title"])
            axis.set_xlabel(panel["label"])
        axes[0].set_yticks(range(len(decoders)), decoders)
        axes[0].set_ylim(len(decoders) - 0.5, -0.5)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))


def _dots(axis: Axes, heights: list[float], points: list[dict[str, Any]], label: str, index: int) -> None:
    axis.errorbar(
        [point["value"] for point in points],
        heights,
        xerr=_reach(points),
        fmt=MARKERS[index],
        color=CHECKPOINT_COLOURS.get(label, PALETTE[2 + index]),
        markersize=4.5,
        label=label,
    )


def _reference_line(axis: Axes, point: dict[str, Any] | None) -> None:
    if point is None or point["value"] is None:
        return
    if point["ci"]:
        axis.axvspan(*point["ci"], color=INK, alpha=0.12, linewidth=0)
    axis.axvline(point["value"], color=INK, linestyle="--", linewidth=1, label="reference (autoregressive)")


def _reach(points: Sequence[dict[str, Any]]) -> list[list[float]]:
    """How far each interval reaches below and above its value; 0 without one."""
    intervals = [point["ci"] or [point["value"]] * 2 for point in points]
    below = [max(point["value"] - ci[0], 0.0) for point, ci in zip(points, intervals, strict=True)]
    above = [max(ci[1] - point["value"], 0.0) for point, ci in zip(points, intervals, strict=True)]
    return [below, above]


def size_data(ablation: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    """The columns' values over block length and kernel size: a line for each plan and checkpoint."""
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in ablation))
    panels = []
    for column in columns:
        lines = []
        for variant, (key, label) in SIZES.items():
            for checkpoint in checkpoints:
                found = [r for r in ablation if r["variant"] == variant and r["checkpoint"] == checkpoint]
                found = sorted((r for r in found if r[column.name] is not None), key=lambda r: r[key])
                points = [{"size": r[key], **_point(r, column)} for r in found]
                lines.append({"variant": variant, "label": label, "checkpoint": checkpoint, "points": points})
        panels.append({"metric": column.name, **_labels(column), "lines": lines})
    return {"panels": panels}


def draw_sizes(data: dict[str, Any], path: Path) -> None:
    """A panel for each metric, size on a logarithmic axis: colour and marker tell the plan, dashes the checkpoint."""
    with canvas(path, 9, 3.6) as figure:
        axes = figure.subplots(1, len(data["panels"]), squeeze=False)[0]
        for axis, panel in zip(axes, data["panels"], strict=True):
            for index, line in enumerate(panel["lines"]):
                _size_line(axis, line, index)
            axis.set_xscale("log", base=2)
            # Kernels are odd, one more than a block: the blocks' ticks serve both.
            ticks = {p["size"] - p["size"] % 2 for line in panel["lines"] for p in line["points"]}
            axis.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
            axis.set_xlabel("block length or kernel size, tokens (log scale)")
            axis.set_title(panel["title"])
            axis.set_ylabel(panel["label"])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)


def _size_line(axis: Axes, line: dict[str, Any], index: int) -> None:
    points, kind = line["points"], list(SIZES).index(line["variant"])
    axis.errorbar(
        # A few per cent apart, so that the intervals can be told from each other.
        [point["size"] * 1.025 ** (index - 1.5) for point in points],
        [point["value"] for point in points],
        yerr=_reach(points),
        marker=MARKERS[kind],
        markersize=4.5,
        color=PALETTE[2 + kind],
        linestyle=DASHES[1] if line["checkpoint"] == "sft" else DASHES[0],
        label=f"{line['label']}, {line['checkpoint']}",
    )
