"""What leaves the command: texts, JSON lines, a trace."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dlm.analysis.escape import one_line, printable
from dlm.decoding.canvas import Trace
from dlm.decoding.lm import DiffusionLM, Generation, Infilling
from dlm.files import write_jsonl


def print_objects(out: Generation | Infilling, given: Sequence[dict[str, Any]]) -> None:
    """One object a line: what a row was given (its ids, too: a text says nothing of special tokens), and its result."""
    for b, row in enumerate(given):
        result = {
            "text": out.texts[b],
            **({"gaps": out.gaps[b]} if isinstance(out, Infilling) else {}),
            "tokens": out.tokens[b].tolist(),
            "nfe": int(out.nfe[b]),
            "leftover_masks": int(out.leftover_masks[b]),
            "commit_step": out.commit_step[b].tolist(),
        }
        print(json.dumps({**row, **result}))  # pure ASCII: a terminal may obey U+009B as well


def write_trace(path: Path, lm: DiffusionLM, trace: Trace) -> None:
    """One change of the canvas a line, in order; special tokens (end-of-text, mask) by their names."""

    @cache
    def text(token: int) -> str:
        return str(lm.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    names = ("step", "row", "offset", "token", "confidence")
    columns = zip(*(getattr(trace, name).tolist() for name in names), strict=True)
    rows = (dict(zip(names, values, strict=True)) for values in columns)
    write_jsonl(path, ({**row, "text": text(row["token"])} for row in rows))


def print_texts(texts: Sequence[str], asked: Sequence[str]) -> None:
    """Texts, each under its heading where there are several."""
    for number, (text, prompt) in enumerate(zip(texts, asked, strict=True)):
        if len(texts) > 1:
            print("\n" * (number > 0) + f"==> {one_line(prompt)} <==")
        print(printable(text))
