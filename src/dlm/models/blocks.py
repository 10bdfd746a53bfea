"""Who sees whom in a block-causal model (BD3-LM, arXiv 2503.09573).

Blocks are counted from a row's first answer position in both directions: 0, 1, ... behind the prompt, -1, -2, ...
before it, so that every block of an answer is a whole one and only the prompt's first block may be short. A position
sees its own block and all blocks before it. With blocks of 1 that is a causal mask.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def block_numbers(offset: Int[Tensor, "batch length"], size: int) -> Int[Tensor, "batch length"]:
    """The block of each position.

    Args:
        offset: places on the canvas, counted from the first answer position; negative in the prompt.
    """
    return torch.div(offset, size, rounding_mode="floor")


def block_causal(blocks: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch length length"]:
    """Which positions (columns) each position (row) of a canvas sees: its own block and those before it."""
    return blocks[:, :, None] >= blocks[:, None]


def doubled(blocks: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch twice twice"]:
    """The mask of training (paper §3.2) over [x_t ; x_0], all blocks of a canvas in one pass.

    A noised position sees the noised positions of its own block and the clean ones of the blocks before it; a clean
    one the clean positions of its own block and of those before it.
    """
    here, there = blocks[:, :, None], blocks[:, None]
    noised = torch.cat([here == there, here > there], dim=-1)
    clean = torch.cat([torch.zeros_like(here == there), here >= there], dim=-1)
    return torch.cat([noised, clean], dim=1)
