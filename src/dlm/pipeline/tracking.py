"""MLflow runs: one parent a pipeline run, below it one child a stage. No failure in here stops a stage."""

import atexit
import functools
import gc
import hashlib
import json
import logging
import math
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from dlm.errors import UserError
from dlm.pipeline import machine, processes, times
from dlm.pipeline.revision import UNKNOWN, revision

P = ParamSpec("P")
ILLEGAL = re.compile(r"[^A-Za-z0-9_\-./ ]")
SECRET_NAMES = {"api_key", "token", "secret", "password"}
# A server that does not answer costs seconds and one warning, not MLflow's minutes of retries.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def _guarded(method: Callable[Concatenate["Run", P], None]) -> Callable[Concatenate["Run", P], None]:
    """Call `method` on a healthy run only; its first failure is the one warning and the end of logging."""

    @functools.wraps(method)
    def guarded(self: "Run", *args: P.args, **kwargs: P.kwargs) -> None:
        if self.healthy:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.healthy = False
                _warn(error)

    return guarded


class Run:
    """What a stage logs to. Without a client, and after the first failure, every method does nothing."""

    def __init__(
        self, client: Any = None, entities: Any = None, run_id: str = "", parent_id: str = "", cell: str | None = None
    ) -> None:
        self.run_id = run_id
        self.healthy = client is not None
        self._client, self._entities = client, entities
        self._parent_id, self._cell = parent_id, cell
        self._unwatch: Callable[[], None] = lambda: None

    @_guarded
    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, once each: nested ones with dotted names, cut at MLflow's limit, secrets masked."""
        # dvc.lock has a block and one of its keys where a stage tracks both.
        params = [self._entities.Param(ILLEGAL.sub("_", k), _shown(k, v)) for k, v in dict(_flat(values)).items()]
        self._client.log_batch(self.run_id, params=params)

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers at `step`, else at their own "step", else at 0; what is no finite number is skipped."""
        self.curve([{"step": 0, **values, **({} if step is None else {"step": step})}])

    @_guarded
    def curve(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log every other number of the rows over their "step"; nested ones get dotted names."""
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(ILLEGAL.sub("_", key), float(value), now, int(row["step"]))
            for row in rows
            for key, value in _flat(row)
            if key != "step" and isinstance(value, Real) and math.isfinite(value)
        ]
        self._client.log_batch(self.run_id, metrics=metrics)

    @_guarded
    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log rows as the artifact <name>.json, which MLflow shows as a table; a second call appends.

        Where the stage has cells, a column says which: tables of several runs stand side by side in MLflow.
        """
        cell = {"cell": self._cell} if self._cell else {}
        rows = [{**row, **cell} for row in rows]
        keys = dict.fromkeys(key for row in rows for key in row)
        self._client.log_table(self.run_id, {key: [row.get(key) for row in rows] for key in keys}, f"{name}.json")

    @_guarded
    def artifact(self, path: Path | str) -> None:
        """Log one file, or a folder under its own name."""
        self._client.log_artifact(self.run_id, str(path))

    @_guarded
    def outputs(self, paths: Iterable[Path | str]) -> None:
        """Log the md5 of each output, file or folder, as a tag "md5.<path>" and as the digest of a dataset."""
        make, digests = self._entities, {Path(path).as_posix(): md5(Path(path)) for path in paths}
        sets = [make.Dataset(name, digest, "local", json.dumps({"uri": name})) for name, digest in digests.items()]
        context = [make.InputTag("mlflow.data.context", "output")]
        self._client.log_inputs(self.run_id, [make.DatasetInput(dataset, context) for dataset in sets])
        self.tags({f"md5.{name}": digest for name, digest in digests.items()})

    @_guarded
    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; characters that MLflow does not take become _."""
        tags = [self._entities.RunTag(ILLEGAL.sub("_", key), value) for key, value in values.items()]
        self._client.log_batch(self.run_id, tags=tags)

    def watch_machine(self) -> None:
        """Log the system metrics of MLflow until the run ends; a failure costs them alone, and one line."""

        def log(values: dict[str, float], step: int) -> None:
            now = int(time.time() * 1000)
            metrics = [self._entities.Metric(f"system/{key}", value, now, step) for key, value in values.items()]
            self._client.log_batch(self.run_id, metrics=metrics)

        def tell(error: Exception) -> None:
            if self.healthy:
                print(f"system metrics are off: {_told(error)}; the run goes on", file=sys.stderr)

        if self.healthy:
            self._unwatch = machine.watch(log, tell)

    def end(self, status: str) -> None:
        """End the run, and its parent with the same status; also after a failure, so that none stays RUNNING."""
        self._unwatch()
        try:
            for run_id in (self.run_id, self._parent_id) if self._client else ():
                self._client.set_terminated(run_id, status)
        except Exception as error:
            if self.healthy:
                _warn(error)


