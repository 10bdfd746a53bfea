"""Rule-made negatives (Algorithm 1): every property of a draw, and the distributions the draws come from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.negatives.corruption import RULES, Negative, NegativeRule, continuation, inside, outside

EOS = 0
PRIOR = np.array([900, 901, 902, 903])
RULE = NegativeRule(
    g_max=15,
    z_min=30,
    z_max=50,
    eos_probability=0.0,
    at_least_answer=False,
    high_prior_share=0.0,
    prior_ids=PRIOR,
    prior_p=np.array([0.4, 0.3, 0.2, 0.1]),
    eos_id=EOS,
)
SMALL = replace(RULE, g_max=8, z_min=3, z_max=7)

# Critical values of chi-square at p = 0.001, by degrees of freedom.
CHI2 = {3: 16.27, 4: 18.47, 7: 24.32, 9: 27.88}


def canvas(question: int, answer: int, padding: int) -> np.ndarray:
    """Different ids from 10 on, so that a position's origin can be read off its id; then EOS."""
    x0 = np.full(question + answer + padding, EOS, dtype=np.int32)
    x0[: question + answer] = np.arange(10, 10 + question + answer)
    return x0


def span(mask: np.ndarray) -> tuple[int, int]:
    """[start, end) of a mask's True positions, which must stand side by side."""
    where = np.flatnonzero(mask)
    assert len(where)
    assert where[-1] - where[0] + 1 == len(where)
    return int(where[0]), int(where[-1]) + 1


def repeats(found: Sequence[int], unit: Sequence[int]) -> bool:
    """Is `found` the unit over and over, from some phase, with at most one EOS, which is not at its end?"""
    holes = [i for i, token in enumerate(found) if token == EOS and EOS not in unit]
    if len(holes) > 1 or (holes and holes[0] == len(found) - 1):
        return False
    return any(
        all(token == unit[(phase + i) % len(unit)] for i, token in enumerate(found) if i not in holes)
        for phase in range(len(unit))
    )


def assert_equal(a: Negative, b: Negative) -> None:
    assert (a.c, a.g, a.z, a.kind) == (b.c, b.g, b.z, b.kind)
    for name in ("context_mask", "rejected_ids", "rejected_mask"):
        assert np.array_equal(getattr(a, name), getattr(b, name))


def assert_uniform(draws: Sequence[int], low: int, high: int) -> None:
    counts, expected = Counter(draws), len(draws) / (high - low + 1)
    assert set(counts) == set(range(low, high + 1))
    chi2 = sum((counts[value] - expected) ** 2 / expected for value in range(low, high + 1))
    assert chi2 < CHI2[high - low]


shapes = st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(1, 40))
rules = st.builds(
    lambda g_max, z_min, more, p, stretch: replace(
        RULE, g_max=g_max, z_min=z_min, z_max=z_min + more, eos_probability=p, at_least_answer=stretch
    ),
    st.integers(1, 25),
    st.integers(1, 30),
    st.integers(0, 10),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
)
seeds = st.integers(0, 2**32)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shapes, rules, seeds)
def test_algorithm_1(shape: tuple[int, int, int], rule: NegativeRule, seed: int) -> None:
    question, answer, _ = shape
    x0 = canvas(*shape)
    before = x0.copy()
    drawn = continuation(x0, question, answer, rule, np.random.default_rng(seed))
    start, end = span(drawn.rejected_mask)
    assert question <= drawn.c <= question + answer
    assert np.array_equal(drawn.context_mask, np.arange(len(x0)) < drawn.c)
    assert start == drawn.c
    assert end - start == drawn.z
    ends = {min(drawn.c + z, len(x0)) for z in range(rule.z_min, rule.z_max + 1)}
    assert end in ({max(e, question + answer) for e in ends} if rule.at_least_answer else ends)
    assert 1 <= drawn.g <= min(rule.g_max, drawn.c)
    assert repeats(drawn.rejected_ids[start:end], x0[drawn.c - drawn.g : drawn.c])
    assert np.array_equal(drawn.rejected_ids[~drawn.rejected_mask], x0[~drawn.rejected_mask])
    assert drawn.kind == "repetition"
    assert np.array_equal(x0, before)
    assert drawn.rejected_ids.dtype == x0.dtype
    assert len(drawn.context_mask) == len(drawn.rejected_ids) == len(x0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(shapes, rules, seeds)
def test_equals_algorithm_1_written_out(shape: tuple[int, int, int], rule: NegativeRule, seed: int) -> None:
    """Given what was drawn (c, g, e and, read off the first token, the phase), the rest is fixed: written out here
    as the paper's loop, one token at a time."""
    question, answer, _ = shape
    x0 = canvas(*shape).tolist()
    rule = replace(rule, eos_probability=0.0)
    drawn = continuation(np.array(x0), question, answer, rule, np.random.default_rng(seed))
    end = span(drawn.rejected_mask)[1]
    unit = []
    for back in range(drawn.g, 0, -1):
        unit.append(x0[drawn.c - back])
    at = unit.index(drawn.rejected_ids[drawn.c])
    rejected, context, mask = [], [], []
    for i, token in enumerate(x0):
        context.append(i < drawn.c)
        mask.append(drawn.c <= i < end)
        if drawn.c <= i < end:
            token = unit[at]
            at = 0 if at == len(unit) - 1 else at + 1
        rejected.append(token)
    assert drawn.rejected_ids.tolist() == rejected
    assert drawn.context_mask.tolist() == context
    assert drawn.rejected_mask.tolist() == mask


def test_by_hand_with_a_unit_of_one() -> None:
    """A unit of 1, a span of 3: prompt 10 11, answer 12, EOS EOS EOS; c is 2 or 3, the last token three times."""
    rule = replace(RULE, g_max=1, z_min=3, z_max=3)
    seen = {}
    for seed in range(20):
        drawn = continuation(canvas(2, 1, 3), 2, 1, rule, np.random.default_rng(seed))
        seen[drawn.c] = (drawn.rejected_ids.tolist(), drawn.rejected_mask.astype(int).tolist())
    assert seen == {
        2: ([10, 11, 11, 11, 11, 0], [0, 0, 1, 1, 1, 0]),
        3: ([10, 11, 12, 12, 12, 12], [0, 0, 0, 1, 1, 1]),
    }


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.3, 240, 360), (1.0, 1000, 1000)])
def test_eos_probability(probability: float, low: int, high: int) -> None:
    """Of 1000 spans, 1000 p carry an EOS; at p = 0.3 the sd is sqrt(210) = 14.5, so 60 is 4.1 sd. Never two."""
    rule, rng = replace(SMALL, eos_probability=probability), np.random.default_rng(0)
    with_eos = 0
    for _ in range(1000):
        drawn = continuation(canvas(20, 9, 20), 20, 9, rule, rng)
        found = int((drawn.rejected_ids[drawn.rejected_mask] == EOS).sum())
        assert found <= 1
        with_eos += found
    assert low <= with_eos <= high


