"""State of a batch while it is decoded: what stands on each canvas, what is masked, what has been computed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.block_cache import BlockCache
from dlm.decoding.denoiser import Denoiser, KeysValues, rows_of
from dlm.decoding.history import History, Lookback, Past
from dlm.decoding.noise import DROP, uniforms
from dlm.decoding.options import DecoderOptions
from dlm.decoding.plans import Phase
from dlm.models.blocks import block_causal, block_numbers


@dataclass(frozen=True)
class Trace:
    """Every change of the canvas by a decoder, in order: n of them.

    Attributes:
        step: when, counted over all phases.
        row, offset: where; offsets count from the first response position.
        token: what was written; the mask where a token was masked again.
        confidence: the written token's probability at that step, 0 for a mask.
    """

    step: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    offset: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]


class Canvas:
    """Rows of context and masks, right padding to the longest row.

    A row's hidden states are kept until one of its tokens changes ("dirty"); `refresh` runs the backbone for the rows
    that are dirty and still need it, and for no others.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        keys: Int[Tensor, " batch"],
        eos_id: int,
        options: DecoderOptions,
        *,
        ends: Sequence[int] = (),
        padding: Sequence[int] = (),
        barred: Sequence[int] = (),
        tracing: bool = False,
        shadow: bool = False,
        lookback: Lookback | None = None,
    ) -> None:
        device = denoiser.device
        self.lengths = [len(row) for row in rows]
        size = (len(rows), max(self.lengths))
        place, lengths = torch.arange(size[1]), torch.tensor(self.lengths)
        self.denoiser, self.options, self.eos_id = denoiser, options, eos_id
        self.ends = torch.tensor([eos_id, *ends, *padding], device=device)
        self.padding = torch.tensor(list(padding), dtype=torch.long, device=device)
        never = [eos_id, *padding] if options.eos == "never" else []
        self.barred = torch.tensor([*barred, *never], dtype=torch.long, device=device)
        self.keys = keys.to(device)
        self.offset: Int[Tensor, "batch length"] = (place - torch.tensor(starts)[:, None]).to(device)
        self.not_padding: Bool[Tensor, "batch length"] = (place < lengths[:, None]).to(device)
        tokens = torch.full(size, eos_id)
        for b, row in enumerate(rows):
            tokens[b, : len(row)] = torch.tensor(row, dtype=torch.long)
        self.tokens = tokens.to(device)
        self.masked: Bool[Tensor, "batch length"] = (
            (self.tokens == denoiser.mask_id) & self.not_padding & (self.offset >= 0)
        )
        self.response = self.masked.clone()
        self.context = self.not_padding & ~self.response
        self.steps: Int[Tensor, "batch length"] = torch.full(size, -1, device=device)
        self.log_p: Float[Tensor, "batch length"] = torch.zeros(size, device=device)
        self.nfe = torch.zeros(size[0], dtype=torch.long, device=device)
        self.dirty = torch.ones(size[0], dtype=torch.bool, device=device)
        self.hidden: Float[Tensor, "batch length width"] = torch.zeros(*size, denoiser.width, device=device)
        # Hidden states without the context, for guidance.
        self.unguided = torch.zeros_like(self.hidden) if options.cfg_scale else None
        # Hidden states of a mask in the place of each token, for a rule that judges tokens by them.
        self.shadow = torch.zeros_like(self.hidden) if shadow else None
        self.unguided_shadow = torch.zeros_like(self.hidden) if shadow and options.cfg_scale else None
        self.history = None if lookback is None else History(lookback, self.hidden, self.unguided)
        self.events: list[tuple[Tensor, ...]] | None = [] if tracing else None
        self.phases = 0
        self.starts = list(starts)
        exact = denoiser.block_size and options.cache and not (options.cfg_scale or shadow)
        self._complete = BlockCache(len(rows)) if exact else None
        self._block: tuple[KeysValues, Tensor] | None = None  # key-value cache, and each row's place in it

    # --- What may happen now ------------------------------------------------------------------------------------

    def start_phase(self) -> None:
        """With an approximation all rows are computed again: a new phase keeps other masks on the canvas. With a
        block-causal model, too: a pass may have computed its own block alone."""
        self.phases += 1
        self._block = None
        if self.options.suffix != "full" or self.options.kv_cache != "none" or self.denoiser.block_size:
            self.dirty[:] = True

    def in_phase(self, phase: Phase) -> Bool[Tensor, "batch length"]:
        return self.masked & (self.offset >= phase.start) & (self.offset < phase.end)

    def revocable(self, phase: Phase) -> Bool[Tensor, "batch length"]:
        """Committed response positions of the phase; with EOS-fill an end, and what follows it, is final."""
        committed = self.response & ~self.masked & (self.offset >= phase.start) & (self.offset < phase.end)
        if self.options.eos_fill:
            committed &= (self.response & self.is_end(self.tokens)).cumsum(-1) == 0
        return committed

    def is_end(self, tokens: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """Which tokens end an answer."""
        return (tokens[..., None] == self.ends).any(-1)

    def stale(self, needed: Bool[Tensor, "batch length"]) -> Bool[Tensor, " batch"]:
        """Rows with a position that is needed now and hidden states that are out of date."""
        rows = needed.any(-1)
        return rows & self.dirty if self.options.cache else rows

    def kept(self, open_: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length"] | None:
        """The positions that stay on the canvas: all (None), or without some of the masks that cannot commit now.

        DPad (arXiv 2508.14148) keeps the j-th mask from the nearest position that stays anyway with probability
        a·φ(k·j / (W - 1)), j < W. It is drawn once a phase.
        """
        options = self.options
        if options.suffix == "full":
            return None
        far = self.masked & ~open_
        if options.suffix == "dropout":
            place = torch.arange(far.shape[1], device=far.device)
            near = self.not_padding & ~far
            where = place.expand_as(near)
            left = where.masked_fill(~near, -far.shape[1]).cummax(-1).values
            right = where.masked_fill(~near, 2 * far.shape[1]).flip(-1).cummin(-1).values.flip(-1)
            j = torch.minimum(place - left, right - place) - 1
            x = options.suffix_sigma * j / max(options.suffix_window - 1, 1)
            density = options.suffix_scale * torch.exp(-x.double().square() / 2) / math.sqrt(2 * math.pi)
            drawn = uniforms(self.keys[:, None].expand_as(far), self.phases, DROP, self.offset)
            far &= (drawn >= density) | (j >= options.suffix_window)
        return self.not_padding & ~far

    # --- The model ----------------------------------------------------------------------------------------------

    def refresh(
        self,
        stale: Bool[Tensor, " batch"],
        stale_flags: Sequence[int],
        phase: Phase,
        kept: Bool[Tensor, "batch length"] | None = None,
    ) -> None:
        """Run the backbone for the stale rows alone. `stale_flags` is a copy of `stale` on the host, so that nothing
        here waits for the device."""
        chosen = [b for b, marked in enumerate(stale_flags) if marked]
        if not chosen:
            return
        rows = torch.nonzero_static(stale, size=len(chosen))[:, 0]
        lengths = {self.lengths[b] for b in chosen}
        length = max(lengths)
        attention_mask = self.not_padding[rows, :length] if len(lengths) > 1 else None
        if self.denoiser.block_size and self._complete is None:
            blocks = block_numbers(self.offset[rows, :length], self.denoiser.block_size)
            attention_mask = block_causal(blocks) & self.not_padding[rows, None, :length]
        if self.history is not None:
            seen = self.masked & self._computed(phase, kept)
            self.history.push(rows, self.dirty[rows], (self.hidden, self.unguided), seen)

        def hidden(tokens: Tensor) -> Tensor:
            if kept is None:
                return self.denoiser.hidden(tokens, attention_mask)
            return self.denoiser.hidden_of_kept(tokens, kept[rows, :length])

        passes = [(self.tokens, self.hidden, self.shadow)]
        if self.unguided is not None:
            without_context = self.tokens.masked_fill(self.context, self.denoiser.mask_id)
            passes.append((without_context, self.unguided, self.unguided_shadow))
        for tokens, states, shadow in passes:
            if shadow is not None:
                seen_by = self.not_padding[rows, :length] if attention_mask is None else attention_mask
                self._refresh_with_shadow(tokens, rows, length, phase, states, shadow, seen_by)
            elif self._complete is not None:
                begins, ends = ([self.starts[b] + edge for b in chosen] for edge in (phase.start, phase.end))
                self._complete.refresh(self.denoiser, tokens, self.offset, chosen, begins, ends, states)
            elif self.options.kv_cache != "none":  # without guidance
                self._refresh_block(rows, phase)
            else:
                self._store(states, rows, hidden(tokens[rows, :length]))
        self.nfe[rows] += 1 if self.unguided is None else 2
        self.dirty[rows] = False

    def _refresh_block(self, rows: Tensor, phase: Phase) -> None:
        """Fast-dLLM (arXiv 2505.22618): a whole pass when a block starts, then passes of the block against its cache.

        `prefix` keeps what stands before the block and computes all behind it; `dual` keeps both sides.
        """
        if self._block is None:
            hidden, keys = self.denoiser.hidden_with_keys(self.tokens[rows], self.not_padding[rows])
            self._store(self.hidden, rows, hidden)
            place = torch.full_like(self.nfe, -1)
            place[rows] = torch.arange(len(rows), device=rows.device)
            self._block = keys, place
            return
        keys, place = self._block
        fresh = self._computed(phase, None)[rows]
        positions = fresh.nonzero()[:, 1].view(len(rows), -1)  # as many in every row: the response is as long in each
        kept = rows_of(keys, place[rows])
        hidden = self.denoiser.hidden_at(self.tokens[rows], positions, kept, self.not_padding[rows])
        self.hidden[rows[:, None], positions] = hidden.to(self.hidden.dtype)

    def _refresh_with_shadow(
        self,
        tokens: Tensor,
        rows: Tensor,
        length: int,
        phase: Phase,
        states: Tensor,
        shadow: Tensor,
        attention_mask: Tensor,
    ) -> None:
        """One pass over some rows and a shadow of the phase's response positions (WINO)."""
        places = torch.arange(phase.start, phase.end, device=rows.device) - self.offset[rows, :1]
        inside = (places >= 0) & (places < length)
        places = places.clamp(0, length - 1)
        inside &= self.response[rows[:, None], places]
        hidden, behind = self.denoiser.hidden_with_shadow(tokens[rows, :length], attention_mask, places, inside)
        self._store(states, rows, hidden)
        # What is not inside goes to a column that is cut off again.
        wide = torch.cat([shadow[rows], shadow.new_zeros(len(rows), 1, shadow.shape[2])], dim=1)
        where = places.masked_fill(~inside, shadow.shape[1])
        shadow[rows] = wide.scatter(1, where[..., None].expand_as(behind), behind.to(shadow.dtype))[:, :-1]

    @staticmethod
    def _store(states: Tensor, rows: Tensor, hidden: Tensor) -> None:
        states[rows, : hidden.shape[1]] = hidden.to(states.dtype)

    def _computed(self, phase: Phase, kept: Bool[Tensor, "batch length"] | None) -> Bool[Tensor, "batch length"]:
        """The positions that a pass computes: all, or what `suffix` or a key-value cache leaves of them. With a
        block-causal model those of the block, whether others are computed with it or not."""
        computed = self.not_padding if kept is None else kept
        if self._block is None and not self.denoiser.block_size:
            return computed
        fresh = computed & (self.offset >= phase.start)
        alone = self.options.kv_cache == "dual" or self.denoiser.block_size
        return fresh & (self.offset < phase.end) if alone else fresh

    def past(self, row: Tensor, position: Tensor) -> Past | None:
        """What earlier passes left at some positions, for a rule that looks back."""
        if self.history is None:
            return None
        seen = self.history.seen_in_a_row(row, position)
        votes = self.history.votes(row, position)
        return Past(seen, lambda ago, chosen: self.logits(row[chosen], position[chosen], ago), votes)

    def logits(self, row: Tensor, position: Tensor, ago: int = 0) -> Float[Tensor, "n vocab"]:
        """Logits at some positions, guided and penalised as the options say (in float32); those of a pass `ago` passes
        before the newest where there is a history.

        The mask's is -inf, and those of what is barred: with `eos: never` EOS and the pad tokens.
        """
        if ago and self.history is not None:
            unguided = None if self.history.unguided is None else self.history.unguided[ago - 1]
            return self._logits(row, position, self.history.hidden[ago - 1], unguided)
        return self._logits(row, position, self.hidden, self.unguided)

    def logits_of_tokens(self, row: Tensor, position: Tensor) -> Float[Tensor, "n vocab"]:
        """Logits at some committed positions: of a mask in the token's place where there is a shadow, else the token's
        own."""
        if self.shadow is None:
            return self._logits(row, position, self.hidden, self.unguided)
        return self._logits(row, position, self.shadow, self.unguided_shadow)

    def _logits(self, row: Tensor, position: Tensor, hidden: Tensor, unguided: Tensor | None) -> Tensor:
        logits = self.denoiser.logits(hidden[row, position])
        if unguided is not None:
            logits, without = logits.float(), self.denoiser.logits(unguided[row, position]).float()
            logits = without + (self.options.cfg_scale + 1) * (logits - without)
            logits[:, self.denoiser.mask_id] = -math.inf
        if self.options.penalty != 1:
            logits, penalty = logits.float(), self.options.penalty
            shrunk = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._present()[row], shrunk, logits)
        if len(self.barred):
            logits.index_fill_(1, self.barred, -math.inf)
        return logits

    def _present(self) -> Bool[Tensor, "batch vocab"]:
        """Which tokens stand on each row's canvas."""
        vocab = self.denoiser.vocab_size
        seen = self.tokens.masked_fill(self.masked | ~self.not_padding, vocab)
        present = torch.zeros(len(seen), vocab + 1, dtype=torch.bool, device=seen.device)
        return present.scatter_(1, seen, True)[:, :vocab]

    # --- Changes ------------------------------------------------------------------------------------------------

    def commit(self, row: Tensor, position: Tensor, chosen: Tensor, tokens: Tensor, log_p: Tensor, clock: int) -> None:
        """Write the `chosen` ones of some masked positions, without asking the device how many there are."""
        for state, new in ((self.tokens, tokens), (self.steps, torch.full_like(row, clock)), (self.log_p, log_p)):
            state[row, position] = torch.where(chosen, new, state[row, position])
        self.masked[row, position] = ~chosen
        self.dirty |= torch.zeros_like(self.nfe).index_add_(0, row, chosen.long()) > 0
        self._note(clock, row, position, chosen, tokens, log_p.exp())
        self._fill_after_eos()

    def revoke(self, row: Tensor, position: Tensor, clock: int) -> None:
        """Mask committed tokens again."""
        masks = torch.full_like(row, self.denoiser.mask_id)
        self.tokens[row, position] = masks
        self.masked[row, position] = True
        self.steps[row, position] = -1
        self.dirty[row] = True
        every = torch.ones_like(row, dtype=torch.bool)
        self._note(clock, row, position, every, masks, torch.zeros(len(row), device=row.device))
        self._fill_after_eos()

    def remask(self, keep: int, clock: int) -> None:
        """Mask every response position from `keep` on again (semi-AR, stride), but not what follows a kept EOS."""
        row, position = (self.response & ~self.masked & (self.offset >= keep)).nonzero(as_tuple=True)
        if len(row):
            self.revoke(row, position, clock)

    def retire(self, rows: Sequence[int]) -> None:
        """Leave some rows as they are from here on: nothing of them is open or can be masked again."""
        self.masked[rows] = False
        self.response[rows] = False

    def _note(
        self, clock: int, row: Tensor, position: Tensor, changed: Tensor, tokens: Tensor, confidence: Tensor
    ) -> None:
        if self.events is not None:
            offset = self.offset[row, position]
            self.events.append((changed, torch.full_like(row, clock), row, offset, tokens, confidence))

    def trace(self) -> Trace | None:
        if self.events is None:
            return None
        changed, *columns = (torch.cat(parts).cpu() for parts in zip(*self.events, strict=True))
        return Trace(*(column[changed] for column in columns))

    def _fill_after_eos(self) -> None:
        if not self.options.eos_fill:
            return
        ended = self.response & self.is_end(self.tokens)
        after = ((ended.cumsum(-1) - ended.long()) > 0) & self.response
        padding = self._padding_behind(ended)
        changed = after & (self.tokens != padding)
        self.tokens = torch.where(after, padding, self.tokens)
        self.masked &= ~after
        self.steps.masked_fill_(changed, -1)

    def _padding_behind(self, ended: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch length"] | int:
        """What stands behind the first end of each row: EOS, or the pad tokens in turn. They begin anew behind EOS, and
        go on where a pad token is that end."""
        if not len(self.padding):
            return self.eos_id
        first = ended.long().argmax(-1, keepdim=True)
        same = self.tokens.gather(1, first) == self.padding
        begin = torch.where(same.any(-1), same.long().argmax(-1) + 1, 0)[:, None]
        place = torch.arange(ended.shape[1], device=ended.device)
        return self.padding[(place - first - 1 + begin) % len(self.padding)]
