"""Plans: one phase over the whole window, or hard blocks from left to right (semi-autoregressive)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A run of steps with its own time from 1 to 0. Offsets count from the first response position.

    Attributes:
        steps: denoising steps.
        start, end: response positions [start, end) that may commit.
        keep: when the phase ends, response positions from here on are masked again.
    """

    steps: int
    start: int
    end: int
    keep: int


def whole(gen_length: int, steps: int) -> list[Phase]:
    """The whole window at once."""
    return [Phase(steps, 0, gen_length, gen_length)]


def restrict(gen_length: int, steps: int, block_length: int) -> list[Phase]:
    """LLaDA's semi-AR: steps / blocks steps for each block, only its positions commit; then the next."""
    blocks = gen_length // block_length
    return [Phase(steps // blocks, b * block_length, (b + 1) * block_length, gen_length) for b in range(blocks)]


def stride(gen_length: int, steps: int, block_length: int) -> list[Phase]:
    """The paper's semi-AR: each phase denoises all that is left, then everything beyond the stride is masked again."""
    blocks = gen_length // block_length
    return [Phase(steps // blocks, b * block_length, gen_length, (b + 1) * block_length) for b in range(blocks)]
