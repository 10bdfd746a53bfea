"""Killed stages, a killed DVC, two at once, a full disk, a spoilt cache, no MLflow: `dvc repro` then makes it good."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from workspaces import Small, running

from dlm.pipeline.start import KEPT
from dlm.pipeline import processes
from dlm.pipeline.tracking import run_name

R2FT, DECODE, EVALUATE, REPORT = "r2ft", "decode@r2ft-top_k", "evaluate@r2ft-top_k", "report"
OUTPUTS = {
    R2FT: "build/models/r2ft",
    DECODE: "build/answers/r2ft-top_k.jsonl",
    EVALUATE: "build/evaluation/r2ft-top_k.json",
    REPORT: "results/report.html",
}


class Undisturbed:
    """A quiet run, and copies of it in which one stage has not run yet."""

    def __init__(self, workspace: Small) -> None:
        self.workspace = workspace
        self.lock = (workspace.folder / "dvc.lock").read_text()

    def before(self, stage: str, folder: Path) -> Small:
        """A copy in which `stage` has not run: neither its output nor DVC's copy of it, and no tracking database."""
        copied = self.workspace.copied(folder)
        shutil.rmtree(folder / ".dvc" / "cache" / "runs", ignore_errors=True)
        path = folder / OUTPUTS[stage]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.cached(stage, folder).unlink(missing_ok=stage == REPORT)  # git has the report's outputs, and DVC no copy
        return copied

    def cached(self, stage: str, folder: Path) -> Path:
        """The object of a stage's first output in DVC's cache."""
        md5 = yaml.safe_load(self.lock)["stages"][stage]["outs"][0]["md5"]
        return folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]

    def is_there_again(self, workspace: Small) -> bool:
        """Whether dvc.lock, which `dvc repro` has just compared with the files, holds the hashes of the quiet run."""
        return (workspace.folder / "dvc.lock").read_text() == self.lock


@pytest.fixture(scope="module")
def undisturbed(small: Small) -> Undisturbed:
    return Undisturbed(small)


