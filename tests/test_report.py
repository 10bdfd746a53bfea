"""The report: table and claims by hand, figures and page that repeat byte for byte, and the stage end to end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from scripts import stage

from dlm.analysis.claims import Claim, combine, density_note, judge_claims
from dlm.analysis.comparisons import relation
from dlm.analysis.figures import ReportFigure, passes_data, report_figures, size_data
from dlm.analysis.page import render, side_by_side
from dlm.analysis.panels import decoder_data, draw_decoders
from dlm.analysis.paper import TABLES, with_ours
from dlm.analysis.selection import selection_rows
from dlm.analysis.table import (
    COLUMNS,
    bound_rows,
    build_table,
    groups,
    headline,
    is_best,
    long_runs,
    name_of,
    over_passes,
    quality_axes,
    speed_rows,
    to_markdown,
)
from dlm.config.params import Params, load_params
from dlm.data.records import Record
from dlm.data.splits import Example, write_examples
from dlm.evaluation.cell import PER_ANSWER
from dlm.files import write_json, write_jsonl

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"
Row = dict[str, Any]
# What an ordinary cell measures; tests say what differs.
USUAL = {
    "quality": 0.75,
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


def cell(checkpoint: str, decoder: str, *, steps: int = 16, spread: float = 0.01, **values: Any) -> Row:
    """A cell whose intervals reach `spread` to both sides; a metric given as None has neither value nor interval."""
    budget = None if checkpoint == "reference" else steps
    row: Row = {"checkpoint": checkpoint, "decoder": decoder, "steps": budget, "gen_length": 128}
    row |= {"n": 600, "prompts": 200}
    for name, value in {**USUAL, **values}.items():
        row[name] = value
        row[f"{name}_ci"] = None if value is None else [value - spread, value + spread]
    return row


def cells(well_formed: dict[str, float], **values: Any) -> list[Row]:
    """Both checkpoints with the same well_formed by decoder, and a reference."""
    found = [cell(c, d, well_formed=share, **values) for c in ("sft", "r2ft") for d, share in well_formed.items()]
    return [cell("reference", "nucleus", nfe=65.0, **values), *found]


def sizes(
    blocks: dict[int, float],
    kernels: dict[int, float],
    checkpoint: str = "sft",
    *,
    rule: str = "top_k",
    steps: int = 16,
) -> list[Row]:
    """Rows of a grid: well_formed by block length and by kernel size."""
    lists = (("semi_ar", "block_length", blocks), ("conv", "kernel_size", kernels))
    return [
        tried(cell(checkpoint, decoder, steps=steps, well_formed=share), {"rule": rule, option: size})
        for decoder, option, shares in lists
        for size, share in shares.items()
    ]


def tried(row: Row, candidate: Row) -> Row:
    """A row of a grid: the candidate apart, and its options among all others."""
    return {**row, "candidate": candidate, **candidate}


def slow_runs(without: float, with_fill: float, **values: Any) -> list[Row]:
    return [
        {**cell("sft", "", nfe=without, steps=128), "variant": "plain"},
        {**cell("sft", "", nfe=with_fill, steps=128, **values), "variant": "eos_fill"},
    ]


def claim(
    number: int, rows: Iterable[Row] = (), grid: Iterable[Row] = (), ablation: Iterable[Row] = (), steps: int = 16
) -> Claim:
    return judge_claims(build_table(list(rows)), list(grid), list(ablation), steps)[number - 1]


ORDERED = {"categorical": 0.2, "top_k": 0.5, "low_confidence": 0.3, "conv": 0.8}


def test_tokens_per_step_by_hand() -> None:
    """L*_norm = (60 + 20) / 2 = 40, the reference's 65 aside; NFE 16 [15, 20] gives 2.5 [40/20, 40/15]."""
    long, short = cell("sft", "conv", length=60.0), cell("sft", "top_k", length=20.0, nfe=8.0)
    long["nfe_ci"] = [15.0, 20.0]
    reference, first, second = build_table([long, short, cell("reference", "nucleus", length=65.0)])
    assert (first["tokens_per_step"], first["tokens_per_step_ci"]) == (2.5, [2.0, pytest.approx(40 / 15)])
    assert second["tokens_per_step"] == 5.0
    assert (reference["tokens_per_step"], reference["tokens_per_step_ci"]) == (1.0, None)


