"""The report: table and claims by hand, figures and page that repeat byte for byte, and the stage end to end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dlm.analysis.claims import Claim, combine, judge_claims
from dlm.analysis.comparisons import relation
from dlm.analysis.figures import ReportFigure, report_figures
from dlm.analysis.page import render, side_by_side
from dlm.analysis.panels import decoder_data, draw_decoders
from dlm.analysis.paper import TABLES, beside
from dlm.analysis.table import COLUMNS, build_table, headline, is_best, long_runs, quality_axes, speed_rows, to_markdown
from dlm.data.records import Record
from dlm.data.splits import Example, write_examples
from dlm.evaluation.cell import PER_ANSWER
from dlm.files import write_json, write_jsonl
from dlm.params import Params, load_params

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"
Row = dict[str, Any]
# What an ordinary cell measures; tests say what differs.
USUAL = {
    "nfe": 16.0,
    "leftover_masks": 0.0,
    "length": 64.0,
    "perplexity": 5.0,
    "inlier": 0.9,
    "inlier_log": 0.85,
    "relevance": 0.3,
    "relevance_total": 15.0,
    "nonempty": 1.0,
    "repetition_4": 0.02,
    "prompt_repetition": 0.2,
    "high_prior": 0.6,
    "log_prior": -5.0,
    "slot_error_rate": 0.3,
    "well_formed": 0.8,
    "missing_slots": 0.1,
    "wrong_slots": 0.1,
    "repeated_slots": 0.1,
    "distinct_2": 0.1,
    "win_rate": 30.0,
    "lc_win_rate": 35.0,
    "grade": 3.5,
    "judge_failed": 0.02,
    "exact_match": 0.5,
    "mauve": 0.4,
}


def cell(checkpoint: str, decoder: str, *, spread: float = 0.01, **values: Any) -> Row:
    """A cell whose intervals reach `spread` to both sides; a metric given as None has neither value nor interval."""
    row: Row = {"checkpoint": checkpoint, "decoder": decoder, "steps": 16, "gen_length": 128, "n": 600, "prompts": 200}
    for name, value in {**USUAL, **values}.items():
        row[name] = value
        row[f"{name}_ci"] = None if value is None else [value - spread, value + spread]
    return row


def cells(well_formed: dict[str, float], **values: Any) -> list[Row]:
    """Both checkpoints with the same well_formed by decoder, and a reference."""
    found = [cell(c, d, well_formed=share, **values) for c in ("sft", "r2ft") for d, share in well_formed.items()]
    return [cell("reference", "nucleus", nfe=65.0, **values), *found]


def sizes(blocks: dict[int, float], kernels: dict[int, float], checkpoint: str = "sft") -> list[Row]:
    """Ablation rows: well_formed by block length and by kernel size."""
    by_block = [
        {**cell(checkpoint, "", well_formed=share), "variant": "block", "block_length": size}
        for size, share in blocks.items()
    ]
    by_kernel = [
        {**cell(checkpoint, "", well_formed=share), "variant": "kernel", "kernel_size": size}
        for size, share in kernels.items()
    ]
    return by_block + by_kernel


def slow_runs(without: float, with_fill: float, **values: Any) -> list[Row]:
    return [
        {**cell("sft", "", nfe=without), "variant": "long"},
        {**cell("sft", "", nfe=with_fill, **values), "variant": "long eos_fill"},
    ]


def claim(number: int, rows: Iterable[Row] = (), ablation: Iterable[Row] = ()) -> Claim:
    return judge_claims(build_table(list(rows)), list(ablation))[number - 1]


ORDERED = {"categorical": 0.2, "top_k": 0.5, "low_confidence": 0.3, "conv": 0.8}


def test_tokens_per_step_by_hand() -> None:
    """L*_norm = (60 + 20) / 2 = 40, the reference's 65 aside; NFE 16 [15, 20] gives 2.5 [40/20, 40/15]."""
    long, short = cell("sft", "conv", length=60.0), cell("sft", "top_k", length=20.0, nfe=8.0)
    long["nfe_ci"] = [15.0, 20.0]
    reference, first, second = build_table([long, short, cell("reference", "nucleus", length=65.0)])
    assert (first["tokens_per_step"], first["tokens_per_step_ci"]) == (2.5, [2.0, pytest.approx(40 / 15)])
    assert second["tokens_per_step"] == 5.0
    assert (reference["tokens_per_step"], reference["tokens_per_step_ci"]) == (1.0, None)


