"""The builtin corpus: what its splits share and do not share, and what a broken grammar is told."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlm.data.records import Record
from dlm.errors import UserError
from dlm.evaluation.builtin.gazetteer import generate, join_list, sentence, split_combinations
from dlm.evaluation.builtin.grammar import Instruction, load_grammar

GRAMMAR_FILE = Path(__file__).parents[1] / "data" / "builtin" / "grammar.yaml"
GRAMMAR = load_grammar(GRAMMAR_FILE)
SHARES = split_combinations(GRAMMAR, (4, 5), 0.2, 42)
SIZES = {"train": 3000, "valid": 256, "eval": 200}
SPLITS = {name: generate(GRAMMAR, SHARES[name], size, 42, name) for name, size in SIZES.items()}
RECORDS = [record for records in SPLITS.values() for record in records]


def combination(record: Record) -> tuple[str, frozenset[str]]:
    return record.meta["topic"], frozenset(record.meta["slots"])


def test_every_combination_is_dealt_to_one_split() -> None:
    """20 topics x (C(8,4) + C(8,5)) = 20 x (70 + 56) = 2520; a fifth, 504, held out, 252 each for valid and eval."""
    assert {name: len(dealt) for name, dealt in SHARES.items()} == {"eval": 252, "valid": 252, "train": 2016}
    dealt = [(topic, frozenset(slots)) for share in SHARES.values() for topic, slots in share]
    assert len(set(dealt)) == 2520
    assert {len(slots) for _, slots in dealt} == {4, 5}


def test_splits_share_neither_combinations_nor_prompts() -> None:
    for first, second in itertools.combinations(SPLITS, 2):
        assert not {combination(r) for r in SPLITS[first]} & {combination(r) for r in SPLITS[second]}
        assert not {(r.instruction, r.input) for r in SPLITS[first]} & {
            (r.instruction, r.input) for r in SPLITS[second]
        }


@pytest.mark.parametrize("name", SIZES)
def test_a_split_has_its_size_and_uses_its_combinations_evenly(name: str) -> None:
    """3000 records over 2016 combinations: each once or twice; 256 over 252; 200 over 252: no combination twice."""
    assert len(SPLITS[name]) == SIZES[name]
    counts = Counter(combination(record) for record in SPLITS[name])
    assert set(counts) <= {(topic, frozenset(slots)) for topic, slots in SHARES[name]}
    assert max(counts.values()) == (1 if name == "eval" else 2)
    assert len(counts) == min(SIZES[name], len(SHARES[name]))


def test_fewer_topics_leave_each_combination_in_its_split() -> None:
    few = split_combinations(GRAMMAR, (4, 5), 0.2, 42, topics=3)
    first = list(GRAMMAR.topics)[:3]
    assert few == {name: [entry for entry in share if entry[0] in first] for name, share in SHARES.items()}
    assert sum(len(share) for share in few.values()) == 3 * 126
    assert split_combinations(GRAMMAR, (4, 5), 0.2, 42, topics=20) == SHARES


def test_topics_that_leave_a_split_without_combinations_are_refused() -> None:
    """Two combinations of 2520 held out, one topic of twenty used: hardly ever is either of them that topic's."""
    with pytest.raises(UserError):
        split_combinations(GRAMMAR, (4, 5), 0.001, 42, topics=1)


def test_everything_depends_on_the_seed_alone() -> None:
    assert split_combinations(load_grammar(GRAMMAR_FILE), (4, 5), 0.2, 42) == SHARES
    assert generate(GRAMMAR, SHARES["eval"], 200, 42, "eval") == SPLITS["eval"]
    assert generate(GRAMMAR, SHARES["eval"], 200, 43, "eval") != SPLITS["eval"]
    assert generate(GRAMMAR, SHARES["eval"], 200, 42, "valid") != SPLITS["eval"]
    assert split_combinations(GRAMMAR, (4, 5), 0.2, 43) != SHARES


def test_a_longer_split_begins_as_the_shorter_one() -> None:
    """What data.builtin.train_size promises: more records, not other ones."""
    assert generate(GRAMMAR, SHARES["train"], 3500, 42, "train")[:2016] == SPLITS["train"][:2016]


def test_answers_state_the_topics_facts_once_each_and_no_others() -> None:
    for record in RECORDS:
        facts = GRAMMAR.topics[record.meta["topic"]]
        for name, attribute in GRAMMAR.attributes.items():
            for key, phrase in attribute.values.items():
                stated = record.output.lower().count(phrase.lower())
                assert stated == (key == facts[name] and name in record.meta["slots"]), (record, phrase)


def test_prompts_ask_for_the_slots_in_their_order_and_name_the_topic() -> None:
    for record in RECORDS:
        asked = [
            min(at for mention in GRAMMAR.attributes[name].mentions if (at := record.instruction.find(mention)) >= 0)
            for name in record.meta["slots"]
        ]
        assert asked == sorted(asked)
        assert len(set(record.meta["slots"])) == len(record.meta["slots"])
        assert (record.meta["topic"] in record.instruction) != (record.input == record.meta["topic"])
        assert not set("{}") & set(record.instruction + record.input + record.output)


