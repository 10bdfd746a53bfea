"""SEDD: SFT by score entropy, decoded by its own sampler, beside the SFT-only model; under results/sedd (sweeps).

It starts from the base that the NELBO trained, on the same records and for as long as the SFT-only model.
"""

import functools
from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.analysis.sedd import NAMES, to_markdown
from dlm.config.params import Params, tracked
from dlm.data.splits import read_split
from dlm.data.template import Template
from dlm.decoding.answers import load_for
from dlm.evaluation.cell import Corpus, load_corpus, summarise
from dlm.evaluation.judges.choice import make_judges
from dlm.evaluation.preferences import add_preferences, baseline_of, places, read_difficulty
from dlm.evaluation.setting import answer
from dlm.files import read_jsonl, write_jsonl, write_table
from dlm.models.adapters import unwrapped
from dlm.models.backbone import load_trainable
from dlm.models.interface import pad_cycle
from dlm.pipeline import processes
from dlm.pipeline.progress import progress, tell
from dlm.pipeline.records import log_checkpoint
from dlm.pipeline.tracking import stage_run
from dlm.training.collators import SftCollator
from dlm.training.fit import fit, save_trained
from dlm.training.objectives import ScoreEntropyTrainer
from dlm.training.scores import normalising_offset

Rows = list[dict[str, Any]]
COLUMNS = ["prompt_ids", "answer_ids"]


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    build = arguments.build
    with stage_run("sedd", params=tracked(params, "seed", "sft", "sedd", "decode")) as run:
        curve = train(params, build)
        log_checkpoint(run, build / "families/sedd", curve)
        processes.gather(None)  # the first process has saved what all of them decode
        rows, answers = compare(params, build, load_corpus(build, params.data, params.evaluate))
        if not processes.is_main():
            return
        write_jsonl(build / "families/sedd-answers.jsonl", answers)
        out = Path(params.report.results) / "sedd"
        markdown = to_markdown(rows, curve, params.decode.judged_steps)
        write_table(out, {"rows": rows, "training": curve}, markdown)
        run.table("sedd", rows)
        run.outputs([build / "families/sedd", build / "families/sedd-answers.jsonl", out])
    print(markdown, end="")


def train(params: Params, build: Path) -> Rows:
    """The model of build/families/sedd, whole even where SFT has adapters, and its curve."""
    model, tokenizer = load_trainable(build / "models/base", params.sft.lora, params.seed)
    train_rows, valid_rows = (read_split(build / "data/training", split, COLUMNS) for split in ("train", "valid"))
    weight = params.sft.padding_weight if params.sft.supervise_padding else 0.0
    cycle = pad_cycle(unwrapped(model))
    collator = SftCollator(params.data.canvas_length, tokenizer.eos_token_id, padding=weight, cycle=cycle)
    mask_id, training = tokenizer.mask_token_id, params.sft.training
    offset = normalising_offset(model, train_rows, collator, mask_id, params.seed, training.batch_size)
    tell(f"sedd: the logits of the base exceed log-probabilities by {offset:.3f} on average")
    model, curve = fit(
        "sedd",
        functools.partial(
            ScoreEntropyTrainer,
            mask_id=mask_id,
            offset=offset,
            data_collator=collator,
            crop_share=params.sft.crop_share,
            average=params.sft.loss_average,
        ),
        model,
        train_rows,
        valid_rows,
        training,
        params.seed,
        steps=params.sedd.steps or training.steps + params.r2ft.training.steps,
    )
    unwrapped(model).config.score_offset = offset
    template = Template(params.template.prompt, params.template.prompt_with_input)
    save_trained(build / "families/sedd", model, tokenizer, curve, template)
    return curve


def compare(params: Params, build: Path, corpus: Corpus) -> tuple[Rows, Rows]:
    """A row for each model, decoder and number of steps, and the answers."""
    judge, _ = make_judges(params.evaluate.judge, corpus.judge, params.seed)
    baseline = {} if judge is None else baseline_of(read_jsonl(build / "models/reference/answers.jsonl"))
    table = params.evaluate.judge.difficulty
    difficulty = None if judge is None or table is None else read_difficulty(table, places(corpus.examples))
    models = {"sft": build / "models/sft", "sedd": build / "families/sedd"}
    loaded = {name: load_for(f"sedd@{name}", weights, params.decode) for name, weights in models.items()}
    rows: Rows = []
    written: Rows = []
    settings, prompts = params.decode, len(corpus.examples)
    count = len(NAMES) * len(settings.steps) * prompts * len(settings.seeds)
    with progress("sedd", count, "answers") as advance:
        for checkpoint, decoder in NAMES:
            options = params.sedd.decoder(decoder)
            for steps in settings.steps:
                answers, scored = answer(
                    loaded[checkpoint],
                    corpus,
                    options,
                    params,
                    prompts=prompts,
                    seeds=settings.seeds,
                    steps=steps,
                    advance=advance,
                )
                if judge is not None:
                    add_preferences(scored, answers, corpus.examples, baseline, judge)
                head = {"checkpoint": checkpoint, "decoder": decoder, "steps": steps}
                rows.append({**head, **summarise(scored, params.evaluate.bootstrap_samples, difficulty)})
                written += [{**head, **row} for row in answers]
    return rows, written


if __name__ == "__main__":
    run_script(main)