def test_headline_is_a_tree_of_numbers() -> None:
    found = headline(build_table([cell("reference", "nucleus", nfe=65.0), cell("sft", "conv", length=60.12344)]))
    assert found["sft"] == {"conv": {"well_formed": 0.8, "slot_error_rate": 0.3, "length": 60.1234, "nfe": 16.0}}
    assert list(found) == ["reference", "sft"]


def test_rows_keep_the_order_and_the_keys() -> None:
    found = build_table(
        [
            cell("sft", "top_k"),
            cell("r2ft", "top_k"),
            cell("sft", "conv"),
            cell("r2ft", "conv"),
            cell("reference", "nucleus"),
        ]
    )
    assert [(row["checkpoint"], row["decoder"]) for row in found] == [
        ("reference", "nucleus"), ("sft", "top_k"), ("sft", "conv"), ("r2ft", "top_k"), ("r2ft", "conv"),
    ]  # fmt: skip
    metrics = {*PER_ANSWER, "distinct_2", "tokens_per_step", "win_rate", "lc_win_rate", "judge_failed", "mauve"}
    expected = {"checkpoint", "decoder", "steps", "gen_length", "n", *metrics, *(f"{name}_ci" for name in metrics)}
    assert all(set(row) == expected for row in found)


def test_markdown() -> None:
    """0.798 prints as the best, 0.80, does, so both are bold; the reference never is; ± is half of [0.70, 0.90]."""
    rows = build_table(
        [
            cell("reference", "nucleus", well_formed=0.99),
            cell("sft", "top_k", well_formed=0.5),
            cell("sft", "conv", well_formed=0.8, spread=0.1),
            cell("r2ft", "conv", well_formed=0.798),
        ]
    )
    assert [is_best(row, rows, COLUMNS["well_formed"]) for row in rows] == [False, False, True, True]
    text = to_markdown(rows)
    header, rule, reference, top_k, conv, _ = text.splitlines()[2:8]
    assert [part.strip() for part in header.split("|")][1:5] == [
        "checkpoint",
        "decoder",
        "well-formed ↑",
        "slot errors ↓",
    ]
    assert set(rule) <= set("|-: ")
    assert "0.99 ± 0.01" in reference and "0.50 ± 0.01" in top_k and "**0.80** ± 0.10" in conv
    assert len({len(line) for line in (header, rule, reference, top_k, conv)}) == 1
    assert "16 steps for 128 tokens, 600 answers a row." in text
    assert all(f"- {column.heading}: {column.meaning}." in text for column in COLUMNS.values())


def test_markdown_of_the_long_runs() -> None:
    """One line a run, named by its decoder, with its steps; the ablation's other rows stay out."""
    more = {**cell("sft", "", well_formed=0.7), "variant": "steps conv", "kernel_size": 17, "steps": 32}
    ablation = [more, *slow_runs(81.0, 40.0, well_formed=0.9), *sizes({64: 0.5}, {33: 0.5})]
    long = long_runs(ablation)
    assert [(row["decoder"], row["steps"]) for row in long] == [
        ("conv, kernel 17", 32),
        ("conv", 16),
        ("conv, EOS-fill", 16),
    ]
    text = to_markdown(build_table(cells(ORDERED)), long)
    third = text[text.index("**Quality with more steps**") :]
    assert re.search(r"\| sft +\| conv, EOS-fill +\| +16 \| +\*\*0.90\*\* ± 0.01 \|", third)


def test_a_column_of_failures_appears_where_something_failed() -> None:
    rows = build_table(cells(ORDERED, judge_failed=0.0))
    assert "judge failed" not in to_markdown(rows)
    rows[2]["judge_failed"] = 0.25
    assert "judge failed" in to_markdown(rows)


