"""How fast training steps are: SFT and R2FT through their trainers, against a bare step, and in model FLOPs.

Each repeat times four runs, one after the other, each of --steps steps after --warm-up more:
  sft floor     the backbone alone on the canvases and at the scored positions of sft: forward pass, head at those
                positions, cross-entropy, backward pass, optimizer step; nothing of the trainers, no clipping;
  sft           DiffusionTrainer as the sft stage drives it: dataset, collator, noise, clipping, schedule;
  r2ft          R2ftTrainer likewise, on negatives made by the pipeline's rule;
  r2ft floor    as sft floor, on the canvases and at the scored positions of r2ft.
Ratios are taken repeat by repeat; all repeats see the same rows and noise. Evaluation and checkpoints are left out.
SFT puts its loss on padding too, as the SFT-only model does.

Weights are random. Rows too: prompts of L/8 to L/4 tokens, answers of L/8 to L/2, negatives by params.yaml's numbers.
The precision is the pipeline's `auto`: bfloat16 autocast over float32 weights on a GPU, and on a CPU that has it for
models from 256 wide on; else float32. llada-8b is trained by adapters on a bfloat16 base, with gradient checkpointing
unless told otherwise. With --compile the layers go through torch.compile in all four runs, and the loss in those of the
trainers. The device is the Trainer's choice: a GPU if any.

Model FLOPs of a step (see `model_flops`) leave out norms, the softmax, the optimizer and what checkpointing computes
again. MFU is their rate over that of square matrix products timed in the same repeat.

Writes OUT.json (all runs) and OUT.md (the table), and prints the table.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    Arguments,
    command_line,
    default_device,
    ratios,
    report,
    spread,
    write,
)
from datasets import Dataset
from subjects import MODELS, SHAPES, Subject, load_subject
from torch import Tensor, nn
from train_table import to_markdown
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from dlm.pipeline.start import run_script
from dlm.config.schema import require
from dlm.config.training import LoraParams, R2ftParams, TrainingParams
from dlm.models.adapters import new_adapter, unwrapped
from dlm.models.compiled import compile_layers
from dlm.models.precision import decide
from dlm.negatives.corruption import NegativeRule, continuation
from dlm.pipeline.hardware import hardware
from dlm.training.collators import R2ftCollator, Row, SftCollator
from dlm.training.fit import StopAtNonFinite, training_arguments
from dlm.training.objectives import DiffusionTrainer, R2ftTrainer
from dlm.training.trainer import OursTrainer, release

WARM_UP = 2  # steps before the clock starts, unless told otherwise; the first makes the optimizer's state
SHORTEST = 32
SEED = 0
OBJECTIVES = ("sft", "r2ft")
RUNS = (("sft", "floor"), ("sft", "trainer"), ("r2ft", "trainer"), ("r2ft", "floor"))  # neighbours are compared
TARGETS = {"floor_share": 0.85, "r2ft_over_sft": 1.15}
ADAPTED = {"llada-8b": LoraParams(rank=64, alpha=16, dropout=0.1, targets=("q_proj", "k_proj", "v_proj"), merge=False)}
MATMULS = {"cpu": (2048, 6), "cuda": (8192, 30)}  # side, and how many are timed


@dataclass(frozen=True)
class Canvases:
    """What one step shows the model: canvases [batch, L], the flat places [n] that are scored, their tokens [n]."""

    canvas: Tensor
    places: Tensor
    tokens: Tensor


class Clock(TrainerCallback):
    """Seconds a step, from the end of the warm-up to the end of the run."""

    def __init__(self, steps: int, device: str, warm_up: int) -> None:
        self.steps, self.device, self.warm_up = steps, device, warm_up
        self.started = self.seconds = 0.0

    def tick(self, done: int) -> None:
        """`done` steps are over. On a GPU the queue is waited for at either end alone."""
        if done == self.warm_up:
            self.started = _now(self.device)
        if done == self.warm_up + self.steps:
            self.seconds = (_now(self.device) - self.started) / self.steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tick(state.global_step)


class Bench:
    """A model in training mode and the runs that are timed. All of them train the same weights, one after the other."""

    def __init__(
        self,
        subject: Subject,
        batch_size: int,
        length: int,
        steps: int,
        folder: Path,
        *,
        warm_up: int = WARM_UP,
        compile: bool = False,
        checkpointing: bool | None = None,
    ) -> None:
        self.warm_up = warm_up
        self.subject, self.length, self.steps, self.folder = subject, length, steps, folder
        self.device = subject.model.device.type
        self.bf16 = decide("auto", subject.model.config.hidden_size, self.device).bf16
        lora = ADAPTED.get(subject.name)
        self.model: Any = fresh(subject.model) if subject.name == "builtin" else subject.model
        if lora is not None:
            self.model.name_or_path = subject.name  # peft wants the two names to agree
            self.model = new_adapter(self.model, lora, subject.name, SEED)
        self.params = TrainingParams(
            steps=warm_up + steps,
            batch_size=batch_size,
            gradient_accumulation=1,
            optimizer="adamw",
            learning_rate=3e-5,
            lr_schedule="constant",
            warmup_steps=0,
            weight_decay=0.1,
            max_grad_norm=1.0,
            precision="auto",
            gradient_checkpointing=lora is not None if checkpointing is None else checkpointing,
            compile=compile,
            eval_every=warm_up + steps + 1,  # never: nor are losses logged in between
            save_every=warm_up + steps + 1,
        )
        if self.params.gradient_checkpointing:
            unwrapped(self.model).activation_checkpointing_enable()  # for the floor too
        self.rows = synthetic_rows(subject, batch_size * self.params.steps, length)
        self.canvases = {objective: list(self._canvases(objective)) for objective in OBJECTIVES}

    @property
    def tokens(self) -> int:
        """Canvas tokens of a step."""
        return self.params.batch_size * self.length

    def scored(self, objective: str) -> float:
        """Scored positions of a timed step, on average."""
        return sum(len(step.places) for step in self.canvases[objective][self.warm_up :]) / self.steps

    def run(self, objective: str, implementation: str) -> float:
        """Seconds a step of one run."""
        clock = Clock(self.steps, self.device, self.warm_up)
        if implementation == "floor":
            self._floor(objective, clock)
        else:
            self.trainer(objective, clock).train()
        release(self.model)
        gc.collect()  # a trainer is in cycles, and holds its optimizer's state
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return clock.seconds

    def trainer(self, objective: str, *callbacks: TrainerCallback) -> OursTrainer:
        """The trainer that `fit` makes for the stage of this objective, without evaluation, checkpoints and a bar."""
        mask_id, eos_id = self.subject.mask_id, self.subject.eos_id
        rest: dict[str, Any] = {
            "model": self.model,
            "args": self._settings(),
            "callbacks": [StopAtNonFinite(), *callbacks],
            "mask_id": mask_id,
            "compile": self.params.compile,
        }
        made: OursTrainer
        if objective == "sft":
            rows = [{name: row[name] for name in ("prompt_ids", "answer_ids")} for row in self.rows]
            collator = SftCollator(self.length, eos_id, padding=1.0)
            made = DiffusionTrainer(data_collator=collator, train_dataset=Dataset.from_list(rows), **rest)
        else:
            made = R2ftTrainer(
                data_collator=R2ftCollator(self.length, eos_id, mask_id),
                train_dataset=Dataset.from_list(self.rows),
                objective=R2ftParams("python", 1.0, 1.0, 0.0, 0.1, self.params),
                log_prior=torch.zeros(self.subject.model.config.vocab_size),  # read in evaluation alone
                **rest,
            )
        made.remove_callback(PrinterCallback)
        return made

    def _settings(self) -> Any:
        settings = training_arguments(self.params, self.params.steps, SEED, self.folder, resumed=True)
        settings.eval_strategy, settings.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
        settings.disable_tqdm = True
        return settings

    def _canvases(self, objective: str) -> Iterator[Canvases]:
        """What the trainer's steps show the model. Rows and noise hang on the seed and the step's number alone."""
        trainer = self.trainer(objective)
        release(self.model)
        for step, inputs in enumerate(trainer.get_train_dataloader()):
            trainer.state.global_step = step
            seen = _Seen(self.subject.model.config.vocab_size)
            trainer.row_values(seen, inputs)
            places = seen.scored.flatten().nonzero()[:, 0]
            yield Canvases(seen.canvas, places, inputs["x0"].flatten()[places])

    def _floor(self, objective: str, clock: Clock) -> None:
        if self.params.compile:
            compile_layers(unwrapped(self.model))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(self._settings(), self.model)
        optimizer = optimizer_class(trained, weight_decay=self.params.weight_decay, **options)
        self.model.train()
        for done, step in enumerate(self.canvases[objective], start=1):
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
                loss = floor_loss(self.model, step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.tick(done)


def fresh(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights in a model's shape.

    Trained ones give subnormal gradients, with which a CPU computes up to three times slower, depending on the text.
    """
    torch.manual_seed(SEED)
    made = type(model)(model.config)
    nn.Module.to(made, model.device)
    return made


