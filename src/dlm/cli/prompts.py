"""Where prompts come from: arguments, a file, or stdin; one a line, JSON lines, or a JSON array."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dlm.errors import UserError

Kind = Literal["text", "instruction", "prompt", "messages", "ids"]


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was given.

    Attributes:
        text: what was asked.
        where: what errors call it.
        kind: an `instruction` wants the template, `messages` the chat template, a whole `prompt` and its `ids` none; a
            plain `text` goes by the options.
        input: context of an instruction.
        messages: a conversation, for the library to check.
        ids: token ids; `text` is what they say, where it is known.
        answer: to the prompt, where one stands beside it.
    """

    text: str
    where: str
    kind: Kind = "text"
    input: str = ""
    messages: tuple[Any, ...] = ()
    ids: tuple[int, ...] = ()
    answer: str | None = None


def read_prompts(texts: Sequence[str], file: Path | None, option: str, *, infill: bool = False) -> list[Prompt]:
    """Prompts from the arguments, else from `file` (`option` on the command line), else from stdin.

    Raises:
        UserError: two sources or none, not UTF-8, a line that is no prompt.
    """
    if texts and file:
        raise UserError(f"{option} and texts on the command line exclude each other; give one of them")
    if texts:
        prompts = [Prompt(text, f"text {number}") for number, text in enumerate(texts, start=1)]
    elif file is not None and str(file) != "-":
        from dlm.data.compression import read_bytes

        prompts = _lines(read_bytes(file), str(file), file.name.lower(), infill)
    elif file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UserError(f"no texts were given; pass them as arguments, with {option} FILE, or on stdin")
    else:
        prompts = _lines(sys.stdin.buffer.read(), "stdin", "", infill)
    for prompt in prompts:
        _check_unicode(prompt)
    return prompts


def _lines(raw: bytes, source: str, name: str, infill: bool) -> list[Prompt]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 (byte {error.start}); convert it to UTF-8") from None
    whole = _json(text)
    if isinstance(whole, list) and whole:
        return [_record(row, f"{source}: record {number}", infill) for number, row in enumerate(whole, start=1)]
    if isinstance(whole, dict):  # over several lines, too
        return [_record(whole, f"{source}:1", infill)]
    # Not splitlines(): U+2028 and the like may stand inside a prompt.
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines or whole == []:
        raise UserError(f"{source}: holds no text; give at least one line")
    if ".json" in name or ".ndjson" in name or isinstance(_json(lines[0][1]), dict):
        return [_record(_parsed(line, f"{source}:{number}"), f"{source}:{number}", infill) for number, line in lines]
    return [Prompt(line, f"{source}:{number}") for number, line in lines]


def _json(text: str) -> Any:
    """The array or object that a text is, None for any other. What begins with one is JSON; a number is a text."""
    try:
        return json.loads(text) if text.lstrip().startswith(("[", "{")) else None
    except (ValueError, RecursionError):
        return None


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({getattr(error, 'msg', error)}); mend the line") from None


def _record(row: Any, where: str, infill: bool) -> Prompt:
    """An object, or a plain text."""
    if isinstance(row, str):
        return Prompt(row, where)
    prompt = _prompt(row, where, infill)
    return replace(prompt, answer=_text(row, "answer", where)) if "answer" in row else prompt


def _prompt(row: Any, where: str, infill: bool) -> Prompt:
    """What `--json` prints has ids, which say more than the text beside them."""
    kinds: list[Kind] = ["instruction", "prompt", "messages"]
    wanted = ["text"] if infill else [*kinds]
    ids, text = ("canvas_ids", "canvas") if infill else ("prompt_ids", "prompt")
    given = [key for key in wanted if isinstance(row, dict) and key in row]
    if isinstance(row, dict) and ids in row and given in ([], ["prompt"], ["text"]):
        return Prompt(
            _text(row, text, where) if text in row else "", where, "ids", ids=_ids(row[ids], f"{where}: {ids}")
        )
    if len(given) != 1 or ids in row:
        raise UserError(f"{where}: wants an object with {', '.join(wanted)} or {ids} (one of them); mend it")
    if given == ["messages"]:
        turns = row["messages"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise UserError(f"{where}: messages must be a list of objects with role and content, got {turns!r}"[:200])
        last = turns[-1].get("content") if turns else None
        return Prompt(last if isinstance(last, str) else "", where, "messages", messages=tuple(turns))
    kind: Kind = "instruction" if given == ["instruction"] else "prompt"
    input = _text(row, "input", where) if kind == "instruction" and row.get("input") is not None else ""
    return Prompt(_text(row, given[0], where), where, kind, input)


def _ids(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise UserError(f"{where} must be a list of token ids, got {value!r}"[:200])
    return tuple(value)


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
