"""MLflow runs: one parent a pipeline run; below it a run for each stage, and one for each cell, which decode begins and
evaluate goes on with. No failure in here stops a stage."""

import atexit
import contextlib
import gc
import hashlib
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm.config.yaml import load_yaml
from dlm.errors import UserError
from dlm.pipeline import processes, times
from dlm.pipeline.database import connected, workspace
from dlm.pipeline.locks import md5
from dlm.pipeline.revision import UNKNOWN, revision
from dlm.pipeline.run import NOTE, SECRET_NAMES, Link, Run, shown, told, warn
from dlm.pipeline.view import set_up

SOURCE, COMMIT = "mlflow.source.name", "mlflow.source.git.commit"
NAMED_BY_CELL = ("sft", "decode", "evaluate")
SECRET = re.compile(rf"((?:{'|'.join(SECRET_NAMES)})=).*", re.IGNORECASE)


@contextmanager
def stage_run(
    stage: str,
    cell: str | None = None,
    params: Mapping[str, Any] | None = None,
    *,
    watch: bool = True,
) -> Iterator[Run]:
    """Track one stage, or one cell of it, as a child of the pipeline's run; exceptions pass through.

    `evaluate` goes on in the run of the cell that decode has finished, if that has no other values of `params`.

    The run ends FINISHED, FAILED on an exception, KILLED on SIGTERM or Ctrl-C; the next start of the same name marks
    one that was killed outright. Without MLflow, its database or its server: one line on stderr and a Run that does
    nothing. DLM_TRACKING=off turns tracking off silently; of several processes the first one tracks.

    Args:
        params: to log.
        watch: log the machine's load, too (dlm.pipeline.machine).
    """
    at = f"{stage}@{cell}" if cell else stage
    run, collecting = Run(), gc.isenabled()
    # Nothing that MLflow's imports make is garbage: looking for it, now and at exit, takes a third of their time.
    gc.disable()
    atexit.register(gc.freeze)
    try:
        if os.environ.get("DLM_TRACKING", "").lower() != "off" and processes.is_main():
            run = _open(stage, cell, shown(params or {}))
    except Exception as error:
        warn(error)
    finally:
        if collecting:
            gc.enable()
    with _unwinding_on_sigterm():
        opened = time.time()
        try:
            run.params(params or {})
            if watch:
                run.watch_machine()
            yield run
        except BaseException as error:
            run.end("KILLED" if isinstance(error, (_Terminated, KeyboardInterrupt)) else "FAILED")
            raise
        closed = time.time()
        run.end("FINISHED")
        times.record(at, opened, closed)


def finished_stages() -> set[str]:
    """The finished stages, as stage@cell, under the pipeline's run of the present params, stages and code.

    Raises:
        UserError: no MLflow, or its database or server cannot be read.
    """
    try:
        with connected() as (client, experiment):
            key, tags, _ = _identity(workspace())
            return {
                f"{stage}@{run.data.tags['cell']}" if run.data.tags.get("cell") else stage
                for parent in client.search_runs([experiment], _same_pipeline(key, tags))
                for run in client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
                for stage in run.data.tags.get("stage", "").split()
                if run.info.status == "FINISHED"
            }
    except Exception as error:
        raise UserError(f"the runs cannot be read: {told(error)}") from None


def run_name(stage: str, cell: str | None = None) -> str:
    """Short: the page cuts long names off."""
    if cell is None:
        return stage
    return cell if stage in NAMED_BY_CELL else f"{stage}@{cell}"


def _open(stage: str, cell: str | None, params: Mapping[str, str]) -> Run:
    """The run of a stage, RUNNING: a new one, or the newest finished one that it can go on with."""
    name = run_name(stage, cell)
    key, tags, lost = _identity(workspace())
    with connected() as (client, experiment):
        import mlflow.entities

        link = Link(client, mlflow.entities, experiment, healthy=True)
        parent = _parent(link, key, tags, lost)
        below = f"tags.mlflow.parentRunId = '{parent.run_id}' AND attributes.run_name = '{name}'"
        same = client.search_runs([experiment], below, order_by=["attributes.start_time DESC"])
        for place, run in enumerate(same):
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
                same[place] = client.get_run(run.info.run_id)
        note = _note()
        fitting = (run for run in same if stage == "evaluate" and _fits(run, params))
        if earlier := next(fitting, None):
            client.update_run(earlier.info.run_id, "RUNNING")
            run = Run(link, earlier.info.run_id, parent, cell, idle=time.time() - earlier.info.end_time / 1000)
            added = {"stage": (" ", stage), NOTE: ("\n\n", note)}
            run.tags({tag: _extended(earlier.data.tags.get(tag, ""), *words) for tag, words in added.items()})
            return run
        own = {"mlflow.parentRunId": parent.run_id, "stage": stage, "cell": cell or "", NOTE: note}
        child = client.create_run(experiment, run_name=name, tags=tags | own | {SOURCE: _words(sys.argv[:1])})
    return Run(link, child.info.run_id, parent, cell)


