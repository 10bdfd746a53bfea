"""R2FT with one kind of negatives, for longer: what the model writes at several of its steps (paper Fig. 12)."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.splits import read_split
from dlm.decoding.lm import DiffusionLM
from dlm.evaluation.cell import load_corpus
from dlm.evaluation.setting import measure
from dlm.files import read_json, write_json
from dlm.models.adapters import unwrapped
from dlm.models.backbone import load_trainable
from dlm.negatives.draw import draw_negatives, make_rule
from dlm.pipeline import processes
from dlm.pipeline.tracking import stage_run
from dlm.training.r2ft import fit_r2ft, with_examples


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--negatives", required=True, help="a name of params.yaml: sweeps.rejection.negatives")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build, name, sweep = arguments.build, arguments.negatives, params.sweeps.rejection
    data, length = build / "data/training", params.data.canvas_length
    settings = params.negatives_of(name)
    logged = {**tracked(params, "sweeps", "r2ft"), "negatives": asdict(settings)}
    with stage_run("r2ft_sweep", cell=name, params=logged) as run:
        corpus = load_corpus(build, params.data, params.evaluate)
        vocabulary = read_json(data / "vocabulary.json")
        rule = make_rule(settings, vocabulary, params.evaluate.high_prior_tokens)
        rows = {}
        for split in ("train", "valid"):
            examples = read_split(data, split, ["id", "prompt_ids", "answer_ids"])
            negatives = draw_negatives(examples, split, settings, rule, length, params.seed)
            rows[split] = with_examples(negatives, examples)
        model, tokenizer = load_trainable(build / "models" / "sft_answer", params.sft.lora, params.seed)
        summaries: list[dict[str, Any]] = []

        def write_and_measure(step: int, trained: Any) -> None:
            lm = DiffusionLM(unwrapped(trained), tokenizer, precision=params.decode.precision)
            for decoder in sweep.decoders:
                summary = measure(
                    lm,
                    corpus,
                    params.decoder(decoder),
                    params,
                    prompts=params.sweeps.prompts,
                    seeds=params.sweeps.seeds,
                    steps=params.decode.steps[0],
                )
                summaries.append({**summary, "decoder": decoder, "r2ft_steps": step})

        write_and_measure(0, model.to(processes.device()))
        training = replace(
            params.r2ft.training,
            steps=sweep.steps,
            learning_rate=sweep.learning_rate,
            save_every=sweep.every,
            eval_every=max(sweep.every // 3, 1),
        )
        _, curve = fit_r2ft(
            f"r2ft_sweep-{name}",
            model,
            tokenizer,
            rows["train"],
            rows["valid"],
            replace(params.r2ft, training=training),
            length,
            vocabulary["token_counts"],
            params.seed,
            visit=write_and_measure,
        )
        counts = np.asarray(vocabulary["token_counts"])
        result = {
            "negatives": name,
            "settings": asdict(settings),
            "diversity": diversity(rows["train"]),
            "corpus_log_prior": float(counts @ corpus.log_prior / counts.sum()),
            "curve": curve,
            "rows": summaries,
        }
        out = build / "sweeps" / f"rejection-{name}.json"
        write_json(out, result)
        run.curve(curve)
        run.table("r2ft_sweep", summaries)
        run.outputs([out])


def diversity(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers of negatives and of examples, and how many different negatives an example has on average."""
    distinct: dict[int, set[bytes]] = {}
    for row in rows:
        mask = np.asarray(row["rejected_mask"])
        rejected = np.where(mask, np.asarray(row["rejected_ids"]), -1)
        distinct.setdefault(row["example"], set()).add(rejected.tobytes())
    mean = sum(map(len, distinct.values())) / len(distinct)
    return {"negatives": len(rows), "examples": len(distinct), "different_per_example": mean}


if __name__ == "__main__":
    run_script(main)
