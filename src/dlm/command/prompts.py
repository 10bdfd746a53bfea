"""Where prompts come from: arguments, a file, or stdin; one a line, or JSON lines."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dlm.errors import UserError

Kind = Literal["text", "instruction", "prompt"]


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was given.

    Attributes:
        text: what was asked.
        where: what errors call it.
        kind: an `instruction` wants the template, a whole `prompt` none; a plain `text` goes by the options.
        input: context of an instruction.
    """

    text: str
    where: str
    kind: Kind = "text"
    input: str = ""


def read_prompts(texts: Sequence[str], file: Path | None, option: str, *, infill: bool = False) -> list[Prompt]:
    """Prompts from the arguments, else from `file` (`option` on the command line), else from stdin.

    Raises:
        UserError: two sources or none, not UTF-8, a line that is no prompt.
    """
    if texts and file:
        raise UserError(f"{option} and texts on the command line exclude each other; give one of them")
    if texts:
        found = [Prompt(text, f"text {number}") for number, text in enumerate(texts, start=1)]
    elif file is not None and str(file) != "-":
        from dlm.data.compression import read_bytes

        found = _lines(read_bytes(file), str(file), file.name.lower(), infill)
    elif file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UserError(f"no texts were given; pass them as arguments, with {option} FILE, or on stdin")
    else:
        found = _lines(sys.stdin.buffer.read(), "stdin", "", infill)
    for prompt in found:
        _check_unicode(prompt)
    return found


def _lines(raw: bytes, source: str, name: str, infill: bool) -> list[Prompt]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 (byte {error.start}); convert it to UTF-8") from None
    # Not splitlines(): U+2028 and the like may stand inside a prompt.
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{source}: holds no text; give at least one line")
    if ".jsonl" in name or ".ndjson" in name or _is_object(lines[0][1]):
        return [_record(line, f"{source}:{number}", infill) for number, line in lines]
    return [Prompt(line, f"{source}:{number}") for number, line in lines]


def _is_object(line: str) -> bool:
    """A first line that is a JSON object makes the file JSON lines."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _record(line: str, where: str, infill: bool) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({getattr(error, 'msg', error)}); mend the line") from None
    wanted = ["text"] if infill else ["instruction", "prompt"]
    given = [key for key in wanted if isinstance(row, dict) and key in row]
    if len(given) != 1:
        raise UserError(f"{where}: wants an object with {' or '.join(wanted)} (one of them); mend the line")
    kind: Kind = "instruction" if given == ["instruction"] else "prompt"
    input = _text(row, "input", where) if kind == "instruction" and row.get("input") is not None else ""
    return Prompt(_text(row, given[0], where), where, kind, input)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise UserError(f"{where}: {key} must be text, got {row[key]!r}"[:200])
    return row[key]


def _check_unicode(prompt: Prompt) -> None:
    """An argument that is not UTF-8, or half an escaped surrogate pair."""
    try:
        (prompt.text + prompt.input).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{prompt.where}: not valid Unicode; write it as UTF-8") from None
