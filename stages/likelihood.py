"""The bound on a checkpoint's log-likelihood of held-out answers: the yardstick of the masked objective."""

import numpy as np

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.splits import read_split
from dlm.decoding.answers import load_for
from dlm.evaluation.bootstrap import bootstrap_ci
from dlm.files import write_json
from dlm.likelihood import score
from dlm.pipeline.records import log_inputs, log_likelihood
from dlm.pipeline.tracking import stage_run


def main() -> None:
    parser = stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder of build/models: base, sft, sft_answer or r2ft")
    arguments = parser.parse_args()
    params = start_stage(arguments)
    build, settings = arguments.build, params.likelihood
    weights = build / "models" / arguments.checkpoint
    with stage_run("likelihood", cell=arguments.checkpoint, params=tracked(params, "seed", "likelihood")) as run:
        run.decodes(weights)
        log_inputs(run, "likelihood", build)
        lm = load_for(f"likelihood@{arguments.checkpoint}", weights, params.decode, compile=False)
        rows = read_split(build / "data/training", "valid", ["prompt_ids", "answer_ids"])[: settings.records]
        scores = score(
            lm,
            [row["prompt_ids"] for row in rows],
            [row["answer_ids"] for row in rows],
            samples=settings.samples,
            end=True,
            seed=params.seed,
            batch_size=params.decode.batch_size,
        )
        nats, tokens = -scores.log_likelihood.numpy(), scores.tokens.numpy()

        def a_token(drawn: np.ndarray) -> float:
            return float(nats[drawn].sum() / tokens[drawn].sum())

        result = {
            "checkpoint": arguments.checkpoint,
            "records": len(rows),
            "tokens": int(tokens.sum()),
            "nll": a_token(np.arange(len(rows))),
            "nll_ci": bootstrap_ci(
                nats, np.arange(len(rows)), statistic=a_token, samples=params.evaluate.bootstrap_samples
            ),
            # Of the Monte Carlo alone; the interval holds it and the choice of records.
            "nll_standard_error": float(scores.standard_error.square().sum().sqrt() / tokens.sum()),
            "record_nll": nats.tolist(),
            "record_tokens": tokens.tolist(),
        }
        out = build / "evaluation" / "likelihood" / f"{arguments.checkpoint}.json"
        write_json(out, result)
        log_likelihood(run, result)
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
