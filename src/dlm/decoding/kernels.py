"""The k largest logits and the total of a large vocabulary in two passes over nothing but the logits, on a GPU.

torch needs a float32 copy of the logits, one pass each for the block maxima, the maximum, the exponentials and their
sum, and a radix select over the vocabulary: several times the time of the projection itself. Here each logit is read
once, in the type in which the projection wrote it, for the maximum of its block of 64 and for the sum; then the k
blocks with the largest maxima, which alone can hold the k largest, are read again.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64
MOST = 64  # the largest k; the blocks of more do not fit the registers


def top_k_and_total(
    logits: Float[Tensor, "m vocab"], k: int
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"], Float[Tensor, "m 1"]]:
    """The k largest logits of each row, falling; their tokens; log Σ exp over the row. Sums and logits in float32.

    Of equal logits the smaller token comes first.
    """
    rows, vocab = logits.shape
    stride = logits.stride(0)  # a multiple of 16, as interface.Aligned writes them, is read 16 bytes at a time
    blocks = triton.cdiv(vocab, BLOCK)
    maxima = torch.empty(rows, blocks, device=logits.device)
    total = torch.empty(rows, 1, device=logits.device)
    wide = max(triton.next_power_of_2(k), 2)
    count = min(k, blocks)
    chosen = torch.empty(rows, count, dtype=torch.int32, device=logits.device)
    best = torch.empty(rows, k, device=logits.device)
    tokens = torch.empty(rows, k, dtype=torch.int64, device=logits.device)
    if rows:
        _summarise[rows,](logits, maxima, total, stride, vocab, blocks, TILE=32, BLOCK=BLOCK)
        width = max(triton.next_power_of_2(blocks), wide)
        _largest_blocks[rows,](maxima, chosen, blocks, count, WIDTH=width, K=wide)
        slots = triton.next_power_of_2(count)
        _largest_tokens[rows,](logits, chosen, best, tokens, stride, vocab, count, k, COUNT=slots, BLOCK=BLOCK, K=wide)
    return best, tokens, total


@triton.jit
def _summarise(logits, maxima, total, stride, vocab, blocks, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """One row: the maximum of every block, and the log of the sum, rescaled as larger logits come up.

    TILE blocks are looked at together, each place of the tile with a sum of its own: the threads meet at the end.
    """
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    place = tl.arange(0, TILE)
    inside = tl.arange(0, BLOCK)
    highest = tl.full((TILE,), -float("inf"), tl.float32)
    sum_ = tl.zeros((TILE,), tl.float32)
    whole = vocab // BLOCK
    for first in range(0, whole, TILE):
        block = first + place
        there = (block < whole)[:, None]
        tile = tl.load(line + block[:, None] * BLOCK + inside[None, :], mask=there, other=-float("inf")).to(tl.float32)
        top = tl.max(tile, 1)
        tl.store(maxima + row * blocks + block, top, mask=block < whole)
        higher = tl.maximum(highest, top)
        reference = tl.where(higher == -float("inf"), 0.0, higher)
        sum_ = sum_ * tl.exp(highest - reference) + tl.sum(tl.exp(tile - reference[:, None]), 1)
        highest = higher
    # What is left of the vocabulary is no whole block.
    token = whole * BLOCK + inside
    rest = tl.load(line + token, mask=token < vocab, other=-float("inf")).to(tl.float32)
    last = tl.max(rest, 0)
    tl.store(maxima + row * blocks + whole, last, mask=whole < blocks)
    most = tl.maximum(tl.max(highest, 0), last)
    sum_all = tl.sum(sum_ * tl.exp(highest - most), 0) + tl.sum(tl.exp(rest - most), 0)
    tl.store(total + row, most + tl.log(sum_all))


@triton.jit
def _ordered(value, index):
    """64-bit keys that sort by falling value, then by rising index."""
    bits = value.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _largest_blocks(maxima, chosen, blocks, count, WIDTH: tl.constexpr, K: tl.constexpr):
    """One row: the blocks with the largest maxima."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, WIDTH)
    value = tl.load(maxima + row * blocks + block, mask=block < blocks, other=-float("inf"))
    keys = tl.topk(_ordered(value, block), K)
    place = tl.arange(0, K)
    tl.store(chosen + row * count + place, 0x7FFFFFFF - (keys & 0x7FFFFFFF).to(tl.int32), mask=place < count)


@triton.jit
def _largest_tokens(
    logits, chosen, best, tokens, stride, vocab, count, k, COUNT: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr
):
    """One row: the largest logits of the chosen blocks."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, COUNT * BLOCK)
    block = tl.load(chosen + row * count + slot // BLOCK, mask=slot // BLOCK < count, other=0)
    token = block * BLOCK + slot % BLOCK
    there = (slot // BLOCK < count) & (token < vocab)
    value = tl.load(logits + row * stride + token, mask=there, other=-float("inf")).to(tl.float32)
    # What is not there comes behind a token of -inf.
    keys = tl.topk(_ordered(value, tl.where(there, token, 0x7FFFFFFF)), K)
    place = tl.arange(0, K)
    kept = place < k
    token = 0x7FFFFFFF - (keys & 0x7FFFFFFF).to(tl.int32)
    tl.store(tokens + row * k + place, token.to(tl.int64), mask=kept)
    bits = (keys >> 32).to(tl.int32)
    value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    tl.store(best + row * k + place, value, mask=kept)
