"""Where score entropy (SEDD) starts: the constant that takes a checkpoint's logits to un-normalised log-probabilities.

A softmax does not care for a constant in its logits, score entropy does. SEDD begins with a head of zeros and takes
log V from its logits, so that V scores add up to 1. A checkpoint that softmax trained has other sums, another at each
position; the constant makes them 1 on average, as the objective weighs them, and training has to do the rest.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlm.diffusion.forward import antithetic_t, mask_tokens, row_draws
from dlm.diffusion.losses import token_scores
from dlm.models.adapters import unwrapped
from dlm.training.objectives import step_seed
from dlm.training.trainer import logits_at

ROWS = 256


@torch.no_grad()
def normalising_offset(
    model: nn.Module,
    rows: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    mask_id: int,
    seed: int,
    batch_size: int,
) -> float:
    """log of the mean of Σ_y exp z_y over masked positions of the first ROWS rows: the constant of least score entropy.

    That is the weighted mean of the objective: a position counts as its token does, over t.

    Args:
        collate: rows -> {x0, maskable, counts}.
    """
    inner, was_training = unwrapped(model), model.training
    model.eval()
    rows = rows[:ROWS]
    t = antithetic_t(torch.arange(len(rows)), len(rows), torch.Generator().manual_seed(step_seed(seed, "offset")))
    logs, weights = [], []
    for start in range(0, len(rows), batch_size):
        places = range(start, min(start + batch_size, len(rows)))
        batch = collate([rows[place] for place in places])
        x0, counts = batch["x0"], batch["counts"]
        draws = row_draws([step_seed(seed, "offset", place) for place in places], x0.shape[1])
        xt, masked = mask_tokens(x0, t[start : places.stop], batch["maskable"], mask_id, draws)
        scored = masked & (counts > 0)
        logits = logits_at(inner, xt.to(inner.device), scored.to(inner.device))
        logs.append(token_scores(logits, x0[scored].to(inner.device), mask_id, 0.0)[1].double().cpu())
        weights.append((counts / t[start : places.stop, None])[scored].double())
    model.train(was_training)
    weight = torch.cat(weights).log()
    return float(torch.logsumexp(torch.cat(logs) + weight, 0) - torch.logsumexp(weight, 0))
