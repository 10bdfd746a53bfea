"""docs/sharing.md and the experiments of the README: pushed and pulled, restored, applied, queued and compared."""

import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from mlflow.entities import Run
from moto.server import ThreadedMotoServer
from workspaces import STAGES, Small, running

KEYS = {"access_key_id": "key-for-the-test", "secret_access_key": "secret-for-the-test"}
BUCKET, REGION = "dlm", "us-east-1"
METRICS = "results/metrics/r2ft-top_k.json"
NAME = "r2ft.training.learning_rate"  # far from the default: another curve, other answers
VARIED = {"r2ft", "decode@r2ft-top_k", "evaluate@r2ft-top_k"}
VARIED |= {f"{name}@r2ft" for name in ("decode_ablation", "ablation", "likelihood")}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on this machine with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        client(address).create_bucket(Bucket=BUCKET)
        yield address
    server.stop()


def client(address: str) -> Any:
    names = dict(zip(("aws_access_key_id", "aws_secret_access_key"), KEYS.values(), strict=True))
    return boto3.client("s3", endpoint_url=address, region_name=REGION, **names)


def stored(address: str) -> set[str]:
    """What the bucket holds."""
    pages = client(address).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return {entry["Key"] for page in pages for entry in page.get("Contents", ())}


@pytest.fixture(scope="module")
def made(small: Small, tmp_path_factory: pytest.TempPathFactory, s3: str) -> Small:
    """A run in git with two remotes: the default, a folder, and `team`, S3."""
    folder = tmp_path_factory.mktemp("sharing")
    owner = small.copied(folder / "owner")
    owner.run("dvc", "remote", "modify", "local", "url", str(folder / "remote"))
    owner.run("dvc", "remote", "add", "team", f"s3://{BUCKET}/cache")
    owner.run("dvc", "remote", "modify", "team", "endpointurl", s3)
    owner.run("dvc", "remote", "modify", "team", "region", REGION)
    assert owner.stale() == set()
    owner.run("git", "commit", "-qam", "remotes")
    return owner


def use(workspace: Small, remote: str) -> None:
    """Make `remote` the default there; the keys of S3 stay out of git."""
    workspace.run("dvc", "remote", "default", "--local", remote)
    for key, value in KEYS.items() if remote == "team" else ():
        workspace.run("dvc", "remote", "modify", "--local", "team", key, value)


def at_revision(workspace: Small, name: str, file: str) -> str:
    """What `file` holds in an experiment's commit."""
    (ref,) = workspace.run("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").stdout.split()
    return workspace.run("git", "show", f"{ref}:{file}").stdout


@pytest.fixture(scope="module")
def varied(made: Small) -> Small:
    """The same with an experiment, run in a temporary folder."""
    told = made.run("dvc", "exp", "run", "--temp", "-n", "varied", "-S", f"{NAME}=0.01").stdout
    assert running(told) == {*VARIED, "report"}
    return made


def restored(told: str) -> set[str]:
    return set(re.findall(r"Stage '(.+)' is cached - skipping run, checking out outputs", told))


@dataclass(frozen=True)
class Shared:
    """Who has pushed, and a fresh clone that has pulled."""

    owner: Small
    colleague: Small


@pytest.fixture(scope="module")
def share(varied: Small, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shared]:
    """What docs/sharing.md says, through a remote: push, clone, pull."""

    @functools.cache
    def through(remote: str) -> Shared:
        folder = tmp_path_factory.mktemp(remote)
        owner = varied.copied(folder / "owner")
        owner.run("git", "clone", "-q", "--bare", str(owner.folder), str(folder / "git"))
        owner.run("git", "remote", "add", "origin", str(folder / "git"))
        use(owner, remote)
        owner.run("dvc", "push", "--run-cache", "dvc.yaml")
        owner.run("git", "clone", "-q", str(folder / "git"), str(folder / "colleague"))
        colleague = owner.at(folder / "colleague")
        colleague.name_user()
        use(colleague, remote)
        assert len(colleague.stale()) == len(STAGES) - 1  # without `inputs`
        colleague.run("dvc", "pull", "--run-cache", "dvc.yaml")
        return Shared(owner, colleague)

    return through


