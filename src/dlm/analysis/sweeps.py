"""The figures of `make sweeps`: which there are, from which rows, and what to look for in each."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dlm.analysis.columns import COLUMNS, Column, Row
from dlm.analysis.curves import NATS, PRIOR_TITLE, STEPS, curve_line, sides
from dlm.analysis.figures import ReportFigure
from dlm.analysis.lines import draw_lines, line, line_of, metric_panel, panel, point
from dlm.analysis.style import ORDERED, SERIES, decoder_marks
from dlm.analysis.table import quality_axes
from dlm.analysis.weights import draw_weights
from dlm.analysis.zone import distance_data, draw_zone

Axes = Sequence[Column]
STEPS_LABEL = "steps S (log scale)"
SPEED_LABEL = "tokens a forward pass (log scale)"


def sweep_figures(
    settings: Sequence[Row],
    distance: Sequence[Mapping[str, Any]],
    r2ft_sweeps: Sequence[Mapping[str, Any]],
    weights: dict[str, Any],
    baseline: str,
) -> list[ReportFigure]:
    """All of them, in the order of the paper, then ours.

    Args:
        settings: rows of the settings stage, of all checkpoints.
        distance: of the distance stage, by checkpoint (SFT alone first).
        r2ft_sweeps: of the r2ft_sweep stage, by negatives (the default first).
        weights: of weights_data.
        baseline: the cell that the win rates compare with.
    """
    axes = quality_axes(settings)
    sized = [COLUMNS["perplexity"], *(axis for axis in axes if axis.name != "perplexity")]
    zones = [
        ReportFigure(
            f"fig-{number:02}-candidate-zone-{zone['checkpoint']}",
            f"Candidate zone, {zone['checkpoint']} (the paper's Fig. {number})",
            "Look for where the dark blue ends: from there on no candidate says anything new, and a decoder that "
            "commits there can only repeat, fill or stop.",
            {key: zone[key] for key in ("checkpoint", "prompts", "example", "candidates")},
            draw_zone,
        )
        for number, zone in zip((2, 11), distance, strict=True)
    ]
    return [
        ReportFigure(
            "fig-01-quality-over-speed",
            "Quality over speed (the paper's Fig. 1)",
            "Look for the line that is uppermost at a given speed: above another at the same number of tokens a "
            "pass, a decoder gives more for the same work.",
            speed_data(settings, axes[0]),
            draw_lines,
        ),
        zones[0],
        ReportFigure(
            "fig-03-distance",
            "Frequent and repeated tokens by distance (the paper's Fig. 3)",
            "Look for what rises with the distance: in the upper panels it is what the model prefers before anything "
            "is written, in the others what the decoders made of it, against real answers.",
            distance_data(distance),
            draw_lines,
        ),
        ReportFigure(
            "fig-04-blocks",
            "Semi-AR over block length (the paper's Fig. 4)",
            "Look for the fall from right to left, and whether more steps (darker colours) undo it: short blocks with"
            " few steps each have their time cut into coarse intervals.",
            over_size(settings, "blocks", "block, tokens (log)", sized),
            draw_lines,
        ),
        ReportFigure(
            "fig-05-weights",
            "Conv's weights as the canvas fills (the paper's Fig. 5)",
            "Look for the bright edge that moves ahead of what is committed: only what is bright may commit, and how"
            " gradually it fades is the gain's choice.",
            weights,
            draw_weights,
        ),
        ReportFigure(
            "fig-08-kernels",
            "Conv over kernel size (the paper's Fig. 8)",
            "Look for lines flatter than those over block length: a soft window has no time of its own to coarsen.",
            over_size(settings, "kernels", "kernel, tokens (log)", sized),
            draw_lines,
        ),
        *_win_rates(settings, baseline),
        ReportFigure(
            "fig-10-quality-over-steps",
            "Quality over steps (the paper's Fig. 10)",
            "Look for where each line levels off: left of there a decoder pays for its speed with quality.",
            over_steps(settings, axes),
            draw_lines,
        ),
        zones[1],
        ReportFigure(
            "fig-12-r2ft-steps",
            "R2FT over its steps (the paper's Fig. 12)",
            "Look for a chosen side that stays flat while the rejected side falls; where the chosen side or the log-"
            "prior leaves its first value, R2FT has gone on for too long.",
            r2ft_sweep_data(r2ft_sweeps[0]),
            draw_lines,
        ),
        ReportFigure(
            "negatives",
            "Other negatives over R2FT's steps",
            "Look for lines that leave the default's: fewer or simpler negatives are learnt by heart, and what they "
            "cost shows in the quality of the text.",
            negatives_data(r2ft_sweeps, axes),
            draw_lines,
        ),
        ReportFigure(
            "gains",
            "Conv's gain g",
            "Look for intervals that do not overlap: the paper says that tanh wins and shows no table.",
            named_data(settings, "gains", "gain g", axes, "linear"),
            draw_lines,
        ),
        ReportFigure(
            "top-k",
            "How many candidates top-k and Conv keep",
            "Look for the maximum of each line: one candidate writes the safest text, many bring the tail back.",
            named_data(settings, "top_k", "candidates k (log scale)", axes, "log2"),
            draw_lines,
        ),
    ]


def of(rows: Sequence[Row], sweep: str, **values: Any) -> list[Row]:
    """The rows of one sweep with these values."""
    return [row for row in rows if row["sweep"] == sweep and all(row[key] == value for key, value in values.items())]


def distinct(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def speed_data(rows: Sequence[Row], axis: Column) -> dict[str, Any]:
    """A panel for each checkpoint, a line for each decoder: quality over L*_norm / S* (docs/method.md §6)."""
    panels = []
    for checkpoint in distinct(rows, "checkpoint"):
        checkpoint_rows = of(rows, "steps", checkpoint=checkpoint)
        length = sum(row["length"] for row in checkpoint_rows) / len(checkpoint_rows)
        lines = []
        for decoder, mark in decoder_marks(distinct(checkpoint_rows, "decoder")).items():
            decoder_rows = sorted(
                (row for row in checkpoint_rows if row["decoder"] == decoder), key=lambda row: row["nfe"]
            )
            points = [point(row, axis) for row in decoder_rows]
            lines.append(line(decoder, [length / row["nfe"] for row in decoder_rows], points, mark, checkpoint))
        panels.append(metric_panel(axis, SPEED_LABEL, lines, where=f", {checkpoint}", x_scale="log2"))
    return {"columns": len(panels), "panels": panels}


def over_size(rows: Sequence[Row], sweep: str, x_label: str, columns: Axes) -> dict[str, Any]:
    """A panel for each column: a line for each S and checkpoint."""
    sweep_rows = of(rows, sweep)
    panels = []
    for column in columns:
        lines = [
            line_of(
                f"S = {steps}",
                of(sweep_rows, sweep, steps=steps, checkpoint=checkpoint),
                "x",
                column,
                ORDERED[place % len(ORDERED)],
                checkpoint,
            )
            for checkpoint in distinct(sweep_rows, "checkpoint")
            for place, steps in enumerate(sorted(distinct(sweep_rows, "steps")))
        ]
        y_scale: Literal["linear", "log"] = "log" if column.name == "perplexity" else "linear"
        panels.append(metric_panel(column, x_label, lines, x_scale="log2", y_scale=y_scale))
    return {"columns": len(panels), "panels": panels}


def over_steps(rows: Sequence[Row], columns: Axes) -> dict[str, Any]:
    """A panel for each column and checkpoint: quality over S, a line for each decoder."""
    step_rows = of(rows, "steps")
    panels = []
    for column in columns:
        for checkpoint in distinct(step_rows, "checkpoint"):
            lines = [
                line_of(
                    decoder,
                    of(step_rows, "steps", decoder=decoder, checkpoint=checkpoint),
                    "x",
                    column,
                    mark,
                    checkpoint,
                )
                for decoder, mark in decoder_marks(distinct(step_rows, "decoder")).items()
            ]
            panels.append(metric_panel(column, STEPS_LABEL, lines, where=f", {checkpoint}", x_scale="log2"))
    return {"columns": 2, "panels": panels}


def _win_rates(rows: Sequence[Row], baseline: str) -> list[ReportFigure]:
    """Nothing where nobody compared the answers."""
    if all(row["win_rate"] is None for row in rows):
        return []
    column = COLUMNS["win_rate"]
    blocks = over_size(rows, "blocks", "semi-AR's block, tokens (log scale)", [column])["panels"]
    kernels = over_size(rows, "kernels", "Conv's kernel, tokens (log scale)", [column])["panels"]
    for win_rate_panel in (*blocks, *kernels):
        win_rate_panel["title"] = f"win rate against {baseline}"
        win_rate_panel["marks"] = {"as good as it": 50.0}
    return [
        ReportFigure(
            "fig-09-win-rate",
            "Win rate over block length and kernel size (the paper's Fig. 9)",
            "Look for lines above 50 percent, where the answers beat the baseline's to the same prompts, and for "
            "which of the two panels falls from right to left.",
            {"columns": 2, "panels": [*blocks, *kernels]},
            draw_lines,
        )
    ]


def r2ft_sweep_data(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Both sides' log p (12a); the log-prior that the model gives and that of what it writes (12b)."""
    curve, rows = sweep["curve"], sweep["rows"]
    prior = [curve_line("sampled from the model", curve, "eval_mean_log_prior", SERIES[2])]
    prior += [
        line_of(
            f"written by {decoder}",
            [row for row in rows if row["decoder"] == decoder],
            "r2ft_steps",
            COLUMNS["log_prior"],
            mark,
        )
        for decoder, mark in decoder_marks(distinct(rows, "decoder")).items()
    ]
    right = panel(PRIOR_TITLE, STEPS, NATS, prior, marks={"real answers": sweep["corpus_log_prior"]})
    return {"columns": 2, "panels": [sides(curve), right]}


