"""The order of the rows, and collators: rows of a dataset -> tensors. Canvas = prompt + answer + padding to the end."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from dlm.data.padding import tail

Row = dict[str, Any]


def stack(rows: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.array(rows))


class WholeSteps(Sampler[int]):
    """Rows in an order that (seed, epoch) decides, without those that would make an epoch's last step a smaller one.

    Args:
        rows: in the dataset.
        step: rows of a global batch.
    """

    def __init__(self, rows: int, step: int, seed: int) -> None:
        self.rows, self.step, self.seed, self.epoch = rows, step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows - self.rows % self.step

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        yield from order[: len(self)].tolist()


class PackedCollator:
    """Pretraining: rows are blocks of running text, any position may be masked and counts."""

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        x0 = stack([row["ids"] for row in rows])
        return {"x0": x0, "maskable": torch.ones_like(x0, dtype=torch.bool), "counts": torch.ones(x0.shape)}


class CausalPackedCollator:
    """Pretraining of the reference: every token of a block of running text but the first is predicted."""

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        x0 = stack([row["ids"] for row in rows])
        scored = torch.ones_like(x0, dtype=torch.bool)
        scored[:, 0] = False
        return {"x0": x0, "scored": scored}


class SftCollator:
    """SFT (paper §A.1.2): the prompt is never masked, the canvas is filled with EOS up to `length`, or with one EOS and
    then pad tokens.

    Everything behind the prompt may be masked, the padding too, whether it counts or not: a padding that stayed
    visible would show where the answer ends (docs/method.md §2).

    Args:
        length: canvas length L.
        eos_id: the end-of-text id.
        padding: how much each token behind the answer's first EOS counts in the loss, against 1 for the answer and that
            EOS: 1 for the SFT-only models, 0 for the SFT before R2FT.
        cycle: the pad tokens behind that EOS, in turn (data.padding); none for EOS.
    """

    def __init__(self, length: int, eos_id: int, *, padding: float, cycle: Sequence[int] = ()) -> None:
        self.length = length
        self.eos_id = eos_id
        self.padding = padding
        self.cycle = cycle

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        x0 = canvases(rows, self.length, self.eos_id, self.cycle)
        starts = stack([len(row["prompt_ids"]) for row in rows])[:, None]
        ends = starts + stack([len(row["answer_ids"]) + 1 for row in rows])[:, None]
        position = torch.arange(self.length)
        maskable = position >= starts
        return {"x0": x0, "maskable": maskable, "counts": torch.where(position < ends, 1.0, self.padding) * maskable}


class R2ftCollator:
    """R2FT: a negative with its example -> one x_t, a chosen and a rejected side (docs/method.md §4).

    The context x_t keeps x0[0:c]; everything after is masked. The chosen mask starts at c and ends with the answer's
    first EOS. `cycle` is as in `SftCollator`.
    """

    def __init__(self, length: int, eos_id: int, mask_id: int, cycle: Sequence[int] = ()) -> None:
        self.length = length
        self.eos_id = eos_id
        self.mask_id = mask_id
        self.cycle = cycle

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        x0 = canvases(rows, self.length, self.eos_id, self.cycle)
        context = stack([row["context_mask"] for row in rows])
        end = stack([len(row["prompt_ids"]) + len(row["answer_ids"]) + 1 for row in rows])[:, None]
        return {
            "x0": x0,
            "xt": torch.where(context, x0, self.mask_id),
            "chosen_mask": ~context & (torch.arange(self.length) < end),
            "rejected": stack([row["rejected_ids"] for row in rows]),
            "rejected_mask": stack([row["rejected_mask"] for row in rows]),
        }


class CausalCollator:
    """The autoregressive reference: loss on the answer and its EOS, right padding (never attended to, never scored)."""

    def __init__(self, eos_id: int) -> None:
        self.eos_id = eos_id

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        sequences = [row["prompt_ids"] + row["answer_ids"] + [self.eos_id] for row in rows]
        x0 = stack([fill(sequence, max(map(len, sequences)), self.eos_id) for sequence in sequences])
        starts = stack([len(row["prompt_ids"]) for row in rows])[:, None]
        ends = stack([len(sequence) for sequence in sequences])[:, None]
        position = torch.arange(x0.shape[1])
        return {"x0": x0, "scored": (position >= starts) & (position < ends)}


def canvases(rows: list[Row], length: int, eos_id: int, cycle: Sequence[int]) -> Tensor:
    """Prompt, answer and padding of each row [batch, length]."""
    whole = [row["prompt_ids"] + row["answer_ids"] for row in rows]
    return stack([ids + tail(length - len(ids), eos_id, cycle) for ids in whole])


def fill(ids: list[int], length: int, value: int) -> list[int]:
    """`ids` extended with `value` to `length`."""
    return ids + [value] * (length - len(ids))
