"""What all figures share: sizes, one legend of colours, markers and lines, and the same bytes every time.

A colour with its marker is a decoder (`decoder_marks`), or, from other colours, a kind of token, a number of steps or a
series of its own; how a line is drawn and its markers are filled is the checkpoint; what is dotted is the mark to
compare with.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Inches: a column of a two-column page, and the text of a one-column page.
COLUMN = 3.3
TEXT = 5.5
POINTS = 8
DPI = 200
INK = "#333333"
FAINT = "#d9d9d9"
FILLED = "#b9b9b9"  # positions that are no longer open
STYLE = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": POINTS,
    "axes.titlesize": POINTS,
    "axes.titlelocation": "left",
    "axes.labelsize": POINTS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": POINTS,
    "ytick.labelsize": POINTS,
    "text.color": INK,
    "legend.fontsize": POINTS,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "errorbar.capsize": 1.5,
    "lines.markersize": 4,
    "lines.linewidth": 1,
    "svg.hashsalt": "dlm",
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
}
METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


LineStyle = Literal["-", "--", "-.", ":"]


@dataclass(frozen=True)
class Mark:
    """How one thing looks wherever it is drawn; `line` is the checkpoint's where there is one."""

    colour: str
    marker: str
    line: LineStyle = "-"


# Okabe and Ito's palette, which colour-blind readers tell apart.
DECODERS = {
    "categorical": Mark("#0072B2", "o"),
    "top_k": Mark("#D55E00", "s"),
    "low_confidence": Mark("#009E73", "^"),
    "semi_ar": Mark("#CC79A7", "D"),
    "conv": Mark("#E69F00", "v"),
}
OTHER_DECODERS = tuple(Mark(colour, marker) for marker in "PX*h<>" for colour in ("#56B4E9", "#7F4A1E"))
# Tol's muted palette for what is no decoder.
SERIES = (
    Mark("#332288", "p"),
    Mark("#882255", "*"),
    Mark("#44AA99", "<"),
    Mark("#999933", ">"),
    Mark("#666666", "h"),
    Mark("#CC6677", "X"),
)
KINDS = {
    "end": Mark("#9A9A9A", "h"),
    "high_prior": Mark("#999933", ">"),
    "repetition": Mark("#882255", "*"),
    "other": Mark("#332288", "p"),
}
# From few to many.
ORDERED = (Mark("#B3A2D6", "<"), Mark("#7B5CC0", "p"), Mark("#4B1D91", ">"), Mark("#1F0540", "*"))
REAL = Mark(INK, ".", ":")
CHECKPOINT_LINES: dict[str, LineStyle] = {"sft": "--", "r2ft": "-"}
HOLLOW = "sft"


def decoder_marks(names: Sequence[str]) -> dict[str, Mark]:
    """Each decoder's mark; those that `DECODERS` does not know get others in the order they come in."""
    others = [name for name in names if name not in DECODERS]
    return {
        name: DECODERS[name] if name in DECODERS else OTHER_DECODERS[others.index(name) % len(OTHER_DECODERS)]
        for name in names
    }


def handle(label: str, mark: Mark, checkpoint: str | None = None) -> Line2D:
    """An entry of a legend: the mark as `checkpoint` draws it."""
    return Line2D(
        [],
        [],
        color=mark.colour,
        marker=mark.marker,
        linestyle=CHECKPOINT_LINES.get(checkpoint or "", mark.line),
        fillstyle=fill(checkpoint),
        label=label,
    )


def fill(checkpoint: str | None) -> Literal["none", "full"]:
    """Whether its markers are hollow."""
    return "none" if checkpoint == HOLLOW else "full"


def checkpoint_handle(checkpoint: str) -> Line2D:
    """The entry that says how a checkpoint is drawn, whatever the colour."""
    return handle(checkpoint, Mark(INK, "o"), checkpoint)


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend above all panels; the figure grows by its lines, so that panels keep their height."""
    longest = max((len(str(entry.get_label())) for entry in handles), default=0)
    columns = max(min(len(handles), int(figure.get_figwidth() / (0.42 + 0.067 * longest))), 1)
    figure.legend(handles=list(handles), loc="outside upper left", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(handles) // columns))


@contextmanager
def canvas(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, written to `path` as PNG, and beside it as SVG and PDF, when the block ends.

    No pyplot, no matplotlibrc, no metadata: the same data give the same bytes.
    """
    with style.context(["default", STYLE]):  # type: ignore[list-item]
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # as it is laid out now in every format
        for ending, metadata in METADATA.items():
            target = path if ending == "png" else path.with_suffix(f".{ending}")
            figure.savefig(target, format=ending, metadata=metadata)
