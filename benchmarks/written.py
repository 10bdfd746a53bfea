"""What a run's decoders write, by distance from the prompt (paper Fig. 3): from its answers alone, without its models.

    python benchmarks/written.py --params build/quarter_hour/params.yaml --build build/quarter_hour/build \
        --out results/smollm2/written

For a run whose weights stayed behind (tools/quarter_hour.sh); `make sweeps` draws the whole figure, with what the
model itself prefers. Real answers are those of the evaluation set, where it has any.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import Arguments, command_line, grid, write

from dlm.pipeline.start import run_script
from dlm.analysis.table import at_budget
from dlm.config.params import load_params
from dlm.config.schema import require
from dlm.data.splits import most_frequent, read_split
from dlm.evaluation.distance import binned, one_hot, written_kinds
from dlm.files import read_json, read_jsonl

SHOWN = {"high_prior": "frequent words", "repetition": "other words of the context"}


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--width", type=int, default=32, help="tokens that a figure averages over (default: 32)")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    require(arguments.width >= 1, "--width", "at least 1", arguments.width)
    build, params = arguments.build, load_params(arguments.params)
    known = read_json(build / "data/training/vocabulary.json")
    frequent = frozenset(most_frequent(known["token_counts"], params.evaluate.high_prior_tokens).tolist())
    examples = read_split(build / "data", "eval", ["id", "prompt_ids", "answer_ids"])
    prompts = {row["id"]: row["prompt_ids"] for row in examples}

    def shares(ids: Sequence[int], texts: Sequence[list[int]]) -> dict[str, Any]:
        rows = [
            one_hot(written_kinds(text, prompts[i], frequent, known["eos_id"]))
            for i, text in zip(ids, texts, strict=True)
        ]
        length, samples = params.decode.gen_length, params.evaluate.bootstrap_samples
        return binned(rows, ids, arguments.width, length, samples)

    real = [row for row in examples if row["answer_ids"]]
    found = {"real": shares([row["id"] for row in real], [row["answer_ids"] for row in real])} if real else {}
    paths = [build / "models" / "reference" / "answers.jsonl", *sorted((build / "answers").glob("*.jsonl"))]
    for path in filter(Path.is_file, paths):
        answers = at_budget(read_jsonl(path), params.decode.judged_steps)
        name = "reference" if path == paths[0] else path.stem
        found[name] = shares([a["id"] for a in answers], [a["tokens"] for a in answers])
    write(
        arguments.out, {"command": command_line(), "width": arguments.width, "shares": found}, table(found, arguments)
    )


def table(found: dict[str, Any], arguments: Any) -> str:
    """A block of rows for each kind, a column for each bin; a dash where less than a tenth of the answers reach it."""
    count = max(len(series["high_prior"]) for series in found.values())
    starts = [f"from {place * arguments.width}" for place in range(count)]
    lines = [["share of", "written by", *starts]]
    for kind, told in SHOWN.items():
        for name, series in found.items():
            values = [cell["value"] for cell in series[kind]]
            lines.append([told, name, *("–" if value is None else f"{value:.2f}" for value in values)])
    return grid(lines, left=2) + "\n"


if __name__ == "__main__":
    run_script(main)
