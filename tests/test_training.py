"""Collators, the trainers' losses against full logits, and a run that can be killed at any time."""

import copy
import functools
import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from warm import warm

from dlm.config.training import ModelParams, R2ftParams, TrainingParams
from dlm.data.text import pack
from dlm.data.tokenizer import train_tokenizer
from dlm.diffusion.forward import mask_tokens
from dlm.diffusion.losses import mean_log_prob, r2ft_loss, subs_log_probs
from dlm.errors import UserError
from dlm.models.backbone import new_backbone
from dlm.training import objectives
from dlm.training.collators import (
    CausalCollator,
    CausalPackedCollator,
    PackedCollator,
    R2ftCollator,
    SftCollator,
    WholeSteps,
)
from dlm.training.fit import curve, fit
from dlm.training.objectives import DiffusionTrainer, R2ftTrainer, crop_length
from dlm.training.resume import last_whole_checkpoint, resume_key

LENGTH = 24
SHAPE = ModelParams(hidden_size=16, layers=1, heads=2, intermediate_size=32, max_length=32, init_std=0.02)
TRAINING = TrainingParams(
    steps=12,
    batch_size=4,
    gradient_accumulation=1,
    optimizer="adamw",
    learning_rate=1e-2,
    lr_schedule="linear",
    warmup_steps=2,
    weight_decay=0.1,
    max_grad_norm=1.0,
    precision="fp32",
    gradient_checkpointing=False,
    compile=False,
    eval_every=4,
    save_every=4,
)
TOKENIZER = train_tokenizer([], 260)  # no merges: one id a byte
EOS, MASK = TOKENIZER.eos_token_id, TOKENIZER.mask_token_id


def ids(text: str) -> list[int]:
    """One id a letter; `.` stands for EOS, `_` for [MASK]."""
    return [{".": EOS, "_": MASK}.get(letter, TOKENIZER.get_vocab().get(letter, -1)) for letter in text]


def tiny_model(seed: int = 0) -> PreTrainedModel:
    return new_backbone(SHAPE, TOKENIZER, seed, causal=False)


def examples(count: int, start: int = 0) -> list[dict[str, list[int]]]:
    """Prompts of 2-4 letters whose answer is the alphabet from the prompt's last letter on."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    rows = []
    for i in range(start, start + count):
        at, lead = (i * 5) % 14, 2 + i % 3
        rows.append({"prompt_ids": ids(letters[at] * lead), "answer_ids": ids(letters[at + 1 : at + 7 + i % 4])})
    return rows


TRAIN, VALID = examples(20), examples(8, start=20)


class At(TrainerCallback):
    """Do something at a step: when it ends, or when it has been saved."""

    def __init__(self, step: int, do: Callable[[], Any], *, saved: bool = False) -> None:
        self.step, self.do, self.saved = step, do, saved

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step and not self.saved:
            self.do()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step and self.saved:
            self.do()


class Started(TrainerCallback):
    """The step at which training began."""

    step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step = state.global_step


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def sft(
    model: PreTrainedModel,
    params: TrainingParams = TRAINING,
    *extra: TrainerCallback,
    train: Sequence[dict[str, Any]] = TRAIN,
    valid: Sequence[dict[str, Any]] = VALID,
    steps: int | None = None,
    pad: bool = True,
    crop: float = 0.0,
    average: Literal["token", "example"] = "token",
    length: int = LENGTH,
    visit: Callable[[int, PreTrainedModel], None] | None = None,
) -> list[dict[str, float]]:
    """`fit` as the sft stage calls it, with callbacks of the test's own."""

    def make(*, callbacks: list[TrainerCallback], **rest: Any) -> DiffusionTrainer:
        return DiffusionTrainer(callbacks=[*callbacks, *extra], **rest)

    objective = functools.partial(
        make,
        mask_id=MASK,
        data_collator=SftCollator(length, EOS, padding=float(pad)),
        crop_share=crop,
        average=average,
    )
    return fit("sft", objective, model, list(train), list(valid), params, 7, steps=steps, visit=visit)[1]


