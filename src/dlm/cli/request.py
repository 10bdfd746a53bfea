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
class Request:
    """A decoder's options and the prompts."""

    options: DecoderOptions
    prompts: list[Prompt]


def generation(arguments: argparse.Namespace) -> Request:
    """Check a `generate`. Raises UserError."""
    _check_numbers(arguments, "gen_length", "steps", "batch_size")
    require(arguments.system is None or arguments.chat, "--system", "given with --chat", arguments.system)
    options, where = _decoder(arguments)
    steps = arguments.gen_length if arguments.steps is None else arguments.steps
    options.check_lengths(arguments.gen_length, steps, where)
    return _request(arguments, options, read_prompts(arguments.texts, arguments.file, "--prompts"))


def infilling(arguments: argparse.Namespace) -> Request:
    """Check an `infill`. Raises UserError."""
    _check_numbers(arguments, "steps", "batch_size")
    options, where = _decoder(arguments)
    options.check_infilling(where)
    return _request(arguments, options, read_prompts(arguments.texts, arguments.file, "--texts", infill=True))


def _request(arguments: argparse.Namespace, options: DecoderOptions, prompts: list[Prompt]) -> Request:
    if arguments.watch and arguments.json:
        raise UserError("--watch and --json exclude each other; give one of them")
    if arguments.watch and len(prompts) > 1:
        raise UserError(f"--watch shows one text being filled in, got {len(prompts)}; give one")
    check_checkpoint(arguments.checkpoint)
    if arguments.trace is not None:
        arguments.trace = _writable(arguments.trace)
    return Request(options, prompts)


def _check_numbers(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        require(value is None or value >= 1, "--" + name.replace("_", "-"), "at least 1", value)


def _writable(path: Path) -> Path:
    """Where a file can be put in place as a whole. What stands there is replaced only if it is a plain file."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"--trace {path}: is not a plain file; name one")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--trace {path}: {path.parent} is not a folder that can be written to; name another")
    return path


# --- The decoder ------------------------------------------------------------------------------------------------------


def _decoder(arguments: argparse.Namespace) -> tuple[DecoderOptions, str]:
    """Checked options, and what errors call them."""
    changes = dict(map(_setting, arguments.set))
    if arguments.block is None:
        require(arguments.params is None, "--params", "given with --block", str(arguments.params))
        name = "conv" if arguments.decoder is None else arguments.decoder
        return decoder_options(name, changes, name), name
    if arguments.decoder is not None:
        raise UserError("--block and --decoder exclude each other; give one of them")
    path = arguments.params or Path("params.yaml")
    params = load_params(path)
    first = params.candidates(arguments.block)[0]  # of each list of candidates the first
    where = f"{path.name}: decoding.{arguments.block}"
    block = {**(params.decoding[arguments.block] or {}), **first, **changes}
    return decoder_options(arguments.block, block, where), where


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as params.yaml would read it."""
    key, equals, value = text.partition("=")
    if not key or not equals or not value.strip():
        raise UserError(f"--set wants KEY=VALUE (null for nothing), got {text!r}")
    if key == "decoder":
        raise UserError("--set decoder=...: use --decoder")
    try:
        return key, load_yaml(value)
    except ValueError:
        raise UserError(
            f"--set {key}: {value!r} is not a YAML scalar; write a number, a word, true, false or null"
        ) from None
