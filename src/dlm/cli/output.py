"""What leaves the command: texts, JSON lines, a trace."""

import json as json_
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dlm.data.escape import one_line, printable
from dlm.decoding.canvas import Trace
from dlm.decoding.lm import DiffusionLM, Generation, Infilling
from dlm.files import write_jsonl


def print_generation(
    out: Generation, prompts: Sequence[str], ids: Sequence[Sequence[int]], asked: Sequence[str], *, json: bool
) -> None:
    """The texts, under what was asked where there are several; or one object a line with the whole prompts.

    Their ids are what the model was given: a text says nothing of special tokens.
    """
    if not json:
        print_texts(out.texts, asked)
        return
    for b, prompt in enumerate(prompts):
        _print_object({"prompt": prompt, "prompt_ids": list(ids[b]), "text": out.texts[b], **_numbers(out, b)})


def print_infilling(out: Infilling, canvases: Sequence[str], ids: Sequence[Sequence[int]], *, json: bool) -> None:
    """As `print_generation`."""
    if not json:
        print_texts(out.texts, canvases)
        return
    for b, canvas in enumerate(canvases):
        told = {"canvas": canvas, "canvas_ids": list(ids[b]), "text": out.texts[b], "gaps": out.gaps[b]}
        _print_object({**told, **_numbers(out, b)})


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


def _print_object(row: dict[str, Any]) -> None:
    print(json_.dumps(row))  # pure ASCII: a terminal may obey U+009B as well


def _numbers(out: Generation | Infilling, b: int) -> dict[str, Any]:
    return {
        "tokens": out.tokens[b].tolist(),
        "nfe": int(out.nfe[b]),
        "leftover_masks": int(out.leftover_masks[b]),
        "commit_step": out.commit_step[b].tolist(),
    }