def same_weights(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A model this small only waits for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints go below the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Collators


def test_sft_collator_on_literal_rows() -> None:
    """Canvas of 8: `ab` answered by `cd`, and `a` by `bcdef`. Everything behind the prompt may be masked; each EOS
    behind the first counts 1, 0 or something between."""
    rows = [
        {"prompt_ids": ids("ab"), "answer_ids": ids("cd")},
        {"prompt_ids": ids("a"), "answer_ids": ids("bcdef")},
    ]
    canvas = [ids("abcd...."), ids("abcdef..")]
    padded = SftCollator(8, EOS, padding=1.0)(rows)
    assert padded["x0"].tolist() == canvas
    behind = [[0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]]
    assert padded["maskable"].int().tolist() == padded["counts"].tolist() == behind
    bare = SftCollator(8, EOS, padding=0.0)(rows)
    assert bare["x0"].tolist() == canvas
    assert bare["maskable"].int().tolist() == behind
    assert bare["counts"].tolist() == [[0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 0]]
    light = SftCollator(8, EOS, padding=0.25)(rows)
    assert light["counts"].tolist() == [[0, 0, 1, 1, 1, 0.25, 0.25, 0.25], [0, 1, 1, 1, 1, 1, 1, 0.25]]


@pytest.mark.parametrize("padding", [0.0, 0.25, 1.0])
def test_everything_behind_the_prompt_is_masked_at_the_end_of_time(padding: float) -> None:
    """At t = 1, whatever counts in the loss: a visible padding would tell where the answer ends."""
    batch = SftCollator(8, EOS, padding=padding)([{"prompt_ids": ids("ab"), "answer_ids": ids("cd")}])
    xt, masked = mask_tokens(batch["x0"], torch.ones(1), batch["maskable"], MASK, torch.rand(1, 8))
    assert xt.tolist() == [ids("ab______")]
    assert masked.int().tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]]


def test_r2ft_collator_on_a_literal_row() -> None:
    """`ab` answered by `cde` on a canvas of 9; context up to c = 3, the unit `bc` repeated over [3, 7).

    x_t is `abc______`; the chosen mask is d, e and the first EOS (3, 4, 5), the rejected mask 3 to 6.
    """
    row = {
        "prompt_ids": ids("ab"),
        "answer_ids": ids("cde"),
        "context_mask": [True] * 3 + [False] * 6,
        "rejected_ids": ids("abcbcbc.."),
        "rejected_mask": [False] * 3 + [True] * 4 + [False] * 2,
    }
    whole_answer_visible = {**row, "context_mask": [True] * 5 + [False] * 4}
    batch = R2ftCollator(9, EOS, MASK)([row, whole_answer_visible])
    assert batch["x0"].tolist() == [ids("abcde....")] * 2
    assert batch["xt"].tolist() == [ids("abc______"), ids("abcde____")]
    assert batch["chosen_mask"].int().tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 0]]
    assert batch["rejected"].tolist() == [ids("abcbcbc..")] * 2
    assert batch["rejected_mask"].int().tolist() == [[0, 0, 0, 1, 1, 1, 1, 0, 0]] * 2


def test_causal_collator_on_literal_rows() -> None:
    rows = [{"prompt_ids": ids("ab"), "answer_ids": ids("c")}, {"prompt_ids": ids("a"), "answer_ids": ids("bcd")}]
    batch = CausalCollator(EOS)(rows)
    assert batch["x0"].tolist() == [ids("abc.."), ids("abcd.")]
    assert batch["scored"].int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]


def test_causal_packed_collator_predicts_all_but_the_first() -> None:
    batch = CausalPackedCollator()([{"ids": [5, 6, EOS]}, {"ids": [7, 8, 9]}])
    assert batch["x0"].tolist() == [[5, 6, EOS], [7, 8, 9]]
    assert batch["scored"].tolist() == [[False, True, True]] * 2


def test_packed_collator_may_mask_everything() -> None:
    batch = PackedCollator()([{"ids": ids("ab.c")}, {"ids": ids("d...")}])
    assert batch["x0"].tolist() == [ids("ab.c"), ids("d...")]
    assert batch["maskable"].all()
    assert batch["maskable"].shape == (2, 4)


# Running text


@pytest.mark.parametrize(
    ("documents", "rows"),
    [
        (["abc", "de", "fghijk", "l"], ["abc..", "de...", "fghij", "k.l.."]),  # 6 + EOS is cut after 5
        (["abcd", "e"], ["abcd.", "e...."]),  # fits to the last place
        (["abcde"], ["abcde", "....."]),  # its EOS starts the next row
        (["a", "", "b"], ["a..b."]),
        ([], []),
    ],
)
def test_pack_on_literal_documents(documents: list[str], rows: list[str]) -> None:
    assert pack(TOKENIZER, documents, 5) == [ids(row) for row in rows]


def test_pack_stops_at_its_limit() -> None:
    assert pack(TOKENIZER, ["abc", "de", "fghijk", "l"], 5, limit=2) == [ids("abc.."), ids("de...")]
    many = (f"{i:04d}" for i in range(10_000))
    assert len(pack(TOKENIZER, many, 5, limit=7)) == 7
    assert next(many)  # the rest was never read


