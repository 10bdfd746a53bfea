"""The one decode loop: a canvas of context and masks, filled by a decoder's parts (docs/method.md §5).

Context never changes. Noise, quotas, normalisers and NFE are counted for each row. A row that needs no forward pass at
a step is left out of it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.decoding.canvas import Canvas, Trace
from dlm.decoding.commit import Open, ends_last
from dlm.decoding.decoder import Decoder
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.noise import COMMIT, REVOKE, TOKEN, uniforms
from dlm.decoding.plans import Phase
from dlm.decoding.propose import Source, greedy
from dlm.decoding.revise import Standing, log_p_of
from dlm.decoding.schedules import Rates

Watch = Callable[[int, Tensor], None]  # (step, tokens with the masks still there)
Rows = TypeVar("Rows", Tensor, list[Tensor])  # [batch, length], or [length] each


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What stands on every row after a step.

    Attributes:
        step: the step, counted over all phases.
        tokens: the responses (`decode`) or whole canvases (`fill`), masks still in.
        confidence: each token's probability when it was written, 0 where no step wrote one.
        commit_step: the step that wrote it, -1 where none did.
        nfe: forward passes that each row took part in.
        settled: response positions before this one are never masked again: those of them that have no mask to their
            left keep what they hold.
    """

    step: int
    tokens: Int[Tensor, "batch length"]
    confidence: Float[Tensor, "batch length"]
    commit_step: Int[Tensor, "batch length"]
    nfe: Int[Tensor, " batch"]
    settled: int


Follow = Callable[[Draft], Iterable[int]]  # names the rows that leave


@dataclass(frozen=True, kw_only=True)
class Decoded(Generic[Rows]):
    """What decoding leaves of every row.

    Attributes:
        tokens: the responses (`decode`), or whole canvases, right-padded with EOS (`fill`); with EOS-fill everything
            right of an EOS is EOS, or pad tokens in turn.
        nfe: forward passes that each row took part in (S* in the paper); guidance takes two at a time.
        leftover_masks: positions still masked after the last step, filled greedily by one extra pass; with a
            block-causal model after the last step of each block.
        commit_step: the step at which each position took its final token, -1 where EOS-fill or the context set it.
        trace: every change, where asked for; offsets count from the response's or the canvas's first position.
    """

    tokens: Rows
    nfe: Int[Tensor, " batch"]
    leftover_masks: Int[Tensor, " batch"]
    commit_step: Rows
    trace: Trace | None = None


def decode(
    denoiser: Denoiser,
    prompts: Sequence[Sequence[int]],
    decoder: Decoder,
    *,
    gen_length: int,
    steps: int,
    keys: Int[Tensor, " batch"],
    eos_id: int,
    ends: Sequence[int] = (),
    padding: Sequence[int] = (),
    trace: bool = False,
    watch: Watch | None = None,
    follow: Follow | None = None,
) -> Decoded[Tensor]:
    """Fill `gen_length` masks after each prompt in `steps` steps.

    Row b's tokens depend on its prompt and its noise key (noise.row_keys) alone, not on its batch mates (float32).
    `ends` end an answer as EOS does, and so do the pad tokens `padding`, which EOS-fill puts behind an end in turn.
    """
    rows = [[*prompt, *[denoiser.mask_id] * gen_length] for prompt in prompts]
    starts = torch.tensor([len(prompt) for prompt in prompts])
    place = starts[:, None] + torch.arange(gen_length)

    def watch_responses(step: int, tokens: Tensor) -> None:
        if watch is not None:
            watch(step, tokens.gather(1, place))

    def follow_responses(draft: Draft) -> Iterable[int]:
        columns = (draft.tokens, draft.confidence, draft.commit_step)
        tokens, confidence, commit_step = (column.gather(1, place) for column in columns)
        shown = replace(draft, tokens=tokens, confidence=confidence, commit_step=commit_step)
        return () if follow is None else follow(shown)

    filled = fill(
        denoiser,
        rows,
        decoder,
        gen_length=gen_length,
        steps=steps,
        keys=keys,
        eos_id=eos_id,
        ends=ends,
        padding=padding,
        starts=starts.tolist(),
        trace=trace,
        watch=None if watch is None else watch_responses,
        follow=None if follow is None else follow_responses,
    )
    return replace(filled, tokens=filled.tokens.gather(1, place), commit_step=filled.commit_step.gather(1, place))


