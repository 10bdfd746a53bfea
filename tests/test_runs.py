"""What MLflow shows of a run: its cells, the pipeline's own run, datasets, models; live and from dvc.lock."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from workspaces import Small

from dlm.config.params import load_params
from dlm.data.splits import read_split
from dlm.decoding.lm import DiffusionLM
from dlm.likelihood import score
from dlm.pipeline.records import cell_params
from dlm.pipeline.run import shown
from dlm.pipeline.view import TAG

CELL = ("--checkpoint", "r2ft", "--decoder", "top_k")
CONV = ("--checkpoint", "r2ft", "--decoder", "conv")
STAGES = [
    ("prepare",),
    ("r2ft",),
    ("decode", *CELL),
    ("evaluate", *CELL),
    ("decode", *CONV),
    ("evaluate", *CONV),
    ("evaluate", "--checkpoint", "reference", "--decoder", "nucleus"),
    ("decode_ablation", "--checkpoint", "r2ft"),
    ("ablation", "--checkpoint", "r2ft"),
    ("likelihood", "--checkpoint", "r2ft"),
    ("report",),
]


class Store:
    """The database of a workspace."""

    def __init__(self, folder: Path, name: str = "mlflow.db") -> None:
        self.client = MlflowClient(f"sqlite:///{folder / name}")
        self.experiment = self.client.get_experiment_by_name("dlm")
        self.runs = list(self.client.search_runs([self.experiment.experiment_id]))

    def named(self, name: str) -> list[Run]:
        return [self.client.get_run(run.info.run_id) for run in self.runs if run.info.run_name == name]

    def run(self, name: str) -> Run:
        (found,) = self.named(name)
        return found

    def parent(self) -> Run:
        (found,) = [run for run in self.runs if "mlflow.parentRunId" not in run.data.tags]
        return found

    def files(self, run: Run) -> set[str]:
        return {item.path for item in self.client.list_artifacts(run.info.run_id)}

    def table(self, run: Run, name: str, folder: Path) -> tuple[list[str], list[list[Any]]]:
        path = self.client.download_artifacts(run.info.run_id, f"{name}.json", str(folder))
        table = json.loads(Path(path).read_text())
        return table["columns"], table["data"]


def scored(run: Run) -> dict[str, float]:
    """Without what differs from run to run."""
    return {name: value for name, value in run.data.metrics.items() if not name.startswith("system/")}


@pytest.fixture(scope="module")
def workspace(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A run whose stages were tracked, one after the other."""
    made = small.copied(tmp_path_factory.mktemp("runs") / "tracked")
    for name, *arguments in STAGES:
        done = made.run("python", f"stages/{name}.py", *arguments)
        assert "tracking" not in done.stderr
    return made


@pytest.fixture(scope="module")
def store(workspace: Small) -> Store:
    return Store(workspace.folder)


def test_a_cell_is_one_run_with_parameters_and_scores(store: Store) -> None:
    """decode began it, evaluate went on: what the decoder was told beside what came of it."""
    top_k, conv = store.run("r2ft-top_k"), store.run("r2ft-conv")
    assert (top_k.info.status, top_k.data.tags["stage"]) == ("FINISHED", "decode evaluate")
    told = {"checkpoint": "r2ft", "decoder": "conv", "rule": "top_k", "top_k": "1", "kernel_size": "33"}
    assert told.items() <= conv.data.params.items()
    assert conv.data.params["kernel_size_S16"] == "33" and "kernel_size" not in top_k.data.params
    assert {"quality_S16", "nfe_S16", "quality", "well_formed", "seconds"} <= top_k.data.metrics.keys()
    assert scored(top_k).keys() == scored(conv).keys()
    assert {"gen_length": "128", "n": "16", "prompts": "4"}.items() <= top_k.data.params.items()
    assert not {"steps", "gen_length", "n", "prompts", "answers"} & top_k.data.metrics.keys()
    # The scores lie over the steps, the headline is one number: the page draws lines of the one, bars of the other.
    places = {name: store.client.get_metric_history(top_k.info.run_id, name)[0].step for name in ("nfe", "nfe_S16")}
    assert places == {"nfe": 16, "nfe_S16": 0}
    # The time between the two stages is neither's.
    assert 0 < top_k.info.end_time - top_k.info.start_time < store.run("report").info.start_time - top_k.info.start_time


