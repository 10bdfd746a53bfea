"""Every figure fits a paper's column in 8-point type, and the same mark means the same thing in all of them."""

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import test_sweeps
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_report import figures  # noqa: F401 (a fixture)

from dlm.analysis.curves import loss_data
from dlm.analysis.figures import ReportFigure
from dlm.analysis.style import COLUMN, DECODERS, KINDS, ORDERED, SERIES, TEXT, decoder_marks
from dlm.analysis.unmasking import draw_unmasking
from dlm.analysis.weights import draw_weights, weights_data
from dlm.decoding.options import decoder_options
from dlm.files import read_json

ROOT = Path(__file__).parents[1]


@pytest.fixture
def both(figures: list[ReportFigure]) -> list[ReportFigure]:  # noqa: F811
    """The report's and the sweeps'."""
    return [*figures, *test_sweeps.figures()]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """matplotlib's own figures, as they were when they were written; fails where a label lies beyond the edge."""
    made: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, path: Path, **settings: Any) -> None:
        save(self, path, **settings)
        if settings["format"] == "png":
            made.append(self)
            # Here, in the figure's own style.
            box, (width, height) = self.get_tightbbox(), self.get_size_inches()
            assert min(box.x0, box.y0) > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01, path

    monkeypatch.setattr(Figure, "savefig", keep)
    yield made


def lines_of(figure: ReportFigure) -> list[dict[str, Any]]:
    return [line for panel in figure.data.get("panels", []) for line in panel.get("lines", [])]


def test_width_type_and_nothing_cut(both: list[ReportFigure], kept: list[Figure], tmp_path: Path) -> None:
    """The width of a column or of the text, all type of 8 points, and no label beyond the edge."""
    for figure in both:
        figure.draw(figure.data, tmp_path / f"{figure.name}.png")
        drawn = kept.pop()
        assert drawn.get_figwidth() in (COLUMN, TEXT) == (3.3, 5.5) and drawn.get_figheight() < 9, figure.name
        texts = [text for text in drawn.findobj(Text) if text.get_text() and text.get_visible()]
        assert {text.get_fontsize() for text in texts} == {8.0}, figure.name


def test_svg_is_text_and_pdf_has_its_fonts(both: list[ReportFigure], tmp_path: Path) -> None:
    """SVG: as many inches, its words as text. PDF: TrueType within; small; neither says when it was made."""
    figure = both[0]
    figure.draw(figure.data, tmp_path / "a.png")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.get("width") == f"{COLUMN * 72}pt".replace(".0pt", "pt")
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    words = {"".join(text.itertext()) for text in texts}
    assert {"conv", "top_k", "forward passes (log scale)"} <= words
    assert all(
        re.match("font-size: 8px; font-family: 'DejaVu Sans', .*sans-serif", text.attrib["style"]) for text in texts
    )
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Subtype /Type3" not in pdf and len(pdf) < 60_000


def test_one_mark_for_one_thing(both: list[ReportFigure]) -> None:
    """Within a figure no colour and marker stands for two things, and a decoder has its own in all."""
    for figure in both:
        marks = {(line["label"], line["mark"]["colour"], line["mark"]["marker"]) for line in lines_of(figure)}
        labels = {label for label, *_ in marks}
        assert len(marks) == len(labels) == len({tuple(mark) for _, *mark in marks}), figure.name
        assert len({colour for _, colour, _ in marks}) == len({marker for *_, marker in marks}) == len(labels)
        for label, colour, marker in marks:
            own = DECODERS.get(label.removeprefix("written by "))
            assert own is None or (own.colour, own.marker) == (colour, marker), (figure.name, label)


def test_marks_of_figure_3(both: list[ReportFigure]) -> None:
    """Kinds, decoders and real answers share no colour and no marker; checkpoints differ in the line alone."""
    (figure,) = [figure for figure in both if figure.name == "fig-03-distance"]
    panels = figure.data["panels"]
    assert [panel["title"].split(",")[0].split(" ")[0] for panel in panels] == ["sft", "r2ft"] * 3
    for sft, r2ft in zip(panels[::2], panels[1::2], strict=True):
        pairs = [(a["label"], a["mark"]) for a in sft["lines"]], [(a["label"], a["mark"]) for a in r2ft["lines"]]
        assert pairs[0] == pairs[1]
    assert {line["checkpoint"] for line in lines_of(figure) if line["label"] != "real answers"} == {"sft", "r2ft"}


