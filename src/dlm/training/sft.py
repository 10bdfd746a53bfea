"""Fine-tuning on the records: what SFT and the other families' stages share, whatever the objective."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast

from dlm.config.params import Params
from dlm.data.splits import read_split
from dlm.data.template import Template
from dlm.models.adapters import unwrapped
from dlm.models.backbone import load_trainable
from dlm.models.interface import pad_cycle
from dlm.training.collators import SftCollator
from dlm.training.fit import fit, save_trained
from dlm.training.objectives import DiffusionTrainer

COLUMNS = ["prompt_ids", "answer_ids"]
Rows = list[dict[str, Any]]
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class FineTuning:
    """The base with its adapters, if any, the records, and what makes canvases of them.

    Attributes:
        settings: of any objective of diffusion: the mask, the collator, and sft's crops and average.
    """

    params: Params
    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    collator: SftCollator
    train: Rows
    valid: Rows

    @classmethod
    def load(cls, build: Path, params: Params, *, answer_only: bool = False) -> "FineTuning":
        """From build/models/base and build/data/training.

        Args:
            answer_only: whether the padding counts nothing, whatever sft.supervise_padding says.
        """
        model, tokenizer = load_trainable(build / "models/base", params.sft.lora, params.seed)
        padding = params.sft.padding_weight if params.sft.supervise_padding and not answer_only else 0.0
        cycle = pad_cycle(unwrapped(model))
        collator = SftCollator(params.data.canvas_length, tokenizer.eos_token_id, padding=padding, cycle=cycle)
        train, valid = (read_split(build / "data/training", split, COLUMNS) for split in ("train", "valid"))
        return cls(params, model, tokenizer, collator, train, valid)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "mask_id": self.tokenizer.mask_token_id,
            "data_collator": self.collator,
            "crop_share": self.params.sft.crop_share,
            "average": self.params.sft.loss_average,
        }

    def fit(self, name: str, objective: Callable[..., DiffusionTrainer], steps: int) -> tuple[nn.Module, Curve]:
        """The trained model and its curve; arguments as of training.fit.fit."""
        return fit(
            name, objective, self.model, self.train, self.valid, self.params.sft.training, self.params.seed, steps=steps
        )

    def save(self, folder: Path, model: nn.Module, curve: Curve, *, merge: bool = True) -> None:
        """Write the trained model with its template, as save_trained."""
        template = Template(self.params.template.prompt, self.params.template.prompt_with_input)
        save_trained(folder, model, self.tokenizer, curve, template, merge=merge)
