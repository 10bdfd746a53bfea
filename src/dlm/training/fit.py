"""One training run: arguments for the Trainer, checkpoints outside the outputs, resume, and the loss curve."""

import copy
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerState

from dlm.config.training import TrainingParams
from dlm.data.template import Template
from dlm.errors import UserError
from dlm.files import atomic_directory, write_json
from dlm.models.adapters import is_wrapped, merged, restore, save_adapter, unwrapped
from dlm.models.backbone import save_checkpoint
from dlm.models.precision import decide
from dlm.pipeline import processes
from dlm.pipeline.progress import Advance, progress, tell
from dlm.training.optimizer import MuonAdamW, muon_groups
from dlm.training.resume import last_whole_checkpoint, resume_key, step_of
from dlm.training.trainer import release

logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
M = TypeVar("M", bound=nn.Module)
CHECKPOINTS = Path(".cache/training")
# Its name in transformers, and the one in the oldest version that a run was seen with (5.17, without our lock file).
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)
CURVE_NOISE = ("runtime", "per_second", "total_flos", "epoch")


def fit(
    name: str,
    make_trainer: Callable[..., Trainer],
    model: M,
    train: list[dict[str, Any]],
    valid: list[dict[str, Any]],
    params: TrainingParams,
    seed: int,
    *,
    steps: int | None = None,
    visit: Callable[[int, M], None] | None = None,
) -> tuple[M, list[dict[str, float]]]:
    """Train `model`; return it with its curve, a list of {step, loss, learning_rate, eval_...}.

    Checkpoints go to .cache/training/<name>-<hash>, keyed by everything the run depends on, this code too: an
    interrupted run goes on from the last whole one, and a finished run clears them. What `precision: auto` comes to is
    told, and part of the key: on another processor a run begins anew unless `precision` names what it had.

    With `params.minutes` training ends after that time if `steps` is not reached before it, and the learning rate
    follows whichever of the two is nearer its end; such a run is not the same twice, and one that goes on after an
    interruption has its whole time again.

    A model that score entropy trained says nothing of its scores any more (`models.interface.score_offset`).

    Several processes share the micro-batches of each step; the global batch stays what `params` says. All of them call
    this, and all of them get the trained model (under FSDP a whole one, which is not the model given).

    Args:
        make_trainer: called as make_trainer(model=, args=, train_dataset=, eval_dataset=, callbacks=,
            optimizer_cls_and_kwargs=, compile=); a functools.partial, whose arguments then belong to the key.
        steps: optimizer steps, `params.steps` unless given.
        visit: called with (step, the model as it was then) for every `save_every` steps and the last, after training
            (one process only).

    Raises:
        UserError: fewer examples than one global batch, micro-batches that the processes cannot share evenly, or a
            loss that is not finite (the last checkpoint is kept).
    """
    steps = steps or params.steps
    vars(unwrapped(model).config).pop("score_offset", None)  # of what it was trained by before
    global_batch = params.batch_size * params.gradient_accumulation
    if len(train) < global_batch:
        raise UserError(
            f"{name}: {len(train)} training examples do not fill one global batch of "
            f"{params.batch_size} x {params.gradient_accumulation}; lower batch_size"
        )
    if params.gradient_accumulation % processes.count():
        raise UserError(
            f"{name}: gradient_accumulation must be a multiple of the {processes.count()} processes that share it, "
            f"got {params.gradient_accumulation}"
        )
    if params.minutes is not None and processes.count() > 1:
        raise UserError(f"{name}: minutes must be null for several processes, whose clocks differ; give steps")
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    whole = copy.deepcopy(model) if sharded else model
    precision = decide(
        params.precision, unwrapped(model).config.hidden_size, "cuda" if torch.cuda.is_available() else "cpu"
    )
    if precision.why:
        tell(f"{name}: {precision}")
    as_run = replace(params, precision="bf16" if precision.bf16 else "fp32")
    key = resume_key(make_trainer, model, [train, valid], as_run, steps, seed)
    folder = CHECKPOINTS / f"{name}-{key[:16]}"
    checkpoint = processes.gather(last_whole_checkpoint(folder) if processes.is_main() else None)[0]
    trainer = make_trainer(
        model=model,
        args=training_arguments(as_run, steps, seed, folder, resumed=checkpoint is not None, keep=None if visit else 2),
        train_dataset=train,
        eval_dataset=[{**row, "place": place} for place, row in enumerate(valid)],
        callbacks=[
            StopAtNonFinite(),
            *([] if params.minutes is None else [WithinMinutes(params.minutes, save=sharded or visit is not None)]),
        ],
        optimizer_cls_and_kwargs=_optimizer(model, params),
        compile=params.compile,
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log as a dictionary
    if checkpoint is not None and Path(checkpoint).name == f"checkpoint-{steps}":
        # The Trainer would make one more step from a checkpoint of the last one.
        restore(model, Path(checkpoint))
        trainer.state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
    else:
        with progress(name, steps, "steps") as advance:
            trainer.add_callback(TellProgress(advance))
            trainer.train(resume_from_checkpoint=checkpoint)
    last = trainer.state.global_step
    if not any(entry.get("step") == last and "eval_loss" in entry for entry in trainer.state.log_history):
        trainer.evaluate()
    if sharded:
        restore(whole, folder / f"checkpoint-{last}")
    release(whole)
    if visit is not None:
        for path in sorted(folder.glob("checkpoint-*"), key=step_of):
            restore(whole, path)
            visit(step_of(path), whole)
    processes.gather(None)  # before the checkpoints go, everybody has read them
    if processes.is_main():
        shutil.rmtree(folder, ignore_errors=True)
    return whole, curve(trainer.state.log_history)


def training_arguments(
    params: TrainingParams, steps: int, seed: int, folder: Path, *, resumed: bool, keep: int | None = 2
) -> TrainingArguments:
    checkpointing: dict[str, Any] = {CHECKPOINTING: params.gradient_checkpointing}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        gradient_accumulation_steps=params.gradient_accumulation // processes.count(),
        learning_rate=params.learning_rate,
        # transformers' own `constant` has no warm-up.
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(params.lr_schedule, params.lr_schedule),
        warmup_steps=params.warmup_steps,
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        bf16=params.precision == "bf16",
        eval_strategy="steps",
        eval_steps=params.eval_every,
        eval_on_start=not resumed,
        # A logged loss is the mean since the last log: each checkpoint must fall on one, or a resumed curve differs.
        logging_steps=math.gcd(params.eval_every, params.save_every),
        logging_nan_inf_filter=False,
        save_steps=params.save_every,
        save_total_limit=keep,
        seed=seed,
        **checkpointing,
        use_cpu=not torch.cuda.is_available(),
        dataloader_drop_last=True,
        accelerator_config={"non_blocking": True},  # batches come from pinned memory: no wait for the step before
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    if processes.count() == 1 and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else the Trainer multiplies the batch by the GPUs it sees; a launcher shares it
    return arguments


def _optimizer(model: nn.Module, params: TrainingParams) -> Any:
    """What the Trainer is told of the optimizer: None for its own, AdamW."""
    if params.optimizer == "adamw":
        return None
    return MuonAdamW, {"params": muon_groups(model, params.weight_decay), "lr": params.learning_rate}


def save_trained(
    out: Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    curve: list[dict[str, float]],
    template: Template | None = None,
    *,
    merge: bool = True,
) -> None:
    """A whole checkpoint folder or none: weights, config, tokenizer, curve, and the prompt template if any.

    Adapters are merged into the weights, or with `merge` false saved alone. One process writes.
    """
    if not processes.is_main():
        return
    with atomic_directory(out) as folder:
        if is_wrapped(model) and not merge:
            save_adapter(model, folder)
            tokenizer.save_pretrained(folder)
        else:
            save_checkpoint(folder, merged(model), tokenizer)
        if template is not None:
            template.save(folder)
        write_curve(folder, curve)


def write_curve(folder: Path, curve: list[dict[str, float]]) -> None:
    """curve.json, and what it has of held-out data as held_out.json: DVC plots rows that all have the same keys."""
    write_json(folder / "curve.json", curve)
    evaluations = [{key: row[key] for key in row if key == "step" or key.startswith("eval_")} for row in curve]
    write_json(folder / "held_out.json", [row for row in evaluations if len(row) > 1])


class TellProgress(TrainerCallback):
    """Steps and losses for people, in place of transformers' bars and dictionaries."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self.losses: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step, earlier=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.losses |= {name: value for name, value in (logs or {}).items() if name in ("loss", "eval_loss")}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        names = {"loss": "loss", "eval_loss": "held out"}
        self.advance(1, ", ".join(f"{names[name]} {value:.3f}" for name, value in self.losses.items()))


class StopAtNonFinite(TrainerCallback):
    """A loss of NaN or infinity ends the run with the step; what was saved before it stays."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise UserError(
                f"training: the loss is {loss} at step {state.global_step}; the checkpoints before it are in "
                f"{args.output_dir}; lower learning_rate or use precision: fp32"
            )


