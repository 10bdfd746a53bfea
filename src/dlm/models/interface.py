"""What decoding and training ask of a model of transformers: final hidden states, and logits of some of them.

Two kinds of classes serve as denoisers: decoder-only ones without a causal mask (`config.is_causal: false`), and masked
LMs, whose head is more than a projection.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

Head = Callable[[Float[Tensor, "n width"]], Float[Tensor, "n vocab"]]


def is_masked_lm(model: PreTrainedModel) -> bool:
    return type(model) in MODEL_FOR_MASKED_LM_MAPPING.values()


def backbone(model: PreTrainedModel) -> nn.Module:
    """The module that ends in the final hidden states."""
    return model.base_model if is_masked_lm(model) else model.get_decoder()


def inputs(
    model: PreTrainedModel,
    tokens: Int[Tensor, "batch length"],
    shown: Bool[Tensor, "batch seen"] | None = None,
    positions: Int[Tensor, "batch length"] | None = None,
    cache: DynamicCache | None = None,
) -> dict[str, Any]:
    """The arguments of `backbone(model)`.

    Args:
        shown: what exists for the model, of what is cached and of `tokens`; None for all of it.
        positions: position ids; None for 0, 1, 2, ...
        cache: keys and values that are read and added to; decoder-only classes alone have one.
    """
    given: dict[str, Any] = {"input_ids": tokens, "attention_mask": None if shown is None else shown.long()}
    if positions is not None:
        given["position_ids"] = positions
    if not is_masked_lm(model):
        given |= {"past_key_values": cache, "use_cache": cache is not None}
    return given


def shifted(model: PreTrainedModel, hidden: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
    """The states that predict each position: Dream's position i is predicted at i - 1, the first one at itself."""
    if not logits_shift(model):
        return hidden
    return torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)


def logits_shift(model: PreTrainedModel) -> int:
    return getattr(model.config, "logits_shift", 0)


def states(model: PreTrainedModel, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
    """The states that predict each position of canvases without padding."""
    return shifted(model, backbone(model)(**inputs(model, tokens)).last_hidden_state)


def head(model: PreTrainedModel) -> Head:
    """Hidden states to logits."""
    if not is_masked_lm(model):
        projection: Any = model.get_output_embeddings()
        return projection
    # The class's own forward around hidden states that are given: every masked LM calls its head's parts differently.
    given = _Given()
    rest = copy.copy(model)
    rest.__dict__.pop("forward", None)  # training puts its own there
    rest._modules = {**model._modules, model.base_model_prefix: given}

    def run(hidden: Tensor) -> Tensor:
        given.hidden = hidden[None]
        logits: Tensor = rest(input_ids=torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)).logits
        return logits[0]

    return run


class _Given(nn.Module):
    """A backbone whose final hidden states are known already."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.hidden)  # type: ignore[arg-type]
