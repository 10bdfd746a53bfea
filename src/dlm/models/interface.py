"""What decoding and training ask of a model of transformers: final hidden states, and logits of some of them.

Two kinds of classes serve as denoisers: decoder-only ones without a causal mask (`config.is_causal: false`), and masked
LMs, whose head is more than a projection.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, DynamicCache, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from dlm.errors import UserError
from dlm.models.blocks import doubled

ALIGNED = 64
Head = Callable[[Float[Tensor, "n width"]], Float[Tensor, "n vocab"]]


def is_masked_lm(model: PreTrainedModel) -> bool:
    # Looked up by the configuration: all values of the mapping would import every masked LM that there is.
    return MODEL_FOR_MASKED_LM_MAPPING.get(type(model.config), None) is type(model)


def backbone(model: PreTrainedModel) -> nn.Module:
    """The module that ends in the final hidden states."""
    return model.base_model if is_masked_lm(model) else model.get_decoder()


def inputs(
    model: PreTrainedModel,
    tokens: Int[Tensor, "batch length"],
    attention_mask: Bool[Tensor, "batch seen"] | Bool[Tensor, "batch length seen"] | None = None,
    positions: Int[Tensor, "batch length"] | None = None,
    cache: DynamicCache | None = None,
) -> dict[str, Any]:
    """The arguments of `backbone(model)`.

    Args:
        attention_mask: True for what the model sees, of the cached positions and of `tokens`; None for all. With three
            dimensions, of decoder-only classes, what each position (the second) sees.
        positions: places on the canvas; None for 0, 1, 2, ...
        cache: keys and values that are read and added to; decoder-only classes alone have one.
    """
    given: dict[str, Any] = {
        "input_ids": tokens,
        "attention_mask": None if attention_mask is None else attention_mask.long(),
    }
    if attention_mask is not None and attention_mask.dim() == 3:
        given["attention_mask"] = _pairwise(model, attention_mask)
    first = first_position(model)
    if positions is None and first:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    if positions is not None:
        given["position_ids"] = positions + first
    if not is_masked_lm(model):
        given |= {"past_key_values": cache, "use_cache": cache is not None}
    return given


def _pairwise(model: PreTrainedModel, sees: Bool[Tensor, "batch length seen"]) -> Tensor:
    """A mask of pairs in the form that the model's attention takes: booleans, or what plain attention adds."""
    if model.config._attn_implementation != "eager":
        return sees[:, None]
    return torch.zeros_like(sees, dtype=model.dtype).masked_fill(~sees, torch.finfo(model.dtype).min)[:, None]


def first_position(model: PreTrainedModel) -> int:
    """The position id of a canvas's first place. RoBERTa and its kin count from behind their padding id, and would
    count the tokens that are no padding: whatever stands on a canvas is none."""
    embeddings: Any = getattr(model.base_model, "embeddings", None)
    counts = hasattr(embeddings, "create_position_ids_from_inputs_embeds")
    return int(embeddings.padding_idx) + 1 if counts else 0


def max_length(model: PreTrainedModel) -> int | None:
    """How many places a canvas can have; None where the model's configuration sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else limit - first_position(model)


def shifted(model: PreTrainedModel, hidden: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
    """The states that predict each position: Dream's position i is predicted at i - 1, the first one at itself."""
    if not logits_shift(model):
        return hidden
    return torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)


def logits_shift(model: PreTrainedModel) -> int:
    return getattr(model.config, "logits_shift", 0)


def block_size(model: PreTrainedModel) -> int:
    """How many positions a block of a block-causal model has (models/blocks.py); 0 where each sees all others."""
    return getattr(model.config, "diffusion_block_size", 0)


def pad_cycle(model: PreTrainedModel) -> list[int]:
    """The ids of the pad tokens that stand behind an answer's EOS, in turn; none where all padding is EOS."""
    return list(getattr(model.config, "pad_cycle_ids", []))


def score_offset(model: PreTrainedModel) -> float | None:
    """What the logits of a model trained by score entropy exceed log p̂ by (diffusion.losses.score_entropy); None for
    any other, whose logits mean something up to a constant alone."""
    return getattr(model.config, "score_offset", None)


def states(
    model: PreTrainedModel,
    tokens: Int[Tensor, "batch length"],
    attention: Bool[Tensor, "length length"] | None = None,
) -> Float[Tensor, "batch length width"]:
    """The states that predict each position of canvases without padding.

    Args:
        attention: which positions (columns) each position (row) sees, of decoder-only classes; None for all.

    Raises:
        UserError: a block-causal model, where no attention is given: it has not learnt to see all.
    """
    if attention is None:
        check_sees_all(model)
    given = inputs(model, tokens)
    if attention is not None:
        given["attention_mask"] = attention.expand(len(tokens), 1, *attention.shape)
    return shifted(model, backbone(model)(**given).last_hidden_state)


