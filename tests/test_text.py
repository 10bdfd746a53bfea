"""Running text: documents from files, and what users see when something is wrong with them."""

import errno
import gzip
import lzma
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zstandard
from scripts import ROOT

from dlm.data.splits import write_examples
from dlm.data.text import packed_text, read_documents, split_documents
from dlm.data.tokenizer import encode, train_tokenizer
from dlm.errors import UserError, run_script
from dlm.params import load_params

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


def test_text_for_pretraining(tmp_path: Path) -> None:
    """A file's documents but for those held out, which are what validation is on; as many rows as the steps need."""
    (tmp_path / "t.txt").write_text("\n\n".join("abcdefgh"))
    for split in ("train", "valid"):
        write_examples(tmp_path / f"{split}.parquet", [])
    tokenizer = train_tokenizer([], 260)
    shipped = load_params(ROOT / "params.yaml").base
    training = replace(shipped.training, steps=3, batch_size=1, gradient_accumulation=1)
    text = str(tmp_path / "t.txt")
    base = replace(shipped, rows="text", text=text, held_out=0.25, sequence_length=2, training=training)
    found = [[row["ids"] for row in rows] for rows in packed_text(base, tmp_path, tokenizer)]
    letters = {letter: [*encode(tokenizer, [letter])[0], tokenizer.eos_token_id] for letter in "abcdefgh"}
    assert found == [[letters[letter] for letter in "abc"], [letters[letter] for letter in "gh"]]


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
