"""The report's figures: which there are, from which data, and what to look for in each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.analysis.curves import Curve, draw_losses, draw_r2ft, loss_data, r2ft_data
from dlm.analysis.panels import decoder_data, draw_decoders, draw_sizes, size_data
from dlm.analysis.table import COLUMNS, Row, quality_axes
from dlm.analysis.unmasking import draw_unmasking, unmasking_data


@dataclass(frozen=True)
class ReportFigure:
    """One figure.

    Attributes:
        name: of its files.
        title: what it shows.
        look_for: one sentence that holds whatever the data are.
        data: what is drawn, JSON-ready.
        draw: writes `data` as PNG to a path.
    """

    name: str
    title: str
    look_for: str
    data: dict[str, Any]
    draw: Callable[[dict[str, Any], Path], None]


def report_figures(
    rows: Sequence[Row],
    ablation: Sequence[Row],
    curves: Mapping[str, Curve],
    traced: str,
    answers: Mapping[str, Sequence[dict[str, Any]]],
) -> list[ReportFigure]:
    """All figures, in the order of the page.

    Args:
        rows: of build_table.
        ablation: the ablation stage's rows of all checkpoints.
        curves: curve.json by model.
        traced: the checkpoint whose unmasking order is shown.
        answers: its answers by decoder.
    """
    prompt = next(iter(answers.values()))[0]["id"]
    return [
        ReportFigure(
            "quality",
            "Quality by decoder",
            "Look for dots whose intervals do not overlap, since only those differ, and for how far all are from the "
            "reference.",
            decoder_data(rows, quality_axes(rows)),
            draw_decoders,
        ),
        ReportFigure(
            "degeneration",
            "Degeneration and length by decoder",
            "Look for dots that leave the reference: more repetition or more frequent words is degeneration, and a "
            "short answer has less room for either.",
            decoder_data(rows, [COLUMNS[name] for name in ("repetition_4", "high_prior", "length")]),
            draw_decoders,
        ),
        ReportFigure(
            "sizes",
            "Block length and kernel size (the paper's Figs. 4 and 8)",
            "Look for what each line loses from right to left: the claim is that semi-AR loses much with short blocks, "
            "and Conv little with small kernels.",
            size_data(ablation, quality_axes(ablation)),
            draw_sizes,
        ),
        ReportFigure(
            "r2ft",
            "R2FT on held-out data (the paper's Fig. 12)",
            "Look for the distance between chosen and rejected, which R2FT should widen by lowering the rejected side "
            "alone; a rising log-prior would be a drift towards frequent words.",
            r2ft_data(curves["r2ft"]),
            draw_r2ft,
        ),
        ReportFigure(
            "losses",
            "Training and held-out losses",
            "Look for held-out marks that stay with the training line; they part where a model learns its examples by "
            "heart (each panel averages over other tokens, so that levels compare within a panel only).",
            loss_data(curves),
            draw_losses,
        ),
        ReportFigure(
            "unmasking",
            "Unmasking order (the paper's Fig. 7)",
            "Look for the slope: a line that climbs from left to right is written outwards from the prompt, a flat one "
            "anywhere at any time, and stairs are blocks.",
            unmasking_data(traced, answers, prompt),
            draw_unmasking,
        ),
    ]
