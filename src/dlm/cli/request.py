"""What was asked of `generate`, `infill` and `lm-eval`, checked before torch and the checkpoint are loaded."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.cli.prompts import Prompt, read_prompts
from dlm.config.params import load_params
from dlm.config.schema import require
from dlm.config.yaml import setting, split_variant
from dlm.decoding.options import DecoderOptions, decoder_options, default_options
from dlm.errors import UserError
from dlm.files import check_checkpoint

TEMPLATES = ("alpaca", "llada", "dream")  # dlm.data.template has them; it imports transformers
EXCLUSIVE = (("watch", "json"), ("watch", "record"), ("beside", "json"), ("beside", "trace"), ("block", "decoder"))


@dataclass(frozen=True)
class Choice:
    """A decoder: its checked options, what errors call them, and what a picture calls it."""

    options: DecoderOptions
    where: str
    title: str


@dataclass(frozen=True)
class Request:
    """Decoders, of which the first answers and the others stand beside it in a picture, and the prompts."""

    decoders: list[Choice]
    prompts: list[Prompt]


def check(arguments: argparse.Namespace) -> Request:
    """Check the arguments of a `generate` or an `infill`. Raises UserError."""
    given = _given(arguments)
    decoders = _decoders(arguments)
    for decoder in decoders:
        if arguments.infill:
            decoder.options.check_infilling(decoder.where)
        else:
            _check_lengths(arguments, decoder)
    check_checkpoint(arguments.checkpoint)
    option = "--texts" if arguments.infill else "--prompts"
    prompts = read_prompts(arguments.texts, arguments.file, option, infill=arguments.infill)
    for flag in {"watch", "record"} & given:
        if len(prompts) > 1:
            raise UserError(f"--{flag} shows one text being filled in, got {len(prompts)}; give one")
    if arguments.record is not None:
        require(arguments.record.suffix == ".svg", "--record", "a file that ends in .svg", str(arguments.record))
    for flag in {"trace", "record"} & given:
        setattr(arguments, flag, _writable(getattr(arguments, flag), f"--{flag}"))
    return Request(decoders, prompts)


def check_decoder(arguments: argparse.Namespace) -> Choice:
    """Check the arguments about decoding of an `lm-eval`, whose lengths its tasks say. Raises UserError."""
    _given(arguments)
    return _first(arguments, _changes(arguments))


def _given(arguments: argparse.Namespace) -> set[str]:
    """The names of the flags that were given, which go together. Raises UserError."""
    _check_positive(arguments)
    values = vars(arguments)
    given = {name for name, value in values.items() if value not in (None, False, [])}
    for one, other in EXCLUSIVE:
        if {one, other} <= given:
            raise UserError(f"--{one} and --{other} exclude each other; give one of them")
    for flag, needed in (("system", "chat"), ("params", "block"), ("beside", "record")):
        require(flag not in given or needed in given, f"--{flag}", f"given with --{needed}", values.get(flag))
    return given


def check_talk(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check the arguments of a `chat` or a `serve`; the options of --set. Raises UserError."""
    _check_positive(arguments)
    changes = _changes(arguments)
    _check_lengths(arguments, _first(arguments, changes))
    require(
        arguments.template in (None, *TEMPLATES), "--template", f"one of {', '.join(TEMPLATES)}", arguments.template
    )
    check_checkpoint(arguments.checkpoint)
    return changes


def _check_positive(arguments: argparse.Namespace) -> None:
    for name in ("gen_length", "steps", "batch_size", "waiting"):
        value = getattr(arguments, name, None)  # only `serve` has all of them
        require(value is None or value >= 1, "--" + name.replace("_", "-"), "at least 1", value)


def _check_lengths(arguments: argparse.Namespace, decoder: Choice) -> None:
    steps = arguments.gen_length if arguments.steps is None else arguments.steps
    decoder.options.check_lengths(arguments.gen_length, steps, decoder.where)


def _writable(path: Path, flag: str) -> Path:
    """Where a file can be put in place as a whole. What stands there is replaced only if it is a plain file."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path}: is not a plain file; name one")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: {path.parent} is not a folder that can be written to; name another")
    return path


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    changes = dict(setting(text, "--set") for text in arguments.set)
    _check_names(changes, "--set")
    return changes


def _decoders(arguments: argparse.Namespace) -> list[Choice]:
    changes = _changes(arguments)
    return [_first(arguments, changes), *(_beside(text, changes) for text in arguments.beside)]


def _first(arguments: argparse.Namespace, changes: dict[str, Any]) -> Choice:
    """A block of params.yaml, a decoder by name, or the default; --set on top."""
    name = arguments.decoder
    if arguments.block is not None:
        block = load_params(arguments.params or Path("params.yaml")).block(arguments.block)
        return Choice(block.changed(**changes), block.where, arguments.block)
    if name is None:
        return Choice(default_options(changes, infill=arguments.infill), "conv", "conv")
    return Choice(decoder_options(name, changes, name), name, name)


def _beside(text: str, changes: dict[str, Any]) -> Choice:
    """NAME or NAME:KEY=VALUE,KEY=VALUE, which go on top of --set."""
    name, options = split_variant(text, "--beside")
    _check_names(options, "--beside")
    title = f"{name} ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else name
    where = f"--beside {name}"
    return Choice(decoder_options(name, {**changes, **options}, where), where, title)


def _check_names(options: dict[str, Any], flag: str) -> None:
    if "decoder" in options:
        remedy = "its name stands before the colon" if flag == "--beside" else "use --decoder"
        raise UserError(f"{flag} decoder=...: {remedy}")
