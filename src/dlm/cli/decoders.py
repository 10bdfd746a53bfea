"""What `dlm decoders` prints, read from the options' docstrings. No torch here."""

import dataclasses
import inspect
import json
import re
import shutil
import textwrap
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dlm.decoding.options import DECODERS, PRESETS, RULES, DecoderOptions, Preset, decoder_options

ENTRY = re.compile(r"([a-z_][a-z_, ]*): (.*)")
RULE = "Which token a position would take, which positions commit. Another rule has its own options: dlm decoders RULE."
PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def summary(name: str) -> str:
    """A decoder in one line."""
    return PRESETS[name].summary if name in PRESETS else _doc(RULES[name]).partition("\n")[0]


def overview() -> str:
    """Every decoder with its summary."""
    width = max(map(len, DECODERS)) + 2
    return "\n".join(name.ljust(width) + summary(name) for name in DECODERS)


def options_of(name: str) -> str:
    """One decoder's options: type, default, meaning. Raises UserError for an unknown name."""
    options = decoder_options(name, {}, "dlm decoders")
    explained, hints = meanings(type(options)), get_type_hints(type(options))
    entries = {
        key: _entry(key, _kind(hints[key]), default, explained.get(key, ""))
        for key, default in dataclasses.asdict(options).items()
    }
    preset = PRESETS.get(name, Preset("", {}))
    common = {field.name for field in dataclasses.fields(DecoderOptions)} - set(preset.options)
    special = [text for key, text in entries.items() if key not in common]
    if name in PRESETS:
        special.insert(0, _entry("rule", " | ".join(RULES), preset.rule, RULE))
    head = _wrapped(summary(name), f"{name}: ", "")
    shared = [text for key, text in entries.items() if key in common]
    return "\n".join([head, *special, "\nOptions of every decoder:", *shared])


def meanings(cls: type) -> dict[str, str]:
    """Option -> what the Attributes sections of a class and its bases say; "a, b: text" is said of both."""
    explained: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        lines = _doc(base).partition("\nAttributes:\n")[2].split("\n")
        entry: list[str] = []
        for line in map(str.rstrip, lines):
            match = ENTRY.fullmatch(line.strip()) if re.match(r" {4}\S", line) else None
            if match:
                entry = match[1].split(", ")
                explained.update(dict.fromkeys(entry, (f"{match[1]}: " if len(entry) > 1 else "") + match[2]))
            else:
                explained.update({key: f"{explained[key]} {line.strip()}".strip() for key in entry})
    return explained


def _entry(name: str, kind: str, default: Any, meaning: str) -> str:
    value = default if isinstance(default, str) else json.dumps(default)  # as after --set
    meaning = meaning.replace("None", "null")
    return f"\n  {name} ({kind}; default {value})\n{_wrapped(meaning, '      ', '      ')}"


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        inner = next(argument for argument in get_args(hint) if argument is not type(None))
        return f"{_kind(inner)} or null"
    return PLAIN.get(hint, str(hint))


def _doc(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _wrapped(text: str, first: str, rest: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(text, max(width, 40), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
