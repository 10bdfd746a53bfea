"""`--record`: the canvas of one row after every step, written as a moving picture."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from dlm.analysis.escape import one_line, printable
from dlm.cli.picture import FAIR, UNSURE, Panel, Piece, Place, drawn
from dlm.cli.watch import Passes, status
from dlm.data.tokenizer import decode
from dlm.decoding.canvas import Trace
from dlm.decoding.lm import DiffusionLM, Generation, Infilling
from dlm.decoding.loop import Watch
from dlm.files import write_text

Result = TypeVar("Result", bound=Generation | Infilling)

CONTEXT = 32  # tokens before one that decide how its text begins: with a space, or within a character
LOST = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of a piece of a character
UNFIT = re.compile("[\ufffe\uffff]")  # no XML holds them


@dataclass(frozen=True)
class Recording:
    """One decoding of one row.

    Attributes:
        frames: the canvas before the first step, and after every one.
        statuses: a line for each frame.
        confidence: by (frame, position), of every token that the decoder wrote.
    """

    frames: list[list[int]]
    statuses: list[str]
    confidence: dict[tuple[int, int], float]


def recorded(
    lm: DiffusionLM, canvas: Sequence[int], steps: int, run: Callable[[Watch | None], Result]
) -> tuple[Result, Recording]:
    """Run a decoding of one row, which makes a trace, and keep what it goes through."""
    frames, counts = [list(canvas)], [0]
    with Passes(lm) as passes:

        def watch(_: int, tokens: Tensor) -> None:
            frames.append(tokens[0].tolist())
            counts.append(passes.count)

        out = run(watch)
    mask = lm.denoiser.mask_id
    lines = [
        status(step, steps, count, tokens.count(mask))
        for step, (count, tokens) in enumerate(zip(counts, frames, strict=True))
    ]
    return out, Recording(frames, lines, _confidence(out.trace) if out.trace else {})


def _confidence(trace: Trace) -> dict[tuple[int, int], float]:
    moments = zip(trace.step.tolist(), trace.offset.tolist(), trace.confidence.tolist(), strict=True)
    return {(step + 1, offset): confidence for step, offset, confidence in moments}


def write_picture(
    path: Path, lm: DiffusionLM, heading: str, note: str, recordings: Sequence[tuple[str, Recording]]
) -> None:
    """An SVG of the recordings under their titles, side by side; atomically."""
    panels = [
        Panel(_shown(title), tuple(one.statuses), tuple(_place(lm, one, i) for i in range(len(one.frames[0]))))
        for title, one in recordings
    ]
    write_text(path, drawn(_shown(one_line(heading)), _shown(note), panels))


def _place(lm: DiffusionLM, recording: Recording, position: int) -> Place:
    """What stands at one position, from frame to frame; each token's text is that behind the final tokens before it."""
    column = [tokens[position] for tokens in recording.frames]
    before = recording.frames[-1][max(0, position - CONTEXT) : position]
    starts = [n for n, token in enumerate(column) if n == 0 or token != column[n - 1]]
    pieces = []
    for start, end in pairwise([*starts, len(column)]):
        kind = _kind(lm, column[start], recording.confidence.get((start, position)))
        text = {"mask": "", "end": "·"}.get(kind)
        pieces.append(Piece(_added(lm, before, column[start]).strip() if text is None else text, kind, (start, end)))
    last = "" if pieces[-1].kind in ("mask", "end") else _added(lm, before, column[-1])
    return Place(
        tuple(Piece(_shown(piece.text), piece.kind, piece.span) for piece in pieces),
        space=last[:1].isspace(),
        ends_line="\n" in last,
    )


def _kind(lm: DiffusionLM, token: int, confidence: float | None) -> str:
    if token == lm.denoiser.mask_id:
        return "mask"
    if token in lm.ends:
        return "end"
    if confidence is None:
        return "given"
    return "unsure" if confidence < UNSURE else "fair" if confidence < FAIR else "sure"


def _added(lm: DiffusionLM, before: list[int], token: int) -> str:
    """What a token adds to the text; a character of several tokens comes with its last."""
    old, new = (decode(lm.tokenizer, ids).rstrip(LOST) for ids in (before, [*before, token]))
    return new.removeprefix(old) if new.startswith(old) else decode(lm.tokenizer, [token])


def _shown(text: str) -> str:
    """Text on one line that neither a terminal nor XML takes for anything else."""
    return UNFIT.sub(LOST, printable(text).replace("\n", "↵").replace("\t", " "))
