"""What all figures share: one style, colours that colour-blind readers tell apart, and the same bytes every time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150
INK = "#333333"
FAINT = "#d9d9d9"
FILLED = "#d4d4d4"  # positions that are no longer open
# Okabe and Ito's palette.
CHECKPOINT_COLOURS = {"sft": "#0072B2", "r2ft": "#D55E00"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "errorbar.capsize": 2.5,
    "svg.hashsalt": "dlm",
}


@contextmanager
def canvas(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, written to `path` as PNG, and beside it as SVG, when the block ends.

    No pyplot, no matplotlibrc, no metadata: the same data give the same bytes.
    """
    with style.context(["default", STYLE]):  # type: ignore[list-item]
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), format="svg", metadata={"Date": None, "Creator": None})
