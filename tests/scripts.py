"""Stage scripts run inside the test's own process: no start of Python, no imports."""

import os
import runpy
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def stage(name: str, *arguments: str, folder: Path | str = ".") -> None:
    """Run stages/<name>.py in `folder`, untracked."""
    before = sys.argv, Path.cwd(), os.environ.get("DLM_TRACKING")
    sys.argv, os.environ["DLM_TRACKING"] = [name, *arguments], "off"
    os.chdir(folder)
    try:
        runpy.run_path(str(ROOT / "stages" / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_flush_denormal(False)  # a stage's process sets it; hypothesis draws subnormal numbers
        sys.argv = before[0]
        os.chdir(before[1])
        del os.environ["DLM_TRACKING"]
        os.environ |= {"DLM_TRACKING": before[2]} if before[2] is not None else {}
