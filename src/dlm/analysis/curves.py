"""Figures over training steps: R2FT's two sides and the log-prior (paper Fig. 12), and the losses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlm.analysis.lines import line, panel
from dlm.analysis.style import DASHES, MARKERS, PALETTE, canvas

Curve = Sequence[Mapping[str, float]]
STEPS = "optimizer step"
NATS = "nats a token"
PRIOR_TITLE = "mean log-prior of a sampled token"
# What the loss of each model averages over: losses of different panels do not compare.
LOSSES = {
    "base": "base\ndiffusion, all text",
    "sft": "sft\ndiffusion, answer and padding",
    "sft_answer": "sft_answer\ndiffusion, answer alone",
    "reference": "reference\nnext token",
}


def r2ft_data(curve: Curve) -> dict[str, Any]:
    """The held-out quantities of R2FT over its steps, for `draw_lines`."""
    prior = curve_line("log-prior", curve, "eval_mean_log_prior", 2)
    return {"columns": 2, "panels": [sides(curve), panel(PRIOR_TITLE, STEPS, NATS, [prior])]}


def sides(curve: Curve) -> dict[str, Any]:
    """log L_w and log L_l over R2FT's steps (paper Fig. 12a)."""
    chosen = curve_line("chosen", curve, "eval_log_p_chosen", 0)
    rejected = curve_line("rejected", curve, "eval_log_p_rejected", 1)
    return panel("mean log p of the two sides", STEPS, NATS, [chosen, rejected])


def curve_line(label: str, curve: Curve, key: str, colour: int, dash: int = 0) -> dict[str, Any]:
    """The rows of a curve that carry `key`, as a line."""
    values = series(curve, key)
    return line(label, values["step"], [{"value": value, "ci": None} for value in values["value"]], colour, dash)


def series(curve: Curve, key: str) -> dict[str, list[float]]:
    """Steps and values of the rows that carry `key`."""
    rows = [row for row in curve if row.get(key) is not None]
    return {"step": [row["step"] for row in rows], "value": [row[key] for row in rows]}


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
            axis.set_xlabel(STEPS)
            axis.set_ylabel("loss, nats a token" if axis is axes[0] else "")
        axes[-1].legend()
