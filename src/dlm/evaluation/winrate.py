"""Win rates against a baseline, plain and controlled for length, from pairwise preferences (docs/method.md §6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Vector = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Rate:
    """A win rate in percent, and its standard error."""

    percent: float
    standard_error: float


def win_rate(preferences: Sequence[float] | np.ndarray) -> Rate:
    """The mean preference, and its standard error over prompts.

    Args:
        preferences: in [0, 1], 1 where the model's answer was preferred, 0.5 for a tie.

    Raises:
        ValueError: no preference, or one outside [0, 1].
    """
    p = _preferences(preferences)
    error = float(p.std(ddof=1) / np.sqrt(len(p))) if len(p) > 1 else 0.0
    return Rate(100 * float(p.mean()), 100 * error)


def length_controlled_win_rate(
    preferences: Sequence[float] | np.ndarray,
    length_model: Sequence[float] | np.ndarray,
    length_baseline: Sequence[float] | np.ndarray,
    difficulty: Sequence[float] | np.ndarray | None = None,
) -> float:
    """`length_controlled` without its standard error: the win rate in percent were both answers equally long."""
    return length_controlled(preferences, length_model, length_baseline, difficulty).percent


def length_controlled(
    preferences: Sequence[float] | np.ndarray,
    length_model: Sequence[float] | np.ndarray,
    length_baseline: Sequence[float] | np.ndarray,
    difficulty: Sequence[float] | np.ndarray | None = None,
) -> Rate:
    """The win rate, had both answers been equally long (Dubois et al. 2024, AlpacaEval's length-controlled win rate).

    A logistic model of the preference, logit p = θ + φ·tanh(Δ / sd(Δ)) + ψ·difficulty with Δ the difference of the
    lengths, is fitted by maximum likelihood; the score is the mean p over the prompts with the length term set to zero.
    A preference between 0 and 1 counts as that share of a win and the rest of a loss. Without the rows of other models
    that the official package adds, and without a penalty: the two agree in rank rather than in digits.

    Args:
        preferences: in [0, 1], one for each prompt.
        length_model: of the model's answers, in any one unit (characters, tokens).
        length_baseline: of the baseline's, in the same unit.
        difficulty: of the prompts, on any scale; None leaves the term out.

    Returns:
        The score, with a standard error that holds for preferences other than 0 and 1, too (the sandwich estimator,
        and the spread of p over the prompts).

    Raises:
        ValueError: no preference, one outside [0, 1], or lists of different lengths.
    """
    p = _preferences(preferences)
    columns = [np.asarray(values, dtype=np.float64) for values in (length_model, length_baseline)]
    if difficulty is not None:
        columns.append(np.asarray(difficulty, dtype=np.float64))
    if any(len(column) != len(p) for column in columns):
        raise ValueError(f"preferences, lengths and difficulty must be equally many, got {len(p)} and others")
    gap = columns[0] - columns[1]
    spread = gap.std()
    controls = [np.tanh(gap / spread)] if spread > 0 else []
    kept = columns[2:] if difficulty is not None and columns[2].std() > 0 else []
    design = np.column_stack([np.ones_like(p), *controls, *kept])
    if p.min() == p.max():  # nothing to explain: every term but θ is free
        return win_rate(p)
    weights = _fit(design, p)
    even = design.copy()
    even[:, 1 : 1 + len(controls)] = 0.0
    fitted_p, even_p = (1 / (1 + np.exp(-matrix @ weights)) for matrix in (design, even))
    # Sandwich: H^-1 (Σ g g') H^-1, with the scores' gradients g of the log-likelihood.
    gradients = design * (p - fitted_p)[:, None]
    inverse = np.linalg.pinv(design.T @ (design * (fitted_p * (1 - fitted_p))[:, None]))
    slope = (even * (even_p * (1 - even_p))[:, None]).mean(axis=0)
    variance = slope @ inverse @ (gradients.T @ gradients) @ inverse @ slope + even_p.var() / len(p)
    return Rate(100 * float(even_p.mean()), 100 * float(np.sqrt(variance)))


def _fit(design: Float[np.ndarray, "n terms"], p: Vector) -> Float[np.ndarray, " terms"]:
    """Maximum likelihood: each prompt is a win with weight p and a loss with weight 1 - p."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, fit_intercept=False, max_iter=10_000, tol=1e-10)
    both = np.concatenate([design, design])
    labels = np.concatenate([np.ones(len(p)), np.zeros(len(p))])
    shares = np.concatenate([p, 1 - p])
    model.fit(both, labels, sample_weight=shares)
    weights: np.ndarray = model.coef_[0]
    return weights


def _preferences(values: Sequence[float] | np.ndarray) -> Vector:
    p = np.asarray(values, dtype=np.float64)
    if not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("preferences must be numbers between 0 and 1, at least one of them")
    return p