@torch.inference_mode()
def fill(
    denoiser: Denoiser,
    canvases: Sequence[Sequence[int]],
    decoder: Decoder,
    *,
    gen_length: int,
    steps: int,
    keys: Int[Tensor, " batch"],
    eos_id: int,
    ends: Sequence[int] = (),
    padding: Sequence[int] = (),
    barred: Sequence[int] = (),
    starts: Sequence[int] | None = None,
    trace: bool = False,
    watch: Watch | None = None,
    follow: Follow | None = None,
) -> Decoded[Tensor]:
    """Fill the masks of each canvas, wherever they stand, in `steps` steps.

    Args:
        canvases: token ids, masks among them.
        gen_length: positions from `starts` on that the decoder's plan covers.
        ends, padding: as in `decode`.
        barred: ids that no mask may become.
        starts: where each row's response begins (0 unless given): masks before it are context.
        watch: called after every step.
        follow: called after every step, too. The rows that it names leave: they change no more, masks and all, and take
            part in no further pass. When all have left, so does the loop.
    """
    starts = starts or [0] * len(canvases)
    left: set[int] = set()
    canvas = Canvas(
        denoiser,
        canvases,
        starts,
        keys,
        eos_id,
        decoder.options,
        ends=ends,
        padding=padding,
        barred=barred,
        tracing=trace,
        shadow=decoder.rule.shadow,
        lookback=decoder.rule.lookback,
    )
    clock = 0
    leftover = torch.zeros_like(canvas.nfe)
    for phase in decoder.rule.plan(gen_length, steps):
        canvas.start_phase()
        for step in range(phase.steps):
            _step(canvas, decoder, phase, phase.first + step, clock)
            if denoiser.block_size and step == phase.steps - 1:  # the next block has learnt to stand behind whole ones
                leftover += _fill_greedily(canvas, clock, phase)
            if watch is not None:
                watch(clock, canvas.tokens.cpu().clone())
            if follow is not None and (leaving := {*follow(_draft(canvas, decoder, phase, clock))} - left):
                canvas.retire(sorted(leaving))
                left |= leaving
            if len(left) == len(canvases):
                return _decoded(canvas, leftover)
            clock += 1
        if phase.keep < gen_length:
            canvas.remask(phase.keep, clock - 1)
    filled = _fill_greedily(canvas, clock, Phase(1, 0, gen_length, gen_length))
    if watch is not None and filled.any():
        watch(clock, canvas.tokens.cpu().clone())
    return _decoded(canvas, leftover + filled)


def _decoded(canvas: Canvas, leftover: Int[Tensor, " batch"]) -> Decoded[Tensor]:
    return Decoded(
        tokens=canvas.tokens.cpu(),
        nfe=canvas.nfe.cpu(),
        leftover_masks=leftover.cpu(),
        commit_step=canvas.steps.cpu(),
        trace=canvas.trace(),
    )


def _draft(canvas: Canvas, decoder: Decoder, phase: Phase, clock: int) -> Draft:
    written = canvas.steps >= 0
    return Draft(
        step=clock,
        tokens=canvas.tokens.cpu().clone(),
        confidence=torch.where(written, canvas.log_p.exp(), 0.0).cpu(),
        commit_step=canvas.steps.cpu().clone(),
        nfe=canvas.nfe.cpu().clone(),
        settled=0 if decoder.rule.revoke or decoder.rule.revise else phase.keep,
    )


def _step(canvas: Canvas, decoder: Decoder, phase: Phase, step: int, clock: int) -> None:
    rates = decoder.rule.schedule(step, phase.total)
    revoked = _revoked(canvas, decoder, phase, rates, clock)
    _commit(canvas, decoder, phase, rates, clock)
    if revoked is not None and len(revoked[0]):
        canvas.revoke(*revoked, clock)


