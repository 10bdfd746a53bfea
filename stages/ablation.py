"""Evidence for claims 1, 3, 4 and 5: block and kernel size at few steps, more steps, and as many steps as tokens."""

from typing import Any

from dlm import cli, processes
from dlm.api import DiffusionLM
from dlm.decoding.options import DecoderOptions
from dlm.errors import run_script
from dlm.evaluation.cell import load_corpus
from dlm.evaluation.setting import measure
from dlm.files import write_json
from dlm.params import Params, tracked
from dlm.tracking import stage_run


def main() -> None:
    parser = cli.stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder of build/models, e.g. sft or r2ft")
    arguments = parser.parse_args()
    params = cli.stage_params(arguments)
    build = arguments.build
    with stage_run(
        "ablation", cell=arguments.checkpoint, params=tracked(params, "ablation", "decode", "decoding")
    ) as run:
        corpus = load_corpus(build, params.data, params.evaluate, params.decode.batch_size)
        weights = build / "models" / arguments.checkpoint
        lm = DiffusionLM.load(weights, processes.device(), params.decode.precision, params.decode.compile)
        rows = []
        for variant, options, prompts, steps in variants(params):
            found = measure(lm, corpus, options, params, prompts=prompts, seeds=params.ablation.seeds, steps=steps)
            # semi-AR has an option `variant` of its own
            rows.append({**found, "checkpoint": arguments.checkpoint, "variant": variant})
        if not processes.is_main():
            return
        out = build / "ablation" / f"{arguments.checkpoint}.json"
        write_json(out, rows)
        run.table("ablation", rows)
        run.outputs([out])


def variants(params: Params) -> list[tuple[str, DecoderOptions, int, int]]:
    """(name, options, prompts, steps) of every run: semi-AR over blocks and Conv over kernels at decode.steps; top_k
    and Conv at more_steps; semi-AR at long_steps, and Conv with the cache: without and with EOS-fill, and over
    low_confidence."""
    settings, short = params.ablation, params.decode.steps
    runs: list[tuple[str, DecoderOptions, int, int]] = []

    def add(variant: str, decoder: str, prompts: int, steps: int, **changes: Any) -> None:
        options = params.decoder(decoder, **changes)
        options.check_lengths(params.decode.gen_length, steps, f"params.yaml: ablation ({decoder})")
        runs.append((variant, options, prompts, steps))

    for block_length in settings.blocks:
        add("block", "semi_ar", settings.prompts, short, block_length=block_length)
    for kernel_size in settings.kernels:
        add("kernel", "conv", settings.prompts, short, kernel_size=kernel_size)
    for steps in settings.more_steps:
        add("steps top_k", "top_k", settings.prompts, steps)
        for kernel_size in sorted({params.decoder("conv").kernel_size or 1, *settings.kernels[-1:]}):
            add("steps conv", "conv", settings.prompts, steps, kernel_size=kernel_size)
    for variant, changes in (
        ("long", {"eos_fill": False}),
        ("long eos_fill", {"eos_fill": True}),
        ("long low_confidence", {"eos_fill": True, "rule": "low_confidence"}),
    ):
        add(variant, "conv", settings.long_prompts, settings.long_steps, cache=True, **changes)
    add("long semi_ar", "semi_ar", settings.long_prompts, settings.long_steps)
    return runs


if __name__ == "__main__":
    run_script(main)
