"""transformers' Trainer with what our objectives share: a loss over the global batch, and means over held-out rows."""

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
from dlm.models.interface import doubled_states, head, states
from dlm.training.collators import Row, WholeSteps


def logits_at(
    model: PreTrainedModel,
    ids: Tensor,
    where: Tensor,
    attention: Tensor | None = None,
    *,
    clean: Tensor | None = None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Logits [positions, V] at the True positions of `where` alone: the head runs nowhere else.

    With `clean` and `blocks` (both [batch, length]) those of block diffusion: each noised block of `ids` stands behind
    clean ones.
    """
    if clean is not None and blocks is not None:
        return head(model)(doubled_states(model, ids, clean, blocks)[where])
    return head(model)(states(model, ids, attention)[where])


class OursTrainer(Trainer, ABC):
    """Common to our objectives: a loss over the whole global batch, and means over held-out rows.

    The loss is Σ row loss / Σ row weight, both sums over all micro-batches and processes of a step.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, *, model: nn.Module, data_collator: Callable[..., Any], compile: bool = False, **rest: Any
    ) -> None:
        """With `compile` the model's layers and the loss over the vocabulary go through torch.compile (up to rounding
        the same). `release` gives the model back as it was."""
        # DDP and FSDP act when the whole model is called, so our forward pass has to be the model's own.
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
        self._value_names: list[str] = []

    @abstractmethod
    def row_values(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The rows' "loss" [batch], and what else is reported of held-out rows, each [batch]."""

    @abstractmethod
    def row_weights(self, inputs: dict[str, Any]) -> Tensor:
        """What each row counts in the mean [batch]: the weights of its scored tokens together, or 1."""

    def cropped(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches that are trained on in place of a step's."""
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
        total = sum(self.row_weights(batch).sum() for batch in batches)
        return batches, self.accelerator.gather(total).sum().clamp(min=1) if batches else None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        total = self.row_weights(inputs).sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over the processes, and so is the loss that is logged.
        return self.row_values(model, inputs)["loss"].sum() * self.args.world_size / total

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            values = self.row_values(model, inputs)
        self._value_names = list(values)
        return None, torch.stack([value.float() for value in values.values()], dim=-1), self.row_weights(inputs)

    def _summary(self, evaluated: EvalPrediction) -> dict[str, float]:
        predictions: Any = evaluated.predictions
        by_name = dict(zip(self._value_names, predictions.astype("float64").T, strict=True))
        loss = float(by_name.pop("loss").sum() / evaluated.label_ids.sum())  # type: ignore[union-attr]
        return {"loss": loss, **{name: float(values.mean()) for name, values in by_name.items()}}

    @staticmethod
    def to_device(drawn: Tensor, device: torch.device) -> Tensor:
        """A copy on the device. From pinned memory, so that the host need not wait for a GPU's earlier work."""
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)

    def places(self, inputs: dict[str, Any]) -> tuple[Tensor, int, str, int]:
        """The rows' places in their global batch [batch]; its size; "train" and the step's number, or "eval" and 0."""
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
    """Give a model back its own forward pass and layers, in place of its trainer's."""
    for part in (model, unwrapped(model)):
        part.__dict__.pop("forward", None)
        restore_layers(part)


def _keeping_places(collate: Callable[[list[Row]], dict[str, Tensor]]) -> Callable[[list[Row]], dict[str, Tensor]]:
    """`collate`, with the places of held-out rows (set by `fit`) added to the batch."""

    def collated(rows: list[Row]) -> dict[str, Tensor]:
        batch = collate(rows)
        if "place" in rows[0]:
            batch["place"] = torch.tensor([row["place"] for row in rows])
        return batch

    return collated
