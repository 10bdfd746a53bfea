"""Running text: documents from files, and what users see when something is wrong with them."""

import errno
import gzip
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from scripts import ROOT

from dlm.pipeline.start import run_script
from dlm.config.params import load_params
from dlm.config.training import BaseParams
from dlm.data.records import Record
from dlm.data.splits import Example, write_examples
from dlm.data.text import mixed, packed_text, read_documents, read_rows, split_documents
from dlm.data.tokenizer import encode, train_tokenizer
from dlm.errors import UserError

TEXT = "First line.\nIts second line.\n\nSecond document.\n \n\nThird, mit Umlaut: ü.\n"
DOCUMENTS = ["First line.\nIts second line.", "Second document.", "Third, mit Umlaut: ü."]
PACKED = {
    "t.txt": lambda raw: raw,
    "t.txt.xz": lzma.compress,
    "t.txt.gz": gzip.compress,
    "t.txt.zst": lambda raw: zstandard.ZstdCompressor().compress(raw),
}


@pytest.mark.parametrize("name", PACKED)
def test_documents_are_separated_by_blank_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PACKED[name](TEXT.encode()))
    assert read_documents(tmp_path / name) == DOCUMENTS


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_end_as_unix_has_it(tmp_path: Path, end: str) -> None:
    (tmp_path / "t.txt").write_bytes(TEXT.replace("\n", end).encode())
    assert read_documents(tmp_path / "t.txt") == DOCUMENTS


@pytest.mark.parametrize("name", ["t.txt.xz", "t.txt.gz", "t.txt.zst"])
def test_truncated_text_is_refused(tmp_path: Path, name: str) -> None:
    packed = PACKED[name]((TEXT * 2000).encode())
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="truncated"):
        read_documents(tmp_path / name)