class _Seen(nn.Module):
    """In a model's place: keeps what it is shown, and takes all tokens for equally likely."""

    canvas: Tensor
    scored: Tensor

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab

    def forward(self, canvas: Tensor, scored: Tensor, attention: None = None) -> Tensor:
        self.canvas, self.scored = canvas, scored
        return torch.zeros(int(scored.sum()), self.vocab, device=canvas.device)


def floor_loss(model: Any, step: Canvases) -> Tensor:
    """Cross-entropy at the scored positions, the head nowhere else."""
    inner: Any = unwrapped(model)
    hidden = inner.get_decoder()(input_ids=step.canvas, use_cache=False).last_hidden_state
    return F.cross_entropy(inner.get_output_embeddings()(hidden.flatten(0, 1)[step.places]), step.tokens)


def model_flops(model: Any, tokens: int, length: int, scored: float) -> float:
    """FLOPs of a training step's matrix products, counted for the model and not for what a machine does twice.

    6 a weight and token where the weight is trained, 4 where it is frozen (no gradient of its own): the backbone's
    matrices at all `tokens`, the head at the `scored` positions. Attention: 12·layers·width·L a token.
    """
    inner: Any = unwrapped(model)
    table, projection = inner.get_input_embeddings().weight, inner.get_output_embeddings().weight
    matrices = [p for p in inner.get_decoder().parameters() if p.ndim == 2 and p is not table]
    weights = sum(_passes(matrix) * matrix.numel() for matrix in matrices)
    attention = 12 * inner.config.num_hidden_layers * inner.config.hidden_size * length
    return (weights + attention) * tokens + _passes(projection) * projection.numel() * scored


