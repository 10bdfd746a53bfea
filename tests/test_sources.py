"""Reading and cleaning records: every format and compression, counts by hand, one clear line for bad input."""

import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlm.data.records import Record
from dlm.errors import UserError
from dlm.sources.readers import NULLS, load_hub, read_records

Row = dict[str, Any]

ALPACA = {"instruction": "instruction", "input": "input", "output": "output"}
QA = {"instruction": "question", "input": "context", "output": "answer"}
HEADER = "instruction,input,output\n"
ROWS: list[Row] = [
    {"instruction": "Add, please.", "input": "1\n2", "output": 'He said "3".'},
    {"instruction": "Translate the tab.\tNow.", "input": "", "output": "Größe – 漢字 🎈"},
    {"instruction": "Break\u2028lines?", "input": "x", "output": "No\u0085not here."},
]
RECORDS = [Record(row["instruction"], row["input"], row["output"]) for row in ROWS]

# One row for each thing that cleaning does.
DIRTY: list[Row] = [
    {"instruction": " Count. ", "input": None, "output": "\t1 2 3\n"},
    {"instruction": "Count.", "input": "", "output": "1 2 3"},
    {"instruction": "Count.", "input": "", "output": "1 2 3 4"},
    {"instruction": "Count.", "input": "up", "output": "1 2 3"},
    {"instruction": "  ", "input": "", "output": "orphan"},
    {"instruction": None, "input": "", "output": ""},
    {"instruction": "No answer.", "input": "", "output": " \n"},
    {"instruction": "No answer.", "input": "", "output": None},
    {"instruction": "Count.", "input": "", "output": "1 2 3"},
]
CLEAN = [Record("Count.", "", "1 2 3"), Record("Count.", "", "1 2 3 4"), Record("Count.", "up", "1 2 3")]
CLEAN_COUNTS = {"read": 9, "empty_instruction": 2, "empty_output": 2, "duplicate": 2, "kept": 3}


