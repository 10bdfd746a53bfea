"""The training objectives, against numbers worked out by hand and against the slowest possible code."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.diffusion.losses import mean_log_prob, nelbo, r2ft_loss, subs_log_probs

PLAIN = {"beta_w": 1.0, "beta_l": 1.0, "margin": 0.0, "gamma": 0.1}


def test_subs_gives_the_mask_nothing_and_the_rest_everything() -> None:
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)) * 3
    log_probs = subs_log_probs(logits, 2)
    assert (log_probs[..., 2] == float("-inf")).all()
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(3, 4))


def test_subs_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5 and a mask (id 1) at 100: p = 1/8, 0, 2/8, 5/8, whatever the mask's logit."""
    logits = torch.tensor([math.log(1), 100.0, math.log(2), math.log(5)])
    assert subs_log_probs(logits, 1).exp().tolist() == pytest.approx([1 / 8, 0, 2 / 8, 5 / 8], abs=1e-7)


def test_subs_computes_in_float32_and_leaves_its_input_alone() -> None:
    """In bfloat16 ln 3 = 1.0986 rounds to 1.1016; its own softmax would come out in steps of 1/256 near 1."""
    logits = torch.tensor([0.0, 1.0986, 5.0], dtype=torch.bfloat16)
    before = logits.clone()
    log_probs = subs_log_probs(logits, 2)
    assert log_probs.dtype == torch.float32
    assert log_probs[0].item() == pytest.approx(-math.log1p(math.exp(1.1015625)), abs=1e-6)
    assert torch.equal(logits, before)


def test_subs_passes_no_gradient_to_the_mask() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    subs_log_probs(logits, 4)[:, 0].sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, 4] == 0).all()
    assert torch.isfinite(logits.grad).all()


def test_nelbo_by_hand() -> None:
    """Two rows of three. Row 0, t = 1/2: positions 0 and 2 masked, p(x0) = 1/2 and 1/4. Row 1, t = 1/4: position 1,
    p(x0) = 1/8. (ln 2 + ln 4) / (1/2) = 6 ln 2 and ln 8 / (1/4) = 12 ln 2."""
    token_nll = torch.tensor([[math.log(2), 0.0, math.log(4)], [0.0, math.log(8), 0.0]])
    rows = nelbo(token_nll, torch.tensor([0.5, 0.25]))
    assert rows.tolist() == pytest.approx([6 * math.log(2), 12 * math.log(2)], abs=5e-7)


def naive_nelbo(logits: Tensor, x0: Tensor, masked: Tensor, maskable: Tensor, t: Tensor, mask_id: int) -> float:
    """Paper Eq. 3 with three loops over Python floats."""
    total, supervised = 0.0, 0
    for b in range(x0.shape[0]):
        for i in range(x0.shape[1]):
            supervised += bool(maskable[b, i])
            if masked[b, i]:
                weights = [math.exp(float(z)) if v != mask_id else 0.0 for v, z in enumerate(logits[b, i])]
                total += -math.log(weights[int(x0[b, i])] / sum(weights)) / float(t[b])
    return total / supervised


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6))
def test_nelbo_equals_a_naive_loop(seed: int, batch: int, length: int) -> None:
    draw, vocab, mask_id = torch.Generator().manual_seed(seed), 7, 3
    logits = torch.randn(batch, length, vocab, generator=draw)
    x0 = torch.randint(4, vocab, (batch, length), generator=draw)
    maskable = torch.rand(batch, length, generator=draw) < 0.8
    maskable[0, 0] = True
    t = torch.rand(batch, generator=draw) * 0.9 + 0.1
    masked = maskable & (torch.rand(batch, length, generator=draw) < t[:, None])
    log_probs = subs_log_probs(logits[masked], mask_id)
    nll = torch.zeros(batch, length)
    nll[masked] = -log_probs.gather(-1, x0[masked][:, None])[:, 0]
    loss = nelbo(nll, t).sum() / maskable.sum()
    assert loss.item() == pytest.approx(naive_nelbo(logits, x0, masked, maskable, t, mask_id), rel=1e-4, abs=1e-6)


def test_mean_log_prob_by_hand() -> None:
    """Row 0: (-1 - 3) / 2 = -2. Row 1: -5 / 1. Row 2 has no position: 0."""
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [-7.0, -8.0, -9.0]])
    mask = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    assert mean_log_prob(log_probs, mask).tolist() == [-2.0, -5.0, 0.0]