def test_tokens_per_step_share_the_length_of_their_budget() -> None:
    """S = 16: (60 + 20) / 2 = 40 tokens in 16 passes; S = 64: (100 + 80) / 2 = 90 in 45."""
    rows = [
        cell("sft", "conv", length=60.0),
        cell("sft", "top_k", length=20.0),
        cell("sft", "conv", steps=64, length=100.0, nfe=45.0),
        cell("sft", "top_k", steps=64, length=80.0, nfe=45.0),
    ]
    assert [row["tokens_per_step"] for row in build_table(rows)] == [2.5, 2.5, 2.0, 2.0]


def test_headline_is_a_few_numbers_a_cell() -> None:
    rows = [
        cell("reference", "nucleus", nfe=65.0),
        cell("sft", "conv", quality=0.61238, area=0.70004),
        cell("sft", "conv", steps=64, nfe=40.0, quality=0.8, area=0.70004),
        cell("sft", "top_k"),
    ]
    assert headline(build_table(rows)) == {
        "reference-nucleus": {"quality_16": 0.75, "nfe_16": 65.0, "quality_64": 0.75, "nfe_64": 65.0},
        "sft-conv": {"area": 0.7, "quality_16": 0.6124, "nfe_16": 16.0, "quality_64": 0.8, "nfe_64": 40.0},
        "sft-top_k": {"quality_16": 0.75, "nfe_16": 16.0},
    }


def test_rows_keep_the_order_and_the_keys() -> None:
    found = build_table(
        [
            cell("sft", "top_k"),
            cell("r2ft", "top_k"),
            cell("sft", "conv"),
            cell("sft", "conv", steps=8),
            cell("sft", "top_k", steps=8),
            cell("r2ft", "conv"),
            cell("reference", "nucleus"),
        ]
    )
    assert [(row["checkpoint"], row["steps"], row["decoder"]) for row in found] == [
        ("reference", None, "nucleus"), ("sft", 8, "top_k"), ("sft", 8, "conv"), ("sft", 16, "top_k"),
        ("sft", 16, "conv"), ("r2ft", 16, "top_k"), ("r2ft", 16, "conv"),
    ]  # fmt: skip
    metrics = {*PER_ANSWER, "distinct_2", "tokens_per_step", "win_rate", "lc_win_rate", "judge_failed", "mauve"}
    metrics.add("area")
    expected = {"checkpoint", "decoder", "steps", "gen_length", "n", "setting"}
    expected |= {*metrics, *(f"{name}_ci" for name in metrics)}
    assert all(set(row) == expected for row in found)


def test_a_row_is_named_after_its_setting() -> None:
    """That of its own number of steps; the reference has none, whatever a decoder of its name has."""
    settings = {("conv", 16): {"kernel_size": 9, "rule": "top_k"}, ("conv", 64): {"kernel_size": 33}, ("top_k", 16): {}}
    rows = [cell("reference", "conv"), cell("sft", "conv"), cell("sft", "top_k"), cell("sft", "conv", steps=64)]
    found = [name_of(row) for row in build_table(rows, settings)]
    assert found == ["conv", "conv (kernel_size 9, rule top_k)", "top_k", "conv (kernel_size 33)"]
    assert [name_of(row) for row in build_table(rows)] == ["conv", "conv", "top_k", "conv"]


def budgets() -> list[Row]:
    """Two decoders at two numbers of steps, and a reference."""
    return [
        cell("reference", "nucleus", quality=0.9, nfe=65.0),
        cell("sft", "top_k", quality=0.5, nfe=16.0, area=0.62),
        cell("sft", "conv", quality=0.4, nfe=12.0, area=0.6),
        cell("sft", "top_k", steps=64, quality=0.7, nfe=50.0, area=0.62),
        cell("sft", "conv", steps=64, quality=0.8, nfe=40.0, area=0.6, spread=0.02),
    ]


