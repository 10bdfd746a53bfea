"""What the Makefile does to the machine that it runs on."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SAYS = "apt-get installs Debian's package chromium, for the tests that open pages (tests/test_browser.py)"


def make(*words: str, path: Path | None = None, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the make that runs the tests
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment |= {} if path is None else {"PATH": str(path)}
    return subprocess.run([str(MAKE), *words], cwd=folder, env=environment, capture_output=True, text=True)


def machine(folder: Path, user: int, *programs: str) -> Path:
    """Programs that say what they were called with, and nothing else but what is needed to do so."""
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    (folder / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (folder / "timeout").write_text('#!/bin/sh\nshift\n"$@"\n')
    for name in programs:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
    for path in folder.iterdir():
        if not path.is_symlink():
            path.chmod(0o755)
    return folder


@pytest.mark.parametrize("state", ["as in git", "changed", "no git"])
def test_a_run_of_another_machine_is_to_be_committed(tmp_path: Path, state: str) -> None:
    """`make repro` ends with a line where git names other artefacts than those that are there."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (
        "requirements.lock",
        "pyproject.toml",
        "dvc.lock",
        ".venv/.ready",
        ".venv/bin/dvc",
        ".venv/bin/python",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    if state != "no git":
        (tmp_path / "sweeps").mkdir()
        (tmp_path / "sweeps/dvc.lock").touch()
        for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm run"):
            subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    if state == "changed":
        (tmp_path / "sweeps/dvc.lock").write_text("other: hashes\n")
    done = make("repro", "VENV=.venv", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("git commit -am baseline" in done.stdout) == (state == "changed")


def test_the_tests_install_nothing() -> None:
    for target in ("test", "test-fast"):
        told = make("--dry-run", target)
        assert told.returncode == 0 and "pytest" in told.stdout
        assert "apt-get" not in told.stdout
    told = make("--dry-run", "test").stdout
    assert "make browser installs it" in told and "make lm-eval installs it" in told


def test_what_is_left_out_every_day_is_there() -> None:
    left_out = re.findall(r"--ignore=(\S+)", make("--dry-run", "test-fast").stdout)
    assert len(left_out) > 10 and [name for name in left_out if not (ROOT / name).is_file()] == []
    assert "--ignore" not in make("--dry-run", "test").stdout


def test_what_is_installed_is_told_before(tmp_path: Path) -> None:
    found = make("browser", path=machine(tmp_path / "bin", 0, "apt-get"))
    assert found.stdout.splitlines() == [
        SAYS,
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends chromium",
    ]
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("browser", BROWSERS)
def test_a_browser_that_is_there(tmp_path: Path, browser: str) -> None:
    found = make("browser", path=machine(tmp_path / "bin", 0, "apt-get", browser))
    assert (found.returncode, found.stdout) == (0, "Chromium is there\n")


@pytest.mark.parametrize(("user", "programs"), [(1000, ["apt-get"]), (0, [])])
def test_where_it_cannot_be_installed(tmp_path: Path, user: int, programs: list[str]) -> None:
    found = make("browser", path=machine(tmp_path / "bin", user, *programs))
    assert found.returncode != 0 and "install Chromium in this system's own way" in found.stderr
    assert found.stdout == ""
