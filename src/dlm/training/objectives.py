"""The objectives of diffusion: pretraining and SFT, the same by score entropy (SEDD), and R2FT.

Noise is drawn for each row from (seed, global step, its place in the global batch), never from global state. So a
resumed run sees the noise of an undisturbed one, and how a global batch is cut into micro-batches and spread over
processes changes nothing but rounding.
"""

import hashlib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlm.config.training import R2ftParams
from dlm.diffusion.forward import annealed, antithetic_t, mask_suffix, mask_tokens, row_draws
from dlm.diffusion.losses import (
    mean_log_prob,
    nelbo,
    over_canvas,
    r2ft_loss,
    score_entropy,
    subs_log_probs,
    token_scores,
)
from dlm.training.trainer import OursTrainer


def step_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def crop_length(length: int, share: float, seed: int, step: int) -> int:
    """The length that canvases are cut to at a step: `length`, or with probability `share` one of 1 to `length`."""
    chosen, cut = torch.rand(2, generator=torch.Generator().manual_seed(step_seed(seed, "crop", step))).tolist()
    return 1 + int(cut * length) if chosen < share else length


class DiffusionTrainer(OursTrainer):
    """NELBO per counted token of {x0, maskable, counts} (paper Eq. 3), for pretraining, adaptation and SFT.

    `maskable` says which positions may be masked, `counts` how much each masked one weighs in the loss.

    Args:
        suffix_share: share of the training rows that are masked by `mask_suffix` instead; needs `eos_id`.
        crop_share: share of the steps whose canvases are cut to a length drawn from 1 to their own (LLaDA's
            pretraining); all rows of such a global batch to the same.
        anneal_steps: steps over which causal attention becomes full (`annealed`); held-out rows are always scored
            with full attention.
        average: token: each counted token of a global batch weighs the same; example: each row does, whose own mean
            over its counted tokens enters.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        suffix_share: float = 0.0,
        eos_id: int = -1,
        crop_share: float = 0.0,
        anneal_steps: int = 0,
        average: Literal["token", "example"] = "token",
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.mask_id, self.suffix_share, self.eos_id, self.crop_share = mask_id, suffix_share, eos_id, crop_share
        self.anneal_steps, self.average = anneal_steps, average

    def cropped(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        length = crop_length(batches[0]["x0"].shape[1], self.crop_share, self.args.seed, self.state.global_step)
        return [{name: values[:, :length] for name, values in batch.items()} for batch in batches]

    def row_weights(self, inputs: dict[str, Any]) -> Tensor:
        counted: Tensor = inputs["counts"].sum(-1)
        return (counted > 0).float() if self.average == "example" else counted

    def row_values(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        x0, maskable, counts = inputs["x0"], inputs["maskable"], inputs["counts"]
        places, total, kind, number = self.places(inputs)
        seed, length = self.args.seed, x0.shape[1]
        t = antithetic_t(places.cpu(), total, torch.Generator().manual_seed(step_seed(seed, kind, number)))
        draws = row_draws([step_seed(seed, kind, number, place) for place in places.tolist()], length + 2)
        t, draws = (self.to_device(drawn, x0.device) for drawn in (t, draws))
        xt, masked = mask_tokens(x0, t, maskable, self.mask_id, draws[:, :length])
        scored = masked & (counts > 0)
        if self.suffix_share and kind == "train":
            after_cut, counted = mask_suffix(x0, maskable, self.eos_id, draws[:, length])
            chosen = (draws[:, length + 1] < self.suffix_share)[:, None]
            xt = torch.where(chosen, torch.where(after_cut, self.mask_id, x0), xt)
            scored = torch.where(chosen, counted, scored)
            # A cut row's loss is a mean over what counts, at the scale of the NELBO's rows.
            t = torch.where(chosen[:, 0], counted.sum(-1) / maskable.sum(-1), t)
        attention = None
        if kind == "train" and number < self.anneal_steps:
            draw = row_draws([step_seed(seed, "anneal", number)], length * length).view(length, length)
            attention = annealed(self.to_device(draw, x0.device), number / self.anneal_steps)
        token_values = self.token_values(model(xt, scored, attention), x0[scored])
        loss = self.averaged(nelbo(over_canvas(token_values.pop("loss"), scored) * counts, t), counts)
        reported = {} if model.training else token_values
        return {"loss": loss} | {name: mean_log_prob(over_canvas(v, scored), scored) for name, v in reported.items()}

    def averaged(self, loss: Tensor, counts: Tensor) -> Tensor:
        """The rows' losses [batch] as `average` has them: sums, or means over what counts."""
        # A row that counts nothing (a crop in its prompt) has loss 0.
        return loss / counts.sum(-1).clamp(min=1) if self.average == "example" else loss

    def token_values(self, logits: Tensor, x0: Tensor) -> dict[str, Tensor]:
        """The "loss" of each scored position, times t, and what else is reported of held-out rows, each [positions]."""
        return {"loss": -self.token_log_probs(logits, x0[:, None], self.mask_id)[:, 0]}


