"""How much is committed, and how much is masked again, at each step: rates of the reverse process."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Rates:
    """One step from t to s = t - dt (time runs from 1 to 0, dt = 1 / steps).

    Attributes:
        move, stay: a mask becomes a token or stays, in this proportion (Eq. 4: t - s to s).
        revoke: probability that a committed token is masked again (ReMDM's σ_t).
        steps_left: this step included.
        gap: the mean of `Candidates.gap` from which a row's open positions commit at once (`commit.prophet`).
        share: of a row's masks that a rule which ranks commits, rounded down; None for ceil(masks / steps left).
    """

    move: float
    stay: float
    steps_left: int
    revoke: float = 0.0
    share: float | None = None
    gap: float = math.inf


Schedule = Callable[[int, int], Rates]


def log_linear(step: int, steps: int) -> Rates:
    """α_t = 1 - t (docs/method.md §1): move : stay = t - s : s, here in units of dt."""
    return Rates(1.0, float(steps - step - 1), steps - step)


def dream(step: int, steps: int) -> Rates:
    """Dream's share 1 - s/t, of times from 1 to 1e-3 (float32, as there); everything at the last step."""
    plain = log_linear(step, steps)
    t, s = torch.linspace(1, 1e-3, steps + 1)[step : step + 2]
    return replace(plain, share=float(1 - s / t) if plain.stay else 1.0)


def overall(step: int, steps: int) -> Rates:
    """P2's κ_t (arXiv 2502.03540), log-linear: tokens to masks as 1 - s to s, of all positions, not of the masks."""
    return Rates(float(step + 1), float(steps - step - 1), steps - step)


def prophet(early: float, middle: float, late: float) -> Schedule:
    """Prophet's stages (arXiv 2508.19982): the later, the nearer the second token may be.

    Of all steps, this one counted, the share done is below 0.33 (`early`), below 0.67 (`middle`), or not (`late`).
    """

    def schedule(step: int, steps: int) -> Rates:
        done = (step + 1) / steps
        return replace(log_linear(step, steps), gap=early if done < 0.33 else middle if done < 0.67 else late)

    return schedule


def remdm_cap(eta: float) -> Schedule:
    """ReMDM-cap (arXiv 2503.00307): σ_t = min(η, σ_max), σ_max = min(1, (1 - α_s) / α_t)."""
    return _strategy(lambda sigma_max: min(eta, sigma_max))


def remdm_rescale(eta: float) -> Schedule:
    """ReMDM-rescale: σ_t = η·σ_max."""
    return _strategy(lambda sigma_max: eta * sigma_max)


def remdm_conf(step: int, steps: int) -> Rates:
    """ReMDM-conf: σ_max, shared out among the committed positions (`revoke.by_confidence`); masks move as without."""
    plain, sigma_max = log_linear(step, steps), _sigma_max(step, steps)
    return Rates(plain.move, plain.stay, plain.steps_left, sigma_max if plain.stay else 0.0)


def remdm_loop(eta: float, t_on: float, t_off: float, alpha_on: float) -> Schedule:
    """ReMDM-loop: α rises to alpha_on until t_on, stands still with σ = η until t_off, and rises to 1.

    The steps lie evenly in t, so each part gets its share of them. The last step commits all that is left.
    """

    def schedule(step: int, steps: int) -> Rates:
        t, s = (steps - step) / steps, (steps - step - 1) / steps
        if step == steps - 1:
            return Rates(1.0, 0.0, 1)
        if t > t_on:
            alpha_t, alpha_s = ((1 - time) * alpha_on / (1 - t_on) for time in (t, max(s, t_on)))
            return _posterior(alpha_t, alpha_s, 0.0, steps - step)
        if t > t_off:
            return _posterior(alpha_on, alpha_on, eta, steps - step)
        alpha_t, alpha_s = (1 - time * (1 - alpha_on) / t_off for time in (t, s))
        return _posterior(alpha_t, alpha_s, 0.0, steps - step)

    return schedule


def _strategy(sigma: Callable[[float], float]) -> Schedule:
    def schedule(step: int, steps: int) -> Rates:
        t, s = (steps - step) / steps, (steps - step - 1) / steps
        return _posterior(1 - t, 1 - s, sigma(_sigma_max(step, steps)), steps - step)

    return schedule


def _sigma_max(step: int, steps: int) -> float:
    """min(1, (1 - α_s) / α_t) for α_t = 1 - t; 1 at the first step, where α_t = 0."""
    return min(1.0, (steps - step - 1) / step) if step else 1.0


def _posterior(alpha_t: float, alpha_s: float, sigma: float, steps_left: int) -> Rates:
    """q(z_s | z_t, x): a mask moves with α_s - (1 - σ)α_t, stays with 1 - α_s - σα_t; a token is lost with σ."""
    return Rates(alpha_s - (1 - sigma) * alpha_t, max(1 - alpha_s - sigma * alpha_t, 0.0), steps_left, sigma)