def negatives_data(r2ft_sweeps: Sequence[Mapping[str, Any]], axes: Axes) -> dict[str, Any]:
    """A panel for each metric and decoder: a line for each kind of negatives."""
    panels = []
    decoders = distinct(r2ft_sweeps[0]["rows"], "decoder")
    for column in (*axes, COLUMNS["repetition_4"], COLUMNS["length"]):
        for decoder in decoders:
            lines = [
                line_of(
                    sweep["negatives"],
                    [row for row in sweep["rows"] if row["decoder"] == decoder],
                    "r2ft_steps",
                    column,
                    SERIES[place % len(SERIES)],
                )
                for place, sweep in enumerate(r2ft_sweeps)
            ]
            panels.append(metric_panel(column, STEPS, lines, where=f", {decoder}"))
    return {"columns": max(len(decoders), 2), "panels": panels}


def named_data(
    rows: Sequence[Row], sweep: str, x_label: str, columns: Axes, x_scale: Literal["linear", "log2"]
) -> dict[str, Any]:
    """A panel for each column: a line for each decoder and checkpoint."""
    sweep_rows = of(rows, sweep)
    panels = []
    for column in columns:
        lines = [
            line_of(
                decoder,
                of(sweep_rows, sweep, decoder=decoder, checkpoint=checkpoint),
                "x",
                column,
                mark,
                checkpoint,
            )
            for decoder, mark in decoder_marks(distinct(sweep_rows, "decoder")).items()
            for checkpoint in distinct(sweep_rows, "checkpoint")
        ]
        panels.append(metric_panel(column, x_label, lines, x_scale=x_scale))
    return {"columns": len(panels), "panels": panels}
