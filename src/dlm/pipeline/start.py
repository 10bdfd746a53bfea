"""How every script begins and ends: arguments, parameters, one line for an error. Imported before what is heavy."""

import argparse
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from dlm.config.params import Params, load_params
from dlm.errors import UserError
from dlm.pipeline import processes

# Imports make hardly any garbage; by default Python looks for it in every 700 new objects, a tenth of a stage's start.
gc.set_threshold(100_000)

KEPT = "nothing half written was kept; mend the cause and run again"
# torch and safetensors raise their own types, of which the text says what happened, and not always in the same words.
FOREIGN = {
    "No space left on device": f"No space left on device: {KEPT}",
    "PytorchStreamWriter failed": f"a file could not be written to its end (No space left on device?): {KEPT}",
    "unexpected pos": f"a file could not be written to its end (No space left on device?): {KEPT}",
    "out of memory": "the device is out of memory: lower this stage's batch_size in params.yaml and run again",
}


def stage_arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with --params and --build."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="parameter file (default: params.yaml)"
    )
    parser.add_argument("--build", type=Path, default=Path("build"), help="folder of the artefacts (default: build)")
    return parser


def start_stage(arguments: argparse.Namespace) -> Params:
    """The checked parameters. The processor counts subnormal numbers as 0 from here on.

    A trained model's gradients are full of them, and a CPU takes many times as long over each; torch's threads start
    later and take the setting over.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(True)
    return load_params(arguments.params)


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with status 2."""
    who = "" if processes.is_main() else f" (process {processes.rank()})"
    print(f"error{who}: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; a mistake of the user ends in one clear line instead of a traceback."""
    processes.end_with_dvc()
    try:
        main()
        processes.leave()
    except UserError as error:
        fail(str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        fail(f"{error.strerror or error}{where}: {KEPT}")
    except Exception as error:
        message = next((line for sign, line in FOREIGN.items() if sign in str(error)), None)
        if message is None:
            raise
        fail(message)