def test_mean_log_prob_of_an_empty_row_has_a_finite_gradient() -> None:
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    mean_log_prob(log_probs, torch.tensor([[False, False]])).sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[0.0, 0.0]]


def test_r2ft_by_hand() -> None:
    """Two rows, beta 1, margin 0, gamma 0.1.

    Row 0, lp_w = -1, lp_l = -2: -log s(1) = ln(1 + e^-1) = 0.313262, + 0.1 x 1 = 0.413262.
    Row 1, lp_w = -3, lp_l = -0.5: -log s(-2.5) = ln(1 + e^2.5) = 2.578890, + 0.1 x 3 = 2.878890.
    """
    rows = r2ft_loss(torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -0.5]), **PLAIN)
    assert rows.tolist() == pytest.approx([0.413262, 2.878890], abs=5e-7)


def test_r2ft_by_hand_with_every_number_set() -> None:
    """lp_w = -1, lp_l = -2, beta_w = 2, beta_l = 0.5, margin 0.25, gamma 0.3: the preference's argument is
    2 x -1 - 0.5 x -2 - 0.25 = -1.25, ln(1 + e^1.25) = 1.501929, and 0.3 x 1 more is 1.801929."""
    loss = r2ft_loss(torch.tensor([-1.0]), torch.tensor([-2.0]), beta_w=2.0, beta_l=0.5, margin=0.25, gamma=0.3)
    assert loss.item() == pytest.approx(1.801929, abs=5e-7)


log_prob = st.floats(-20, 0)
beta = st.floats(0, 3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(log_prob, log_prob), min_size=1, max_size=5), beta, beta, st.floats(-2, 2), st.floats(0, 1))
def test_r2ft_gradient_is_equation_6(
    pairs: list[tuple[float, float]], beta_w: float, beta_l: float, margin: float, gamma: float
) -> None:
    """d/d lp_w = -(beta_w f + gamma), d/d lp_l = beta_l f, f = s(-(beta_w lp_w - beta_l lp_l - margin))."""
    chosen = torch.tensor([w for w, _ in pairs], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([l for _, l in pairs], dtype=torch.float64, requires_grad=True)
    r2ft_loss(chosen, rejected, beta_w=beta_w, beta_l=beta_l, margin=margin, gamma=gamma).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    for (w, l), grad_w, grad_l in zip(pairs, chosen.grad.tolist(), rejected.grad.tolist(), strict=True):
        factor = 1 / (1 + math.exp(beta_w * w - beta_l * l - margin))
        assert grad_w == pytest.approx(-(beta_w * factor + gamma), rel=1e-9, abs=1e-12)
        assert grad_l == pytest.approx(beta_l * factor, rel=1e-9, abs=1e-12)


def gradients(lp_w: float, lp_l: float) -> tuple[float, float, float]:
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (lp_w, lp_l))
    loss = r2ft_loss(chosen, rejected, **PLAIN)
    loss.backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    return loss.item(), chosen.grad.item(), rejected.grad.item()


def test_an_unlikely_negative_is_ignored() -> None:
    """lp_l = -60: the factor is s(-59) < 1e-25, only gamma pulls at the chosen side."""
    loss, grad_w, grad_l = gradients(-1.0, -60.0)
    assert abs(grad_l) < 1e-20
    assert grad_w == pytest.approx(-0.1, abs=1e-6)
    assert loss == pytest.approx(0.1, abs=1e-6)


def test_a_negative_far_likelier_than_the_truth_gets_the_whole_gradient_and_stays_finite() -> None:
    """lp_w = -200, lp_l = 0: the factor is 1, the loss 200 + 0.1 x 200 = 220; exp(200) would overflow float32."""
    loss, grad_w, grad_l = gradients(-200.0, 0.0)
    assert (loss, grad_w, grad_l) == pytest.approx((220.0, -1.1, 1.0), abs=1e-4)


def test_equal_sides_start_at_ln_2() -> None:
    """lp_w = lp_l = -0.5: ln 2 + 0.05 = 0.743147; both sides feel one half."""
    assert gradients(-0.5, -0.5) == pytest.approx((0.743147, -0.6, 0.5), abs=5e-7)