def test_markdown_leaves_out_what_no_row_has() -> None:
    rows = build_table(cells(ORDERED, slot_error_rate=None, missing_slots=None, wrong_slots=None, repeated_slots=None))
    for row in rows:
        row["well_formed"] = row["well_formed_ci"] = None
    assert "slot errors" not in to_markdown(rows) and "well-formed" not in to_markdown(rows)
    axes = quality_axes(rows)
    assert [(axis.name, axis.better) for axis in axes] == [("relevance_total", "higher"), ("perplexity", "lower")]


@pytest.mark.parametrize(
    ("well_formed", "slot_error_rate", "expected"),
    [
        (0.83, 0.3, "better"),
        (0.819, 0.3, "same"),
        (0.77, 0.27, "conflict"),
        (0.8, 0.33, "worse"),
        (0.83, 0.27, "better"),
    ],
)
def test_relation_by_hand(well_formed: float, slot_error_rate: float, expected: str) -> None:
    """Against 0.8 and 0.3, all ± 0.01: apart from a distance of 0.02 on; fewer slot errors are better."""
    axes = (COLUMNS["well_formed"], COLUMNS["slot_error_rate"])
    a, b = cell("sft", "a", well_formed=well_formed, slot_error_rate=slot_error_rate), cell("sft", "b")
    assert relation(a, b, axes) == expected
    assert relation({**a, "well_formed_ci": None, "slot_error_rate_ci": None}, b, axes) == "same"


def test_combine() -> None:
    assert combine(["seen", "seen"]) == "seen"
    assert combine(["not seen"]) == "not seen"
    assert combine(["seen", "not seen"]) == combine(["not seen", "mixed"]) == "mixed"


@pytest.mark.parametrize(
    ("well_formed", "verdict"),
    [
        (ORDERED, "seen"),
        ({**ORDERED, "conv": 0.505}, "mixed"),
        ({"categorical": 0.8, "top_k": 0.7, "low_confidence": 0.75, "conv": 0.6}, "not seen"),
        (dict.fromkeys(ORDERED, 0.5), "not seen"),
        ({"conv": 0.8, "top_k": 0.5}, "not tested"),
    ],
)
def test_claim_1(well_formed: dict[str, float], verdict: str) -> None:
    assert claim(1, cells(well_formed)).verdict == verdict


def test_claim_1_gives_its_figures() -> None:
    rows = cells({**ORDERED, "conv": 0.505})
    rows[3]["length"], rows[3]["nonempty"] = 10.0, 0.5
    evidence = claim(1, rows).evidence
    assert evidence.startswith("sft, 16 steps for 128 tokens: conv well-formed 0.51 [0.49, 0.52], slot errors 0.30 [")
    assert "conv is not separated from top_k and better than categorical, low_confidence; top_k is better" in evidence
    assert (
        "Read beside their lengths against the reference's 64.0: low_confidence (10.0 tokens, 50% non-empty)"
        in evidence
    )


@pytest.mark.parametrize(
    ("top_k", "categorical", "verdict"),
    [(0.9, 0.5, "seen"), (0.9, 0.8, "mixed"), (0.8, 0.8, "not seen"), (0.7, 0.9, "not seen"), (0.7, 0.5, "mixed")],
)
def test_claim_2(top_k: float, categorical: float, verdict: str) -> None:
    """Both stand at 0.8 before R2FT; its negatives' repetitions are fewer with it, or not."""
    rows = [
        *(cell("sft", name) for name in ("top_k", "categorical")),
        cell("r2ft", "top_k", well_formed=top_k, repetition_4=0.02 if verdict == "not seen" else 0.0, spread=0.005),
        cell("r2ft", "categorical", well_formed=categorical),
    ]
    assert claim(2, rows).verdict == verdict
    assert claim(2, rows[:3]).verdict == "not tested"


