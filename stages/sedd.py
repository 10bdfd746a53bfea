"""SEDD: SFT by score entropy, decoded by its own sampler, beside the SFT-only model; under results/sedd (sweeps).

It starts from the base that the NELBO trained, on the same records and for as long as the SFT-only model.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.analysis.sedd import NAMES, to_markdown
from dlm.config.params import Params, tracked
from dlm.data.splits import read_split
from dlm.decoding.answers import decode_budgets, load_for
from dlm.evaluation.examine import Examiner
from dlm.files import write_jsonl, write_table
from dlm.models.adapters import unwrapped
from dlm.pipeline import processes
from dlm.pipeline.progress import progress, tell
from dlm.pipeline.records import log_checkpoint
from dlm.pipeline.tracking import stage_run
from dlm.training.objectives import ScoreEntropyTrainer
from dlm.training.scores import normalising_offset
from dlm.training.sft import FineTuning

Rows = list[dict[str, Any]]
NAME = "sedd"


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    build = arguments.build
    weights, kept = build / "families/sedd", build / "families/sedd-answers.jsonl"
    with stage_run(NAME, params=tracked(params, "seed", "sft", "sedd", "decode")) as run:
        curve = train(params, build, weights)
        log_checkpoint(run, weights, curve)
        processes.gather(None)  # the first process has saved what all of them decode
        answers = decode(params, build, {"sft": build / "models/sft", NAME: weights})
        examiner = Examiner.load(build, params)
        rows = [row for cell, found in answers.items() for row in examiner.results(*cell, found, kept)]
        if not processes.is_main():
            return
        write_jsonl(
            kept,
            [
                {"checkpoint": checkpoint, "decoder": decoder, **answer}
                for (checkpoint, decoder), found in answers.items()
                for answer in found
            ],
        )
        out = Path(params.report.results) / NAME
        markdown = to_markdown(rows, curve, params.decode.judged_steps)
        write_table(out, {"rows": rows, "training": curve}, markdown)
        run.table(NAME, rows)
        run.outputs([weights, kept, out])
    print(markdown, end="")


def train(params: Params, build: Path, out: Path) -> Rows:
    """The model, whole even where SFT has adapters, and its curve."""
    tuning, training = FineTuning.load(build, params), params.sft.training
    mask_id = tuning.settings["mask_id"]
    offset = normalising_offset(tuning.model, tuning.train, tuning.collator, mask_id, params.seed, training.batch_size)
    tell(f"sedd: the logits of the base exceed log-probabilities by {offset:.3f} on average")
    objective = functools.partial(ScoreEntropyTrainer, offset=offset, **tuning.settings)
    steps = params.sedd.steps or training.steps + params.r2ft.training.steps
    model, curve = tuning.fit(NAME, objective, steps)
    unwrapped(model).config.score_offset = offset
    tuning.save(out, model, curve)
    return curve


def decode(params: Params, build: Path, models: Mapping[str, Path]) -> dict[tuple[str, str], Rows]:
    """The answers to the evaluation prompts by model and decoder, at every budget."""
    settings, prompts = params.decode, read_split(build / "data", "eval", ["id", "prompt_ids"])
    loaded = {name: load_for(f"sedd@{name}", weights, settings) for name, weights in models.items()}
    count = len(NAMES) * len(settings.steps) * len(prompts) * len(settings.seeds)
    with progress(NAME, count, "answers") as advance:
        return {
            (checkpoint, decoder): decode_budgets(
                loaded[checkpoint], prompts, params.sedd.decoder(decoder), settings, advance
            )
            for checkpoint, decoder in NAMES
        }


if __name__ == "__main__":
    run_script(main)
