"""Records from files and from the Hugging Face hub, cleaned in one way."""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Collection
from functools import partial
from numbers import Number
from pathlib import Path
from textwrap import shorten
from typing import Any

import zstandard

from dlm.data.records import Record
from dlm.errors import UserError

Cleaned = tuple[list[Record], dict[str, int]]
Table = tuple[list[str], list[dict[str, Any]]]  # column names; rows as column -> value


def read_records(path: str | Path, columns: dict[str, str], *, require_output: bool = True) -> Cleaned:
    """Read and clean the records of a file; its name's suffixes give the format (READERS, DECOMPRESSORS).

    Args:
        path: JSON (a list of objects, or an object that holds one), JSON lines, CSV, TSV or parquet.
        columns: our instruction, input and output -> the file's column names. The column for `input` may be absent.
        require_output: False lets the column for `output` be absent, and keeps records whose output is empty.

    Returns:
        The records that are left, in the file's order, and how many were read, dropped for each cause, and kept.

    Raises:
        UserError: the file is missing, empty, broken, of an unknown format, or without a column or usable record.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _bad(path, f"cannot be read ({reason}); name a file that exists and may be read") from None
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in DECOMPRESSORS else None
    reader = READERS.get(suffixes[-1] if suffixes else "")
    if reader is None:
        supported = f"{', '.join(READERS)}, each also with {', '.join(DECOMPRESSORS)}"
        raise _bad(path, f"unknown suffix; rename or convert it to one of {supported}")
    if raw and compression:
        try:
            raw = DECOMPRESSORS[compression](raw)
        except (EOFError, OSError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
            raise _bad(path, f"truncated or not {compression} data ({error}); download or write it again") from None
    if not raw.strip():
        raise _bad(path, "is empty; download or write it again")
    return _clean(reader(raw, path, columns.values()), columns, str(path), require_output)


def load_hub(
    name: str, config: str | None, split: str, columns: dict[str, str], *, require_output: bool = True
) -> Cleaned:
    """Load and clean one split of a dataset of the Hugging Face hub (or of a local folder), as `read_records` does.

    Raises:
        UserError: no network, no such dataset, config or split, a missing column, or no usable record.
    """
    # Imported here: it takes seconds, and the other sources do without.
    import datasets

    try:
        dataset = datasets.load_dataset(name, config, split=split)
        wanted = [column for column in dataset.column_names if column in columns.values()]
        table = dataset.column_names, dataset.select_columns(wanted).to_list()
    except Exception as error:  # the hub, the network and each builder raise classes of their own
        reason = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        remedy = (
            f"download https://huggingface.co/datasets/{name}, set data.source: file and data.file.path to the copy"
        )
        what = f"cannot load dataset {name!r}, config {config!r}, split {split!r} ({reason})"
        raise _bad("data.hub", f"{what}; check these names, or {remedy}") from None
    return _clean(table, columns, f"data.hub: {name}", require_output)


def _clean(table: Table, columns: dict[str, str], where: str, require_output: bool) -> Cleaned:
    """Strip, drop empty and duplicate records, and count. A row without one of its table's columns reads as null."""
    names, rows = table
    for ours, column in columns.items():
        optional = ours == "input" or (ours == "output" and not require_output)
        if column not in names and not optional and (names or rows):
            there = shorten(", ".join(map(repr, names)), 300, placeholder=" ...") or "none"
            raise _bad(where, f"no column {column!r} (for {ours}); set columns to names that are there: {there}")
        if names.count(column) > 1:
            raise _bad(where, f"{names.count(column)} columns are named {column!r}; rename all but one")
    counts = dict.fromkeys(("read", "empty_instruction", "empty_output", "duplicate", "kept"), 0)
    # A dict for its order: the records themselves cannot be hashed.
    kept: dict[tuple[str, ...], Record] = {}
    for number, row in enumerate(rows, start=1):
        at = f"{where}: record {number}"
        key = tuple(_text(row.get(columns[ours]), columns[ours], at) for ours in ("instruction", "input", "output"))
        if not key[0]:
            counts["empty_instruction"] += 1
        elif require_output and not key[2]:
            counts["empty_output"] += 1
        elif key in kept:
            counts["duplicate"] += 1
        else:
            kept[key] = Record(*key)
    counts |= {"read": len(rows), "kept": len(kept)}
    if not kept:
        tally = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise _bad(where, f"no usable record left ({tally}); check columns, or use data with filled-in records")
    return list(kept.values()), counts


