"""The Trainer's subclasses: only what is ours, the loss on a batch.

Corruption is drawn from a generator seeded by (seed, global step, place in the step), never from global state, so a
resumed run sees the same noise as an undisturbed one.
"""

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlm.blocks import R2ftParams
from dlm.diffusion.forward import antithetic_t, mask_suffix, mask_tokens
from dlm.diffusion.losses import mean_log_prob, nelbo, r2ft_loss, subs_log_probs
from dlm.models.adapters import unwrapped
from dlm.models.interface import head, states
from dlm.training.run import WholeEvaluation


def step_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def logits_at(model: nn.Module, ids: Tensor, where: Tensor) -> Tensor:
    """Logits [positions, V] at the True positions of `where` alone: the head runs nowhere else."""
    inner = unwrapped(model)
    return head(inner)(states(inner, ids)[where])


class OursTrainer(WholeEvaluation):
    """Common to our objectives: where in the global batch this micro-batch stands, and a mean of side metrics."""

    def __init__(self, *args: Any, mask_id: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mask_id = mask_id
        self.model_accepts_loss_kwargs = False  # the Trainer divides by the accumulation steps itself
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        self._micro: tuple[int, int] = (-1, 0)
        self._eval_batch = 0
        self.side: dict[str, list[float]] = {}

    def place(self, batch: int) -> tuple[torch.Generator, int, int]:
        """Generator of this optimizer step, this micro-batch's offset in the global batch, and the global batch."""
        if not self.model.training:  # type: ignore[union-attr]
            self._eval_batch += 1
            return self._generator("eval", self._eval_batch), 0, batch
        step = self.state.global_step
        micro = self._micro[1] + 1 if self._micro[0] == step else 0
        self._micro = (step, micro)
        # The last step of an epoch may have fewer micro-batches.
        total = batch * self.current_gradient_accumulation_steps * self.args.world_size
        offset = (micro * self.args.world_size + self.args.process_index) * batch
        return self._generator("train", step), offset, max(total, offset + batch)

    def _generator(self, kind: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(step_seed(self.args.seed, kind, number))

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        # accelerate puts autocast around the model's forward, which logits_at does not call.
        return torch.autocast(
            self.args.device.type, dtype=torch.bfloat16, enabled=self.args.bf16, cache_enabled=cache_enabled
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._eval_batch = 0
        self.side = {}
        output = super().evaluation_loop(*args, **kwargs)
        for name, values in self.side.items():
            assert output.metrics is not None
            output.metrics[f"eval_{name}"] = sum(values) / len(values)
        return output

    def note(self, **values: Tensor) -> None:
        """Remember side metrics of an evaluation batch; their mean is reported with the loss."""
        for name, value in values.items():
            self.side.setdefault(name, []).append(float(value))

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss: Any = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


class DiffusionTrainer(OursTrainer):
    """NELBO on {x0, maskable} (paper Eq. 3), for pretraining and SFT.

    Args:
        suffix_share: share of the training rows that are masked by `mask_suffix` instead; needs `eos_id`.
    """

    def __init__(self, *args: Any, suffix_share: float = 0.0, eos_id: int = -1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.suffix_share, self.eos_id = suffix_share, eos_id

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        x0, maskable = inputs["x0"], inputs["maskable"]
        generator, offset, total = self.place(len(x0))
        t = antithetic_t(len(x0), offset, total, generator)
        generator.manual_seed(step_seed(self.args.seed, generator.initial_seed(), offset))
        xt, masked = mask_tokens(x0, t, maskable, self.mask_id, generator)
        scored = masked
        if self.suffix_share and model.training:
            after_cut, counted = mask_suffix(x0, maskable, self.eos_id, generator)
            chosen = (torch.rand(len(x0), generator=generator) < self.suffix_share).to(x0.device)[:, None]
            xt = torch.where(chosen, torch.where(after_cut, self.mask_id, x0), xt)
            scored = torch.where(chosen, counted, masked)
            # A cut row's loss is a mean over what counts, at the scale of the NELBO's rows.
            t = torch.where(chosen[:, 0], counted.sum(-1) / maskable.sum(-1), t.to(x0.device))
        log_probs = subs_log_probs(logits_at(model, xt, scored), self.mask_id)
        nll = F.nll_loss(log_probs, x0[scored], reduction="none")
        row = scored.nonzero()[:, 0]
        return nelbo(nll, row, t.to(nll.device), int(maskable.sum()))


class R2ftTrainer(OursTrainer):
    """The R2FT objective (paper Eq. 5): both sides from one forward pass on x_t.

    Evaluation also reports what the paper watches (Fig. 12): log L_w, log L_l, and the log-prior that a token sampled
    at an open position has on average, Σ_v p(v)·log prior(v).
    """

    def __init__(self, *args: Any, objective: R2ftParams, log_prior: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective: R2ftParams = objective
        self.log_prior = log_prior

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        chosen_mask, rejected_mask = inputs["chosen_mask"], inputs["rejected_mask"]
        scored = chosen_mask | rejected_mask
        log_probs = subs_log_probs(logits_at(model, inputs["xt"], scored), self.mask_id)

        def side(ids: Tensor, mask: Tensor) -> Tensor:
            spread = torch.zeros(ids.shape, device=log_probs.device)
            spread[scored] = log_probs.gather(-1, ids[scored][:, None])[:, 0]
            return mean_log_prob(spread, mask)

        chosen = side(inputs["x0"], chosen_mask)
        rejected = side(inputs["rejected"], rejected_mask)
        if not model.training:
            self.note(
                log_p_chosen=chosen.mean(),
                log_p_rejected=rejected.mean(),
                mean_log_prior=(log_probs.exp() @ self.log_prior.to(log_probs.device)).mean(),
            )
        o = self.objective
        return r2ft_loss(chosen, rejected, beta_w=o.beta_w, beta_l=o.beta_l, margin=o.margin, gamma=o.gamma)