def _commit(canvas: Canvas, decoder: Decoder, phase: Phase, rates: Rates, clock: int) -> None:
    """A forward pass where one is needed, and the tokens that commit now.

    The host waits for the device once, for the number of stale rows and of open positions. A draw from the whole
    vocabulary (`categorical`) waits once more, for the positions that need a token.
    """
    in_phase = canvas.in_phase(phase)
    log_weight = decoder.window(canvas.not_padding & ~canvas.masked)
    open_ = in_phase & (log_weight > float("-inf"))
    stale = canvas.stale(in_phase)
    stale_flags, open_counts = torch.stack([stale.long(), open_.sum(-1)]).tolist()
    canvas.refresh(stale, stale_flags, phase, canvas.kept(open_))
    if not any(open_counts):
        return
    row, position = torch.nonzero_static(open_, size=sum(open_counts)).unbind(-1)
    offset = canvas.offset[row, position]
    must = offset < phase.must
    candidates = decoder.rule.propose(_source(canvas, row, position, clock))
    if canvas.history is not None and candidates.vote is not None:
        canvas.history.vote(row, position, *candidates.vote)
    late = torch.zeros_like(must)
    if canvas.options.eos == "last" and candidates.best is not None:
        late = ends_last(row, canvas.is_end(candidates.best), ~must, rates, len(in_phase))
    flat = Open(
        batch=len(in_phase),
        row=row,
        position=position,
        log_weight=log_weight[row, position].masked_fill(must, float("-inf")),
        quota_base=(in_phase & (canvas.offset >= phase.must)).sum(-1),
        late=late,
    )
    uniform = uniforms(canvas.keys[row], clock, COMMIT, offset)
    if decoder.rule.revise is None:
        chosen = decoder.rule.commit(flat, candidates, rates, uniform) | must
        canvas.commit(row, position, chosen, *candidates.draw(chosen), clock)
        return
    standing = _standing(canvas, canvas.revocable(phase) & open_.any(-1, keepdim=True), clock)
    chosen, lost = decoder.rule.revise(flat, candidates, standing, rates, uniform)
    gone = lost.nonzero()[:, 0]
    canvas.commit(row, position, chosen, *candidates.draw(chosen), clock)
    if len(gone):
        canvas.revoke(standing.row[gone], standing.position[gone], clock)


def _source(canvas: Canvas, row: Tensor, position: Tensor, clock: int) -> Source:
    keys, offset = canvas.keys[row], canvas.offset[row, position]
    return Source(
        count=len(row),
        vocab=canvas.denoiser.vocab_size,
        device=row.device,
        logits=lambda chosen: canvas.logits(row[chosen], position[chosen]),
        uniforms=lambda chosen: uniforms(keys[chosen], clock, TOKEN, offset[chosen]),
        past=canvas.past(row, position),
        score_offset=canvas.denoiser.score_offset,
    )


def _standing(canvas: Canvas, revocable: Tensor, clock: int) -> Standing:
    """What the pass of this step says of the committed positions that may be masked again."""
    row, position = revocable.nonzero(as_tuple=True)
    source = replace(
        _source(canvas, row, position, clock),
        logits=lambda chosen: canvas.logits_of_tokens(row[chosen], position[chosen]),
    )
    return Standing(
        row=row,
        position=position,
        log_p=log_p_of(source, canvas.tokens[row, position]),
        recent=(canvas.response & (canvas.steps == clock - 1) & (clock > 0)).sum(-1),
        uniform=uniforms(canvas.keys[row], clock, REVOKE, canvas.offset[row, position]),
    )


def _revoked(canvas: Canvas, decoder: Decoder, phase: Phase, rates: Rates, clock: int) -> tuple[Tensor, Tensor] | None:
    """The committed positions to be masked again at this step, chosen before any new token is written."""
    if decoder.rule.revoke is None or not rates.revoke:
        return None
    row, position = canvas.revocable(phase).nonzero(as_tuple=True)
    probability = decoder.rule.revoke(len(canvas.tokens), row, canvas.log_p[row, position], rates)
    lost = uniforms(canvas.keys[row], clock, REVOKE, canvas.offset[row, position]) < probability
    return row[lost], position[lost]


def _fill_greedily(canvas: Canvas, clock: int, phase: Phase) -> Int[Tensor, " batch"]:
    """One extra pass for the rows that have masks left in a phase, the best token everywhere; how many there were."""
    left = canvas.in_phase(phase)
    counts = left.sum(-1)
    if not counts.any():
        return counts
    canvas.start_phase()
    stale = canvas.stale(left)
    canvas.refresh(stale, stale.tolist(), phase)
    row, position = left.nonzero(as_tuple=True)
    best = greedy(_source(canvas, row, position, clock))
    every = torch.ones_like(row, dtype=torch.bool)
    canvas.commit(row, position, every, *best.draw(every), clock)
    return counts