def _text(value: Any, column: str, where: str) -> str:
    # NaN is how exports from data frames write null.
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str | Number):
        raise _bad(where, f"column {column!r} holds a {type(value).__name__}; convert it to text")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _bad(where, f"column {column!r} holds half a character ({error.reason}); remove it") from None
    return text


def _json(raw: bytes, path: Path, wanted: Collection[str]) -> Table:
    rows = _loads(_decode(raw, path), path, 1, ", or name it .jsonl if each line is an object of its own")
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = rows["data"] if isinstance(rows.get("data"), list) else lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list):
        raise _bad(path, "the top level is not a list of objects; write the records as [{...}, {...}]")
    return _objects(rows, lambda index: f"{path}: record {index + 1}")


def _json_lines(raw: bytes, path: Path, wanted: Collection[str]) -> Table:
    # Not splitlines(): JSON strings may hold U+2028 and the like as they are.
    lines = [(n, line) for n, line in enumerate(_decode(raw, path).split("\n"), start=1) if line.strip()]
    return _objects([_loads(line, path, n) for n, line in lines], lambda index: f"{path}:{lines[index][0]}")


def _objects(rows: list[Any], where: Callable[[int], str]) -> Table:
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise _bad(where(index), f"not an object but a {type(row).__name__}; write each record as {{...}}")
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _loads(text: str, path: Path, line: int, hint: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = line + error.lineno - 1, f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting without end
        reason = str(error)
    raise _bad(f"{path}:{line}", f"not valid JSON ({reason}); mend it, or download it again if it is truncated{hint}")


def _delimited(raw: bytes, path: Path, wanted: Collection[str], delimiter: str) -> Table:
    text = _decode(raw, path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _bad(f"{path}:{line}", "holds a NUL character; save it as UTF-8 text or remove it")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    # The module's limit for one field (128 KiB) refuses valid files.
    limit = csv.field_size_limit(len(text))
    try:
        for row in filter(None, reader):
            rows.append(row)
            if len(row) != len(rows[0]):
                what = f"{len(row)} fields where the header has {len(rows[0])}; quote fields that hold the delimiter"
                raise _bad(f"{path}:{reader.line_num}", what)
    except csv.Error as error:
        raise _bad(f"{path}:{reader.line_num}", f"{error}; mend the quotes (a quote inside one is doubled)") from None
    finally:
        csv.field_size_limit(limit)
    names = rows[0] if rows else []
    return names, [dict(zip(names, row, strict=True)) for row in rows[1:]]


def _parquet(raw: bytes, path: Path, wanted: Collection[str]) -> Table:
    # Imported here: no other format needs it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        names = file.schema_arrow.names
        # Only what is used: other columns may hold types without a Python value.
        return names, file.read(columns=[name for name in names if name in wanted]).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _bad(path, f"not valid parquet ({str(error)[:200]}); download or write it again") from None


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _bad(path, f"not UTF-8 at byte offset {error.start}; convert it to UTF-8") from None


def _unzstd(raw: bytes) -> bytes:
    # Frame by frame: zstandard's file objects take a truncated frame for the end of the file.
    frames = []
    while raw:
        frame = zstandard.ZstdDecompressor().decompressobj()
        frames.append(frame.decompress(raw))
        if not frame.eof:
            raise EOFError("the last frame is not complete")
        raw = frame.unused_data
    return b"".join(frames)


def _bad(where: str | Path, what: str) -> UserError:
    return UserError(" ".join(f"{where}: {what}".split()))


DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": partial(lzma.decompress, format=lzma.FORMAT_XZ),
    ".gz": gzip.decompress,
    ".zst": _unzstd,
}
READERS: dict[str, Callable[[bytes, Path, Collection[str]], Table]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".parquet": _parquet,
}
