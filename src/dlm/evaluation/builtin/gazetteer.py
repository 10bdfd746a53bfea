"""The builtin corpus: instructions about an invented coast, and answers that must carry the facts asked for.

The grammar is data (data/builtin/grammar.yaml). Splits share no combination of topic and requested attributes, so an
evaluation prompt asks for facts the model has seen in company it has not seen.
"""

import itertools
import random
from collections.abc import Sequence

from dlm.data.records import Record
from dlm.errors import UserError
from dlm.evaluation.builtin.grammar import Grammar

OPENER_SHARE = 0.25
TAIL_SHARE = 0.4
INTRO_SHARE = 0.5
CLOSING_SHARE = 0.4

Combination = tuple[str, tuple[str, ...]]


def split_combinations(
    grammar: Grammar, slots: Sequence[int], holdout: float, seed: int, topics: int | None = None
) -> dict[str, list[Combination]]:
    """Deal every (topic, set of attributes) to exactly one of train, valid and eval.

    Args:
        grammar: the loaded grammar.
        slots: the numbers of attributes an instruction may ask for.
        holdout: share of the combinations kept from training, half for valid and half for eval.
        seed: of the deal.
        topics: only the grammar's first so many. Fewer topics leave each one's combinations in the same split.
    """
    combinations = [
        (topic, chosen)
        for topic in grammar.topics
        for count in slots
        for chosen in itertools.combinations(grammar.attributes, count)
    ]
    random.Random(f"{seed}-split").shuffle(combinations)
    held = int(len(combinations) * holdout)
    if held < 2 or held == len(combinations):
        raise UserError(
            f"data.builtin.holdout leaves a split empty: {held} of {len(combinations)} combinations held out"
        )
    used = set(list(grammar.topics)[:topics])
    shares = {"eval": combinations[: held // 2], "valid": combinations[held // 2 : held], "train": combinations[held:]}
    shares = {name: [entry for entry in share if entry[0] in used] for name, share in shares.items()}
    if not all(shares.values()):
        raise UserError(
            f"data.builtin.topics ({topics}) and holdout ({holdout}) leave a split empty; raise one of them"
        )
    return shares


def generate(grammar: Grammar, combinations: Sequence[Combination], size: int, seed: int, name: str) -> list[Record]:
    """`size` records over the combinations, each combination as often as any other (give or take one)."""
    rng = random.Random(f"{seed}-{name}")
    order: list[Combination] = []
    while len(order) < size:
        turn = list(combinations)
        rng.shuffle(turn)
        order.extend(turn)
    return [_record(grammar, topic, chosen, rng) for topic, chosen in order[:size]]


def _record(grammar: Grammar, topic: str, chosen: tuple[str, ...], rng: random.Random) -> Record:
    frame = rng.choice(grammar.instructions)
    asked = rng.sample(chosen, len(chosen))
    mentions = join_list([rng.choice(grammar.attributes[name].mentions) for name in asked])
    return Record(
        instruction=frame.text.format(topic=topic, list=mentions),
        input=frame.input.format(topic=topic),
        output=answer(grammar, topic, [name for name in grammar.orders[frame.order] if name in chosen], rng),
        meta={"topic": topic, "slots": list(asked)},
    )


def answer(grammar: Grammar, topic: str, chosen: Sequence[str], rng: random.Random) -> str:
    """One answer that states every chosen attribute of the topic once, in the order given."""
    clauses = [rng.choice(grammar.intros)] if rng.random() < INTRO_SHARE else []
    for name in chosen:
        attribute = grammar.attributes[name]
        value = attribute.values[grammar.topics[topic][name]]
        clause = rng.choice(attribute.sentences).replace("{value}", value)
        if rng.random() < TAIL_SHARE:
            clause = f"{clause}, {rng.choice(attribute.tails)}"
        clauses.append(_opened(grammar, clause, rng))
    if rng.random() < CLOSING_SHARE:
        clauses.append(_opened(grammar, rng.choice(grammar.closings), rng))
    return " ".join(sentence(clause.replace("{topic}", topic)) for clause in clauses)


def _opened(grammar: Grammar, clause: str, rng: random.Random) -> str:
    return f"{rng.choice(grammar.openers)}, {clause}" if rng.random() < OPENER_SHARE else clause


def sentence(clause: str) -> str:
    """A clause with its capital letter and full stop."""
    return clause[0].upper() + clause[1:] + "."


def join_list(items: Sequence[str]) -> str:
    """'a, b and c'."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
