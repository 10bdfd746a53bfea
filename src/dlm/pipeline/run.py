"""What a stage logs to: a run of MLflow, and the one above it. No failure in here stops a stage."""

import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from dlm.errors import UserError
from dlm.pipeline import machine
from dlm.pipeline.locks import md5

P = ParamSpec("P")
ILLEGAL = re.compile(r"[^A-Za-z0-9_\-./ ]")
SECRET_NAMES = {"api_key", "token", "secret", "password"}
NOTE = "mlflow.note.content"
TABLE = "\n\n## Scores\n\n"


@dataclass
class Link:
    """The way to the runs of one experiment, which one run and its parent share.

    Attributes:
        client: an MlflowClient.
        entities: the module mlflow.entities, which this one does not import.
        healthy: False after the first failure.
    """

    client: Any = None
    entities: Any = None
    experiment: str = ""
    healthy: bool = False


def guarded(log: Callable[Concatenate["Run", P], None]) -> Callable[Concatenate["Run", P], None]:
    """Call `log` with a healthy run only; its first failure is the one warning and the end of logging."""

    @functools.wraps(log)
    def calling(run: "Run", *args: P.args, **kwargs: P.kwargs) -> None:
        if run.healthy:
            try:
                log(run, *args, **kwargs)
            except Exception as error:
                run.link.healthy = False
                warn(error)

    return calling


