"""Settings chosen on validation prompts: the choice by hand, who reads it, and the stages at a tiny scale."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, stage
from test_params import RAW, edited, load
from workspaces import TINY

from dlm.analysis.selection import selection_markdown, selection_rows
from dlm.config.params import Params, load_params
from dlm.config.yaml import dump_yaml, load_yaml
from dlm.decoding.budgets import choose, chosen
from dlm.errors import UserError
from dlm.evaluation.cell import load_corpus
from dlm.files import read_json, read_jsonl, write_json, write_jsonl
from dlm.pipeline import processes
from dlm.pipeline.profiles import merge

Row = dict[str, Any]
A, B, C = {"top_k": 5}, {"top_k": 1}, {"top_k": 20}


def grid(*qualities: tuple[str, int, Row, float]) -> list[Row]:
    """Rows of (checkpoint, steps, candidate, quality)."""
    keys = ("checkpoint", "steps", "candidate", "quality")
    return [{"decoder": "top_k", "quality_ci": None, **dict(zip(keys, row, strict=True))} for row in qualities]


# Means with 8 steps: A 0.4, B 0.5, C 0.45, though C is the best of sft and A of r2ft; with 32: A 0.5, B and C 0.75.
TRIED = grid(
    ("sft", 8, A, 0.2), ("sft", 8, B, 0.5), ("sft", 8, C, 0.625),
    ("sft", 32, A, 0.5), ("sft", 32, B, 0.5), ("sft", 32, C, 1.0),
    ("r2ft", 8, A, 0.6), ("r2ft", 8, B, 0.5), ("r2ft", 8, C, 0.275),
    ("r2ft", 32, A, 0.5), ("r2ft", 32, B, 1.0), ("r2ft", 32, C, 0.5),
)  # fmt: skip


def test_the_choice_by_hand() -> None:
    """The highest mean over the checkpoints, at the number of steps asked for; of equals the first."""
    assert choose([A, B, C], TRIED, 8) == B
    assert choose([A, B, C], TRIED, 32) == B
    assert choose([C, A, B], TRIED, 32) == C
    assert choose([A, C], TRIED, 8) == C
    assert choose([A], [], 8) == A


def test_the_table_of_candidates_marks_what_was_chosen() -> None:
    """One a budget, of equals too; each checkpoint's quality beside the mean."""
    settings = {("top_k", 8): B, ("top_k", 32): B}
    rows = selection_rows(TRIED, settings)
    assert [(row["steps"], row["candidate"], row["chosen"]) for row in rows] == [
        (8, "top_k 5", False), (8, "top_k 1", True), (8, "top_k 20", False),
        (32, "top_k 5", False), (32, "top_k 1", True), (32, "top_k 20", False),
    ]  # fmt: skip
    assert [row["quality"] for row in rows] == pytest.approx([0.4, 0.5, 0.45, 0.5, 0.75, 0.75])
    known = [{**row, "quality_ci": [row["quality"] - 0.1, row["quality"] + 0.1]} for row in TRIED]
    text = selection_markdown(selection_rows(known, settings))
    assert text.splitlines()[2:6] == [
        "| decoder | S | candidate | quality | sft | r2ft |",
        "| --- | --- | --- | --- | --- | --- |",
        "| top_k | 8 | top_k 5 | 0.40 | 0.20 ± 0.10 | 0.60 ± 0.10 |",
        "| top_k | 8 | top_k 1 | **0.50** | 0.50 ± 0.10 | 0.50 ± 0.10 |",
    ]
    assert selection_markdown([]) == ""


# --- What others read -------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> Params:
    """Parameters with three candidates for top_k."""
    return load(tmp_path, dump_yaml(edited({"decoding.top_k.top_k": [5, 1, 20]})))