def check_sees_all(model: PreTrainedModel) -> None:
    """Raises UserError for a block-causal model, where the positions behind a block must be seen, too."""
    if size := block_size(model):
        raise UserError(
            f"this needs a model that sees both sides of a gap, and this one is block-causal (blocks of {size}); "
            "give another checkpoint (docs/block-diffusion.md)"
        )


def doubled_states(
    model: PreTrainedModel,
    noised: Int[Tensor, "batch length"],
    clean: Int[Tensor, "batch length"],
    blocks: Int[Tensor, "batch length"],
) -> Float[Tensor, "batch length width"]:
    """The states of block diffusion that predict each noised position, all blocks in one pass (BD3-LM; blocks.doubled).

    Where position i is predicted at i - 1, the first position of a block is predicted at the clean one before it, as it
    is in decoding: that block is complete, and sees nothing of what follows. So with blocks of 1 masks have no part in
    it, and the model is the autoregressive one. The canvas's very first position is predicted at itself.

    Args:
        blocks: the number of each position's block.
    """
    places = torch.arange(clean.shape[1], device=clean.device).expand_as(clean)
    tokens, positions = torch.cat([noised, clean], dim=1), torch.cat([places, places], dim=1)
    given = inputs(model, tokens, doubled(blocks), positions)
    hidden_noised, hidden_clean = backbone(model)(**given).last_hidden_state.chunk(2, dim=1)
    if not logits_shift(model):
        return hidden_noised
    begins = (blocks[:, 1:] != blocks[:, :-1])[..., None]
    before = torch.where(begins, hidden_clean[:, :-1], hidden_noised[:, :-1])
    return torch.cat([hidden_noised[:, :1], before], dim=1)


def token_count(model: PreTrainedModel) -> int:
    """How many ids the tokenizer knows. Further rows of a published model are spare and never get probability."""
    return getattr(model.config, "token_count", model.config.vocab_size)


def know_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the model's config say how many ids its tokenizer knows, where that is less than it has rows."""
    count = max(tokenizer.get_vocab().values()) + 1
    if count < model.config.vocab_size:
        model.config.token_count = count
    else:
        vars(model.config).pop("token_count", None)  # of the tokenizer that it was saved with


def head(model: PreTrainedModel) -> Head:
    """Hidden states to logits, without the spare rows."""
    whole, count = _whole_head(model), token_count(model)
    return whole if count == model.config.vocab_size else lambda hidden: whole(hidden)[:, :count]


def _whole_head(model: PreTrainedModel) -> Head:
    """Hidden states to logits of every row."""
    if not is_masked_lm(model):
        projection: Any = model.get_output_embeddings()
        # A projection with an adapter, or with a part of the weights (FSDP), is used as it is.
        plain = type(projection) is nn.Linear and not hasattr(projection.weight, "placements")
        return Aligned(projection) if plain and projection.weight.is_cuda else projection

    def run(hidden: Tensor) -> Tensor:
        # Classes name the parts of their heads differently, so the class's own forward runs, with a backbone that gives
        # these states. On a shallow copy, since other threads may run the model.
        rest = copy.copy(model)
        rest.__dict__.pop("forward", None)  # training puts its own there
        rest._modules = {**model._modules, model.base_model_prefix: _Given(hidden[None])}
        logits: Tensor = rest(input_ids=torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)).logits
        return logits[0]

    return run


class Aligned:
    """A projection that writes its logits as the first columns of rows whose length is a multiple of ALIGNED.

    A GPU multiplies at full speed only where rows start at multiples of 16 bytes: with 50,258 entries, GPT-2's and a
    mask, it has a third of it. So the weights are padded, in the type of the arithmetic. Without gradients the padded
    weights are kept until the weights change.
    """

    def __init__(self, projection: nn.Linear) -> None:
        self.projection = projection
        self._padded: tuple[Any, Tensor, Tensor | None] | None = None

    def __call__(self, hidden: Float[Tensor, "n width"]) -> Float[Tensor, "n vocab"]:
        weight, bias = self._weights()
        return F.linear(hidden, weight, bias)[:, : len(self.projection.weight)]

    def _weights(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.projection.weight, self.projection.bias
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, dtype)
        kept = self._padded  # read once: another thread may put its own there
        if kept is not None and kept[0] == state and not torch.is_grad_enabled():
            return kept[1:]
        missing = -len(weight) % ALIGNED
        padded = F.pad(weight.to(dtype), (0, 0, 0, missing)) if missing else weight.to(dtype)
        shift = F.pad(bias.to(dtype), (0, missing)) if bias is not None else None
        if not torch.is_grad_enabled():
            self._padded = state, padded, shift
        return padded, shift


class _Given(nn.Module):
    """A backbone whose final hidden states are known already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> BaseModelOutput:
        return _States(last_hidden_state=self.hidden)  # type: ignore[arg-type]


class _States(BaseModelOutput):
    """Final hidden states; whatever else a class's backbone gives (Longformer's attentions) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
