"""How near a cell's answers lie to real ones as a whole: MAUVE (Pillutla et al. 2021) on the reference's states.

MAUVE's own package has had no release since 2024 and wants faiss; this is its definition on scikit-learn. What differs:
an answer's features are the mean over its tokens of the states of the pipeline's own reference, not the last state of
GPT-2 large. So figures compare within one pipeline alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from dlm.data.tokenizer import before_eos
from dlm.evaluation.scoring.perplexity import padded
from dlm.models.precision import autocast

SCALE = 5.0  # of the divergences, as in the paper
POINTS = 25  # on the frontier
EXPLAINED = 0.9  # variance that the principal components keep


@torch.no_grad()
def response_features(
    model: nn.Module, prompts: list[list[int]], responses: list[list[int]], eos_id: int, batch_size: int = 50
) -> Float[np.ndarray, "n width"]:
    """Mean over each response's content tokens of the causal model's final states; zeros for an empty response."""
    contents = [before_eos(response, eos_id) for response in responses]
    model.eval()
    features = []
    for start in range(0, len(contents), batch_size):
        asked, said = prompts[start : start + batch_size], contents[start : start + batch_size]
        input_ids, attention_mask = padded(asked, said, eos_id, next(model.parameters()).device)
        with autocast(model):
            output = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=False,
                output_hidden_states=True,
                logits_to_keep=1,
            )
        for row, (prompt, content) in enumerate(zip(asked, said, strict=True)):
            states = output.hidden_states[-1][row, len(prompt) : len(prompt) + len(content)].float()
            features.append(states.sum(0) / max(len(content), 1))
    return torch.stack(features).cpu().numpy()


def buckets(
    ours: Float[np.ndarray, "ours width"], real: Float[np.ndarray, "real width"], seed: int
) -> tuple[Int[np.ndarray, " ours"], Int[np.ndarray, " real"], int]:
    """The cluster of every answer of both sides, by k-means on all of them, and k: a tenth of the smaller side."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    both = np.concatenate([ours, real]).astype(np.float64)
    both = PCA(n_components=EXPLAINED, svd_solver="full", random_state=seed).fit_transform(both)
    count = max(min(len(ours), len(real)) // 10, 2)
    labels = KMeans(n_clusters=count, n_init=5, random_state=seed).fit_predict(both)
    return labels[: len(ours)], labels[len(ours) :], count


def mauve(ours: Sequence[int] | np.ndarray, real: Sequence[int] | np.ndarray, count: int) -> float:
    """The area under the divergence frontier of two sets of cluster numbers below `count`, in (0, 1].

    The frontier's points are (exp(-c·KL(Q‖R)), exp(-c·KL(P‖R))) for the mixtures R = λP + (1 - λ)Q, with (1, 0) and
    (0, 1); 1 means the same distribution. Half a count is added to every cluster (Krichevsky-Trofimov), so that a
    cluster that one side never reaches stays finite.
    """
    p, q = ((np.bincount(side, minlength=count) + 0.5) / (len(side) + count / 2) for side in (ours, real))
    mixtures = [weight * p + (1 - weight) * q for weight in np.linspace(0.01, 0.99, POINTS)]
    points = [(np.exp(-SCALE * _kl(q, r)), np.exp(-SCALE * _kl(p, r))) for r in mixtures]
    x, y = np.array([(1.0, 0.0), *sorted(points, reverse=True), (0.0, 1.0)]).T
    return float(np.trapezoid(x, y))


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * np.log(p / q)))