def _passes(weight: Tensor) -> int:
    return 6 if weight.requires_grad else 4


def synthetic_rows(subject: Subject, count: int, length: int) -> list[Row]:
    """Examples of random tokens with a negative each, in the columns that the r2ft stage reads."""
    rng = np.random.default_rng(SEED)
    ids = np.setdiff1d(np.arange(subject.model.config.vocab_size), [subject.mask_id, subject.eos_id])
    rule = NegativeRule(15, 30, 50, 1.0, False, 0.0, ids[:1], np.ones(1), subject.eos_id)  # params.yaml: negatives
    rows = []
    for example in range(count):
        question, answer = int(rng.integers(length // 8, length // 4 + 1)), int(rng.integers(length // 8, length // 2))
        x0 = np.full(length, subject.eos_id)
        x0[: question + answer] = rng.choice(ids, question + answer)
        negative = continuation(x0, question, answer, rule, rng)
        rows.append(
            {
                "prompt_ids": x0[:question].tolist(),
                "answer_ids": x0[question : question + answer].tolist(),
                "example": example,
                "context_mask": negative.context_mask.tolist(),
                "rejected_ids": negative.rejected_ids.tolist(),
                "rejected_mask": negative.rejected_mask.tolist(),
            }
        )
    return rows


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of large square matrix products."""
    side, count = MATMULS[device]
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    out = left @ right
    started = _now(device)
    for _ in range(count):
        torch.matmul(left, right, out=out)
    return 2 * side**3 * count / (_now(device) - started)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = Arguments(__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    for name in ("batch_size", "steps", "warm_up", "repeats", "threads"):
        require(getattr(arguments, name) >= 1, f"--{name.replace('_', '-')}", "at least 1", getattr(arguments, name))
    require(arguments.length >= SHORTEST, "--length", f"at least {SHORTEST}", arguments.length)
    torch.set_num_threads(arguments.threads)
    device = default_device()
    # What adapters leave alone stays in the type that LLaDA is published in; what is trained is float32.
    adapted = arguments.subject in ADAPTED
    frozen = adapted and decide("auto", SHAPES[arguments.subject].hidden, device).bf16
    subject = load_subject(arguments.subject, device, "bfloat16" if frozen else "float32")
    most = subject.model.config.max_position_embeddings
    require(arguments.length <= most, "--length", f"at most {most}, the positions of {subject.name}", arguments.length)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            subject,
            arguments.batch_size,
            arguments.length,
            arguments.steps,
            Path(folder),
            warm_up=arguments.warm_up,
            compile=arguments.compile,
            checkpointing=arguments.checkpointing,
        )
        dtype = torch.bfloat16 if bench.bf16 else torch.float32
        seconds, rates = interleaved(bench, arguments.repeats, lambda: matmul_rate(device, dtype))
    result = summary(arguments, bench, seconds, rates, dtype)
    write(arguments.out, result, to_markdown(result))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--subject", choices=MODELS, default="builtin", help="the shape; its weights are random")
    add("--batch-size", type=int, default=8, metavar="N", help="canvases a step (default 8)")
    add("--length", type=int, default=192, metavar="N", help="L, canvas length (default 192)")
    add("--steps", type=int, default=10, metavar="N", help="timed steps a run (default 10)")
    add(
        "--warm-up",
        type=int,
        default=WARM_UP,
        metavar="N",
        help=f"steps before them (default {WARM_UP}; more with --compile: new sizes may set it off again)",
    )
    add("--repeats", type=int, default=5, metavar="N", help="timed runs of each kind (default 5)")
    add("--compile", action="store_true", help="torch.compile of the layers, and of the trainers' loss")
    add(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        help="gradient checkpointing (default: for llada-8b)",
    )
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of torch on the CPU")
    add("--out", type=Path, required=True, help="where to write, without an ending: results/benchmarks/NAME")


def interleaved(
    bench: Bench, repeats: int, rate: Callable[[], float]
) -> tuple[dict[tuple[str, str], list[float]], list[float]]:
    """Seconds a step of every run, and the matmul rate, repeat by repeat."""
    seconds: dict[tuple[str, str], list[float]] = {run: [] for run in RUNS}
    rates = []
    for repeat in range(repeats):
        rates.append(rate())
        for run in RUNS:
            seconds[run].append(bench.run(*run))
        told = ", ".join(f"{' '.join(run)} {times[-1]:.3f} s" for run, times in seconds.items())
        report(f"repeat {repeat + 1}: {told}; matmul {rates[-1] / 1e9:.0f} GFLOP/s")
    return seconds, rates


def summary(
    arguments: argparse.Namespace,
    bench: Bench,
    seconds: dict[tuple[str, str], list[float]],
    rates: list[float],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What OUT.json holds."""
    flops = {name: model_flops(bench.model, bench.tokens, bench.length, bench.scored(name)) for name in OBJECTIVES}
    parameters = list(bench.model.parameters())
    lora = ADAPTED.get(arguments.subject)
    rows = []
    for (objective, implementation), times in seconds.items():
        each = spread(times)
        rows.append(
            {
                "objective": objective,
                "implementation": implementation,
                "batch_size": arguments.batch_size,
                "length": arguments.length,
                "scored_positions": bench.scored(objective),
                "seconds": times,
                "seconds_per_step": each,
                "tokens_per_second": bench.tokens / each["median"],
                "floor_share": ratios(seconds[objective, "floor"], times),
                "model_flops": flops[objective],
                "mfu": spread([flops[objective] / s / rate for s, rate in zip(times, rates, strict=True)]),
            }
        )
    return {
        "title": arguments.out.name,
        "command": command_line(),
        "hardware": hardware(bench.device),
        "settings": {
            **{name: getattr(arguments, name) for name in ("subject", "batch_size", "length", "steps", "repeats")},
            "warm_up": bench.warm_up,
            "seed": SEED,
            "device": bench.device,
            "dtype": str(dtype).removeprefix("torch."),
            "optimizer": bench.params.optimizer,
            "gradient_checkpointing": bench.params.gradient_checkpointing,
            "compile": bench.params.compile,
            "lora": None if lora is None else {"rank": lora.rank, "targets": list(lora.targets)},
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        },
        "matmul": {"side": MATMULS[bench.device][0], "flops_per_second": spread(rates)},
        "rows": rows,
        "r2ft_over_sft": {
            "seconds": ratios(seconds["r2ft", "trainer"], seconds["sft", "trainer"]),
            "floor_seconds": ratios(seconds["r2ft", "floor"], seconds["sft", "floor"]),
            "model_flops": flops["r2ft"] / flops["sft"],
        },
        "targets": TARGETS,
    }


if __name__ == "__main__":
    run_script(main)