def wait_for(found: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_work(dvc: "subprocess.Popen[str]", stage: str) -> list[psutil.Process]:
    """The processes of a stage's script below DVC."""
    script = f"stages/{stage.partition('@')[0]}.py"
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(dvc.pid).children(recursive=True)
        return [p for p in below if script in p.cmdline() and Path(p.cmdline()[0]).name.startswith("python")]
    return []


def is_running(workspace: Small, stage: str) -> bool:
    """Whether MLflow has a run of it that is going on: its work has begun."""
    # A client of MLflow would make the database, beside the stage that is about to.
    place, name = f"file:{workspace.folder / 'mlflow.db'}?mode=ro", run_name(*stage.split("@"))
    with (
        contextlib.suppress(sqlite3.OperationalError),  # no database yet, half of one, or one that the stage writes to
        contextlib.closing(sqlite3.connect(place, timeout=0, uri=True)) as database,
    ):
        return bool(database.execute("SELECT 1 FROM runs WHERE name = ? AND status = 'RUNNING'", [name]).fetchone())
    return False


def has_kept(workspace: Small, pattern: str) -> bool:
    return any(workspace.folder.glob(pattern))


def halted(workspace: Small, dvc: "subprocess.Popen[str]", stage: str) -> list[psutil.Process]:
    """The processes of a stage, stopped in the middle of its work.

    They stand still while this looks, so that the shortest stage cannot slip through between two looks.
    """
    found: list[psutil.Process] = []

    def is_met() -> bool:
        found[:] = at_work(dvc, stage)
        each(found, psutil.Process.suspend)
        met = bool(found) and MOMENTS[stage](workspace)
        if not met:
            each(found, psutil.Process.resume)
        assert met or dvc.poll() is None, "it ended unseen"
        return met

    wait_for(is_met)
    return found


def each(found: list[psutil.Process], what: Callable[[psutil.Process], None]) -> None:
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            what(process)


MOMENTS: dict[str, Callable[[Small], bool]] = {  # when a stage is in the middle of its work
    R2FT: lambda workspace: has_kept(workspace, ".cache/training/r2ft-*/checkpoint-*/trainer_state.json"),
    DECODE: lambda workspace: has_kept(workspace, ".cache/decoding/r2ft-top_k/*/*.jsonl"),
    EVALUATE: lambda workspace: is_running(workspace, EVALUATE),
    REPORT: lambda workspace: is_running(workspace, REPORT),
}


@pytest.mark.parametrize("victim", ["stage", "DVC"])
@pytest.mark.parametrize("stage", MOMENTS)
def test_killed_outright(undisturbed: Undisturbed, tmp_path: Path, stage: str, victim: str) -> None:
    """Then `dvc repro` ends with the hashes of an undisturbed run. Nobody is left behind, no run says RUNNING."""
    workspace = undisturbed.before(stage, tmp_path / "clone")
    dvc = workspace.start("dvc", "repro")
    stages = halted(workspace, dvc, stage)
    (stages[0] if victim == "stage" else dvc).send_signal(signal.SIGKILL)
    time.sleep(2 * processes.LOOK)  # when it goes on, its next look at DVC is due
    each(stages, psutil.Process.resume)
    told = dvc.communicate(timeout=60)[0]
    assert dvc.returncode != 0
    if victim == "stage":
        assert f"failed to reproduce '{stage}'" in told
    psutil.wait_procs(stages, timeout=30)
    assert not any(process.is_running() for process in stages)
    assert not (workspace.folder / OUTPUTS[stage]).exists()

    again = running(workspace.run("dvc", "repro").stdout)
    assert len(again) == 1, again
    assert undisturbed.is_there_again(workspace)
    found = {(run.info.run_name, run.info.status) for run in workspace.runs()}
    # evaluate goes on in its cell's run.
    statuses = {"FINISHED"} if stage == EVALUATE else {"KILLED", "FINISHED"}
    assert {status for name, status in found if name == run_name(*stage.split("@"))} == statuses
    assert {status for name, status in found if name != run_name(*stage.split("@"))} == {
        "FINISHED"
    }  # the pipeline's own run
    assert not list(workspace.folder.rglob("*.tmp"))
    assert not has_kept(workspace, ".cache/decoding/*") and not has_kept(workspace, ".cache/training/*")


def test_two_pipelines_at_once(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The second refuses with the first one's number, and harms nothing."""
    workspace = undisturbed.before(R2FT, tmp_path / "clone")
    first = workspace.start("dvc", "repro")
    wait_for(lambda: at_work(first, R2FT))
    second = workspace.run("dvc", "repro", check=False)
    assert second.returncode != 0 and first.poll() is None
    assert str(first.pid) in second.stderr and "dvc repro" in second.stderr
    assert "Traceback" not in second.stderr
    told = first.communicate(timeout=240)[0]
    assert first.returncode == 0, told
    assert undisturbed.is_there_again(workspace)


def test_a_disk_full_in_the_middle_of_a_checkpoint(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """One line, the last whole checkpoint stays; with room again training goes on from it."""
    workspace = undisturbed.before(R2FT, tmp_path / "clone")
    checkpoints = workspace.folder / ".cache" / "training"
    with disk(checkpoints, megabytes=22):
        done = workspace.run("dvc", "repro", check=False)
        whole = [path.parent for path in checkpoints.glob("*/*/trainer_state.json")]
        assert whole
        shutil.copytree(whole[0].parent, tmp_path / "kept")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in line and line.endswith(KEPT)
    assert not (workspace.folder / OUTPUTS[R2FT]).exists()
    assert [run.info.status for run in workspace.runs() if run.info.run_name == R2FT] == ["FAILED"]

    shutil.copytree(tmp_path / "kept", checkpoints / whole[0].parent.name)
    again = running(workspace.run("dvc", "repro").stdout)
    assert len(again) == 1, again
    assert undisturbed.is_there_again(workspace)


@contextmanager
def disk(place: Path, megabytes: int) -> Iterator[None]:
    """A file system of that size at `place`."""
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this user cannot mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("protected", [True, False])
def test_a_corrupted_object_in_the_cache(undisturbed: Undisturbed, tmp_path: Path, protected: bool) -> None:
    """DVC itself sees that one is spoilt where the file is not read-only; `dlm verify` finds the others."""
    workspace = undisturbed.workspace.copied(tmp_path / "clone")
    output, spoilt = workspace.folder / OUTPUTS[DECODE], undisturbed.cached(DECODE, workspace.folder)
    before = output.read_text()
    spoilt.chmod(0o644)
    spoilt.write_text(before[:-50])
    spoilt.chmod(0o444 if protected else 0o644)
    output.unlink()
    told = workspace.run("dvc", "repro").stdout
    assert (len(running(told)), output.read_text() == before) == ((0, False) if protected else (1, True))
    if protected:
        done = workspace.run("dlm", "verify", check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ") and " 1 of " in done.stderr and f"({OUTPUTS[DECODE]})" in done.stderr
        assert not spoilt.exists() and not output.exists()
        assert len(running(workspace.run("dvc", "repro").stdout)) == 1
    assert undisturbed.is_there_again(workspace) and output.read_text() == before
    assert workspace.run("dlm", "verify").stdout.endswith("all as their hashes say\n")


class Refusing(BaseHTTPRequestHandler):
    """A tracking server that this user may not write to: it answers everything with 403."""

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.end_headers()

    do_GET = do_POST = do_PATCH = refuse

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_that_takes_no_runs(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The stage says so once and does its work; `dlm backfill` makes its run later."""
    workspace = undisturbed.before(EVALUATE, tmp_path / "clone")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        done = workspace.run("env", f"MLFLOW_TRACKING_URI={address}", "NO_PROXY=127.0.0.1", "dvc", "repro")
    finally:
        server.shutdown()
        server.server_close()
    assert len(running(done.stdout)) == 1
    assert done.stderr.count("tracking is off") == 1 and "Traceback" not in done.stderr
    assert undisturbed.is_there_again(workspace)
    workspace.run("dlm", "backfill")
    (run,) = [run for run in workspace.runs() if run.info.run_name == run_name(*EVALUATE.split("@"))]
    assert run.info.status == "FINISHED" and "slot_error_rate" in run.data.metrics
