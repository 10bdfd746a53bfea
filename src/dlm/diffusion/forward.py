"""The forward process of a masked diffusion LM (MDLM; paper §2.1): log-linear schedule, α_t = 1 - t."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

T_MIN = 1e-3


def antithetic_t(places: Int[Tensor, " count"], total: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Low-discrepancy times for the rows at `places` of a global batch of `total` rows, in [T_MIN, 1].

    One uniform draw shifts an even grid, so the global batch covers (0, 1] evenly whatever the draw. Every part of
    the global batch must draw from a generator in the same state.
    """
    shift = torch.rand(1, generator=generator)
    return T_MIN + (1 - T_MIN) * (places + shift) / total


def row_draws(seeds: Sequence[int], count: int) -> Float[Tensor, "batch count"]:
    """`count` uniform numbers for each row, from a generator of its own: no batch mate changes what a row draws."""
    return torch.stack([torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def mask_tokens(
    x0: Int[Tensor, "batch length"],
    t: Float[Tensor, " batch"] | Float[Tensor, "batch length"],
    maskable: Bool[Tensor, "batch length"],
    mask_id: int,
    draw: Float[Tensor, "batch length"],
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Replace each maskable token by [MASK] independently with probability 1 - α_t = t.

    Args:
        t: of each row, or of each position.
        draw: uniform numbers in [0, 1).

    Returns:
        xt and where it is masked.
    """
    masked = (draw < (t if t.dim() == 2 else t[:, None])) & maskable
    return torch.where(masked, mask_id, x0), masked


def annealed(draw: Float[Tensor, "length length"], share: float) -> Bool[Tensor, "length length"]:
    """Which positions (columns) each position (row) attends to on the way from causal to full attention.

    DiffuLLaMA's attention mask annealing (arXiv 2410.17891): the past always, each later position with probability
    `share`; 0 is a causal mask, 1 none.

    Args:
        draw: uniform numbers in [0, 1).
    """
    return torch.ones_like(draw, dtype=torch.bool).tril() | (draw < share)


def mask_suffix(
    x0: Int[Tensor, "batch length"],
    maskable: Bool[Tensor, "batch length"],
    eos_id: int,
    draw: Float[Tensor, " batch"],
) -> tuple[Bool[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Mask everything after a cut, as decoding from left to right meets it; ours, not the paper's.

    Random masks hardly ever show a small model a whole beginning with nothing after it, so it does not learn there that
    an answer is complete. The cut is uniform over the answer's beginnings, the whole answer included.

    Args:
        maskable: one run of positions a row, an answer, its EOS and the padding behind that.
        draw: uniform numbers in [0, 1).

    Returns:
        Where to mask, and the part of it that counts: up to the answer's first EOS.
    """
    order = maskable.cumsum(-1)
    content = (maskable & ((maskable & (x0 == eos_id)).cumsum(-1) == 0)).sum(-1, keepdim=True)
    masked = maskable & (order > (draw[:, None] * (content + 1)).long())
    return masked, masked & (order <= content + 1)
