"""Many rows through the decode loop, a batch at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.decoding.canvas import Trace
from dlm.decoding.loop import Decoded


@dataclass(frozen=True)
class Rows:
    """What the loop left for the rows of all batches, in the caller's order (loop.Decoded)."""

    tokens: list[Tensor]
    nfe: Int[Tensor, " batch"]
    leftover_masks: Int[Tensor, " batch"]
    commit_step: list[Tensor]
    trace: Trace | None


def in_batches(
    ids: list[list[int]],
    batch_size: int,
    run: Callable[[list[int]], Decoded],
    advance: Callable[[int], None] | None = None,
) -> Rows:
    """Run all rows in batches of similar length, for less padding. Results are in the order of `ids`.

    Args:
        advance: called after every batch, with its number of rows.
    """
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    done = []
    for batch in batches:
        done.append(run(batch))
        if advance is not None:
            advance(len(batch))
    back = sorted(range(len(order)), key=order.__getitem__)
    tokens = [row for part in done for row in part.tokens]
    stamps = [row for part in done for row in part.commit_step]
    traces = [(torch.tensor(batch), part.trace) for batch, part in zip(batches, done, strict=True) if part.trace]
    trace = None
    if traces:
        trace = Trace(
            row=torch.cat([batch[part.row] for batch, part in traces]),
            **{
                name: torch.cat([getattr(part, name) for _, part in traces])
                for name in ("step", "offset", "token", "confidence")
            },
        )
    return Rows(
        [tokens[i] for i in back],
        torch.cat([part.nfe for part in done])[back],
        torch.cat([part.leftover_masks for part in done])[back],
        [stamps[i] for i in back],
        trace,
    )
