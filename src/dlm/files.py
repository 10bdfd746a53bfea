"""Outputs appear whole or not at all: write beside the target, then rename."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm.errors import UserError

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_SECONDS = 5.0  # for the hub to answer


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `target`; a file or folder written there replaces `target` on success.

    A file is replaced at one stroke, so that readers always find one; a folder between two renames. On any exception
    the temporary is removed and an older `target` stays as it was.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (target.parent / f".{target.name}.{os.getpid()}.{end}" for end in ("tmp", "old"))
    _remove(temporary)
    try:
        yield temporary
        if _is_folder(target) or (_is_folder(temporary) and os.path.lexists(target)):
            _remove(old)
            target.rename(old)  # no folder can be renamed over what is there
            try:
                temporary.rename(target)
            finally:
                if not os.path.lexists(target):
                    old.rename(target)
            _remove(old)
        else:
            temporary.replace(target)
    finally:
        _remove(temporary)


@contextmanager
def atomic_directory(target: Path | str) -> Iterator[Path]:
    """As `atomic_path`, with the folder already made."""
    with atomic_path(target) as temporary:
        temporary.mkdir()
        yield temporary


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read a JSON file. Raises UserError when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it (`dvc repro`)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run the stage that makes it again") from None


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read a JSON-lines file. Raises UserError naming the line that is broken."""
    rows = []
    try:
        with Path(path).open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, start=1):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it (`dvc repro`)") from None
    return rows


def read_parquet(path: Path | str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file, all columns or some. Raises UserError when it is missing or broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns).to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it (`dvc repro`)") from None
    except pa.ArrowInvalid as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{path}: broken parquet ({what}); delete it and run the stage that makes it again") from None


def content_hash(path: Path) -> str:
    """A hash of a file, or of a folder's file names and contents."""
    digest = hashlib.sha256()
    for file in sorted(p for p in [path, *path.rglob("*")] if p.is_file()):
        digest.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return digest.hexdigest()


def write_table(folder: Path, table: Any, markdown: str) -> None:
    """table.json and table.md in a folder of their own, both or neither."""
    with atomic_directory(folder) as inside:
        write_json(inside / "table.json", table)
        write_text(inside / "table.md", markdown)


def check_checkpoint(checkpoint: Path | str) -> None:
    """What is not there is a hub name, `owner/name`, or no checkpoint, without a look at the hub. Raises UserError."""
    name = str(checkpoint)
    if is_gguf(name) and not Path(name).is_file():
        raise UserError(f"{name!r}: no such file; give the GGUF file's path")
    if not name or not (Path(name).exists() or HUB_NAME.fullmatch(name)):
        raise UserError(f"{name!r}: no such folder; give a checkpoint's folder or its name on the hub (owner/name)")


def check_hub(name: Path | str) -> None:
    """Ask the hub once for what is neither a folder nor in its cache; transformers would ask for 23 seconds and more.

    Raises:
        UserError: no answer, or HF_HUB_OFFLINE.
    """
    if Path(name).exists() or not HUB_NAME.fullmatch(str(name)):
        return
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if try_to_load_from_cache(str(name), "config.json") is not None:
        return
    problem = "HF_HUB_OFFLINE is set"
    try:
        if not constants.HF_HUB_OFFLINE:
            get_hf_file_metadata(hf_hub_url(str(name), "config.json"), timeout=HUB_SECONDS)
            return
    except HfHubHTTPError:
        return  # an answer: transformers says what it means
    except Exception as error:  # of whatever HTTP library the hub's client is built on
        problem = f"the hub gives no answer ({' '.join(str(error).split()) or type(error).__name__})"
    raise UserError(f"{name}: no such folder, not in the hub's cache, and {problem}; give a folder, or try again later")


def is_gguf(path: Path | str) -> bool:
    """Whether a checkpoint is one file of llama.cpp's format, weights and tokenizer."""
    return str(path).endswith(".gguf")


def gguf_place(path: Path | str) -> tuple[str, dict[str, str]]:
    """What transformers wants of a GGUF file: its folder, and the name as an option.

    Raises:
        UserError: the package that reads such files is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{path}: the package gguf reads such files; install it (pip install gguf)")
    return str(Path(path).parent), {"gguf_file": Path(path).name}


def code_hash() -> str:
    """A hash of this package's modules: what an interrupted run left is no use to other code."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
