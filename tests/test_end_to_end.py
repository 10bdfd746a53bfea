"""A tiny model through every stage with DVC, in a clone of the working tree, as a user would run it."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import commands
from mlflow import MlflowClient
from scripts import stage
from test_browser import browse, needs_chromium
from test_judges import KEY, VARIABLE, Answer, Server, said
from warm import warm
from workspaces import Workspace

from dlm.data.tokenizer import encode, load_tokenizer


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("clone"))
    made.told = made.run("dvc", "repro").stdout
    return made


def where_it_went(told: str) -> dict[str, int]:
    """stage -> runs, of each row that has its two times; what these are: test_times.py."""
    rows = re.findall(r"^ *(\w+) +(\d+) +\d+\.\d +\d+\.\d *$", told.split("where the time went")[1], re.M)
    return {name: int(runs) for name, runs in rows}


def test_the_run_says_where_its_time_went(workspace: Workspace) -> None:
    """A line a stage with its cells and seconds."""
    found = where_it_went(workspace.told)
    expected = {"prepare": 1, "sft": 2, "select": 5, "decode": 10, "evaluate": 11, "decode_ablation": 2, "ablation": 2}
    expected |= {"likelihood": 4, "report": 1}
    assert {name: found[name] for name in expected} == expected


def test_everything_is_there(workspace: Workspace) -> None:
    rows = json.loads((workspace.folder / "results/table.json").read_text())
    cells = [(row["checkpoint"], row["decoder"], row["steps"]) for row in rows]
    decoders = workspace.params["report"]["decoders"]
    expected = {(c, d, s) for c in ("sft", "r2ft") for d in decoders for s in (4, 8)}
    assert len(cells) == len(set(cells)) and set(cells) == {("reference", "nucleus", None)} | expected
    for row in rows:
        assert row["n"] == 8
        assert row["slot_error_rate"] is not None
        assert row["slot_error_rate_ci"][0] <= row["slot_error_rate"] <= row["slot_error_rate_ci"][1]
    assert (workspace.folder / "results/report.html").read_text().lower().startswith("<!doctype html>")
    assert list((workspace.folder / "results/figures").glob("*.png"))


def test_what_was_chosen_is_what_decodes(workspace: Workspace) -> None:
    """By the grid's own numbers, for each number of steps; the table says so; without lists nothing is chosen."""
    rows = json.loads((workspace.folder / "results/table.json").read_text())
    for decoder, candidates in (("top_k", [{"top_k": 5}, {"top_k": 1}]), ("categorical", [{}])):
        folder = workspace.folder / "build" / "selection"
        grid = json.loads((folder / f"{decoder}-grid.json").read_text())
        assert len(grid) == (2 * 2 if len(candidates) > 1 else 0)
        for choice in json.loads((folder / f"{decoder}.json").read_text()):
            tried = [r for r in grid if r["steps"] == choice["steps"]] or [{"candidate": {}, "quality": None}]
            assert [r["candidate"] for r in tried] == candidates
            assert choice["options"] == max(tried, key=lambda r: r["quality"])["candidate"]
            shown = {r["setting"] for r in rows if (r["decoder"], r["steps"]) == (decoder, choice["steps"])}
            assert shown == {f"top_k {choice['options']['top_k']}" if choice["options"] else ""}
    assert "**" in (workspace.folder / "results/selection.md").read_text()


def test_nothing_left_to_do(workspace: Workspace) -> None:
    assert workspace.stale() == set()


