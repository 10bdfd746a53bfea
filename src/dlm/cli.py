"""What every stage script's command line has in common. Scripts import this module before the heavy ones."""

import argparse
import gc
import sys
from pathlib import Path

from dlm.params import Params, load_params

# Imports make hardly any garbage; by default Python looks for it in every 700 new objects, a tenth of a stage's start.
gc.set_threshold(100_000)


def stage_arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with --params and --build."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="parameter file (default: params.yaml)"
    )
    parser.add_argument("--build", type=Path, default=Path("build"), help="folder of the artefacts (default: build)")
    return parser


def stage_params(arguments: argparse.Namespace) -> Params:
    """The checked parameters. The processor counts subnormal numbers as 0 from here on.

    A trained model's gradients are full of them, and a CPU takes many times as long over each; torch's threads start
    later and take the setting over.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(True)
    return load_params(arguments.params)