def test_quality_over_passes_by_hand() -> None:
    """A row for each cell, its budgets side by side; the reference, which has none, stands at both."""
    (reference, top_k, conv), columns = over_passes(build_table(budgets()))
    assert [column.heading for column in columns] == [
        "quality, S = 16", "NFE, S = 16", "quality, S = 64", "NFE, S = 64", "area",
    ]  # fmt: skip
    values = [[row[column.name] for column in columns] for row in (reference, top_k, conv)]
    assert values == [[0.9, 65.0, 0.9, 65.0, None], [0.5, 16.0, 0.7, 50.0, 0.62], [0.4, 12.0, 0.8, 40.0, 0.6]]
    assert conv["quality_64_ci"] == pytest.approx([0.78, 0.82]) and conv["quality_16_ci"] == pytest.approx([0.39, 0.41])
    assert over_passes(build_table(budgets()[:3])) == ([], [])


def test_markdown_of_several_budgets() -> None:
    """The first table has them side by side; in the others bold is the best among as many steps."""
    text = to_markdown(build_table(budgets(), {("conv", 16): {"kernel_size": 9}}))
    first, second = text[: text.index("**Quality and speed**")], text[text.index("**Quality and speed**") :]
    assert first.startswith("**Quality over forward passes**")
    shown = [re.sub(" +", " ", line) for line in text.splitlines()]
    assert "| sft | top_k | **0.50** ± 0.01 | 16.0 ± 0.0 | 0.70 ± 0.01 | 50.0 ± 0.0 | **0.62** ± 0.01 |" in shown
    assert "| sft | conv | 0.40 ± 0.01 | **12.0** ± 0.0 | **0.80** ± 0.02 | **40.0** ± 0.0 | 0.60 ± 0.02 |" in shown
    assert "| reference | nucleus | 0.90 ± 0.01 | 65.0 ± 0.0 | 0.90 ± 0.01 | 65.0 ± 0.0 | – |" in shown
    assert re.search(r"\| sft +\| top_k +\| +16 \| +\*\*0.50\*\* ± 0.01 \|", second)
    assert re.search(r"\| sft +\| conv \(kernel_size 9\) +\| +16 \| +0.40 ± 0.01 \|", second)
    assert re.search(r"\| sft +\| conv +\| +64 \| +\*\*0.80\*\* ± 0.02 \|", second)
    assert "16 steps for 128 tokens, 600 answers a row. 64 steps for 128 tokens, 600 answers a row." in second
    assert "- area: " in first and "- area: " not in second


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
    assert [part.strip() for part in header.split("|")][1:6] == [
        "checkpoint",
        "decoder",
        "quality ↑",
        "well-formed ↑",
        "slot errors ↓",
    ]
    assert set(rule) <= set("|-: ")
    assert "0.99 ± 0.01" in reference and "0.50 ± 0.01" in top_k and "**0.80** ± 0.10" in conv
    assert len({len(line) for line in (header, rule, reference, top_k, conv)}) == 1
    assert "16 steps for 128 tokens, 600 answers a row." in text
    shown = [column for column in COLUMNS.values() if column.name != "leftover_masks"]
    assert all(f"- {column.heading}: {column.meaning}." in text for column in shown)
    assert text.count("leftover") == 1 and "- 0 in every row, and left out: leftover.\n" in text


def test_markdown_of_the_long_runs() -> None:
    """One line a run, named by its decoder, with its steps."""
    ablation = [
        *slow_runs(81.0, 40.0, well_formed=0.9),
        {**cell("sft", "", steps=128), "variant": "low_confidence"},
        {**cell("sft", "", steps=128), "variant": "semi_ar", "block_length": 64},
    ]
    long = long_runs(ablation)
    assert [row["decoder"] for row in long] == [
        "conv without EOS-fill", "conv", "conv over low_confidence", "semi_ar, block 64",
    ]  # fmt: skip
    text = to_markdown(build_table(cells(ORDERED)), long)
    third = text[text.index("**As many steps as tokens**") :]
    assert re.search(r"\| sft +\| conv +\| +128 \| +0.75 ± 0.01 \| +\*\*0.90\*\* ± 0.01 \|", third)
    assert "**As many steps as tokens**" not in to_markdown(build_table(cells(ORDERED)))