def test_names_are_short(store: Store) -> None:
    names = {run.info.run_name for run in store.runs if "mlflow.parentRunId" in run.data.tags}
    cells = {"r2ft-top_k", "r2ft-conv", "reference-nucleus"}
    cells |= {f"{name}@r2ft" for name in ("decode_ablation", "ablation", "likelihood")}
    assert names == {"prepare", "r2ft", *cells, "report"}


def test_the_pipelines_run_tells_it_all(store: Store, workspace: Small) -> None:
    parent = store.parent()
    found = json.loads((workspace.folder / "results/metrics/r2ft-top_k.json").read_text())
    assert parent.data.metrics["r2ft-top_k.quality_S16"] == found["quality_16"]
    assert store.run("report").data.metrics["r2ft-top_k.quality_S16"] == found["quality_16"]
    assert parent.data.params == shown(yaml.safe_load((workspace.folder / "params.yaml").read_text()))
    assert {"figures", "report.html"} <= store.files(parent)
    note = parent.data.tags["mlflow.note.content"]
    assert "    python stages/prepare.py\n" in note and "| cell | quality_S16 | nfe_S16 |" in note
    assert f"| r2ft-top_k | {found['quality_16']:.2f} |" in note
    assert parent.data.tags["mlflow.source.name"] == "dvc.yaml"
    (sha,) = workspace.run("git", "rev-parse", "HEAD").stdout.split()
    assert parent.data.tags["mlflow.source.git.commit"] == sha


def test_a_stages_run_says_what_it_is(store: Store) -> None:
    tags = store.run("r2ft").data.tags
    assert tags["mlflow.source.name"] == "stages/r2ft.py"
    assert tags["mlflow.note.content"].startswith("Rejective fine-tuning of `sft_answer`")
    assert tags["mlflow.note.content"].endswith("    python stages/r2ft.py")
    both = store.run("r2ft-top_k").data.tags["mlflow.note.content"]
    assert "stages/decode.py --checkpoint r2ft" in both and "stages/evaluate.py --checkpoint r2ft" in both


def test_the_ablation_logs_its_scores(store: Store, workspace: Small) -> None:
    rows = json.loads((workspace.folder / "build/evaluation/ablation/r2ft.json").read_text())
    found = store.run("ablation@r2ft").data.metrics
    assert all(found[f"{row['variant']}.quality"] == row["quality"] for row in rows)
    assert not any(name.endswith((".steps", ".n", ".kernel_size", ".eos_fill")) for name in found)


def test_the_bound_is_its_models_metric(store: Store, workspace: Small) -> None:
    """And it is that of `score`, answer by answer, summed and divided by all tokens."""
    row = json.loads((workspace.folder / "build/evaluation/likelihood/r2ft.json").read_text())
    lm = DiffusionLM.load(workspace.folder / "build/models/r2ft")
    valid = read_split(workspace.folder / "build/data/training", "valid")[: row["records"]]
    end = [lm.tokenizer.eos_token_id]
    alone = [
        score(lm, [v["prompt_ids"]], [v["answer_ids"] + end], samples=16, seed=workspace.params["seed"]) for v in valid
    ]
    tokens = sum(len(v["answer_ids"]) + 1 for v in valid)
    assert row["tokens"] == tokens and len(valid) == 4
    assert row["nll"] == pytest.approx(-sum(float(one.log_likelihood) for one in alone) / tokens, abs=1e-5)
    assert row["nll_ci"][0] <= row["nll"] <= row["nll_ci"][1] and row["nll_standard_error"] > 0
    found = store.run("likelihood@r2ft")
    assert found.data.metrics["nll"] == row["nll"]
    (model,) = found.inputs.model_inputs
    logged = store.client.get_logged_model(model.model_id)
    assert logged.name == "r2ft" and {metric.key for metric in logged.metrics} >= {"nll", "nll_standard_error"}


def test_samples_say_whose_they_are(store: Store, tmp_path: Path) -> None:
    columns, rows = store.table(store.run("r2ft-conv"), "samples", tmp_path)
    assert columns == ["prompt", "answer", "checkpoint", "decoder", "steps", "cell"]
    assert 0 < len(rows) <= 20 and rows[0][2:] == ["r2ft", "conv", 16, "r2ft-conv"]