def test_eos_lands_anywhere_but_on_the_last_position() -> None:
    """Spans of 5: the EOS is uniform over the first four places, [c, e-1)."""
    rule, rng = replace(RULE, z_min=5, z_max=5, eos_probability=1.0), np.random.default_rng(1)
    places = []
    for _ in range(2000):
        drawn = continuation(canvas(20, 9, 20), 20, 9, rule, rng)
        places.append(int(np.flatnonzero(drawn.rejected_ids[drawn.rejected_mask] == EOS)[0]))
    assert_uniform(places, 0, 3)


def test_a_span_of_one_has_no_room_for_an_eos() -> None:
    rule = replace(RULE, z_min=1, z_max=1, eos_probability=1.0)
    for seed in range(50):
        drawn = continuation(canvas(5, 5, 5), 5, 5, rule, np.random.default_rng(seed))
        assert EOS not in drawn.rejected_ids[drawn.rejected_mask]


def test_at_least_answer_stretches_the_span_and_changes_nothing_else() -> None:
    stretched = 0
    for seed in range(200):
        x0 = canvas(5, 20, 10)
        plain = continuation(x0, 5, 20, SMALL, np.random.default_rng(seed))
        drawn = continuation(x0, 5, 20, replace(SMALL, at_least_answer=True), np.random.default_rng(seed))
        assert (drawn.c, drawn.g) == (plain.c, plain.g)
        end = span(plain.rejected_mask)[1]
        assert span(drawn.rejected_mask)[1] == max(end, 25)
        assert np.array_equal(drawn.rejected_ids[:end], plain.rejected_ids[:end])
        stretched += end < 25
    assert 50 < stretched < 200


def test_context_unit_and_span_are_uniform() -> None:
    """c over [20, 29] (L_Q = 20, L_A = 9), g over [1, 8], z over [3, 7]: 4000 draws, chi-square at p = 0.001."""
    rng, x0 = np.random.default_rng(3), canvas(20, 9, 20)
    drawn = [continuation(x0, 20, 9, SMALL, rng) for _ in range(4000)]
    assert_uniform([d.c for d in drawn], 20, 29)
    assert_uniform([d.g for d in drawn], 1, 8)
    assert_uniform([d.z for d in drawn], 3, 7)


def test_the_phase_is_uniform() -> None:
    """Among draws with g = 4, the first rejected token is each of the unit's four equally often."""
    rng, x0 = np.random.default_rng(4), canvas(20, 9, 20)
    phases = []
    while len(phases) < 1000:
        drawn = continuation(x0, 20, 9, SMALL, rng)
        if drawn.g == 4:
            phases.append(int(drawn.rejected_ids[drawn.c] - x0[drawn.c - 4]))
    assert_uniform(phases, 0, 3)


