"""The figure of metrics by decoder, with intervals and the reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from dlm.analysis.lines import labels, point, reach
from dlm.analysis.style import CHECKPOINT_COLOURS, INK, MARKERS, PALETTE, canvas
from dlm.analysis.table import Column, Row, is_reference


def decoder_data(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    """The columns' values by checkpoint and decoder, and the reference's."""
    panels = []
    for column in columns:
        series: dict[str, dict[str, Any]] = {}
        for row in rows:
            if not is_reference(row):
                series.setdefault(row["checkpoint"], {})[row["decoder"]] = point(row, column)
        reference = next((point(row, column) for row in rows if is_reference(row)), None)
        panels.append({"metric": column.name, **labels(column), "series": series, "reference": reference})
    return {"panels": panels}


def draw_decoders(data: dict[str, Any], path: Path) -> None:
    """A panel for each metric: decoders from top to bottom, a dot and its interval for each checkpoint."""
    panels = data["panels"]
    checkpoints = list(dict.fromkeys(c for panel in panels for c in panel["series"]))
    decoders = list(dict.fromkeys(d for panel in panels for points in panel["series"].values() for d in points))
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
            axis.set_xlabel(panel["y_label"])
        axes[0].set_yticks(range(len(decoders)), decoders)
        axes[0].set_ylim(len(decoders) - 0.5, -0.5)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=len(names))


def _dots(axis: Axes, heights: list[float], points: list[dict[str, Any]], label: str, index: int) -> None:
    values = [entry["value"] for entry in points]
    axis.errorbar(
        values,
        heights,
        xerr=reach(values, [entry["ci"] for entry in points]),
        fmt=MARKERS[index],
        color=CHECKPOINT_COLOURS.get(label, PALETTE[2 + index]),
        markersize=4.5,
        label=label,
    )


def _reference_line(axis: Axes, reference: dict[str, Any] | None) -> None:
    if reference is None or reference["value"] is None:
        return
    if reference["ci"]:
        axis.axvspan(*reference["ci"], color=INK, alpha=0.12, linewidth=0)
    axis.axvline(reference["value"], color=INK, linestyle="--", linewidth=1, label="reference (autoregressive)")
