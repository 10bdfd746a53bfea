"""R2FT with one kind of negatives, for longer than usual: what the model writes at every look (paper Fig. 12)."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

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
from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.pipeline.tracking import stage_run
from dlm.training.r2ft import beside, fit_r2ft


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--negatives", required=True, help="a name of params.yaml: sweeps.rejection.negatives")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build, name, sweep = arguments.build, arguments.negatives, params.sweeps.rejection
    data, length = build / "data", params.data.canvas_length
    settings = params.negatives_of(name)
    logged = {**tracked(params, "sweeps", "r2ft"), "negatives": asdict(settings)}
    with stage_run("rejection", cell=name, params=logged) as run:
        corpus = load_corpus(build, params.data, params.evaluate)
        vocabulary = read_json(data / "vocabulary.json")
        rule = make_rule(settings, vocabulary, params.evaluate.high_prior_tokens)
        rows = {}
        for split in ("train", "valid"):
            examples = read_split(data, split, ["id", "prompt_ids", "answer_ids"])
            rows[split] = beside(examples, draw_negatives(examples, split, settings, rule, length, params.seed))
        model, tokenizer = load_trainable(build / "models" / "sft_answer", params.sft.lora, params.seed)
        found: list[dict[str, Any]] = []

        def look(step: int, trained: Any) -> None:
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
                found.append({**summary, "decoder": decoder, "r2ft_steps": step})

        look(0, model.to(processes.device()))
        training = replace(
            params.r2ft.training,
            steps=sweep.steps,
            learning_rate=sweep.learning_rate,
            save_every=sweep.every,
            eval_every=max(sweep.every // 3, 1),
        )
        _, curve = fit_r2ft(
            f"rejection-{name}",
            model,
            tokenizer,
            rows["train"],
            rows["valid"],
            replace(params.r2ft, training=training),
            length,
            vocabulary["token_counts"],
            params.seed,
            visit=look,
        )
        counts = np.asarray(vocabulary["token_counts"])
        result = {
            "negatives": name,
            "settings": asdict(settings),
            "diversity": diversity(rows["train"]),
            "corpus_log_prior": float(counts @ corpus.log_prior / counts.sum()),
            "curve": curve,
            "rows": found,
        }
        out = build / "sweeps" / f"rejection-{name}.json"
        write_json(out, result)
        run.curve(curve)
        run.table("rejection", found)
        run.outputs([out])


def diversity(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Negatives, the examples that they are of, and how many different ones an example has on average."""
    different: dict[int, set[bytes]] = {}
    for row in rows:
        where = np.asarray(row["rejected_mask"])
        text = np.where(where, np.asarray(row["rejected_ids"]), -1)
        different.setdefault(row["example"], set()).add(text.tobytes())
    mean = sum(map(len, different.values())) / len(different)
    return {"negatives": len(rows), "examples": len(different), "different_per_example": mean}


if __name__ == "__main__":
    run_script(main)
