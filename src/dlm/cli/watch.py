"""`--watch`: one canvas in the terminal, drawn anew after every step."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from torch import Tensor

from dlm.data.escape import printable
from dlm.data.tokenizer import decode
from dlm.decoding.lm import DiffusionLM, Generation, Infilling
from dlm.decoding.loop import Watch
from dlm.models.interface import backbone

Result = TypeVar("Result", Generation, Infilling)

STYLES = {"mask": "dim", "end": "dim", "fresh": "black on green", "old": ""}


class View:
    """Frames of one row: masks as blocks, what has just been committed highlighted, end-of-text as a dot."""

    def __init__(self, lm: DiffusionLM, canvas: Sequence[int], steps: int) -> None:
        self.lm, self.steps = lm, steps
        self.before = list(canvas)
        self.passes = 0  # of the model; with one row, its NFE

    def frame(self, tokens: Sequence[int], status: str) -> Group:
        """A canvas under a status line, which stays in sight when the canvas is longer than the screen."""
        body = Text()
        kinds = [self._kind(position, token) for position, token in enumerate(tokens)]
        # Whole runs are decoded at once, as one character may take several tokens.
        for kind, run in groupby(zip(kinds, tokens, strict=True), key=lambda pair: pair[0]):
            body.append(self._text(kind, [token for _, token in run]), STYLES[kind])
        self.before = list(tokens)
        return Group(Text(status, "bold"), body)

    def status(self, step: int, tokens: Sequence[int]) -> str:
        masks = list(tokens).count(self.lm.denoiser.mask_id)
        where = f"step {step}/{self.steps}" if step <= self.steps else "one pass for the leftover masks"
        return f"{where} · NFE {self.passes} · {masks} masks left"

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
    """Run a decoding of one row and show it; its text stays on the screen."""
    view = View(lm, canvas, steps)

    def count(*_: object) -> None:
        view.passes += 1

    counting = backbone(lm.denoiser.model).register_forward_hook(count)
    first = view.frame(canvas, view.status(0, canvas))
    try:
        with Live(first, console=console, auto_refresh=False, transient=True) as live:

            def watch(step: int, tokens: Tensor) -> None:
                row = tokens[0].tolist()
                live.update(view.frame(row, view.status(step + 1, row)), refresh=True)

            out = run(watch)
    finally:
        counting.remove()
    leftover = int(out.leftover_masks[0])
    extra = f" · {leftover} leftover masks filled by one more pass" if leftover else ""
    console.print(Text(f"{steps} steps · NFE {int(out.nfe[0])}{extra}", "bold"))
    console.print(Text(printable(out.texts[0])), soft_wrap=False)
    return out