def as_json(rows: list[Row]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def as_lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_table(rows: list[Row], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ALPACA), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


WRITERS: dict[str, Callable[[list[Row]], bytes]] = {
    ".json": as_json,
    ".jsonl": as_lines,
    ".ndjson": as_lines,
    ".csv": as_table,
    ".tsv": lambda rows: as_table(rows, "\t"),
    ".parquet": as_parquet,
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def refused(path: Path, columns: dict[str, str] = ALPACA, *, require_output: bool = True) -> str:
    """The message of the UserError, after checking what every message must be."""
    with pytest.raises(UserError) as caught:
        read_records(path, columns, require_output=require_output)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(str(path))
    assert len(message) < 700
    return message


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    def write(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


Put = Callable[[str, bytes | str], Path]


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_and_compression(put: Put, suffix: str, compression: str) -> None:
    path = put(f"my.data{suffix}{compression}", COMPRESSORS[compression](WRITERS[suffix](ROWS)))
    records, counts = read_records(str(path), ALPACA)
    assert records == RECORDS
    assert counts == {"read": 3, "empty_instruction": 0, "empty_output": 0, "duplicate": 0, "kept": 3}


@pytest.mark.parametrize("suffix", WRITERS)
def test_cleaning_counts(put: Put, suffix: str) -> None:
    assert read_records(put("dirty" + suffix, WRITERS[suffix](DIRTY)), ALPACA) == (CLEAN, CLEAN_COUNTS)


def test_empty_outputs_stay_when_not_required(put: Put) -> None:
    records, counts = read_records(put("dirty.json", as_json(DIRTY)), ALPACA, require_output=False)
    assert records == [*CLEAN, Record("No answer.", "", "")]
    assert counts == {"read": 9, "empty_instruction": 2, "empty_output": 0, "duplicate": 3, "kept": 4}


@pytest.mark.parametrize("suffix", WRITERS)
def test_other_column_names_and_absent_columns(put: Put, suffix: str) -> None:
    def rows(names: dict[str, str]) -> list[Row]:
        return [{names[ours]: row[ours] for ours in names} for row in ROWS]

    def write(name: str, table: list[Row]) -> Path:
        if suffix not in (".csv", ".tsv"):
            return put(name + suffix, WRITERS[suffix](table))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(table[0]), delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(table)
        return put(name + suffix, text.getvalue())

    assert read_records(write("qa", rows(QA)), QA)[0] == RECORDS
    no_input = rows({"instruction": "question", "output": "answer"})
    assert read_records(write("no_input", no_input), QA)[0] == [Record(r.instruction, "", r.output) for r in RECORDS]
    prompts = write("prompts", rows({"instruction": "question"}))
    assert read_records(prompts, QA, require_output=False)[0] == [Record(r.instruction, "", "") for r in RECORDS]
    message = refused(prompts, QA)
    assert "no column 'answer' (for output)" in message
    assert "set columns" in message
    assert message.endswith("'question'")


def test_other_columns_are_ignored(put: Put) -> None:
    rows = [{**row, "turns": ["a"], "vector": [1.0], "text": "x"} for row in ROWS]
    for suffix in (".json", ".jsonl", ".parquet"):
        assert read_records(put("more" + suffix, WRITERS[suffix](rows)), ALPACA)[0] == RECORDS


def beyond_python() -> bytes:
    """ROWS in parquet, beside a column of dates that have no Python value."""
    dates = pa.array([2**62] * len(ROWS), pa.timestamp("us"))
    with pytest.raises((OverflowError, ValueError)):
        dates.to_pylist()
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("date", dates), sink)
    return sink.getvalue()


def test_other_columns_of_parquet_are_not_even_converted(put: Put) -> None:
    assert read_records(put("dates.parquet", beyond_python()), ALPACA)[0] == RECORDS


@pytest.mark.parametrize(
    "top",
    [
        {"data": ROWS},
        {"data": ROWS, "other": [1]},
        {"version": 1, "rows": ROWS},
        {"data": "a name", "rows": ROWS},
    ],
)
def test_json_object_around_the_list(put: Put, top: Any) -> None:
    assert read_records(put("wrapped.json", json.dumps(top)), ALPACA)[0] == RECORDS


def test_a_key_that_some_json_records_lack_reads_as_null(put: Put) -> None:
    rows: list[Row] = [{"instruction": "a", "output": "b"}, {"instruction": "c"}, {"output": "d"}]
    records, counts = read_records(put("some.json", as_json(rows)), ALPACA)
    assert records == [Record("a", "", "b")]
    assert counts == {"read": 3, "empty_instruction": 1, "empty_output": 1, "duplicate": 0, "kept": 1}


def test_numbers_become_text_and_nan_is_null(put: Put) -> None:
    rows: list[Row] = [
        {"instruction": 7, "input": 2.5, "output": True},
        {"instruction": "a", "input": float("nan"), "output": 0},
        {"instruction": "b", "input": "", "output": float("nan")},
    ]
    records, counts = read_records(put("numbers.json", as_json(rows)), ALPACA)
    assert records == [Record("7", "2.5", "True"), Record("a", "", "0")]
    assert counts["empty_output"] == 1
    whole = [{"instruction": 7, "input": None, "output": 2.5}]
    assert read_records(put("numbers.parquet", as_parquet(whole)), ALPACA)[0] == [Record("7", "", "2.5")]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv"])
def test_byte_order_mark_and_windows_line_ends(put: Put, suffix: str) -> None:
    rows = [{"instruction": "a", "input": "", "output": "b"}, {"instruction": "c", "input": "d", "output": "e"}]
    text = WRITERS[suffix](rows).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert read_records(put("bom" + suffix, b"\xef\xbb\xbf" + text), ALPACA)[0] == [
        Record("a", "", "b"),
        Record("c", "d", "e"),
    ]


@pytest.mark.parametrize("suffix", WRITERS)
def test_lines_within_a_field_end_as_unix_has_it(put: Put, suffix: str) -> None:
    """Written on Windows, and on old Macs."""
    rows = [{"instruction": "List.\r\nTwo.", "input": "a\rb", "output": "\r\n1\r\n\r\n2\r\n"}]
    path = put("windows" + suffix, WRITERS[suffix](rows))
    assert read_records(path, ALPACA)[0] == [Record("List.\nTwo.", "a\nb", "1\n\n2")]


@pytest.mark.parametrize("null", ["NaN", "nan", "null", "NULL", "<NA>"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_what_exports_write_for_null_is_null_in_a_table(put: Put, suffix: str, null: str) -> None:
    """Words that may be answers stay, and so do these words in formats that have a null."""
    rows = [
        {"instruction": "a", "input": null, "output": "NA"},
        {"instruction": "b", "input": "", "output": null},
        {"instruction": null, "input": "", "output": "c"},
        {"instruction": "d", "input": "N/A", "output": f"{null} and None"},
    ]
    records, counts = read_records(put("export" + suffix, WRITERS[suffix](rows)), ALPACA)
    assert records == [Record("a", "", "NA"), Record("d", "N/A", f"{null} and None")]
    assert (counts["empty_output"], counts["empty_instruction"]) == (1, 1)
    assert len(read_records(put("words.json", as_json(rows)), ALPACA)[0]) == 4


def test_csv_with_carriage_returns_alone(put: Put) -> None:
    path = put("mac.csv", "instruction,input,output\ra,b,c\rd,,e\r")
    assert read_records(path, ALPACA)[0] == [Record("a", "b", "c"), Record("d", "", "e")]


def test_blank_lines_upper_case_suffix_and_long_fields(put: Put) -> None:
    text = "x" * 300_000
    limit = csv.field_size_limit()
    assert read_records(put("long.CSV", f"{HEADER}\na,,{text}\n\n"), ALPACA)[0] == [Record("a", "", text)]
    assert csv.field_size_limit() == limit
    assert read_records(put("blank.JSONL.GZ", gzip.compress(b"\n \n" + as_lines(ROWS) + b"\n")), ALPACA)[0] == RECORDS


def test_zst_of_several_frames(put: Put) -> None:
    half = len(as_lines(ROWS)) // 2
    frames = zstandard.compress(as_lines(ROWS)[:half]) + zstandard.compress(as_lines(ROWS)[half:])
    assert read_records(put("frames.jsonl.zst", frames), ALPACA)[0] == RECORDS


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "No such file or directory); name a file that exists" in refused(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    assert "Is a directory); name a file" in refused(tmp_path / "folder.json")
    assert "name a file" in refused(tmp_path / "nul\0.json")


@pytest.mark.parametrize("name", ["a.txt", "a", ".json", "a.json.bz2", "a.xz", "json"])
def test_unknown_suffix(put: Put, name: str) -> None:
    message = refused(put(name, as_json(ROWS)))
    assert "unknown suffix; rename or convert" in message
    for suffix in [*WRITERS, ".xz", ".gz", ".zst"]:
        assert suffix in message.removeprefix(name)


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_empty_file(put: Put, suffix: str, compression: str) -> None:
    for content in (b"", COMPRESSORS[compression](b""), COMPRESSORS[compression](b" \n")):
        assert "is empty; download or write it again" in refused(put("a" + suffix + compression, content))


@pytest.mark.parametrize(
    ("name", "content", "tally"),
    [
        ("a.json", b"[]", "read 0"),
        ("a.csv", HEADER.encode(), "read 0"),
        ("a.parquet", as_parquet([{**row, "instruction": " "} for row in ROWS]), "read 3, empty_instruction 3"),
        ("a.json", as_json([{"instruction": "a", "output": ""}]), "empty_output 1"),
    ],
)
def test_no_usable_record(put: Put, name: str, content: bytes, tally: str) -> None:
    message = refused(put(name, content))
    assert "no usable record left" in message
    assert "check columns" in message
    assert tally in message
    assert "kept 0" in message


def test_truncated_json(put: Put) -> None:
    whole = b"[\n" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b"\n]"
    assert read_records(put("whole.json", whole), ALPACA)[0] == RECORDS
    for end in range(1, len(whole)):
        assert "download it again if it is truncated" in refused(put("cut.json", whole[:end]))
    path = put("cut.json", whole[: whole.index(b"\n", 5) + 5])
    assert refused(path).startswith(f"{path}:3: not valid JSON")


@pytest.mark.parametrize("compression", [".xz", ".gz", ".zst"])
def test_truncated_and_wrong_compression(put: Put, compression: str) -> None:
    whole = COMPRESSORS[compression](as_json(ROWS))
    name = "cut.json" + compression
    for end in range(1, len(whole)):
        message = refused(put(name, whole[:end]))
        assert f"truncated or not {compression} data" in message
        assert "download or write it again" in message
    assert "truncated or not" in refused(put(name, as_json(ROWS)))
    assert "truncated or not" in refused(put(name, whole + whole[: len(whole) // 2]))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".json.gz"])
def test_not_utf8(put: Put, suffix: str) -> None:
    content = b'["ab\xff"]'
    content = gzip.compress(content) if suffix.endswith(".gz") else content
    assert "not UTF-8 at byte offset 4; convert it to UTF-8" in refused(put("latin" + suffix, content))
    with_mark = b'\xef\xbb\xbf["\xff"]'
    if not suffix.endswith(".gz"):
        assert "byte offset 5;" in refused(put("mark" + suffix, with_mark))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"instruction": "a", "outp', "not valid JSON (Unterminated string starting at at column 22); mend it"),
        ('{"instruction": 1} {}', "Extra data at column 20"),
        ("[1, 2]", "not an object but a list; write each record"),
        ("null", "not an object but a NoneType; write each record"),
        ("9" * 5000, "not valid JSON (Exceeds the limit"),
    ],
)
def test_broken_line_of_json_lines(put: Put, line: str, reason: str) -> None:
    path = put("a.jsonl", '{"instruction": "a", "output": "b"}\n\n' + line + '\n{"instruction": "c", "output": "d"}\n')
    message = refused(path)
    assert message.startswith(f"{path}:3: ")
    assert reason in message


def test_json_lines_under_the_name_of_json(put: Put) -> None:
    path = put("a.json", as_lines(ROWS))
    message = refused(path)
    assert message.startswith(f"{path}:2: not valid JSON (Extra data")
    assert "name it .jsonl" in message


@pytest.mark.parametrize("content", ['"text"', "3", "null", "{}", '{"a": [{}], "b": [{}]}', '{"data": {"a": 1}}'])
def test_json_of_another_shape(put: Put, content: str) -> None:
    message = refused(put("shape.json", content))
    assert "the top level is not a list of objects; write the records as [{...}, {...}]" in message


def test_json_list_of_something_else(put: Put) -> None:
    path = put("shape.json", '[{"instruction": "a", "output": "b"}, ["c", "d"]]')
    assert refused(path) == f"{path}: record 2: not an object but a list; write each record as {{...}}"


def test_json_nested_without_end(put: Put) -> None:
    assert "not valid JSON" in refused(put("deep.json", "[" * 200_000))


@pytest.mark.parametrize("value", [["a"], {"a": 1}, []])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_value_that_is_not_text(put: Put, suffix: str, value: Any) -> None:
    rows = [{"instruction": "a", "output": None}, {"instruction": "b", "output": value}]
    message = refused(put("nested" + suffix, WRITERS[suffix](rows)))
    assert f"record 2: column 'output' holds a {type(value).__name__}; convert it to text" in message


def test_bytes_and_half_surrogates(put: Put) -> None:
    message = refused(put("bytes.parquet", as_parquet([{"instruction": b"a", "output": "b"}])))
    assert "record 1: column 'instruction' holds a bytes; convert" in message
    message = refused(put("half.json", '[{"instruction": "a", "output": "\\ud83c"}]'))
    assert "record 1: column 'output' holds half a surrogate pair; remove it" in message
    whole = put("whole.json", '[{"instruction": "a", "output": "\\ud83c\\udf88"}]')
    assert read_records(whole, ALPACA)[0] == [Record("a", "", "\U0001f388")]


@pytest.mark.parametrize("suffix", WRITERS)
def test_missing_column(put: Put, suffix: str) -> None:
    message = refused(put("columns" + suffix, WRITERS[suffix](ROWS)), {**ALPACA, "instruction": "prompt"})
    assert "no column 'prompt' (for instruction); set columns" in message
    assert message.endswith("'instruction', 'input', 'output'")


def test_missing_column_of_a_file_with_very_many(put: Put) -> None:
    assert "no column 'instruction'" in refused(put("wide.csv", ",".join(f"c{i}" for i in range(5000)) + "\n"))
    assert "no column 'instruction'" in refused(put("one.csv", "c" * 5000 + "\n"))


def test_column_that_is_there_twice(put: Put) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["instruction", "output", "output"]), sink)
    for path in (put("twice.csv", "instruction,output,output\na,b,c\n"), put("twice.parquet", sink.getvalue())):
        assert "2 columns are named 'output'; rename all but one" in refused(path)


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        ("a,b,c\nd,e\n", 3, "2 fields where the header has 3; quote fields"),
        ('"a\na",b,c\nd,e,f,g\n', 4, "4 fields where the header has 3; quote fields"),
        ('a,b,c\nd,"e,f\n', 3, "unexpected end of data; mend the quotes"),
        ('a,b,c\n"d"d,e,f\n', 3, "expected after '\"'; mend the quotes"),
        ("a,b,c\nd,\0,f\n", 3, "holds a NUL character; save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_broken_csv(put: Put, body: str, line: int, reason: str, delimiter: str) -> None:
    path = put("broken.csv" if delimiter == "," else "broken.tsv", (HEADER + body).replace(",", delimiter))
    message = refused(path)
    assert message.startswith(f"{path}:{line}: ")
    assert reason in message


def test_corrupted_parquet(put: Put) -> None:
    whole = as_parquet(ROWS)
    for content in (whole[:-5], whole[5:], b"PAR1" + b"\0" * 50 + b"PAR1", as_json(ROWS), whole[:4] + whole[-40:]):
        message = refused(put("corrupt.parquet", content))
        assert "not valid parquet" in message
        assert "download or write it again" in message


# Records as files hold them: any text (csv.writer and the reader agree on everything but NUL), with blanks and repeats.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
tables = st.lists(st.fixed_dictionaries({name: texts | st.sampled_from(["", " ", "a"]) for name in ALPACA}), max_size=8)
quick = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
@settings(quick, max_examples=80)
@given(rows=tables)
def test_round_trip(tmp_path: Path, suffix: str, rows: list[Row]) -> None:
    path = tmp_path / f"round{suffix}"
    header: Row = {"instruction": "first", "input": "", "output": "row"}
    path.write_bytes(WRITERS[suffix]([header, *rows]))
    expected = [Record("first", "", "row")]
    for written in rows:
        table = suffix in (".csv", ".tsv")
        row = {name: "" if table and text in NULLS else text for name, text in written.items()}
        record = Record(*(row[name].replace("\r\n", "\n").replace("\r", "\n").strip() for name in ALPACA))
        if record.instruction and record.output and record not in expected:
            expected.append(record)
    records, counts = read_records(path, ALPACA)
    assert records == expected
    assert counts["kept"] == len(expected)
    assert counts["read"] == len(rows) + 1 == sum(counts.values()) - counts["read"]


def read_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        records, counts = read_records(path, ALPACA)
    except UserError as error:
        assert str(error).splitlines() == [str(error)]
    else:
        assert len(records) == counts["kept"] > 0
        assert all(record.instruction and record.output for record in records)


# Bytes that come further than the first check: pieces of the formats, and whole files with a few bytes changed.
fragments = [*'",\n\r[]{}:a\0', "null", "1e999", "NaN", '"\\ud800"', "\ufeff", "PAR1", HEADER]
fragments += ['"instruction"', '"output"', '{"instruction":"a","output":"b"}']
pieces = st.sampled_from([fragment.encode() for fragment in fragments])
noise = st.binary(max_size=200) | st.lists(pieces | st.binary(max_size=2), max_size=20).map(b"".join)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ".json.xz", ".json.gz", ".json.zst"])
@quick
@given(content=noise)
def test_random_bytes(tmp_path: Path, suffix: str, content: bytes) -> None:
    read_or_refuse(tmp_path / f"noise{suffix}", content)
    if suffix.startswith(".json."):
        read_or_refuse(tmp_path / f"inside{suffix}", COMPRESSORS[suffix.removeprefix(".json")](content))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ".json.xz", ".json.gz", ".json.zst"])
@quick
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes(tmp_path: Path, suffix: str, changes: list[tuple[float, int]]) -> None:
    form, _, compression = suffix[1:].partition(".")
    content = bytearray(COMPRESSORS[compression and "." + compression](WRITERS["." + form](ROWS)))
    for place, value in changes:
        content[int(place * len(content))] = value
    read_or_refuse(tmp_path / f"changed{suffix}", bytes(content))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_hub_loads_and_cleans_as_files_do(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = [{**row, "turns": [1, 2]} for row in DIRTY]
    (folder / f"train{suffix}").write_bytes(WRITERS[suffix](rows))
    assert load_hub(str(folder), None, "train", ALPACA) == (CLEAN, CLEAN_COUNTS)
    prompts, counts = load_hub(str(folder), None, "train", {**ALPACA, "output": "answer"}, require_output=False)
    assert prompts == [Record("Count.", "", ""), Record("Count.", "up", ""), Record("No answer.", "", "")]
    assert (counts["duplicate"], counts["empty_output"]) == (4, 0)


@pytest.mark.usefixtures("hub_cache")
def test_hub_ignores_other_columns(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(beyond_python())
    assert load_hub(str(folder), None, "train", ALPACA)[0] == RECORDS


@pytest.mark.usefixtures("hub_cache")
def test_hub_mistakes(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(as_lines(ROWS))
    name = str(folder)
    for arguments, reason in [
        ((name, None, "test", ALPACA), "'train'"),
        ((name, "other", "train", ALPACA), "other"),
        ((str(tmp_path / "none"), None, "train", ALPACA), "data.source: file"),
        (("", None, "train", ALPACA), "check these names"),
        ((name, None, "train", QA), "no column 'question' (for instruction); set columns"),
    ]:
        with pytest.raises(UserError) as caught:
            load_hub(*arguments)
        message = str(caught.value)
        assert message.splitlines() == [message]
        assert message.startswith("data.hub: ")
        assert reason in message


def test_hub_without_a_network(tmp_path: Path) -> None:
    script = (
        "from dlm.sources.readers import load_hub\n"
        "from dlm.errors import UserError\n"
        "try:\n"
        f"    load_hub('nobody/no-such-dataset', None, 'train', {ALPACA!r})\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    (message,) = done.stdout.splitlines()
    assert message.startswith("data.hub: cannot load dataset 'nobody/no-such-dataset'")
    assert "download https://huggingface.co/datasets/nobody/no-such-dataset" in message
    assert "data.source: file" in message
    assert "data.file.path" in message
