"""What earlier passes leave to a rule that looks back: hidden states, or the likeliest token of each position.

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
        votes: whether the likeliest token of each open position is kept of every pass.
    """

    passes: int = 0
    votes: bool = False


@dataclass(frozen=True)
class Votes:
    """The likeliest token of n open positions at v passes at which they were open, the earliest first.

    Attributes:
        log_p: of the token then, -inf where there is no vote.
        age: how many passes ago; 0 is the newest.
        counted: whether the newest pass has its vote already: the step uses states again.
    """

    tokens: Int[Tensor, "n v"]
    log_p: Float[Tensor, "n v"]
    age: Int[Tensor, "n v"]
    counted: Bool[Tensor, " n"]


@dataclass(frozen=True)
class Past:
    """The history of the open positions of a step, flat: n of them.

    Attributes:
        seen: in how many passes in a row, up to the newest, each position was computed as a mask; counted up to
            1 + Lookback.passes.
        logits: (how many passes ago, indices [m] into the positions) -> logits [m, vocab], as Source.logits gives them
            for the newest pass. Guidance is that of the pass; a penalty is of what stands on the canvas now.
        votes: where Lookback.votes asks for them.
    """

    seen: Int[Tensor, " n"]
    logits: Callable[[int, Int[Tensor, " m"]], Float[Tensor, "m vocab"]]
    votes: Votes


class History:
    """The last passes of every row. Nothing of one row depends on another.

    Attributes:
        count: passes of each row over a changed canvas.
        hidden: states of the passes before the newest, the latest first; `unguided` those without the context.
        seen: where each position was computed as a mask, of the newest pass and those before it.
        voted: the number (`count`) of the pass that each position has voted at last.
    """

    def __init__(self, lookback: Lookback, hidden: Tensor, unguided: Tensor | None) -> None:
        batch, length, _ = hidden.shape
        self.lookback = lookback
        self.count: Int[Tensor, " batch"] = torch.zeros(batch, dtype=torch.long, device=hidden.device)
        self.hidden: Float[Tensor, "passes batch length width"] = hidden.new_zeros(lookback.passes, *hidden.shape)
        self.unguided = None if unguided is None else torch.zeros_like(self.hidden)
        seen = torch.zeros(lookback.passes + 1, batch, length, dtype=torch.bool, device=hidden.device)
        self.seen: Bool[Tensor, "newest_and_passes batch length"] = seen
        self.voted: Int[Tensor, "batch length"] = self.count[:, None].repeat(1, length)
        self._votes: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, log p, number of the pass, each [batch, length]

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
        self.count[rows] += changed.long()
        if not self.lookback.passes:
            return
        for kept, newest in ((self.hidden, states[0]), (self.unguided, states[1]), (self.seen, seen)):
            if kept is not None and newest is not None:
                old = kept[:, rows]
                moved = torch.cat([newest[None, rows], old[:-1]])
                kept[:, rows] = torch.where(changed.view(1, -1, *[1] * (kept.dim() - 2)), moved, old)

    def seen_in_a_row(self, row: Int[Tensor, " n"], position: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        return self.seen[:, row, position].long().cumprod(0).sum(0)

    def vote(self, row: Tensor, position: Tensor, tokens: Int[Tensor, " n"], log_p: Float[Tensor, " n"]) -> None:
        """Keep the likeliest tokens of some positions at the newest pass, unless it has been counted there."""
        counted = self._counted(row, position)
        column = torch.zeros_like(self.voted), log_p.new_full(self.voted.shape, -torch.inf), self.voted.clone()
        column[0][row, position] = tokens
        column[1][row, position] = log_p.masked_fill(counted, -torch.inf)
        column[2][row, position] = self.count[row]
        self._votes.append(column)
        self.voted = column[2]

    def votes(self, row: Tensor, position: Tensor) -> Votes:
        shape, now = (len(row), len(self._votes)), self.count[row, None]
        tokens, log_p, numbers = now.new_zeros(shape), self.hidden.new_zeros(shape).float(), now.new_zeros(shape)
        for place, column in enumerate(self._votes):
            for kept, values in zip((tokens, log_p, numbers), column, strict=True):
                kept[:, place] = values[row, position]
        return Votes(tokens, log_p, now - numbers, self._counted(row, position))

    def _counted(self, row: Tensor, position: Tensor) -> Bool[Tensor, " n"]:
        return self.voted[row, position] == self.count[row]