CELLS = [f"{c}-{d}" for c in ("sft", "r2ft") for d in ("categorical", "top_k", "low_confidence", "semi_ar", "conv")]
SELECTS = {f"select@{name}" for name in ("categorical", "top_k", "low_confidence", "semi_ar", "conv")}
DECODES = {f"decode@{cell}" for cell in CELLS}
EVALUATES = {*(f"evaluate@{cell}" for cell in CELLS), "evaluate_reference"}
LONG = {"decode_ablation@sft", "decode_ablation@r2ft"}
ABLATIONS = {"ablation@sft", "ablation@r2ft"}
LIKELIHOODS = {f"likelihood@{name}" for name in ("base", "sft", "sft_answer", "r2ft")}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("data.eval_size", 5, {"prepare"}),
        ("base.training.steps", 3, {"base", "reference"}),
        ("reference.top_p", 0.9, {"reference"}),
        ("sft.training.learning_rate", 1.0e-4, {"sft@sft", "sft@sft_answer"}),
        ("r2ft.training.steps", 3, {"r2ft", "sft@sft"}),
        ("r2ft.gamma", 0.2, {"r2ft"}),
        ("negatives.g_max", 3, {"negatives"}),
        ("decoding.conv.kernel_size", 65, {"select@conv", "decode@sft-conv", "decode@r2ft-conv", *LONG}),
        ("decoding.top_k.top_k", 7, {"select@top_k", "decode@sft-top_k", "decode@r2ft-top_k"}),
        ("decoding.remdm.eta", 0.05, set()),
        ("likelihood.samples", 24, LIKELIHOODS),
        ("decode.seeds", [5], {*SELECTS, *DECODES, *LONG, "reference"}),
        ("decode.steps", [8], {*SELECTS, *DECODES, *EVALUATES, *LONG}),
        ("select.prompts", 3, SELECTS),
        ("evaluate.bootstrap_samples", 60, {*SELECTS, *EVALUATES, *ABLATIONS, *LIKELIHOODS}),
        ("evaluate.judge.concurrency", 2, EVALUATES),
        ("ablation.prompts", 3, LONG),
        ("sweeps.prompts", 3, set()),
        ("infill.prompts", 3, set()),
        ("report.title", "T", set()),
    ],
)
def test_a_number_makes_exactly_its_stages_stale(
    workspace: Workspace, name: str, value: Any, expected: set[str]
) -> None:
    """What reads it. What follows from those reruns if their outputs change; the report shows params.yaml itself."""
    changed = json.loads(json.dumps(workspace.params))
    *path, key = name.split(".")
    block = changed
    for part in path:
        block = block[part]
    assert block[key] != value
    block[key] = value
    workspace.write(changed)
    try:
        assert workspace.stale() == {*expected, "report"}
    finally:
        workspace.write(workspace.params)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("src/dlm/decoding/commit.py", {*SELECTS, *DECODES, *LONG, *LIKELIHOODS}),
        ("src/dlm/decoding/options.py", {*SELECTS, *DECODES, *LONG, *LIKELIHOODS}),
        ("src/dlm/training/objectives.py", {"base", "reference", "sft@sft", "sft@sft_answer", "r2ft"}),
        ("src/dlm/negatives/corruption.py", {"negatives"}),
        ("src/dlm/evaluation/metrics.py", {*SELECTS, *EVALUATES, *ABLATIONS, *LIKELIHOODS}),
        ("src/dlm/analysis/claims.py", {"report"}),
        ("src/dlm/pipeline/tracking.py", set()),
        (
            "build/data/eval.parquet",
            {"prepare", "reference", *SELECTS, *DECODES, *EVALUATES, *LONG, *ABLATIONS, "report"},
        ),
    ],
)
def test_an_edit_makes_exactly_its_stages_stale(workspace: Workspace, file: str, expected: set[str]) -> None:
    path = workspace.folder / file
    before = path.read_bytes()
    path.write_bytes(before + b"# edited\n")
    try:
        assert workspace.stale() == expected
    finally:
        path.write_bytes(before)


def test_runs_are_tracked_as_children_of_one_parent(workspace: Workspace) -> None:
    runs = workspace.runs()
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len({run.data.tags["mlflow.parentRunId"] for run in children}) == 1
    names = {run.info.run_name for run in children}
    assert {"prepare", "sft", "sft_answer", "r2ft", "select@categorical", "r2ft-conv", "report"} <= names
    assert len(names) == len(children)  # one run a cell
    assert {run.info.status for run in runs} == {"FINISHED"}


