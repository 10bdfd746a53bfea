"""torch.compile and CUDA graphs for a backbone: static shapes, and few of them."""

import os
import shutil
import threading
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlm.errors import UserError
from dlm.models.interface import backbone, inputs, max_length

MODES = ("default", "cuda_graphs")
LENGTHS = 64  # canvases are padded to a multiple of it
SHAPES = 128  # torch stops compiling after 8 shapes unless told otherwise
WARM_UP = 3  # runs before a graph is captured: what they compile and allocate must not be part of it


class Compiled:
    """A backbone behind torch.compile, its repeated layers as one region, for static shapes.

    Shapes are static: rows are padded to 1, 2, 3, 4, 6, 8, 12, 16, 24, ... and positions to a multiple of 64, hidden
    by the attention mask. States are those of the backbone up to rounding.

    With `cuda_graphs` the whole pass is also captured, once for each shape: a small batch then waits for no launches.
    """

    def __init__(self, model: PreTrainedModel, mode: str) -> None:
        """Raises UserError: an unknown mode, CUDA graphs without a GPU, or no C++ compiler for a CPU."""
        device = model.device
        if mode not in MODES:
            raise UserError(f"compile must be none, default or cuda_graphs, got {mode!r}")
        if mode == "cuda_graphs" and device.type != "cuda":
            raise UserError(f"compile: cuda_graphs needs a GPU, the model is on {device.type}; use default or none")
        prepare(device)
        self._model = model
        from accelerate.utils import compile_regions  # a second to import, and no part of the core

        self._run: Any = compile_regions(backbone(model), dynamic=False)
        self._graphs: dict[Any, Graph] | None = None
        self._lock = threading.Lock()  # a graph's tensors are every caller's
        if mode == "cuda_graphs":
            # One pool of memory for all graphs: one runs at a time.
            self._graphs, self._pool = {}, torch.cuda.graph_pool_handle()

    def __call__(
        self,
        tokens: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"] | None,
        positions: Int[Tensor, "batch length"] | None,
    ) -> Float[Tensor, "batch length width"]:
        """The backbone's final hidden states, as a copy: a graph's next run overwrites its output."""
        batch, length = tokens.shape
        rows, columns = static_shape(batch, length, max_length(self._model))
        if attention_mask is None and columns > length:
            attention_mask = torch.ones_like(tokens, dtype=torch.bool)
        padding = (0, columns - length, 0, rows - batch)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, padding)
            attention_mask[batch:, 0] = True  # a row without any position has no softmax
        if positions is not None:
            positions = F.pad(positions, padding)
        given = inputs(self._model, F.pad(tokens, padding), attention_mask, positions)
        if self._graphs is None:
            return self._run(**given).last_hidden_state[:batch, :length].clone()
        with self._lock:
            return self._replayed(given)[:batch, :length].clone()

    def _replayed(self, given: dict[str, Any]) -> Tensor:
        """The states of a graph of this shape, captured where there is none yet."""
        assert self._graphs is not None
        key = tuple((name, tuple(value.shape)) for name, value in given.items() if isinstance(value, Tensor))
        if key not in self._graphs:
            self._graphs[key] = capture(self._run, given, self._pool)
        return self._graphs[key].replay(given)


def compile_layers(model: PreTrainedModel) -> None:
    """Put the repeated layers of a model's backbone behind torch.compile, in place; `restore_layers` takes them back.

    Raises:
        UserError: no C++ compiler for a CPU.
    """
    prepare(model.device)
    for module in backbone(model).modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.compile()


def restore_layers(model: nn.Module) -> None:
    for module in model.modules():
        module._compiled_call_impl = None


def prepare(device: torch.device) -> None:
    """Let torch compile as many shapes as there may be. Raises UserError: no C++ compiler for a CPU."""
    compilers = [os.environ.get("CXX") or "g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(f"compile: a CPU needs a C++ compiler ({' or '.join(compilers)}); install one, or do without")
    dynamo: Any = torch._dynamo
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, SHAPES)


@dataclass(frozen=True)
class Graph:
    """A captured pass.

    Attributes:
        given: the tensors that it reads.
        states: what it writes.
    """

    graph: torch.cuda.CUDAGraph
    given: dict[str, Any]
    states: Tensor

    def replay(self, given: dict[str, Any]) -> Tensor:
        for name, value in given.items():
            if isinstance(value, Tensor):
                self.given[name].copy_(value)
        self.graph.replay()
        return self.states


def capture(run: Any, given: dict[str, Any], pool: Any) -> Graph:
    """Capture `run(**given).last_hidden_state` on tensors of its own."""
    copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in given.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run(**copies)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        states = run(**copies).last_hidden_state
    return Graph(graph, copies, states)


def static_shape(batch: int, length: int, limit: int | None) -> tuple[int, int]:
    """The padded numbers of rows and positions."""
    power = 1 << (batch - 1).bit_length()
    rows = power * 3 // 4 if power >= 4 and batch <= power * 3 // 4 else power
    columns = -(-length // LENGTHS) * LENGTHS
    return rows, columns if limit is None else max(min(columns, limit), length)
