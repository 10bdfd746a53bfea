"""The key-value cache of a block-causal model. Exact: what stands in a block does not depend on what follows it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.decoding.denoiser import Denoiser, KeysValues
from dlm.models.blocks import block_causal, block_numbers
from dlm.models.interface import logits_shift


class BlockCache:
    """Keys and values of each row's complete blocks, the prompt's among them.

    A pass computes a row's current block; the first one of a block also computes the block before it, whose tokens are
    final now, so that it takes as many passes as without a cache.
    """

    def __init__(self, rows: int) -> None:
        self._known = [0] * rows  # how many positions, from a row's first on, are kept; up to the end of a block
        self._keys: KeysValues = []  # of each layer, of whole canvases: beyond `known` they mean nothing

    def refresh(
        self,
        denoiser: Denoiser,
        tokens: Int[Tensor, "batch length"],
        offset: Int[Tensor, "batch length"],
        rows: Sequence[int],
        begins: Sequence[int],
        ends: Sequence[int],
        states: Float[Tensor, "batch length width"],
    ) -> None:
        """Compute some rows' current blocks, places `begins` to `ends` of their canvases, and write what predicts them
        to `states`."""
        device = tokens.device
        row, first, end = (torch.tensor(values, device=device) for values in (rows, self._first(rows), ends))
        cached = max(self._first(rows))
        longest = max(to - self._known[b] for b, to in zip(rows, ends, strict=True))
        # A shorter run repeats its last place: that has the same state each time, and nothing sees the repetitions.
        step = torch.arange(longest, device=device)
        index = torch.minimum(step, (end - first)[:, None] - 1)
        places, fresh = first[:, None] + index, step < (end - first)[:, None]
        blocks = block_numbers(offset[row[:, None], places], denoiser.block_size)
        sees = block_causal(blocks) & fresh[:, None]
        complete = torch.arange(cached, device=device) < first[:, None]
        sees = torch.cat([complete[:, None].expand(-1, longest, -1), sees], dim=2)
        past = [(key[row, :, :cached], value[row, :, :cached]) for key, value in self._keys] if cached else []
        hidden, layers = denoiser.hidden_of_run(tokens[row[:, None], places], places, sees, past)
        self._keep(layers, row, places, cached, tokens.shape)
        for b, begin in zip(rows, begins, strict=True):
            self._known[b] = begin
        if logits_shift(denoiser.model):
            # What predicts a run's first place stands before it and has been computed with the run before.
            before = torch.where((first == 0)[:, None], hidden[:, 0].to(states.dtype), states[row, first])
            hidden = hidden.gather(1, (index - 1).clamp(min=0)[..., None].expand_as(hidden)).to(states.dtype)
            hidden = torch.where((index == 0)[..., None], before[:, None], hidden)
        states[row[:, None], places] = hidden.to(states.dtype)

    def _first(self, rows: Sequence[int]) -> list[int]:
        return [self._known[b] for b in rows]

    def _keep(self, layers: KeysValues, row: Tensor, places: Tensor, cached: int, size: torch.Size) -> None:
        """Write a run's keys and values to their places."""
        if not self._keys:
            self._keys = [
                (key.new_zeros(size[0], key.shape[1], size[1], key.shape[3]),
                 value.new_zeros(size[0], value.shape[1], size[1], value.shape[3]))
                for key, value in layers
            ]  # fmt: skip
        for kept, new in zip(self._keys, layers, strict=True):
            for whole, run in zip(kept, new, strict=True):
                whole[row[:, None], :, places] = run[:, :, cached:].transpose(1, 2)
