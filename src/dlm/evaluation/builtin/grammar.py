"""The builtin corpus's grammar: YAML in, checked dataclasses out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlm.errors import UserError

GRAMMAR = "grammar.yaml"  # the prepare stage's copy, for whoever judges


@dataclass(frozen=True)
class Instruction:
    """A way to ask: `text` holds {list} and, unless `input` carries it, {topic}; `order` names the answer's order."""

    text: str
    order: str
    input: str = ""


@dataclass(frozen=True)
class Attribute:
    """One thing that can be said of a topic.

    Attributes:
        mentions: noun phrases with which an instruction asks for it.
        sentences: clauses with a {value} (and perhaps a {topic}) that state it.
        tails: adjuncts that may follow the clause; they carry no fact.
        values: key -> phrase. Phrases are unique over the grammar.
    """

    mentions: tuple[str, ...]
    sentences: tuple[str, ...]
    tails: tuple[str, ...]
    values: dict[str, str]


@dataclass(frozen=True)
class Grammar:
    """The whole grammar.

    Attributes:
        orders: name -> every attribute, in the order in which an answer takes them up.
        topics: `topics[name][attribute]` is the key of the value that is true there.
    """

    orders: dict[str, tuple[str, ...]]
    instructions: tuple[Instruction, ...]
    intros: tuple[str, ...]
    closings: tuple[str, ...]
    openers: tuple[str, ...]
    attributes: dict[str, Attribute]
    topics: dict[str, dict[str, str]]


def load_grammar(path: Path | str) -> Grammar:
    """Read and check a grammar file.

    Raises:
        UserError: the file is missing, not YAML, or breaks a rule the judge relies on (a part missing, a placeholder
            missing, a value phrase used twice or inside another, a topic without a fact).
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "set data.builtin.grammar to a grammar file, or run the prepare stage (`dvc repro prepare`)"
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    try:
        grammar = Grammar(
            orders={name: tuple(order) for name, order in raw["orders"].items()},
            instructions=tuple(Instruction(**entry) for entry in raw["instructions"]),
            intros=tuple(raw["intros"]),
            closings=tuple(raw["closings"]),
            openers=tuple(raw["openers"]),
            attributes={name: _attribute(entry) for name, entry in raw["attributes"].items()},
            topics=raw["topics"],
        )
        _check(grammar, str(path))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{path}: a part of the grammar is missing or has the wrong form: {error!r}") from None
    return grammar


def _attribute(entry: dict[str, Any]) -> Attribute:
    return Attribute(tuple(entry["mentions"]), tuple(entry["sentences"]), tuple(entry["tails"]), dict(entry["values"]))


def _check(grammar: Grammar, where: str) -> None:
    for name in ("orders", "instructions", "intros", "closings", "openers", "attributes", "topics"):
        if not getattr(grammar, name):
            raise UserError(f"{where}: {name} is empty; give at least one")
    for instruction in grammar.instructions:
        if "{list}" not in instruction.text:
            raise UserError(f"{where}: the instruction {instruction.text!r} lacks {{list}}")
        (instruction.text + instruction.input).format(topic="", list="")
        if instruction.order not in grammar.orders:
            raise UserError(f"{where}: {instruction.text!r} has order {instruction.order!r}, which orders lacks")
    for name, order in grammar.orders.items():
        if sorted(order) != sorted(grammar.attributes):
            raise UserError(f"{where}: orders.{name} must name every attribute once, got {', '.join(order)}")
    for name, attribute in grammar.attributes.items():
        for sentence in attribute.sentences:
            sentence.format(topic="", value="")
            if "{value}" not in sentence:
                raise UserError(f"{where}: attributes.{name}.sentences: {sentence!r} lacks {{value}}")
    for name, attribute in grammar.attributes.items():
        for key, phrase in attribute.values.items():
            if not isinstance(phrase, str):
                raise UserError(f"{where}: attributes.{name}.values.{key} must be a phrase, got {phrase!r}")
    phrases = [phrase for attribute in grammar.attributes.values() for phrase in attribute.values.values()]
    for phrase in phrases:
        if sum(phrase in other for other in phrases) > 1:
            raise UserError(f"{where}: the value {phrase!r} occurs twice or inside another; the judge needs it unique")
    for topic, facts in grammar.topics.items():
        if not isinstance(facts, dict):
            raise UserError(f"{where}: topics.{topic} must give a value key for each attribute, got {facts!r}")
        for name, attribute in grammar.attributes.items():
            if facts.get(name) not in attribute.values:
                raise UserError(f"{where}: topics.{topic}.{name} is {facts.get(name)!r}, not a key of its values")
