"""`--watch`: one canvas in the terminal, drawn anew after every step."""

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from torch import Tensor

from dlm.analysis.escape import printable
from dlm.data.tokenizer import decode
from dlm.decoding.lm import DiffusionLM, Generation, Infilling
from dlm.decoding.loop import Watch
from dlm.models.interface import backbone

Result = TypeVar("Result", bound=Generation | Infilling)

STYLES = {"mask": "dim", "end": "dim", "fresh": "black on green", "old": ""}
LEAST = 0.1  # seconds that a frame stays: a small model's steps are too fast for the eye


class Passes:
    """Forward passes of a model while the block runs; with one row, its NFE."""

    def __init__(self, lm: DiffusionLM) -> None:
        self.lm, self.count = lm, 0

    def __enter__(self) -> "Passes":
        self._hook = backbone(self.lm.denoiser.model).register_forward_hook(self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _add(self, *_: object) -> None:
        self.count += 1


def status(step: int, steps: int, passes: int, masks: int) -> str:
    """Where a decoding stands, in one line."""
    where = f"step {step}/{steps}" if step <= steps else "one pass for the leftover masks"
    return f"{where} · NFE {passes} · {masks} masks left"


class View:
    """Frames of one row: masks as blocks, what has just been committed highlighted, end-of-text as a dot."""

    def __init__(self, lm: DiffusionLM, canvas: Sequence[int]) -> None:
        self.lm = lm
        self.before = list(canvas)

    def frame(self, tokens: Sequence[int], line: str) -> Group:
        """A canvas under a status line, which stays in sight when the canvas is longer than the screen."""
        body = Text()
        kinds = [self._kind(position, token) for position, token in enumerate(tokens)]
        # Whole runs are decoded at once, as one character may take several tokens.
        for kind, run in groupby(zip(kinds, tokens, strict=True), key=lambda pair: pair[0]):
            body.append(self._text(kind, [token for _, token in run]), STYLES[kind])
        self.before = list(tokens)
        return Group(Text(line, "bold"), body)

    def _kind(self, position: int, token: int) -> str:
        if token == self.lm.denoiser.mask_id:
            return "mask"
        if token in self.lm.ends:
            return "end"
        return "old" if token == self.before[position] else "fresh"

    def _text(self, kind: str, tokens: list[int]) -> str:
        if kind in ("mask", "end"):
            return {"mask": "░", "end": "·"}[kind] * len(tokens)
        return printable(decode(self.lm.tokenizer, tokens))


def watched(
    console: Console, lm: DiffusionLM, canvas: list[int], steps: int, run: Callable[[Watch | None], Result]
) -> Result:
    """Run a decoding of one row and show it, a frame at least LEAST seconds long; its text stays on the screen."""
    view, mask = View(lm, canvas), lm.denoiser.mask_id
    first = view.frame(canvas, status(0, steps, 0, canvas.count(mask)))
    with Passes(lm) as passes, Live(first, console=console, auto_refresh=False, transient=True) as live:
        due = time.monotonic() + LEAST

        def watch(step: int, tokens: Tensor) -> None:
            nonlocal due
            row = tokens[0].tolist()
            time.sleep(max(0.0, due - time.monotonic()))
            live.update(view.frame(row, status(step + 1, steps, passes.count, row.count(mask))), refresh=True)
            due = time.monotonic() + LEAST

        out = run(watch)
        time.sleep(max(0.0, due - time.monotonic()))
    leftover = int(out.leftover_masks[0])
    extra = f" · {leftover} leftover masks filled by one more pass" if leftover else ""
    console.print(Text(f"{steps} steps · NFE {int(out.nfe[0])}{extra}", "bold"))
    console.print(Text(printable(out.texts[0])), soft_wrap=False)
    return out
