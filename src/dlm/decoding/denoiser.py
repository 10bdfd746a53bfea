"""The denoiser that the decode loop sees: hidden states of a canvas, and the head only where it is asked for."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dlm.decoding.memory import keep_freed_memory
from dlm.errors import UserError
from dlm.models.compiled import Compiled
from dlm.models.interface import (
    backbone,
    block_size,
    check_sees_all,
    head,
    inputs,
    is_masked_lm,
    logits_shift,
    max_length,
    score_offset,
    shifted,
    token_count,
)
from dlm.models.probe import Habits, habits

ACTIVATION = 2**21  # numbers in a CPU's widest activation, of so many rows at a time
KeysValues = list[tuple[Tensor, Tensor]]  # of each layer, [batch, heads, length, head width], positions already rotated


class Denoiser:
    """A backbone with the SUBS parameterisation: the mask token never gets probability (docs/method.md §1).

    The vocabulary projection is a large part of a small model's work; callers gather the positions first and get
    exactly the logits that a full projection would give there.

    Attributes:
        block_size: positions a block of a block-causal model (models/blocks.py), 0 where each sees all others.
        score_offset: what logits exceed log-scores by (`models.interface.score_offset`); None for a model without.
    """

    block_size = 0
    score_offset: float | None = None

    def __init__(self, model: PreTrainedModel, mask_id: int, *, bf16: bool = False, compile: str = "none") -> None:
        self.model = model.eval()
        self.mask_id = mask_id
        self.bf16 = bf16
        self.compile = compile
        self.block_size = block_size(model)
        self.score_offset = score_offset(model)
        if model.device.type == "cpu":
            keep_freed_memory()
        self._backbone, self._head = backbone(model), head(model)
        self._compiled = None if compile == "none" else Compiled(model, compile)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def vocab_size(self) -> int:
        return token_count(self.model)

    @property
    def max_length(self) -> int | None:
        """How many places a canvas can have, if there is a limit."""
        return max_length(self.model)

    @cached_property
    def habits(self) -> Habits:
        """What may be left out of a canvas; tried on the model at the first call."""
        return habits(self.model)

    def hidden(
        self,
        canvas: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length length"] | None,
    ) -> Float[Tensor, "batch length width"]:
        """Final hidden states. Positions outside `attention_mask` (None: there are none) are padding on the right: the
        model does not see them, and their states mean nothing. Where padding would change the other states, rows of
        one length go together. With three dimensions it says what each position (the second) sees.

        Raises:
            UserError: a block-causal model without such a mask.
        """
        pairs = attention_mask is not None and attention_mask.dim() == 3
        if not pairs:
            check_sees_all(self.model)
        if attention_mask is None or pairs or self.habits.padding:
            return self._in_pieces(canvas, attention_mask, None)
        lengths = attention_mask.sum(-1)
        states = torch.zeros(*canvas.shape, self.width, device=canvas.device)
        for length in set(lengths.tolist()):
            rows = lengths == length
            states[rows, :length] = self._in_pieces(canvas[rows, :length], None, None).to(states.dtype)
        return states

    def hidden_of_kept(
        self, canvas: Int[Tensor, "batch length"], kept: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """`hidden` of the `kept` positions alone, under their own position ids; padding and masks that are left out are
        not computed. A backbone that reads distances off the order of its input gets the whole canvas instead, with the
        kept positions as its attention mask.

        Raises:
            UserError: a backbone from which nothing can be left out.
        """
        if self.habits.gaps == "none":
            raise UserError(f"suffix must be full for {type(self.model).__name__}: what is left out moves the others")
        if self.habits.gaps == "hidden":
            places = None if is_masked_lm(self.model) else torch.arange(canvas.shape[1], device=canvas.device)
            return self._in_pieces(canvas, kept, None if places is None else places.expand_as(canvas))
        # The kept positions of each row in order, then others up to the fullest row's count.
        places = torch.argsort(~kept, dim=-1, stable=True)
        place = torch.arange(canvas.shape[1], device=canvas.device)
        counts = kept.sum(-1)
        unmoved = (places == place).all(0).cumprod(0).sum()
        most, least, unmoved = torch.stack([counts.max(), counts.min(), unmoved]).tolist()
        if not most:
            return torch.zeros(*canvas.shape, self.width, device=canvas.device)
        places, moved = places[:, :most], unmoved < most
        attention_mask = None if least == most else place[:most] < counts[:, None]
        output = self._in_pieces(canvas.gather(1, places), attention_mask, places if moved else None)
        if not moved and most == canvas.shape[1]:
            return output
        whole = output.new_zeros(*canvas.shape, output.shape[-1])
        return whole.scatter_(1, places[..., None].expand_as(output), output)

    def hidden_with_keys(
        self, canvas: Int[Tensor, "batch length"], not_padding: Bool[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length width"], KeysValues]:
        """Final hidden states of a whole canvas, and every layer's keys and values.

        Raises:
            UserError: a backbone that keeps none, or one that tells distances by the order of what it sees.
        """
        if is_masked_lm(self.model) or self.habits.gaps != "closed":
            raise UserError("kv_cache goes with Llama-like backbones; use none here")
        cache = DynamicCache()
        hidden = self._run(canvas, None if not_padding.all() else not_padding, None, cache)
        layers: list[Any] = cache.layers
        return hidden, [(layer.keys, layer.values) for layer in layers]

    def hidden_at(
        self,
        canvas: Int[Tensor, "batch length"],
        positions: Int[Tensor, "batch some"],
        keys: KeysValues,
        not_padding: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch some width"]:
        """Hidden states of a run of positions of each row. They see each other, and all else by its keys and values.

        Where position i is predicted at i - 1, the position before the run is computed with it. A run from the canvas's
        first position on has none: that one is predicted at itself, by a copy that nothing sees.
        """
        fresh, seen = positions, torch.ones_like(positions, dtype=torch.bool)
        if logits_shift(self.model):
            before = positions[:, :1] - 1
            fresh, seen = torch.cat([before.clamp(min=0), positions], dim=1), torch.cat([before >= 0, seen], dim=1)
        cached = not_padding.scatter(1, fresh, False)
        hidden = self._run(canvas.gather(1, fresh), torch.cat([cached, seen], dim=1), fresh, DynamicCache(keys))
        return hidden[:, fresh.shape[1] - positions.shape[1] :]

    def hidden_of_run(
        self,
        tokens: Int[Tensor, "batch run"],
        places: Int[Tensor, "batch run"],
        sees: Bool[Tensor, "batch run seen"],
        past: KeysValues,
    ) -> tuple[Float[Tensor, "batch run width"], KeysValues]:
        """Final hidden states of some places themselves (not of what predicts them), and the keys and values of all
        that is seen: `past` and, behind it, the run.

        Args:
            sees: what each place of the run sees of both.
        """
        cache = DynamicCache(past) if past else DynamicCache()
        hidden = self._states(tokens, sees, places, cache)
        layers: list[Any] = cache.layers
        return hidden, [(layer.keys, layer.values) for layer in layers]

    def hidden_with_shadow(
        self,
        canvas: Int[Tensor, "batch length"],
        not_padding: Bool[Tensor, "batch length"] | Bool[Tensor, "batch length length"],
        places: Int[Tensor, "batch some"],
        inside: Bool[Tensor, "batch some"],
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch some width"]]:
        """One pass over the canvas and a shadow: masks in the `places`, of those `inside` (the others mean nothing).

        The canvas does not see the shadow. A mask of the shadow sees all of the canvas but the token in its own place,
        and all of the shadow (WINO, arXiv 2507.18578): its state says what would stand there.

        Args:
            not_padding: with three dimensions, what each position of the canvas sees.

        Raises:
            UserError: a backbone whose positions cannot each see others, or whose states predict the next position.
        """
        if is_masked_lm(self.model) or logits_shift(self.model) or self.habits.gaps != "closed":
            raise UserError("wino goes with Llama-like backbones that predict a position at itself; p2 takes back, too")
        batch, length = canvas.shape
        others = torch.arange(length, device=canvas.device) != places[..., None]
        sees = not_padding if not_padding.dim() == 3 else not_padding[:, None].expand(-1, length, -1)
        sees_canvas = torch.cat([sees, sees.gather(1, places[..., None].expand(-1, -1, length)) & others], dim=1)
        sees_shadow = torch.cat([torch.zeros_like(inside)[:, None].expand(-1, length, -1), _each(inside)], dim=1)
        tokens = torch.cat([canvas, torch.full_like(places, self.mask_id)], dim=1)
        positions = torch.cat([torch.arange(length, device=canvas.device).expand(batch, -1), places], dim=1)
        states = self._in_pieces(tokens, torch.cat([sees_canvas, sees_shadow], dim=2), positions)
        return states[:, :length], states[:, length:]

    def _in_pieces(self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """`_run`; on a CPU a few rows at a time, which is as fast and needs less memory."""
        rows = len(tokens)
        if self.device.type == "cpu" and self._compiled is None:
            widest = getattr(
                self.model.config, "intermediate_size", 4 * self.width
            )  # DistilBERT has another name for it
            rows = max(ACTIVATION // (tokens.shape[1] * widest), 1)
        if rows >= len(tokens):
            return self._run(tokens, attention_mask, positions)
        pieces = [slice(start, start + rows) for start in range(0, len(tokens), rows)]
        return torch.cat(
            [
                self._run(
                    tokens[p],
                    None if attention_mask is None else attention_mask[p],
                    None if positions is None else positions[p],
                )
                for p in pieces
            ]
        )

    def _run(
        self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None, cache: DynamicCache | None = None
    ) -> Tensor:
        return shifted(self.model, self._states(tokens, attention_mask, positions, cache))

    def _states(
        self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None, cache: DynamicCache | None
    ) -> Tensor:
        with self._autocast():
            pairs = attention_mask is not None and attention_mask.dim() == 3
            if self._compiled is not None and cache is None and not pairs:
                return self._compiled(tokens, attention_mask, positions)
            given = inputs(self.model, tokens, attention_mask, positions, cache)
            hidden: Tensor = self._backbone(**given).last_hidden_state
            return hidden

    def _autocast(self) -> torch.autocast:
        """bfloat16 where asked for. Without a cache of weights: each is used once, and graphs must not keep them."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16, cache_enabled=False)

    def logits(self, hidden: Float[Tensor, "n width"]) -> Float[Tensor, "n vocab"]:
        """Logits of some positions, in the type of the head's arithmetic; the mask token's is -inf."""
        with self._autocast():
            logits = self._head(hidden)
        logits[:, self.mask_id] = float("-inf")
        return logits


def _each(inside: Bool[Tensor, "batch some"]) -> Bool[Tensor, "batch some some"]:
    return inside[:, None].expand(-1, inside.shape[1], -1)


def rows_of(keys: Sequence[tuple[Tensor, Tensor]], rows: Int[Tensor, " n"]) -> KeysValues:
    """Some rows' keys and values."""
    return [(key[rows], value[rows]) for key, value in keys]