@needs_chromium
def test_runs_in_the_browser(workspace: Workspace, tmp_path: Path) -> None:
    """`make ui`: the pipeline's run, its children with metrics and parameters, the report's figures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = workspace.runs()
    (experiment,) = {run.info.experiment_id for run in found}
    runs = {run.info.run_name: run.info.run_id for run in found}
    parent = next(name for name in runs if name.startswith("pipeline "))
    server = subprocess.Popen(
        [sys.executable, "-m", "dlm.pipeline.ui", "--port", str(port)],
        cwd=workspace.folder,
        env=workspace.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def page(path: str, *wanted: str) -> None:
        for _ in range(3):  # a page may need longer than the browser waits
            url = f"http://127.0.0.1:{port}/#/experiments/{experiment}/{path}?workflowType=machine_learning"
            text = browse("--window-size=1500,1400", "--dump-dom", url, profile=tmp_path / "profile")
            if all(piece in text for piece in wanted):
                return
        raise AssertionError([piece for piece in wanted if piece not in text])

    try:
        assert server.stdout is not None and f"http://127.0.0.1:{port}" in server.stdout.readline()
        for _ in range(120):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                if answer.read() == b"OK":
                    break
            time.sleep(0.5)
        page("runs", parent)
        page(f"runs/{runs['r2ft-conv']}", parent, "well_formed", "quality_S8", "kernel_size_S4")
        page(f"runs/{runs['r2ft']}", parent, "eval_log_p_chosen", "r2ft.gamma")
        page(f"runs/{runs['report']}/artifacts", "figures", "report.html", "table.json")
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_an_endpoint_judges_a_cell(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Win rates, grades and the share of failures in a cell's figures; what it cost in its run; the key nowhere."""

    def answer(body: dict[str, Any], number: int) -> Answer:
        prompt = body["messages"][0]["content"]
        if "from 1 to 5" not in prompt:
            return said("A", {"A": 0.75, "B": 0.25})
        return said("What?") if babble in prompt else said("4", {"4": 0.5, "3": 0.5})

    build, server = tmp_path / "build", Server(answer)
    shutil.copytree(workspace.folder / "build", build)
    written = [json.loads(line) for line in (build / "answers" / "sft-conv.jsonl").read_text().splitlines()]
    babble = written[0]["answer"]
    params = json.loads(json.dumps(workspace.params))
    judge = {"kind": "endpoint", "base_url": server.url, "model": "judge", "key_variable": VARIABLE, "grades": True}
    params["evaluate"]["judge"] |= judge
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    paths = ("--params", str(tmp_path / "params.yaml"), "--build", str(build))
    try:
        workspace.run("python", "stages/evaluate.py", *paths, "--checkpoint", "sft", "--decoder", "conv")
        workspace.run("python", "stages/evaluate.py", *paths, "--checkpoint", "reference", "--decoder", "nucleus")
    finally:
        server.close()
    for found in json.loads((build / "evaluation" / "sft-conv.json").read_text()):
        failed = sum(babble in answer["answer"] for answer in written if answer["steps"] == found["steps"])
        assert 25 <= found["win_rate"] <= 75 and found["grade"] == 3.5 and found["judge_failed"] == failed / 16
    (reference,) = json.loads((build / "evaluation" / "reference-nucleus.json").read_text())
    assert (reference["win_rate"], reference["grade"], reference["judge_failed"]) == (None, 3.5, 0)
    runs = [run for run in workspace.runs() if run.data.metrics.get("judge_requests", 0) > 0]
    assert sorted(run.info.run_name for run in runs) == ["reference-nucleus", "sft-conv"]
    assert server.keys == {f"Bearer {KEY}"}
    written = [*workspace.folder.glob("mlflow.db*"), *(workspace.folder / ".cache").rglob("*"), *build.rglob("*")]
    assert not any(KEY.encode() in path.read_bytes() for path in written if path.is_file())