def test_a_column_of_failures_appears_where_something_failed() -> None:
    rows = build_table(cells(ORDERED, judge_failed=0.0))
    assert "judge failed" not in to_markdown(rows)
    rows[2]["judge_failed"] = 0.25
    assert "judge failed" in to_markdown(rows)


def test_win_rates_that_are_zero_everywhere_are_left_out_and_named() -> None:
    rows = build_table(cells(ORDERED, win_rate=0.0, lc_win_rate=0.0))
    headings = [column.heading for _, _, columns in groups(rows, []) for column in columns]
    assert "quality" in headings and "win rate" not in headings and "LC win rate" not in headings
    assert "- 0 in every row, and left out: LC win rate, win rate." in to_markdown(rows)
    rows[3]["win_rate"] = 0.4
    headings = [column.heading for _, _, columns in groups(rows, []) for column in columns]
    assert "win rate" in headings and "LC win rate" not in headings
    assert "left out: win" not in to_markdown(build_table(cells(ORDERED, win_rate=None, lc_win_rate=None)))


def test_markdown_leaves_out_what_no_row_has() -> None:
    rows = build_table(cells(ORDERED, slot_error_rate=None, missing_slots=None, wrong_slots=None, repeated_slots=None))
    for row in rows:
        row["well_formed"] = row["well_formed_ci"] = None
    text = to_markdown(rows).replace(COLUMNS["quality"].meaning, "")
    assert "slot errors" not in text and "well-formed" not in text
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
    """Judged at one budget, the other options as in the first candidate: no other steps count, and no other rule."""
    others = sizes({64: 0.8, 16: 0.8}, {65: 0.8, 17: 0.1}, rule="low_confidence")
    others += sizes({64: 0.1, 16: 0.8}, {65: 0.8, 17: 0.1}, steps=64)
    assert claim(3, grid=[*sizes(blocks, kernels), *others]).verdict == verdict


def test_claim_3_gives_its_figures_and_needs_both_checkpoints() -> None:
    contrast = sizes({64: 0.8, 16: 0.3}, {65: 0.8, 17: 0.8})
    found = claim(3, grid=[*contrast, *sizes({64: 0.8, 16: 0.8}, {65: 0.8, 17: 0.3}, "r2ft")])
    assert found.verdict == "mixed"
    assert found.evidence.startswith("16 steps, prompts of valid. Judged by well-formed, largest against smallest")
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
    long = slow_semi_ar(slow)
    found = claim(4, cells(ORDERED), ablation=[long])
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


def test_claims_are_judged_at_one_budget_and_the_others_stand_beside() -> None:
    """With 16 steps the order is the claim's, with 64 all are alike."""
    alike = [{**row, "steps": 64} for row in cells(dict.fromkeys(ORDERED, 0.5))[1:]]
    rows = [*cells(ORDERED), *alike]
    few, many = claim(1, rows, steps=16), claim(1, rows, steps=64)
    assert (few.verdict, many.verdict) == ("seen", "not seen")
    *first, second_budget = many.evidence.splitlines()
    assert [line[:30] for line in first] == ["sft, 64 steps for 128 tokens: ", "r2ft, 64 steps for 128 tokens:"]
    assert second_budget.startswith(
        "Beside it, at S = 16 (seen): sft, 16 steps for 128 tokens: conv well-formed 0.80 [0.79, "
    )
    assert "\nBeside it, at S = 64 (not seen): sft, 64 steps" in few.evidence
    beside_it = [found.number for found in judge_claims(rows, [], [], 64) if "Beside it, at S = 16" in found.evidence]
    assert beside_it == [1, 2, 6]
    assert "Beside it" not in claim(1, cells(ORDERED)).evidence
    assert "r2ft conv, 64 steps: " in claim(4, rows, ablation=[slow_semi_ar(0.5)], steps=64).evidence


