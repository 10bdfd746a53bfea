"""The figure of metrics by decoder, with intervals and the reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dlm.analysis.columns import Column, Row
from dlm.analysis.lines import labels, point, reach
from dlm.analysis.style import REAL, TEXT, Mark, canvas, checkpoint_handle, decoder_marks, fill, handle, legend
from dlm.analysis.table import is_reference

REFERENCE = Mark(REAL.colour, "", REAL.line)


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
    marks = decoder_marks(decoders)
    with canvas(path, TEXT, 0.6 + 0.3 * len(decoders)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _reference_line(axis, panel["reference"])
            for index, checkpoint in enumerate(checkpoints):
                shift = (index - (len(checkpoints) - 1) / 2) * 0.3
                for place, decoder in enumerate(decoders):
                    entry = panel["series"].get(checkpoint, {}).get(decoder)
                    if entry is not None and entry["value"] is not None:
                        _dot(axis, place + shift, entry, marks[decoder], checkpoint)
            axis.set_title(panel["title"])
            axis.set_xlabel(panel["y_label"])
            axis.xaxis.set_major_locator(MaxNLocator(4))
        axes[0].set_yticks(range(len(decoders)), decoders)
        axes[0].set_ylim(len(decoders) - 0.5, -0.5)
        known = any(panel["reference"] and panel["reference"]["value"] is not None for panel in panels)
        reference = [handle("reference (autoregressive)", REFERENCE)] if known else []
        legend(figure, [*map(checkpoint_handle, checkpoints), *reference])


def _dot(axis: Axes, height: float, entry: dict[str, Any], mark: Mark, checkpoint: str) -> None:
    axis.errorbar(
        [entry["value"]],
        [height],
        xerr=reach([entry["value"]], [entry["ci"]]),
        fmt=mark.marker,
        color=mark.colour,
        fillstyle=fill(checkpoint),
        elinewidth=0.8,
    )


def _reference_line(axis: Axes, reference: dict[str, Any] | None) -> None:
    if reference is None or reference["value"] is None:
        return
    if reference["ci"]:
        axis.axvspan(*reference["ci"], color=REFERENCE.colour, alpha=0.12, linewidth=0)
    axis.axvline(reference["value"], color=REFERENCE.colour, linestyle=REFERENCE.line)