class ScoreEntropyTrainer(DiffusionTrainer):
    """SEDD's objective in place of the NELBO (`score_entropy`); all else is as in `DiffusionTrainer`.

    Evaluation also reports what a position costs on average, all times alike: the NELBO's part, -log p, and the penalty
    T - 1 - log T, which a softmax has not; and log T.

    Args:
        offset: what the logits exceed log p̂ by (`training.scores.normalising_offset`).
    """

    def __init__(self, *, offset: float, **rest: Any) -> None:
        super().__init__(**rest)
        self.offset = offset

    def token_values(self, logits: Tensor, x0: Tensor) -> dict[str, Tensor]:
        log_p, log_total = token_scores(logits, x0, self.mask_id, self.offset)
        loss = score_entropy(log_p, log_total)
        return {"loss": loss, "nll": -log_p, "penalty": loss + log_p, "log_total": log_total}


class R2ftTrainer(OursTrainer):
    """The R2FT objective (paper Eq. 5), mean over the global batch: both sides from one forward pass on x_t.

    Evaluation also reports what the paper watches (Fig. 12): log L_w, log L_l, and the log-prior that a token sampled
    at an open position has on average, Σ_v p(v)·log prior(v).
    """

    def __init__(self, *, mask_id: int, objective: R2ftParams, log_prior: Tensor, **rest: Any) -> None:
        super().__init__(**rest)
        self.mask_id = mask_id
        self.objective: R2ftParams = objective
        self.log_prior = log_prior

    def row_weights(self, inputs: dict[str, Any]) -> Tensor:
        return torch.ones(len(inputs["x0"]), device=inputs["x0"].device)

    def row_values(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        chosen_mask, rejected_mask = inputs["chosen_mask"], inputs["rejected_mask"]
        scored = chosen_mask | rejected_mask
        logits = model(inputs["xt"], scored)
        ids = torch.stack([inputs["x0"][scored], inputs["rejected"][scored]], dim=-1)
        sides = self.token_log_probs(logits, ids, self.mask_id).unbind(-1)
        chosen, rejected = (
            mean_log_prob(over_canvas(side, scored), mask)
            for side, mask in zip(sides, (chosen_mask, rejected_mask), strict=True)
        )
        o = self.objective
        values = {"loss": r2ft_loss(chosen, rejected, beta_w=o.beta_w, beta_l=o.beta_l, margin=o.margin, gamma=o.gamma)}
        if not model.training:
            log_probs = subs_log_probs(logits, self.mask_id)
            prior = over_canvas(log_probs.exp() @ self.log_prior.to(log_probs.device), scored)
            values |= {
                "log_p_chosen": chosen,
                "log_p_rejected": rejected,
                "mean_log_prior": mean_log_prob(prior, scored),
            }
        return values
