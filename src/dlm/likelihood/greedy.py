"""Whether greedy decoding writes a given answer."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from dlm.config.schema import require
from dlm.decoding.arguments import listed, whole
from dlm.decoding.lm import DiffusionLM
from dlm.likelihood.estimate import Order, checked_rows, hidden_of


@torch.inference_mode()
def is_greedy(
    lm: DiffusionLM,
    prompts: str | Sequence[Any],
    answers: str | Sequence[Any],
    *,
    order: Order = "any",
    batch_size: int = 32,
) -> Bool[Tensor, " batch"]:
    """Whether a canvas of each answer's length, filled greedily behind its prompt, comes to be that answer.

    One token commits a pass, the likeliest at its place. An answer is given up at its first other token, so a wrong one
    takes few passes.

    Args:
        prompts, answers: as for `score`.
        order: of the places. `any`: the most confident first, of equals the leftmost, which is `low_confidence` in as
            many steps as tokens; `left_to_right`: from left to right.
        batch_size: canvases a pass.

    Raises:
        UserError: as `score`.
    """
    rows = checked_rows(lm, listed(prompts, "prompts"), listed(answers, "answers"))
    require(order in ("any", "left_to_right"), "order", "any or left_to_right", order)
    batch_size, mask_id = whole("batch_size", batch_size, 1), lm.denoiser.mask_id
    canvases = [[*prompt, *[mask_id] * len(answer)] for prompt, answer in rows]
    found = torch.ones(len(rows), dtype=torch.bool)
    open_ = sorted(range(len(rows)), key=lambda n: len(canvases[n]))  # for less padding
    while open_:
        going: list[int] = []
        for start in range(0, len(open_), batch_size):
            batch = open_[start : start + batch_size]
            for n, (place, token) in zip(batch, _next(lm, [canvases[n] for n in batch], order), strict=True):
                canvases[n][place] = token
                prompt, answer = rows[n]
                found[n] = token == answer[place - len(prompt)]
                if found[n] and mask_id in canvases[n]:
                    going.append(n)
        open_ = going
    return found


def _next(lm: DiffusionLM, canvases: Sequence[list[int]], order: Order) -> list[tuple[int, int]]:
    """The place of each canvas that commits now, and its token."""
    hidden, chosen = hidden_of(lm, canvases), []
    for b, row in enumerate(canvases):
        masked = [place for place, token in enumerate(row) if token == lm.denoiser.mask_id]
        places = masked[:1] if order == "left_to_right" else masked
        confidence, tokens = lm.denoiser.logits(hidden[b, places]).float().log_softmax(-1).max(-1)
        best = int(confidence.argmax())
        chosen.append((places[best], int(tokens[best])))
    return chosen
