"""The objective of the autoregressive reference."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dlm.diffusion.losses import over_canvas
from dlm.training.trainer import OursTrainer


class CausalTrainer(OursTrainer):
    """Next-token cross-entropy per scored token on {x0, scored}, for the autoregressive reference."""

    def row_weights(self, inputs: dict[str, Any]) -> Tensor:
        scored: Tensor = inputs["scored"]
        return scored.sum(-1)

    def row_values(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        x0, scored = inputs["x0"], inputs["scored"]
        before = scored.roll(-1, dims=1)  # the first position is never scored
        token_nll = F.cross_entropy(model(x0, before).float(), x0[scored], reduction="none")
        return {"loss": over_canvas(token_nll, scored).sum(-1)}
