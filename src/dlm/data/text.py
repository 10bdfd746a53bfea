"""Running text for pretraining: documents -> equal rows of token ids."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerFast

from dlm.config.training import BaseParams
from dlm.data.compression import read_bytes, unix_lines
from dlm.data.splits import read_split
from dlm.data.tokenizer import encode
from dlm.errors import UserError

T = TypeVar("T")
ENCODE_AT_ONCE = 2000
MOST_VALID = 500  # held-out documents that the loss is computed on


def read_documents(path: Path | str) -> list[str]:
    """Documents of a UTF-8 text file (.txt, also .xz .gz .zst), separated by blank lines.

    Raises:
        UserError: no such file, not UTF-8, truncated, or empty.
    """
    try:
        text = unix_lines(read_bytes(Path(path)).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert it to UTF-8") from None
    return [document.strip() for document in re.split(r"\n\s*\n", text) if document.strip()]


def split_documents(documents: list[T], held_out: float) -> tuple[list[T], list[T]]:
    """The documents to train on, and the last ones, a share of `held_out`, to test on."""
    cut = len(documents) - round(len(documents) * held_out)
    return documents[:cut], documents[cut:]


def read_rows(path: Path | str, length: int, entries: int) -> Int[np.ndarray, "rows length"]:
    """Running text that is tokenised already (tools/pack.py): a NumPy file of ids [rows, length].

    Raises:
        UserError: no such file, rows of another length, or ids that the tokenizer does not have.
    """
    try:
        with Path(path).open("rb") as file:
            ids = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no rows of ids could be read ({str(error).splitlines()[0]})") from None
    fits = ids.ndim == 2 and ids.shape[1] == length and ids.dtype.kind in "iu" and ids.size > 0
    if not fits or ids.min() < 0 or ids.max() >= entries:
        raise UserError(
            f"{path}: must hold rows of base.sequence_length ({length}) ids below {entries}, got {ids.shape}"
        )
    return ids.astype(np.int64)


def packed_text(base: BaseParams, data: Path, tokenizer: PreTrainedTokenizerFast) -> list[list[dict[str, Any]]]:
    """Rows {ids} of running text, to train on and to validate on: the records', or those of `base.text`.

    With `base.text` a share of the training rows may be the records', and the text it holds out validates.

    Args:
        data: the prepared splits.

    Raises:
        UserError: as read_documents, read_rows and read_split; a mask in rows of ids.
    """
    length = base.sequence_length
    needed = base.training.steps * base.training.batch_size * base.training.gradient_accumulation
    records = {
        split: [row["prompt"] + row["output"] for row in read_split(data, split, ["prompt", "output"])]
        for split in ("train", "valid")
    }
    train: list[Any]
    valid: list[Any] = []
    if base.text == "train":
        train = pack(tokenizer, records["train"], length, needed)
    elif base.text.endswith(".npy"):
        rows = read_rows(base.text, length, len(tokenizer))
        if (rows == tokenizer.mask_token_id).any():
            raise UserError(f"{base.text}: must hold no mask ({tokenizer.mask_token_id}); pack it with this tokenizer")
        train, valid = split_documents(list(rows), base.held_out)
        train, valid = train[:needed], valid[:MOST_VALID]
    else:
        documents, held_out = split_documents(read_documents(base.text), base.held_out)
        train, valid = pack(tokenizer, documents, length, needed), pack(tokenizer, held_out[:MOST_VALID], length)
    if base.records_share:
        train = mixed(train, pack(tokenizer, records["train"], length, needed), base.records_share)
    return [[{"ids": ids} for ids in rows] for rows in (train, valid or pack(tokenizer, records["valid"], length))]


def mixed(rows: list[T], others: list[T], share: float) -> list[T]:
    """`rows` and others, which make up `share` of the whole and are repeated where there are too few."""
    if share == 1:
        return others
    count = round(len(rows) * share / (1 - share))
    return rows + [others[i % len(others)] for i in range(count)]


def pack(
    tokenizer: PreTrainedTokenizerFast, documents: Iterable[str], length: int, limit: int | None = None
) -> list[list[int]]:
    """Rows of exactly `length` ids. Documents, each closed by EOS, stand side by side in a row.

    A document is cut only when it is longer than a row; one that no longer fits starts the next row, and the rest of
    the row is filled with EOS. At most `limit` rows are made.
    """
    eos = tokenizer.eos_token_id
    rows: list[list[int]] = []
    row: list[int] = []
    for batch in _batches(documents):
        for ids in encode(tokenizer, batch):
            for start in range(0, len(ids) + 1, length):
                piece = [*ids, eos][start : start + length]
                if len(row) + len(piece) > length:
                    rows.append(row + [eos] * (length - len(row)))
                    row = []
                row = row + piece
        if limit is not None and len(rows) >= limit:
            return rows[:limit]
    return [*rows, row + [eos] * (length - len(row))] if row else rows


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == ENCODE_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