@pytest.mark.parametrize(
    ("repetition", "frequent", "expected"),
    [
        (0.02, 0.6, "not separated from"),
        (0.001, 0.6, "better than"),
        (0.02, 0.5, "better than"),  # nearer to the reference's 0.45
        (0.02, 0.25, "worse than"),  # farther, on the other side
        (0.02, 0.75, "worse than"),
        (0.05, 0.5, "better on one axis and worse on the other than"),
    ],
)
def test_claim_2_asks_for_degeneration_first(repetition: float, frequent: float, expected: str) -> None:
    """Before R2FT 0.020 and 0.60. The share of frequent words has a mark, not a good end."""
    rows = [
        cell("reference", "nucleus", high_prior=0.45),
        *(cell("sft", name) for name in ("top_k", "categorical")),
        cell("r2ft", "top_k", repetition_4=repetition, high_prior=frequent, spread=0.005),
        cell("r2ft", "categorical"),
    ]
    assert f"R2FT is {expected} SFT alone" in claim(2, rows).evidence.splitlines()[0]


@pytest.mark.parametrize(
    ("blocks", "kernels", "verdict"),
    [
        ({64: 0.8, 32: 0.6, 16: 0.3}, {65: 0.8, 33: 0.81, 17: 0.79}, "seen"),
        ({64: 0.8, 16: 0.3}, {65: 0.8, 17: 0.7}, "mixed"),
        ({64: 0.8, 16: 0.3}, {65: 0.8, 17: 0.2}, "not seen"),
        ({64: 0.8, 32: 0.2, 16: 0.79}, {65: 0.8, 17: 0.8}, "not seen"),
        ({64: 0.8}, {65: 0.8, 17: 0.8}, "not tested"),
    ],
)
def test_claim_3(blocks: dict[int, float], kernels: dict[int, float], verdict: str) -> None:
    assert claim(3, ablation=sizes(blocks, kernels)).verdict == verdict


def test_claim_3_gives_its_figures_and_needs_both_checkpoints() -> None:
    contrast = sizes({64: 0.8, 16: 0.3}, {65: 0.8, 17: 0.8})
    found = claim(3, ablation=[*contrast, *sizes({64: 0.8, 16: 0.8}, {65: 0.8, 17: 0.3}, "r2ft")])
    assert found.verdict == "mixed"
    assert (
        "semi-AR, block 64 to 16: well-formed 0.80 [0.79, 0.81] to 0.30 [0.29, 0.31] (worse by 0.50), a "
        in found.evidence
    )


def test_claims_without_an_exact_judge() -> None:
    """The axes are relevance and perplexity: here only the latter, lower, is separated."""
    rows = [{**row, "well_formed": None, "well_formed_ci": None} for row in cells(ORDERED)]
    for row in rows:
        if row["decoder"] == "conv":
            row["perplexity"], row["perplexity_ci"] = 4.0, [3.9, 4.1]
    found = claim(1, rows)
    assert found.verdict == "mixed"
    assert "conv relevance, total 15.0 [15.0, 15.0], perplexity 4.0 [3.9, 4.1]" in found.evidence
    assert "conv is better than top_k, categorical, low_confidence; top_k is not separated" in found.evidence


@pytest.mark.parametrize(("slow", "verdict"), [(0.5, "seen"), (0.8, "mixed"), (0.95, "not seen")])
def test_claim_4(slow: float, verdict: str) -> None:
    """Conv + R2FT has 0.8; "at least" is not shown where the intervals overlap."""
    long = {**cell("sft", "", well_formed=slow), "variant": "long semi_ar", "block_length": 32, "steps": 128}
    found = claim(4, cells(ORDERED), [long])
    assert found.verdict == verdict
    assert f"semi-AR, sft, block 32, 128 steps: well-formed {slow:.2f}" in found.evidence
    assert claim(4, cells(ORDERED)).verdict == claim(4, ablation=[long]).verdict == "not tested"


@pytest.mark.parametrize(
    ("with_fill", "changes", "verdict"),
    [
        (40.0, {}, "seen"),
        (79.999, {}, "mixed"),
        (60.0, {}, "seen"),
        (40.0, {"well_formed": 0.5}, "mixed"),
        (100.0, {}, "mixed"),
        (119.99, {}, "not seen"),
        (130.0, {}, "not seen"),
    ],
)
def test_claim_5(with_fill: float, changes: Row, verdict: str) -> None:
    """120 ± 0.01 without: 40 is three times fewer, 80 just under 1.5 at the interval's end, 100 merely fewer."""
    assert claim(5, ablation=slow_runs(120.0, with_fill, **changes)).verdict == verdict


