"""Ways to adapt one autoregressive model, side by side on equal tokens: what is learnt of held-out text.

    python benchmarks/adaptation.py --model data/input/smollm2-135m-instruct \
        --text data/input/simplewiki_clean.txt.xz --out results/adaptation/smollm2-135m-cpu

Shifted logits or logits in place, full attention at once or after annealing over half of the steps; the same rows in
the same order, the same noise. The figure is the NELBO a token on held-out rows, nats (paper Eq. 3).
"""

import functools
import time
from pathlib import Path
from typing import Any

from common import Arguments, command_line, default_device, grid, write

from dlm.pipeline.start import run_script
from dlm.config.schema import require
from dlm.config.training import TrainingParams
from dlm.data.text import pack, read_documents, split_documents
from dlm.models.adapt import adapt
from dlm.models.backbone import load_checkpoint
from dlm.pipeline.hardware import hardware
from dlm.training.collators import PackedCollator
from dlm.training.fit import fit
from dlm.training.objectives import DiffusionTrainer

SEED = 42
HELD_OUT = 0.02  # share of the documents


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--model", required=True, help="autoregressive: a folder, a GGUF file or a name on the hub")
    parser.add_argument("--text", type=Path, required=True, help="documents separated by blank lines")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens a row (default: 128)")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--held-out-rows", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    require(arguments.steps >= 4, "--steps", "at least 4", arguments.steps)
    params = training(arguments)
    _, tokenizer = load_checkpoint(arguments.model, causal=True)
    documents, held_out = split_documents(read_documents(arguments.text), HELD_OUT)
    train = pack(tokenizer, documents, arguments.length, arguments.steps * arguments.batch_size)
    valid = pack(tokenizer, held_out, arguments.length, arguments.held_out_rows)
    variants = [(1, 0), (1, arguments.steps // 2), (0, 0)]
    rows = [variant(arguments.model, train, valid, params, shift, anneal) for shift, anneal in variants]
    tokens = arguments.steps * arguments.batch_size * arguments.length
    facts = {"command": command_line(), "hardware": hardware(default_device()), "tokens": tokens, "rows": rows}
    write(arguments.out, facts, table(rows, arguments.steps))


def training(arguments: Any) -> TrainingParams:
    return TrainingParams(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        gradient_accumulation=1,
        optimizer="adamw",
        learning_rate=arguments.learning_rate,
        lr_schedule="constant",
        warmup_steps=arguments.steps // 4,
        weight_decay=0.1,
        max_grad_norm=1.0,
        precision="bf16",
        gradient_checkpointing=False,
        compile=False,
        eval_every=arguments.steps // 4,
        save_every=arguments.steps,
    )


def variant(
    place: str, train: list[Any], valid: list[Any], params: TrainingParams, shift: int, anneal_steps: int
) -> dict[str, Any]:
    """One way: its curve of held-out losses."""
    model, tokenizer = load_checkpoint(place, causal=True)
    adapt(model, tokenizer, logits_shift=shift)
    make = functools.partial(
        DiffusionTrainer, mask_id=tokenizer.mask_token_id, data_collator=PackedCollator(), anneal_steps=anneal_steps
    )
    given, held_out = ([{"ids": ids} for ids in rows] for rows in (train, valid))
    started = time.perf_counter()
    _, curve = fit(f"adaptation-{shift}-{anneal_steps}", make, model, given, held_out, params, SEED)
    losses = {str(row["step"]): row["eval_loss"] for row in curve if "eval_loss" in row}
    return {
        "logits_shift": shift,
        "anneal_steps": anneal_steps,
        "held_out": losses,
        "seconds": time.perf_counter() - started,
    }


def table(rows: list[dict[str, Any]], steps: int) -> str:
    places = list(rows[0]["held_out"])
    lines = [["logits", "attention", *(f"step {place}" for place in places)]]
    for row in rows:
        logits = "shifted, as before" if row["logits_shift"] else "in place"
        attention = f"full after {row['anneal_steps']} of {steps} steps" if row["anneal_steps"] else "full at once"
        lines.append([logits, attention, *(f"{row['held_out'][place]:.2f}" for place in places)])
    return grid(lines, left=2) + "\n"


if __name__ == "__main__":
    run_script(main)