def test_backfill_after_a_pull(workspace: Workspace) -> None:
    """A clone that pulled has no runs: they come back from dvc.lock, with curves, metrics, hashes and figures, once."""

    fresh = f"sqlite:///{workspace.folder / 'fresh.db'}"

    def runs(uri: str) -> tuple[MlflowClient, dict[str, Any]]:
        client = MlflowClient(uri)
        found = client.search_runs([client.get_experiment_by_name("dlm").experiment_id])
        return client, {run.info.run_name: run for run in found}

    client, before = runs(f"sqlite:///{workspace.folder / 'mlflow.db'}")
    curve = {(m.step, m.value) for m in client.get_metric_history(before["r2ft"].info.run_id, "eval_loss")}
    told = workspace.run("env", f"MLFLOW_TRACKING_URI={fresh}", "dlm", "backfill").stdout
    again = workspace.run("env", f"MLFLOW_TRACKING_URI={fresh}", "dlm", "backfill").stdout
    client, after = runs(fresh)
    assert after.keys() == before.keys()
    assert told.startswith(f"{len(before) - 1} runs made: ") and again == "nothing is missing\n"
    again_curve = {(m.step, m.value) for m in client.get_metric_history(after["r2ft"].info.run_id, "eval_loss")}
    assert again_curve == curve
    name = "r2ft-conv"
    assert after[name].data.metrics["well_formed"] == before[name].data.metrics["well_formed"]
    assert after["r2ft"].data.params["r2ft.gamma"] == before["r2ft"].data.params["r2ft.gamma"]
    for run in after.values():
        if "mlflow.parentRunId" in run.data.tags:
            assert run.data.tags["backfilled"] == "from dvc.lock" and run.info.status == "FINISHED"
    hashes = {k: v for k, v in before["r2ft"].data.tags.items() if k.startswith("md5.")}
    assert hashes and hashes.items() <= after["r2ft"].data.tags.items()
    assert any(file.path == "figures" for file in client.list_artifacts(after["report"].info.run_id))


def test_dvc_lists_metrics_and_plots(workspace: Workspace) -> None:
    shown = workspace.loaded("dvc", "metrics", "show", "--json")
    found = {Path(file).stem: entry["data"] for file, entry in shown[""]["data"].items()}
    assert set(found) == {*CELLS, "reference-nucleus"}
    names = {f"{name}_{steps}" for name in ("quality", "nfe") for steps in (4, 8)}
    assert names <= set(found["r2ft-conv"]) <= {*names, "area"}
    plots = workspace.run("dvc", "plots", "show", "--json").stdout
    for title in ("mean log p of the two sides", "mean log-prior of a sampled token", "SFT, held-out loss"):
        assert title in plots
    assert '"optimizer step"' in plots


@needs_chromium
def test_plots_without_a_network(workspace: Workspace, tmp_path: Path) -> None:
    """`dvc plots show`: every curve is drawn, and nothing is fetched."""
    workspace.run("python", "-m", "dlm.pipeline.plots")
    workspace.run("dvc", "plots", "show", "-o", str(tmp_path / "plots"))
    page = tmp_path / "plots" / "index.html"
    assert "cdn." not in re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL)
    drawn = browse("--dump-dom", page.as_uri(), profile=tmp_path / "profile")
    plots = yaml.safe_load((workspace.folder / "dvc.yaml").read_text())["plots"]
    assert drawn.count('class="marks"') == sum(isinstance(plot, dict) for plot in plots)  # the others are pictures
    assert len(list((tmp_path / "plots").rglob("*.png"))) == sum(isinstance(plot, str) for plot in plots)
    assert all(f">{decoder}<" in drawn for decoder in workspace.params["report"]["decoders"])