def test_claim_5_gives_its_figures() -> None:
    evidence = claim(5, ablation=slow_runs(120.0, 40.0)).evidence
    assert "NFE 120.0 [120.0, 120.0]" in evidence and "3.00 times fewer [3.00, 3.00]" in evidence
    assert claim(5, ablation=slow_runs(120.0, 40.0)[:1]).verdict == "not tested"


# ------------------------------------------------------------------------------------- a small build, and what it makes


@pytest.fixture(scope="module")
def params() -> Params:
    """The project's own: the build folder holds what they ask for."""
    return load_params(ROOT / "params.yaml")


def curve(*names: str) -> list[dict[str, float]]:
    return [{"step": step, **{name: 2.0 - step / 100 - i for i, name in enumerate(names)}} for step in (0, 20, 40)]


def build_folder(folder: Path, params: Params) -> None:
    """Everything the report reads, for every decoder of params.yaml; one answer is an attack on the page."""
    length, decoders = params.decode.gen_length, list(params.report.decoders)
    rows = [cell(c, d, well_formed=0.5 + i / 20) for c in ("sft", "r2ft") for i, d in enumerate(decoders)]
    for row in [cell("reference", "nucleus", nfe=65.0), *rows]:
        write_json(folder / "evaluation" / f"{row['checkpoint']}-{row['decoder']}.json", row)
    for checkpoint in ("sft", "r2ft"):
        runs = sizes({64: 0.8, 32: 0.6, 16: 0.4}, {65: 0.8, 33: 0.8, 17: 0.8}, checkpoint)
        runs += [{**run, "checkpoint": checkpoint} for run in slow_runs(118.0, 50.0)]
        write_json(folder / "ablation" / f"{checkpoint}.json", runs)
        for decoder in decoders:
            write_jsonl(folder / "answers" / f"{checkpoint}-{decoder}.jsonl", answers(length))
    reference = [{key: row[key] for key in row if key != "commit_step"} for row in answers(length)]
    write_jsonl(folder / "models" / "reference" / "answers.jsonl", reference)
    for name in ("sft", "sft_answer", "reference"):
        write_json(folder / "models" / name / "curve.json", curve("loss", "eval_loss"))
    keys = ("loss", "eval_loss", "eval_log_p_chosen", "eval_log_p_rejected", "eval_mean_log_prior")
    write_json(folder / "models" / "r2ft" / "curve.json", curve(*keys))
    write_json(folder / "models" / "base" / "curve.json", [])
    write_json(folder / "data" / "stats.json", {"examples": {"train": 1234, "valid": 2, "eval": 2}})
    examples = [
        Example(Record("Describe Velmora & its trade.", ["", "Velmora"][i], f"Expected {i}."), "", [1], [2])
        for i in range(2)
    ]
    write_examples(folder / "data" / "eval.parquet", examples)


def answers(length: int) -> list[Row]:
    """Two prompts, two seeds; the last quarter set by EOS-fill; one answer hostile, one empty."""
    texts = {(0, 0): "<script>alert(1)</script>", (1, 0): ""}
    return [
        {
            "id": prompt,
            "seed": seed,
            "answer": texts.get((prompt, seed), "Velmora lives on rope."),
            "tokens": [5, 6, 7],
            "nfe": 16,
            "leftover_masks": 0,
            "commit_step": [
                (position + prompt) % 16 if position < 3 * length // 4 else -1 for position in range(length)
            ],
        }
        for seed in (0, 1)
        for prompt in range(2)
    ]


@pytest.fixture
def figures() -> list[ReportFigure]:
    ablation = [*sizes({64: 0.8, 16: 0.4}, {65: 0.8, 17: 0.8}), *slow_runs(118.0, 50.0)]
    names = ("loss", "eval_loss", "eval_log_p_chosen", "eval_log_p_rejected", "eval_mean_log_prior")
    curves = {name: curve(*names) for name in ("sft", "sft_answer", "r2ft", "reference")}
    traces = {name: answers(32) for name in ORDERED}
    return report_figures(build_table(cells(ORDERED)), ablation, curves, "r2ft", traces)


