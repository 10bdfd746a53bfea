"""Decoders of masked diffusion language models from the command line."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import dlm
from dlm.pipeline.start import fail
from dlm.cli import decoders, flags, harness, request
from dlm.errors import UserError
from dlm.files import check_checkpoint

Command = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Raises UserError."""
    argv = sys.argv[1:] if argv is None else argv
    whole, commands = parsers()
    if argv and argv[0] in commands:
        # Intermixed: prompts may stand behind the options too.
        arguments = commands[argv[0]].parse_intermixed_args(argv[1:])
    else:
        arguments = whole.parse_args(argv)
    arguments.run(arguments)


def main_to_the_end() -> None:
    """`main`, until everything that was printed has left or its failure is known."""
    if sys.stdout is None:
        fail("stdout is closed; there is nowhere to write to")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    try:
        main()
        sys.stdout.flush()
    except OSError as error:
        # What is still in the buffer would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise


# --- Commands: imported when they run, as torch takes seconds ---------------------------------------------------------


def _decoders(arguments: argparse.Namespace) -> None:
    print(decoders.options_of(arguments.name) if arguments.name else decoders.overview())


def _decode(arguments: argparse.Namespace) -> None:
    checked = request.check(arguments)
    _tell_loading(arguments)
    from dlm.cli.run import run

    run(arguments, checked)


def _tell_loading(arguments: argparse.Namespace) -> None:
    if sys.stderr is not None and sys.stderr.isatty():  # what follows takes seconds, and minutes for a large model
        print(f"loading {arguments.checkpoint} ...", file=sys.stderr, flush=True)


def _chat(arguments: argparse.Namespace) -> None:
    changes = request.check_talk(arguments)
    _tell_loading(arguments)
    from dlm.cli.chat import run

    run(arguments, changes)


def _score(arguments: argparse.Namespace) -> None:
    check_checkpoint(arguments.checkpoint)
    from dlm.cli.score import run

    run(arguments)


def _lm_eval(arguments: argparse.Namespace) -> None:
    checked = harness.check(arguments)
    harness.run(arguments, checked)


def _convert(arguments: argparse.Namespace) -> None:
    check_checkpoint(arguments.source)
    from dlm.cli import convert

    convert.convert(arguments)


def _serve(arguments: argparse.Namespace) -> None:
    changes = request.check_talk(arguments)
    lacking = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if lacking:
        raise UserError(f"dlm serve needs {' and '.join(lacking)}; install them with: pip install 'dlm[serve]'")
    _tell_loading(arguments)
    from dlm.cli.serve import run

    run(arguments, changes)


def _backfill(_: argparse.Namespace) -> None:
    from dlm.pipeline.backfill import backfill

    made = backfill()
    print(f"{len(made)} runs made: {', '.join(made)}" if made else "nothing is missing")


def _verify(_: argparse.Namespace) -> None:
    from dlm.pipeline.verify import verify

    print(f"{verify()} objects in DVC's cache, all as their hashes say")


# --- Arguments --------------------------------------------------------------------------------------------------------


def parsers() -> tuple[flags.Parser, dict[str, flags.Parser]]:
    """The parser of the whole command line, and each command's."""
    whole = flags.Parser(prog="dlm", description=__doc__, epilog="dlm COMMAND --help says more.")
    whole.add_argument("--version", action="version", version=f"dlm {dlm.__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Command, summary: str) -> flags.Parser:
        parser: flags.Parser = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        parser.set_defaults(run=run)
        return parser

    made = {
        "decoders": command("decoders", _decoders, "list the decoders, or the options of one"),
        "generate": command("generate", _decode, "answer prompts with a checkpoint"),
        "infill": command("infill", _decode, "fill the gaps of texts: [MASK] is one token, [MASK:40] forty"),
        "chat": command("chat", _chat, "talk with a checkpoint, several turns, its answers filling in place"),
        "serve": command("serve", _serve, "serve a checkpoint: OpenAI's completions and chat, and a page to look at"),
        "score": command("score", _score, "log-likelihood of answers to prompts, or perplexity of running text"),
        "lm-eval": command("lm-eval", _lm_eval, "run tasks of lm-evaluation-harness (the extra lm-eval)"),
        "convert": command("convert", _convert, "write a published checkpoint in the layout that transformers loads"),
        "backfill": command("backfill", _backfill, "log to MLflow what DVC restored instead of running (dvc.lock)"),
        "verify": command("verify", _verify, "find spoilt files in DVC's cache, and remove them"),
    }
    made["decoders"].add_argument("name", nargs="?", help="a decoder")
    flags.add_generate(made["generate"])
    flags.add_infill(made["infill"])
    flags.add_chat(made["chat"])
    flags.add_serve(made["serve"])
    flags.add_score(made["score"])
    flags.add_lm_eval(made["lm-eval"])
    flags.add_convert(made["convert"])
    return whole, made