# The losses of the trainers, against full logits


def arguments(**changes: Any) -> TrainingArguments:
    return TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", seed=3, **changes)


def full_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """What the class's own forward pass gives: a trainer puts its own before it."""
    logits: Tensor = type(model).forward(model, input_ids=ids).logits
    return logits


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Any]]]:
    """What the trainers drew: the times of every micro-batch, its x_t and masks, and its rows' losses."""
    seen: dict[str, list[Any]] = {"t": [], "xt": [], "masked": [], "loss": []}

    def antithetic_t(*args: Any) -> Tensor:
        seen["t"].append(real_t(*args))
        return seen["t"][-1]

    def mask_tokens(*args: Any) -> tuple[Tensor, Tensor]:
        xt, masked = real_mask(*args)
        seen["xt"].append(xt)
        seen["masked"].append(masked)
        return xt, masked

    def nelbo(*args: Any) -> Tensor:
        loss = real_nelbo(*args)
        seen["loss"].append(loss.detach())
        return loss

    real_t, real_mask, real_nelbo = objectives.antithetic_t, objectives.mask_tokens, objectives.nelbo
    monkeypatch.setattr(objectives, "antithetic_t", antithetic_t)
    monkeypatch.setattr(objectives, "mask_tokens", mask_tokens)
    monkeypatch.setattr(objectives, "nelbo", nelbo)
    yield seen


@pytest.mark.parametrize("average", ["token", "example"])
@pytest.mark.parametrize("padding", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_diffusion_loss_is_the_nelbo_on_full_logits(
    noise: dict[str, list[Any]], training: bool, padding: float, average: Literal["token", "example"]
) -> None:
    """Σ_masked weight · -log p(x0) / t / Σ weight, position by position, from logits of the whole canvas: over all
    rows, or row by row and then the rows' mean."""
    model = tiny_model().train(training)
    collator = SftCollator(LENGTH, EOS, padding=padding)
    trainer = DiffusionTrainer(
        model=model, args=arguments(), mask_id=MASK, data_collator=collator, eval_dataset=TRAIN[:5], average=average
    )
    batch = collator(TRAIN[:5])
    held_out = {} if training else {"place": torch.arange(5)}
    loss = trainer.compute_loss(model, {**batch, **held_out})
    t, xt, masked = noise["t"][0], noise["xt"][0], noise["masked"][0]
    logits = full_logits(model, xt)
    totals, weights = [0.0] * 5, [0.0] * 5
    for b in range(5):
        for i in range(LENGTH):
            end = len(TRAIN[b]["prompt_ids"]) + len(TRAIN[b]["answer_ids"])
            weight = padding if i > end else 1.0
            weights[b] += weight * (i >= len(TRAIN[b]["prompt_ids"]))
            if masked[b, i]:
                assert batch["maskable"][b, i]
                assert xt[b, i] == MASK
                scores = logits[b, i].clone()
                scores[MASK] = float("-inf")
                totals[b] -= weight * (scores.log_softmax(-1)[batch["x0"][b, i]] / t[b]).item()
            else:
                assert xt[b, i] == batch["x0"][b, i]
    by_token = sum(totals) / sum(weights)
    by_example = sum(total / weight for total, weight in zip(totals, weights, strict=True)) / 5
    assert by_token != pytest.approx(by_example, rel=1e-4)  # prompts and answers are not of one length
    assert int(masked.sum()) > 5
    assert loss.item() == pytest.approx(by_token if average == "token" else by_example, rel=1e-5)
    assert bool(loss.requires_grad)


def test_cut_rows_weigh_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """suffix_share 1: each row has its mean -log p over what counts, times its maskable positions; evaluation not."""
    drawn: list[tuple[Tensor, Tensor]] = []

    def mask_suffix(*args: Any) -> tuple[Tensor, Tensor]:
        drawn.append(real(*args))
        return drawn[-1]

    real = objectives.mask_suffix
    monkeypatch.setattr(objectives, "mask_suffix", mask_suffix)
    model = tiny_model().train()
    collator = SftCollator(LENGTH, EOS, padding=1.0)
    made = DiffusionTrainer(
        model=model,
        args=arguments(),
        mask_id=MASK,
        data_collator=collator,
        eval_dataset=TRAIN[:5],
        suffix_share=1.0,
        eos_id=EOS,
    )
    batch = collator(TRAIN[:5])
    loss = made.compute_loss(model, batch)
    masked, counted = drawn[0]
    x0, maskable = batch["x0"], batch["maskable"]
    log_probs = subs_log_probs(full_logits(model, torch.where(masked, MASK, x0)), MASK)
    means = [
        -log_probs[b][counted[b]].gather(-1, x0[b][counted[b]][:, None]).mean() * maskable[b].sum() for b in range(5)
    ]
    assert loss.item() == pytest.approx(torch.stack(means).sum().item() / int(maskable.sum()), rel=1e-5)
    made.compute_loss(model.eval(), {**batch, "place": torch.arange(5)})
    assert len(drawn) == 1


def test_the_length_of_a_crop() -> None:
    """Uniform over 1 to L for the share of the steps, whole otherwise; the same again for the same seed and step."""
    assert [crop_length(24, 0.0, 7, step) for step in range(50)] == [24] * 50
    drawn = np.array([crop_length(24, 1.0, 7, step) for step in range(4800)])
    counts = np.bincount(drawn, minlength=25)
    assert counts[0] == 0 and chisquare(counts[1:]).pvalue > 1e-3
    mixed = [crop_length(24, 0.25, 7, step) for step in range(4800)]
    cut = [length != whole for length, whole in zip(mixed, [24] * 4800, strict=True)]
    assert np.mean(cut) == pytest.approx(0.25 * 23 / 24, abs=0.02)
    assert mixed == [crop_length(24, 0.25, 7, step) for step in range(4800)]
    assert mixed != [crop_length(24, 0.25, 8, step) for step in range(4800)]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "average"), [(4, 1, "token"), (2, 2, "token"), (2, 2, "example")]
)
def test_every_row_of_a_step_is_cropped_alike(
    noise: dict[str, list[Any]], batch_size: int, accumulation: int, average: Literal["token", "example"]
) -> None:
    """And the loss is a mean over what is left, though it may be the prompt alone; evaluation sees whole canvases."""
    params = replace(TRAINING, batch_size=batch_size, gradient_accumulation=accumulation)
    rows = sft(tiny_model(), params, pad=False, crop=1.0, average=average)
    wanted = [crop_length(LENGTH, 1.0, 7, step) for step in range(TRAINING.steps)]
    assert min(wanted) <= 4 < max(wanted)  # one below the shortest prompts, too
    lengths = [xt.shape[1] for xt in noise["xt"] if len(xt) == batch_size]
    assert lengths.count(LENGTH) >= len(VALID) // batch_size
    trained = [length for length in lengths if length != LENGTH]
    assert trained == [length for length in wanted if length != LENGTH for _ in range(accumulation)]
    assert all(math.isfinite(row["eval_loss"]) for row in rows)
    assert rows[-1]["eval_loss"] < rows[0]["eval_loss"]


