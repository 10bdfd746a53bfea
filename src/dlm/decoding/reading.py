"""Texts and token ids as users give them -> checked token ids."""

import re
from collections.abc import Sequence, Set
from typing import Any

from transformers import PreTrainedTokenizerFast

from dlm.config.schema import require
from dlm.data.tokenizer import encode
from dlm.decoding.arguments import index, listed, shown, valid_text
from dlm.decoding.denoiser import Denoiser
from dlm.errors import UserError

GAP = re.compile(r"\[MASK(?::(\d+))?\]")


def read_ids(tokenizer: PreTrainedTokenizerFast, given: Any, where: str, *, after: bool = False) -> list[int]:
    """The ids of one text, whose special tokens stay text, or of a list, an array or a tensor of ids.

    Args:
        where: what errors call it.
        after: whether the text stands behind another one (data.tokenizer.encode).

    Raises:
        UserError: neither of them.
    """
    if isinstance(given, str):
        return encode(tokenizer, [valid_text(given, where)], after=after)[0]
    requirement = f"{where} must be a text or a list of token ids"
    ids = listed(given, where, requirement)
    try:
        return [index(i) for i in ids]
    except TypeError:
        raise UserError(f"{requirement}, got {shown(given)}") from None


def read_canvas(tokenizer: PreTrainedTokenizerFast, denoiser: Denoiser, canvas: Any, where: str) -> list[int]:
    """A text's ids, its gaps as mask ids; ids as they are. Raises UserError as `read_ids`, and for an endless gap."""
    if not isinstance(canvas, str):
        return read_ids(tokenizer, canvas, where)
    pieces = GAP.split(valid_text(canvas, where))  # text, length, text, length, ..., text
    texts = [*encode(tokenizer, pieces[:1]), *encode(tokenizer, pieces[2::2], after=True)]
    ids, most = texts[0], denoiser.max_length or 10**6
    for length, text in zip(pieces[1::2], texts[1:], strict=True):
        digits = (length or "1").lstrip("0")
        require(bool(digits), f"{where}: a gap", "at least one token long", f"[MASK:{length}]")
        if len(digits) > 7 or int(digits) > most:
            raise UserError(f"{where}: a gap of {digits[:20]} tokens is too long; a canvas has at most {most}")
        ids += [denoiser.mask_id] * int(digits) + text
    return ids


def check_lengths(ids: Sequence[Sequence[int]], what: str, limit: int | None, gen_length: int = 0) -> None:
    """Raises UserError where there is nothing, or a row is too long for a model of `limit` positions."""
    if not ids:
        raise UserError(f"no {'canvases' if what == 'canvas' else 'prompts'} were given; pass at least one")
    for number, row in enumerate(ids):
        if limit is not None and len(row) + gen_length > limit:
            length_text = f"{what} {number} has {len(row)} tokens"
            if gen_length:
                raise UserError(
                    f"{length_text}; with gen_length {gen_length} that exceeds the model's {limit} positions; "
                    "shorten one of them"
                )
            raise UserError(f"{length_text}, which exceeds the model's {limit} positions; shorten it")


def check_known(ids: Sequence[Sequence[int]], what: str, denoiser: Denoiser, *, unfit: Set[int] = frozenset()) -> None:
    """Raises UserError for ids that the model does not know, and for those that are `unfit`, a mask's for one."""
    for number, row in enumerate(ids):
        if any(not 0 <= i < denoiser.vocab_size for i in row):
            raise UserError(f"{what} {number} has a token id outside the vocabulary of {denoiser.vocab_size}")
        require(not unfit & set(row), f"{what} {number}", "without masks and padding", list(row[:8]))