@contextmanager
def stage_run(
    stage: str, cell: str | None = None, params: Mapping[str, Any] | None = None, *, watch: bool = True
) -> Iterator[Run]:
    """Track one stage, or one cell of it, as a child of the pipeline's run; exceptions pass through.

    With `watch` the machine's load is logged, too (dlm.pipeline.machine).

    The run ends FINISHED, FAILED on an exception, KILLED on SIGTERM or Ctrl-C; the next start of the same cell marks
    one that was killed outright. Without MLflow, its database or its server: one line on stderr and a Run that does
    nothing. DLM_TRACKING=off turns tracking off silently; of several processes the first one tracks.
    """
    run, collecting = Run(), gc.isenabled()
    # Nothing that MLflow's imports make is garbage: looking for it, now and at exit, takes a third of their time.
    gc.disable()
    atexit.register(gc.freeze)
    try:
        if os.environ.get("DLM_TRACKING", "").lower() != "off" and processes.is_main():
            run = _open(stage, cell)
    except Exception as error:
        _warn(error)
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
        times.record(f"{stage}@{cell}" if cell else stage, opened, closed)


def finished_runs() -> set[str]:
    """Names of the finished stages under the pipeline's run of the present params, stages and code.

    Raises:
        UserError: no MLflow, or its database or server cannot be read.
    """
    try:
        with _connected() as (client, experiment):
            parents = client.search_runs([experiment], f"tags.`dlm.key` = '{_identity(_workspace())[0]}'")
            return {
                run.info.run_name
                for parent in parents
                for run in client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
                if run.info.status == "FINISHED"
            }
    except Exception as error:
        raise UserError(f"the runs cannot be read: {_told(error)}") from None