def slow_semi_ar(well_formed: float) -> Row:
    return {**cell("sft", "", steps=128, well_formed=well_formed), "variant": "semi_ar", "block_length": 32}


def test_density_by_hand() -> None:
    """A kernel of a quarter of 128 reaches 16 to a side: 8 tokens a step are half of that, 2 an eighth. The paper's own
    numbers give the paper's share."""
    note = density_note(128, [16, 64], 64)
    assert "would reach 16, and a step commits 8 at S = 16 (0.50 of that reach), 2 at S = 64 (0.12 of that" in note
    assert note.endswith("judged at S = 64.")
    paper = density_note(1024, [128], 128)
    assert "reaches 128 tokens: 0.06 of its reach" in paper
    assert "would reach 128, and a step commits 8 at S = 128 (0.06 of that reach)" in paper


# ------------------------------------------------------------------------------------- a small build, and what it makes


@pytest.fixture(scope="module")
def params() -> Params:
    """The project's own: the build folder holds what they ask for."""
    return load_params(ROOT / "params.yaml")


def curve(*names: str) -> list[dict[str, float]]:
    return [{"step": step, **{name: 2.0 - step / 100 - i for i, name in enumerate(names)}} for step in (0, 20, 40)]


def build_folder(folder: Path, params: Params) -> None:
    """Everything the report reads, for every decoder of params.yaml; one answer is an attack on the page."""
    length, decoders, steps = params.decode.gen_length, list(params.report.decoders), params.decode.steps
    write_json(folder / "evaluation" / "reference-nucleus.json", [cell("reference", "nucleus", nfe=65.0)])
    for checkpoint in ("sft", "r2ft"):
        runs = [{**run, "checkpoint": checkpoint} for run in [*slow_runs(118.0, 50.0), slow_semi_ar(0.6)]]
        write_json(folder / "evaluation" / "ablation" / f"{checkpoint}.json", runs)
        for i, decoder in enumerate(decoders):
            changes = {"well_formed": 0.5 + i / 20, "area": 0.6}
            rows = [cell(checkpoint, decoder, steps=budget, nfe=float(budget), **changes) for budget in steps]
            write_json(folder / "evaluation" / f"{checkpoint}-{decoder}.json", rows)
            written = [{**answer, "steps": budget} for budget in steps for answer in answers(length)]
            write_jsonl(folder / "answers" / f"{checkpoint}-{decoder}.jsonl", written)
    for decoder in decoders:
        candidates = params.block(decoder).candidates
        chosen = [{"steps": budget, "options": candidates[-1]} for budget in steps]
        write_json(folder / "selection" / f"{decoder}.json", chosen)
        grid = [
            tried(cell(checkpoint, decoder, steps=budget, quality=0.5 + i / 100), candidate)
            for checkpoint in ("sft", "r2ft")
            for budget in steps
            for i, candidate in enumerate(candidates if len(candidates) > 1 else [])
        ]
        write_json(folder / "selection" / f"{decoder}-grid.json", grid)
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
    grid = [*sizes({64: 0.8, 16: 0.4}, {65: 0.8, 17: 0.8}), *sizes({64: 0.8, 16: 0.7}, {65: 0.8, 17: 0.8}, steps=64)]
    rows = build_table([*cells(ORDERED), *({**row, "steps": 64, "nfe": 50.0} for row in cells(ORDERED)[1:])])
    names = ("loss", "eval_loss", "eval_log_p_chosen", "eval_log_p_rejected", "eval_mean_log_prior")
    curves = {name: curve(*names) for name in ("sft", "sft_answer", "r2ft", "reference")}
    traces = {name: answers(32) for name in ORDERED}
    return report_figures(rows, grid, 16, curves, "r2ft", traces)


