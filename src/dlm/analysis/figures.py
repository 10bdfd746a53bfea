"""The report's figures: which there are, from which data, and what to look for in each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.analysis.columns import COLUMNS, Column, Row
from dlm.analysis.curves import Curve, loss_data, r2ft_data
from dlm.analysis.lines import draw_lines, line_of, metric_panel
from dlm.analysis.panels import decoder_data, draw_decoders
from dlm.analysis.selection import sizes
from dlm.analysis.style import DECODERS, decoder_marks
from dlm.analysis.table import at_budget, is_reference, over_passes, quality_axes
from dlm.analysis.unmasking import draw_unmasking, unmasking_data
from dlm.files import atomic_directory, write_json

# decoder -> (the option that is its size, its label)
SIZES = {"semi_ar": ("block_length", "semi-AR over block length"), "conv": ("kernel_size", "Conv over kernel size")}
SIZE_LABEL = "block or kernel, tokens (log scale)"


@dataclass(frozen=True)
class ReportFigure:
    """One figure.

    Attributes:
        name: of its files.
        title: what it shows.
        look_for: one sentence that holds whatever the data are.
        data: what is drawn, JSON-ready.
        draw: writes `data` to a path as PNG, and beside it as SVG and PDF.
    """

    name: str
    title: str
    look_for: str
    data: dict[str, Any]
    draw: Callable[[dict[str, Any], Path], None]


def report_figures(
    rows: Sequence[Row],
    grid: Sequence[Row],
    steps: int,
    curves: Mapping[str, Curve],
    traced: str,
    answers: Mapping[str, Sequence[dict[str, Any]]],
) -> list[ReportFigure]:
    """All figures, in the order of the page; none over passes with a single budget, none of sizes without candidates.

    Args:
        rows: of build_table.
        grid: the select stage's rows of all decoders.
        steps: the budget that the figures by decoder show.
        curves: curve.json by model.
        traced: the checkpoint whose unmasking order is shown.
        answers: its answers by decoder.
    """
    prompt = next(iter(answers.values()))[0]["id"]
    judged = at_budget(rows, steps)
    passes = ReportFigure(
        "passes",
        "Quality over forward passes (the paper's Fig. 10)",
        "Look for the uppermost line at each number of passes, every decoder with the settings that suit that budget; "
        "the area in the table is what lies under a line.",
        passes_data(rows),
        draw_lines,
    )
    over_sizes = ReportFigure(
        "sizes",
        "Block length and kernel size (the paper's Figs. 4 and 8)",
        "Look for what each line loses from right to left: the claim is that semi-AR loses much with short blocks, "
        "and Conv little with small kernels.",
        size_data(grid, quality_axes(grid)),
        draw_lines,
    )
    return [
        *([passes] if over_passes(rows)[0] else []),
        ReportFigure(
            "quality",
            f"Quality by decoder, S = {steps}",
            "Look for dots whose intervals do not overlap, since only those differ, and for how far all are from the "
            "reference.",
            decoder_data(judged, quality_axes(rows)),
            draw_decoders,
        ),
        ReportFigure(
            "degeneration",
            f"Degeneration and length by decoder, S = {steps}",
            "Look for dots that leave the reference: more repetition or more frequent words is degeneration, and a "
            "short answer has less room for either.",
            decoder_data(judged, [COLUMNS[name] for name in ("repetition_4", "high_prior", "length")]),
            draw_decoders,
        ),
        *([over_sizes] if any(panel["lines"] for panel in over_sizes.data["panels"]) else []),
        ReportFigure(
            "r2ft",
            "R2FT on held-out data (the paper's Fig. 12)",
            "Look for the distance between chosen and rejected, which R2FT should widen by lowering the rejected side "
            "alone; a rising log-prior would be a drift towards frequent words.",
            r2ft_data(curves["r2ft"]),
            draw_lines,
        ),
        ReportFigure(
            "losses",
            "Training and held-out losses",
            "Look for held-out marks that stay with the training line; they part where a model learns its examples by "
            "heart (axes begin at 0; panels average over different tokens: levels compare within a panel only).",
            loss_data(curves),
            draw_lines,
        ),
        ReportFigure(
            "unmasking",
            "Unmasking order (the paper's Fig. 7)",
            "Look for the slope: a line that climbs from left to right is written outwards from the prompt, a flat one "
            "anywhere at any time, and stairs are blocks. A line ends where fewer than a tenth of the answers chose a "
            "token; grey positions nobody chose: EOS-fill set them at once, behind an end of the text.",
            unmasking_data(traced, answers, prompt),
            draw_unmasking,
        ),
    ]


def passes_data(rows: Sequence[Row]) -> dict[str, Any]:
    """Quality over forward passes: a panel for each checkpoint, one above the other, a line for each decoder."""
    diffusion = [row for row in rows if not is_reference(row)]
    marks = decoder_marks(list(dict.fromkeys(row["decoder"] for row in diffusion)))
    panels = [
        metric_panel(
            COLUMNS["quality"],
            "forward passes (log scale)",
            [
                line_of(
                    decoder,
                    [row for row in diffusion if (row["checkpoint"], row["decoder"]) == (checkpoint, decoder)],
                    "nfe",
                    COLUMNS["quality"],
                    mark,
                    checkpoint,
                )
                for decoder, mark in marks.items()
            ],
            where=f", {checkpoint}",
            x_scale="log2",
        )
        for checkpoint in dict.fromkeys(row["checkpoint"] for row in diffusion)
    ]
    return {"columns": 1, "panels": panels}


def size_data(grid: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    """The columns over block length and kernel size: a panel for each budget, a line for each plan and checkpoint."""
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in grid))
    budgets = list(dict.fromkeys(row["steps"] for row in grid))
    panels = []
    for column in columns:
        for steps in budgets:
            lines = []
            for decoder, (size, name) in SIZES.items():
                for checkpoint in checkpoints:
                    rows = [row for row in grid if (row["checkpoint"], row["steps"]) == (checkpoint, steps)]
                    if rows_by_size := sizes(rows, decoder, size):
                        lines.append(line_of(name, rows_by_size, size, column, DECODERS[decoder], checkpoint))
            panels.append(metric_panel(column, SIZE_LABEL, lines, where=f", S = {steps}", x_scale="log2"))
    return {"columns": max(len(budgets), 1), "panels": panels}


def write_figures(folder: Path, figures: Sequence[ReportFigure]) -> list[tuple[ReportFigure, bytes]]:
    """Every figure in all formats with its data into `folder`, replaced as a whole; returns them with their PNGs."""
    with atomic_directory(folder) as temporary:
        for figure in figures:
            figure.draw(figure.data, temporary / f"{figure.name}.png")
            write_json(temporary / f"{figure.name}.json", figure.data)
    return [(figure, (folder / f"{figure.name}.png").read_bytes()) for figure in figures]
