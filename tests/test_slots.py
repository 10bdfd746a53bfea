"""The judge of the builtin corpus: every kind of error by hand, and no error where the grammar itself wrote."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.evaluation.builtin.gazetteer import answer as corpus_answer
from dlm.evaluation.builtin.grammar import load_grammar
from dlm.evaluation.slots import SlotJudge, SlotReport, split_sentences

GRAMMAR = load_grammar(Path(__file__).parents[1] / "data" / "builtin" / "grammar.yaml")
JUDGE = SlotJudge(GRAMMAR)

# Velmora: soup for dish, fog for weather, millers for festival, rope for trade.
SOUP = "Every inn serves thick chestnut soup."
FOG = "To be fair, the almanac for Velmora promises sea fog until noon, so pack a spare coat."


def judge(answer: str, *slots: str) -> SlotReport:
    return JUDGE.judge(answer, "Velmora", slots)


def derive(rng: random.Random, topic: str, slots: list[str]) -> str:
    """Any answer the grammar can give, written here a second time and apart from the corpus's own generator."""

    def finish(clause: str) -> str:
        clause = clause.replace("{topic}", topic)
        return clause[0].upper() + clause[1:] + "."

    def opened(clause: str) -> str:
        return rng.choice(["", *(f"{opener}, " for opener in GRAMMAR.openers)]) + clause

    sentences = [finish(rng.choice(GRAMMAR.intros))] * rng.randint(0, 1)
    for name in slots:
        attribute = GRAMMAR.attributes[name]
        value = attribute.values[GRAMMAR.topics[topic][name]]
        tail = rng.choice(["", *(f", {tail}" for tail in attribute.tails)])
        sentences.append(finish(opened(rng.choice(attribute.sentences).replace("{value}", value)) + tail))
    sentences += [finish(opened(rng.choice(GRAMMAR.closings)))] * rng.randint(0, 1)
    return " ".join(sentences)


topics = st.sampled_from(sorted(GRAMMAR.topics))
slot_lists = st.lists(st.sampled_from(sorted(GRAMMAR.attributes)), min_size=1, max_size=8, unique=True)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), topics, slot_lists)
def test_what_the_grammar_derives_is_perfect(rng: random.Random, topic: str, slots: list[str]) -> None:
    report = JUDGE.judge(derive(rng, topic, slots), topic, slots)
    assert (report.slot_error_rate, report.well_formed_share) == (0.0, 1.0)
    assert report.requested == len(slots)


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), topics, slot_lists)
def test_the_corpus_is_perfect(rng: random.Random, topic: str, slots: list[str]) -> None:
    report = JUDGE.judge(corpus_answer(GRAMMAR, topic, slots, rng), topic, slots)
    assert (report.slot_error_rate, report.well_formed_share) == (0.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), topics, topics, slot_lists)
def test_anothers_facts_are_wrong_but_well_formed(rng: random.Random, topic: str, other: str, slots: list[str]) -> None:
    answer = derive(rng, other, slots)
    report = JUDGE.judge(answer, topic, slots)
    differing = sum(GRAMMAR.topics[topic][name] != GRAMMAR.topics[other][name] for name in slots)
    mentions = answer.count(other) if other != topic else 0
    assert (report.missing, report.wrong, report.repeated) == (0, differing + mentions, 0)
    assert report.well_formed_share == 1.0


@settings(deadline=None)
@given(st.text(max_size=80), slot_lists)
def test_any_text_can_be_judged(answer: str, slots: list[str]) -> None:
    report = JUDGE.judge(answer, "Velmora", slots)
    assert 0 <= report.well_formed <= report.sentences
    assert report.missing <= report.requested
    assert report.slot_error_rate >= 0


def test_a_perfect_answer() -> None:
    assert judge(f"{SOUP} {FOG}", "dish", "weather") == SlotReport(2, 0, 0, 0, 2, 2)


def test_an_empty_answer_misses_everything() -> None:
    report = judge(" \n", "dish", "weather")
    assert report == SlotReport(2, 2, 0, 0, 0, 0)
    assert (report.slot_error_rate, report.well_formed_share) == (1.0, 0.0)


def test_missing() -> None:
    assert judge(SOUP, "dish", "weather") == SlotReport(2, 1, 0, 0, 1, 1)


def test_wrong_value() -> None:
    """Snow is not Velmora's weather: stated, so not missing, but wrong."""
    assert judge("A visitor should expect thin snow through March.", "weather") == SlotReport(1, 0, 1, 0, 1, 1)


