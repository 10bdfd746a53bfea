"""Outputs appear whole or not at all, and what was there stays until then."""

import subprocess
import sys
from pathlib import Path

import pytest

from dlm.files import atomic_directory, atomic_path, write_text

WRITER = """
import sys
from dlm.files import write_text
print("ready", flush=True)
for n in range(3000):
    write_text(sys.argv[1], "old" if n % 2 else "new" * 1000)
"""


def test_a_reader_beside_a_writer_always_finds_a_file(tmp_path: Path) -> None:
    """Whole, the old one or the new one, while another process writes it 3,000 times."""
    path = tmp_path / "table.json"
    write_text(path, "old")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    found: set[str] = set()
    while writer.poll() is None:
        found.add(path.read_text())
    writer.stdout.close()
    assert writer.returncode == 0 and found == {"old", "new" * 1000}
    assert names(tmp_path) == ["table.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(target: Path, kind: str, word: str) -> None:
    if kind == "folder":
        with atomic_directory(target) as folder:
            (folder / word).touch()
    elif kind == "link":
        other = target.parent / word
        other.mkdir(parents=True)
        with atomic_path(target) as temporary:
            temporary.symlink_to(other)
    else:
        write_text(target, word)


def held(target: Path) -> list[str]:
    """The names in a folder, or a file's words."""
    if target.is_symlink():
        return [target.readlink().name]
    return names(target) if target.is_dir() else [target.read_text()]


@pytest.mark.parametrize("new", ["file", "folder", "link"])
@pytest.mark.parametrize("old", ["nothing", "file", "folder", "link"])
def test_anything_takes_the_place_of_anything(tmp_path: Path, old: str, new: str) -> None:
    """The folder that an old link leads to stays."""
    target = tmp_path / "within" / "target"
    if old != "nothing":
        put(target, old, "old")
    put(target, new, "new")
    assert held(target) == ["new"]
    assert names(target.parent) == [*(["new"] if new == "link" else []), *(["old"] if old == "link" else []), "target"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_there_stays_when_nothing_takes_its_place(tmp_path: Path, kind: str) -> None:
    """Neither after an exception nor where the new one has vanished before it could be renamed."""
    target = tmp_path / "target"
    put(target, kind, "old")
    with pytest.raises(ZeroDivisionError), atomic_directory(target):
        1 / 0  # noqa: B018
    with pytest.raises(FileNotFoundError), atomic_path(target) as temporary:
        assert not temporary.exists()
    with pytest.raises(FileNotFoundError), atomic_directory(target) as folder:
        folder.rmdir()
    assert held(target) == ["old"]
    assert names(tmp_path) == ["target"]
