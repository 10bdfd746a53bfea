"""Figures over training steps: R2FT's two sides and the log-prior (paper Fig. 12), and the losses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from dlm.analysis.canvas import DASHES, MARKERS, PALETTE, canvas

Curve = Sequence[Mapping[str, float]]
# What the loss of each model averages over: losses of different panels do not compare.
LOSSES = {
    "base": "base\ndiffusion, all text",
    "sft": "sft\ndiffusion, answer and padding",
    "sft_answer": "sft_answer\ndiffusion, answer alone",
    "reference": "reference\nnext token",
}
R2FT_PANELS = (
    ("mean log p of the two sides", {"eval_log_p_chosen": "chosen", "eval_log_p_rejected": "rejected"}),
    ("mean log-prior of a sampled token", {"eval_mean_log_prior": "log-prior"}),
)


def r2ft_data(curve: Curve) -> dict[str, Any]:
    """The held-out quantities of R2FT over its steps."""
    panels = [
        {"title": title, "lines": {name: series(curve, key) for key, name in keys.items()}}
        for title, keys in R2FT_PANELS
    ]
    return {"panels": panels}


def series(curve: Curve, key: str) -> dict[str, list[float]]:
    """Steps and values of the rows that carry `key`."""
    rows = [row for row in curve if row.get(key) is not None]
    return {"step": [row["step"] for row in rows], "value": [row[key] for row in rows]}


def draw_r2ft(data: dict[str, Any], path: Path) -> None:
    """Left log p of both sides, right the mean log-prior."""
    with canvas(path, 9, 3.2) as figure:
        axes = figure.subplots(1, len(data["panels"]))
        for axis, panel in zip(axes, data["panels"], strict=True):
            for index, (name, line) in enumerate(panel["lines"].items()):
                axis.plot(
                    line["step"],
                    line["value"],
                    marker=MARKERS[index],
                    linestyle=DASHES[index],
                    color=PALETTE[index],
                    label=name,
                )
            axis.set_title(panel["title"])
            _steps(axis, "nats a token")
        axes[0].legend()


def loss_data(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Training and held-out loss of every model that was trained here."""
    panels = [
        {"title": LOSSES[name], "train": series(curves[name], "loss"), "valid": series(curves[name], "eval_loss")}
        for name in LOSSES
        if curves.get(name)
    ]
    return {"panels": panels}


def draw_losses(data: dict[str, Any], path: Path) -> None:
    """A panel for each model: the training loss as a line, the held-out loss as marks."""
    panels = data["panels"]
    with canvas(path, 9, 3.0) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            axis.plot(panel["train"]["step"], panel["train"]["value"], color=PALETTE[5], label="training")
            axis.plot(
                panel["valid"]["step"],
                panel["valid"]["value"],
                color=PALETTE[1],
                marker=MARKERS[0],
                markersize=4,
                linestyle=DASHES[1],
                linewidth=1,
                label="held out",
            )
            axis.set_title(panel["title"])
            _steps(axis, "loss, nats a token" if axis is axes[0] else "")
        axes[-1].legend()


def _steps(axis: Axes, label: str) -> None:
    axis.set_xlabel("optimizer step")
    axis.set_ylabel(label)
