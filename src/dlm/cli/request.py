"""What was asked of `generate` and `infill`, checked before torch and the checkpoint are loaded."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.cli.prompts import Prompt, read_prompts
from dlm.config.decoders import DecoderOptions, decoder_options
from dlm.config.params import load_params
from dlm.config.schema import require
from dlm.config.yaml import load_yaml
from dlm.errors import UserError
from dlm.files import check_checkpoint


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

    @property
    def options(self) -> DecoderOptions:
        return self.decoders[0].options


def generation(arguments: argparse.Namespace) -> Request:
    """Check a `generate`. Raises UserError."""
    _check_numbers(arguments, "gen_length", "steps", "batch_size")
    require(arguments.system is None or arguments.chat, "--system", "given with --chat", arguments.system)
    decoders = _decoders(arguments)
    steps = arguments.gen_length if arguments.steps is None else arguments.steps
    for decoder in decoders:
        decoder.options.check_lengths(arguments.gen_length, steps, decoder.where)
    return _request(arguments, decoders, read_prompts(arguments.texts, arguments.file, "--prompts"))


def infilling(arguments: argparse.Namespace) -> Request:
    """Check an `infill`. Raises UserError."""
    _check_numbers(arguments, "steps", "batch_size")
    decoders = _decoders(arguments)
    for decoder in decoders:
        decoder.options.check_infilling(decoder.where)
    return _request(arguments, decoders, read_prompts(arguments.texts, arguments.file, "--texts", infill=True))


def _request(arguments: argparse.Namespace, decoders: list[Choice], prompts: list[Prompt]) -> Request:
    for one, other in (
        ("--watch", "--json"),
        ("--watch", "--record"),
        ("--beside", "--json"),
        ("--beside", "--trace"),
    ):
        if _given(arguments, one) and _given(arguments, other):
            raise UserError(f"{one} and {other} exclude each other; give one of them")
    require(not arguments.beside or arguments.record is not None, "--beside", "given with --record", arguments.beside)
    for flag in ("--watch", "--record"):
        if _given(arguments, flag) and len(prompts) > 1:
            raise UserError(f"{flag} shows one text being filled in, got {len(prompts)}; give one")
    check_checkpoint(arguments.checkpoint)
    if arguments.trace is not None:
        arguments.trace = _writable(arguments.trace, "--trace")
    if arguments.record is not None:
        require(arguments.record.suffix == ".svg", "--record", "a file that ends in .svg", str(arguments.record))
        arguments.record = _writable(arguments.record, "--record")
    return Request(decoders, prompts)


def _given(arguments: argparse.Namespace, flag: str) -> bool:
    return getattr(arguments, flag.removeprefix("--")) not in (None, False, [])


def _check_numbers(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        require(value is None or value >= 1, "--" + name.replace("_", "-"), "at least 1", value)


def _writable(path: Path, flag: str) -> Path:
    """Where a file can be put in place as a whole. What stands there is replaced only if it is a plain file."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path}: is not a plain file; name one")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: {path.parent} is not a folder that can be written to; name another")
    return path


# --- The decoder ------------------------------------------------------------------------------------------------------


def _decoders(arguments: argparse.Namespace) -> list[Choice]:
    changes = dict(_setting(text, "--set") for text in arguments.set)
    return [_decoder(arguments, changes), *(_beside(text, changes) for text in arguments.beside)]


def _decoder(arguments: argparse.Namespace, changes: dict[str, Any]) -> Choice:
    if arguments.block is None:
        require(arguments.params is None, "--params", "given with --block", str(arguments.params))
        name = "conv" if arguments.decoder is None else arguments.decoder
        return Choice(decoder_options(name, changes, name), name, name)
    if arguments.decoder is not None:
        raise UserError("--block and --decoder exclude each other; give one of them")
    path = arguments.params or Path("params.yaml")
    params = load_params(path)
    block = params.block(arguments.block)
    return Choice(block.changed(**changes), block.where, arguments.block)


def _beside(text: str, changes: dict[str, Any]) -> Choice:
    """NAME or NAME:KEY=VALUE,KEY=VALUE, which go on top of --set."""
    name, _, rest = text.partition(":")
    own = dict(_setting(item, "--beside") for item in filter(None, rest.split(",")))
    title = f"{name} ({', '.join(f'{key} {value}' for key, value in own.items())})" if own else name
    return Choice(decoder_options(name, {**changes, **own}, f"--beside {name}"), f"--beside {name}", title)


def _setting(text: str, flag: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as params.yaml would read it."""
    key, equals, value = text.partition("=")
    if not key or not equals or not value.strip():
        raise UserError(f"{flag} wants KEY=VALUE (null for nothing), got {text!r}")
    if key == "decoder":
        raise UserError(f"{flag} decoder=...: use --decoder")
    try:
        return key, load_yaml(value)
    except ValueError:
        raise UserError(
            f"{flag} {key}: {value!r} is not a YAML scalar; write a number, a word, true, false or null"
        ) from None
