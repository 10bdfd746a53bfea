"""Where the MLflow runs are: a database in the repository, or a server; the experiment in it."""

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm.errors import UserError

# A server that does not answer costs seconds and one warning, not MLflow's minutes of retries.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@contextmanager
def connected() -> Iterator[tuple[Any, str]]:
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


def workspace() -> Path:
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def tracking_root() -> Path:
    """Where the database and the artifacts are: DVC's root (the parent repository inside a temporary workspace)."""
    return Path(os.environ.get("DVC_ROOT") or workspace()).resolve()


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
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage != "active":
            raise UserError(_deleted(name, found.experiment_id, uri))
        return found.experiment_id
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
