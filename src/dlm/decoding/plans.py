"""Plans: one phase over the whole window, hard blocks from left to right (semi-autoregressive), or a sliding window."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A run of steps. Offsets count from the first response position.

    Attributes:
        steps: denoising steps of this phase.
        start, end: response positions [start, end) that may commit.
        keep: when the phase ends, response positions from here on are masked again.
        must: positions before this one commit at every step, whatever the rule says.
        first, total: the phase's steps are number `first`, `first` + 1, ... of a run of `total` from time 1 to 0.
    """

    steps: int
    start: int
    end: int
    keep: int
    must: int = 0
    first: int = 0
    total: int = 0


Plan = Callable[[int, int], list[Phase]]


def whole(gen_length: int, steps: int) -> list[Phase]:
    """The whole window at once."""
    return [Phase(steps, 0, gen_length, gen_length, total=steps)]


def restrict(gen_length: int, steps: int, block_length: int) -> list[Phase]:
    """LLaDA's semi-AR: steps / blocks steps for each block, only its positions commit; then the next."""
    each = steps // (gen_length // block_length)
    starts = range(0, gen_length, block_length)
    return [Phase(each, start, start + block_length, gen_length, total=each) for start in starts]


def stride(gen_length: int, steps: int, block_length: int) -> list[Phase]:
    """The paper's semi-AR: each phase denoises all that is left, then everything beyond the stride is masked again."""
    each = steps // (gen_length // block_length)
    starts = range(0, gen_length, block_length)
    return [Phase(each, start, gen_length, start + block_length, total=each) for start in starts]


def sliding(gen_length: int, steps: int, reach: int) -> list[Phase]:
    """Sliding annealing (paper §E.1.1): step i commits all before (i + 1)·L/S and may commit the `reach` behind it."""
    fronts = [-(-gen_length * (step + 1) // steps) for step in range(steps)]
    return [
        Phase(1, 0, min(front + reach, gen_length), gen_length, must=front, first=step, total=steps)
        for step, front in enumerate(fronts)
    ]
