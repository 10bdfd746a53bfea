"""Perplexity under an n-gram model of held-out text, beside the reference's, and answers picked by it (sweeps).

Writes table.json and table.md.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.analysis.samples import as_text, good_and_bad
from dlm.analysis.table import at_budget
from dlm.config.params import Params, tracked
from dlm.data.splits import read_split
from dlm.data.text import read_documents, read_rows, split_documents
from dlm.data.tokenizer import encode, load_tokenizer
from dlm.evaluation.bootstrap import geometric_mean_with_ci
from dlm.evaluation.ngram import NgramScorer
from dlm.files import read_json, read_jsonl, write_table
from dlm.pipeline.tracking import stage_run

CHECKPOINTS = ("sft", "r2ft")
REFERENCE = "reference-nucleus"


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    build = arguments.build
    with stage_run("fluency", params=tracked(params, "sweeps", "base")) as run:
        scorer, counted = make_scorer(params, build)
        fields = ["id", "instruction", "output", "prompt_ids", "answer_ids"]
        examples = {row["id"]: row for row in read_split(build / "data", "eval", fields)}
        real = [{"id": row["id"], "tokens": row["answer_ids"], "answer": row["output"]} for row in examples.values()]
        sources = {REFERENCE: build / "models/reference/answers.jsonl"} | {
            cell: build / "answers" / f"{cell}.jsonl"
            for cell in map("-".join, itertools.product(CHECKPOINTS, params.report.decoders))
        }
        steps = params.decode.judged_steps
        answers = {"real answers": real} | {c: at_budget(read_jsonl(source), steps) for c, source in sources.items()}
        values = {cell: perplexities(rows, examples, scorer) for cell, rows in answers.items()}
        rows = [summary(cell, answers[cell], values[cell], params) for cell in answers]
        for row, cell in zip(rows[1:], sources, strict=True):
            [reference] = at_budget(read_json(build / "evaluation" / f"{cell}.json"), steps)
            row |= {f"reference_{name}": reference[name] for name in ("perplexity", "perplexity_ci")}
        pairs = [pair for row in rows[1:] if None not in (pair := (row["perplexity"], row["reference_perplexity"]))]
        table = {
            "order": scorer.order,
            "tokens": counted,
            "rank_correlation": float(spearmanr(pairs).statistic) if len(pairs) > 2 else None,
            "rows": rows,
            "samples": [
                {
                    **{name: row[name] for name in ("answers", "perplexity", "answer")},
                    "instruction": examples[row["id"]]["instruction"],
                }
                for row in good_and_bad(answers, values)
            ],
        }
        out = Path(params.report.results) / "fluency"
        markdown = to_markdown(table)
        write_table(out, table, markdown)
        run.table("fluency", rows)
        run.outputs([out])
    print(markdown, end="")


def make_scorer(params: Params, build: Path) -> tuple[NgramScorer, int]:
    """The scorer, and how many tokens it has counted."""
    tokenizer = load_tokenizer(build / "data/training/tokenizer")
    settings, texts, left = params.sweeps.ngram, [], params.sweeps.ngram.tokens
    for ids in held_out(params, build, tokenizer):
        if left <= 0:
            break
        texts.append(ids[:left])
        left -= len(texts[-1])
    return NgramScorer(texts, settings.order, len(tokenizer)), settings.tokens - left


def held_out(params: Params, build: Path, tokenizer: Any) -> Iterator[list[int]]:
    """Documents of `base.text` that no model was trained on; where it holds none out, the held-out records."""
    base = params.base
    if base.held_out and base.text.endswith(".npy"):
        rows = read_rows(base.text, base.sequence_length, len(tokenizer))
        yield from (row.tolist() for row in split_documents(list(rows), base.held_out)[1])
    elif base.held_out:
        documents = split_documents(read_documents(base.text), base.held_out)[1]
        for start in range(0, len(documents), 1000):
            yield from encode(tokenizer, documents[start : start + 1000])
    else:
        for row in read_split(build / "data/training", "valid", ["prompt_ids", "answer_ids"]):
            yield row["prompt_ids"] + row["answer_ids"]


def perplexities(
    answers: list[dict[str, Any]], examples: dict[int, dict[str, Any]], scorer: NgramScorer
) -> list[float | None]:
    return [scorer.perplexity(examples[answer["id"]]["prompt_ids"], answer["tokens"]) for answer in answers]


def summary(name: str, answers: list[dict[str, Any]], values: list[float | None], params: Params) -> dict[str, Any]:
    """A row of the table: the geometric mean over the answers that are not empty."""
    ids = [answer["id"] for answer in answers]
    mean, interval = geometric_mean_with_ci(values, ids, params.evaluate.bootstrap_samples)
    return {"answers": name, "n": len(answers), "perplexity": mean, "perplexity_ci": interval}


def to_markdown(table: dict[str, Any]) -> str:
    """The table with what it was counted on, and the picked answers."""

    def with_interval(row: dict[str, Any], name: str) -> str:
        if row.get(name) is None:
            return ""
        interval = row[f"{name}_ci"]
        return f"{row[name]:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")

    lines = ["| answers | n | n-gram perplexity | under the reference |", "| --- | --- | --- | --- |"]
    for row in table["rows"]:
        figures = [with_interval(row, name) for name in ("perplexity", "reference_perplexity")]
        lines.append(f"| {row['answers']} | {row['n']} | {figures[0]} | {figures[1]} |")
    correlation = table["rank_correlation"]
    agreement = "" if correlation is None else f" Rank correlation of the two: {correlation:.2f}."
    lines += ["", f"{table['order']}-grams of {table['tokens']:,} tokens that no model was trained on.{agreement}"]
    lines += ["", "Of each, the answer nearest to the first row's median, and the one farthest from it:", ""]
    lines += ["| answers | n-gram perplexity | instruction | answer |", "| --- | --- | --- | --- |"]
    for row in table["samples"]:
        texts = [as_text(row[name], width) for name, width in (("instruction", 80), ("answer", 400))]
        lines.append(f"| {row['answers']} | {row['perplexity']:.2f} | {texts[0]} | {texts[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(main)
