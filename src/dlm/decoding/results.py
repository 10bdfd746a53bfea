"""What decoding gives back to users: tokens in the order of what was given, and texts."""

import textwrap
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dlm.data.tokenizer import decode
from dlm.decoding.loop import Decoded, Rows


@dataclass(frozen=True, kw_only=True, repr=False)
class Written(Decoded[Rows]):
    """`loop.Decoded` in the order of what was given, and as texts; prints as one line."""

    texts: list[str]

    def __repr__(self) -> str:
        rows, low, high = len(self.texts), int(self.nfe.min()), int(self.nfe.max())
        head = f"{rows} text{'s' * (rows > 1)}, NFE {low}{f' to {high}' * (high > low)}"
        return f"{type(self).__name__}({head}: {textwrap.shorten(self.texts[0], 60)!r})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Generation(Written[Tensor]):
    """What `DiffusionLM.generate` returns.

    Attributes:
        texts: the answers, up to their first end (`DiffusionLM.ends`).
        tokens: [batch, gen_length], EOS from the first end on.
        commit_step: [batch, gen_length].
    """


@dataclass(frozen=True, kw_only=True, repr=False)
class Infilling(Written[list[Tensor]]):
    """What `DiffusionLM.infill` returns.

    Attributes:
        texts: each canvas as text, its gaps filled.
        gaps: the text of each gap of each canvas, from left to right.
        tokens, commit_step: of each canvas [length].
    """

    gaps: list[list[str]]


def gap_texts(tokenizer: PreTrainedTokenizerFast, canvas: list[int], filled: list[int], mask_id: int) -> list[str]:
    """The text of each gap of a canvas, once it is filled."""
    return [text_behind(tokenizer, filled, start, end) for start, end in _runs(canvas, mask_id)]


def text_behind(tokenizer: PreTrainedTokenizerFast, ids: list[int], start: int, end: int) -> str:
    """The text of ids[start:end] as it reads after the ids before it, with the space between them."""
    before, both = (decode(tokenizer, ids[:stop]) for stop in (start, end))
    # Where the border cuts a character in two, `before` is no prefix of `both`.
    return both.removeprefix(before) if both.startswith(before) else decode(tokenizer, ids[start:end])


def _runs(ids: list[int], value: int) -> list[tuple[int, int]]:
    """[start, end) of every unbroken run of `value`."""
    starts = [i for i, x in enumerate(ids) if x == value and (i == 0 or ids[i - 1] != value)]
    ends = [i + 1 for i, x in enumerate(ids) if x == value and (i + 1 == len(ids) or ids[i + 1] != value)]
    return list(zip(starts, ends, strict=True))
