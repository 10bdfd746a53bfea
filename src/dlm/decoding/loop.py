"""The one decode loop: a canvas of prompt and masks, filled by a decoder's parts (METHOD §5).

A prompt position is never changed. Everything is per row: noise, quotas, normalisers, NFE; a row that needs no forward
pass at a step does not take part in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.commit import Open, Rates
from dlm.decoding.noise import COMMIT, TOKEN, uniforms
from dlm.decoding.plans import Phase
from dlm.decoding.presets import Decoder
from dlm.models.denoiser import Denoiser


@dataclass(frozen=True)
class Decoded:
    """What the loop leaves.

    Attributes:
        tokens: the responses; with EOS-fill everything right of an EOS is EOS.
        nfe: forward passes that each row took part in (S* in the paper).
        leftover_masks: positions still masked after the last step, filled greedily by one extra pass.
        commit_step: the step at which each response position took its final token, -1 where EOS-fill set it.
    """

    tokens: Int[Tensor, "batch gen_length"]
    nfe: Int[Tensor, " batch"]
    leftover_masks: Int[Tensor, " batch"]
    commit_step: Int[Tensor, "batch gen_length"]


@torch.inference_mode()
def decode(
    denoiser: Denoiser,
    prompts: Sequence[Sequence[int]],
    decoder: Decoder,
    *,
    gen_length: int,
    steps: int,
    keys: Int[Tensor, " batch"],
    eos_id: int,
) -> Decoded:
    """Fill `gen_length` masks after each prompt in `steps` steps.

    Row b's tokens depend on its prompt and its noise key (noise.row_keys) alone, not on its batch mates (float32).
    """
    canvas = _Canvas(denoiser, prompts, gen_length, keys, eos_id, decoder.eos_fill)
    clock = 0
    for phase in decoder.plan(gen_length, steps):
        for step in range(phase.steps):
            _step(canvas, decoder, phase, Rates(step, phase.steps), clock)
            clock += 1
        canvas.remask(phase.keep)
    leftover = canvas.masked.sum(-1)
    if leftover.any():
        _fill_greedily(canvas, clock)
    return Decoded(canvas.response.cpu(), canvas.nfe.cpu(), leftover.cpu(), canvas.commit_step.cpu())


def _step(canvas: "_Canvas", decoder: Decoder, phase: Phase, rates: Rates, clock: int) -> None:
    in_phase = canvas.masked & (canvas.offset >= phase.start) & (canvas.offset < phase.end)
    if not in_phase.any():
        return
    log_weight = decoder.window(canvas.valid & ~canvas.masked)
    open_ = in_phase & (log_weight > float("-inf"))
    canvas.refresh(in_phase.any(-1), reuse=decoder.cache)
    row, position = open_.nonzero(as_tuple=True)
    flat = Open(len(in_phase), row, position, log_weight[row, position], in_phase.sum(-1))

    def logits_at(chosen: Tensor) -> Tensor:
        return canvas.logits(row[chosen], position[chosen])

    candidates = decoder.propose(logits_at, len(row), row.device)
    keys, offsets = canvas.keys[row], canvas.offset[row, position]
    committed = decoder.commit(flat, candidates, rates, uniforms(keys, clock, COMMIT, offsets)).nonzero()[:, 0]
    tokens = candidates.draw(committed, uniforms(keys[committed], clock, TOKEN, offsets[committed]))
    canvas.commit(row[committed], position[committed], tokens, clock)


def _fill_greedily(canvas: "_Canvas", clock: int) -> None:
    canvas.refresh(canvas.masked.any(-1), reuse=True)
    row, position = canvas.masked.nonzero(as_tuple=True)
    canvas.commit(row, position, canvas.logits(row, position).argmax(-1), clock)


class _Canvas:
    """State of a batch being decoded: prompt, then response, then right padding to the longest row.

    A row's hidden states are kept until one of its tokens changes ("dirty"); `refresh` runs the backbone for the rows
    that are dirty and still need it, and for no others.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        prompts: Sequence[Sequence[int]],
        gen_length: int,
        keys: Tensor,
        eos_id: int,
        eos_fill: bool,
    ) -> None:
        device = denoiser.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        size = (len(prompts), int(lengths.max()) + gen_length)
        self.denoiser, self.gen_length, self.eos_id, self.eos_fill = denoiser, gen_length, eos_id, eos_fill
        self.keys = keys.to(device)
        self.offset: Int[Tensor, "batch length"] = (torch.arange(size[1]) - lengths[:, None]).to(device)
        self.valid: Bool[Tensor, "batch length"] = self.offset < gen_length
        self.tokens = torch.full(size, eos_id, device=device)
        for b, prompt in enumerate(prompts):
            self.tokens[b, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        self.is_response = self.valid & (self.offset >= 0)
        self.tokens[self.is_response] = denoiser.mask_id
        self.masked: Bool[Tensor, "batch length"] = self.is_response.clone()
        self.steps: Int[Tensor, "batch length"] = torch.full(size, -1, device=device)
        self.nfe = torch.zeros(size[0], dtype=torch.long, device=device)
        self.dirty = torch.ones(size[0], dtype=torch.bool, device=device)
        self.hidden: Float[Tensor, "batch length width"] = torch.zeros(*size, denoiser.width, device=device)

    @property
    def response(self) -> Int[Tensor, "batch gen_length"]:
        return self.tokens[self.is_response].view(-1, self.gen_length)

    @property
    def commit_step(self) -> Int[Tensor, "batch gen_length"]:
        return self.steps[self.is_response].view(-1, self.gen_length)

    def refresh(self, needed: Bool[Tensor, " batch"], *, reuse: bool) -> None:
        """Run the backbone for the rows that need it now and have changed since they last ran."""
        rows = (needed & self.dirty if reuse else needed).nonzero()[:, 0]
        if len(rows):
            hidden = self.denoiser.hidden(self.tokens[rows], self.valid[rows])
            self.hidden[rows] = hidden.to(self.hidden.dtype)
            self.nfe[rows] += 1
            self.dirty[rows] = False

    def logits(self, row: Tensor, position: Tensor) -> Float[Tensor, "n vocab"]:
        return self.denoiser.logits(self.hidden[row, position])

    def commit(self, row: Tensor, position: Tensor, tokens: Tensor, clock: int) -> None:
        self.tokens[row, position] = tokens
        self.masked[row, position] = False
        self.steps[row, position] = clock
        self.dirty[row] = True
        self._fill_after_eos()

    def remask(self, keep: int) -> None:
        """Mask every response position from `keep` on again (semi-AR, stride), but not what follows a kept EOS."""
        again = self.is_response & (self.offset >= keep)
        if again.any():
            self.tokens[again] = self.denoiser.mask_id
            self.masked |= again
            self.dirty |= again.any(-1)
            self._fill_after_eos()

    def _fill_after_eos(self) -> None:
        if not self.eos_fill:
            return
        ended = self.is_response & (self.tokens == self.eos_id)
        after = ((ended.cumsum(-1) - ended.long()) > 0) & self.is_response
        changed = after & (self.tokens != self.eos_id)
        self.tokens[after] = self.eos_id
        self.masked &= ~after
        self.steps[changed] = -1
