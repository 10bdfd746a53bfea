"""README's tables from claims.json, table.json and smollm2-cpu/table.json of results: python tools/quote.py"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlm.pipeline.start import run_script
from dlm.analysis.columns import COLUMNS, Column
from dlm.analysis.table import Row, half_width, is_best, number, over_passes
from dlm.files import read_json, write_text

ROOT = Path(__file__).parents[1]
# The cells that tell the story; all of them are in results/table.md.
CELLS = (
    *(("sft", decoder) for decoder in ("categorical", "low_confidence", "top_k", "semi_ar", "conv")),
    *(("r2ft", decoder) for decoder in ("top_k", "low_confidence", "conv")),
)
# Of the run on English.
ENGLISH = ("relevance_total", "perplexity", "repetition_4", "high_prior", "length", "nfe")
# What other runs say beside it.
ELSEWHERE = {
    2: "; mixed [where the base repeats](docs/repetition.md)",
    3: ", and with [40 prompts](docs/sweeps.md)",
    4: "; mixed [where the base repeats](docs/repetition.md)",
    6: "; seen [on English](docs/adapt.md)",
}


def main() -> None:
    path = ROOT / "README.md"
    write_text(path, quoted(path.read_text(encoding="utf-8"), ROOT / "results"))


def quoted(text: str, results: Path) -> str:
    """The page with the tables between its marks as the results have them."""
    for name, table in {
        "claims": claims_table(read_json(results / "claims.json")),
        "results": results_table(read_json(results / "table.json")),
        "english": english_table(read_json(results / "smollm2-cpu/table.json")),
    }.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert mark.search(text), name
        text = mark.sub(lambda place: place[1] + table + place[2], text)  # noqa: B023
    return text


def claims_table(claims: Sequence[dict[str, Any]]) -> str:
    lines = ["| claim | verdict | a number | more |", "|---|---|---|---|"]
    for claim in claims:
        place = claim["number"]
        beside = "".join(f"; at S = {n}: {other}" for n, other in claim["beside"] if other != claim["verdict"])
        verdict = f"{claim['verdict']}{beside}{ELSEWHERE.get(place, '')}"
        cells = [
            f"{place}. {claim['text'].rstrip('.')}",
            verdict,
            claim["brief"],
            f"[claim {place}](docs/results.md#claim-{place})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def results_table(rows: Sequence[Row]) -> str:
    """Quality at every budget, passes at the largest, and the area; bold as in the whole table."""
    wide, columns = over_passes(rows)
    shown = {(row["checkpoint"], row["decoder"]): row for row in wide}
    passes = [column for column in columns if column.name.startswith("nfe")]
    columns = [column for column in columns if column not in passes[:-1]]
    lines = heads(columns)
    for cell in CELLS:
        values = []
        for column in columns:
            text = number(shown[cell][column.name], column)
            text = f"**{text}**" if is_best(shown[cell], wide, column) and column not in passes else text
            values.append(text if column in passes else f"{text} ± {half_width(shown[cell], column)}")
        lines.append(f"| {' | '.join([*cell, *values])} |")
    return "\n".join(lines) + "\n"


def english_table(rows: Sequence[Row]) -> str:
    """Every cell, with what there is to measure on open instructions."""
    columns = [COLUMNS[name] for name in ENGLISH]
    lines = heads(columns)
    for row in rows:
        values = [f"{number(row[column.name], column)} ± {half_width(row, column)}" for column in columns]
        lines.append(f"| {' | '.join([row['checkpoint'], row['decoder'], *values])} |")
    return "\n".join(lines) + "\n"


def heads(columns: Sequence[Column]) -> list[str]:
    """The first two lines of a table."""
    head = ["checkpoint", "decoder", *(column.heading + column.arrow for column in columns)]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]


if __name__ == "__main__":
    run_script(main)