class Run:
    """What a stage logs to. Without a client, and after the first failure, every method does nothing.

    Attributes:
        parent: the pipeline's run, above this one; itself where there is none.
        went_on: whether an earlier stage has logged to it.
    """

    def __init__(
        self,
        link: Link | None = None,
        run_id: str = "",
        parent: "Run | None" = None,
        cell: str | None = None,
        *,
        started: float = 0.0,
        idle: float | None = None,
    ) -> None:
        """`started`: a time.time(); `idle`: for a run that goes on, the seconds since its first end."""
        self.link, self.run_id, self.parent = link or Link(), run_id, parent or self
        self.went_on = idle is not None
        self._cell, self._started, self._idle, self._model = cell, started, idle or 0.0, ""
        self._unwatch: Callable[[], None] = lambda: None

    @property
    def healthy(self) -> bool:
        return self.link.healthy

    @guarded
    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, once each: nested ones with dotted names, cut at MLflow's limit, secrets masked."""
        params = [self.link.entities.Param(name, value) for name, value in shown(values).items()]
        self.link.client.log_batch(self.run_id, params=params)

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers at `step`, else at their own "step", else at 0; what is no finite number is skipped."""
        self.curve([{"step": 0, **values, **({} if step is None else {"step": step})}])

    @guarded
    def curve(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log every other number of the rows over their "step"; nested ones get dotted names."""
        self._log_numbers(rows)

    @guarded
    def model_metrics(self, values: Mapping[str, Any], dataset: str = "", digest: str = "") -> None:
        """Log numbers, of the model of this run, too, if it has one: MLflow's page of models has columns of them, under
        the dataset's name if one is given."""
        of = {"dataset_name": dataset, "dataset_digest": digest} if dataset and digest else {}
        self._log_numbers([{"step": 0, **values}], {"model_id": self._model, **of} if self._model else {})

    def _log_numbers(self, rows: Iterable[Mapping[str, Any]], of: Mapping[str, str] | None = None) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self.link.entities.Metric(ILLEGAL.sub("_", key), float(value), now, int(row["step"]), **(of or {}))
            for row in rows
            for key, value in _flat(row)
            if key != "step" and isinstance(value, Real) and math.isfinite(value)
        ]
        self.link.client.log_batch(self.run_id, metrics=metrics)

    @guarded
    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log rows as the artifact <name>.json, which MLflow shows as a table; a second call appends.

        Where the stage has cells, a column says which: tables of several runs stand side by side in MLflow.
        """
        cell = {"cell": self._cell} if self._cell else {}
        rows = [{**row, **cell} for row in rows]
        keys = dict.fromkeys(key for row in rows for key in row)
        self.link.client.log_table(self.run_id, {key: [row.get(key) for row in rows] for key in keys}, f"{name}.json")

    @guarded
    def artifact(self, path: Path | str) -> None:
        """Log one file, or a folder under its own name."""
        self.link.client.log_artifact(self.run_id, str(path))

    @guarded
    def inputs(self, context: str, *paths: Path | str) -> None:
        """Log the files and folders among `paths` that are there as datasets, their md5 as digest.

        Args:
            context: what they are for: training, validation, evaluation.
        """
        make, digests = self.link.entities, {Path(p).as_posix(): md5(Path(p)) for p in paths if Path(p).exists()}
        sets = [make.Dataset(name, digest, "local", json.dumps({"uri": name})) for name, digest in digests.items()]
        tag = [make.InputTag("mlflow.data.context", context)]
        self.link.client.log_inputs(self.run_id, [make.DatasetInput(dataset, tag) for dataset in sets])

    @guarded
    def outputs(self, paths: Iterable[Path | str]) -> None:
        """Log the md5 of each output, file or folder, as a tag "md5.<path>"."""
        self.tags({f"md5.{Path(path).as_posix()}": md5(Path(path)) for path in paths})

    @guarded
    def trained(self, checkpoint: Path) -> None:
        """Log a checkpoint as a model that this run made: its place and md5, never a copy of its weights."""
        self._model = self._model_of(checkpoint, self.run_id)
        output = self.link.entities.LoggedModelOutput(self._model, 0)
        self.link.client.log_outputs(self.run_id, [output])

    @guarded
    def decodes(self, checkpoint: Path) -> None:
        """Log a checkpoint that is there as the model that this run puts to use."""
        if checkpoint.exists():
            self._model = self._model_of(checkpoint, None)
            self.link.client.log_inputs(self.run_id, models=[self.link.entities.LoggedModelInput(self._model)])

    def _model_of(self, checkpoint: Path, maker: str | None) -> str:
        """The id of the model with these bytes: the one that is known, else a new one."""
        client, name, digest = self.link.client, checkpoint.name, md5(checkpoint)
        known = client.search_logged_models(
            [self.link.experiment], f"name = '{name}' AND tags.md5 = '{digest}'", max_results=1
        )
        if known:
            return str(known[0].model_id)
        tags = {"md5": digest, "path": checkpoint.as_posix()}
        made = client.create_logged_model(self.link.experiment, name, maker, tags, model_type="checkpoint")
        client.finalize_logged_model(made.model_id, "READY")
        return str(made.model_id)

    @guarded
    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; characters that MLflow does not take become _."""
        tags = [self.link.entities.RunTag(ILLEGAL.sub("_", key), value) for key, value in values.items()]
        self.link.client.log_batch(self.run_id, tags=tags)

    @guarded
    def describe(self, table: str) -> None:
        """Put a table in Markdown below the description that MLflow shows above everything else."""
        note = self.link.client.get_run(self.run_id).data.tags.get(NOTE, "")
        self.tags({NOTE: f"{note.partition(TABLE)[0]}{TABLE}{table}"})

    def watch_machine(self) -> None:
        """Log the system metrics of MLflow until the run ends, for the parent, too; a failure costs them alone, and one
        line."""

        def log(values: dict[str, float], step: int) -> None:
            now = time.time()
            # The parent has many stages' samples: its steps are seconds.
            for run, place in ((self, step), (self.parent, int(now - self.parent._started))):
                metrics = [
                    self.link.entities.Metric(f"system/{key}", value, int(now * 1000), place)
                    for key, value in values.items()
                ]
                self.link.client.log_batch(run.run_id, metrics=metrics)

        def tell(error: Exception) -> None:
            if self.healthy:
                print(f"system metrics are off: {told(error)}; the run goes on", file=sys.stderr)

        if self.healthy:
            self._unwatch = machine.watch(log, tell)

    def end(self, status: str) -> None:
        """End the run, and its parent with the same status; also after a failure, so that none stays RUNNING."""
        self._unwatch()
        if self.link.client is None:
            return
        try:
            self.link.client.set_terminated(self.run_id, status, int((time.time() - self._idle) * 1000))
            self.link.client.set_terminated(self.parent.run_id, status)
        except Exception as error:
            if self.healthy:
                warn(error)


def shown(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow keeps them: nested ones with dotted names, cut at its limit, secrets masked."""
    # dvc.lock has a block and one of its keys where a stage tracks both.
    return {ILLEGAL.sub("_", name): _masked(name, value) for name, value in _flat(values)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _masked(name: str, value: Any) -> str:
    secret = isinstance(value, str) and name.rpartition(".")[2].lower() in SECRET_NAMES
    return "***" if secret else str(list(value) if isinstance(value, tuple) else value)[:6000]


def warn(error: Exception) -> None:
    """The one line about a failure of tracking."""
    print(f"tracking is off: {told(error)}; the run goes on", file=sys.stderr)


def told(error: Exception) -> str:
    """An error in one line, a foreign one in a short line; the address of a server may carry a password."""
    foreign = not isinstance(error, UserError)
    line = " ".join((f"{type(error).__name__}: {error}" if foreign else str(error)).split())
    return re.sub(r"//[^/@\s]+@", "//***@", line)[: 300 if foreign else None]
