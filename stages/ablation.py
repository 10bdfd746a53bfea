"""Evidence for claims 4 and 5: semi-AR and Conv with as many steps as tokens, without and with EOS-fill."""

from pathlib import Path

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.decoders import DecoderOptions
from dlm.config.params import Params, tracked
from dlm.decoding.budgets import chosen
from dlm.decoding.lm import DiffusionLM
from dlm.evaluation.cell import load_corpus
from dlm.evaluation.setting import measure
from dlm.files import write_json
from dlm.pipeline import processes
from dlm.pipeline.progress import progress, tell
from dlm.pipeline.records import log_ablation, log_inputs
from dlm.pipeline.tracking import stage_run


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder of build/models, e.g. sft or r2ft")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build = arguments.build
    with stage_run(
        "ablation", cell=arguments.checkpoint, params=tracked(params, "ablation", "decode", "decoding")
    ) as run:
        corpus = load_corpus(build, params.data, params.evaluate)
        weights = build / "models" / arguments.checkpoint
        run.decodes(weights)
        log_inputs(run, "ablation", build)
        lm = DiffusionLM.load(weights, processes.device(), params.decode.precision, params.decode.compile)
        if lm.precision.why:
            tell(f"ablation@{arguments.checkpoint}: {lm.precision}")
        rows, settings = [], params.ablation
        runs = ablation_runs(params, build)
        count = len(runs) * settings.prompts * len(settings.seeds)
        with progress(f"ablation@{arguments.checkpoint}", count, "answers") as advance:
            for run_name, options in runs:
                summary = measure(
                    lm,
                    corpus,
                    options,
                    params,
                    prompts=settings.prompts,
                    seeds=settings.seeds,
                    steps=settings.steps,
                    advance=advance,
                )
                # After the summary, whose `variant` is the option of semi-AR.
                rows.append({**summary, "checkpoint": arguments.checkpoint, "variant": run_name})
        if not processes.is_main():
            return
        out = build / "ablation" / f"{arguments.checkpoint}.json"
        write_json(out, rows)
        log_ablation(run, rows)
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
