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


def nelbo(
    token_nll: Float[Tensor, " masked"],
    row: Int[Tensor, " masked"],
    t: Float[Tensor, " batch"],
    supervised: int,
) -> Float[Tensor, ""]:
    """The negative ELBO per supervised token (paper Eq. 3): Σ_rows (1/t) Σ_masked -log p(x0_i | x_t) / supervised.

    Args:
        token_nll: -log p of the true token at every masked position of the batch.
        row: which row of the batch each of them belongs to.
        t: the rows' times.
        supervised: how many positions of the batch could have been masked.
    """
    return (token_nll / t[row]).sum() / max(supervised, 1)


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
) -> Float[Tensor, ""]:
    """Rejective fine-tuning (paper Eq. 5): -log σ(β_w·lp_w - β_l·lp_l - margin) - γ·lp_w, mean over the batch.

    Args:
        chosen: lp_w, the mean log-probability of the true continuation over its masked positions.
        rejected: lp_l, that of the repetitive continuation; both from one forward pass on the same x_t.

    The gradient carries the factor σ(-(β_w·lp_w - β_l·lp_l - margin)) (Eq. 6): a negative that is already unlikely is
    ignored by itself.
    """
    preference = -F.logsigmoid(beta_w * chosen - beta_l * rejected - margin)
    return (preference - gamma * chosen).mean()
