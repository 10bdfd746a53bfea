"""The base checkpoint under build/models/base: an existing, a random, a pretrained or an adapted one."""

from typing import Any

import torch

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.padding import add_padding
from dlm.data.splits import read_split
from dlm.data.text import packed_text
from dlm.data.tokenizer import load_tokenizer
from dlm.errors import UserError
from dlm.models.adapt import adapt, make_block_causal
from dlm.models.backbone import load_checkpoint, new_backbone
from dlm.models.padding import give_padding
from dlm.pipeline.records import log_checkpoint, log_inputs
from dlm.pipeline.tracking import stage_run
from dlm.training.blocks import diffusion_trainer
from dlm.training.collators import PackedCollator, SftCollator
from dlm.training.fit import fit, save_trained


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    base, data = params.base, arguments.build / "data/training"
    out = arguments.build / "models" / "base"
    with stage_run("base", params=tracked(params, "seed", "model", "base")) as run:
        tokenizer = load_tokenizer(data / "tokenizer")
        cycle = add_padding(tokenizer, params.tokenizer.pad_cycle)
        curve: list[dict[str, float]] = []
        if base.init in ("checkpoint", "continue", "adapt"):
            adapts = base.init == "adapt"
            model, own_tokenizer = load_checkpoint(
                base.checkpoint,
                causal=adapts,
                layout=base.layout,
                tokenizer=base.tokenizer,
                dtype="auto" if base.init == "checkpoint" else torch.float32,
                mask_token=params.tokenizer.mask_token,
            )
            if adapts:
                adapt(model, own_tokenizer, logits_shift=base.logits_shift)
            add_padding(own_tokenizer, params.tokenizer.pad_cycle)
            if own_tokenizer.get_vocab() != tokenizer.get_vocab():
                raise UserError(
                    f"params.yaml: base.checkpoint ({base.checkpoint}) has another tokenizer than the data; "
                    f"set tokenizer.source: given and tokenizer.path: {base.checkpoint}"
                )
        else:
            model = new_backbone(params.model, tokenizer, params.seed, causal=False)
        give_padding(model, tokenizer, cycle, params.seed)
        if base.block_size:
            make_block_causal(model, base.block_size)
        if base.init in ("pretrain", "continue", "adapt"):
            log_inputs(run, "base", arguments.build)
            if base.rows == "records":
                collator: Any = SftCollator(params.data.canvas_length, tokenizer.eos_token_id, padding=1.0, cycle=cycle)
                train, valid = (read_split(data, split, ["prompt_ids", "answer_ids"]) for split in ("train", "valid"))
            else:
                collator = PackedCollator()
                train, valid = packed_text(base, data, tokenizer)
            model, curve = fit(
                "base",
                diffusion_trainer(
                    model,
                    mask_id=tokenizer.mask_token_id,
                    data_collator=collator,
                    suffix_share=base.suffix_share,
                    eos_id=tokenizer.eos_token_id,
                    crop_share=base.crop_share,
                    anneal_steps=base.anneal_steps,
                ),
                model,
                train,
                valid,
                base.training,
                params.seed,
            )
        save_trained(out, model, tokenizer, curve)
        run.params({"num_parameters": model.num_parameters()})
        log_checkpoint(run, out, curve)
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
