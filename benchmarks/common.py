"""What the benchmarks share: decoders on the command line, spreads, and a record of the machine without its name."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from dlm.config.schema import require
from dlm.config.yaml import split_variant
from dlm.decoding.options import DecoderOptions, decoder_options
from dlm.errors import UserError
from dlm.files import write_json, write_text
from dlm.pipeline.hardware import command_of

Spread = dict[str, float]  # median, low and high (the smallest and the largest) over the repeats


class Arguments(argparse.ArgumentParser):
    """A parser whose mistakes are one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def variant(text: str) -> DecoderOptions:
    """The checked options of a decoder on the command line."""
    name, block = split_variant(text, f"decoder {text!r}")
    return decoder_options(name, block, name)


def check_device(device: str) -> None:
    """Refuse what is no device, and a GPU where torch sees none."""
    require(device.partition(":")[0] in ("cpu", "cuda"), "--device", "cpu or cuda", device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no GPU here; pass --device cpu")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def spread(values: Sequence[float]) -> Spread:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of quotients taken repeat by repeat: what slows a repeat down slows both sides."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def command_line() -> str:
    """The command as it was given; of absolute paths only the last part."""
    return command_of(f"benchmarks/{Path(sys.argv[0]).name}")


def with_ending(out: Path, ending: str) -> Path:
    """results/x -> results/x.json; a point in the name is part of it."""
    return out.parent / f"{out.name}.{ending}"


def report(line: str) -> None:
    """Progress, apart from the table on stdout."""
    print(line, file=sys.stderr, flush=True)


def numbers(pair: Spread | None, digits: int) -> str:
    """'1.23 (1.20-1.31)'; a dash without a value."""
    if pair is None:
        return "–"
    return f"{pair['median']:.{digits}f} ({pair['low']:.{digits}f}–{pair['high']:.{digits}f})"


def grid(lines: Sequence[Sequence[str]], left: int) -> str:
    """A markdown table, its first line the heading; the first `left` columns to the left, the others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    pads = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    padded = [
        [pad(text, width) for pad, text, width in zip(pads, line, widths, strict=True)]
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def write(out: Path, result: dict[str, Any], table: str) -> None:
    """OUT.json, all runs, and OUT.md, the table, which is printed too."""
    write_json(with_ending(out, "json"), result)
    write_text(with_ending(out, "md"), table)
    print(table, end="")