@pytest.mark.parametrize("remote", ["local", "team"])
def test_a_colleague_pulls_everything(share: Callable[[str], Shared], tmp_path: Path, remote: str) -> None:
    """Through a folder and through S3: push, a fresh clone, pull: nothing to run. Git sees no key."""
    shared = share(remote)
    there = shared.colleague.copied(tmp_path / "clone")
    assert there.stale() == set()
    assert running(there.run("dvc", "repro").stdout) == set()
    for each in (shared.owner, there):
        assert each.run("git", "status", "--porcelain", "--untracked-files=all").stdout == ""
        assert (KEYS["secret_access_key"] in (each.folder / ".dvc/config.local").read_text()) == (remote == "team")


def test_a_variation_is_restored(share: Callable[[str], Shared], s3: str, tmp_path: Path) -> None:
    """Who asks for a setting that a colleague has run and pushed gets its outputs; only the report runs.

    `dvc push --run-cache` takes the records of all runs along, but the outputs of dvc.lock alone: an experiment's come
    with `dvc exp push`. `--pull` fetches them. A stage with outputs in git, the report, is in no run cache.
    """
    shared = share("team")
    owner, there = shared.owner, shared.colleague.copied(tmp_path / "clone")
    lock = yaml.safe_load(at_revision(owner, "varied", "dvc.lock"))["stages"]
    hashes = [lock[name]["outs"][0]["md5"] for name in VARIED]
    outputs = {f"cache/files/md5/{md5[:2]}/{md5[2:]}" for md5 in hashes}
    cache = owner.folder / ".dvc/cache"
    records = {f"cache/{path.relative_to(cache)}" for path in cache.glob("runs/*/*/*")}
    assert len(records) >= len(STAGES) - 2 + len(VARIED)  # the report and `inputs` leave none
    assert records <= stored(s3) and not outputs & stored(s3)
    owner.run("dvc", "exp", "push", "origin", "varied")
    assert outputs <= stored(s3)

    told = there.run("dvc", "exp", "run", "--pull", "-S", f"{NAME}=0.01").stdout
    assert restored(told) == VARIED and running(told) == {"report"}
    for file in ("dvc.lock", METRICS):
        assert (there.folder / file).read_text() == at_revision(owner, "varied", file)


def test_an_experiment_by_name(share: Callable[[str], Shared], tmp_path: Path) -> None:
    """Pushed, pulled and applied: its parameters, its outputs, its metrics; nothing to run."""
    shared = share("local")
    owner, there = shared.owner, shared.colleague.copied(tmp_path / "clone")
    owner.run("dvc", "exp", "push", "origin", "varied")
    there.run("dvc", "exp", "pull", "origin", "varied")
    there.run("dvc", "exp", "apply", "varied")
    assert there.stale() == set()
    assert running(there.run("dvc", "repro").stdout) == set()
    for file in ("params.yaml", "dvc.lock", METRICS):
        assert (there.folder / file).read_text() == at_revision(owner, "varied", file)
    diff = there.loaded("dvc", "params", "diff", "--json")
    assert diff == {"params.yaml": {NAME: {"old": 5e-05, "new": 0.01, "diff": pytest.approx(0.00995)}}}


def test_what_a_variation_changed(varied: Small) -> None:
    """`dvc params diff`, `metrics diff`, `plots diff` and `exp show`: what was set, and what came of it."""
    diff = varied.loaded("dvc", "params", "diff", "--json", "HEAD", "varied")
    assert set(diff) == {"params.yaml"} and set(diff["params.yaml"]) == {NAME}

    before = json.loads((varied.folder / METRICS).read_text())
    after = json.loads(at_revision(varied, "varied", METRICS))
    changed = varied.loaded("dvc", "metrics", "diff", "--json", "HEAD", "varied")[METRICS]
    assert changed and changed.keys() <= after.keys()
    assert all((entry["old"], entry["new"]) == (before[name], after[name]) for name, entry in changed.items())

    plots = varied.loaded("dvc", "plots", "diff", "--json", "HEAD", "varied")["data"]
    pictures = {title for title, plot in plots.items() if plot[0]["type"] == "image"}
    assert {Path(title).name for title in pictures} == {"quality.png", "unmasking.png"}
    curves = {title: curve(plot[0]) for title, plot in plots.items() if title not in pictures}
    passes = curves.pop("Quality over forward passes")
    assert passes.keys() == {"HEAD", "varied"}
    assert all({"nfe", "quality", "decoder", "checkpoint"} <= row.keys() for rows in passes.values() for row in rows)
    assert curves.keys() == {
        "R2FT on held-out data",
        "Log-prior during R2FT",
        "Held-out loss of SFT",
        "Held-out loss of the reference",
    }
    for title, curve_of in curves.items():
        assert curve_of.keys() == {"HEAD", "varied"}
        assert all({"step", "eval_loss"} <= row.keys() for rows in curve_of.values() for row in rows)
        assert (curve_of["HEAD"] != curve_of["varied"]) == ("R2FT" in title)

    shown = varied.loaded("dvc", "exp", "show", "--json")
    (experiment,) = [found for entry in shown for found in entry["experiments"] or ()]
    (commit,) = experiment["revs"]
    assert experiment["name"] == "varied" and commit["data"]["metrics"][METRICS]["data"] == after
    assert commit["data"]["params"]["params.yaml"]["data"]["r2ft"]["training"]["learning_rate"] == 0.01