def test_figures_are_of_the_judged_budget(figures: list[ReportFigure]) -> None:
    """Those over passes and sizes have all; without other budgets or candidates they are not there."""
    assert [figure.name for figure in figures][:4] == ["passes", "quality", "degeneration", "sizes"]
    assert all(figure.title.endswith(", S = 16") for figure in figures[1:3])
    curves = {name: curve("loss", "eval_loss") for name in ("sft", "sft_answer", "r2ft", "reference")}
    curves["r2ft"] = curve("loss", "eval_loss", "eval_log_p_chosen", "eval_log_p_rejected", "eval_mean_log_prior")
    unchosen = [tried(cell("sft", "top_k"), {"top_k": k}) for k in (1, 5)]
    for grid in ([], unchosen):
        made = report_figures(build_table(cells(ORDERED)), grid, 16, curves, "r2ft", {"conv": answers(32)})
        assert [figure.name for figure in made] == ["quality", "degeneration", "r2ft", "losses", "unmasking"]


def test_lines_over_passes_by_hand() -> None:
    """A panel for each checkpoint, a line for each decoder from few passes to many; the reference is none of them."""
    found = passes_data(build_table([*budgets(), cell("r2ft", "conv", quality=0.3, nfe=15.0)]))
    assert [panel["title"] for panel in found["panels"]] == ["quality ↑, sft", "quality ↑, r2ft"]
    sft, r2ft = ({line["label"]: (line["x"], line["value"]) for line in panel["lines"]} for panel in found["panels"])
    assert sft == {"top_k": ([16.0, 50.0], [0.5, 0.7]), "conv": ([12.0, 40.0], [0.4, 0.8])}
    assert r2ft == {"top_k": ([], []), "conv": ([15.0], [0.3])}


def test_lines_over_sizes_by_hand() -> None:
    """A panel for each budget; the first candidate's rule alone."""
    grid = [
        *sizes({64: 0.8, 16: 0.4}, {65: 0.7, 17: 0.6}),
        *sizes({64: 0.1, 16: 0.1}, {65: 0.1, 17: 0.1}, rule="low_confidence"),
        *sizes({64: 0.9, 16: 0.5}, {65: 0.95}, steps=64),
    ]
    found = size_data(grid, [COLUMNS["well_formed"]])
    assert [panel["title"] for panel in found["panels"]] == ["well-formed ↑, S = 16", "well-formed ↑, S = 64"]
    few, many = ({line["label"]: (line["x"], line["value"]) for line in panel["lines"]} for panel in found["panels"])
    block, kernel = "semi-AR over block length", "Conv over kernel size"
    assert few == {block: ([16, 64], [0.4, 0.8]), kernel: ([17, 65], [0.6, 0.7])}
    assert many == {block: ([16, 64], [0.5, 0.9]), kernel: ([65], [0.95])}


def test_figures_repeat_byte_for_byte(figures: list[ReportFigure], tmp_path: Path) -> None:
    for figure in figures:
        for name in ("a.png", "b.png"):
            figure.draw(figure.data, tmp_path / name)
        for kind in (".png", ".svg", ".pdf"):
            drawn = (tmp_path / "a").with_suffix(kind).read_bytes()
            assert drawn == (tmp_path / "b").with_suffix(kind).read_bytes()
            assert (
                drawn.startswith({".png": PNG, ".svg": b"<?xml", ".pdf": b"%PDF-"}[kind]) and b"Software" not in drawn
            )
            assert not any(word in drawn for word in (b"Date", b"matplotlib.org/", b"Producer", b"Creator"))
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


def chosen(grid: list[Row]) -> list[Row]:
    """The grid's candidates, the last of each decoder and budget chosen."""
    return selection_rows(grid, {(row["decoder"], row["steps"]): row["candidate"] for row in grid})


BOUNDS: list[dict[str, Any]] = [
    {"checkpoint": "base", "nll": 0.7514, "nll_ci": [0.70, 0.80], "record_nll": [4.0, 2.0], "record_tokens": [6, 2]},
    {"checkpoint": "r2ft", "nll": 0.5004, "nll_ci": [0.45, 0.56], "record_nll": [3.0, 1.0], "record_tokens": [6, 2]},
]


