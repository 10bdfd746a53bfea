"""torch.compile and CUDA graphs for a backbone: static shapes, and few of them."""

import os
import shutil
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from dlm.errors import UserError
from dlm.models.interface import backbone, inputs

MODES = {"default": None, "cuda_graphs": "reduce-overhead"}
LENGTHS = 64  # canvases are padded to a multiple of it
SHAPES = 128  # torch stops compiling after 8 shapes unless told otherwise


class Compiled:
    """A backbone behind torch.compile, one compiled graph for each shape.

    Shapes are static: rows are padded to 1, 2, 3, 4, 6, 8, 12, 16, 24, ... and positions to a multiple of 64, hidden
    by the attention mask. States are those of the backbone up to rounding.
    """

    def __init__(self, model: PreTrainedModel, mode: str) -> None:
        """Raises UserError: an unknown mode, CUDA graphs without a GPU, or no C++ compiler for a CPU."""
        device = model.device
        if mode not in MODES:
            raise UserError(f"compile must be none, default or cuda_graphs, got {mode!r}")
        if mode == "cuda_graphs" and device.type != "cuda":
            raise UserError(f"compile: cuda_graphs needs a GPU, the model is on {device.type}; use default or none")
        compilers = [os.environ.get("CXX") or "g++", "clang++"]
        if device.type == "cpu" and not any(map(shutil.which, compilers)):
            raise UserError(f"compile: default needs a C++ compiler on a CPU ({' or '.join(compilers)}); install one")
        dynamo: Any = torch._dynamo
        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, SHAPES)
        self._run = torch.compile(backbone(model), mode=MODES[mode], dynamic=False)
        self._model = model

    def __call__(
        self,
        tokens: Int[Tensor, "batch length"],
        shown: Bool[Tensor, "batch length"] | None,
        positions: Int[Tensor, "batch length"] | None,
    ) -> Float[Tensor, "batch length width"]:
        """The backbone's final hidden states, in memory of their own: a graph's is written again by its next run."""
        batch, length = tokens.shape
        shown = torch.ones_like(tokens, dtype=torch.bool) if shown is None else shown
        positions = torch.arange(length, device=tokens.device).expand_as(tokens) if positions is None else positions
        rows, columns = static_shape(batch, length, self._model.config.max_position_embeddings)
        padding = (0, columns - length, 0, rows - batch)
        shown = F.pad(shown, padding)
        shown[batch:, 0] = True  # a row without any position has no softmax
        given = inputs(self._model, F.pad(tokens, padding), shown, F.pad(positions, padding))
        states: Tensor = self._run(**given).last_hidden_state
        return states[:batch, :length].clone()


def static_shape(batch: int, length: int, max_length: int) -> tuple[int, int]:
    """The padded numbers of rows and positions."""
    power = 1 << (batch - 1).bit_length()
    rows = power * 3 // 4 if power >= 4 and batch <= power * 3 // 4 else power
    return rows, max(min(-(-length // LENGTHS) * LENGTHS, max_length), length)
