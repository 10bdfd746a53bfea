"""Masked-diffusion SFT of the base, in one of its two padding settings (docs/method.md §2).

`sft` is the SFT-only model: loss on every padding EOS (sft.supervise_padding), and as many steps as SFT and R2FT
together.
`sft_answer` is what R2FT starts from: loss on the answer and its first EOS only.
"""

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.splits import read_split
from dlm.data.template import Template
from dlm.models.adapters import unwrapped
from dlm.models.backbone import load_trainable
from dlm.models.interface import pad_cycle
from dlm.pipeline.records import log_checkpoint, log_inputs
from dlm.pipeline.tracking import stage_run
from dlm.training.blocks import diffusion_trainer
from dlm.training.collators import SftCollator
from dlm.training.fit import fit, save_trained

COLUMNS = ["prompt_ids", "answer_ids"]


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--variant", choices=("sft", "sft_answer"), required=True)
    arguments = parser.parse_args()
    params = start_stage(arguments)
    data = arguments.build / "data/training"
    out = arguments.build / "models" / arguments.variant
    only = arguments.variant == "sft"
    padding = params.sft.padding_weight if only and params.sft.supervise_padding else 0.0
    steps = params.sft.training.steps + (params.r2ft.training.steps if only else 0)
    with stage_run("sft", cell=arguments.variant, params=tracked(params, "seed", "sft")) as run:
        log_inputs(run, "sft", arguments.build)
        model, tokenizer = load_trainable(arguments.build / "models" / "base", params.sft.lora, params.seed)
        cycle = pad_cycle(unwrapped(model))
        collator = SftCollator(params.data.canvas_length, tokenizer.eos_token_id, padding=padding, cycle=cycle)
        model, curve = fit(
            arguments.variant,
            diffusion_trainer(
                model,
                mask_id=tokenizer.mask_token_id,
                data_collator=collator,
                crop_share=params.sft.crop_share,
                average=params.sft.loss_average,
            ),
            model,
            read_split(data, "train", COLUMNS),
            read_split(data, "valid", COLUMNS),
            params.sft.training,
            params.seed,
            steps=steps,
        )
        template = Template(params.template.prompt, params.template.prompt_with_input)
        save_trained(out, model, tokenizer, curve, template, merge=params.sft.lora.merge)
        log_checkpoint(run, out, curve)
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
