"""One cell of the matrix checkpoint x decoder: answers and tokens to the evaluation prompts, as JSON lines.

Wall-clock figures go to build/speed, apart from the answers: they differ from run to run.
"""

import shutil
from pathlib import Path

from dlm import cli, processes
from dlm.api import DiffusionLM
from dlm.data.splits import read_split
from dlm.errors import run_script
from dlm.evaluation.answers import decode_prompts
from dlm.files import content_hash, write_json, write_jsonl
from dlm.params import tracked
from dlm.tracking import stage_run


def main() -> None:
    parser = cli.stage_arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a folder of build/models, e.g. sft or r2ft")
    parser.add_argument("--decoder", required=True, help="a block of params.yaml: decoding.<name>")
    arguments = parser.parse_args()
    params = cli.stage_params(arguments)
    options = params.decoder(arguments.decoder)
    cell = f"{arguments.checkpoint}-{arguments.decoder}"
    out, parts = arguments.build / "answers" / f"{cell}.jsonl", Path(".cache/decoding") / cell
    with stage_run("decode", cell=cell, params=tracked(params, "decode", f"decoding.{arguments.decoder}")) as run:
        weights = arguments.build / "models" / arguments.checkpoint
        settings = params.decode
        lm = DiffusionLM.load(weights, processes.device(), settings.precision, settings.compile)
        rows = read_split(arguments.build / "data", "eval", ["id", "prompt", "prompt_ids"])
        answers, seconds = decode_prompts(
            lm,
            rows,
            options,
            seeds=settings.seeds,
            steps=settings.steps,
            gen_length=settings.gen_length,
            batch_size=settings.batch_size,
            parts=parts,
            fingerprint=content_hash(weights),
        )
        if not processes.is_main():
            return
        write_jsonl(out, answers)
        speed = {
            "seconds": seconds,
            "answers": len(answers),
            "nfe": sum(a["nfe"] for a in answers) / len(answers),
            "content_tokens": sum(len(a["tokens"]) for a in answers),
        }
        write_json(arguments.build / "speed" / f"{cell}.json", speed)
        run.metrics(speed)
        run.table(
            "samples",
            [{"prompt": r["prompt"], "answer": a["answer"]} for r, a in zip(rows[:20], answers, strict=False)],
        )
        run.outputs([out])
    shutil.rmtree(parts, ignore_errors=True)


if __name__ == "__main__":
    run_script(main)
