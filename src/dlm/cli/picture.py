"""A moving picture of canvases being filled: one SVG of text, drawn by CSS alone, without scripts or outside files."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from rich.cells import cell_len

Span = tuple[int, int]  # frames, from one up to before the other

SECONDS = 8.0  # of the whole, where a frame's bounds allow
SHORTEST, LONGEST = 0.1, 0.5  # seconds of a frame
STAY = 4.0  # seconds of the last frame, before all begins anew
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SIZE, ADVANCE, LINE, EDGE = 13, 7.8, 19, 14  # pixels: letters, a column, a line, around everything
COLUMNS = {1: 100, 2: 50}  # of each panel by how many there are
NARROW = 40
UNSURE, FAIR = 0.5, 0.9  # probabilities below which a token has the colour of that name

# Panels have a background of their own: whatever the page's is, the letters' contrast is known.
LIGHT = {"back": "#f6f8fa", "sure": "#1f2328", "fair": "#8a5a00", "unsure": "#c4211d", "dim": "#5f6770"}
DARK = {"back": "#0d1117", "sure": "#e6edf3", "fair": "#e3b341", "unsure": "#ff8a80", "dim": "#9aa4ae"}
LIGHT |= {"mask": "#ccd3da", "fresh": "#b6e3c0"}
DARK |= {"mask": "#363d47", "fresh": "#1d5a31"}


@dataclass(frozen=True)
class Piece:
    """What one place shows for a span of frames.

    Attributes:
        kind: mask, end, given (was there before), or how sure its writer was: unsure, fair, sure.
    """

    text: str
    kind: str
    span: Span

    @property
    def fresh(self) -> bool:
        return self.kind in ("unsure", "fair", "sure")


@dataclass(frozen=True)
class Place:
    """One position of the canvas. It keeps its room in every frame, as wide as its widest text.

    Attributes:
        space: a space comes before it.
        ends_line: what follows begins a line.
    """

    pieces: tuple[Piece, ...]
    space: bool = False
    ends_line: bool = False

    @property
    def width(self) -> int:
        return max(1, *(cell_len(piece.text) for piece in self.pieces))

    @property
    def is_end(self) -> bool:
        return self.pieces[-1].kind == "end"


@dataclass(frozen=True)
class Panel:
    """One canvas: what stands above it, in every frame and in each, and its places."""

    title: str
    statuses: tuple[str, ...]
    places: tuple[Place, ...]


def drawn(heading: str, note: str, panels: Sequence[Panel]) -> str:
    """The picture: panels side by side, which begin together; one that is done first waits for the others.

    A reader that asks for less motion, or a program without animations, sees the last frame.
    """
    columns = COLUMNS.get(len(panels), NARROW)
    frames = max(len(panel.statuses) for panel in panels)
    sheet = _Sheet(frames)
    laid = [_laid_out(panel.places, columns) for panel in panels]
    top, step = EDGE + 3 * LINE, columns * ADVANCE + 2 * EDGE
    lines = max((line for places in laid for line, _ in places), default=0) + 1
    width, height = step * len(panels) + EDGE, top + (lines + 4.5) * LINE
    sheet.write(heading, EDGE, EDGE + LINE * 0.7, "sure bold")
    sheet.write(note, EDGE, EDGE + LINE * 1.7, "dim")
    for number, (panel, places) in enumerate(zip(panels, laid, strict=True)):
        _draw_panel(sheet, panel, places, EDGE / 2 + number * step + EDGE / 2, top + LINE * 0.7)
    _draw_legend(sheet, EDGE, top + (lines + 3.7) * LINE)
    title = escape(": ".join([heading, ", ".join(panel.title for panel in panels)]))
    size = f'width="{width:g}" height="{height:g}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" {size} role="img">',
            f"<title>{title}</title>",
            f"<style>{sheet.style()}</style>",
            f'<rect class="back" {size} rx="8"/>',
            *sheet.body(),
            "</svg>\n",
        ]
    )


def _draw_panel(sheet: "_Sheet", panel: Panel, places: Sequence[tuple[int, int]], left: float, top: float) -> None:
    sheet.write(panel.title, left, top, "sure bold")
    for span, status in _spans(panel.statuses):
        sheet.write(status, left, top + LINE, "dim", sheet.to_the_end(span, len(panel.statuses)))
    for place, (line, column) in zip(panel.places, places, strict=True):
        x, y = left + column * ADVANCE, top + (line + 2.3) * LINE
        for piece in place.pieces:
            span = sheet.to_the_end(piece.span, len(panel.statuses))
            if piece.kind == "mask":
                sheet.block(x, y, place.width, "mask", span)
                continue
            if piece.fresh:
                sheet.block(x, y, place.width, "fresh", (span[0], span[0] + 1))
            sheet.write(piece.text, x, y, {"given": "dim", "end": "dim"}.get(piece.kind, piece.kind), span)


def _draw_legend(sheet: "_Sheet", x: float, y: float) -> None:
    """What colours mean: words in their own colour, a block before those that name one."""
    for text, kind, block in (
        ("probability when written:", "dim", ""),
        (f"below {UNSURE}", "unsure", ""),
        (f"below {FAIR}", "fair", ""),
        ("more", "sure", ""),
        ("mask", "dim", "mask"),
        ("new", "dim", "fresh"),
        ("· end", "dim", ""),
    ):
        if block:
            sheet.block(x, y, 2, block)
            x += 3 * ADVANCE
        sheet.write(text, x, y, kind)
        x += (cell_len(text) + 2) * ADVANCE


def _spans(values: Sequence[str]) -> Iterator[tuple[Span, str]]:
    """Runs of equal values."""
    starts = [n for n, value in enumerate(values) if n == 0 or value != values[n - 1]]
    for start, end in pairwise([*starts, len(values)]):
        yield (start, end), values[start]


def _laid_out(places: Sequence[Place], columns: int) -> list[tuple[int, int]]:
    """Line and column of every place. Lines break before a word or an end; a word that fills more is cut."""
    spots: list[tuple[int, int]] = []
    line = column = 0
    for word in _words(places):
        room = sum(place.width for place in word)
        space = word[0].space and column > 0
        if column and column + space + room > columns:
            line, column, space = line + 1, 0, False
        column += space
        for place in word:
            if column and column + place.width > columns:
                line, column = line + 1, 0
            spots.append((line, column))
            column += place.width
        if word[-1].ends_line:
            line, column = line + 1, 0
    return spots


def _words(places: Iterable[Place]) -> Iterator[list[Place]]:
    word: list[Place] = []
    for place in places:
        if word and (place.space or place.is_end or word[-1].is_end or word[-1].ends_line):
            yield word
            word = []
        word.append(place)
    if word:
        yield word


class _Sheet:
    """Shapes gathered by how they look and when: whatever comes and goes together is one group with one animation."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.frame = min(max(SECONDS / frames, SHORTEST), LONGEST)
        self.groups: defaultdict[tuple[str, Span], list[str]] = defaultdict(list)

    def to_the_end(self, span: Span, frames: int) -> Span:
        """What stands in the last of a panel's frames stays in the picture's last."""
        return (span[0], self.frames) if span[1] == frames else span

    def write(self, text: str, x: float, y: float, look: str, span: Span | None = None) -> None:
        """A text of known length, whatever the reader's font is."""
        if not text:
            return
        cells = cell_len(text)
        length = f' textLength="{cells * ADVANCE:g}"' if cells > 1 else ""
        shape = f'<text x="{x:.5g}" y="{y:.5g}"{length}>{escape(text)}</text>'
        self.groups[look, span or (0, self.frames)].append(shape)

    def block(self, x: float, y: float, cells: int, look: str, span: Span | None = None) -> None:
        shape = f'<rect x="{x:.5g}" y="{y - 11:.5g}" width="{cells * ADVANCE - 1:.5g}" height="14"/>'
        self.groups[look, span or (0, self.frames)].append(shape)

    def body(self) -> Iterator[str]:
        """Groups; blocks first, as they lie under letters."""
        for (look, span), shapes in sorted(self.groups.items(), key=lambda one: "<text" in one[1][0]):
            moving = "" if span == (0, self.frames) else f" moving f{span[0]}-{span[1]}"
            hidden = "" if span[1] == self.frames else " gone"
            yield f'<g class="{look}{moving}{hidden}">{"".join(shapes)}</g>'

    def style(self) -> str:
        whole = self.frames * self.frame + STAY
        rules = [
            f"svg{{font:{SIZE}px {FONT}}}text{{white-space:pre}}",
            ".bold{font-weight:600}",
            _fills(LIGHT),
            f"@media (prefers-color-scheme:dark){{{_fills(DARK)}}}",
            f".moving{{animation:{whole:g}s step-end infinite}}.gone{{opacity:0}}",
        ]
        for start, end in sorted({span for _, span in self.groups if span != (0, self.frames)}):
            name, marks = f"f{start}-{end}", f"0%{{opacity:{int(start == 0)}}}"
            for frame, shown in ((start, 1), (end, 0)):
                if 0 < frame < self.frames:
                    marks += f"{100 * frame * self.frame / whole:.4g}%{{opacity:{shown}}}"
            rules.append(f"@keyframes {name}{{{marks}}}.{name}{{animation-name:{name}}}")
        rules.append("@media (prefers-reduced-motion:reduce){.moving{animation:none}}")
        return "\n".join(rules)


def _fills(colours: dict[str, str]) -> str:
    return "".join(f".{name}{{fill:{colour}}}" for name, colour in colours.items())