def datasets(run: Run) -> dict[str, str]:
    return {item.dataset.name: item.tags[0].value for item in run.inputs.dataset_inputs}


def test_datasets_are_inputs(store: Store) -> None:
    names = ("build/data/training/{}.parquet", "build/negatives/{}.parquet")
    uses = {name.format(s): use for name in names for s, use in (("train", "training"), ("valid", "validation"))}
    assert datasets(store.run("r2ft")) == uses
    read = ("build/data/eval.parquet", "build/answers/r2ft-conv.jsonl")
    assert datasets(store.run("r2ft-conv")) == dict.fromkeys(read, "evaluation")
    assert datasets(store.run("prepare")) == {"data/builtin/grammar.yaml": "training"}


def test_checkpoints_are_models_with_the_scores_of_their_cells(store: Store) -> None:
    """One model for the same bytes, whoever decodes it; its weights stay where they are."""
    models = store.client.search_logged_models([store.experiment.experiment_id])
    assert sorted(model.name for model in models) == ["r2ft", "reference"]
    (model,) = [model for model in models if model.name == "r2ft"]
    trained = store.run("r2ft")
    assert (model.source_run_id, str(model.status)) == (trained.info.run_id, "READY")
    assert model.tags["md5"] == trained.data.tags["md5.build/models/r2ft"]
    assert model.tags["path"] == "build/models/r2ft"
    assert [made.model_id for made in trained.outputs.model_outputs] == [model.model_id]
    assert [used.model_id for used in store.run("r2ft-conv").inputs.model_inputs] == [model.model_id]
    found = {(metric.dataset_name, metric.key): metric.value for metric in model.metrics}
    for decoder in ("conv", "top_k"):
        score = store.run(f"r2ft-{decoder}").data.metrics["quality_S16"]
        assert found[f"prompts, by {decoder}", "quality_S16"] == score
    assert found[None, "eval_loss"] == trained.data.metrics["eval_loss"]
    place = model.artifact_location.removeprefix("file://")
    assert not any(Path(place).rglob("*"))


def test_the_saved_view_has_parameters_and_scores_side_by_side(store: Store) -> None:
    """Its names are those of the cells' runs, and its filter finds them, the best first."""
    view = json.loads(store.experiment.tags[TAG])
    state = json.loads(view["state"])
    kinds = {"params": set(), "metrics": set()}
    for run in (store.run("r2ft-conv"), store.run("r2ft-top_k")):
        kinds["params"] |= run.data.params.keys()
        kinds["metrics"] |= run.data.metrics.keys()
    columns = [column.rstrip("`").split(".`") for column in state["selectedColumns"]]
    missing = {name for kind, name in columns if kind in kinds and name not in kinds[kind]}
    assert missing == {"area", "block_length"}  # one budget has no area, and semi_ar alone has blocks
    for chart in state["compareRunCharts"]:
        assert chart["yaxis"]["key"] in kinds["metrics"]
    found = store.client.search_runs(
        [store.experiment.experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"]
    )
    assert {run.info.run_name for run in found} == {"r2ft-conv", "r2ft-top_k", "reference-nucleus"}
    assert store.experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_view_that_was_changed_stays(workspace: Small, tmp_path: Path) -> None:
    here = workspace.copied(tmp_path / "view")
    here.run("python", "stages/prepare.py")
    first = Store(here.folder)
    mine = json.dumps(json.loads(first.experiment.tags[TAG]) | {"updatedAt": 1})
    first.client.set_experiment_tag(first.experiment.experiment_id, TAG, mine)
    first.client.set_experiment_tag(first.experiment.experiment_id, "mlflow.note.content", "mine")
    here.write(here.params | {"seed": 1})
    here.run("python", "stages/prepare.py")
    tags = Store(here.folder).experiment.tags
    assert (tags[TAG], tags["mlflow.note.content"]) == (mine, "mine")


def test_evaluate_alone_makes_a_whole_cell(workspace: Small, tmp_path: Path) -> None:
    """Under a new pipeline run, where DVC has skipped decode; and once more, in the same run."""
    here = workspace.copied(tmp_path / "alone")
    here.run("python", "stages/evaluate.py", *CONV)
    store = Store(here.folder)
    run, before = store.run("r2ft-conv"), Store(workspace.folder).run("r2ft-conv")
    decoded = {"seconds", "content_tokens"}
    assert scored(run) == {name: value for name, value in scored(before).items() if name not in decoded}
    assert run.data.params == before.data.params
    assert [model.name for model in store.client.search_logged_models([store.experiment.experiment_id])] == ["r2ft"]
    assert run.inputs.model_inputs and store.table(run, "samples", tmp_path)[1]
    here.run("python", "stages/evaluate.py", *CONV)
    again = Store(here.folder)
    assert again.run("r2ft-conv").info.run_id == run.info.run_id
    assert again.table(run, "samples", tmp_path) == store.table(run, "samples", tmp_path)


def test_evaluate_with_other_settings_has_a_run_of_its_own(workspace: Small, tmp_path: Path) -> None:
    """MLflow changes no parameter. A file of parameters beside the pipeline's own has the same parent."""
    here = workspace.copied(tmp_path / "other")
    other = json.loads(json.dumps(here.params))
    other["evaluate"]["high_prior_tokens"] = 50
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(other))
    here.run("python", "stages/evaluate.py", *CONV)
    done = here.run("python", "stages/evaluate.py", *CONV, "--params", str(tmp_path / "params.yaml"))
    assert "tracking" not in done.stderr
    found = [run.data.params["evaluate.high_prior_tokens"] for run in Store(here.folder).named("r2ft-conv")]
    assert sorted(found) == ["100", "50"]


