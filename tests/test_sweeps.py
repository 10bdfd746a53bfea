"""The figures of the sweeps: their data by hand, drawing that repeats, and what the stages go through."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import cell

from dlm.analysis.figures import write_figures
from dlm.analysis.lines import line_of
from dlm.analysis.style import REAL
from dlm.analysis.sweeps import over_size, speed_data, sweep_figures
from dlm.analysis.table import COLUMNS
from dlm.analysis.weights import weights_data
from dlm.config.params import load_params
from dlm.decoding.options import decoder_options
from dlm.files import write_json

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def row(sweep: str, decoder: str, x: int | str, checkpoint: str = "sft", steps: int = 16, **values: Any) -> Row:
    return {**cell(checkpoint, decoder, **values), "sweep": sweep, "x": x, "steps": steps}


def settings() -> list[Row]:
    found = []
    for checkpoint in ("sft", "r2ft"):
        found += [row("steps", d, s, checkpoint, s, nfe=float(s)) for d in ("conv", "top_k") for s in (8, 16)]
        found += [row("blocks", "semi_ar", b, checkpoint, s) for b in (64, 16) for s in (16, 32)]
        found += [row("kernels", "conv", k, checkpoint, s) for k in (65, 17) for s in (16, 32)]
        found += [row("gains", "conv", g, checkpoint) for g in ("tanh", "step")]
        found += [row("top_k", d, k, checkpoint) for d in ("top_k", "conv") for k in (1, 5)]
    return found


def by_kind(bins: int) -> Row:
    return {k: [{"value": 0.25, "ci": [0.2, 0.3]}] * bins for k in ("end", "high_prior", "repetition", "other")}


def distance(checkpoint: str) -> Row:
    return {
        "checkpoint": checkpoint,
        "bin": 8,
        "gen_length": 16,
        "prompts": 2,
        "probability": by_kind(2),
        "candidates": {kind: [0.25] * 16 for kind in by_kind(1)},
        "example": {"instruction": "Describe $Velmora$.", "tokens": [["a"] * 3] * 16, "kinds": [[0, 1, 3]] * 16},
        "written": {"conv": by_kind(2), "top_k": by_kind(2)},
        "expected": by_kind(2),
    }


def r2ft_sweep(name: str) -> Row:
    curve = [
        {"step": step, "eval_log_p_chosen": -1.0, "eval_log_p_rejected": -2.0 - step, "eval_mean_log_prior": -5.0}
        for step in (0, 10)
    ]
    rows = [{**cell("", "top_k"), "r2ft_steps": step} for step in (0, 10)]
    return {"negatives": name, "curve": curve, "rows": rows, "corpus_log_prior": -4.0}


def weights() -> Row:
    options = decoder_options("conv", {"kernel_size": 5}, "conv")
    return weights_data({"tokens": [1, 2, 3, 4], "commit_step": [0, 1, 2, 3]}, 2, options, 4)


def figures() -> list[Any]:
    negatives = [r2ft_sweep(name) for name in ("default", "one_token")]
    return sweep_figures(settings(), [distance("sft"), distance("r2ft")], negatives, weights(), "sft-top_k")


def test_all_figures_are_drawn_and_repeat(tmp_path: Path) -> None:
    made = figures()
    names = [figure.name for figure in made]
    numbers = {int(name[4:6]) for name in names if name.startswith("fig-")}
    assert numbers == {1, 2, 3, 4, 5, 8, 9, 10, 11, 12} and len(set(names)) == len(names) == 13
    for folder in ("a", "b"):
        write_figures(tmp_path / folder, made)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".png", ".svg", ".pdf", ".json"}
    assert all(figure.look_for.startswith("Look for ") for figure in made)


def test_no_win_rates_without_a_judge() -> None:
    unjudged = [{**found, "win_rate": None, "win_rate_ci": None} for found in settings()]
    made = sweep_figures(unjudged, [distance("sft"), distance("r2ft")], [r2ft_sweep("default")], weights(), "sft-top_k")
    assert not any(figure.name.startswith("fig-09") for figure in made)


@pytest.mark.parametrize("missing", [[], ["well_formed"]])
def test_no_panel_comes_twice(missing: list[str]) -> None:
    """Perplexity is always there, and an axis of quality where there is no exact judge."""
    rows = [{**found, **dict.fromkeys(missing)} for found in settings()]
    made = sweep_figures(rows, [distance("sft"), distance("r2ft")], [r2ft_sweep("default")], weights(), "sft-top_k")
    for name in ("fig-04-blocks", "fig-08-kernels"):
        (found,) = [figure.data["panels"] for figure in made if figure.name == name]
        titles = [panel["title"] for panel in found]
        assert titles[0] == "perplexity" and len(titles) == len(set(titles)) == (2 if missing else 3)


def test_lines_run_from_left_to_right_and_leave_out_what_is_not_defined() -> None:
    rows = [row("blocks", "semi_ar", x, perplexity=value) for x, value in ((64, 3.0), (16, None), (32, 5.0))]
    found = line_of("a", rows, "x", COLUMNS["perplexity"], REAL)
    assert (found["x"], found["value"]) == ([32, 64], [5.0, 3.0])
    names = line_of("a", [row("gains", "conv", gain) for gain in ("tanh", "linear")], "x", COLUMNS["perplexity"], REAL)
    assert names["x"] == ["tanh", "linear"]


def test_speed_is_the_shared_length_over_nfe() -> None:
    """Lengths 60 and 20 share 40: with NFE 8 and 16 that is 5 and 2.5 tokens a pass."""
    rows = [row("steps", "conv", 8, nfe=8.0, length=60.0), row("steps", "top_k", 16, nfe=16.0, length=20.0)]
    shown = speed_data(rows, COLUMNS["well_formed"])["panels"][0]["lines"]
    assert [(found["label"], found["x"]) for found in shown] == [("conv", [5.0]), ("top_k", [2.5])]


def test_over_size_has_a_line_for_each_steps_and_checkpoint() -> None:
    shown = over_size(settings(), "blocks", "", [COLUMNS["well_formed"]])["panels"][0]["lines"]
    names = [(found["label"], found["checkpoint"]) for found in shown]
    assert names == [("S = 16", "sft"), ("S = 32", "sft"), ("S = 16", "r2ft"), ("S = 32", "r2ft")]
    assert all(found["x"] == [16, 64] for found in shown)


def test_weights_by_hand() -> None:
    """Kernel 5 reaches 2 to each side: before step 0 position 0 sees two prompt tokens, position 1 one, 2 none."""
    found = weights()
    assert found["weights"][0] == pytest.approx([np.tanh(2), np.tanh(1), 0.0, 0.0], abs=1e-4)
    assert found["committed"] == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    # Before step 2 the first two positions are committed: position 2 sees both, position 3 the second of them.
    assert found["step"] == 2
    assert found["gains"]["linear"][2:] == pytest.approx([2 / 5, 1 / 5])
    assert found["gains"]["step"][2:] == [1.0, 1.0]


def test_weights_after_an_end_of_text() -> None:
    """What EOS-fill set counts from the step that wrote the end: position 2 ends the text at step 0."""
    options = decoder_options("conv", {"kernel_size": 3}, "conv")
    found = weights_data({"tokens": [1, 2], "commit_step": [1, 1, 0, -1]}, 1, options, 2)
    assert found["committed"] == [[0, 0, 0, 0], [0, 0, 1, 1]]


def test_settings_go_through_every_list(tmp_path: Path) -> None:
    """Over the steps each decoder has what was chosen for the nearest budget, elsewhere the first candidates."""
    sys.path.insert(0, str(ROOT / "stages"))
    try:
        from settings import settings as runs
    finally:
        sys.path.pop(0)
    params = load_params(ROOT / "params.yaml")
    sweeps = params.sweeps

    def choice(decoder: str, steps: int) -> Row:
        """With 16 steps the second candidate, with 64 the third, as far as there is another than the first."""
        return (params.block(decoder).candidates * 3)[1 if steps == 16 else 2]

    for decoder in params.report.decoders:
        chosen = [{"steps": steps, "options": choice(decoder, steps)} for steps in (16, 64)]
        write_json(tmp_path / "selection" / f"{decoder}.json", chosen)
    found = runs(params, tmp_path)
    count = len(sweeps.steps) * (len(params.report.decoders) + 1) + len(sweeps.gains) + 2 * len(sweeps.top_k)
    count += len(sweeps.size_steps) * (len(sweeps.blocks) + len(sweeps.kernels))
    assert len(found) == count
    kernels = {(options.kernel_size, steps) for head, options, steps in found if head["sweep"] == "kernels"}
    assert kernels == {(size, steps) for size in sweeps.kernels for steps in sweeps.size_steps}
    for head, options, steps in found:
        if head["sweep"] == "steps" and head["decoder"] in params.report.decoders:
            expected = choice(head["decoder"], 16 if steps <= 32 else 64)
            assert options == params.decoder(head["decoder"], **expected), (head, steps)
    assert {options.kernel_size for head, options, _ in found if head["sweep"] == "gains"} == {17}
    assert {options.gain for head, options, _ in found if head["sweep"] == "gains"} == set(sweeps.gains)
    json.dumps([head for head, _, _ in found])
