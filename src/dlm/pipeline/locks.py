"""What the lock files of DVC hold."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlm.config.yaml import load_yaml
from dlm.errors import UserError

LOCKS = (Path("dvc.lock"), Path("sweeps/dvc.lock"))


def locked_stages() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every stage's name and entry. Raises UserError without dvc.lock."""
    if not LOCKS[0].is_file():
        raise UserError(f"{LOCKS[0]}: no such file; run from the repository's root, after `dvc repro` or `dvc pull`")
    for path in LOCKS:
        if path.is_file():
            lock = load_yaml(path.read_text(encoding="utf-8")) or {}
            yield from (lock.get("stages") or {}).items()


def outputs() -> Iterator[Path]:
    """The files of every output that is on disk."""
    for _, entry in locked_stages():
        for path in (Path(out["path"]) for out in entry.get("outs") or []):
            yield from (file for file in [path, *path.rglob("*")] if file.is_file())


def md5(path: Path) -> str:
    """The md5 as dvc.lock shows it, of a file or of a folder (its sorted relative names and their contents)."""
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        listing = json.dumps([{"md5": md5(path / name), "relpath": name} for name in names])
        return hashlib.md5(listing.encode()).hexdigest() + ".dir"
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()
