"""Tracking against a real sqlite database: structure, failures, signals, and several processes at once."""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dlm.errors import UserError
from dlm.pipeline import machine
from dlm.pipeline.backfill import backfill
from dlm.pipeline.database import tracking_uri
from dlm.pipeline.locks import md5
from dlm.pipeline.records import log_samples, log_scores
from dlm.pipeline.revision import revision
from dlm.pipeline.run import Run
from dlm.pipeline.tracking import stage_run

VARIABLES = ("DVC_ROOT", "DVC_EXP_NAME", "DVC_STAGE", "DLM_TRACKING", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI")
UNWATCHED = {"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}  # a slow machine would put them among a test's metrics
THREE_AT_ONCE = """
from dlm.pipeline.tracking import stage_run
import sys
with stage_run("decode", sys.argv[1], {"seed": 1}) as run:
    run.metrics({"nfe": 15.2})
"""
SLEEP = """
import time
from pathlib import Path
from dlm.pipeline.tracking import stage_run
with stage_run("train", "sft") as run:
    try:
        Path("started").touch()
        time.sleep(60)
    finally:
        Path("cleaned").touch()
"""
BODY = """
from dlm.pipeline.tracking import stage_run
with stage_run("score", params={"seed": 1}) as run:
    run.metrics({"nfe": 1})
    run.curve([{"step": 1, "loss": 2}])
    run.table("samples", [{"a": 1}])
    run.artifact("missing")
    run.outputs(["missing"])
print("body ran")
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in UNWATCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(workspace(tmp_path))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module, made by three first users at once: making one takes seconds."""
    folder = workspace(tmp_path_factory.mktemp("pipeline"))
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | UNWATCHED
    commands = [[sys.executable, "-c", THREE_AT_ONCE, cell] for cell in ("one", "two", "three")]
    started = [
        subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def client(uri: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> MlflowClient:
    """The module's database, with a pipeline run of the test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("DVC_EXP_NAME", request.node.name)
    return MlflowClient(tracking_uri=uri)


def workspace(folder: Path) -> Path:
    """A committed pipeline without stages."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text("seed: 1\n")
    git("init", "-q", folder=folder)
    commit(folder)
    return folder


def git(*arguments: str, folder: Path | str = ".") -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def commit(folder: Path | str = ".") -> None:
    git("add", ".", folder=folder)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    git(*author, "commit", "-q", "--allow-empty", "-m", "x", folder=folder)


def found(client: MlflowClient, where: str, experiment: str = "dlm") -> list[Any]:
    experiments = [client.get_experiment_by_name(experiment).experiment_id]
    return list(client.search_runs(experiments, where, order_by=["attributes.start_time ASC"]))


def parent_and_children(client: MlflowClient, key: str) -> tuple[Any, list[Any]]:
    (parent,) = found(client, f"tags.`dlm.key` = '{key}'")
    return parent, found(client, f"tags.mlflow.parentRunId = '{parent.info.run_id}'")


def script(code: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_three_first_users_at_once_share_one_parent_and_all_log(uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    (parent,) = found(client, "tags.experiment = 'workspace' AND tags.`dlm.key` != ''")
    children = found(client, f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == {"one", "two", "three"}
    assert all(child.data.metrics == {"nfe": 15.2} for child in children)
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_posix() in parent.info.artifact_uri


def test_stages_of_one_pipeline_run_are_children_with_tags(
    client: MlflowClient, request: pytest.FixtureRequest
) -> None:
    with stage_run("prepare"):
        pass
    with stage_run("decode", cell="r2ft-conv"):
        pass
    parent, children = parent_and_children(client, request.node.name)
    assert [child.info.run_name for child in children] == ["prepare", "r2ft-conv"]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    tags = children[1].data.tags
    assert (tags["stage"], tags["cell"], tags["experiment"]) == ("decode", "r2ft-conv", request.node.name)
    assert tags["params_hash"] == hashlib.md5(b"seed: 1\n").hexdigest()
    assert (len(tags["git_sha"]), tags["git_dirty"]) == (40, "false")


def test_without_an_experiment_the_files_and_the_commit_make_the_key(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parent() -> str:
        with stage_run("key") as run:
            pass
        tags = client.get_run(run.run_id).data.tags
        seen.append((tags["git_sha"], tags["git_dirty"]))
        return tags["mlflow.parentRunId"]

    seen: list[tuple[str, str]] = []
    monkeypatch.delenv("DVC_EXP_NAME")
    Path("dvc.lock").touch()
    commit()
    first = parent()
    Path("dvc.lock").write_text("changed by the pipeline itself")
    assert parent() == first
    Path("params.yaml").write_text("seed: 2\n")
    second = parent()
    commit()
    third = parent()
    assert len({first, second, third}) == 3
    assert [dirty for _, dirty in seen] == ["false", "false", "true", "false"]
    assert len(seen[0][0]) == 40
    assert seen[0][0] == seen[2][0] != seen[3][0]


def without_git() -> None:
    shutil.rmtree(".git")


def in_a_foreign_repository() -> None:
    """An archive that was unpacked where a folder above is somebody's repository."""
    without_git()
    Path("own").write_text("x")
    git("init", "-q")
    git("add", "own")
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "x")


def before_the_first_commit() -> None:
    without_git()
    git("init", "-q")


@pytest.mark.parametrize(
    ("lose", "variables", "remedy"),
    [
        (without_git, {"GIT_CEILING_DIRECTORIES": "/"}, "a downloaded archive?); `git clone` it, or `git init`"),
        (in_a_foreign_repository, {}, "git has no commit of this dvc.yaml; `git add -A` and `git commit`"),
        (before_the_first_commit, {}, "git has no commit of this dvc.yaml; `git add -A` and `git commit`"),
        (None, {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}, "`git config --global --add safe.directory {here}` allows it"),
        (None, {"PATH": ""}, "there is no git; install it"),
    ],
)
def test_what_git_does_not_tell_is_unknown_and_said_once(
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    lose: Callable[[], None] | None,
    variables: dict[str, str],
    remedy: str,
) -> None:
    if lose:
        lose()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        with stage_run("score") as run:
            run.metrics({"nfe": 1})
        stored = client.get_run(run.run_id)
        assert (stored.data.tags["git_sha"], stored.data.tags["git_dirty"]) == ("unknown", "unknown")
        assert stored.data.metrics == {"nfe": 1}
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("the runs will not say which commit they are of: ")
    assert remedy.format(here=Path.cwd()) in line


def test_a_status_that_git_does_not_give_leaves_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".git/index").write_bytes(b"spoilt")
    found = revision(Path.cwd())
    assert (len(found.sha), found.dirty) == (40, "unknown")
    assert "index" in found.lost and "\n" not in found.lost


def test_a_deleted_experiment_has_its_remedies(
    client: MlflowClient, uri: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one line, and both commands of it do what it says."""
    name = "deleted"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("DVC_ROOT", str(Path(uri.removeprefix("sqlite:///")).parent))

    def line() -> str:
        with stage_run("score") as run:
            run.metrics({"nfe": 1})
        return capfd.readouterr().err

    def do(command: str) -> None:
        mlflow = [sys.executable, "-m", *shlex.split(command)]
        subprocess.run(mlflow, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, check=True, capture_output=True)

    assert line() == ""
    number = client.get_experiment_by_name(name).experiment_id
    client.delete_experiment(number)
    restore, for_good = f"mlflow experiments restore -x {number}", f"mlflow gc --experiment-ids {number}"
    told = line()
    assert told == (
        f"tracking is off: MLflow's experiment {name} was deleted: `export MLFLOW_TRACKING_URI={uri}`, then "
        f"`{restore}` brings it back, `{for_good}` removes it for good; the run goes on\n"
    )
    do(restore)
    assert line() == ""
    client.delete_experiment(number)
    do(for_good)
    assert line() == ""
    assert len(found(client, "", name)) == 2  # a pipeline's run and its stage's


def test_a_path_that_is_no_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a URI gives a meaning to, in the name of a folder above the repository."""
    folder = workspace(tmp_path / "50%25 of?it=#1&ü+%" / "repository")
    monkeypatch.chdir(folder)
    with stage_run("score", params={"seed": 1}) as run:
        run.table("samples", [{"a": 1}])
        run.artifact("params.yaml")
    assert run.healthy
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        *("dvc.yaml", "mlartifacts", "mlflow.db", "params.yaml")
    ]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != ".git"] == [folder.parent.name]
    assert len(list((folder / "mlartifacts").rglob("samples.json"))) == 1
    client = MlflowClient(tracking_uri=tracking_uri())
    assert {item.path for item in client.list_artifacts(run.run_id)} == {"params.yaml", "samples.json"}


def test_the_table_of_a_cell_says_which(client: MlflowClient, tmp_path: Path) -> None:
    with stage_run("decode", "r2ft-conv") as run:
        run.table("samples", [{"prompt": "a", "answer": "b"}])
    table = json.loads(Path(client.download_artifacts(run.run_id, "samples.json", str(tmp_path))).read_text())
    assert (table["columns"], table["data"]) == (["prompt", "answer", "cell"], [["a", "b", "r2ft-conv"]])


def test_the_machine_is_watched_while_a_stage_runs(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")

    def logged(run: Run) -> list[Any]:
        return list(client.get_metric_history(run.run_id, "system/cpu_utilization_percentage"))

    with stage_run("train") as run:
        assert any(thread.name == "system metrics" for thread in threading.enumerate())
        wait_for(lambda: len(logged(run)) >= 2)
    points = len(logged(run))
    assert not any(thread.name == "system metrics" for thread in threading.enumerate())
    assert {point.step for point in logged(run)} == set(range(points))
    assert {"system/system_memory_usage_megabytes", "system/disk_usage_percentage"} <= set(
        client.get_run(run.run_id).data.metrics
    )
    with pytest.raises(ValueError), stage_run("train") as run:
        raise ValueError
    assert not any(thread.name == "system metrics" for thread in threading.enumerate())


def test_a_stage_without_system_metrics(client: MlflowClient) -> None:
    with stage_run("short") as run:
        run.metrics({"nfe": 1})
        assert not any(thread.name == "system metrics" for thread in threading.enumerate())
    assert client.get_run(run.run_id).data.metrics == {"nfe": 1}


@pytest.mark.parametrize(("brief", "samples"), [(0.0, 1), (1000.0, 0)])
def test_a_short_stage_has_one_sample_if_it_is_no_brief_one(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, brief: float, samples: int
) -> None:
    """And so has the pipeline's run."""
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1000")
    monkeypatch.setattr(machine, "BRIEF", brief)
    with stage_run("short") as run:
        pass
    for each in (run, run.parent):
        found = client.get_metric_history(each.run_id, "system/cpu_utilization_percentage")
        assert len(found) == samples


def test_a_name_of_an_experiment_with_other_parameters_has_another_parent(client: MlflowClient) -> None:
    """`dvc exp run --force -n NAME`: each shows its own parameters."""
    parents = []
    for seed in ("1", "2"):
        Path("params.yaml").write_text(f"seed: {seed}\n")
        with stage_run("short") as run:
            pass
        assert client.get_run(run.parent.run_id).data.params == {"seed": seed}
        parents.append(run.parent.run_id)
    assert len(set(parents)) == 2


def test_a_command_line_keeps_its_secrets(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/x/stage.py", "-S", "judge.api_key=s3cret", "--build=b", "/home/x/build"])
    with stage_run("short") as run:
        pass
    note = client.get_run(run.run_id).data.tags["mlflow.note.content"]
    assert note.endswith("python stage.py -S 'judge.api_key=***' --build=b build")


def test_the_pipelines_run_names_the_command_of_dvc(
    client: MlflowClient, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    code = "from dlm.pipeline.tracking import stage_run\nwith stage_run('prepare'):\n    pass\n"
    called = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)\n"
    (tmp_path / "dvc").write_text(called)
    words = ["exp", "run", "-S", "decoding.conv.kernel_size=65"]
    subprocess.run(
        [sys.executable, str(tmp_path / "dvc"), *words], env={**os.environ, "DVC_STAGE": "prepare"}, check=True
    )
    parent, _ = parent_and_children(client, request.node.name)
    assert parent.data.tags["mlflow.note.content"].endswith("    dvc exp run -S decoding.conv.kernel_size=65")


@pytest.mark.parametrize("spoil", ["results", "prompts"])
def test_a_record_that_cannot_be_made_costs_one_line(
    client: MlflowClient, capfd: pytest.CaptureFixture[str], spoil: str
) -> None:
    with stage_run("evaluate", "sft-conv") as run:
        if spoil == "results":
            log_scores(run, Path("build"), [], [16])
        else:
            log_samples(run, [{"id": 1, "answer": "a"}], {}, "sft", "conv")
    errors = capfd.readouterr().err
    assert errors.startswith("tracking is off: ") and errors.count("\n") == 1
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_failure_of_the_watch_costs_system_metrics_alone(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often")
    with stage_run("short") as run:
        wait_for(lambda: not any(thread.name == "system metrics" for thread in threading.enumerate()))
        run.metrics({"nfe": 1})
    assert client.get_run(run.run_id).data.metrics == {"nfe": 1}
    error = capfd.readouterr().err
    assert error.startswith("system metrics are off: ValueError: ") and error.count("\n") == 1


def test_everything_logged_can_be_read_back(client: MlflowClient, tmp_path: Path) -> None:
    figures, model = Path("figures"), Path("build/models/sft")
    for folder in (figures, model / "deep"):
        folder.mkdir(parents=True)
    (figures / "x.svg").write_text("<svg/>")
    (model / "b.bin").write_bytes(b"weights")
    (model / "deep" / "a.json").write_text("{}")
    with stage_run("decode", params={"seed": 1, "decoding": {"conv": {"kernel_size": 33}}, "long": "x" * 9000}) as run:
        run.metrics({"nfe": 15.2, "pass@1 (%)": 3, "none": None, "nan": float("nan"), "name": "x", "deep": {"er": 1}})
        run.metrics({"kept": 1, "step": 7})
        run.curve([{"step": step, "loss": 1 / step, "note": "x"} for step in range(1, 1501)])
        run.table("samples", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "score": [1, 2]}])
        run.table("empty", [])
        run.artifact(figures / "x.svg")
        run.artifact(figures)
        run.inputs("training", model, figures / "x.svg", "missing")
        run.outputs([model, figures / "x.svg"])
    assert run.healthy
    stored = client.get_run(run.run_id)
    assert stored.data.params == {"seed": "1", "decoding.conv.kernel_size": "33", "long": "x" * 6000}
    metrics = stored.data.metrics
    assert metrics == {"nfe": 15.2, "pass_1 ___": 3, "deep.er": 1, "kept": 1, "loss": 1 / 1500}
    assert client.get_metric_history(run.run_id, "kept")[0].step == 7
    points = {point.step: point.value for point in client.get_metric_history(run.run_id, "loss")}
    assert points == {step: 1 / step for step in range(1, 1501)}
    table = json.loads(Path(client.download_artifacts(run.run_id, "samples.json", str(tmp_path))).read_text())
    assert table["columns"] == ["prompt", "answer", "score"]
    assert table["data"] == [["a", "b", None], ["c", None, [1, 2]]]
    assert {"x.svg", "figures", "samples.json"} <= {item.path for item in client.list_artifacts(run.run_id)}
    assert [item.path for item in client.list_artifacts(run.run_id, "figures")] == ["figures/x.svg"]
    digests = {"build/models/sft": md5(model), "figures/x.svg": hashlib.md5(b"<svg/>").hexdigest()}
    assert {item.dataset.name: item.dataset.digest for item in stored.inputs.dataset_inputs} == digests
    assert {f"md5.{name}": digest for name, digest in digests.items()}.items() <= stored.data.tags.items()


def test_md5_of_a_folder_is_that_of_dvc(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "ü.txt").write_text("one")
    (folder / "a.txt").write_text("two")
    first = md5(folder)
    listing = [
        {"md5": hashlib.md5(b"two").hexdigest(), "relpath": "a.txt"},
        {"md5": hashlib.md5(b"one").hexdigest(), "relpath": "a/ü.txt"},
    ]
    assert first == hashlib.md5(json.dumps(listing).encode()).hexdigest() + ".dir"
    (folder / "a.txt").rename(folder / "b.txt")
    assert md5(folder) != first


def test_secrets_are_masked_and_ordinary_names_are_not(client: MlflowClient) -> None:
    params = {
        "api_key": "s3cret",
        "remote": {"password": "s3cret", "Token": "s3cret"},
        "client.secret": "s3cret",
        "tokenizer": "byte",
        "mask_token_id": 3,
        "token": 4,
        "key": "plain",
    }
    with stage_run("secrets", params=params) as run:
        pass
    stored = client.get_run(run.run_id).data.params
    assert "s3cret" not in stored.values()
    masked = {name for name, value in stored.items() if value == "***"}
    assert masked == {"api_key", "remote.password", "remote.Token", "client.secret"}
    assert stored["tokenizer"] == "byte"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("wrong"), "FAILED"), (SystemExit(2), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_exception_ends_the_run_and_passes(
    client: MlflowClient, request: pytest.FixtureRequest, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), stage_run("bad"):
        raise error
    parent, (child,) = parent_and_children(client, request.node.name)
    assert (parent.info.status, child.info.status) == (status, status)


def test_the_signal_handler_is_restored(client: MlflowClient) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stage_run("signals"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_ends_the_run_as_killed_after_clean_up(client: MlflowClient, request: pytest.FixtureRequest) -> None:
    process = script(SLEEP)
    wait_for(Path("started").exists)
    process.terminate()
    assert process.wait(timeout=20) == -signal.SIGTERM
    assert Path("cleaned").exists()
    parent, (child,) = parent_and_children(client, request.node.name)
    assert (parent.info.status, child.info.status) == ("KILLED", "KILLED")


def test_the_next_start_marks_a_run_killed_outright(client: MlflowClient, request: pytest.FixtureRequest) -> None:
    process = script(SLEEP)
    wait_for(Path("started").exists)
    with stage_run("train", "other"):
        pass
    process.kill()
    process.wait(timeout=20)
    _, children = parent_and_children(client, request.node.name)
    assert {c.info.run_name: c.info.status for c in children} == {"train@sft": "RUNNING", "train@other": "FINISHED"}
    with stage_run("train", "sft"):
        pass
    _, children = parent_and_children(client, request.node.name)
    assert sorted(c.info.status for c in children) == ["FINISHED", "FINISHED", "KILLED"]
    killed = next(c for c in children if c.info.status == "KILLED")
    assert killed.info.run_name == "train@sft"


def test_a_server_that_hangs_up_is_tried_twice_and_costs_one_line() -> None:
    """MLflow by itself tries for minutes."""
    tries = []
    server = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                tries.append(connection)
                connection.close()

    threading.Thread(target=hang_up, daemon=True).start()
    process = script(BODY, MLFLOW_TRACKING_URI=f"http://someone:pa55word@127.0.0.1:{server.getsockname()[1]}")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "body ran\n")
    assert errors.startswith("tracking is off: ")
    assert errors.endswith("; the run goes on\n")
    assert errors.count("\n") == 1
    assert "pa55word" not in errors
    server.close()
    assert len(tries) == 2


def test_an_unreadable_database_costs_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    Path("mlflow.db").write_text("no database\n" * 1000)
    with stage_run("score") as run:
        run.metrics({"nfe": 1})
    errors = capfd.readouterr().err
    assert errors.startswith("tracking is off: ")
    assert errors.count("\n") == 1


def test_without_mlflow_the_body_runs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with stage_run("score") as run:
        run.metrics({"nfe": 1})
    assert capfd.readouterr().err.count("tracking is off: ") == 1


def test_a_failure_in_the_middle_warns_once_and_still_ends_the_run(
    client: MlflowClient, capfd: pytest.CaptureFixture[str]
) -> None:
    with stage_run("score") as run:
        run.artifact("missing.png")
        run.metrics({"nfe": 1})
        run.outputs(["missing"])
    assert capfd.readouterr().err.count("\n") == 1
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {})


def test_switched_off_it_is_silent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DLM_TRACKING", "off")
    with contextlib.suppress(ValueError), stage_run("score", params={"seed": 1}) as run:
        run.metrics({"nfe": 1})
        raise ValueError
    assert capfd.readouterr() == ("", "")
    assert not Path("mlflow.db").exists()


def test_the_database_lies_in_the_root_that_dvc_names(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(uri.removeprefix("sqlite:///")).parent
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    Path("sub").mkdir()
    monkeypatch.chdir("sub")
    with stage_run("score", params={"seed": 1}) as run:
        run.table("samples", [{"a": 1}])
    assert not Path("../mlflow.db").exists()
    stored = found(MlflowClient(tracking_uri=uri), f"attributes.run_id = '{run.run_id}'", "elsewhere")
    assert [item.info.status for item in stored] == ["FINISHED"]
    assert list((root / "mlartifacts").rglob("samples.json"))


def test_backfill_needs_a_lock(client: MlflowClient) -> None:
    with pytest.raises(UserError, match=r"dvc.lock: no such file; run from the repository's root"):
        backfill()
    Path("dvc.lock").touch()
    assert backfill() == []


def test_backfill_says_that_a_server_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dvc.lock").write_text("stages: {prepare: {cmd: a}}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        backfill()
    assert str(caught.value).startswith("the runs cannot be read: ")
    assert "\n" not in str(caught.value) and "word" not in str(caught.value)


def test_backfill_by_hand(client: MlflowClient) -> None:
    """A stage that tracks a block and a key of it; an output that was pulled and one that was not."""
    params = {"seed": 1, "sft": {"training": {"steps": 3}}, "sft.training.steps": 3, "decode.steps": [16, 64]}
    outs = [{"path": "build/evaluation/a.json", "md5": "0a"}, {"path": "build/models/sft", "md5": "0b.dir"}]
    lock = {"stages": {"evaluate_reference": {"cmd": "a", "params": {"params.yaml": params}, "outs": outs}}}
    Path("dvc.lock").write_text(json.dumps(lock))
    Path("build/evaluation").mkdir(parents=True)
    scored = {"checkpoint": "reference", "decoder": "nucleus", "steps": None, "gen_length": 128, "n": 4, "prompts": 2}
    scored |= {"nfe": 15.5, "nfe_ci": [15, 16], "quality": 0.5, "quality_ci": None, "area": None, "area_ci": None}
    Path("build/evaluation/a.json").write_text(json.dumps([scored]))
    Path("build/models/sft").mkdir(parents=True)
    Path("build/models/sft/curve.json").write_text("[]")  # a checkpoint that was taken as it is
    assert backfill() == ["reference-nucleus"]
    assert backfill() == []
    (run,) = found(client, "attributes.run_name = 'reference-nucleus'")
    both = {f"{name}_S{steps}": value for name, value in (("nfe", 15.5), ("quality", 0.5)) for steps in (16, 64)}
    assert run.data.metrics == {"nfe": 15.5, "quality": 0.5, **both}
    told = {
        "decode.steps": "[16, 64]",
        "checkpoint": "reference",
        "decoder": "nucleus",
        "gen_length": "128",
        "n": "4",
        "prompts": "2",
    }
    assert run.data.params == {"seed": "1", "sft.training.steps": "3", **told}
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("md5.")}
    assert tags == {"md5.build/evaluation/a.json": "0a", "md5.build/models/sft": "0b.dir"}
    assert (run.data.tags["backfilled"], run.info.status) == ("from dvc.lock", "FINISHED")