def test_palettes_share_nothing_with_the_decoders() -> None:
    decoders = {mark.colour for mark in decoder_marks([*DECODERS, "nearest", "duo", "p"]).values()}
    assert len(decoders) >= 7
    assert not decoders & {mark.colour for mark in (*KINDS.values(), *SERIES, *ORDERED)}
    for palette in (DECODERS.values(), KINDS.values(), SERIES, ORDERED):
        for one, other in combinations(palette, 2):
            assert one.colour != other.colour and one.marker != other.marker
    names = ["conv", *(f"mine{i}" for i in range(10))]
    assert len(set(decoder_marks(names).values())) == len(names)


def test_checkpoints_are_told_by_line_and_filling(both: list[ReportFigure], kept: list[Figure], tmp_path: Path) -> None:
    """The legend says so once, whatever the colours."""
    figure = both[0]
    assert figure.name == "passes"
    figure.draw(figure.data, tmp_path / "a.png")
    (legend,) = kept[0].legends
    entries = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert list(entries) == ["categorical", "top_k", "low_confidence", "conv", "sft", "r2ft"]
    assert (entries["sft"].get_linestyle(), entries["sft"].get_fillstyle()) == ("--", "none")
    assert (entries["r2ft"].get_linestyle(), entries["r2ft"].get_fillstyle()) == ("-", "full")
    upper, lower = kept[0].axes
    for axis, line, fill in ((upper, "--", "none"), (lower, "-", "full")):
        drawn = [found for found in axis.get_lines() if str(found.get_marker()) in "os^v"]
        assert len(drawn) == 4 and {(found.get_linestyle(), found.get_fillstyle()) for found in drawn} == {(line, fill)}


def test_losses_begin_at_zero(kept: list[Figure], both: list[ReportFigure], tmp_path: Path) -> None:
    """A loss that hardly moves looks so: 0.2690 to 0.2698 is a flat line."""
    (figure,) = [figure for figure in both if figure.name == "losses"]
    rows = [{"step": step, "loss": 0.2695, "eval_loss": 0.2690 + step / 1e5} for step in (0, 40, 80)]
    figure.draw(loss_data({"reference": rows}), tmp_path / "a.png")
    axis = kept[0].axes[0]
    low, high = axis.get_ylim()
    assert low == 0 and 0.27 < high < 0.31
    assert not axis.yaxis.get_offset_text().get_text()


def test_figure_5_shows_gains_where_half_is_open(kept: list[Figure], tmp_path: Path) -> None:
    """Of 16 positions that commit two a step, step 4 of 8 finds eight open; its gains reach over the whole width."""
    options = decoder_options("conv", {"kernel_size": 5}, "conv")
    answer = {"tokens": [1] * 16, "commit_step": [position // 2 for position in range(16)]}
    data = weights_data(answer, 4, options, 8)
    assert data["step"] == 4
    draw_weights(data, tmp_path / "a.png")
    lower = kept[0].axes[1]
    lines = [line for line in lower.get_lines() if np.size(line.get_xdata()) == 16]
    assert len(lines) == len(data["gains"]) == 4
    assert all(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).all() for line in lines)
    assert len({line.get_linewidth() for line in lines}) == len({line.get_color() for line in lines}) == 4
    assert "committed" in {text.get_text() for text in kept[0].legends[0].get_texts()}


def test_unmasking_says_what_grey_is_and_colours_are_decoders(
    both: list[ReportFigure], kept: list[Figure], tmp_path: Path
) -> None:
    (figure,) = [figure for figure in both if figure.name == "unmasking"]
    draw_unmasking(figure.data, tmp_path / "a.png")
    assert "set by EOS-fill" in {text.get_text() for text in kept[0].legends[0].get_texts()}
    drawn = {line.get_color() for line in kept[0].axes[0].get_lines()}
    assert drawn == {DECODERS[name].colour for name in figure.data["decoders"]}
    assert "EOS-fill" in figure.look_for and re.search("line ends where", figure.look_for)


def test_dvcs_plot_has_the_same_colours() -> None:
    """In the order of report.decoders; those of a user's come next."""
    drawn = read_json(ROOT / ".dvc/plots/passes.json")["encoding"]["color"]["scale"]["range"]
    assert drawn == [mark.colour for mark in decoder_marks([*DECODERS, "nearest", "duo"]).values()]