def test_diffusion_noise_is_that_of_the_step_and_not_of_global_state(noise: dict[str, list[Any]]) -> None:
    model = tiny_model().train()
    collator = SftCollator(LENGTH, EOS, padding=1.0)
    for step in (0, 5, 5):
        torch.manual_seed(len(noise["t"]))
        trainer = DiffusionTrainer(model=model, args=arguments(), mask_id=MASK, data_collator=collator)
        trainer.state.global_step = step
        trainer.compute_loss(model, collator(TRAIN[:4]))
    assert torch.equal(noise["xt"][1], noise["xt"][2])
    assert torch.equal(noise["t"][1], noise["t"][2])
    assert not torch.equal(noise["t"][0], noise["t"][1])


def negatives(count: int) -> list[dict[str, Any]]:
    """Rows whose rejected side repeats the prompt's last letter over eight positions from a varying c on."""
    rows = []
    for i, row in enumerate((TRAIN + VALID)[:count]):
        c = len(row["prompt_ids"]) + i % 5
        x0 = (row["prompt_ids"] + row["answer_ids"] + [EOS] * LENGTH)[:LENGTH]
        mask = [c <= position < c + 8 for position in range(LENGTH)]
        rows.append(
            {
                **row,
                "context_mask": [position < c for position in range(LENGTH)],
                "rejected_ids": [x0[c - 1] if m else x for m, x in zip(mask, x0, strict=True)],
                "rejected_mask": mask,
            }
        )
    return rows


OBJECTIVE = R2ftParams(launcher="python", beta_w=1.5, beta_l=0.5, margin=0.25, gamma=0.1, training=TRAINING)
LOG_PRIOR = torch.linspace(-9, -1, len(TOKENIZER))


