"""What a figure was measured on, and by which command."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def hardware(device: str) -> dict[str, Any]:
    """Processor, GPU and versions; never a host's name or a path."""
    gpu = device.startswith("cuda")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def command_of(script: str) -> str:
    """This process's command line; of absolute paths only the last part. `script`: from the repository's root."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python", script, *words])
