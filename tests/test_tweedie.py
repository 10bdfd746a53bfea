"""SEDD's sampler: the rule from its matrices and by hand, what it is without scores, where the scores' scale stands."""

import math
from pathlib import Path

import pytest
import torch
from slow import PROMPTS, Task, fast_decode
from tiny import TableDenoiser, tiny_lm, tiny_model, tiny_tokenizer
from torch import Tensor

from dlm.decoding import commit
from dlm.decoding.commit import Open
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.loop import Decoded
from dlm.decoding.propose import Candidates
from dlm.decoding.schedules import Rates
from dlm.models.backbone import save_checkpoint


@pytest.mark.parametrize("eps", [1e-3, 0.2])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.75), (0.5, 0.25), (0.3, 0.29), (0.2, 0.0)])
def test_the_rule_is_that_of_the_matrices(t: float, s: float, eps: float) -> None:
    """Five tokens and the mask, Q sends each token to the mask at rate 1: [e^(-δQ) s]_y · e^(δQ)_(mask, y), by matrix
    exponentials. Token y: p̂_y·(t - s)/t; the mask: 1 - Σ p̂·(t - s)/t."""
    sigma_t, sigma_s = (-math.log1p(-(1 - eps) * time) for time in (t, s))
    estimate = torch.tensor([0.3, 0.05, 0.2, 0.01, 0.1], dtype=torch.float64)
    scores = torch.cat([estimate / math.expm1(sigma_t), torch.ones(1, dtype=torch.float64)])
    q = torch.zeros(6, 6, dtype=torch.float64)  # columns: from
    q[range(5), range(5)], q[5, :5] = -1.0, 1.0
    delta = sigma_t - sigma_s
    weights = (torch.matrix_exp(-delta * q) @ scores) * torch.matrix_exp(delta * q)[5]
    share = (t - s) / t
    assert weights[:5].tolist() == pytest.approx((estimate * share).tolist(), rel=1e-9)
    assert weights[5].item() == pytest.approx(1 - 0.66 * share, rel=1e-9)


def chosen(masses: list[float], rates: Rates, uniform: list[float], weights: list[float] | None = None) -> list[bool]:
    count = len(masses)
    row, mass = torch.zeros(count, dtype=torch.long), torch.tensor(masses).log()
    log_weight = torch.tensor(weights or [1.0] * count).log()
    late = torch.zeros(count, dtype=torch.bool)
    open_ = Open(1, row, torch.arange(count), log_weight, torch.tensor([count]), late)
    candidates = Candidates(mass, torch.zeros(count), lambda _: (row, mass))
    return commit.tweedie(open_, candidates, rates, torch.tensor(uniform, dtype=torch.float64)).tolist()


def test_by_hand() -> None:
    """Four steps left, so (t - s)/t = 1/4: sums of 1/2, 1, 3 and 8 commit with 1/8, 1/4, 3/4 and certainty."""
    rates = Rates(1.0, 3.0, 4)
    assert chosen([0.5, 1.0, 3.0, 8.0], rates, [0.124, 0.249, 0.749, 0.999]) == [True] * 4
    assert chosen([0.5, 1.0, 3.0, 8.0], rates, [0.126, 0.251, 0.751, 0.999]) == [False, False, False, True]
    # Weights 1 and 3 are on average 2. Sums of 2: tokens 1/2 · 1/2 and 1/2 · 3/2, the mask 1/2: chances 1/3 and 3/5.
    assert chosen([2.0, 2.0], rates, [0.333, 0.599], [1.0, 3.0]) == [True, True]
    assert chosen([2.0, 2.0], rates, [0.334, 0.601], [1.0, 3.0]) == [False, False]
    # The last step commits everything, however small the sum.
    assert chosen([0.0, 0.5], Rates(1.0, 0.0, 1), [0.999, 0.999]) == [True, True]


def same(one: Decoded, other: Decoded) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "commit_step", "nfe"))


@pytest.mark.parametrize("options", [{}, {"eos_fill": True}, {"kernel_size": 5, "conv_mult": 0.3}, {"cfg_scale": 1.0}])
def test_without_scores_it_is_categorical(options: dict) -> None:
    """A softmax's sums are 1: token for token."""
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    found = [
        fast_decode(denoiser, PROMPTS, Task(name, options, 12, 5, 0, denoiser.mask_id))
        for name in ("tweedie", "categorical")
    ]
    assert same(*found)


class Normalised(TableDenoiser):
    """Logits whose exponentials add up to e^offset."""

    def __init__(self, offset: float) -> None:
        super().__init__(vocab=9, mask_id=1, seed=3)
        self.score_offset = offset

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.log_softmax(super().logits(hidden), -1) + (self.score_offset or 0.0)


def test_normalised_scores_are_categorical_too() -> None:
    """And scores of another sum are not, though their tokens' probabilities are the same."""
    denoiser, prompts = Normalised(3.0), [[2, 3], [4], [5, 6, 7]]
    plain = fast_decode(denoiser, prompts, Task("categorical", {}, 12, 5, 0, 1))
    assert same(fast_decode(denoiser, prompts, Task("tweedie", {}, 12, 5, 0, 1)), plain)
    eager, slack = (
        fast_decode(denoiser, prompts, Task("tweedie", {"score_offset": offset}, 12, 5, 0, 1)) for offset in (2.0, 4.0)
    )
    means = [found.commit_step.double().mean() for found in (eager, plain, slack)]
    assert means[0] < means[1] < means[2]


def test_a_checkpoints_own_offset(tmp_path: Path) -> None:
    """What config.json says is what the option says, unless it says something else."""
    model = tiny_model(2)
    plain, setting = DiffusionLM(model, tiny_tokenizer()), {"steps": 5, "gen_length": 12}
    by_option, other = (plain.generate(PROMPTS, "tweedie", score_offset=offset, **setting) for offset in (7.7, 7.0))
    model.config.score_offset = 7.7
    save_checkpoint(tmp_path, model, tiny_tokenizer())
    scored = DiffusionLM.load(tmp_path, device="cpu")
    assert torch.equal(scored.generate(PROMPTS, "tweedie", **setting).tokens, by_option.tokens)
    assert torch.equal(scored.generate(PROMPTS, "tweedie", score_offset=7.0, **setting).tokens, other.tokens)
    assert not torch.equal(by_option.tokens, other.tokens)
    # Softmax decoders read the same model.
    assert torch.equal(
        scored.generate(PROMPTS, "top_k", **setting).tokens, plain.generate(PROMPTS, "top_k", **setting).tokens
    )
