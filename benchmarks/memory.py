"""Peak activation memory of one call: what it needs on top of the weights.

On a GPU: the allocator's peak minus what was allocated before the call. On a CPU, where no allocator counts: a child
process for each setting loads the model, runs one small warm-up, resets the kernel's mark of its peak resident size
(/proc/self/clear_refs), makes the call, and takes the peak minus the resident size before it. Where that reset is not
to be had (no /proc), getrusage's peak stands in, which loading may have set already: then the number is an upper bound
of 0 or more. glibc is told to give freed blocks back at once, and MKL to keep no buffers, so that the peak is of live
memory.
"""

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from dlm.decoding.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
from dlm.errors import UserError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], warm_up: Callable[[], object], device: str) -> int:
    """The peak of `call` in this process, in bytes above what stood before it."""
    warm_up()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _trim()
    before = _resident("VmRSS")
    _reset_peak()
    call()
    return max(_resident("VmHWM") - before, 0)


@cache  # the forward pass of a batch is asked for by every decoder
def child_peak(script: Path, arguments: tuple[str, ...]) -> int:
    """`peak_bytes` of a script that is started with --child and prints {"peak_bytes": n}."""
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(2**18),
        "MALLOC_TRIM_THRESHOLD_": str(2**18),
        "MKL_DISABLE_FAST_MM": "1",
    }
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"the child process that measures memory failed ({last}); try --no-memory")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak), in bytes."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _reset_peak() -> None:
    try:
        CLEAR.write_text("5", encoding="utf-8")
    except OSError:
        return


def _trim() -> None:
    """Give back what is free, now and from now on: the library asks glibc to keep it (dlm.decoding.memory)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 2**18)
        libc.mallopt(M_MMAP_THRESHOLD, 2**18)
        libc.malloc_trim(0)
    except (OSError, AttributeError):
        return