def curve(plot: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each revision."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in plot["content"]["data"]["values"]:
        found.setdefault(row["rev"], []).append({key: value for key, value in row.items() if key != "rev"})
    return found


def test_a_temporary_folder_logs_here(varied: Small) -> None:
    """`dvc exp run --temp`: its runs are in the repository's own database; the files here are as they were."""
    assert varied.run("git", "status", "--porcelain").stdout == "" and varied.stale() == set()
    (parent,), children = families(varied.runs())
    assert parent.info.run_name == "pipeline varied"
    assert children == {
        parent.info.run_id: {*VARIED - {"decode@r2ft-top_k", "evaluate@r2ft-top_k"}, "r2ft-top_k", "report"}
    }


def families(runs: list[Run]) -> tuple[list[Run], dict[str, set[str]]]:
    """The parents, and the names of the children of each; all of them have ended well."""
    assert {run.info.status for run in runs} == {"FINISHED"}
    children: dict[str, set[str]] = {}
    for run in runs:
        if parent := run.data.tags.get("mlflow.parentRunId"):
            children.setdefault(parent, set()).add(run.info.run_name)
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags], children


def test_a_queue_of_two(made: Small, tmp_path: Path) -> None:
    """Two settings at once: two experiments, and two parents with their stages in one database, new as it is."""
    here = made.copied(tmp_path / "queue")
    name, target = "decoding.top_k.top_k", "evaluate@r2ft-top_k"
    here.run("dvc", "exp", "run", "--queue", "-S", f"{name}=1,9", target)
    assert len(tasks(here)) == 2
    here.run("dvc", "queue", "start", "-j", "2")
    try:
        deadline = time.monotonic() + 240
        while (found := tasks(here)) and set(found.values()) & {"Queued", "Running"}:
            assert time.monotonic() < deadline, found
            time.sleep(3)  # a look takes a second of a core
        logs = [here.run("dvc", "queue", "logs", key, check=False).stdout[-2000:] for key in found]
        assert list(found.values()) == ["Success", "Success"], (found, logs)
    finally:
        here.run("dvc", "queue", "stop", "--kill", check=False)

    shown = here.loaded("dvc", "exp", "show", "--json")
    commits = {each["name"]: each["revs"][0]["data"] for entry in shown for each in entry["experiments"] or ()}
    settings = {key: commits[key]["params"]["params.yaml"]["data"]["decoding"]["top_k"]["top_k"] for key in found}
    assert sorted(settings.values()) == [1, 9]
    locks = [yaml.safe_load(at_revision(here, key, "dvc.lock"))["stages"][target] for key in settings]
    assert len({lock["outs"][0]["md5"] for lock in locks}) == 2

    runs = here.runs()
    parents, children = families(runs)
    assert {run.info.run_name for run in parents} == {f"pipeline {key}" for key in settings}
    assert children == {run.info.run_id: {"select@top_k", "r2ft-top_k"} for run in parents}
    logged = {run.data.tags["experiment"]: run.data.params[name] for run in runs if name in run.data.params}
    assert logged == {key: str(value) for key, value in settings.items()}
    cells = [run.data for run in runs if run.info.run_name == "r2ft-top_k"]
    assert sorted(cell.params["top_k"] for cell in cells) == ["1", "9"]
    assert len({cell.metrics["log_prior"] for cell in cells}) == 2
    assert all(cell.metrics["quality_S16"] == round(cell.metrics["quality"], 4) for cell in cells)


def tasks(workspace: Small) -> dict[str, str]:
    """Name -> status, of the queue."""
    lines = workspace.run("dvc", "queue", "status").stdout.splitlines()
    rows = [line.split() for line in lines if re.match(r"[0-9a-f]{7} ", line)]
    return {row[1]: row[-1] for row in rows}
