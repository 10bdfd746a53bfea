"""Noise as a function of (row, step, channel, position), without generator state: no other row changes a draw."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

COMMIT, TOKEN, REVOKE, DROP = range(4)  # channels: what a number is drawn for
_MIX = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1))  # splitmix64's constants, as signed 64-bit
_GOLDEN = -0x61C8864680B583EB


def row_keys(prompts: Sequence[Sequence[int]], seed: int) -> Int64[Tensor, " batch"]:
    """One 64-bit key a row from (seed, prompt, how many equal prompts came before).

    A row's key does not depend on its place in the batch, so it draws the same noise alone; equal prompts differ.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    keys = []
    for prompt in prompts:
        content = tuple(prompt)
        digest = hashlib.sha256(repr((seed, seen[content], content)).encode()).digest()
        keys.append(int.from_bytes(digest[:8], "big", signed=True))
        seen[content] += 1
    return torch.tensor(keys, dtype=torch.int64)


def uniforms(
    keys: Int64[Tensor, "*n"], step: int, channel: int, positions: Int64[Tensor, "*n"]
) -> Float64[Tensor, "*n"]:
    """Uniform numbers strictly inside (0, 1), 52 random bits: float32 noise truncates the tail (docs/method.md §1)."""
    bits = _mix(_mix(keys ^ (step * 4 + channel)) ^ positions)
    return (_shift_right(bits, 12).double() + 0.5) * 2.0**-52


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    for shift, factor in _MIX:
        x = (x ^ _shift_right(x, shift)) * factor
    return x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
