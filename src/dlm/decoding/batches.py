"""Many rows through the decode loop, a batch at a time."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dlm.decoding.canvas import Trace
from dlm.decoding.loop import Decoded


def in_batches(
    ids: list[list[int]],
    batch_size: int,
    run: Callable[[list[int]], Decoded[Tensor]],
    advance: Callable[[int], None] | None = None,
) -> Decoded[list[Tensor]]:
    """Run all rows in batches of similar length, for less padding. Results are in the order of `ids`.

    Args:
        advance: called after every batch, with its number of rows.
    """
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    back = sorted(range(len(order)), key=order.__getitem__)
    done, traces = [], []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        done.append(run(batch))
        if trace := done[-1].trace:
            traces.append(replace(trace, row=torch.tensor(batch)[trace.row]))
        if advance is not None:
            advance(len(batch))
    tokens = [row for part in done for row in part.tokens]
    commit_step = [row for part in done for row in part.commit_step]
    columns = zip(*(vars(trace).values() for trace in traces), strict=True)
    return Decoded(
        tokens=[tokens[i] for i in back],
        nfe=torch.cat([part.nfe for part in done])[back],
        leftover_masks=torch.cat([part.leftover_masks for part in done])[back],
        commit_step=[commit_step[i] for i in back],
        trace=Trace(*map(torch.cat, columns)) if traces else None,
    )
