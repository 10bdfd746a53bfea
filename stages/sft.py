"""Masked-diffusion SFT of the base, in one of its two padding settings (docs/method.md §2).

`sft` is the SFT-only model: loss on every padding EOS (sft.supervise_padding), and as many steps as SFT and R2FT
together.
`sft_answer` is what R2FT starts from: loss on the answer and its first EOS only.
"""

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.pipeline.records import log_checkpoint, log_inputs
from dlm.pipeline.tracking import stage_run
from dlm.training.blocks import diffusion_trainer
from dlm.training.sft import FineTuning


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--variant", choices=("sft", "sft_answer"), required=True)
    arguments = parser.parse_args()
    params = start_stage(arguments)
    out = arguments.build / "models" / arguments.variant
    only = arguments.variant == "sft"
    steps = params.sft.training.steps + (params.r2ft.training.steps if only else 0)
    with stage_run("sft", cell=arguments.variant, params=tracked(params, "seed", "sft")) as run:
        log_inputs(run, "sft", arguments.build)
        tuning = FineTuning.load(arguments.build, params, answer_only=not only)
        objective = diffusion_trainer(tuning.model, **tuning.settings)
        model, curve = tuning.fit(arguments.variant, objective, steps)
        tuning.save(out, model, curve, merge=params.sft.lora.merge)
        log_checkpoint(run, out, curve)
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
