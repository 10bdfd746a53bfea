"""The training benchmark: its FLOPs are the model's, its floor does the trainers' work, the script writes its files."""

import gc
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import subjects
import torch
import train as train_script
from subjects import SHAPES, Shape, random_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train import ADAPTED, OBJECTIVES, RUNS, WARM_UP, Bench, Canvases, floor_loss, model_flops

from dlm.config.training import LoraParams
from dlm.errors import UserError
from dlm.models.adapters import new_adapter, unwrapped
from dlm.models.precision import decide

ROOT = Path(__file__).parents[1]
TINY = Shape(2, 32, 2, 48, 90, 64, 89, 88)
LORA = LoraParams(rank=4, alpha=16, dropout=0.1, targets=("q_proj", "k_proj", "v_proj"), merge=False)


@pytest.fixture(autouse=True, scope="module")
def little_garbage() -> Iterator[None]:
    """The script collects garbage after each run: there is less to look through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrix products, and tiny models in the published ones' places."""
    monkeypatch.setattr(train_script, "MATMULS", {"cpu": (64, 2), "cuda": (64, 2)})
    monkeypatch.setattr(subjects, "GPU_ONLY", ())
    for name in SHAPES:
        monkeypatch.setitem(SHAPES, name, TINY)


def bench(name: str, folder: Path, steps: int = 2) -> Bench:
    device = train_script.default_device()
    return Bench(subjects.load_subject(name, device, "float32"), 3, 40, steps, folder)


# FLOPs


