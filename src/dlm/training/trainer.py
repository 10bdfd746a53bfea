"""transformers' Trainer with what our objectives share: a loss over the global batch, and held-out figures."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalPrediction

from dlm.diffusion.losses import token_log_probs
from dlm.models.adapters import unwrapped
from dlm.models.compiled import compile_layers, restore_layers
from dlm.models.interface import head, states
from dlm.training.collators import Row, WholeSteps


def logits_at(model: PreTrainedModel, ids: Tensor, where: Tensor, attention: Tensor | None = None) -> Tensor:
    """Logits [positions, V] at the True positions of `where` alone: the head runs nowhere else."""
    return head(model)(states(model, ids, attention)[where])


class OursTrainer(Trainer, ABC):
    """Common to our objectives: a loss over the whole global batch, and held-out figures over whole rows.

    The loss is Σ_rows loss / Σ_rows weight, both sums over all micro-batches and processes of a step.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, *, model: nn.Module, data_collator: Callable[..., Any], compile: bool = False, **rest: Any
    ) -> None:
        """With `compile` the model's layers and the loss over the vocabulary go through torch.compile (up to rounding
        the same). `release` gives the model back as it was."""
        # What wraps a model to spread it (DDP, FSDP) acts when the whole model is called: so that is our forward pass.
        inner = unwrapped(model)
        inner.forward = functools.partial(logits_at, inner)  # type: ignore[method-assign]
        self.token_log_probs = token_log_probs
        if compile:
            compile_layers(inner)
            self.token_log_probs = torch.compile(token_log_probs, dynamic=True)
        super().__init__(
            model=model, data_collator=_keeping_places(data_collator), compute_metrics=self._summary, **rest
        )
        self._micro: tuple[int, int] = (-1, 0)
        self._figures: list[str] = []

    @abstractmethod
    def figures(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The rows' "loss" [batch], and whatever else is worth reporting on held-out rows, each [batch]."""

    @abstractmethod
    def weight(self, inputs: dict[str, Any]) -> Tensor:
        """What each row's loss is a sum over [batch]."""

    def cropped(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches of a step as they are to be trained on."""
        return batches

    def _get_train_sampler(self, train_dataset: Any = None) -> WholeSteps:
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return WholeSteps(len(self.train_dataset), step, args.seed)  # type: ignore[arg-type]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        self.args.dataloader_drop_last = False  # training drops a partial batch, evaluation drops nothing
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self.cropped(batches) if batches else batches
        total = sum(self.weight(batch).sum() for batch in batches)
        return batches, self.accelerator.gather(total).sum().clamp(min=1) if batches else None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        total = self.weight(inputs).sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over the processes, and so is the loss that is logged.
        return self.figures(model, inputs)["loss"].sum() * self.args.world_size / total

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            figures = self.figures(model, inputs)
        self._figures = list(figures)
        return None, torch.stack([value.float() for value in figures.values()], dim=-1), self.weight(inputs)

    def _summary(self, evaluated: EvalPrediction) -> dict[str, float]:
        rows: Any = evaluated.predictions
        rows = dict(zip(self._figures, rows.astype("float64").T, strict=True))
        loss = float(rows.pop("loss").sum() / evaluated.label_ids.sum())  # type: ignore[union-attr]
        return {"loss": loss, **{name: float(values.mean()) for name, values in rows.items()}}

    @staticmethod
    def to_device(drawn: Tensor, device: torch.device) -> Tensor:
        """A copy that a GPU's queue takes in its turn: the host does not wait for what stands before it."""
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)

    def places(self, inputs: dict[str, Any]) -> tuple[Tensor, int, str, int]:
        """Where the rows stand in their global batch [batch] and its size; what is drawn for, and its number."""
        batch = len(inputs["x0"])
        if "place" in inputs:
            return inputs["place"], len(self.eval_dataset), "eval", 0  # type: ignore[arg-type]
        step = self.state.global_step
        micro = self._micro[1] + 1 if self._micro[0] == step else 0
        self._micro = (step, micro)
        first = (micro * self.args.world_size + self.args.process_index) * batch
        total = batch * self.args.gradient_accumulation_steps * self.args.world_size
        return torch.arange(first, first + batch), total, "train", step


def release(model: nn.Module) -> None:
    """Take off a model what its trainer put on it: a forward pass before the class's, and compiled layers."""
    for part in (model, unwrapped(model)):
        part.__dict__.pop("forward", None)
        restore_layers(part)


def _keeping_places(collate: Callable[[list[Row]], dict[str, Tensor]]) -> Callable[[list[Row]], dict[str, Tensor]]:
    """Held-out rows carry their place (`fit`); what they are beside it is the collator's business."""

    def collated(rows: list[Row]) -> dict[str, Tensor]:
        batch = collate(rows)
        if "place" in rows[0]:
            batch["place"] = torch.tensor([row["place"] for row in rows])
        return batch

    return collated
