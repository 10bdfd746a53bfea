"""The report's page: the answer comes first, the rest is folded, and what it says of quality is true."""

from html.parser import HTMLParser
from typing import Any

import pytest
from test_report import ORDERED, answers, budgets, cell, cells, chosen, figures, page, sizes, slow_runs  # noqa: F401 (a fixture)
from test_report import slow_semi_ar as slow

from dlm.analysis.claims import judge_claims
from dlm.analysis.figures import ReportFigure
from dlm.analysis.page import FRONT_ROWS, front_table, side_by_side
from dlm.analysis.table import Row, build_table

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Outline(HTMLParser):
    """Ids, images and tables in their order, each with whether it is folded; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, bool]] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        name = f"#{values['id']}" if "id" in values else f"{tag}.{values.get('class')}" if tag == "table" else tag
        if "id" in values or tag in ("table", "img"):
            self.found.append((name, "details" in self.open))
        if "id" in values:
            self.text[str(values["id"])] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for name in list(self.text)[-1:]:
            self.text[name] += data


def whole(**changes: Any) -> str:
    """A page whose claims are all tested."""
    rows = build_table([*cells(ORDERED), *({**row, "steps": 64} for row in cells(ORDERED)[1:])])
    grid = sizes({64: 0.8, 16: 0.3}, {65: 0.8, 17: 0.8})
    ablation = [*slow_runs(120.0, 40.0), slow(0.5)]
    values = {
        "rows": rows,
        "selection": chosen(grid),
        "ablation": ablation,
        "likelihoods": [],
        "claims": judge_claims(rows, grid, ablation, 16),
    }
    return page(**{**values, **changes})


def test_the_answer_comes_first(figures: list[ReportFigure]) -> None:  # noqa: F811
    """The box with verdicts and the first figure, some rows, samples; all else folded."""
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (660).to_bytes(4, "big") + (880).to_bytes(4, "big")
    outline = Outline(whole(figures=[(figure, png) for figure in figures]))
    shown = [name for name, folded in outline.found if not folded]
    assert shown == ["#answer", "table.claims", "img", "#results", "table.numbers front"]
    folded = [name for name, folded in outline.found if folded]
    assert [name for name in folded if name.startswith("#")] == [
        "#claims", "#tables", "#figures", "#selection", "#samples", "#paper", "#parameters",
    ]  # fmt: skip
    assert folded.count("img") == len(figures) - 1 and "table.numbers" in folded


def test_every_claim_has_its_verdict_and_a_number_with_its_interval() -> None:
    """And what another budget says; the claim in full stands further down."""
    rows = build_table([*cells(ORDERED), *({**row, "steps": 64} for row in cells(dict.fromkeys(ORDERED, 0.5))[1:])])
    text = whole(
        claims=judge_claims(
            rows, sizes({64: 0.8, 16: 0.3}, {65: 0.8, 17: 0.8}), [*slow_runs(120.0, 40.0), slow(0.5)], 16
        )
    )
    box = " ".join(Outline(text).text["answer"].split())
    for brief in (
        "after sft, well-formed: conv 0.80 [0.79, 0.81], top_k 0.50 [0.49, 0.51] at S = 64: not seen",
        "top_k, well-formed: sft 0.50 [0.49, 0.51], r2ft 0.50 [0.49, 0.51]",
        "blocks 64 to 16: 0.80 [0.79, 0.81] to 0.30 [0.29, 0.31]; kernels 65 to 17: 0.80 [0.79, 0.81] to 0.80 [0.79",
        "well-formed: r2ft conv in 16 steps 0.80 [0.79, 0.81], semi-AR in 128 (sft) 0.50 [0.49, 0.51]",
        "after sft, 3.00 times fewer [3.00, 3.00] in 128 steps",
        "low_confidence, well-formed: sft 0.30 [0.29, 0.31], r2ft 0.30 [0.29, 0.31]",
    ):
        assert brief in box
    assert box.startswith(
        "What is seen here, and what is not Seen: claims 1, 3, 4, 5. Not seen: claims 2, 6. Judged after 16"
    )


def test_a_claim_that_differs_on_both_axes_shows_both() -> None:
    before = cell("sft", "low_confidence", well_formed=0.9, slot_error_rate=0.5)
    after = cell("r2ft", "low_confidence", well_formed=0.8, slot_error_rate=0.2)
    found = judge_claims(build_table([before, after]), [], [], 16)[5]
    assert found.verdict == "mixed"
    assert found.brief == (
        "low_confidence, well-formed: sft 0.90 [0.89, 0.91], r2ft 0.80 [0.79, 0.81]; "
        "slot errors: sft 0.50 [0.49, 0.51], r2ft 0.20 [0.19, 0.21]"
    )


def test_front_table_has_the_best_by_area_and_the_reference() -> None:
    """Nine cells; the two of least area are not shown, the order stays, bold is the best of all."""
    areas = [0.5, 0.1, 0.9, 0.4, 0.6, 0.7, 0.2, 0.3, 0.8]
    made = [
        cell("sft", f"d{i}", steps=steps, area=area, quality=area) for i, area in enumerate(areas) for steps in (16, 64)
    ]
    front = front_table(build_table([cell("reference", "nucleus"), *made]), 64)
    assert [row["decoder"] for row in front["rows"]] == ["nucleus", "d0", "d2", "d3", "d4", "d5", "d7", "d8"]
    assert (len(front["rows"]), front["left_out"], front["by"]) == (FRONT_ROWS + 1, 2, "area")
    assert [column.name for column in front["columns"]] == ["quality_16", "quality_64", "nfe_64", "area"]


def test_front_table_of_one_budget_and_of_undefined_quality() -> None:
    rows = build_table(cells(ORDERED))
    front = front_table(rows, 16)
    assert [column.name for column in front["columns"]] == ["quality", "well_formed", "slot_error_rate", "nfe"]
    unjudged = front_table([{**row, "well_formed": None} for row in rows], 16)
    assert [column.name for column in unjudged["columns"]] == ["relevance_total", "perplexity", "repetition_4", "nfe"]
    undefined = front_table([{**row, "quality": None, "quality_ci": None} for row in rows], 16)
    assert len(undefined["rows"]) == FRONT_ROWS + 1 and undefined["left_out"] == 1
    assert len(front_table(build_table(budgets()), 64)["rows"]) == 3


@pytest.mark.parametrize("rate", [0.0, None])
def test_no_column_of_win_rates_that_say_nothing(rate: float | None) -> None:
    text = whole(rows=build_table(cells(ORDERED, win_rate=rate, lc_win_rate=rate)), ablation=[])
    assert ">win rate ↑<" not in text and ">LC win rate ↑<" not in text
    assert ("0 in every row, and left out: LC win rate, win rate." in text) == (rate is not None)
    assert ">win rate ↑<" in whole()


def test_without_an_exact_judge_the_page_says_what_the_axes_are() -> None:
    """Relevance and perplexity: claims are judged on both, and the text says so."""

    def unjudged(row: Row) -> Row:
        exact = ("slot_error_rate", "well_formed", "missing_slots", "wrong_slots", "repeated_slots")
        return {**row, **{f"{name}{end}": None for name in exact for end in ("", "_ci")}}

    rows = [unjudged(row) for row in build_table(cells(ORDERED))]
    text = " ".join(whole(rows=rows, selection=[], ablation=[], claims=judge_claims(rows, [], [], 16)).split())
    assert "Quality has two axes here: relevance, the nats that the prompt adds" in text
    assert "and perplexity under the reference (lower is better" in text
    assert "like that of the training answers" not in text and "An exact judge" not in text


def test_one_prompt_side_by_side() -> None:
    """After the last checkpoint, before anything is folded; the others further down."""
    example = {"id": 7, "instruction": "Say it.", "input": "Given.", "output": "Said."}
    found = [{**row, "id": 7} for row in answers(8)[1:2]]
    cells_of = {(c, "conv"): [{**found[0], "answer": f"{c} says", "seed": 0}] for c in ("sft", "r2ft")}
    text = whole(samples=side_by_side([example], cells_of, [{**found[0], "seed": 0}], 0, 3))
    front, _, rest = text.partition("<details>")
    assert "r2ft says" in front and "sft says" not in front and "Said." in front and "(empty)" in front
    assert "sft says" in rest and "r2ft says" in rest