def r2ft_trainer(**rest: Any) -> R2ftTrainer:
    collator = R2ftCollator(LENGTH, EOS, MASK)
    return R2ftTrainer(objective=OBJECTIVE, log_prior=LOG_PRIOR, mask_id=MASK, data_collator=collator, **rest)


def test_r2ft_loss_is_that_of_full_logits() -> None:
    model = tiny_model().train()
    batch = R2ftCollator(LENGTH, EOS, MASK)(negatives(6))
    loss = r2ft_trainer(model=model, args=arguments()).compute_loss(model, batch)
    log_probs = subs_log_probs(full_logits(model, batch["xt"]), MASK)
    chosen = mean_log_prob(log_probs.gather(-1, batch["x0"][..., None])[..., 0], batch["chosen_mask"])
    rejected = mean_log_prob(log_probs.gather(-1, batch["rejected"][..., None])[..., 0], batch["rejected_mask"])
    expected = r2ft_loss(chosen, rejected, beta_w=1.5, beta_l=0.5, margin=0.25, gamma=0.1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(ours[name], parameter.grad, atol=1e-6)


# Runs


@pytest.fixture(scope="module")
def undisturbed(
    one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Weights and curve of a run that nothing interrupts: 12 steps of 4 over 20 examples, so three epochs."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("undisturbed"))
    try:
        model = tiny_model()
        return model, sft(model)
    finally:
        os.chdir(before)


def test_fit_lowers_the_loss_and_reports_it(undisturbed: tuple[PreTrainedModel, list[dict[str, float]]]) -> None:
    """A random model's loss is near ln 257 = 5.5; 12 steps at 1e-2 bring the EOS padding down to almost nothing."""
    model, rows = undisturbed
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    assert rows[0]["eval_loss"] == pytest.approx(math.log(257), rel=0.35)
    assert rows[-1]["eval_loss"] < 0.8 * rows[0]["eval_loss"]
    assert rows[-1]["loss"] < rows[1]["loss"]
    assert not same_weights(model, tiny_model())
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_a_finished_run_repeats_exactly_and_leaves_no_checkpoints(
    undisturbed: tuple[PreTrainedModel, list[dict[str, float]]], tmp_path: Path
) -> None:
    torch.manual_seed(987)
    model = tiny_model()
    assert sft(model) == undisturbed[1]
    assert same_weights(model, undisturbed[0])
    assert list((tmp_path / ".cache/training").iterdir()) == []


def test_r2ft_run_pushes_the_rejected_side_down() -> None:
    model, rows = tiny_model(), negatives(28)

    def make(**rest: Any) -> R2ftTrainer:
        return r2ft_trainer(**rest)

    batch = R2ftCollator(LENGTH, EOS, MASK)(rows[20:])
    with torch.no_grad():
        log_probs = subs_log_probs(model(input_ids=batch["xt"]).logits, MASK)
    chosen = mean_log_prob(log_probs.gather(-1, batch["x0"][..., None])[..., 0], batch["chosen_mask"]).mean()
    scored = batch["chosen_mask"] | batch["rejected_mask"]
    prior = mean_log_prob((log_probs.exp() * LOG_PRIOR).sum(-1), scored).mean()
    params = replace(TRAINING, batch_size=8, steps=40, eval_every=10, save_every=10, learning_rate=3e-2)
    found = fit("r2ft", make, model, rows[:20], rows[20:], params, 7)[1]
    assert found[0]["eval_log_p_chosen"] == pytest.approx(chosen.item(), rel=1e-4)
    assert found[0]["eval_mean_log_prior"] == pytest.approx(prior.item(), rel=1e-4)
    assert [row["step"] for row in found] == [0, 10, 20, 30, 40]
    assert found[-1]["eval_loss"] < found[0]["eval_loss"]
    gap = [row["eval_log_p_chosen"] - row["eval_log_p_rejected"] for row in found]
    assert gap[-1] > gap[0] + 0.5


SCHEDULES = [
    pytest.param(4, 4, "adamw", id="saved when evaluated"),
    pytest.param(4, 3, "adamw", id="saved between evaluations"),
    pytest.param(5, 4, "adamw", id="saved between loss entries"),
    pytest.param(4, 3, "muon", id="muon"),
]


@pytest.mark.parametrize(("eval_every", "save_every", "optimizer"), SCHEDULES)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    eval_every: int, save_every: int, optimizer: Any
) -> None:
    params = replace(TRAINING, eval_every=eval_every, save_every=save_every, optimizer=optimizer)
    whole = tiny_model()
    expected = sft(whole, params)
    with pytest.raises(Crash):
        sft(tiny_model(), params, At(10, crash))
    started, model = Started(), tiny_model()
    found = sft(model, params, started)
    assert started.step == 10 // save_every * save_every
    assert same_weights(model, whole)
    assert json.dumps(found) == json.dumps(expected)  # the order of keys too: curve.json is hashed


def test_a_run_cut_twice_in_an_accumulating_step() -> None:
    params = replace(TRAINING, batch_size=2, gradient_accumulation=2, precision="fp32")
    whole = tiny_model()
    expected = sft(whole, params)
    for step in (5, 9):
        with pytest.raises(Crash):
            sft(tiny_model(), params, At(step, crash))
    model = tiny_model()
    assert sft(model, params) == expected
    assert same_weights(model, whole)


def test_a_run_cut_after_its_last_checkpoint() -> None:
    """All steps are done and saved, the result not yet written: nothing is left to train."""
    params = replace(TRAINING, lr_schedule="constant")  # linear ends at 0, where one step more would not show
    whole, model = tiny_model(), tiny_model()
    expected = sft(whole, params)
    with pytest.raises(Crash):
        sft(tiny_model(), params, At(12, crash, saved=True))
    found = sft(model, params)
    assert [row["step"] for row in found] == [0, 4, 8, 12]
    assert same_weights(model, whole)
    assert found == expected


def killed() -> None:
    """The other process of the next test: killed at step 10, when the checkpoint of step 8 is on disk."""
    torch.set_num_threads(1)
    sft(tiny_model(), TRAINING, At(10, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_a_killed_process_goes_on(undisturbed: tuple[PreTrainedModel, list[dict[str, float]]], tmp_path: Path) -> None:
    code = f"import sys; sys.path[0] = {str(Path(__file__).parent)!r}; import test_training; test_training.killed()"
    (tmp_path / "killed.py").write_text(code)
    ended = subprocess.run([warm().bin / "python", "killed.py"], cwd=tmp_path, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    started, model = Started(), tiny_model()
    found = sft(model, TRAINING, started)
    assert started.step == 8
    assert same_weights(model, undisturbed[0])
    assert found == undisturbed[1]


@pytest.mark.parametrize("broken", [(8,), (4, 8)])
def test_broken_checkpoints_are_skipped(
    undisturbed: tuple[PreTrainedModel, list[dict[str, float]]], tmp_path: Path, broken: tuple[int, ...]
) -> None:
    with pytest.raises(Crash):
        sft(tiny_model(), TRAINING, At(10, crash))
    (folder,) = (tmp_path / ".cache/training").iterdir()
    for step in broken:
        state = folder / f"checkpoint-{step}" / "trainer_state.json"
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    started, model = Started(), tiny_model()
    found = sft(model, TRAINING, started)
    assert started.step == (4 if broken == (8,) else 0)
    assert same_weights(model, undisturbed[0])
    assert found == undisturbed[1]


def test_another_run_does_not_take_over_a_checkpoint() -> None:
    with pytest.raises(Crash):
        sft(tiny_model(), TRAINING, At(10, crash))
    other = [*TRAIN[:-1], {**TRAIN[-1], "answer_ids": [9, *TRAIN[-1]["answer_ids"][1:]]}]
    changes: list[dict[str, Any]] = [
        {"steps": 13},
        {"params": replace(TRAINING, learning_rate=2e-2)},
        {"crop": 0.5},
        {"pad": False},
        {"length": LENGTH + 1},
        {"train": other},
        {"valid": VALID[:-1]},
        {"model": tiny_model(8)},
    ]
    for change in changes:
        started = Started()
        run = {"model": tiny_model(), "params": TRAINING, **change}
        with pytest.raises(Crash):
            sft(run.pop("model"), run.pop("params"), started, At(1, crash), **run)
        assert started.step == 0, change


def test_a_key_is_made_of_all_that_decides() -> None:
    """The same for equal objects, another for any number in the objective, and for each of an adapter's."""
    model, rows = tiny_model(), [{"ids": [1, 2]}, {"ids": np.array([3, 4])}, {"text": "a"}]

    def key(**changes: Any) -> str:
        objective = replace(OBJECTIVE, **changes)
        make = functools.partial(R2ftTrainer, mask_id=MASK, objective=objective, log_prior=LOG_PRIOR.clone())
        return resume_key(make, model, [rows], TRAINING, 12)

    assert key() == key()
    assert len({key(), key(gamma=0.3), key(margin=0.3), key(beta_l=0.3)}) == 4
    make = functools.partial(R2ftTrainer, log_prior=LOG_PRIOR)
    others = [
        functools.partial(R2ftTrainer, log_prior=LOG_PRIOR + 1e-3),
        functools.partial(DiffusionTrainer, log_prior=LOG_PRIOR),
    ]
    assert len({resume_key(one, model, [rows]) for one in (make, *others)}) == 3
    assert len({resume_key(make, model, [one]) for one in (rows, rows[:2], rows[::-1])}) == 3


def test_last_whole_checkpoint_counts_as_numbers_do(tmp_path: Path) -> None:
    for step, text in ((9, "{}"), (10, "{}"), (100, '{"global_step": 1'), (80, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert last_whole_checkpoint(tmp_path / "nothing") is None


def test_the_step_count_can_be_overruled() -> None:
    found = sft(tiny_model(), TRAINING, steps=6)
    assert [row["step"] for row in found] == [0, 4, 6]
    assert "eval_loss" in found[-1]  # 6 is no multiple of eval_every


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_every_schedule_warms_up(schedule: Any, last: float) -> None:
    """Of 14 steps 8 are warm-up: the fourth has 3/8 of the rate, the eighth 7/8; the twelfth stands halfway behind."""
    params = replace(TRAINING, steps=14, lr_schedule=schedule, warmup_steps=8, eval_every=4, save_every=4)
    found = {row["step"]: row["learning_rate"] for row in sft(tiny_model(), params) if "learning_rate" in row}
    assert [found[step] / params.learning_rate for step in (4, 8, 12)] == pytest.approx([3 / 8, 7 / 8, last])


@pytest.mark.parametrize("cut", [False, True])
def test_visits_show_the_model_as_it_was(cut: bool, tmp_path: Path) -> None:
    """Step 8 of 12 is what a run of 8 ends with (constant rate); also where the run was cut between."""
    params = replace(TRAINING, lr_schedule="constant")
    short, model = tiny_model(), tiny_model()
    sft(short, params, steps=8)
    seen: dict[int, PreTrainedModel] = {}

    def look(step: int, trained: PreTrainedModel) -> None:
        seen[step] = copy.deepcopy(trained)

    if cut:
        with pytest.raises(Crash):
            sft(tiny_model(), params, At(10, crash), visit=look)
    sft(model, params, visit=look)
    assert list(seen) == [4, 8, 12]
    assert same_weights(seen[8], short) and not same_weights(seen[4], short)
    assert same_weights(model, seen[12])
    assert list((tmp_path / ".cache/training").iterdir()) == []


@pytest.mark.parametrize("average", ["token", "example"])
def test_a_global_batch_in_parts_is_the_same_batch(
    noise: dict[str, list[Any]], average: Literal["token", "example"]
) -> None:
    """Steps of 8 rows at once and of 2 x 4: the same times, masks, losses and weights, though the parts have unequal
    numbers of supervised tokens."""
    settings = replace(TRAINING, steps=4, eval_every=2)
    models = [tiny_model(), tiny_model()]
    whole = sft(models[0], replace(settings, batch_size=8), pad=False, average=average)
    at_once = [masked for masked in noise["masked"] if len(masked) == 8][1]  # the first is the evaluation
    times = [t for t in noise["t"] if len(t) == 8][1]
    for values in noise.values():
        values.clear()
    two = replace(settings, batch_size=4, gradient_accumulation=2)
    parts = sft(models[1], two, pad=False, average=average)
    assert torch.equal(torch.cat(noise["t"][2:4]), times)  # two batches of evaluation come before
    assert torch.equal(torch.cat(noise["masked"][2:4]), at_once)
    assert not torch.equal(noise["masked"][2], noise["masked"][3])
    assert [row.keys() for row in parts] == [row.keys() for row in whole]
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = models[1].state_dict(), models[0].state_dict()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def test_every_step_has_a_whole_global_batch(noise: dict[str, list[Any]]) -> None:
    """12 rows in micro-batches of 4, two a step: an epoch has one step, and drops other rows than the last one did."""
    sft(tiny_model(), replace(TRAINING, steps=2, gradient_accumulation=2, eval_every=2), train=TRAIN[:12])
    first, second = (torch.cat(noise["t"][at : at + 2]) for at in (2, 4))  # 0, 1: evaluation
    for times in (first, second):
        assert [math.floor(8 * float(t)) for t in times] == list(range(8))
    epochs = [WholeSteps(12, 8, seed=7) for _ in range(2)]
    epochs[1].set_epoch(1)
    rows = [list(epoch) for epoch in epochs]
    assert [len(set(order)) for order in rows] == [8, 8]
    assert rows[0] != rows[1]
    assert rows[0] == list(WholeSteps(12, 8, seed=7))


def test_too_few_examples_for_one_global_batch() -> None:
    with pytest.raises(UserError, match="sft: 3 training examples do not fill one global batch of 4 x 1"):
        sft(tiny_model(), train=TRAIN[:3])
    with pytest.raises(UserError, match="sft: 6 training examples"):
        sft(tiny_model(), replace(TRAINING, gradient_accumulation=2), train=TRAIN[:6])


def test_micro_batches_that_the_processes_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"sft: gradient_accumulation must be a multiple of the 3 processes.*, got 4"):
        sft(tiny_model(), replace(TRAINING, gradient_accumulation=4))


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_held_out_set_that_does_not_fill_its_batches_is_evaluated_whole(
    noise: dict[str, list[Any]], count: int
) -> None:
    found = sft(tiny_model(), replace(TRAINING, steps=1, eval_every=1), valid=VALID[:count])
    assert all("eval_loss" in row for row in found)
    assert sum(len(t) for t in noise["t"]) == 2 * count + 4


def test_a_loss_of_nan_names_its_step() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"the loss is nan at step 4\b.*lower learning_rate") as caught:
        sft(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_what_the_model_computes_in(precision: str, dtype: torch.dtype) -> None:
    model, seen = tiny_model(), set()
    projection = model.get_decoder().layers[0].mlp.down_proj
    projection.register_forward_hook(lambda module, args, output: seen.add(output.dtype) if module.training else None)
    sft(model, replace(TRAINING, steps=1, precision=precision))
    assert seen == {dtype}
    assert projection.weight.dtype == torch.float32


def test_curve_merges_by_step_and_drops_timings() -> None:
    history = [
        {
            "eval_loss": 5.0,
            "eval_runtime": 0.1,
            "eval_samples_per_second": 80.0,
            "eval_steps_per_second": 9.0,
            "step": 0,
        },
        {"loss": 4.0, "grad_norm": 1.5, "learning_rate": 1e-3, "epoch": 0.4, "step": 2},
        {"eval_loss": 3.5, "eval_log_p_chosen": -2.0, "eval_runtime": 0.2, "epoch": 0.4, "step": 2},
        {"train_runtime": 3.0, "train_loss": 4.0, "total_flos": 12.0, "train_steps_per_second": 1.0, "step": 2},
    ]
    assert curve(history) == [
        {"eval_loss": 5.0, "step": 0},
        {"loss": 4.0, "grad_norm": 1.5, "learning_rate": 1e-3, "eval_loss": 3.5, "eval_log_p_chosen": -2.0, "step": 2},
    ]


@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="no C++ compiler")
def test_compiled_training_is_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves of SFT and R2FT; and the models come back as they were given: nothing of them goes through a compiler."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch cannot trace its checks
    rows = negatives(28)
    for name in ("sft", "r2ft"):
        curves = []
        for on in (False, True):
            model, params = tiny_model(1), replace(TRAINING, compile=on)
            if name == "sft":
                curves.append(sft(model, params))
            else:
                curves.append(fit(name, r2ft_trainer, model, rows[:20], rows[20:], params, 7)[1])
            assert all(module._compiled_call_impl is None for module in model.modules())
        assert len(curves[0]) == len(curves[1]) > 2
        for plain, compiled in zip(*curves, strict=True):
            assert plain == pytest.approx(compiled, rel=1e-3, abs=1e-5)


@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="no C++ compiler")
def test_compiled_adaptation_in_bf16_is_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU: logits shifted by one, attention that becomes full step by step, another number of positions a step."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch cannot trace its checks
    collator = SftCollator(LENGTH, EOS, padding=1.0)
    make = functools.partial(DiffusionTrainer, mask_id=MASK, data_collator=collator, anneal_steps=6)
    curves = []
    for on in (False, True):
        model = tiny_model(1)
        model.config.logits_shift = 1
        curves.append(fit("base", make, model, TRAIN, VALID, replace(TRAINING, compile=on, precision="bf16"), 7)[1])
    assert len(curves[0]) == len(curves[1]) > 2
    for plain, compiled in zip(*curves, strict=True):
        assert plain["eval_loss"] == pytest.approx(compiled["eval_loss"], rel=2e-2)


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"compile: a CPU needs a C\+\+ compiler \(g\+\+ or clang\+\+\); install one"):
        sft(tiny_model(), replace(TRAINING, compile=True))
