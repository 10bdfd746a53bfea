"""The noise of block diffusion (BD3-LM, arXiv 2503.09573): left to right between blocks (models/blocks.py), masked
diffusion inside each, at a time of its own."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.diffusion.forward import T_MIN

# The largest block -> the range that its masking rate is drawn from. Those of 4 and 16 are the paper's clipped
# schedules. A block of 1 is masked or says nothing; always masked, its loss is that of next-token prediction.
CLIPPED = {1: (1.0, 1.0), 4: (0.45, 0.95), 16: (0.3, 0.8)}
FULL = (T_MIN, 1.0)


def clipped_range(size: int) -> tuple[float, float]:
    """The range of t for blocks of `size` positions: that of the next larger size of CLIPPED, else all of it."""
    return next((bounds for largest, bounds in CLIPPED.items() if size <= largest), FULL)


def block_times(
    places: Int[Tensor, " batch"],
    total: int,
    blocks: Int[Tensor, "batch length"],
    bounds: tuple[float, float],
    generator: torch.Generator,
) -> Float[Tensor, "batch length"]:
    """A time for each block, at its positions: uniform in `bounds`, and never below T_MIN.

    The blocks of one number are spread evenly over the rows of a global batch of `total` (at `places` of it), by a
    shift that is drawn for each number. Every part of the global batch must draw from a generator in the same state.
    Blocks before the answer have the times of its first; nothing is masked there.
    """
    shifts = torch.rand(blocks.shape[1], generator=generator)  # as many in every part, whatever blocks its rows have
    uniform = (places[:, None] / total + shifts[blocks.clamp(min=0)]) % 1
    low, high = max(bounds[0], T_MIN), bounds[1]
    return low + (high - low) * uniform


def block_nelbo(token_nll: Float[Tensor, "batch length"], t: Float[Tensor, "batch length"]) -> Float[Tensor, " batch"]:
    """Each row's negative ELBO in nats (paper Eq. 8, log-linear schedule): Σ_b (1/t_b) Σ_masked -log p(x0_i | x_t).

    Args:
        token_nll: -log p of the true token where x_t is masked, 0 elsewhere.
        t: the time of each position's block.
    """
    return (token_nll / t).sum(-1)
