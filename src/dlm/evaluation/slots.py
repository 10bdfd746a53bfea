"""The exact judge of the builtin corpus's gazetteer: which facts an answer states, which sentences the grammar derives.

Nothing here is a model's opinion. Value phrases are unique over the grammar, so finding one tells which fact is stated;
a sentence is well-formed when some derivation of the grammar gives it, whatever the town and the value.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlm.evaluation.builtin.grammar import Attribute, Grammar


@dataclass(frozen=True)
class SlotReport:
    """What the judge counted in one answer; for lists, items.py says what is an attribute and what a sentence.

    Attributes:
        requested: attributes asked for.
        missing: requested attributes without any value phrase.
        wrong: requested attributes stated without the true value, attributes stated unasked, mentions of other towns.
        repeated: statements of a requested attribute beyond its first.
        sentences: sentences in the answer; an unfinished last one counts.
        well_formed: sentences that the grammar derives.
    """

    requested: int
    missing: int
    wrong: int
    repeated: int
    sentences: int
    well_formed: int

    @property
    def slot_error_rate(self) -> float:
        """(missing + wrong + repeated) / requested, the slot error rate of data-to-text generation.

        0 is perfect, silence is 1; babble has no upper bound.
        """
        return (self.missing + self.wrong + self.repeated) / self.requested

    @property
    def well_formed_share(self) -> float:
        """Share of well-formed sentences, in [0, 1]; 0 for an empty answer."""
        return self.well_formed / self.sentences if self.sentences else 0.0


class SlotJudge:
    """Judges answers against the grammar they should follow."""

    def __init__(self, grammar: Grammar) -> None:
        self._topics = grammar.topics
        self._values = {
            name: {key: _words([phrase]) for key, phrase in attribute.values.items()}
            for name, attribute in grammar.attributes.items()
        }
        self._towns = _words(grammar.topics)
        self._sentence = _sentence_pattern(grammar)

    def report(self, answer: str, meta: Mapping[str, Any]) -> SlotReport | None:
        """`judge` for a record's meta; None where it has no topic and slots."""
        if "topic" not in meta or not meta.get("slots"):
            return None
        return self.judge(answer, meta["topic"], meta["slots"])

    def judge(self, answer: str, topic: str, slots: Sequence[str]) -> SlotReport:
        """Count what is missing, wrong and said twice, and the sentences that are well-formed.

        Args:
            answer: the decoded text.
            topic: the town asked about.
            slots: the attributes asked for; at least one.
        """
        asked = frozenset(slots)
        if not asked:
            raise ValueError("slots is empty: an instruction of the builtin corpus asks for at least one attribute")
        truth = self._topics[topic]
        stated = {
            name: {key: mentions for key, pattern in patterns.items() if (mentions := len(pattern.findall(answer)))}
            for name, patterns in self._values.items()
        }
        unasked = sum(bool(mentions) for name, mentions in stated.items() if name not in asked)
        untrue = sum(bool(stated[name]) and truth[name] not in stated[name] for name in asked)
        elsewhere = sum(town.lower() != topic.lower() for town in self._towns.findall(answer))
        sentences = split_sentences(answer)
        return SlotReport(
            requested=len(asked),
            missing=sum(not stated[name] for name in asked),
            wrong=untrue + unasked + elsewhere,
            repeated=sum(max(sum(stated[name].values()) - 1, 0) for name in asked),
            sentences=len(sentences),
            well_formed=sum(map(self._is_well_formed, sentences)),
        )

    def _is_well_formed(self, sentence: str) -> bool:
        first = sentence[0]
        # The grammar's clauses start in lower case unless they start with a town, hence the second spelling.
        spellings = (sentence, first.lower() + sentence[1:])
        return first == first.upper() and any(self._sentence.fullmatch(spelling) for spelling in spellings)


def split_sentences(text: str) -> list[str]:
    """Cut after every sentence end that whitespace follows; an unfinished rest is a sentence too."""
    text = text.strip()
    return re.split(r"(?<=[.!?])\s+", text) if text else []


def _words(phrases: Iterable[str]) -> re.Pattern[str]:
    """Any of `phrases` as whole words, whatever the case; the longest where several start at the same place."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


def _sentence_pattern(grammar: Grammar) -> re.Pattern[str]:
    """[opener, ] attribute clause [, tail] | intro | [opener, ] closing; capitalisation is left to the caller."""
    towns = _any(map(re.escape, grammar.topics))
    stated = _any(_attribute_pattern(attribute, towns) for attribute in grammar.attributes.values())
    intro = _any(_fill(clause, towns) for clause in grammar.intros)
    closing = _any(_fill(clause, towns) for clause in grammar.closings)
    opener = _any(_fill(clause, towns) for clause in grammar.openers)
    return re.compile(rf"(?:{intro}|(?:{opener}, )?(?:{stated}|{closing}))\.")


def _attribute_pattern(attribute: Attribute, towns: str) -> str:
    values = _any(map(re.escape, attribute.values.values()))
    clauses = _any(_fill(clause, towns, values) for clause in attribute.sentences)
    tails = _any(_fill(tail, towns) for tail in attribute.tails)
    return f"{clauses}(?:, {tails})?"


def _fill(template: str, towns: str, values: str = "(?!)") -> str:
    """A clause as a pattern: literal text, with the towns' and the values' alternatives in their places."""
    slots = {"{topic}": towns, "{value}": values}
    return "".join(slots.get(piece) or re.escape(piece) for piece in re.split(r"(\{topic\}|\{value\})", template))


def _any(patterns: Iterable[str]) -> str:
    """One of `patterns`; nothing at all matches when there are none."""
    return f"(?:{'|'.join(patterns) or '(?!)'})"
