"""The autoregressive reference: trained on the same data, its nucleus answers, and the training perplexities."""

import copy
import functools

import torch

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.padding import add_padding
from dlm.data.splits import read_split
from dlm.data.text import packed_text
from dlm.data.tokenizer import load_tokenizer
from dlm.errors import UserError
from dlm.evaluation.scoring.scorer import load_scorer, training_perplexities
from dlm.files import atomic_directory, write_json, write_jsonl
from dlm.models.backbone import load_checkpoint, new_backbone, save_checkpoint
from dlm.models.reference import nucleus_answers
from dlm.pipeline import processes
from dlm.pipeline.inputs import known_digests
from dlm.pipeline.records import log_checkpoint, log_inputs, log_samples
from dlm.pipeline.tracking import stage_run
from dlm.training.causal import CausalTrainer
from dlm.training.collators import CausalCollator, CausalPackedCollator
from dlm.training.fit import fit, write_curve

COLUMNS = ["id", "prompt", "prompt_ids", "output", "answer_ids"]


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    settings, data = params.reference, arguments.build / "data/training"
    out = arguments.build / "models" / "reference"
    logged = tracked(params, "seed", "model", "base", "reference", "decode", "evaluate.scorer")
    with stage_run("reference", params=logged) as run:
        tokenizer = saved = load_tokenizer(data / "tokenizer")
        cycle = add_padding(tokenizer, params.tokenizer.pad_cycle)
        if settings.init == "checkpoint":
            model, own_tokenizer = load_checkpoint(
                settings.checkpoint, causal=True, mask_token=params.tokenizer.mask_token
            )
            saved = copy.deepcopy(own_tokenizer)  # without rows for pad tokens, which it never reads
            add_padding(own_tokenizer, params.tokenizer.pad_cycle)
            if own_tokenizer.get_vocab() != tokenizer.get_vocab():
                raise UserError(
                    f"params.yaml: reference.checkpoint ({settings.checkpoint}) has another tokenizer than the data; "
                    "set reference.init: random"
                )
        else:
            model = new_backbone(params.model, tokenizer, params.seed, causal=True)
        if settings.init == "pretrain":
            train, valid = packed_text(params.base, data, tokenizer)
            model, _ = fit(
                "reference-text",
                functools.partial(CausalTrainer, data_collator=CausalPackedCollator()),
                model,
                train,
                valid,
                params.base.training,
                params.seed,
            )
        train = read_split(data, "train", COLUMNS)
        model, curve = fit(
            "reference",
            functools.partial(CausalTrainer, data_collator=CausalCollator(tokenizer.eos_token_id)),
            model,
            train,
            read_split(data, "valid", COLUMNS),
            settings.training,
            params.seed,
        )
        torch.nn.Module.to(model, processes.device()).eval()
        prompts = read_split(arguments.build / "data", "eval", COLUMNS)
        answers = nucleus_answers(
            model,
            tokenizer,
            prompts,
            seeds=params.decode.seeds,
            gen_length=params.decode.gen_length,
            batch_size=params.decode.batch_size,
            top_p=settings.top_p,
            temperature=settings.temperature,
            never=cycle,
        )
        if not processes.is_main():
            return
        scorer = load_scorer(arguments.build, params.evaluate.scorer, model, tokenizer.eos_token_id)
        perplexities = training_perplexities(scorer, train)
        with atomic_directory(out) as folder:
            save_checkpoint(folder, model, saved)
            write_curve(folder, curve)
            write_json(folder / "training_perplexities.json", perplexities)
            write_jsonl(folder / "answers.jsonl", answers)
            if params.evaluate.scorer:  # another model behind the same name: all that score with it start anew
                write_json(folder / "scorer.json", known_digests().record({"evaluate.scorer": params.evaluate.scorer}))
        log_inputs(run, "reference", arguments.build)
        log_checkpoint(run, out, curve)
        run.outputs([out])
        log_samples(run, answers, {row["id"]: row["prompt"] for row in prompts}, "reference", "nucleus")


if __name__ == "__main__":
    run_script(main)
