"""Running text for pretraining: documents -> equal rows of token ids."""

import lzma
from collections.abc import Iterable, Iterator
from gzip import open as gzip_open
from pathlib import Path

import zstandard
from transformers import PreTrainedTokenizerFast

from dlm.data.tokenizer import encode
from dlm.errors import UserError

OPENERS = {".xz": lzma.open, ".gz": gzip_open, ".zst": zstandard.open}
ENCODE_AT_ONCE = 2000


def read_documents(path: Path | str, limit: int | None = None) -> list[str]:
    """Documents of a UTF-8 text file (.txt, also .xz .gz .zst), separated by blank lines; at most `limit` of them.

    Raises:
        UserError: no such file, not UTF-8, truncated, or empty.
    """
    path = Path(path)
    opener = OPENERS.get(path.suffix, open)
    documents: list[str] = []
    lines: list[str] = []
    try:
        with opener(path, "rt", encoding="utf-8") as handle:  # type: ignore[operator]
            for line in handle:
                if line.strip():
                    lines.append(line.strip())
                elif lines:
                    documents.append("\n".join(lines))
                    lines = []
                if limit is not None and len(documents) >= limit:
                    break
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set base.text to a text file or to train") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); convert it to UTF-8") from None
    except (EOFError, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); is it truncated?") from None
    if lines and (limit is None or len(documents) < limit):
        documents.append("\n".join(lines))
    if not documents:
        raise UserError(f"{path}: no text in it; base.text needs documents separated by blank lines")
    return documents


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
