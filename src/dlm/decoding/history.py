"""What earlier passes of a row leave to a rule that looks back: their hidden states, or the likeliest tokens.

A pass counts where the row's canvas had changed since the one before. A step that uses states again (`cache`), or
computes the same ones once more, is no new observation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Lookback:
    """What a rule wants kept.

    Attributes:
        passes: how many passes before the newest one it asks logits of.
    """

    passes: int = 0


@dataclass(frozen=True)
class Past:
    """The history of the open positions of a step, flat: n of them.

    Attributes:
        seen: in how many passes in a row, up to the newest, each position was computed as a mask; counted up to
            1 + Lookback.passes.
        logits: (how many passes ago, indices [m] into the positions) -> logits [m, vocab], as Source.logits gives them
            for the newest pass. Guidance is that of the pass; a penalty is of what stands on the canvas now.
    """

    seen: Int[Tensor, " n"]
    logits: Callable[[int, Int[Tensor, " m"]], Float[Tensor, "m vocab"]]


class History:
    """The last passes of every row. Nothing of one row depends on another.

    Attributes:
        hidden: states of the passes before the newest, the latest first; `unguided` those without the context.
        seen: where each position was computed as a mask, of the newest pass and those before it.
    """

    def __init__(self, lookback: Lookback, hidden: Tensor, unguided: Tensor | None) -> None:
        self.passes = lookback.passes
        self.hidden: Float[Tensor, "passes batch length width"] = hidden.new_zeros(self.passes, *hidden.shape)
        self.unguided = None if unguided is None else torch.zeros_like(self.hidden)
        size = (self.passes + 1, *hidden.shape[:2])
        self.seen: Bool[Tensor, "newest_and_passes batch length"] = torch.zeros(
            size, dtype=torch.bool, device=hidden.device
        )

    def push(
        self,
        rows: Int[Tensor, " r"],
        changed: Bool[Tensor, " r"],
        states: tuple[Tensor, Tensor | None],
        seen: Bool[Tensor, "batch length"],
    ) -> None:
        """Before a pass of some rows: what the pass before it left moves back by one, where the canvas has `changed`.

        Args:
            states: hidden and unguided states as they are, [batch, length, width].
            seen: positions that the pass computes as masks.
        """
        if not self.passes:
            return
        for kept, newest in ((self.hidden, states[0]), (self.unguided, states[1]), (self.seen, seen)):
            if kept is not None and newest is not None:
                old = kept[:, rows]
                moved = torch.cat([newest[None, rows], old[:-1]])
                kept[:, rows] = torch.where(changed.view(1, -1, *[1] * (kept.dim() - 2)), moved, old)

    def seen_in_a_row(self, row: Int[Tensor, " n"], position: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        return self.seen[:, row, position].long().cumprod(0).sum(0)
