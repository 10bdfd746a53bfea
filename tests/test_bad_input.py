"""docs/bad-input.md, row by row: what was tried, and the line that comes."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_params import complaint, edited

from dlm.config.yaml import dump_yaml, load_yaml
from dlm.errors import UserError
from dlm.sources.readers import read_records

PAGE = Path(__file__).parents[1] / "docs" / "bad-input.md"
ROW = re.compile(r"^\| `(.*?)` \| (?:`(.*)` )?\|$")
ALPACA = {"instruction": "instruction", "input": "input", "output": "output"}


def rows(section: str) -> Iterator[tuple[str, str]]:
    text = PAGE.read_text("utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        if found := ROW.match(line):
            yield found[1], found[2] or ""


def matches(said: str, line: str) -> bool:
    """Whether the line of the page is what was said; `known: categorical, ...` leaves out the rest of a list."""
    return re.fullmatch(re.escape(line).replace(re.escape(", ..."), "(, [\\w']+)+"), said) is not None


@pytest.mark.parametrize(("edit", "line"), rows("params.yaml"))
def test_params(tmp_path: Path, edit: str, line: str) -> None:
    key, _, value = edit.partition(": ")
    assert matches(complaint(tmp_path, dump_yaml(edited({key: load_yaml(value)}), sort_keys=True)), line)


@pytest.mark.parametrize(("content", "line"), rows("Records"))
def test_records(tmp_path: Path, content: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suffix = {"{": "jsonl", "[": "json"}.get(content[:1], "csv")
    Path(f"records.{suffix}").write_text(content)
    with pytest.raises(UserError) as caught:
        read_records(Path(f"records.{suffix}"), ALPACA)
    assert str(caught.value) == line


@pytest.mark.parametrize(("command", "line"), rows("Command line"))
def test_commands(tmp_path: Path, command: str, line: str) -> None:
    name, *arguments = shlex.split(command)
    assert name == "dlm"
    done = subprocess.run(
        [sys.executable, "-m", "dlm.cli", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert matches(done.stderr, line + "\n")
    assert not list(tmp_path.iterdir())


def test_the_page_has_its_rows() -> None:
    assert [len(list(rows(name))) for name in ("params.yaml", "Records", "Command line")] == [29, 6, 13]