def test_flops_of_mdlms_shape_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer: 4 of 768 x 768 and 3 of 768 x 2048, 7,077,888 weights; 12 layers at 512 tokens (two canvases of 256).

    6·84,934,656·512 + 12·12·768·256·512 + 6·50,258·768·200 = 260,919,263,232 + 14,495,514,624 + 46,317,772,800.
    """
    monkeypatch.undo()
    model = random_model(SHAPES["mdlm-small"], "meta", torch.float32)
    assert model_flops(model, 512, 256, 200) == 321_732_550_656


def test_flops_of_adapters_by_hand() -> None:
    """A layer: 4·32·32 + 3·32·48 = 8704 frozen weights, and 3 adapters of 2·4·32 = 768 trained ones."""
    model = new_adapter(random_model(TINY, "cpu", torch.float32), LORA, "tiny", 0)
    weights = 2 * (4 * 8704 + 6 * 768) * 80
    assert model_flops(model, 80, 40, 30) == weights + 12 * 2 * 32 * 40 * 80 + 4 * 90 * 32 * 30


@pytest.mark.parametrize("lora", [False, True])
def test_flops_against_torchs_counter(lora: bool) -> None:
    """Eager attention, since a CPU's fused kernel is not counted.

    With adapters no gradient goes below the first layer's q, k and v: less than the formula's, little among 8 layers.
    """
    shape = Shape(8 if lora else 2, 32, 2, 48, 90, 64, 89, 88)
    model: Any = random_model(shape, "cpu", torch.float32)
    model.set_attn_implementation("eager")
    if lora:
        model = new_adapter(model, LORA, "tiny", 0)
    places = torch.arange(0, 80, 3)
    step = Canvases(torch.arange(80).reshape(2, 40), places, places)
    counter = FlopCounterMode(display=False)
    with counter:
        floor_loss(model, step).backward()
    assert counter.get_total_flops() == pytest.approx(model_flops(model, 80, 40, len(places)), rel=0.04)


# The floor beside the trainers


@pytest.mark.parametrize("name", ["mdlm-small", "llada-8b"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_floor_shows_the_model_what_the_trainer_does(name: str, objective: str, tmp_path: Path) -> None:
    """Canvases, scored positions and trained weights, step by step, in a second repeat as in the first one."""
    made = bench(name, tmp_path)
    inner: Any = unwrapped(made.model)
    canvases: list[Tensor] = []
    scored: list[int] = []
    inner.get_input_embeddings().register_forward_pre_hook(lambda _, given: canvases.append(given[0].clone()))
    inner.get_output_embeddings().register_forward_pre_hook(lambda _, given: scored.append(len(given[0])))
    runs = []
    for implementation in ("trainer", "floor", "trainer", "floor"):
        before = {key: value.clone() for key, value in made.model.named_parameters()}
        made.run(objective, implementation)
        moved = {key for key, value in made.model.named_parameters() if not torch.equal(before[key], value)}
        runs.append((torch.stack(canvases), list(scored), moved))
        canvases.clear()
        scored.clear()
    steps = WARM_UP + 2
    for shown, positions, moved in runs:
        assert shown.shape == (steps, 3, 40) and torch.equal(shown, runs[0][0])
        assert positions == [len(step.places) for step in made.canvases[objective]]
        assert moved == {key for key, value in made.model.named_parameters() if value.requires_grad}
    assert made.scored(objective) == sum(runs[0][1][WARM_UP:]) / 2
    for step in made.canvases[objective]:
        masked = step.canvas.flatten()[step.places] == TINY.mask_id
        assert masked.all() and (step.tokens != TINY.mask_id).all()
    assert "forward" not in vars(inner) and "forward" not in vars(made.model)
    assert not list(tmp_path.glob("**/checkpoint-*"))


def test_the_floor_computes_as_the_trainer_does(tmp_path: Path) -> None:
    """Checkpointing in training, the precision that the Trainer takes, and adapters on the paper's parts."""
    made = bench("llada-8b", tmp_path)
    assert (
        made.bf16 == decide("auto", TINY.hidden, made.device).bf16 and unwrapped(made.model).is_activation_checkpointing
    )
    trained = {key.split(".")[-4] for key, value in made.model.named_parameters() if value.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj"} and ADAPTED["llada-8b"].rank == 64


# The script


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", [train_script.__file__, *map(str, words), "--threads", threads])
    train_script.main()


@pytest.mark.parametrize("name", ["builtin", "llada-8b"])
def test_train_writes_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, name: str) -> None:
    out = tmp_path / "tiny.run"
    sizes = ["--batch-size", 2, "--length", 36, "--steps", 2, "--repeats", 2]
    run(monkeypatch, "--subject", name, *sizes, "--out", out)
    result = json.loads((tmp_path / "tiny.run.json").read_text())
    rows = {(row["objective"], row["implementation"]): row for row in result["rows"]}
    assert tuple(rows) == RUNS
    for (objective, implementation), row in rows.items():
        floor = rows[objective, "floor"]
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["tokens_per_second"] == pytest.approx(2 * 36 / row["seconds_per_step"]["median"])
        assert 0 < row["scored_positions"] < 72 and row["scored_positions"] == floor["scored_positions"]
        assert row["model_flops"] == floor["model_flops"] > 0
        share = [a / b for a, b in zip(floor["seconds"], row["seconds"], strict=True)]
        assert row["floor_share"]["low"] == pytest.approx(min(share))
        assert row["floor_share"]["median"] == pytest.approx(sum(share) / 2)
        if implementation == "floor":
            assert set(row["floor_share"].values()) == {1}
        assert 0 < row["mfu"]["low"] <= row["mfu"]["median"] <= row["mfu"]["high"]
    over = result["r2ft_over_sft"]
    flops = [rows[objective, "trainer"]["model_flops"] for objective in ("r2ft", "sft")]
    assert over["model_flops"] == pytest.approx(flops[0] / flops[1])
    settings = result["settings"]
    assert (settings["trained_parameters"] < settings["parameters"]) == (name == "llada-8b")
    assert (settings["lora"] is not None) == settings["gradient_checkpointing"] == (name == "llada-8b")
    text = (tmp_path / "tiny.run.md").read_text()
    assert capsys.readouterr().out == text and text.count("\n| ") == 1 + 1 + len(rows)
    assert ("4 for a frozen one" in text) == (name == "llada-8b")
    for written in (text, json.dumps(result)):
        assert str(tmp_path) not in written and platform.node() not in written and str(ROOT) not in written


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--length", "513"], "--length must be at most 512, the positions of builtin"),
        (["--length", "31"], "--length must be at least 32, got 31"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--steps", "two"], "--steps"),
        (["--subject", "gpt"], "--subject"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(monkeypatch, *words, "--out", tmp_path / "x")
    assert not list(tmp_path.iterdir())
