"""SEDD's objective: by hand, against its literal formula, against the NELBO; its trainer, and where it starts."""

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import EOS, LENGTH, MASK, TOKENIZER, TRAIN, TRAINING, VALID, arguments, full_logits, tiny_model
from torch import Tensor

from dlm.diffusion.forward import antithetic_t, mask_tokens, row_draws
from dlm.diffusion.losses import score_entropy, subs_log_probs, token_scores
from dlm.models.backbone import load_checkpoint, save_checkpoint
from dlm.models.interface import score_offset
from dlm.training import objectives
from dlm.training.collators import SftCollator
from dlm.training.fit import fit
from dlm.training.objectives import DiffusionTrainer, ScoreEntropyTrainer, step_seed
from dlm.training.scores import normalising_offset

COLLATE = SftCollator(LENGTH, EOS, padding=0.5)
scores = st.lists(st.floats(0.01, 5), min_size=2, max_size=6)


def literal(estimate: list[float], x0: int, t: float, eps: float) -> float:
    """A masked position's cost as SEDD writes it, of scores s = estimate / (e^σ - 1), in Python floats."""
    sigma, rate = -math.log1p(-(1 - eps) * t), (1 - eps) / (1 - (1 - eps) * t)
    ratio = 1 / math.expm1(sigma)
    s = [ratio * value for value in estimate]
    return rate * (sum(s) - ratio * math.log(s[x0]) + ratio * (math.log(ratio) - 1))


def ours(estimate: list[float], x0: int) -> float:
    logits = torch.tensor(estimate, dtype=torch.float64).log()
    return score_entropy(logits[x0] - logits.logsumexp(0), logits.logsumexp(0)).item()


def test_by_hand() -> None:
    """p̂ = (1/2, 1/4), a mask at 9 and an offset of 2 in all logits; the first token is true: 3/4 - 1 + ln 2."""
    logits = torch.tensor([[0.5, math.exp(9), 0.25], [0.5, 1.0, 0.25]]).log() + 2
    log_p, log_total = token_scores(logits, torch.tensor([0, 0]), 1, 2.0)
    assert log_p.exp().tolist() == pytest.approx([2 / 3] * 2) and log_total.exp().tolist() == pytest.approx([0.75] * 2)
    assert score_entropy(log_p, log_total).tolist() == pytest.approx([math.log(2) - 0.25] * 2, abs=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scores, st.floats(1e-3, 0.999), st.sampled_from([0.0, 1e-3, 0.3]))
def test_it_is_the_published_formula_whatever_its_eps(estimate: list[float], t: float, eps: float) -> None:
    assert ours(estimate, 0) / t == pytest.approx(literal(estimate, 0, t, eps), rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scores, scores)
def test_the_true_scores_are_the_only_minimum(weights: list[float], other: list[float]) -> None:
    """x0 drawn from a posterior p: the expected cost is least at p̂ = p, and there it is the entropy of p."""
    size = min(len(weights), len(other))
    p = [weight / sum(weights[:size]) for weight in weights[:size]]
    least = sum(p[x0] * ours(p, x0) for x0 in range(size))
    assert least == pytest.approx(-sum(p_j * math.log(p_j) for p_j in p))
    expected = sum(p[x0] * ours(other[:size], x0) for x0 in range(size))
    # The gap is Σ (p̂ - p - p·log(p̂ / p)), each term at least 0.
    gap = sum(q_j - p_j - p_j * math.log(q_j / p_j) for p_j, q_j in zip(p, other[:size], strict=True))
    assert gap >= 0 and expected - least == pytest.approx(gap, abs=1e-9)


def test_normalised_scores_cost_the_nelbo_and_others_more() -> None:
    """Random logits: with their softmax in place of p̂ the cost is -log p exactly; times 2 and 1/2 it is more by
    1 - ln 2 and ln 2 - 1/2."""
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3
    x0 = torch.arange(50) % 6
    log_probs = subs_log_probs(logits, 6)
    nll = -log_probs.gather(-1, x0[:, None])[:, 0]
    for factor, more in ((1.0, 0.0), (2.0, 1 - math.log(2)), (0.5, math.log(2) - 0.5)):
        found = score_entropy(*token_scores(log_probs + math.log(factor), x0, 6, 0.0))
        assert torch.allclose(found, nll + more, atol=1e-5)
    log_p, _ = token_scores(logits, x0, 6, 1.7)
    assert torch.equal(log_p, (logits.gather(-1, x0[:, None])[:, 0] - logits[:, :6].logsumexp(-1)))


def test_the_gradient_pulls_each_score_to_its_share() -> None:
    """d/dz_y = p̂_y - [y = x0]; nothing reaches the mask. With softmax the p̂ would be p, and all of it add up to 0."""
    logits = torch.tensor([[0.5, 7.0, 0.25]]).log().requires_grad_()
    score_entropy(*token_scores(logits, torch.tensor([0]), 1, 0.0)).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.5 - 1, 0.0, 0.25])


