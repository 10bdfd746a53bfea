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
