"""Decoder settings one by one, for the figures: steps, block and kernel sizes at several steps, gains, candidates."""

from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import Params, tracked
from dlm.decoding.answers import load_for
from dlm.decoding.budgets import chosen
from dlm.decoding.options import DecoderOptions
from dlm.evaluation.cell import load_corpus
from dlm.evaluation.judges.choice import make_judges
from dlm.evaluation.preferences import baseline_of
from dlm.evaluation.setting import measure
from dlm.files import read_jsonl, write_json
from dlm.pipeline import processes
from dlm.pipeline.progress import progress
from dlm.pipeline.tracking import stage_run

Setting = tuple[dict[str, Any], DecoderOptions, int]


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder of build/models, e.g. sft or r2ft")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build, checkpoint, sweeps = arguments.build, arguments.checkpoint, params.sweeps
    runs = settings(params, build)
    with stage_run("settings", cell=checkpoint, params=tracked(params, "sweeps", "decode", "decoding")) as run:
        corpus = load_corpus(build, params.data, params.evaluate)
        judge, _ = make_judges(params.evaluate.judge, corpus.judge, params.seed)
        rivals = read_jsonl(build / "answers" / f"{sweeps.baseline}.jsonl")
        baseline = baseline_of([rival for rival in rivals if rival["steps"] == params.decode.steps[0]])
        lm = load_for(f"settings@{checkpoint}", build / "models" / checkpoint, params.decode)
        rows, count = [], len(runs) * sweeps.prompts * len(sweeps.seeds)
        with progress(f"settings@{checkpoint}", count, "answers") as advance:
            for head, options, steps in runs:
                summary = measure(
                    lm,
                    corpus,
                    options,
                    params,
                    prompts=sweeps.prompts,
                    seeds=sweeps.seeds,
                    steps=steps,
                    rival=None if judge is None else (judge, baseline),
                    advance=advance,
                )
                rows.append({**summary, "checkpoint": checkpoint, **head})
        if not processes.is_main():
            return
        out = build / "sweeps" / f"settings-{checkpoint}.json"
        write_json(out, rows)
        run.table("settings", rows)
        run.outputs([out])


def settings(params: Params, build: Path) -> list[Setting]:
    """({sweep, decoder, x}, options, steps) of every run; x is what its sweep goes through.

    Over the steps each decoder has the settings chosen for the nearest budget, elsewhere the first candidates.
    """
    sweeps, short = params.sweeps, params.decode.steps[0]
    runs: list[Setting] = []

    def add(sweep: str, decoder: str, x: int | str, steps: int, label: str = "", **changes: Any) -> None:
        head = {"sweep": sweep, "decoder": label or decoder, "x": x}
        options = params.decoder(decoder, **changes)
        options.check_lengths(params.decode.gen_length, steps, f"params.yaml: sweeps ({decoder})")
        runs.append((head, options, steps))

    for steps in sweeps.steps:
        for decoder in params.report.decoders:
            add("steps", decoder, steps, steps, **chosen(build, params, decoder, steps))
        add("steps", "conv", steps, steps, "conv over low_confidence", rule="low_confidence")
    for steps in sweeps.size_steps:
        for length in sweeps.blocks:
            add("blocks", "semi_ar", length, steps, block_length=length)
        for size in sweeps.kernels:
            add("kernels", "conv", size, steps, kernel_size=size)
    for gain in sweeps.gains:
        add("gains", "conv", gain, short, gain=gain)
    for k in sweeps.top_k:
        for decoder in ("top_k", "conv"):
            add("top_k", decoder, k, short, top_k=k)
    return runs


if __name__ == "__main__":
    run_script(main)