def test_a_total_near_1_is_not_lost_in_rounding() -> None:
    """log T = 1e-3 in float32: e^x - 1 - x = 5.0017e-7; exp(x) - 1 would be off by a tenth of it. And far from 1."""
    found = score_entropy(torch.zeros(3), torch.tensor([1e-3, 0.0, -50.0]))
    assert found.tolist() == pytest.approx([5.0017e-7, 0.0, 49.0], rel=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_the_trainers_loss_is_that_of_full_logits(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    """Σ_masked weight · cost / Σ weight, position by position, as SEDD writes it."""
    seen: list[tuple[Tensor, ...]] = []
    real_t = objectives.antithetic_t

    def masked(*args: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((args[1], *mask_tokens(*args)))  # type: ignore[arg-type]
        return seen[-1][1:]  # type: ignore[return-value]

    monkeypatch.setattr(objectives, "mask_tokens", masked)
    # At t = 1 exactly σ is infinite for ε = 0: the literal formula has none of it.
    monkeypatch.setattr(objectives, "antithetic_t", lambda *args: real_t(*args).clamp(max=0.99))
    model = tiny_model().train(training)
    trainer = ScoreEntropyTrainer(
        model=model, args=arguments(), mask_id=MASK, data_collator=COLLATE, eval_dataset=TRAIN[:5], offset=1.5
    )
    batch = COLLATE(TRAIN[:5])
    values = trainer.row_values(model, {**batch, **({} if training else {"place": torch.arange(5)})})
    (t, xt, where), logits = seen[0], full_logits(model, seen[0][1]).detach().double()
    for b in range(5):
        loss, nll, penalty, log_total = 0.0, [], [], []
        for i in where[b].nonzero()[:, 0].tolist():
            estimate = [math.exp(z - 1.5) if v != MASK else 0.0 for v, z in enumerate(logits[b, i].tolist())]
            x0 = int(batch["x0"][b, i])
            loss += float(batch["counts"][b, i]) * literal(estimate, x0, float(t[b]), 0.0)
            nll.append(-math.log(estimate[x0] / sum(estimate)))
            penalty.append(sum(estimate) - 1 - math.log(sum(estimate)))
            log_total.append(math.log(sum(estimate)))
        assert values["loss"][b].item() == pytest.approx(loss, rel=1e-4)
        for name, terms in () if training else (("nll", nll), ("penalty", penalty), ("log_total", log_total)):
            assert values[name][b].item() == pytest.approx(sum(terms) / max(len(terms), 1), rel=1e-4)
    assert set(values) == ({"loss"} if training else {"loss", "nll", "penalty", "log_total"})
    assert int((xt == MASK).sum()) > 5


def test_where_it_starts_is_the_best_constant() -> None:
    """The weighted mean of Σ exp z, in loops; batches change nothing, and the model trains on."""
    model = tiny_model().train()
    found = normalising_offset(model, TRAIN, COLLATE, MASK, 3, 4)
    assert found == pytest.approx(normalising_offset(model, TRAIN, COLLATE, MASK, 3, 20), abs=1e-6)
    assert model.training
    model.eval()
    batch = COLLATE(TRAIN)
    t = antithetic_t(torch.arange(20), 20, torch.Generator().manual_seed(step_seed(3, "offset")))
    draws = row_draws([step_seed(3, "offset", place) for place in range(20)], LENGTH)
    xt, where = mask_tokens(batch["x0"], t, batch["maskable"], MASK, draws)
    logits = full_logits(model, xt).double()
    total = weights = 0.0
    for b, i in where.nonzero().tolist():
        weight = float(batch["counts"][b, i] / t[b])
        weights += weight
        total += weight * sum(math.exp(z) for v, z in enumerate(logits[b, i].tolist()) if v != MASK)
    assert found == pytest.approx(math.log(total / weights), abs=1e-5)


def test_training_learns_the_sum() -> None:
    """From an offset that is off by 2, the held-out log Σ p̂ goes from 2 towards 0, and the cost of tokens falls."""
    model = tiny_model()
    offset = normalising_offset(model, TRAIN, COLLATE, MASK, 3, 4) - 2
    make = functools.partial(ScoreEntropyTrainer, mask_id=MASK, data_collator=COLLATE, offset=offset)
    _, curve = fit("sedd", make, model, TRAIN, VALID, replace(TRAINING, steps=40), 7)
    first, last = curve[0], curve[-1]
    assert first["eval_log_total"] == pytest.approx(2, abs=0.2) and abs(last["eval_log_total"]) < 0.5
    assert last["eval_nll"] < first["eval_nll"] - 0.3 and last["eval_loss"] < first["eval_loss"] - 2


def test_a_checkpoint_says_what_its_logits_mean(tmp_path: Path) -> None:
    """Saved and loaded; what is trained further, by any objective, says nothing."""
    model = tiny_model()
    assert score_offset(model) is None
    model.config.score_offset = 3.25
    save_checkpoint(tmp_path, model, TOKENIZER)
    loaded = load_checkpoint(tmp_path, causal=False)[0]
    assert score_offset(loaded) == 3.25
    make = functools.partial(DiffusionTrainer, mask_id=MASK, data_collator=COLLATE)
    trained, _ = fit("sft", make, loaded, TRAIN, VALID, replace(TRAINING, steps=1), 7)
    assert score_offset(trained) is None
