"""Rejective fine-tuning of `sft_answer` on the negatives (paper Eq. 5; docs/method.md §4) into build/models/r2ft."""

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.splits import read_split
from dlm.data.template import Template
from dlm.errors import UserError
from dlm.files import read_json
from dlm.models.backbone import load_trainable
from dlm.pipeline.records import log_checkpoint, log_inputs
from dlm.pipeline.tracking import stage_run
from dlm.training.fit import save_trained
from dlm.training.r2ft import fit_r2ft, with_examples

NEGATIVE_COLUMNS = ["example", "context_mask", "rejected_ids", "rejected_mask"]


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    build, data = arguments.build, arguments.build / "data/training"
    out = build / "models" / "r2ft"
    length = params.data.canvas_length
    rows = {}
    for split in ("train", "valid"):
        negatives = read_split(build / "negatives", split, NEGATIVE_COLUMNS)
        if not negatives or len(negatives[0]["context_mask"]) != length:
            raise UserError(
                f"{build}/negatives/{split}.parquet is not for a canvas of {length}; run the negatives stage"
            )
        rows[split] = with_examples(negatives, read_split(data, split, ["prompt_ids", "answer_ids"]))
    with stage_run("r2ft", params=tracked(params, "seed", "r2ft", "sft.lora")) as run:
        log_inputs(run, "r2ft", build)
        model, tokenizer = load_trainable(build / "models" / "sft_answer", params.sft.lora, params.seed)
        model, curve = fit_r2ft(
            "r2ft",
            model,
            tokenizer,
            rows["train"],
            rows["valid"],
            params.r2ft,
            length,
            read_json(data / "vocabulary.json")["token_counts"],
            params.seed,
        )
        template = Template(params.template.prompt, params.template.prompt_with_input)
        save_trained(out, model, tokenizer, curve, template, merge=params.sft.lora.merge)
        log_checkpoint(run, out, curve)
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