def frame(record: Record) -> Instruction:
    """The instruction frame a record was made from: the one whose fixed words it has, in their order."""
    topic = record.meta["topic"]
    found = []
    for entry in GRAMMAR.instructions:
        before, after = (part.replace("{topic}", topic) for part in entry.text.split("{list}"))
        if record.instruction.startswith(before) and record.instruction.endswith(after):
            found.append(entry)
    assert len(found) == 1, record
    return found[0]


def test_the_order_of_facts_is_that_of_the_way_of_asking() -> None:
    """Of the lists of four attributes, 1/24 are asked in the answer's order by chance."""
    asked_so = total = 0
    for record in RECORDS:
        facts = GRAMMAR.topics[record.meta["topic"]]
        place = {
            name: record.output.lower().find(GRAMMAR.attributes[name].values[facts[name]].lower())
            for name in record.meta["slots"]
        }
        expected = [name for name in GRAMMAR.orders[frame(record).order] if name in place]
        assert sorted(place, key=lambda name: place[name]) == expected
        if len(place) == 4:
            asked_so, total = asked_so + (list(place) == expected), total + 1
    assert total > 1000
    assert 0.02 < asked_so / total < 0.07


def test_lengths_are_plausible() -> None:
    """Four or five facts, each in a sentence of its own, at most an intro and a closing more."""
    for record in RECORDS:
        assert len(record.meta["slots"]) <= record.output.count(".") <= len(record.meta["slots"]) + 2
        assert record.output[0].isupper()
        assert record.output.endswith(".")
        assert 18 <= len(record.output.split()) <= 110
        assert 10 <= len(record.instruction.split()) <= 60
    assert len({record.output for record in SPLITS["train"]}) == 3000


def test_small_parts_by_hand() -> None:
    assert join_list(["a"]) == "a"
    assert join_list(["a", "b"]) == "a and b"
    assert join_list(["a", "b", "c"]) == "a, b and c"
    assert sentence("the Mayor pays") == "The Mayor pays."


@pytest.mark.parametrize("holdout", [0.0, 0.0005, 1.0])
def test_a_holdout_that_empties_a_split_is_refused(holdout: float) -> None:
    with pytest.raises(UserError, match=r"data\.builtin\.holdout leaves a split empty"):
        split_combinations(GRAMMAR, (4, 5), holdout, 42)


def test_more_slots_than_attributes_are_refused() -> None:
    """There are eight attributes; asking for nine leaves nothing to deal."""
    with pytest.raises(UserError):
        split_combinations(GRAMMAR, (9,), 0.2, 42)


RAW = yaml.safe_load(GRAMMAR_FILE.read_text("utf-8"))


def edit(change: Callable[[dict[str, Any]], Any], folder: Path) -> Path:
    raw = copy.deepcopy(RAW)
    change(raw)
    path = folder / "grammar.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    return path


def test_an_unchanged_copy_loads(tmp_path: Path) -> None:
    assert load_grammar(edit(lambda raw: None, tmp_path)) == GRAMMAR


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw["attributes"]["dish"]["sentences"].append("nobody cooks"), r"attributes.dish.*'nobody cooks'"),
        (lambda raw: raw["attributes"]["dish"]["values"].update(x="smoked eel with barley"), "occurs twice"),
        (lambda raw: raw["attributes"]["dish"]["values"].update(x="eel"), "'eel' occurs twice or inside another"),
        (lambda raw: raw["attributes"]["trade"]["values"].update(x="smoked eel with barley"), "occurs twice"),
        (lambda raw: raw["topics"]["Velmora"].update(dish="pizza"), r"topics.Velmora.dish is 'pizza'"),
        (lambda raw: raw["topics"]["Velmora"].pop("dish"), r"topics.Velmora.dish is None"),
        (lambda raw: raw["attributes"]["dish"].pop("values"), "'values'"),
        (lambda raw: raw["attributes"]["dish"].pop("tails"), "'tails'"),
        (lambda raw: raw.pop("intros"), "'intros'"),
        (lambda raw: raw.pop("orders"), "'orders'"),
        (lambda raw: raw["orders"]["land"].remove("dish"), "orders.land must name every attribute once"),
        (lambda raw: raw["orders"]["land"].append("dish"), "orders.land must name every attribute once"),
        (lambda raw: raw["instructions"][0].update(order="sea"), "'sea', which orders lacks"),
        (lambda raw: raw["instructions"].append({"text": "{list}", "order": "land", "txt": ""}), "txt"),
        (lambda raw: raw.update(attributes=["dish"]), "wrong form"),
        (lambda raw: raw.update(topics=["Velmora"]), "wrong form"),
        (lambda raw: raw["topics"].update(Velmora=None), "Velmora"),
        (lambda raw: raw["attributes"]["dish"]["values"].update(soup=7), "7"),
        (lambda raw: raw["instructions"].append({"text": "Describe {topic}.", "order": "land"}), "list"),
        (lambda raw: raw["instructions"].append({"text": "Describe {town}: {list}.", "order": "land"}), "town"),
        (lambda raw: raw.update(intros=[]), "intros"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_grammar_is_told_what_is_wrong(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_grammar(edit(change, tmp_path))
    assert "grammar.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "wrong form"), (b"a: [", "not valid YAML"), (b"a: \xff", "not valid YAML"), (None, "no such file")],
)
def test_a_file_that_is_no_grammar(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "grammar.yaml").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_grammar(tmp_path / "grammar.yaml")