class WithinMinutes(TrainerCallback):
    """Ends training after some time, its learning rate's schedule run through: after the warm-up, whose steps stay,
    the schedule is moved on to where the time is.

    Args:
        save: whether the last step leaves a checkpoint.
    """

    def __init__(self, minutes: float, *, save: bool) -> None:
        self.seconds, self.save = 60 * minutes, save

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end = time.monotonic() + self.seconds
        self.warm: float | None = None  # when the warm-up was over

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        now = time.monotonic()
        if now >= self.end:
            control.should_training_stop, control.should_save = True, control.should_save or self.save
        if state.global_step < args.warmup_steps:
            return
        self.warm = self.warm or now
        gone = (now - self.warm) / max(self.end - self.warm, 1e-9)
        place = args.warmup_steps + int(min(gone, 1) * (state.max_steps - args.warmup_steps))
        lr_scheduler.last_epoch = max(lr_scheduler.last_epoch, place)


def curve(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Training and evaluation entries merged by step, without anything that differs from run to run (timings)."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log_history:
        values = {k: v for k, v in entry.items() if not any(noise in k for noise in CURVE_NOISE)}
        if "loss" in values or "eval_loss" in values:
            rows.setdefault(int(values["step"]), {}).update(values)
    # A resumed run reads its earlier entries back in another order of keys.
    return [dict(sorted(rows[step].items())) for step in sorted(rows)]