@contextmanager
def _connected() -> Iterator[tuple[Any, str]]:
    """A client and the experiment's id, under a lock: two first users of a fresh sqlite database break it, and two
    first stages would each make a parent."""
    os.environ.update({**ENVIRONMENT, **os.environ})
    # They report a new database's tables, and with tracebacks what becomes our one warning.
    for name in ("mlflow.store.db.utils", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import mlflow
    from filelock import FileLock

    root, uri = tracking_root(), tracking_uri()
    if not uri.startswith("http"):
        import mlflow.store.db.utils

        # MLflow's ten attempts at a database that it cannot read take two minutes.
        mlflow.store.db.utils.MAX_RETRY_COUNT = 1
    (root / ".cache").mkdir(exist_ok=True)
    with FileLock(root / ".cache" / "mlflow.lock", timeout=120):
        client: Any = mlflow.MlflowClient(tracking_uri=uri)
        yield client, _experiment(client, uri)


def _open(stage: str, cell: str | None) -> Run:
    name = f"{stage}@{cell}" if cell else stage
    key, tags, lost = _identity(_workspace())
    with _connected() as (client, experiment):
        parents = client.search_runs([experiment], f"tags.`dlm.key` = '{key}'", max_results=1)
        if lost and not parents:  # once a pipeline run, not once a stage
            print(f"the runs will not say which commit they are of: {lost}", file=sys.stderr)
        parents = parents or [client.create_run(experiment, run_name=f"pipeline {key}", tags=tags | {"dlm.key": key})]
        parent = parents[0].info.run_id
        same = f"tags.mlflow.parentRunId = '{parent}' AND attributes.run_name = '{name}'"
        for run in client.search_runs([experiment], f"{same} AND attributes.status = 'RUNNING'"):
            client.set_terminated(run.info.run_id, "KILLED")
        place = {"mlflow.parentRunId": parent, "stage": stage, "cell": cell or ""}
        child = client.create_run(experiment, run_name=name, tags=tags | place)
    import mlflow.entities

    return Run(client, mlflow.entities, child.info.run_id, parent, cell)


def _workspace() -> Path:
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def tracking_root() -> Path:
    """Where the database and the artifacts are: DVC's root (the parent repository inside a temporary workspace)."""
    return Path(os.environ.get("DVC_ROOT") or _workspace()).resolve()


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a sqlite database in the root."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    path = str(tracking_root() / "mlflow.db")
    if not set(path) & {"%", "?"}:
        return f"sqlite:///{path}"
    from sqlalchemy import URL

    # Quoted as this SQLAlchemy reads it. With the driver named, MLflow makes no folder of the quoted name.
    return URL.create("sqlite+pysqlite", database=path).render_as_string()


def artifacts_uri() -> str:
    """Where the artifacts of a local database are; MLflow takes a path that is no URI for a quoted one."""
    return (tracking_root() / "mlartifacts").as_uri()


def _experiment(client: Any, uri: str) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "dlm"
    if experiment := client.get_experiment_by_name(name):
        if experiment.lifecycle_stage != "active":
            raise UserError(_deleted(name, experiment.experiment_id, uri))
        return experiment.experiment_id
    # A server keeps artifacts in its own place: a path of this machine may mean nothing there.
    place = None if uri.startswith("http") else artifacts_uri()
    return client.create_experiment(name, artifact_location=place)


def _deleted(name: str, number: str, uri: str) -> str:
    """What to do about a deleted experiment, whose name stays taken."""
    here = "" if os.environ.get("MLFLOW_TRACKING_URI") else f"`export MLFLOW_TRACKING_URI={shlex.quote(uri)}`, then "
    for_good = f"`mlflow gc --experiment-ids {number}`{' on the server' if uri.startswith('http') else ''}"
    return (
        f"MLflow's experiment {name} was deleted: {here}`mlflow experiments restore -x {number}` brings it back, "
        f"{for_good} removes it for good"
    )


def _identity(workspace: Path) -> tuple[str, dict[str, str], str]:
    """The parent's key (a DVC experiment, or one state of parameters, stages and code), the tags of every run, and
    what git does not tell."""
    name = os.environ.get("DVC_EXP_NAME")
    sha, dirty, lost = revision(workspace)
    params, stages = (md5(path) if (path := workspace / file).is_file() else "" for file in ("params.yaml", "dvc.yaml"))
    code = "" if sha == UNKNOWN else sha
    key = name or hashlib.md5(f"{params} {stages} {code}".encode()).hexdigest()[:12]
    tags = {"experiment": name or "workspace", "git_sha": sha, "git_dirty": dirty, "params_hash": params}
    return key, tags, lost


def md5(path: Path) -> str:
    """The md5 as dvc.lock shows it, of a file or of a folder (its sorted relative names and their contents)."""
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        listing = json.dumps([{"md5": md5(path / name), "relpath": name} for name in names])
        return hashlib.md5(listing.encode()).hexdigest() + ".dir"
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(name: str, value: Any) -> str:
    secret = isinstance(value, str) and name.rpartition(".")[2].lower() in SECRET_NAMES
    return "***" if secret else str(value)[:6000]


def _warn(error: Exception) -> None:
    print(f"tracking is off: {_told(error)}; the run goes on", file=sys.stderr)


def _told(error: Exception) -> str:
    """An error in one line, a foreign one in a short line; the address of a server may carry a password."""
    foreign = not isinstance(error, UserError)
    line = " ".join((f"{type(error).__name__}: {error}" if foreign else str(error)).split())
    return re.sub(r"//[^/@\s]+@", "//***@", line)[: 300 if foreign else None]


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