@pytest.mark.parametrize(
    ("raw", "message"), [(b"", "empty"), (b" \n \n", "empty"), (b"ab\xff\xfe", r"not UTF-8 \(byte 2\)")]
)
def test_bad_text_is_one_line(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "t.txt").write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        read_documents(tmp_path / "t.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("share", "held_out"), [(0.0, 0), (0.1, 1), (0.34, 3), (0.5, 5)])
def test_the_last_documents_are_held_out(share: float, held_out: int) -> None:
    documents = [f"document {i}" for i in range(10)]
    train, rest = split_documents(documents, share)
    assert train + rest == documents and len(rest) == held_out


def splits(folder: Path, *words: str) -> None:
    """Prepared splits of records without a prompt, whose answers are `words`, for training and validation alike."""
    rows = [Example(Record("", "", word), "", [], []) for word in words]
    for split in ("train", "valid"):
        write_examples(folder / f"{split}.parquet", rows)


def running(text: Path | str, length: int = 2, steps: int = 100, **changes: Any) -> BaseParams:
    """The block `base` for running text, a row a step."""
    shipped = load_params(ROOT / "params.yaml").base
    training = replace(shipped.training, steps=steps, batch_size=1, gradient_accumulation=1)
    return replace(shipped, rows="text", text=str(text), sequence_length=length, training=training, **changes)


LETTERS = train_tokenizer([], 260)  # one id a byte


def letter_rows(letters: str) -> list[list[int]]:
    """A letter and its EOS."""
    return [[*encode(LETTERS, [letter])[0], LETTERS.eos_token_id] for letter in letters]


def packed(base: BaseParams, folder: Path) -> list[list[list[int]]]:
    return [[list(row["ids"]) for row in rows] for rows in packed_text(base, folder, LETTERS)]


def test_text_for_pretraining(tmp_path: Path) -> None:
    """A file's documents but for those held out, which are what validation is on; as many rows as the steps need."""
    (tmp_path / "t.txt").write_text("\n\n".join("abcdefgh"))
    splits(tmp_path)
    base = running(tmp_path / "t.txt", steps=3, held_out=0.25)
    assert packed(base, tmp_path) == [letter_rows("abc"), letter_rows("gh")]


def test_records_as_running_text(tmp_path: Path) -> None:
    splits(tmp_path, "a", "b", "c")
    assert packed(running("train", steps=2), tmp_path) == [letter_rows("ab"), letter_rows("abc")]


def test_text_without_any_held_out_is_validated_on_the_records(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("x\n\ny")
    splits(tmp_path, "a", "b")
    assert packed(running(tmp_path / "t.txt"), tmp_path) == [letter_rows("xy"), letter_rows("ab")]


def test_records_among_the_text(tmp_path: Path) -> None:
    """6 rows of text are 3/4 of 8: two of the records' rows beside them; 3/5 of 10: four, of which one recurs."""
    (tmp_path / "t.txt").write_text("\n\n".join("uvwxyz"))
    splits(tmp_path, "a", "b", "c")
    for share, others in ((0.0, ""), (0.25, "ab"), (0.4, "abca"), (1.0, "abc")):
        text = "" if share == 1 else "uvwxyz"
        found = packed(running(tmp_path / "t.txt", records_share=share), tmp_path)
        assert found == [letter_rows(text + others), letter_rows("abc")]


def test_mixed_by_hand() -> None:
    """6 rows beside share / (1 - share) times as many: 0, 2/3 -> 1, 2, 6 and 54 of them."""
    rows, others = list("abcdef"), list("XYZ")
    assert mixed(rows, others, 0.0) == rows
    assert mixed(rows, others, 0.1) == [*rows, "X"]
    assert mixed(rows, others, 0.25) == [*rows, "X", "Y"]
    assert mixed(rows, others, 0.5) == [*rows, *"XYZXYZ"]
    assert mixed(rows, others, 0.9) == [*rows, *others * 18]
    assert mixed(rows, others, 1.0) == others


def test_rows_with_masks(tmp_path: Path) -> None:
    """Of another tokenizer, which has a word in the mask's place: it would stand masked on every canvas."""
    splits(tmp_path, "a", "b")
    np.save(tmp_path / "rows.npy", np.array([*letter_rows("ab"), [LETTERS.mask_token_id] * 2]))
    with pytest.raises(UserError, match=rf"rows.npy: must hold no mask \({LETTERS.mask_token_id}\); pack it"):
        packed(running(tmp_path / "rows.npy"), tmp_path)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_rows_that_are_tokenised_already(tmp_path: Path, dtype: Any) -> None:
    ids = np.array([[0, 258, 7], [1, 2, 3]])
    np.save(tmp_path / "rows.npy", ids.astype(dtype))
    found = read_rows(tmp_path / "rows.npy", 3, 259)
    assert found.tolist() == ids.tolist() and found.dtype == np.int64


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (np.zeros((4, 2), int), r"\(3\) ids below 260, got \(4, 2\)"),
        (np.zeros(3, int), r"\(3\) ids below 260, got \(3,\)"),
        (np.zeros((2, 3)), r"\(3\) ids below 260"),  # floats
        (np.array([[0, 1, 260]]), r"\(3\) ids below 260"),
        (np.array([[0, 1, -1]]), r"\(3\) ids below 260"),
        (np.zeros((0, 3), int), r"\(3\) ids below 260"),
        (b"", "no rows of ids could be read"),
        (b"PK\x03\x04 an archive", "no rows of ids could be read"),
        (np.array([[0, "a", 1]], dtype=object), "no rows of ids could be read"),  # pickled
        (b"just words", "no rows of ids could be read"),
        (None, "no rows of ids could be read .*No such file"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, ids: Any, told: str) -> None:
    path = tmp_path / "rows.npy"
    if isinstance(ids, bytes):
        path.write_bytes(ids)
    elif ids is not None:
        np.save(path, ids)
    with pytest.raises(UserError, match=told) as caught:
        read_rows(path, 3, 260)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_cut_file_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((100, 3), int))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="no rows of ids could be read"):
        read_rows(path, 3, 260)


def test_tokenised_text_for_pretraining(tmp_path: Path) -> None:
    """The same rows as from the text; the last of them are held out; records among them as always."""
    splits(tmp_path, "A", "B")
    np.save(tmp_path / "rows.npy", np.array(letter_rows("abcdefgh"), dtype=np.uint16))
    text = tmp_path / "rows.npy"
    assert packed(running(text, held_out=0.25), tmp_path) == [letter_rows("abcdef"), letter_rows("gh")]
    assert packed(running(text, held_out=0.25, steps=3), tmp_path) == [letter_rows("abc"), letter_rows("gh")]
    assert packed(running(text), tmp_path) == [letter_rows("abcdefgh"), letter_rows("AB")]
    shared = running(text, held_out=0.25, steps=3, records_share=0.4)
    assert packed(shared, tmp_path) == [letter_rows("abcAB"), letter_rows("gh")]
    with pytest.raises(UserError, match=r"rows of base.sequence_length \(4\) ids below 258, got \(8, 2\)"):
        packed(running(text, length=4), tmp_path)


def test_missing_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_documents(tmp_path / "none.txt")


@pytest.mark.parametrize(
    "error",
    [
        UserError("a value\nis wrong"),
        OSError(errno.ENOSPC, "No space left on device", "x.bin"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 6255488 vs 6255380"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB."),
    ],
)
def test_script_ends_in_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_script(main)
