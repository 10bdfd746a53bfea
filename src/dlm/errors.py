"""The one exception that users see, and how a script turns it into one line and an exit code."""

import sys
from collections.abc import Callable
from typing import NoReturn

from dlm import processes

KEPT = "nothing half written was kept; mend the cause and run again"
# torch and safetensors raise their own types, of which the text says what happened, and not always in the same words.
FOREIGN = {
    "No space left on device": f"No space left on device: {KEPT}",
    "PytorchStreamWriter failed": f"a file could not be written to its end (No space left on device?): {KEPT}",
    "unexpected pos": f"a file could not be written to its end (No space left on device?): {KEPT}",
    "out of memory": "the device is out of memory: lower this stage's batch_size in params.yaml and run again",
}


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and the remedy, in one line."""


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
        told = next((line for sign, line in FOREIGN.items() if sign in str(error)), None)
        if told is None:
            raise
        fail(told)
