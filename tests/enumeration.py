"""Every possible run of the slow decoder, and how well 4000 answers of the library fit it."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from slow import Candidates, Network, Now, State, Task, fast_decode, network_of_table, settle, softmax, tempered
from tiny import TableDenoiser, chi_square_p

from dlm.decoding.loop import Decoded

ROWS = 4000


def exact_distribution(network: Network, prompt: list[int], task: Task) -> tuple[dict, dict]:
    """P(response) and P(commit steps) of a sampled decoder."""
    first = len(prompt)
    response = set(range(first, first + task.gen_length))
    states: dict[State, float] = {((*prompt, *[task.mask_id] * task.gen_length), (-1,) * task.gen_length): 1.0}
    clock = 0
    for span in task.spans:
        for step in range(span.begin, span.begin + span.steps):
            after: dict[State, float] = defaultdict(float)
            for (canvas, stamp), mass in states.items():
                here = [i for i in range(first + span.start, first + span.end) if canvas[i] == task.mask_id]
                must = {i for i in here if i - first < span.must}
                logits = task.penalised(task.guided(network, list(canvas), set(range(first))), list(canvas))
                p = [softmax(row) for row in logits]
                now = Now(list(canvas), p, here, must, step, span.total, task.sums(logits))
                lost = task.revocable(now, span, first, response)
                for new, probability in decisions(task, now):
                    for gone, chance in coins(task.lost(now, lost, {}) if lost else {}):
                        written, when = list(canvas), list(stamp)
                        for i, token in new.items():
                            written[i], when[i - first] = token, clock
                        written, when = map(list, settle(written, when, task, first))
                        for i in gone:
                            written[i], when[i - first] = task.mask_id, -1
                        after[settle(written, when, task, first)] += mass * probability * chance
            states, clock = after, clock + 1
        again: dict[State, float] = defaultdict(float)
        for (canvas, stamp), mass in states.items():
            masks = task.gen_length - span.keep
            kept = [*canvas[: first + span.keep], *[task.mask_id] * masks], [*stamp[: span.keep], *[-1] * masks]
            again[settle(*kept, task, first)] += mass
        states = again
    responses: dict[tuple[int, ...], float] = defaultdict(float)
    stamps: dict[tuple[int, ...], float] = defaultdict(float)
    for (canvas, stamp), mass in states.items():
        p = task.probabilities(network, list(canvas), set(range(first)))
        greedy = [p[i].index(max(p[i])) if token == task.mask_id else token for i, token in enumerate(canvas)]
        last = [clock if a == task.mask_id else w for a, w in zip(canvas[first:], stamp, strict=True)]
        response_, times = settle(greedy, last, task, first)
        responses[response_[first:]] += mass
        stamps[times] += mass
    return responses, stamps


def decisions(task: Task, now: Now) -> Iterator[tuple[dict[int, int], float]]:
    """What may be committed at a step, and how probable it is."""
    if task.rule in ("categorical", "top_k", "remdm", "sliding_annealing", "tweedie"):
        yield from joint_draws(task.joint(now))
        return
    able = task.able(now)
    temperature = 1.0 if task.rule == "first_hitting" else task.option("temperature", 0.0)
    offers = []
    for i in able:
        best = now.p[i].index(max(now.p[i]))
        weights = tempered(now.p[i], temperature) if temperature else [(best, 1.0)]
        total = sum(weight for _, weight in weights)
        offers.append([(token, weight / total) for token, weight in weights if weight > 0])
    for draws in itertools.product(*offers):
        tokens = dict(zip(able, (token for token, _ in draws), strict=True))
        share = math.prod(weight for _, weight in draws)
        orders = [({i: task.confidence(now.p[i], tokens[i]) * task.window(now.canvas, i) for i in able}, 1.0)]
        if task.in_drawn_order:
            weights = {i: task.draw_weight(now, i, tokens[i]) for i in able}
            orders = [(order_as_score(order), order_chance(order, weights)) for order in itertools.permutations(able)]
        for score, chance in orders:
            yield {i: tokens[i] for i in task.chosen(now, score, tokens)}, share * chance


def order_as_score(order: tuple[int, ...]) -> dict[int, float]:
    return {i: -float(place) for place, i in enumerate(order)}


def order_chance(order: tuple[int, ...], weights: dict[int, float]) -> float:
    """How probable it is to draw them in this order, one after the other without replacement."""
    return math.prod(weights[i] / sum(weights[j] for j in order[place:]) for place, i in enumerate(order))


def joint_draws(offers: dict[int, tuple[Candidates, float]]) -> Iterator[tuple[dict[int, int], float]]:
    """One draw a position over {k tokens, stay masked}."""
    choices: list[list[tuple[int | None, float]]] = []
    for candidates, stay in offers.values():
        total = sum(weight for _, weight in candidates) + stay
        moves: list[tuple[int | None, float]] = [(token, weight / total) for token, weight in candidates if weight > 0]
        choices.append(moves + ([] if moves and stay == 0 else [(None, stay / total if moves else 1.0)]))
    for draws in itertools.product(*choices):
        new = {i: token for i, (token, _) in zip(offers, draws, strict=True) if token is not None}
        yield new, math.prod(share for _, share in draws)


def coins(chances: dict[int, float]) -> Iterator[tuple[list[int], float]]:
    """Every subset, each position in it or not on its own."""
    for faces in itertools.product((False, True), repeat=len(chances)):
        pairs = list(zip(chances.items(), faces, strict=True))
        chance = math.prod(p if face else 1 - p for (_, p), face in pairs)
        if chance > 0:
            yield [i for (i, _), face in pairs if face], chance


def p_values(found: Decoded, responses: dict, stamps: dict) -> tuple[float, float]:
    """Chi-square of the tokens and of the commit steps; 0 where something came out that never can."""
    values = []
    for drawn_rows, expected in ((found.tokens.tolist(), responses), (found.commit_step.tolist(), stamps)):
        cells = list(expected)
        counts = dict.fromkeys(cells, 0)
        for row in drawn_rows:
            if tuple(row) not in counts:
                return 0.0, 0.0
            counts[tuple(row)] += 1
        size = len(drawn_rows)
        values.append(chi_square_p([counts[cell] for cell in cells], [size * expected[cell] for cell in cells]))
    return values[0], values[1]


def assert_in_distribution(case: tuple[str, dict[str, Any], int, int]) -> None:
    """ROWS answers of (decoder, options, gen_length, steps) against the enumeration of every possible run."""
    name, options, gen_length, steps = case
    table = TableDenoiser(vocab=4, mask_id=1, seed=3)
    task = Task(name, options, gen_length, steps, 0, 1)
    responses, stamps = exact_distribution(network_of_table(table), [2, 3], task)
    assert sum(responses.values()) == pytest.approx(1) and sum(stamps.values()) == pytest.approx(1)
    found = fast_decode(table, [[2, 3]] * ROWS, task)
    assert min(p_values(found, responses, stamps)) > 0.001
