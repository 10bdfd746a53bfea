"""Records from files and from the Hugging Face hub, cleaned in one way."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from numbers import Number
from pathlib import Path
from textwrap import shorten
from typing import Any

from dlm.data.compression import DECOMPRESSORS, read_bytes, unix_lines
from dlm.data.records import Record
from dlm.errors import UserError
from dlm.sources import conversations

# How exports write a missing value into a table of words; None, NA and N/A may be answers.
NULLS = {"NaN", "nan", "NULL", "null", "<NA>"}
Cleaned = tuple[list[Record], dict[str, int]]
Table = tuple[list[str], list[dict[str, Any]]]  # column names; rows as column -> value


def read_records(path: str | Path, columns: dict[str, str], *, require_output: bool = True) -> Cleaned:
    """Read and clean the records of a file; its name's suffixes give the format (READERS, DECOMPRESSORS).

    `columns` maps our instruction, input and output to the file's column names; the one for input may be absent, the
    one for output only without `require_output`, which also keeps empty outputs. Where the column for the instruction
    holds conversations, or is absent and a column of conversations.COLUMNS is there, each answer in a conversation is a
    record. Returned are the records left, in the
    file's order, and the counts of those read, dropped for each cause, and kept.

    Raises:
        UserError: the file is missing, empty, broken, of an unknown format, or without a column or usable record.
    """
    return _clean(_read(Path(path), _used(columns)), columns, str(path), require_output)


def _used(columns: dict[str, str]) -> set[str]:
    return {*columns.values(), *conversations.COLUMNS}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file as they are, column -> value. Raises UserError as `read_records` does, but for columns."""
    return _read(path, None)[1]


def _read(path: Path, used_columns: Collection[str] | None) -> Table:
    """A file's table with its `used_columns`, None for all. Some formats give all columns whatever is used."""
    suffixes = ["", *(suffix.lower() for suffix in path.suffixes if suffix.lower() not in DECOMPRESSORS)]
    if suffixes[-1] not in READERS:
        supported = f"{', '.join(READERS)}, each also with {', '.join(DECOMPRESSORS)}"
        raise _bad(path, f"unknown suffix; rename or convert it to one of {supported}")
    return READERS[suffixes[-1]](read_bytes(path), path, used_columns)


def load_hub(
    name: str, config: str | None, split: str, columns: dict[str, str], *, require_output: bool = True
) -> Cleaned:
    """Load and clean one split of a dataset of the Hugging Face hub (or of a local folder), as `read_records` does.

    Raises:
        UserError: no network, no such dataset, config or split, a missing column, or no usable record.
    """
    import datasets  # here, as it takes seconds and the other sources do without

    try:
        dataset = datasets.load_dataset(name, config, split=split)
        used_columns = list(_used(columns).intersection(dataset.column_names))
        table = dataset.column_names, dataset.select_columns(used_columns).to_list()
    except Exception as error:  # the hub, the network and each builder raise classes of their own
        what = f"cannot load dataset {name!r}, config {config!r}, split {split!r} ({str(error)[:200]})"
        copy = f"download https://huggingface.co/datasets/{name} and set data.source: file, data.file.path: the copy"
        raise _bad("data.hub", f"{what}; check these names, or {copy}") from None
    return _clean(table, columns, f"data.hub: {name}", require_output)


def _clean(table: Table, columns: dict[str, str], where: str, require_output: bool) -> Cleaned:
    """Strip, drop empty and duplicate records, and count."""
    counts = dict.fromkeys(("read", "empty_instruction", "empty_output", "duplicate", "kept"), 0)
    kept: dict[tuple[str, str, str], Record] = {}
    for record in _records(table, columns, where, require_output):
        counts["read"] += 1
        texts = record.instruction, record.input, record.output
        if not record.instruction:
            counts["empty_instruction"] += 1
        elif require_output and not record.output:
            counts["empty_output"] += 1
        elif texts in kept:
            counts["duplicate"] += 1
        else:
            kept[texts] = record
    counts["kept"] = len(kept)
    if not kept:
        tally = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise _bad(where, f"no usable record left ({tally}); check columns, or use data with filled-in records")
    return list(kept.values()), counts


