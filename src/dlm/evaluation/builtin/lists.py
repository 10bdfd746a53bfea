"""The lists of the builtin corpus: every town of an invented coast between two of them, in order, each once.

Between two towns stands a comma and, half of the time, a link of one to five words, chosen freely. Right behind what
is written the next town is certain; far behind it nobody can say which town falls on which position, and positions
filled in parallel there take one town twice and leave another out: the long decoding-window problem (paper §3, Fig. 3).
After ParallelBench (arXiv 2510.04767), whose lists are short.
"""

import itertools
import random
from collections.abc import Sequence

from dlm.config.data import ListsParams
from dlm.data.records import Record
from dlm.errors import UserError

STEMS = ("Al", "Bor", "Cas", "Dun", "El", "Fen", "Gar", "Hol", "Is", "Jor", "Kel", "Lun", "Mar", "Nor", "Ost", "Pel")
ENDINGS = ("by", "dale", "ford", "wick")
# From south to north; behind the last comes the first, as on an island.
COAST = tuple(random.Random("coast").sample([stem + ending for stem in STEMS for ending in ENDINGS], 64))
LINKS = (
    "then",
    "next",
    "soon",
    "later",
    "after that",
    "from there",
    "on foot to",
    "before long",
    "over the hills to",
    "by the coast road to",
)
LINK_SHARE = 0.5

Trip = tuple[int, int]  # the place of the first town on the coast; towns in all


def split_trips(settings: ListsParams, holdout: float, seed: int) -> dict[str, list[Trip]]:
    """Deal every trip to exactly one of train, valid and eval.

    Args:
        holdout: share of the trips kept from training, half for valid and half for eval.
        seed: of the deal.

    Raises:
        UserError: a split is left empty.
    """
    trips = list(itertools.product(range(len(COAST)), range(settings.shortest, settings.longest + 1)))
    random.Random(f"{seed}-lists").shuffle(trips)
    held = int(len(trips) * holdout)
    if held < 2 or held == len(trips):
        raise UserError(f"data.builtin.holdout leaves a split empty: {held} of {len(trips)} trips held out")
    return {"eval": trips[: held // 2], "valid": trips[held // 2 : held], "train": trips[held:]}


def generate(trips: Sequence[Trip], size: int, seed: int, name: str) -> list[Record]:
    """`size` records over the trips, each trip as often as any other (give or take one); more begin as fewer do."""
    rng = random.Random(f"{seed}-lists-{name}")
    records: list[Record] = []
    while len(records) < size:
        turn = rng.sample(trips, len(trips))
        records += [_record(trip, rng) for trip in turn[: size - len(records)]]
    return records


def _record(trip: Trip, rng: random.Random) -> Record:
    start, count = trip
    items = [COAST[(start + number) % len(COAST)] for number in range(count)]
    asked = f"Travel north from {items[0]} to {items[-1]}."
    return Record(instruction=asked, input="", output=answer(items, rng), meta={"items": items})


def answer(items: Sequence[str], rng: random.Random) -> str:
    """'Alby, then Fendale, Isford, on foot to Norwick.'"""
    return items[0] + "".join(f", {_link(rng)}{town}" for town in items[1:]) + "."


def _link(rng: random.Random) -> str:
    return f"{rng.choice(LINKS)} " if rng.random() < LINK_SHARE else ""
