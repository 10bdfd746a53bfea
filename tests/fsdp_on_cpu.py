"""Run a script with accelerate's FSDP on a CPU: accelerate itself shards on accelerators only, torch does on gloo too.

Called by tests/test_distributed.py as `... fsdp_on_cpu.py <script> <arguments>`.
"""

import runpy
import sys
from typing import Any

import accelerate.accelerator
from accelerate import PartialState
from accelerate.utils import DistributedType

_init, _prepare = PartialState.__init__, accelerate.accelerator.fsdp2_prepare_model


def init(self: PartialState, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def prepare(accelerator: Any, model: Any) -> Any:
    sharded = _prepare(accelerator, model)
    kinds = {type(parameter).__name__ for parameter in sharded.parameters()}
    print(f"sharded: {kinds}", flush=True)  # at once and whole: the processes share one stdout
    return sharded


PartialState.__init__ = init  # type: ignore[method-assign]
accelerate.accelerator.fsdp2_prepare_model = prepare
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