@pytest.mark.parametrize(
    ("steps", "expected"), [(8, A), (128, C), (32, B), (1, A), (1000, C), (15, A), (17, B), (63, B), (65, C), (16, A)]
)
def test_a_number_of_steps_has_the_choice_of_the_nearest_budget(
    tmp_path: Path, three: Params, steps: int, expected: Row
) -> None:
    """By ratio: 16 lies between 8 and 32, 64 between 32 and 128. Of equals the smaller budget."""
    choices = [{"steps": s, "options": options} for s, options in ((8, A), (32, B), (128, C))]
    write_json(tmp_path / "selection" / "top_k.json", choices)
    assert chosen(tmp_path, three, "top_k", steps) == expected


def test_without_lists_no_file_is_read(tmp_path: Path, three: Params) -> None:
    assert chosen(tmp_path, three, "categorical", 16) == {}
    pinned = load(tmp_path, dump_yaml(edited({"decoding.top_k.top_k": [3]})))
    assert chosen(tmp_path, pinned, "top_k", 16) == {"top_k": 3}


def test_no_choice_and_a_stale_one_are_one_line(tmp_path: Path, three: Params) -> None:
    path = tmp_path / "selection" / "top_k.json"
    with pytest.raises(UserError) as missing:
        chosen(tmp_path, three, "top_k", 16)
    write_json(path, [{"steps": 16, "options": {"top_k": 2}}])
    with pytest.raises(UserError) as stale:
        chosen(tmp_path, three, "top_k", 16)
    remedy = "run the select stage (`dvc repro select@top_k`)"
    assert str(missing.value) == f"{path}: no such file; {remedy}"
    assert str(stale.value) == f"{path}: chosen among other candidates; {remedy}"


# --- The stages -------------------------------------------------------------------------------------------------------

CONV = {"rule": "top_k", "kernel_size": [9, 33], "gain": "tanh"}
DECODE = ("decode", "--checkpoint", "sft", "--decoder", "conv")
SELECT = ("selection", "--decoder", "conv", "--checkpoints", "sft", "r2ft")
CHOICE, GRID, ANSWERS = (
    Path("build") / name for name in ("selection/conv.json", "selection/conv-grid.json", "answers/sft-conv.jsonl")
)


def write_params(folder: Path, **changes: Any) -> None:
    params = load_yaml(dump_yaml(RAW))
    merge(params, {name: TINY[name] for name in ("data", "decode", "decoding", "select", "ablation", "evaluate")})
    merge(params, {"decode": {"seeds": [0]}, "decoding": {"conv": CONV}, "evaluate": {"judge": {"kind": "none"}}})
    merge(params, changes)
    (folder / "params.yaml").write_text(dump_yaml(params))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, and shipped checkpoints in place of trained ones; conv's settings chosen, and decoded with."""
    folder = tmp_path_factory.mktemp("selection")
    (folder / "data").symlink_to(ROOT / "data")
    write_params(folder)
    stage("prepare", folder=folder)
    for name in ("sft", "r2ft"):
        shutil.copytree(ROOT / "data/base/mdlm", folder / "build/models" / name)
    shutil.copytree(ROOT / "data/base/reference", folder / "build/models/reference")
    write_json(folder / "build/models/reference/training_perplexities.json", [1.5, 2.0])
    stage(*SELECT, folder=folder)
    stage(*DECODE, folder=folder)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def test_the_stage_tries_every_candidate_at_every_budget(made: Path) -> None:
    """On as many prompts of valid as asked for; what it chooses follows from its own grid."""
    rows, choices = read_json(made / GRID), read_json(made / CHOICE)
    candidates = [{"kernel_size": 9}, {"kernel_size": 33}]
    assert [(row["checkpoint"], row["steps"], row["candidate"]) for row in rows] == [
        (checkpoint, steps, candidate) for checkpoint in ("sft", "r2ft") for steps in (4, 8) for candidate in candidates
    ]
    assert {(row["decoder"], row["prompts"], row["n"]) for row in rows} == {("conv", 2, 2)}
    assert [row["kernel_size"] for row in rows] == [9, 33] * 4
    assert len({row["quality"] for row in rows}) > 1
    assert choices == [{"steps": steps, "options": choose(candidates, rows, steps)} for steps in (4, 8)]


