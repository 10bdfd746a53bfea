"""Muon for a model's matrices, AdamW for its embeddings and norms, as one optimizer that the Trainer can drive."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) where it is defined, AdamW elsewhere, at one learning rate.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), so a learning
    rate found for one serves the other. A small transformer learns to look things up in its prompt several times faster
    with it: data/base/README.md has the figures.

    Args:
        groups: parameter groups, each with `params` and `weight_decay`; a group with `muon: True` holds matrices only.
        lr: peak learning rate of both.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        groups = list(groups)
        super().__init__(groups, {"lr": lr})
        matrices = [group for group in groups if group.get("muon")]
        others = [group for group in groups if not group.get("muon")]
        self.parts: list[Optimizer] = [Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw"), AdamW(others, lr=lr)]
        self._link()

    def _link(self) -> None:
        # The scheduler writes learning rates into our groups: they must be the parts' own.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._link()


def muon_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of `MuonAdamW`: the matrices inside the model | embeddings and head | the rest, without decay."""
    tables = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in tables]
    return [
        {"params": matrices, "weight_decay": weight_decay, "muon": True},
        {"params": [p for p in trained if id(p) in tables], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim != 2], "weight_decay": 0.0},
    ]
