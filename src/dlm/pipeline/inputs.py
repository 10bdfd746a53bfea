"""The files and folders that params.yaml names, as digests: what a stage reads of them is a dependency of it.

DVC hashes what dvc.yaml names, where `${...}` cannot say "a folder here, a name on the hub, or nothing"; and it follows
no link inside of a folder.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlm.config.params import Params
from dlm.errors import UserError
from dlm.files import read_json, write_json

Named = Mapping[str, str | None]  # a parameter -> its value: a path, a name on the hub, or None
SETTLED = 2_000_000_000  # nanoseconds: what is younger may change once more without its times telling


def read_by(params: Params) -> dict[str, Named]:
    """Stage -> the parameters that name what it reads, with their values; None for one that others leave unread."""
    data, base, reference, evaluate = params.data, params.base, params.reference, params.evaluate
    is_file = data.source == "file"
    checkpoint = base.init in ("checkpoint", "continue", "adapt")
    text = base.text if base.rows == "text" and base.text != "train" else None
    judge = {"evaluate.judge.model": evaluate.judge.model if evaluate.judge.kind == "local" else None}
    return {
        "prepare": {
            "data.builtin.grammar": data.builtin.grammar if data.has_grammar else None,
            "data.file.path": data.file.path if is_file else None,
            "data.file.eval_path": data.file.eval_path if is_file and data.evaluation.name == "held_out" else None,
            "data.hub.name": data.hub.name if data.source == "hub" else None,
            "data.evaluation.path": data.evaluation.path,
            "tokenizer.path": params.tokenizer.path if params.tokenizer.source == "given" else None,
        },
        "base": {
            "base.checkpoint": base.checkpoint if checkpoint else None,
            "base.tokenizer": base.tokenizer if checkpoint else None,
            "base.text": text if base.init in ("pretrain", "continue", "adapt") else None,
        },
        "reference": {
            "reference.checkpoint": reference.checkpoint if reference.init == "checkpoint" else None,
            "base.text": text if reference.init == "pretrain" else None,
            # Its folder says which scorer it was, to all that score with it.
            "evaluate.scorer": evaluate.scorer,
        },
        "evaluate": {**judge, "evaluate.judge.difficulty": evaluate.judge.difficulty},
        "block_diffusion": {**judge, "evaluate.judge.difficulty": evaluate.judge.difficulty},
        "fluency": {"base.text": text if base.held_out else None},
        "settings": judge,
        "sedd": {**judge, "evaluate.judge.difficulty": evaluate.judge.difficulty},
    }


class Digests:
    """SHA-256 of files and folders. A file's is kept with its size and times, so that a large one is read once.

    Args:
        kept: the file that holds them from one run to the next.
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._known: dict[str, Any] = {}
        with suppress(UserError):  # the first run, or half a file
            self._known = read_json(kept)

    def record(self, named: Named) -> dict[str, Any]:
        """Parameter -> value and digest, which is None where nothing here has that name: the hub's, or missing."""
        return {name: {"value": value, "sha256": self.of(Path(value))} for name, value in named.items() if value}

    def of(self, path: Path) -> str | None:
        """The digest of a file, or of a folder's names and contents: links are followed, hidden names are left out.

        That of an adapter's folder covers the checkpoint that the adapter names.
        """
        if path.is_file():
            return self._of_file(path)
        if not path.is_dir():
            return None
        lines = [f"{file.relative_to(path).as_posix()} {self._of_file(file)}" for file in sorted(files_below(path))]
        base = _base_of(path)
        if base and Path(base).resolve() != path.resolve():
            lines.append(f"on {base} {self.of(Path(base))}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _of_file(self, path: Path) -> str:
        path = path.resolve()
        place, found = str(path), path.stat()
        state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        if place in self._known and self._known[place]["state"] == state:
            return str(self._known[place]["sha256"])
        with path.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        if time.time_ns() - max(state[1:]) > SETTLED:
            self._known[place] = {"state": state, "sha256": sha256}
        return sha256

    def keep(self) -> None:
        """Write what is known of the files that are still there."""
        write_json(self._kept, {place: entry for place, entry in self._known.items() if Path(place).exists()})


def known_digests() -> Digests:
    """Those of earlier runs, in DVC's own root: experiments that run in folders of their own read no file twice."""
    return Digests(Path(os.environ.get("DVC_ROOT", "."), ".cache/inputs.json"))


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and those below it, through links too, but for hidden ones."""
    for here, folders, names in os.walk(folder, followlinks=True):
        inside = Path(here).resolve()
        # A link to a folder that this one is in would go round for ever.
        folders[:] = [
            name for name in folders if name[0] != "." and not inside.is_relative_to(Path(here, name).resolve())
        ]
        yield from (path for name in names if name[0] != "." and (path := Path(here, name)).is_file())


def _base_of(folder: Path) -> str | None:
    """The checkpoint that an adapter's folder names; models.adapters reads it with torch."""
    config = folder / "adapter_config.json"
    return read_json(config).get("base_model_name_or_path") if config.is_file() else None
