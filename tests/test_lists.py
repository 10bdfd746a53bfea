"""The builtin corpus's lists: what the generator makes, and every kind of error of the judge by hand."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.config.data import ListsParams
from dlm.config.params import parse_params
from dlm.config.schema import build
from dlm.data.template import Template
from dlm.errors import UserError
from dlm.evaluation.builtin.lists import COAST, LINKS, answer, generate, split_trips
from dlm.evaluation.exact import corpus_judge
from dlm.evaluation.items import ListJudge
from dlm.evaluation.slots import SlotReport
from dlm.pipeline.profiles import render
from dlm.sources.prepare import load_splits, make_tokenizer, tokenise

ROOT = Path(__file__).parents[1]

SETTINGS = ListsParams(shortest=12, longest=32)
SIZES = {"train": 2000, "valid": 30, "eval": 120}
TRIPS = split_trips(SETTINGS, 0.2, 42)
SPLITS = {name: generate(TRIPS[name], size, 42, name) for name, size in SIZES.items()}
RECORDS = [record for records in SPLITS.values() for record in records]
JUDGE = ListJudge()
ASKED = ("Alby", "Fendale", "Isford", "Norwick")


def test_every_record_names_the_towns_between_two_in_the_coasts_order() -> None:
    """The ring twice over, as text, holds every list as a piece of it."""
    assert len(set(COAST)) == 64
    ring = " ".join([*COAST, *COAST])
    lengths = set()
    for record in RECORDS:
        items = record.meta["items"]
        assert " ".join(items) in ring
        assert record.instruction == f"Travel north from {items[0]} to {items[-1]}."
        assert [part.split()[-1] for part in record.output.removesuffix(".").split(",")] == items
        lengths.add(len(items))
    assert lengths == set(range(12, 33))


def test_links_are_there_half_of_the_time_and_all_of_them() -> None:
    parts = [part for record in RECORDS for part in record.output.removesuffix(".").split(", ")[1:]]
    found = Counter(" ".join(part.split()[:-1]) for part in parts)
    assert set(found) == {"", *LINKS}
    assert found[""] / len(parts) == pytest.approx(0.5, abs=0.01)


def test_every_trip_is_dealt_to_one_split() -> None:
    """64 towns x 21 lengths = 1344 trips; a fifth, 268, held out, 134 each for valid and eval."""
    assert {name: len(trips) for name, trips in TRIPS.items()} == {"train": 1076, "valid": 134, "eval": 134}
    assert len({trip for trips in TRIPS.values() for trip in trips}) == 1344
    prompts = {name: {record.instruction for record in records} for name, records in SPLITS.items()}
    assert {name: len(asked) for name, asked in prompts.items()} == {"train": 1076, "valid": 30, "eval": 120}
    assert len(set.union(*prompts.values())) == 1226


@pytest.mark.parametrize("holdout", [0.001, 1.0])
def test_a_split_without_trips_is_refused(holdout: float) -> None:
    with pytest.raises(UserError, match=r"data.builtin.holdout leaves a split empty: (1|1344) of 1344 trips held out"):
        split_trips(SETTINGS, holdout, 42)


def test_everything_depends_on_the_seed_alone() -> None:
    assert split_trips(SETTINGS, 0.2, 42) == TRIPS != split_trips(SETTINGS, 0.2, 43)
    assert generate(TRIPS["eval"], 120, 42, "eval") == SPLITS["eval"]
    assert generate(TRIPS["eval"], 120, 43, "eval") != SPLITS["eval"]
    assert generate(TRIPS["train"], 2500, 42, "train")[:1076] == SPLITS["train"][:1076]


@pytest.mark.parametrize(
    ("text", "missing", "wrong", "repeated", "parts", "whole"),
    [
        ("Alby, then Fendale, on foot to Isford, soon Norwick.", 0, 0, 0, 4, 4),
        ("", 4, 0, 0, 0, 0),
        ("Alby.", 3, 0, 0, 1, 1),
        ("Alby", 3, 0, 0, 1, 0),  # no full stop
        ("Alby, then Fendale, on foot to Isford, soon Norwick, then", 0, 0, 0, 5, 4),
        # A town twice in a row, and far from its first mention: repeated, and in the second another is left out.
        ("Alby, then Alby, then Fendale, on foot to Isford, soon Norwick.", 0, 0, 1, 5, 5),
        ("Alby, then Fendale, soon Isford, later Alby, next Alby.", 1, 0, 2, 5, 5),
        # A town not asked for, named twice: wrong both times, not repeated.
        ("Alby, then Elby, later Elby, then Fendale, on foot to Isford, soon Norwick.", 0, 2, 0, 6, 6),
        # One town out of its place, wherever it went; the list backwards: three of four must be struck out.
        ("Fendale, then Isford, soon Norwick, next Alby.", 0, 1, 0, 4, 4),
        ("Norwick, then Isford, soon Fendale, next Alby.", 0, 3, 0, 4, 4),
        ("Isford, then Norwick, then Alby, then Fendale.", 0, 2, 0, 4, 4),
        # Links may be left out. Parts that are not whole: two links, an unknown one, two towns, no space, a link first.
        ("Alby, Fendale, Isford, later Norwick.", 0, 0, 0, 4, 4),
        ("Alby, Fendale, then soon Isford, by Norwick.", 0, 0, 0, 4, 2),
        ("Alby, then Fendale Isford, soon Norwick.", 0, 0, 0, 3, 2),
        ("Alby,then Fendale, on foot to Isford, soon Norwick.", 0, 0, 0, 4, 3),
        ("then Alby, then Fendale, on foot to Isford, soon Norwick.", 0, 0, 0, 4, 3),
        # Pieces of words name nothing.
        ("Albyford, then fendale, on foot to Isfordwick, soon Norwick.", 3, 0, 0, 4, 1),
    ],
)
def test_the_judge_by_hand(text: str, missing: int, wrong: int, repeated: int, parts: int, whole: int) -> None:
    assert JUDGE.judge(text, ASKED) == SlotReport(4, missing, wrong, repeated, parts, whole)


def test_rates_by_hand() -> None:
    """(1 missing + 0 wrong + 2 repeated) / 4; all five parts whole."""
    report = JUDGE.judge("Alby, then Fendale, soon Isford, later Alby, next Alby.", ASKED)
    assert (report.slot_error_rate, report.well_formed_share) == (0.75, 1.0)


def test_a_record_without_a_list_is_not_judged() -> None:
    assert JUDGE.report("Alby.", {"topic": "Velmora", "slots": ["dish"]}) is None
    assert JUDGE.report("Alby.", {"items": ["Alby"]}) == SlotReport(1, 0, 0, 0, 1, 1)


@pytest.mark.parametrize("items", [[], ["Alby", "Alby"]])
def test_a_list_of_nothing_or_with_a_town_twice_is_refused(items: list[str]) -> None:
    with pytest.raises(ValueError, match="items must be different towns"):
        JUDGE.judge("Alby.", items)


lists = st.lists(st.sampled_from(COAST), min_size=2, max_size=20, unique=True)


@settings(max_examples=200, deadline=None)
@given(lists, st.randoms(use_true_random=False))
def test_what_the_corpus_writes_is_perfect_and_a_town_less_or_more_is_one_error(
    asked: list[str], rng: random.Random
) -> None:
    assert JUDGE.judge(answer(asked, rng), asked) == SlotReport(len(asked), 0, 0, 0, len(asked), len(asked))
    at = rng.randrange(len(asked))
    less = [*asked[:at], *asked[at + 1 :]]
    assert JUDGE.judge(answer(less, rng), asked).slot_error_rate == 1 / len(asked)
    twice = [*asked, asked[at]]
    assert JUDGE.judge(answer(twice, rng), asked).repeated == 1
    stranger = next(town for town in COAST if town not in asked)
    assert JUDGE.judge(answer([*asked[:at], stranger, *asked[at:]], rng), asked).wrong == 1


@settings(max_examples=100, deadline=None)
@given(lists, st.permutations(range(20)))
def test_items_out_of_order_are_the_fewest_to_strike_out(asked: list[str], order: list[int]) -> None:
    """Against trying every subset, on the first eight."""
    asked = asked[:8]
    shuffled = [asked[i] for i in order if i < len(asked)]
    report = JUDGE.judge(", ".join(shuffled) + ".", asked)
    numbers = [asked.index(town) for town in shuffled]
    kept = max(
        bits.bit_count()
        for bits in range(2 ** len(numbers))
        if (chosen := [n for i, n in enumerate(numbers) if bits >> i & 1]) == sorted(chosen)
    )
    assert report.wrong == len(asked) - kept


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ({"shortest": 1}, r"data.builtin.lists.shortest must be at least 2, got 1"),
        ({"longest": 11}, r"data.builtin.lists.longest must be from shortest to 64 \(all\), got 11"),
        ({"longest": 65}, r"data.builtin.lists.longest must be from shortest to 64 \(all\), got 65"),
    ],
)
def test_lengths_that_no_list_has_are_refused(lists: dict[str, int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build(ListsParams, {"shortest": 12, "longest": 32, **lists}, "data.builtin.lists")


def test_the_profile_prepares_lists_that_fit_its_window_and_judges_them_all(tmp_path: Path) -> None:
    """What the shipped profile trains and evaluates on: reference answers are perfect, and hardly one is too long."""
    params = parse_params(render(ROOT / "profiles", "lists"), "lists.yaml")
    records, _ = load_splits(params.data, params.seed)
    template = Template(params.template.prompt, params.template.prompt_with_input)
    tokenizer = make_tokenizer(params.tokenizer, template, records["train"])
    judge = corpus_judge(params.data, tmp_path)
    assert judge is not None
    for name, size in (("train", 20000), ("valid", 256), ("eval", 120)):
        kept, dropped = tokenise(records[name], template, tokenizer, params.data, needs_answer=True)
        assert len(records[name]) == size
        assert sum(dropped.values()) <= size / 1000
        for example in kept[:100]:
            report = judge.report(example.record.output, example.record.meta)
            assert report is not None
            assert (report.slot_error_rate, report.well_formed_share) == (0.0, 1.0)
