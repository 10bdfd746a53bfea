"""One cell of the matrix checkpoint x decoder: answers to the evaluation prompts at every budget, as JSON lines.

Wall-clock figures go to build/speed, apart from the answers: they differ from run to run.
"""

import shutil
from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.splits import read_split
from dlm.decoding.answers import decode_prompts, load_for
from dlm.decoding.budgets import chosen
from dlm.files import content_hash, write_json, write_jsonl
from dlm.pipeline import processes
from dlm.pipeline.progress import progress
from dlm.pipeline.records import cell_params, log_inputs, log_samples
from dlm.pipeline.tracking import stage_run


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder of build/models, e.g. sft or r2ft")
    parser.add_argument("--decoder", required=True, help="a block of params.yaml: decoding.<name>")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    cell = f"{arguments.checkpoint}-{arguments.decoder}"
    out, parts = arguments.build / "answers" / f"{cell}.jsonl", Path(".cache/decoding") / cell
    settings, block = params.decode, params.block(arguments.decoder)
    described = cell_params(arguments.build, arguments.checkpoint, arguments.decoder, block, settings.steps)
    with stage_run("decode", cell, {**tracked(params, "decode"), **described}) as run:
        weights = arguments.build / "models" / arguments.checkpoint
        run.decodes(weights)
        log_inputs(run, "decode", arguments.build)
        lm = load_for(f"decode@{cell}", weights, settings)
        rows = read_split(arguments.build / "data", "eval", ["id", "prompt", "prompt_ids"])
        fingerprint = content_hash(weights)
        answers: list[dict[str, Any]] = []
        speeds = []
        count = len(rows) * len(settings.seeds) * len(settings.steps)
        with progress(f"decode@{cell}", count, "answers") as advance:
            for steps in settings.steps:
                budget_answers, seconds = decode_prompts(
                    lm,
                    rows,
                    params.decoder(arguments.decoder, **chosen(arguments.build, params, arguments.decoder, steps)),
                    seeds=settings.seeds,
                    steps=steps,
                    gen_length=settings.gen_length,
                    batch_size=settings.batch_size,
                    parts=parts,
                    fingerprint=fingerprint,
                    advance=advance,
                )
                answers += [{**answer, "steps": steps} for answer in budget_answers]
                speed = {
                    "steps": steps,
                    "seconds": seconds,
                    "answers": len(budget_answers),
                    "nfe": sum(a["nfe"] for a in budget_answers) / len(budget_answers),
                    "content_tokens": sum(len(a["tokens"]) for a in budget_answers),
                }
                speeds.append(speed)
                run.metrics({name: speed[name] for name in ("seconds", "nfe", "content_tokens")}, step=steps)
        if not processes.is_main():
            return
        write_jsonl(out, answers)
        write_json(arguments.build / "speed" / f"{cell}.json", speeds)
        log_samples(run, answers, {row["id"]: row["prompt"] for row in rows}, arguments.checkpoint, arguments.decoder)
        run.outputs([out])
    shutil.rmtree(parts, ignore_errors=True)


if __name__ == "__main__":
    run_script(main)
