"""The record every source yields and every later step reads."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One instruction with its answer (Alpaca's columns).

    Attributes:
        instruction: what is asked; never empty.
        input: an optional context for the instruction ("" = none).
        output: the answer ("" only in evaluation prompts that carry no reference answer).
        opening: of a record from a conversation, the prompt that it began with: its records stay together.
        meta: what a judge needs to know, JSON-ready (the builtin corpus: topic and requested slots).
    """

    instruction: str
    input: str
    output: str
    opening: str = field(default="", kw_only=True)
    meta: dict[str, Any] = field(default_factory=dict)