def test_true_and_false_value_together() -> None:
    """The true phrase is there, so nothing is wrong; the second statement of the attribute counts as repeated."""
    answer = "Every inn serves warm walnut bread. At supper the cooks bring out thick chestnut soup."
    assert judge(answer, "dish") == SlotReport(1, 0, 0, 1, 2, 2)


def test_two_false_values() -> None:
    """Wrong once for the attribute, repeated once for the second statement: an error rate of 2."""
    report = judge("Every inn serves warm walnut bread. Every inn serves goat cheese pies.", "dish")
    assert report == SlotReport(1, 0, 1, 1, 2, 2)
    assert report.slot_error_rate == 2.0


def test_repeated_counts_every_statement_beyond_the_first() -> None:
    assert judge(" ".join([SOUP] * 4), "dish") == SlotReport(1, 0, 0, 3, 4, 4)


def test_unasked_attribute_counts_once() -> None:
    """Soup is true of Velmora but nobody asked; saying it twice is still one attribute too many."""
    assert judge(f"{FOG} {SOUP} {SOUP}", "weather") == SlotReport(1, 0, 1, 0, 3, 3)


def test_other_towns_count_at_each_mention() -> None:
    """Two mentions of Oskerry, one of Velmora itself."""
    answer = f"Few travellers know Oskerry well. Oskerry rewards a slow visit. {FOG}"
    assert judge(answer, "weather") == SlotReport(1, 0, 2, 0, 3, 3)


def test_a_slot_asked_for_twice_is_one_slot() -> None:
    assert judge(SOUP, "dish", "dish") == judge(SOUP, "dish")


def test_at_least_one_slot() -> None:
    with pytest.raises(ValueError, match="slots is empty"):
        judge(SOUP)


def test_phrases_are_whole_words_in_any_case() -> None:
    assert judge("THICK Chestnut soup", "dish").missing == 0
    assert judge("thick chestnut soups", "dish").missing == 1
    assert judge("an overthick chestnut soup", "dish").missing == 1
    assert judge("in velmora or VELMORA thick chestnut soup", "dish").wrong == 0
    assert judge("in oskerry or in Oskerryshire thick chestnut soup", "dish").wrong == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "Velmora rewards a slow visit.",
        "A single road leads to Tindale, on a narrow grey estuary, as the old charter says.",
        "What is more, Velmora lies beside an abandoned canal.",
        "By all accounts, bring good shoes and an empty bag.",
    ],
)
def test_well_formed_whatever_the_town_and_the_value(sentence: str) -> None:
    assert judge(sentence, "dish").well_formed == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "every inn serves thick chestnut soup.",
        "Every inn serves thick chestnut soup",
        "Every inn serves thick chestnut soup!",
        "Every  inn serves thick chestnut soup.",
        "Every inn serves sea fog until noon.",
        "Every inn serves thick chestnut soup, so pack a spare coat.",
        "To be fair, Every inn serves thick chestnut soup.",
        "To be fair, to be fair, every inn serves thick chestnut soup.",
        "To be fair, velmora lies beside an abandoned canal.",
        "velmora lies beside an abandoned canal.",
        "To be fair, few travellers know Velmora well.",
        "Stay at least two nights, so pack a spare coat.",
        "To be fair.",
        ".",
    ],
)
def test_malformed(sentence: str) -> None:
    report = judge(sentence, "dish")
    assert (report.sentences, report.well_formed) == (1, 0)


def test_sentences_part_at_any_whitespace_but_not_without() -> None:
    assert judge(f" {SOUP}\n\n{FOG}  {SOUP} ", "dish", "weather").well_formed == 3
    assert split_sentences("One.Two. Three") == ["One.Two.", "Three"]


def test_an_unfinished_sentence_counts() -> None:
    report = judge(f"{SOUP} A visitor should expect", "dish")
    assert (report.sentences, report.well_formed, report.well_formed_share) == (2, 1, 0.5)


def test_a_grammar_without_openers_intros_and_closings() -> None:
    bare = SlotJudge(replace(GRAMMAR, openers=(), intros=(), closings=()))
    assert bare.judge(SOUP, "Velmora", ["dish"]).well_formed == 1
    assert bare.judge(FOG, "Velmora", ["weather"]).well_formed == 0
    assert bare.judge(", .", "Velmora", ["dish"]).well_formed == 0


def test_a_town_inside_another_towns_name_is_not_a_mention() -> None:
    for name in ("New Velmora", "Velmora Bay"):
        longer = SlotJudge(replace(GRAMMAR, topics={**GRAMMAR.topics, name: GRAMMAR.topics["Velmora"]}))
        report = longer.judge(f"{name} rewards a slow visit. {SOUP}", name, ["dish"])
        assert (report.wrong, report.well_formed) == (0, 2)
