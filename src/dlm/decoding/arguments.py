"""What users may give as prompts, numbers and decoders, and the line they read where it is something else."""

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from torch import Tensor

from dlm.config.schema import require
from dlm.decoding.options import DecoderOptions, decoder_options, default_options, override
from dlm.errors import UserError

ROLES = ("system", "user", "assistant")


def listed(given: Any, name: str, requirement: str = "") -> list[Any]:
    """The items of a list, an array or anything else with an order; a text is a list of one.

    Raises:
        UserError: a mapping (its keys are no prompts), a set (no order), bytes, or what cannot be iterated.
    """
    if isinstance(given, str):
        return [given]
    items = given.tolist() if isinstance(given, np.ndarray | Tensor) else given
    if isinstance(items, Mapping | Set | bytes | bytearray) or not isinstance(items, Iterable):
        remedy = "; pass its input_ids" if isinstance(items, Mapping) and "input_ids" in items else ""
        requirement = requirement or f"{name} must be a list"
        raise UserError(f"{requirement}, got {shown(given)}{remedy}")
    return list(items)


def index(value: Any) -> int:
    """An integer, numpy's and torch's too. Raises TypeError for a bool, a float and anything else."""
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def whole(name: str, value: Any, least: int | None = None) -> int:
    try:
        number = index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, got {shown(value)}") from None
    require(least is None or number >= least, name, f"at least {least}", number)
    return number


def valid_text(value: Any, where: str) -> str:
    """A text that can be written as UTF-8. Raises UserError for anything else, half a surrogate pair included."""
    if not isinstance(value, str):
        raise UserError(f"{where} must be text, got {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: not valid Unicode (character {error.start} is half a surrogate pair)") from None
    return value


def turn(message: Any, where: str) -> dict[str, str]:
    """A checked message of a conversation. Only ROLES pass: a template may write a role as a special token."""
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise UserError(f"{where} must have a role and a content and nothing else, got {shown(message)}")
    require(message["role"] in ROLES, f"{where}: role", f"one of {', '.join(ROLES)}", message["role"])
    return {"role": message["role"], "content": valid_text(message["content"], f"{where}: content")}


def check_switches(trace: Any, watch: Any) -> None:
    require(isinstance(trace, bool | np.bool_), "trace", "true or false", trace)
    require(watch is None or callable(watch), "watch", "a function or None", watch)


def shown(value: Any) -> str:
    """A value in a message of one line."""
    return f"{type(value).__name__} {' '.join(repr(value).split())[:60]}"


def checked_decoder(decoder: Any, options: dict[str, Any], *, infill: bool = False) -> tuple[DecoderOptions, str]:
    """A decoder's checked options, and its name for error messages."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    if decoder is None:
        return default_options(plain, infill=infill), "conv"
    if isinstance(decoder, str):
        return decoder_options(decoder, plain, decoder), decoder
    if not isinstance(decoder, DecoderOptions):
        raise UserError(f"decoder must be a decoder's name or its options, got {shown(decoder)}")
    if options:
        raise UserError(f"options ({', '.join(options)}) go with a decoder's name, not with checked options")
    return override(decoder, "decoder"), "decoder"
