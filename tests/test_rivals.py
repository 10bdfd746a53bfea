"""Decoders side by side over forward passes: what a curve goes through, areas by hand, figures, and the stage."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import ROOT, stage
from test_area import answers
from test_params import edited

from dlm.analysis.rivals import all_data, each_data, to_markdown
from dlm.config.params import Params, load_params, parse_params
from dlm.config.yaml import dump_yaml
from dlm.decoding.options import RULES
from dlm.evaluation.area import answer_areas, mean_of_areas
from dlm.files import read_json, write_json
from dlm.pipeline.profiles import merge

Row = dict[str, Any]


def params_with(**decoders: Any) -> Params:
    return parse_params(dump_yaml(edited({"rivals.decoders": decoders})), "params.yaml")


def test_a_curve_goes_through_its_lists() -> None:
    """Options first, then steps; as many steps as tokens where none are given; the window on top of all."""
    params = params_with(threshold={"threshold": [0.5, 0.9], "steps": [4, 128]}, factor={"factor": 2.0})
    found = params.rivals.curve("threshold", False, 128)
    assert [(options.threshold, steps) for options, steps in found] == [(0.5, 4), (0.5, 128), (0.9, 4), (0.9, 128)]  # type: ignore[attr-defined]
    assert all(options.eos_fill and options.kernel_size is None for options, _ in found)
    windowed = params.rivals.curve("threshold", True, 128)
    assert [(type(options), steps) for options, steps in windowed] == [(type(o), steps) for o, steps in found]
    assert {options.kernel_size for options, _ in windowed} == {params.rivals.window["kernel_size"]}
    ((options, steps),) = params.rivals.curve("factor", False, 77)
    assert (type(options), steps) == (RULES["factor"], 77)


def test_areas_of_answers_by_hand() -> None:
    """Settings in any order, 16 and 64 passes: both weigh a half. Of two with 64 passes the first counts.

    Prompt 3 has (0.2 + 0.6) / 2 = 0.4, prompt 5 (0.4 + 1.0) / 2 = 0.7. A curve of one point is level.
    """
    few, many = answers(16, {3: [0.2], 5: [0.4]}), answers(64, {3: [0.6], 5: [1.0]})
    found = answer_areas([many, few, answers(64, {3: [0.0], 5: [0.0]})], [16, 64])
    assert found == {(3, 0): pytest.approx(0.4), (5, 0): pytest.approx(0.7)}
    assert answer_areas([few], [8, 64]) == {(3, 0): 0.2, (5, 0): 0.4}
    mean, interval = mean_of_areas(found, 200)
    assert mean == pytest.approx(0.55) and interval == pytest.approx([0.4, 0.7])


def row(decoder: str, window: bool, nfe: float, quality: float) -> Row:
    ends = [quality - 0.1, quality + 0.1]
    head = {"decoder": decoder, "window": window, "setting": f"S {nfe:.0f}"}
    return {**head, "nfe": nfe, "quality": quality, "quality_ci": ends, "length": 40.0}


ROWS = [
    row(decoder, window, nfe, nfe / 100) for decoder in ("b", "a") for window in (False, True) for nfe in (64.0, 16.0)
]


def test_figures_have_every_curve() -> None:
    """Two panels with all decoders, in their order; a panel for each with its two lines, from few passes to many."""
    together, apart = all_data(ROWS)["panels"], each_data(ROWS)["panels"]
    assert [[line["label"] for line in panel["lines"]] for panel in together] == [["b", "a"], ["b", "a"]]
    assert [panel["title"] for panel in apart] == ["b", "a"]
    assert all(line["x"] == [16.0, 64.0] for panel in [*together, *apart] for line in panel["lines"])
    assert [len(panel["lines"]) for panel in apart] == [2, 2]


def test_the_table_by_hand() -> None:
    area = {
        **{"decoder": "a", "passes": [16.0, 64.0], "passes_with_window": [8.0, 32.0]},
        **{"area": 0.5, "area_ci": [0.4, 0.6], "area_with_window": 0.625, "area_with_window_ci": None},
        **{"difference": 0.125, "difference_ci": [-0.05, 0.3]},
    }
    table = to_markdown([area], ROWS[:1], [8, 64])
    cells = ["a", "16.0 to 64.0", "0.500 [0.400, 0.600]", "8.0 to 32.0", "0.625", "+0.125 [-0.050, +0.300]"]
    assert f"| {' | '.join(cells)} |" in table
    assert "| b | no | S 64 | 64.0 | 0.640 [0.540, 0.740] | 40.0 |" in table
    assert "from 8 to 64 forward passes" in table


def test_the_stage(tmp_path: Path) -> None:
    """The shipped models: a row for each decoder, window and setting; areas within 0 and 1; the same bytes again."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    places = {
        "data": {"valid_size": 2, "eval_size": 4, "builtin": {"train_size": 40}},
        "decode": {"gen_length": 64},
        "rivals": {"prompts": 3, "passes": [2, 8], "options": {"cache": False}},
        "evaluate": {"bootstrap_samples": 20},
    }
    merge(params, places)
    params["rivals"]["decoders"] = {"low_confidence": {"steps": [2, 8]}, "threshold": {"threshold": [0.1, 0.9]}}
    params["data"]["builtin"]["grammar"] = str(ROOT / "data/builtin/grammar.yaml")
    params["tokenizer"]["path"] = str(ROOT / "data/base/mdlm")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    stage("prepare", folder=tmp_path)
    models = tmp_path / "build/models"
    shutil.copytree(ROOT / "data/base/mdlm", models / "sft")
    shutil.copytree(ROOT / "data/base/reference", models / "reference")
    write_json(models / "reference/training_perplexities.json", [3.0, 4.0, 5.0])
    stage("rivals", folder=tmp_path)
    out = tmp_path / "results/rivals"
    found = read_json(out / "table.json")
    assert [(row["decoder"], row["window"], row["setting"]) for row in found["rows"]] == [
        (decoder, window, setting)
        for decoder, settings in (
            ("low_confidence", ("S 2", "S 8")),
            ("threshold", ("threshold 0.1", "threshold 0.9")),
        )
        for window in (False, True)
        for setting in settings
    ]
    assert all(row["n"] == 3 and 0 <= row["quality"] <= 1 for row in found["rows"])
    for area in found["areas"]:
        assert 0 <= area["area"] <= 1
        assert area["difference"] == pytest.approx(area["area_with_window"] - area["area"])
        assert area["passes"][0] < area["passes"][1]
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{ending}" for name in ("all", "each") for ending in ("png", "svg", "pdf", "json")
    }
    assert (out / "table.md").read_text() == to_markdown(found["areas"], found["rows"], found["passes"])


def test_every_block_of_the_shipped_file_is_told_apart() -> None:
    """Of the settings of a curve no two are alike, and each has a list."""
    params = load_params(ROOT / "params.yaml")
    for name in params.rivals.decoders:
        points = params.rivals.curve(name, True, params.decode.gen_length)
        assert len(points) >= 2 and len(set(points)) == len(points)