def _records(table: Table, columns: dict[str, str], where: str, require_output: bool) -> Iterator[Record]:
    """Every record, stripped. A row without one of its table's columns reads as null."""
    names, rows = table
    if chat := _chat_column(table, columns["instruction"]):
        for texts in conversations.answers((row.get(chat) for row in rows), where, require_output):
            instruction, output, opening = (_text(text, chat, where) for text in texts)
            yield Record(instruction, "", output, opening=opening)
        return
    for ours, column in columns.items():
        optional = ours == "input" or (ours == "output" and not require_output)
        if column not in names and not optional and (names or rows):
            there = shorten(", ".join(map(repr, names)), 300, placeholder=" ...") or "none"
            raise _bad(where, f"no column {column!r} (for {ours}); set columns to names that are there: {there}")
        if names.count(column) > 1:
            raise _bad(where, f"{names.count(column)} columns are named {column!r}; rename all but one")
    used = columns["instruction"], columns["input"], columns["output"]
    for number, row in enumerate(rows, start=1):
        instruction, context, output = (_text(row.get(name), name, f"{where}: record {number}") for name in used)
        yield Record(instruction, context, output)


def _chat_column(table: Table, instruction: str) -> str | None:
    """The column of conversations: the instruction's where it holds lists, or a well-known one in its absence."""
    names, rows = table
    if instruction not in names:
        return next((name for name in conversations.COLUMNS if name in names), None)
    first = next((row[instruction] for row in rows if row.get(instruction) is not None), None)
    return instruction if isinstance(first, list) else None


def _text(value: Any, column: str, where: str) -> str:
    if value is None or (isinstance(value, float) and value != value):  # exports from data frames write null as NaN
        return ""
    if not isinstance(value, str | Number):
        raise _bad(where, f"column {column!r} holds a {type(value).__name__}; convert it to text")
    text = unix_lines(str(value)).strip()
    if text.encode(errors="ignore").decode() != text:  # half a surrogate pair could not be written later
        raise _bad(where, f"column {column!r} holds half a surrogate pair; remove it")
    return text


def _json(raw: bytes, path: Path, used_columns: Collection[str] | None) -> Table:
    rows = _loads(_decode(raw, path), path, 1, ", or name it .jsonl if each line is an object of its own")
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = rows["data"] if isinstance(rows.get("data"), list) else lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list):
        raise _bad(path, "the top level is not a list of objects; write the records as [{...}, {...}]")
    return _objects(rows, lambda index: f"{path}: record {index + 1}")


def _json_lines(raw: bytes, path: Path, used_columns: Collection[str] | None) -> Table:
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


def _delimited(raw: bytes, path: Path, used_columns: Collection[str] | None, delimiter: str) -> Table:
    text = _decode(raw, path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _bad(f"{path}:{line}", "holds a NUL character; save it as UTF-8 text or remove it")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    limit = csv.field_size_limit(len(text))  # the default, 128 KiB a field, refuses valid files
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
    names, *rest = rows or [[]]
    filled = [[None if field in NULLS else field for field in row] for row in rest]
    return names, [dict(zip(names, row, strict=True)) for row in filled]


def _parquet(raw: bytes, path: Path, used_columns: Collection[str] | None) -> Table:
    import pyarrow as pa  # here, as no other format needs it
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        names = file.schema_arrow.names
        # Only what is used: other columns may hold types without a Python value.
        columns = [name for name in names if used_columns is None or name in used_columns]
        return names, file.read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _bad(path, f"not valid parquet ({str(error)[:200]}); download or write it again") from None


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _bad(path, f"not UTF-8 at byte offset {error.start}; convert it to UTF-8") from None


def _bad(where: str | Path, what: str) -> UserError:
    return UserError(" ".join(f"{where}: {what}".split()))


READERS: dict[str, Callable[[bytes, Path, Collection[str] | None], Table]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".parquet": _parquet,
}