def test_the_bounds_have_a_table_of_their_own() -> None:
    """The lower one is bold, the upper one not; ± is half of 0.10. The change: both records gain a nat, -2 of 8 tokens;
    from their 6 and 2 tokens one would expect -1.5 and -0.5, so 1.96 · sqrt(2 · (0.5² + 0.5²)) / 8."""
    text = to_markdown(build_table(cells(ORDERED)), bounds=bound_rows(BOUNDS))
    lines = text.split("**Likelihood of held-out answers**")[1].split("\n\n")[1].splitlines()
    assert [[part.strip() for part in line.strip("|").split("|")] for line in lines[2:]] == [
        ["base", "bound", "0.751 ± 0.050", "–"],
        ["r2ft", "bound", "**0.500** ± 0.055", "-0.2500 ± 0.2450"],
    ]
    assert "Likelihood of held-out" not in to_markdown(build_table(cells(ORDERED)))
    assert "[0.450, 0.560]" in page() and "Likelihood of held-out" not in page(likelihoods=[])


def page(**changes: Any) -> str:
    rows = build_table(cells(ORDERED))
    example = {"id": 0, "instruction": "Say <b>hello</b>", "input": "", "output": "Hello & goodbye"}
    values: dict[str, Any] = {
        "title": "A & B",
        "rows": rows,
        "selection": chosen(sizes({64: 0.8, 16: 0.4}, {65: 0.8, 17: 0.8})),
        "ablation": [{**row, "checkpoint": "r2ft"} for row in slow_runs(80.0, 40.0)],
        "likelihoods": BOUNDS,
        "claims": judge_claims(rows, [], [], 16),
        "figures": [],
        "samples": side_by_side([example], {("sft", "conv"): answers(8)}, answers(8), 0, 3),
        "setting": {
            "prompts": 2,
            "seeds": 1,
            "budgets": [16, 64],
            "judged_steps": 16,
            "gen_length": 128,
            "train_examples": 20000,
        },
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
    assert "tokens in 16 or 64 steps" in text and density_note(128, [16, 64], 16) in text
    assert "rule top_k, kernel_size 17" in text and 'href="#selection"' in text
    assert 'id="selection"' not in page(selection=[]) and 'href="#selection"' not in page(selection=[])


def test_page_without_an_exact_judge() -> None:
    exact = ("slot_error_rate", "well_formed", "missing_slots", "wrong_slots", "repeated_slots")
    rows = [
        {**row, **{f"{name}{ci}": None for name in exact for ci in ("", "_ci")}} for row in build_table(cells(ORDERED))
    ]
    text = page(rows=rows, ablation=[], claims=judge_claims(rows, [], [], 16))
    text = text.replace(COLUMNS["quality"].meaning, "")
    assert "slot errors" not in text and "no exact judge" in text


@pytest.mark.parametrize("size", TABLES)
def test_every_line_of_the_papers_tables_has_its_values(size: str) -> None:
    decoders = {*load_params(ROOT / "params.yaml").decoding, "plain", "eos_fill"}
    for table in TABLES[size]:
        assert len(table.measured) == len(table.columns)
        assert len({line.names for line in table.lines}) == len(table.lines)
        for line in table.lines:
            assert (len(line.names), len(line.values)) == (len(table.names), len(table.columns))
            assert line.ours in (None, ("sedd", "tweedie")) or (
                line.ours[0] in ("sft", "r2ft") and line.ours[1] in decoders
            )


def test_our_figures_stand_behind_the_papers() -> None:
    """Table 1's conv after R2FT: 46.92 and 45.92 there, 35 and 30 here; SEDD has no cell here; Table 2 is not ours."""
    one, two, speed = TABLES["small"]
    headings, lines = with_ours(one, build_table(cells(ORDERED)))
    assert headings == ["LC win rate, %", "win rate, %", "here: LC win rate, %", "here: win rate, %"]
    found = {line.names[:2]: values for line, values in zip(one.lines, lines, strict=True)}
    assert found["MDLM, R2FT", "top-k + Conv"] == [46.92, 45.92, 35.0, 30.0]
    assert found["SEDD, SFT", "categorical"] == [6.04, 7.34, None, None]
    assert with_ours(two, build_table(cells(ORDERED)))[0] == list(two.columns)
    gsm8k = TABLES["large"][2]
    assert with_ours(gsm8k, build_table(cells(ORDERED)))[1][0] == [7.20, 50.0]
    runs = [{**row, "checkpoint": "r2ft"} for row in slow_runs(80.0, 40.0, length=96.0)]
    # Lengths 64 and 96 share 80.
    assert with_ours(speed, speed_rows(runs))[1] == [[0.89, None], [0.89, 1.0], [2.51, 2.0]]
    unjudged = cells(ORDERED, win_rate=None, lc_win_rate=None)
    assert with_ours(one, build_table(unjudged))[0] == list(one.columns)
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
    names = ("passes", "quality", "degeneration", "sizes", "r2ft", "losses", "unmasking")
    files = {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg", "pdf", "json")}
    files |= {f"metrics/{cell}.json" for cell in headline(json.loads(made["table.json"]))}
    tables = {f"table.{kind}" for kind in ("json", "md", "csv", "tex")}
    assert set(made) == {*files, *tables, "claims.json", "selection.md", "report.html"}
    assert done.stdout.encode() == made["table.md"]
    table = json.loads(made["table.json"])
    assert [row["checkpoint"] for row in table][:2] == ["reference", "sft"]
    chosen = {(row["steps"], row["setting"]) for row in table if row["decoder"] == "conv"}
    assert chosen == {(steps, "rule low_confidence, kernel_size 5, gain sigmoid") for steps in params.decode.steps}
    assert made["selection.md"].count(b"**") == 2 * 4 * len(params.decode.steps)  # of four decoders one at each budget
    assert made["report.html"].count(b"data:image/png;base64,") == len(names)
    assert str(tmp_path).encode() not in b"".join(made.values())
    assert untested(tmp_path) == []
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


@pytest.fixture
def written(tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The stage over the build folder without figures, which take most of its time."""
    build_folder(tmp_path / "build", params)
    monkeypatch.setattr("dlm.analysis.figures.write_figures", lambda folder, figures: [])
    shipped = str(ROOT / "params.yaml")
    return lambda: stage("report", "--params", shipped, "--results", "results", folder=tmp_path)


def test_what_the_ablations_would_say_is_not_tested_without_them(tmp_path: Path, written: Callable[[], None]) -> None:
    for path in (tmp_path / "build" / "evaluation" / "ablation").glob("*.json"):
        path.unlink()
    written()
    assert untested(tmp_path) == ["4", "5"]


def untested(folder: Path) -> list[str]:
    """The claims that the page says are not tested."""
    page = (folder / "results" / "report.html").read_text("utf-8")
    return re.findall(r'<th scope="row">(\d)\. [^<]*</th><td class="verdict not-tested">not tested<', page)


def test_claims_about_sizes_are_not_tested_without_the_grids(tmp_path: Path, written: Callable[[], None]) -> None:
    for path in (tmp_path / "build" / "selection").glob("*-grid.json"):
        path.unlink()
    written()
    assert untested(tmp_path) == ["3"]
    assert (tmp_path / "results" / "selection.md").read_text() == ""


def test_r2ft_rescues_low_confidence() -> None:
    """Claim 6: better on an axis and worse on none; not tested where a cell is missing."""
    before = cell("sft", "low_confidence", well_formed=0.8, slot_error_rate=0.6)
    after = cell("r2ft", "low_confidence", well_formed=0.8, slot_error_rate=0.3)
    assert claim(6, [before, after]).verdict == "seen"
    same = {**after, "slot_error_rate": 0.6, "slot_error_rate_ci": [0.59, 0.61]}
    assert claim(6, [before, same]).verdict == "not seen"
    assert "length 64.0 with r2ft" in claim(6, [before, after]).evidence
    assert claim(6, [before]).verdict == "not tested"