def test_sweeps(workspace: Workspace) -> None:
    """All of sweeps/dvc.yaml after the default run, which has nothing left to do for it."""
    workspace.know_sweeps()
    workspace.run("dvc", "repro", "sweeps/dvc.yaml")
    lock = yaml.safe_load((workspace.folder / "sweeps/dvc.lock").read_text())["stages"]
    listed = dict(commands(workspace.folder / "sweeps/dvc.yaml", workspace.params))
    assert {name: f"python {' '.join(words)}" for name, words in listed.items()} == {
        name: entry["cmd"] for name, entry in lock.items()
    }
    found = workspace.folder / "results" / "sweeps"
    page = (found / "README.md").read_text()
    pictures = sorted(path.stem for path in (found / "figures").glob("*.png"))
    assert len(pictures) == 13 and all(f"(figures/{name}.png)" in page for name in pictures)
    data = json.loads((found / "figures" / "fig-12-r2ft-steps.json").read_text())
    assert data["panels"][0]["lines"][0]["x"] == [0, 1, 2]
    written = next(shown for shown in data["panels"][1]["lines"] if shown["label"] == "written by top_k")
    assert written["x"] == [0, 1, 2]
    fluency = json.loads((workspace.folder / "results/fluency/table.json").read_text())
    assert [row["answers"] for row in fluency["rows"]] == ["real answers", "reference-nucleus", *CELLS]
    assert min(row["perplexity"] for row in fluency["rows"]) == fluency["rows"][0]["perplexity"]  # nobody has learnt
    _, cell = json.loads((workspace.folder / "build/evaluation/sft-conv.json").read_text())  # of the judged budget
    shown = next(row for row in fluency["rows"] if row["answers"] == "sft-conv")
    assert shown["reference_perplexity"] == cell["perplexity"]
    assert [row["answers"] for row in fluency["samples"][:4]] == ["real answers"] * 2 + ["reference-nucleus"] * 2
    assert workspace.loaded("dvc", "status", "--json", "sweeps/dvc.yaml") == {}
    assert workspace.stale() == set()


def test_fluency_under_held_out_text(workspace: Workspace, tmp_path: Path) -> None:
    """The documents that base.held_out keeps from the models, as many tokens of them as asked for."""
    documents = [f"The harbour of town {i} is small, and the winter there is short." for i in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    params = json.loads(json.dumps(workspace.params))
    params["base"] |= {"text": str(tmp_path / "text.txt"), "held_out": 0.25}
    params["report"]["results"] = str(tmp_path)
    counts = []
    for tokens in (100, 100000):
        params["sweeps"]["ngram"]["tokens"] = tokens
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        stage("fluency", "--params", str(tmp_path / "params.yaml"), folder=workspace.folder)
        counts.append(json.loads((tmp_path / "fluency/table.json").read_text())["tokens"])
    tokenizer = load_tokenizer(workspace.folder / "build/data/training/tokenizer")
    assert counts == [100, sum(map(len, encode(tokenizer, documents[30:])))]


def test_a_cold_run_gives_the_same_hashes(workspace: Workspace) -> None:
    """Training, negatives and one cell again without any cache: dvc.lock is the same. The report is not among them:
    `make repro` then tells where the time went, once."""
    before = (workspace.folder / "dvc.lock").read_text()
    shutil.rmtree(workspace.folder / "build")
    shutil.rmtree(workspace.folder / ".cache", ignore_errors=True)
    shutil.rmtree(workspace.folder / ".dvc" / "cache")
    warm().stop()
    warm.cache_clear()  # another process behind it has other hashes of strings, so sets of another order
    workspace.run("dvc", "repro", "--force", "evaluate@r2ft-conv")
    assert (workspace.folder / "dvc.lock").read_text() == before
    found = where_it_went(workspace.run("python", "-m", "dlm.pipeline.times").stdout)
    assert found["decode"] == found["r2ft"] == 1 and "report" not in found
    assert workspace.run("python", "-m", "dlm.pipeline.times").stdout == ""


def test_bad_parameter_stops_before_anything_runs(workspace: Workspace) -> None:
    changed = json.loads(json.dumps(workspace.params))
    changed["decoding"]["conv"]["kernel_size"] = 32
    workspace.write(changed)
    try:
        done = workspace.run("python", "stages/prepare.py", check=False)
    finally:
        workspace.write(workspace.params)
    assert done.returncode == 2
    assert done.stderr.strip() == ("error: params.yaml: decoding.conv.kernel_size must be odd and at least 1, got 32")
