"""A block-causal model beside semi-AR and Conv of the SFT-only one: the table and the figures of `block_diffusion`."""

from collections.abc import Mapping, Sequence
from typing import Any

from dlm.analysis.columns import COLUMNS, Row
from dlm.analysis.figures import ReportFigure
from dlm.analysis.lines import draw_lines, line_of, metric_panel
from dlm.analysis.style import decoder_marks
from dlm.analysis.table import build_table, setting_text

SHOWN = ("quality", "repetition_4", "length")


def block_table(
    beside: Sequence[Row],
    settings: Mapping[tuple[str, int], Mapping[str, Any]],
    cells: Sequence[Row],
    block_size: int,
) -> list[Row]:
    """The rows of the results table for both; what was chosen for a cell of the matrix, and the model's blocks.

    Args:
        beside: results of cells of the matrix.
        settings: what was chosen for them, by decoder and number of steps.
        cells: results of the block-causal model.
    """
    own = {cell["checkpoint"] for cell in cells}
    return [
        {
            **row,
            "setting": f"blocks of {block_size}"
            if row["checkpoint"] in own
            else setting_text(settings, row["decoder"], row["steps"]),
        }
        for row in build_table([*beside, *cells])
    ]


def block_figures(rows: Sequence[Row]) -> list[ReportFigure]:
    """A panel for each of SHOWN over forward passes, a line for each cell.

    Args:
        rows: of `block_table`.
    """
    cells = list(dict.fromkeys((row["checkpoint"], row["decoder"]) for row in rows))
    marks = decoder_marks(list(dict.fromkeys(decoder for _, decoder in cells)))
    panels = [
        metric_panel(
            COLUMNS[name],
            "forward passes (log scale)",
            [
                line_of(
                    decoder,
                    [row for row in rows if (row["checkpoint"], row["decoder"]) == (checkpoint, decoder)],
                    "nfe",
                    COLUMNS[name],
                    marks[decoder],
                    checkpoint,
                )
                for checkpoint, decoder in cells
            ],
            x_scale="log2",
        )
        for name in SHOWN
    ]
    return [
        ReportFigure(
            "passes",
            "Block diffusion over forward passes, beside semi-AR and Conv",
            "Look for the uppermost line of quality at each number of passes, and for what the others lose: repetition "
            "or length.",
            {"columns": 2, "panels": panels},
            draw_lines,
        )
    ]
