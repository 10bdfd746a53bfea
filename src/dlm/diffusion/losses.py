"""Training objectives on log-probabilities: pure functions of tensors."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def subs_log_probs(logits: Float[Tensor, "... vocab"], mask_id: int) -> Float[Tensor, "... vocab"]:
    """SUBS parameterisation (MDLM): the mask token never gets probability. Computed in float32."""
    logits = logits.float()
    barred = torch.zeros(logits.shape[-1], device=logits.device)
    barred[mask_id] = float("-inf")
    return torch.log_softmax(logits + barred, dim=-1)


def token_log_probs(
    logits: Float[Tensor, "n vocab"], ids: Int[Tensor, "n some"], mask_id: int
) -> Float[Tensor, "n some"]:
    """log p of some tokens at every position (SUBS)."""
    return subs_log_probs(logits, mask_id).gather(-1, ids)


def nelbo(token_nll: Float[Tensor, "batch length"], t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Each row's negative ELBO in nats (paper Eq. 3): (1/t) Σ_masked -log p(x0_i | x_t).

    Args:
        token_nll: -log p of the true token where x_t is masked, 0 elsewhere.
        t: the rows' times.
    """
    return token_nll.sum(-1) / t


def token_scores(
    logits: Float[Tensor, "n vocab"], ids: Int[Tensor, " n"], mask_id: int, offset: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Of logits z, read as log p̂_y = z_y - offset (the mask excluded): the softmax's log p at `ids`, and log Σ_y p̂_y,
    which is 0 where the network's scores are normalised. Computed in float32."""
    logits = logits.float()
    barred = torch.zeros(logits.shape[-1], device=logits.device)
    barred[mask_id] = float("-inf")
    log_total = torch.logsumexp(logits + barred, dim=-1)
    return logits.gather(-1, ids[:, None])[:, 0] - log_total, log_total - offset


def score_entropy(log_p: Float[Tensor, "*n"], log_total: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """SEDD's denoising score entropy at masked positions, weighted as a likelihood bound (arXiv 2310.16834), times t.

    There the network gives scores s_y, estimates of p_t(x with y at i) / p_t(x with [MASK] at i), and a position costs
    σ'(t)·[Σ_y s_y - r·log s_x0 + r·(log r - 1)], r = 1 / (e^σ - 1). The true score is r·p(y | x_t): only r has to do
    with time (RADD, arXiv 2406.03736), so a network that does not see t gives p̂ = s / r (SEDD's `scale_by_sigma`), and
    nothing holds Σ p̂ to 1. With σ'·r = 1 / t, whatever the ε of the log-linear σ = -log(1 - (1 - ε)t), the cost is
    (1/t)·[Σ p̂ - 1 - log p̂_x0] = (1/t)·[-log p_x0 + (T - 1 - log T)], T = Σ p̂ and p = p̂ / T: the NELBO's term, and
    a penalty for T that is 0 at T = 1 alone.

    Args:
        log_p, log_total: of `token_scores`: log p_x0 and log T.
    """
    return torch.expm1(log_total) - log_total - log_p


def over_canvas(values: Float[Tensor, " n"], where: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
    """The values of the True positions of `where` in their places, 0 elsewhere."""
    canvas = torch.zeros(where.shape, dtype=values.dtype, device=values.device)
    canvas[where] = values
    return canvas


def mean_log_prob(
    log_probs: Float[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, " batch"]:
    """Mean of `log_probs` over `mask`, row by row; a row without any position gives 0."""
    return (log_probs * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def r2ft_loss(
    chosen: Float[Tensor, " batch"],
    rejected: Float[Tensor, " batch"],
    *,
    beta_w: float,
    beta_l: float,
    margin: float,
    gamma: float,
) -> Float[Tensor, " batch"]:
    """Rejective fine-tuning (paper Eq. 5), row by row: -log σ(β_w·lp_w - β_l·lp_l - margin) - γ·lp_w.

    Args:
        chosen: lp_w, the mean log-probability of the true continuation over its masked positions.
        rejected: lp_l, that of the repetitive continuation; both from one forward pass on the same x_t.

    The gradient carries the factor σ(-(β_w·lp_w - β_l·lp_l - margin)) (Eq. 6): a negative that is already unlikely is
    ignored by itself.
    """
    preference = -F.logsigmoid(beta_w * chosen - beta_l * rejected - margin)
    return preference - gamma * chosen
