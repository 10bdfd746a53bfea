"""The ablation's answers: semi-AR and Conv with as many steps as tokens, without and with EOS-fill; a line a run."""

from dataclasses import asdict
from pathlib import Path

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import Params, tracked
from dlm.data.splits import read_split
from dlm.decoding.answers import decode_prompts, load_for
from dlm.decoding.budgets import chosen
from dlm.decoding.options import DecoderOptions
from dlm.files import write_jsonl
from dlm.pipeline import processes
from dlm.pipeline.progress import progress
from dlm.pipeline.records import log_inputs
from dlm.pipeline.tracking import stage_run


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder of build/models, e.g. sft or r2ft")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build = arguments.build
    logged = tracked(params, "ablation", "decode", "decoding")
    with stage_run("decode_ablation", cell=arguments.checkpoint, params=logged) as run:
        weights = build / "models" / arguments.checkpoint
        run.decodes(weights)
        log_inputs(run, "decode_ablation", build)
        lm = load_for(f"decode_ablation@{arguments.checkpoint}", weights, params.decode)
        settings = params.ablation
        prompts = read_split(build / "data", "eval", ["id", "prompt_ids"])[: settings.prompts]
        runs, lines = ablation_runs(params, build), []
        count = len(runs) * len(prompts) * len(settings.seeds)
        with progress(f"decode_ablation@{arguments.checkpoint}", count, "answers") as advance:
            for name, options in runs:
                answers, _ = decode_prompts(
                    lm,
                    prompts,
                    options,
                    seeds=settings.seeds,
                    steps=settings.steps,
                    gen_length=params.decode.gen_length,
                    batch_size=params.decode.batch_size,
                    advance=advance,
                )
                lines.append({"run": name, "options": asdict(options), "steps": settings.steps, "answers": answers})
        if not processes.is_main():
            return
        out = build / "ablation" / f"{arguments.checkpoint}.jsonl"
        write_jsonl(out, lines)
        run.outputs([out])


def ablation_runs(params: Params, build: Path) -> list[tuple[str, DecoderOptions]]:
    """(name, options) of every run, with the settings chosen for the nearest budget: Conv with the cache, without and
    with EOS-fill, and over low_confidence; semi-AR."""
    conv, semi_ar = (chosen(build, params, name, params.ablation.steps) for name in ("conv", "semi_ar"))
    cached = {**conv, "cache": True}
    return [
        ("plain", params.decoder("conv", **{**cached, "eos_fill": False})),
        ("eos_fill", params.decoder("conv", **{**cached, "eos_fill": True})),
        ("low_confidence", params.decoder("conv", **{**cached, "eos_fill": True, "rule": "low_confidence"})),
        ("semi_ar", params.decoder("semi_ar", **semi_ar)),
    ]


if __name__ == "__main__":
    run_script(main)
