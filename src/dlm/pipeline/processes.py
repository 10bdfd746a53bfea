"""This process among others: those that share its stage's work, and the DVC that runs the stage.

torchrun or `accelerate launch` start several processes for a stage (docs/scale.md), which say who they are in the
environment. Training's gradients are the Trainer's business; here is what the rest needs: who writes, and how results
come together.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
STARTED = time.time()  # scripts import this before anything slow
LOOK = 0.5  # seconds between two looks at whether DVC is still there


def rank() -> int:
    """This process among all of them."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """How many there are: 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that writes outputs and logs."""
    return rank() == 0


def device() -> str:
    """The device of this process: a GPU of its own where there are any."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def gather(value: T) -> list[T]:
    """Every process's `value`, by rank, in every process; all of them must call it."""
    if count() == 1:
        return [value]
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        # Gradients travel between the GPUs, values like this one through the processors' memory.
        dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def leave() -> None:
    """Part from the other processes in good order; without it torch warns at exit."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_initialized():
        dist.destroy_process_group()


@functools.cache
def dvc() -> Any:
    """The DVC process above this one (psutil.Process); None for a script run by hand."""
    if "DVC_STAGE" not in os.environ:
        return None
    with contextlib.suppress(ImportError):
        import psutil

        for process in psutil.Process().parents():
            with contextlib.suppress(psutil.Error):
                if any(Path(word).name == "dvc" for word in process.cmdline()[:3]):
                    return process
    return None


def end_with_dvc() -> None:
    """Send this process SIGTERM once DVC is gone: a DVC killed outright leaves no stage at work behind it."""
    if dvc() is None:
        return

    import psutil

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            # A dead process that nobody has asked about is a zombie.
            while dvc().is_running() and dvc().status() != psutil.STATUS_ZOMBIE:
                time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