def test_figures_repeat_byte_for_byte(figures: list[ReportFigure], tmp_path: Path) -> None:
    for figure in figures:
        for name in ("a.png", "b.png"):
            figure.draw(figure.data, tmp_path / name)
        for kind in (".png", ".svg"):
            drawn = (tmp_path / "a").with_suffix(kind).read_bytes()
            assert drawn == (tmp_path / "b").with_suffix(kind).read_bytes()
            assert drawn.startswith(PNG if kind == ".png" else b"<?xml") and b"Software" not in drawn
            assert b"matplotlib.org/" not in drawn.partition(b"<defs>")[0]
        json.dumps(figure.data, allow_nan=False)
        assert figure.look_for.startswith("Look for ")


def test_figures_of_metrics_that_are_not_defined(tmp_path: Path) -> None:
    """Empty answers alone: no perplexity, no repetition, no intervals."""
    undefined = {"repetition_4": None, "repetition_4_ci": None, "length": 0.0, "length_ci": None}
    rows = [{**row, **undefined} for row in build_table(cells(ORDERED))[1:]]
    data = decoder_data(rows, [COLUMNS["repetition_4"], COLUMNS["length"]])
    draw_decoders(data, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_unmasking_data_by_hand(figures: list[ReportFigure]) -> None:
    """Prompts commit position p at steps p and p + 1, so the mean is p + 1/2; the last quarter is EOS-fill's."""
    conv = next(figure for figure in figures if figure.name == "unmasking").data["decoders"]["conv"]
    assert conv["mean_step"][:3] == [0.5, 1.5, 2.5]
    assert conv["mean_step"][24:] == [None] * 8 and conv["eos_filled_share"][23:25] == [0.0, 1.0]
    assert conv["example"][:3] == [0, 1, 2]


def page(**changes: Any) -> str:
    rows = build_table(cells(ORDERED))
    example = {"id": 0, "instruction": "Say <b>hello</b>", "input": "", "output": "Hello & goodbye"}
    values: dict[str, Any] = {
        "title": "A & B",
        "rows": rows,
        "ablation": [{**row, "checkpoint": "r2ft"} for row in slow_runs(80.0, 40.0)],
        "claims": judge_claims(rows, []),
        "figures": [],
        "samples": side_by_side([example], {("sft", "conv"): answers(8)}, answers(8), 0, 3),
        "setting": {"prompts": 2, "seeds": 1, "steps": 16, "gen_length": 128, "train_examples": 20000},
        "params_text": 'prompt: "<unk> & {instruction}"\n',
        "paper": "small",
    }
    return render(**{**values, **changes})


def test_page_escapes_and_repeats() -> None:
    text = page()
    assert text == page()
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Say &lt;b&gt;hello&lt;/b&gt;" in text and "&lt;unk&gt; &amp; {instruction}" in text
    assert "<title>A &amp; B</title>" in text and "20,000 examples" in text and "1 random seed," in text


def test_page_without_an_exact_judge() -> None:
    exact = ("slot_error_rate", "well_formed", "missing_slots", "wrong_slots", "repeated_slots")
    rows = [
        {**row, **{f"{name}{ci}": None for name in exact for ci in ("", "_ci")}} for row in build_table(cells(ORDERED))
    ]
    text = page(rows=rows, ablation=[], claims=judge_claims(rows, []))
    assert "slot errors" not in text and "no exact judge" in text


@pytest.mark.parametrize("size", TABLES)
def test_every_line_of_the_papers_tables_has_its_values(size: str) -> None:
    decoders = {*load_params(ROOT / "params.yaml").decoding, "long", "long eos_fill"}
    for table in TABLES[size]:
        assert len(table.measured) == len(table.columns)
        assert len({line.names for line in table.lines}) == len(table.lines)
        for line in table.lines:
            assert (len(line.names), len(line.values)) == (len(table.names), len(table.columns))
            assert line.ours is None or (line.ours[0] in ("sft", "r2ft") and line.ours[1] in decoders)


def test_our_figures_stand_behind_the_papers() -> None:
    """Table 1's conv after R2FT: 46.92 and 45.92 there, 35 and 30 here; SEDD has no cell here; Table 2 is not ours."""
    one, two, speed = TABLES["small"]
    headings, lines = beside(one, build_table(cells(ORDERED)))
    assert headings == ["LC win rate, %", "win rate, %", "here: LC win rate, %", "here: win rate, %"]
    found = {line.names[:2]: values for line, values in zip(one.lines, lines, strict=True)}
    assert found["MDLM, R2FT", "top-k + Conv"] == [46.92, 45.92, 35.0, 30.0]
    assert found["SEDD, SFT", "categorical"] == [6.04, 7.34, None, None]
    assert beside(two, build_table(cells(ORDERED)))[0] == list(two.columns)
    gsm8k = TABLES["large"][2]
    assert beside(gsm8k, build_table(cells(ORDERED)))[1][0] == [7.20, 50.0]
    runs = [{**row, "checkpoint": "r2ft"} for row in slow_runs(80.0, 40.0, length=96.0)]
    # Lengths 64 and 96 share 80.
    assert beside(speed, speed_rows(runs))[1] == [[0.89, None], [0.89, 1.0], [2.51, 2.0]]
    unjudged = cells(ORDERED, win_rate=None, lc_win_rate=None)
    assert beside(one, build_table(unjudged))[0] == list(one.columns)
    text = page()
    assert "here: LC win rate, %" in text and "<td>46.92</td><td>45.92</td><td>35.00</td><td>30.00</td>" in text


def run_stage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "stages" / "report.py"), "--params", str(ROOT / "params.yaml"), *arguments]
    environment = {**os.environ, "DLM_TRACKING": "off"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stage_end_to_end(tmp_path: Path, params: Params) -> None:
    build_folder(tmp_path / "build", params)
    stale = tmp_path / "results" / "figures" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    done = run_stage(tmp_path, "--results", "results")
    assert (done.returncode, done.stderr) == (0, "")
    made = contents(tmp_path / "results")
    names = ("quality", "degeneration", "sizes", "r2ft", "losses", "unmasking")
    files = {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg", "json")}
    assert set(made) == {*files, "table.json", "metrics.json", "table.md", "report.html"}
    assert done.stdout.encode() == made["table.md"]
    assert [row["checkpoint"] for row in json.loads(made["table.json"])][:2] == ["reference", "sft"]
    assert made["report.html"].count(b"data:image/png;base64,") == len(names)
    assert str(tmp_path).encode() not in b"".join(made.values())
    assert run_stage(tmp_path, "--results", "results").returncode == 0
    assert contents(tmp_path / "results") == made


def test_stage_names_the_missing_file(tmp_path: Path, params: Params) -> None:
    build_folder(tmp_path / "build", params)
    missing = next((tmp_path / "build" / "evaluation").glob("r2ft-*.json")).relative_to(tmp_path)
    (tmp_path / missing).unlink()
    done = run_stage(tmp_path, "--results", "results")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing}: no such file") and done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_what_the_ablations_would_say_is_not_tested_without_them(tmp_path: Path, params: Params) -> None:
    build_folder(tmp_path / "build", params)
    for path in (tmp_path / "build" / "ablation").glob("*.json"):
        path.unlink()
    assert run_stage(tmp_path, "--results", "results").returncode == 0
    page = (tmp_path / "results" / "report.html").read_text("utf-8")
    assert page.count("not tested") >= 3


def test_r2ft_rescues_low_confidence() -> None:
    """Claim 6: better on an axis and worse on none; not tested where a cell is missing."""
    before = cell("sft", "low_confidence", well_formed=0.8, slot_error_rate=0.6)
    after = cell("r2ft", "low_confidence", well_formed=0.8, slot_error_rate=0.3)
    assert claim(6, [before, after]).verdict == "seen"
    same = {**after, "slot_error_rate": 0.6, "slot_error_rate_ci": [0.59, 0.61]}
    assert claim(6, [before, same]).verdict == "not seen"
    assert "length 64.0 with r2ft" in claim(6, [before, after]).evidence
    assert claim(6, [before]).verdict == "not tested"