def test_settings_of_each_budget(tmp_path: Path) -> None:
    """What select has chosen for each number of steps; the plain name is that of the most steps; unknown ones lack."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    block, budgets = params.block("conv"), (16, 64)
    assert cell_params(tmp_path, "sft", "conv", block, budgets) == {"checkpoint": "sft", "decoder": "conv"}
    (tmp_path / "selection").mkdir()
    base = {"rule": "top_k", "gain": "tanh"}
    choices = [{"steps": s, "options": {**base, "kernel_size": k}} for s, k in ((16, 17), (64, 5))]
    (tmp_path / "selection/conv.json").write_text(json.dumps(choices))
    found = cell_params(tmp_path, "sft", "conv", block, budgets)
    assert (found["kernel_size"], found["kernel_size_S16"], found["kernel_size_S64"]) == (5, 17, 5)
    assert found["rule"] == found["rule_S16"] == "top_k" and not {"block_length", "variant"} & found.keys()
    choices[1]["options"]["rule"] = "low_confidence"
    (tmp_path / "selection/conv.json").write_text(json.dumps(choices))
    found = cell_params(tmp_path, "sft", "conv", block, budgets)
    assert (found["rule"], found["top_k_S16"]) == ("low_confidence", 1) and not {"top_k", "top_k_S64"} & found.keys()
    assert (
        not {"kernel", "gain"}
        & cell_params(tmp_path, "sft", "categorical", params.block("categorical"), budgets).keys()
    )


def test_backfill_builds_the_same(store: Store, workspace: Small) -> None:
    """From dvc.lock, into an empty database; nothing is missing then."""
    fresh = f"sqlite:///{workspace.folder / 'fresh.db'}"
    workspace.run("env", f"MLFLOW_TRACKING_URI={fresh}", "dlm", "backfill")
    again = workspace.run("env", f"MLFLOW_TRACKING_URI={fresh}", "dlm", "backfill").stdout
    assert again == "nothing is missing\n"
    made = Store(workspace.folder, "fresh.db")
    name = "r2ft-top_k"
    live, found = store.run(name), made.run(name)
    assert live.data.params.items() <= found.data.params.items()
    assert scored(found) == {k: v for k, v in scored(live).items() if k not in ("seconds", "content_tokens")}
    assert datasets(found) == datasets(live) and made.files(found) == store.files(live)
    assert store.parent().data.params == made.parent().data.params
    assert {f"{name}.quality_S16", f"{name}.nfe_S16"} <= made.parent().data.metrics.keys()
    assert {"figures", "report.html"} <= made.files(made.parent())
    assert made.parent().data.metrics == scored(made.run("report"))
    models = {m.name: m for m in made.client.search_logged_models([made.experiment.experiment_id])}
    assert models.keys() == {"base", "sft", "sft_answer", "r2ft", "reference"}
    assert models["r2ft"].source_run_id == made.run("r2ft").info.run_id
    assert {metric.key for metric in models["r2ft"].metrics} >= {"quality_S16", "eval_loss"}
