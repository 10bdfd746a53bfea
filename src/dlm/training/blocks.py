"""The objective of block diffusion (BD3-LM, arXiv 2503.09573)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dlm.diffusion.blocks import FULL, block_nelbo, block_times, clipped_range
from dlm.diffusion.forward import mask_tokens, row_draws
from dlm.diffusion.losses import over_canvas
from dlm.errors import UserError
from dlm.models.adapters import unwrapped
from dlm.models.blocks import block_numbers
from dlm.models.interface import block_size as blocks_of
from dlm.training.objectives import DiffusionTrainer, step_seed


class BlockDiffusionTrainer(DiffusionTrainer):
    """The NELBO of a block-causal model per counted token of {x0, maskable, counts}: every block of a canvas noised at
    a time of its own behind the clean blocks before it, all in one pass over [x_t ; x_0] (models/blocks.py).

    Blocks are counted from the first position that may be masked. Held-out rows are scored with times from the whole
    range, so that their loss is the bound whatever range training draws from.

    Args:
        block_size: positions a block.
        t_range: what training draws times from, None for `clipped_range`.

    Raises:
        UserError: other ways of masking, or attention that becomes full step by step.
    """

    def __init__(self, *, block_size: int, t_range: tuple[float, float] | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        for name in ("suffix_share", "anneal_steps"):
            if getattr(self, name):
                raise UserError(f"{name} must be 0 for a block-causal model, got {getattr(self, name)}")
        self.block_size, self.t_range = block_size, t_range or clipped_range(block_size)

    def row_values(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        x0, maskable, counts = inputs["x0"], inputs["maskable"], inputs["counts"]
        places, total, kind, number = self.places(inputs)
        seed, length = self.args.seed, x0.shape[1]
        blocks = answer_blocks(maskable, self.block_size).cpu()
        whole = clipped_range(1) if self.block_size == 1 else FULL
        bounds = self.t_range if kind == "train" else whole
        generator = torch.Generator().manual_seed(step_seed(seed, kind, number))
        t = block_times(places.cpu(), total, blocks, bounds, generator)
        draws = row_draws([step_seed(seed, kind, number, place) for place in places.tolist()], length)
        t, draws, blocks = (self.to_device(drawn, x0.device) for drawn in (t, draws, blocks))
        xt, masked = mask_tokens(x0, t, maskable, self.mask_id, draws)
        scored = masked & (counts > 0)
        log_probs = self.token_log_probs(model(xt, scored, clean=x0, blocks=blocks), x0[scored][:, None], self.mask_id)
        loss = block_nelbo(over_canvas(-log_probs[:, 0], scored) * counts, t)
        return {"loss": self.averaged(loss, counts)}


def diffusion_trainer(model: nn.Module, **settings: Any) -> Callable[..., DiffusionTrainer]:
    """The objective of a denoiser with these settings, for `fit`: that of its blocks where it is block-causal."""
    size = blocks_of(unwrapped(model))
    if size:
        return functools.partial(BlockDiffusionTrainer, block_size=size, **settings)
    return functools.partial(DiffusionTrainer, **settings)


def answer_blocks(maskable: Tensor, size: int) -> Tensor:
    """The number of each position's block, counted from each row's first True of `maskable` [batch, length]."""
    start = maskable.long().argmax(-1, keepdim=True)
    return block_numbers(torch.arange(maskable.shape[1], device=maskable.device) - start, size)