def _fits(run: Any, params: Mapping[str, str]) -> bool:
    """Whether decoding has come to its end in a run, and it has no other values of parameters: MLflow changes none."""
    had, evaluated = run.data.params, "evaluate" in run.data.tags.get("stage", "").split()
    return (evaluated or run.info.status == "FINISHED") and all(
        had.get(name, value) == value for name, value in params.items()
    )


def _extended(text: str, between: str, more: str) -> str:
    """With what it does not hold yet."""
    return between.join(dict.fromkeys([*filter(None, text.split(between)), *more.split(between)]))


def _same_pipeline(key: str, tags: Mapping[str, str]) -> str:
    """A filter. An experiment of DVC that is run anew under its name, with other parameters, has a new parent."""
    return f"tags.`dlm.key` = '{key}' AND tags.params_hash = '{tags['params_hash']}'"


def _parent(link: Link, key: str, tags: Mapping[str, str], lost: str) -> Run:
    """The run of the whole pipeline, made by the first of its stages, with all parameters."""
    found = link.client.search_runs([link.experiment], _same_pipeline(key, tags), max_results=1)
    if found:
        return Run(link, found[0].info.run_id, started=found[0].info.start_time / 1000)
    if lost:  # once a pipeline run, not once a stage
        print(f"the runs will not say which commit they are of: {lost}", file=sys.stderr)
    note = f"A run of the pipeline. Below it: its stages, and its cells (checkpoint-decoder).\n\n    {_command()}"
    own = {"dlm.key": key, SOURCE: "dvc.yaml", NOTE: note}
    made = link.client.create_run(link.experiment, run_name=f"pipeline {key}", tags={**tags, **own})
    parent = Run(link, made.info.run_id, started=made.info.start_time / 1000)
    path = workspace() / "params.yaml"
    params = (load_yaml(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}
    parent.params(params)
    with contextlib.suppress(Exception):  # a view that is spoilt, or that this user may not write, costs no run
        set_up(link.client, link.experiment, params)
    return parent


def _note() -> str:
    """A run's description: what the script is for, and its command."""
    script = sys.modules["__main__"].__doc__ or ""
    return f"{script.strip()}\n\n    {_called()}".strip()


def _command() -> str:
    """The command of the user: DVC's, or a script's."""
    if processes.dvc() is None:
        return _called()
    words = processes.dvc().cmdline()
    return _words(words[next((i for i, word in enumerate(words) if Path(word).name == "dvc"), 0) :])


def _called() -> str:
    """How this process was called."""
    return _words(["python", *sys.argv] if sys.argv[0].endswith(".py") else sys.argv)


def _words(words: list[str]) -> str:
    """A command line; of absolute paths only the last part, and no secrets."""
    named = (Path(word).name if Path(word).is_absolute() else word for word in words)
    return shlex.join(SECRET.sub(r"\1***", word) for word in named)


def _identity(workspace: Path) -> tuple[str, dict[str, str], str]:
    """The parent's key (a DVC experiment, or one state of parameters, stages and code), the tags of every run, and
    what git does not tell."""
    name = os.environ.get("DVC_EXP_NAME")
    sha, dirty, lost = revision(workspace)
    params, stages = (md5(path) if (path := workspace / file).is_file() else "" for file in ("params.yaml", "dvc.yaml"))
    code = "" if sha == UNKNOWN else sha
    key = name or hashlib.md5(f"{params} {stages} {code}".encode()).hexdigest()[:12]
    tags = {"experiment": name or "workspace", "git_sha": sha, "git_dirty": dirty, "params_hash": params}
    tags |= {"mlflow.source.type": "LOCAL", COMMIT: code}
    return key, tags, lost


class _Terminated(SystemExit):
    """SIGTERM arrived."""


@contextmanager
def _unwinding_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the body as an exception, so that no clean-up runs inside a handler; then deliver it."""
    previous = signal.getsignal(signal.SIGTERM)
    ours = threading.current_thread() is threading.main_thread() and previous not in (signal.SIG_IGN, None)

    def unwind(*_: object) -> None:
        signal.signal(signal.SIGTERM, previous)
        raise _Terminated(128 + signal.SIGTERM)

    if ours:
        signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except _Terminated:
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if ours:
            signal.signal(signal.SIGTERM, previous)