def test_the_evaluation_prompts_take_no_part(copied: Path) -> None:
    """Without them the same is chosen, to the byte; without those of valid nothing is."""
    before = [(copied / name).read_bytes() for name in (CHOICE, GRID)]
    shutil.rmtree(copied / "build/selection")
    (copied / "build/data/eval.parquet").unlink()
    stage(*SELECT, folder=copied)
    assert [(copied / name).read_bytes() for name in (CHOICE, GRID)] == before
    (copied / "build/data/training/valid.parquet").unlink()
    with pytest.raises(SystemExit):
        stage(*SELECT, folder=copied)


def test_the_reference_is_on_the_stages_device(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perplexity and MAUVE would crawl beside a GPU if it stayed behind; the meta device stands for one here."""
    params = load_params(made / "params.yaml")
    monkeypatch.setattr(processes, "device", lambda: "meta")
    corpus = load_corpus(made / "build", params.data, params.evaluate)
    assert {parameter.device.type for parameter in corpus.reference.parameters()} == {"meta"}
    assert corpus.scorer.model is corpus.reference


def answers(folder: Path, steps: int) -> list[Row]:
    return [answer for answer in read_jsonl(folder / ANSWERS) if answer["steps"] == steps]


def test_decoding_takes_what_was_chosen_for_each_budget(copied: Path) -> None:
    """Another kernel for each: the same answers as where it is pinned; a pinned value needs no choice."""
    write_json(copied / CHOICE, [{"steps": s, "options": {"kernel_size": k}} for s, k in ((4, 33), (8, 9))])
    stage(*DECODE, folder=copied)
    mixed = {steps: answers(copied, steps) for steps in (4, 8)}
    assert [len(found) for found in mixed.values()] == [4, 4]
    shutil.rmtree(copied / "build/selection")
    with pytest.raises(SystemExit):
        stage(*DECODE, folder=copied)
    for kernel_size, steps, other in ((33, 4, 8), (9, 8, 4)):
        write_params(copied, decoding={"conv": {"kernel_size": kernel_size}})
        stage(*DECODE, folder=copied)
        assert answers(copied, steps) == mixed[steps] and answers(copied, other) != mixed[other]


def test_with_nothing_to_choose_the_stage_does_nothing(copied: Path) -> None:
    """It needs no checkpoint and no prompts, and says so at every budget."""
    write_params(copied, decoding={"conv": {"kernel_size": 9}})
    for name in ("models", "data"):
        shutil.rmtree(copied / "build" / name)
    stage(*SELECT, folder=copied)
    assert read_json(copied / CHOICE) == [{"steps": steps, "options": {}} for steps in (4, 8)]
    assert read_json(copied / GRID) == []
    assert chosen(copied / "build", load_params(copied / "params.yaml"), "conv", 8) == {}


def test_a_budget_is_evaluated_as_if_it_were_alone(copied: Path) -> None:
    """But for the area, which one budget has not."""
    evaluate = ("evaluate", "--checkpoint", "sft", "--decoder", "conv")
    out = copied / "build/evaluation/sft-conv.json"
    stage(*evaluate, folder=copied)
    together = read_json(out)
    assert [(row["steps"], row["n"]) for row in together] == [(4, 4), (8, 4)]
    assert together[0]["area"] == together[1]["area"] and together[0]["area_ci"] == together[1]["area_ci"]
    lowest, highest = sorted(row["quality"] for row in together)
    assert lowest <= together[0]["area"] <= highest
    whole = read_jsonl(copied / ANSWERS)
    for row in together:
        write_jsonl(copied / ANSWERS, [answer for answer in whole if answer["steps"] == row["steps"]])
        stage(*evaluate, folder=copied)
        assert json.loads(out.read_text()) == [{**row, "area": None, "area_ci": None}]
