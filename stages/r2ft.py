"""Rejective fine-tuning of `sft_answer` on the negatives (paper Eq. 5; METHOD §4) into build/models/r2ft."""

import functools

import torch

from dlm import cli
from dlm.data.splits import log_prior, read_split
from dlm.data.template import Template
from dlm.errors import UserError, run_script
from dlm.files import content_hash, read_json
from dlm.models.backbone import load_trainable
from dlm.params import tracked
from dlm.tracking import stage_run
from dlm.training.batches import R2ftCollator
from dlm.training.objectives import R2ftTrainer
from dlm.training.run import fit, save_trained, weights_hash

NEGATIVE_COLUMNS = ["example", "context_mask", "rejected_ids", "rejected_mask"]


def main() -> None:
    arguments = cli.stage_arguments(__doc__).parse_args()
    params = cli.stage_params(arguments)
    build = arguments.build
    out = build / "models" / "r2ft"
    length = params.data.canvas_length
    rows = {}
    for split in ("train", "valid"):
        examples = read_split(build / "data", split, ["prompt_ids", "answer_ids"])
        negatives = read_split(build / "negatives", split, NEGATIVE_COLUMNS)
        if not negatives or len(negatives[0]["context_mask"]) != length:
            raise UserError(
                f"{build}/negatives/{split}.parquet is not for a canvas of {length}; run the negatives stage"
            )
        rows[split] = [{**examples[negative["example"]], **negative} for negative in negatives]
    counts = read_json(build / "data" / "stats.json")["token_counts"]
    with stage_run("r2ft", params=tracked(params, "seed", "r2ft", "sft.lora")) as run:
        model, tokenizer = load_trainable(build / "models" / "sft_answer", params.sft.lora, params.seed)
        model, curve = fit(
            "r2ft",
            functools.partial(
                R2ftTrainer,
                objective=params.r2ft,
                log_prior=torch.from_numpy(log_prior(counts)).float(),
                mask_id=tokenizer.mask_token_id,
                data_collator=R2ftCollator(length, tokenizer.eos_token_id, tokenizer.mask_token_id),
            ),
            model,
            rows["train"],
            rows["valid"],
            params.r2ft.training,
            params.seed,
            {"data": content_hash(build / "data"), "negatives": content_hash(build / "negatives"),
             "weights": weights_hash(model), "objective": tracked(params, "r2ft")},
        )  # fmt: skip
        template = Template(params.template.prompt, params.template.prompt_with_input)
        save_trained(out, model, tokenizer, curve, template, merge=params.sft.lora.merge)
        run.metrics(curve[-1])
        run.curve(curve)
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