def test_high_prior_units_come_from_the_frequent_tokens_alone() -> None:
    rule, rng = replace(RULE, high_prior_share=1.0), np.random.default_rng(5)
    for _ in range(100):
        drawn = continuation(canvas(20, 9, 60), 20, 9, rule, rng)
        found = drawn.rejected_ids[drawn.rejected_mask]
        assert drawn.kind == "high_prior"
        assert set(found.tolist()) <= set(PRIOR.tolist())
        assert np.array_equal(found[drawn.g :], found[: -drawn.g])


def test_high_prior_units_follow_the_prior() -> None:
    """Units of one token, 2000 draws: expected 800, 600, 400, 200."""
    rule, rng = replace(RULE, g_max=1, high_prior_share=1.0), np.random.default_rng(6)
    counts = Counter(int(continuation(canvas(20, 9, 60), 20, 9, rule, rng).rejected_ids[40]) for _ in range(2000))
    expected = dict(zip(PRIOR.tolist(), (800, 600, 400, 200), strict=True))
    assert sum((counts[token] - n) ** 2 / n for token, n in expected.items()) < CHI2[3]


def test_high_prior_share_is_a_share() -> None:
    """0.25 of 1000: sd 13.7, 4 sd = 55."""
    rule, rng = replace(RULE, high_prior_share=0.25), np.random.default_rng(7)
    kinds = Counter(continuation(canvas(20, 9, 60), 20, 9, rule, rng).kind for _ in range(1000))
    assert kinds["high_prior"] == pytest.approx(250, abs=55)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 15), st.integers(20, 60), rules, seeds)
def test_inside_has_context_on_both_sides(question: int, length: int, rule: NegativeRule, seed: int) -> None:
    x0 = np.arange(10, 10 + length)
    drawn = inside(x0, question, length - question, rule, np.random.default_rng(seed))
    start, end = span(drawn.rejected_mask)
    assert start == drawn.c >= max(question, 1)
    assert end < length
    assert end - start == drawn.z <= rule.z_max
    assert np.array_equal(drawn.context_mask, ~drawn.rejected_mask)
    assert 1 <= drawn.g <= rule.g_max
    left, right = x0[start - drawn.g : start], x0[end : end + drawn.g]
    found = drawn.rejected_ids[start:end]
    assert repeats(found, left) or repeats(found, right)
    assert np.array_equal(drawn.rejected_ids[~drawn.rejected_mask], x0[~drawn.rejected_mask])


def test_inside_takes_its_unit_from_either_edge() -> None:
    """A fair coin, 400 draws: sd 10, 4 sd = 40."""
    x0, from_left = np.arange(10, 70), 0
    for seed in range(400):
        drawn = inside(x0, 5, 55, SMALL, np.random.default_rng(seed))
        from_left += bool(drawn.rejected_ids[drawn.c] < x0[drawn.c])
    assert from_left == pytest.approx(200, abs=40)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(6, 60), rules, seeds)
def test_outside_keeps_one_span_in_the_middle(length: int, rule: NegativeRule, seed: int) -> None:
    x0 = np.arange(10, 10 + length)
    drawn = outside(x0, 3, length - 3, rule, np.random.default_rng(seed))
    start, end = span(drawn.context_mask)
    assert start == drawn.c >= 1
    assert end < length
    assert 1 <= drawn.g <= min(rule.g_max, end - start)
    assert not (drawn.rejected_mask & drawn.context_mask).any()
    position = np.arange(length)
    before = span(drawn.rejected_mask & (position < start))
    after = span(drawn.rejected_mask & (position >= end))
    assert before[1] == start
    assert after[0] == end
    assert before[1] - before[0] == drawn.z
    assert min(rule.z_min, start) <= drawn.z <= rule.z_max
    assert min(rule.z_min, length - end) <= after[1] - after[0] <= rule.z_max
    assert repeats(drawn.rejected_ids[slice(*before)], x0[start : start + drawn.g])
    assert repeats(drawn.rejected_ids[slice(*after)], x0[end - drawn.g : end])
    assert np.array_equal(drawn.rejected_ids[~drawn.rejected_mask], x0[~drawn.rejected_mask])


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_draw_depends_on_its_generator_alone(name: str) -> None:
    rule, x0 = replace(RULE, eos_probability=0.5, high_prior_share=0.5), canvas(10, 30, 30)
    first = [RULES[name](x0, 10, 30, rule, np.random.default_rng([42, seed])) for seed in range(20)]
    np.random.seed(1)
    second = [RULES[name](x0, 10, 30, rule, np.random.default_rng([42, seed])) for seed in range(20)]
    for a, b in zip(first, second, strict=True):
        assert_equal(a, b)
    assert len({(d.c, d.g, d.z, tuple(d.rejected_ids.tolist())) for d in first}) > 15
