"""Muon and AdamW as one optimizer: which parameter goes where, by-hand steps, and learning rates that reach both."""

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from dlm.training.optimizer import MuonAdamW, muon_groups


def named(model: torch.nn.Module, parameters: list[Tensor]) -> set[str]:
    wanted = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in wanted}


def test_matrices_tables_and_the_rest() -> None:
    model = tiny_model()
    matrices, tables, rest = muon_groups(model, 0.1)
    assert named(model, tables["params"]) == {"model.embed_tokens.weight"}  # the head is tied to it
    assert all("norm" in name for name in named(model, rest["params"])) and rest["weight_decay"] == 0.0
    assert len(matrices["params"]) == 2 * 7  # two layers of q, k, v, o, gate, up, down
    assert sum(len(group["params"]) for group in (matrices, tables, rest)) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    model.get_input_embeddings().weight.requires_grad_(False)
    assert muon_groups(model, 0.1)[1]["params"] == []


def test_a_muon_step_is_orthogonal_and_as_large_as_adamws() -> None:
    """The first step on a 32 x 48 matrix is -lr · 0.2·sqrt(48) · U, with U's singular values near 1 (five Newton-Schulz
    iterations leave them between 0.68 and 1.14); AdamW's first step is lr · sign(gradient) = lr everywhere."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(32, 48))
    vector = torch.nn.Parameter(torch.zeros(7))
    optimizer = MuonAdamW(
        [{"params": [matrix], "weight_decay": 0.0, "muon": True}, {"params": [vector], "weight_decay": 0.0}], lr=0.5
    )
    matrix.grad = torch.randn(32, 48, generator=generator)
    vector.grad = torch.tensor([3.0, -2.0, 1.0, -1.0, 4.0, 0.5, -0.1])
    optimizer.step()
    scale = 0.5 * 0.2 * 48**0.5
    assert ((torch.linalg.svdvals(matrix.data / scale) - 0.9).abs() < 0.35).all()
    assert (matrix * matrix.grad).sum() < 0
    assert vector.data.tolist() == pytest.approx([-0.5, 0.5, -0.5, 0.5, -0.5, -0.5, 0.5], rel=1e-4)


def test_a_scheduler_reaches_both_parts_after_a_reload_too() -> None:
    model = tiny_model()
    optimizer = MuonAdamW(muon_groups(model, 0.1), lr=1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.5, 0.5, 0.5]


def test_zero_grad_clears_every_parameter() -> None:
    model = tiny_model()
    optimizer = MuonAdamW(muon_groups(model, 0.1), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
