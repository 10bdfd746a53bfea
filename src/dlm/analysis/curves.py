"""Figures over training steps: R2FT's two sides and the log-prior (paper Fig. 12), and the losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from dlm.analysis.lines import line, panel
from dlm.analysis.style import SERIES, Mark

Curve = Sequence[Mapping[str, float]]
STEPS = "optimizer step"
NATS = "nats a token"
PRIOR_TITLE = "log-prior of a sampled token"
# What the loss of each model averages over: losses of different panels do not compare.
LOSSES = {
    "base": "base\ndiffusion, all text",
    "sft": "sft\ndiffusion, answer and padding",
    "sft_answer": "sft_answer\ndiffusion, answer alone",
    "reference": "reference\nnext token",
}


def r2ft_data(curve: Curve) -> dict[str, Any]:
    """The held-out quantities of R2FT over its steps, for `draw_lines`."""
    prior = curve_line("log-prior", curve, "eval_mean_log_prior", SERIES[2])
    return {"columns": 2, "panels": [sides(curve), panel(PRIOR_TITLE, STEPS, NATS, [prior])]}


def sides(curve: Curve) -> dict[str, Any]:
    """log L_w and log L_l over R2FT's steps (paper Fig. 12a)."""
    chosen = curve_line("chosen", curve, "eval_log_p_chosen", SERIES[0])
    rejected = curve_line("rejected", curve, "eval_log_p_rejected", SERIES[1])
    return panel("mean log p of the two sides", STEPS, NATS, [chosen, rejected])


def curve_line(label: str, curve: Curve, key: str, mark: Mark) -> dict[str, Any]:
    """The rows of a curve that carry `key`, as a line."""
    rows = [row for row in curve if row.get(key) is not None]
    return line(label, [row["step"] for row in rows], [{"value": row[key], "ci": None} for row in rows], mark)


def loss_data(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Training and held-out loss of every model that was trained here, a panel for each, for `draw_lines`."""
    panels = [
        panel(
            title,
            STEPS,
            f"loss, {NATS}",
            [
                curve_line("training", curves[name], "loss", Mark(SERIES[2].colour, ".")),
                curve_line("held out", curves[name], "eval_loss", SERIES[1]),
            ],
            from_zero=True,
        )
        for name, title in LOSSES.items()
        if curves.get(name)
    ]
    return {"columns": 2, "panels": panels}
