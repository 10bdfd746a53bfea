"""Schedules, commit rules, proposals, windows and plans: numbers worked out by hand."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from decoder_cases import BY_HAND
from hypothesis import assume, given
from torch import Tensor

from dlm.decoding import commit, plans, propose, schedules, windows
from dlm.decoding.commit import Open
from dlm.decoding.decoder import make_decoder
from dlm.decoding.options import decoder_options
from dlm.decoding.plans import Phase
from dlm.decoding.propose import Candidates, Source
from dlm.decoding.schedules import Rates, log_linear


def numbers(rates: Rates) -> list[float]:
    return [rates.move, rates.stay, rates.revoke]


def near_float32(*values: float) -> list:
    return [pytest.approx(value, abs=1e-5) for value in values]


def near(*values: float) -> list:
    return [pytest.approx(value, abs=1e-12) for value in values]


# --- Schedules --------------------------------------------------------------------------------------------------------


def test_remdm_cap() -> None:
    """Four steps, η = 0.4; α_t = 1 - t, so the steps go from α to α: 0 1/4, 1/4 1/2, 1/2 3/4, 3/4 1.

    σ_max = min(1, (1 - α_s)/α_t) = 1 (α_t = 0), min(1, 1/2 / 1/4) = 1, 1/4 / 1/2 = 1/2, 0. σ = min(0.4, ·).
    Moving α_s - (1 - σ)α_t: 1/4, 1/2 - 0.6/4 = 0.35, 3/4 - 0.6/2 = 0.45, 1 - 3/4 = 1/4.
    Staying 1 - α_s - σα_t: 3/4, 1/2 - 0.4/4 = 0.4, 1/4 - 0.4/2 = 0.05, 0.
    """
    cap = schedules.remdm_cap(0.4)
    assert [numbers(cap(step, 4)) for step in range(4)] == [
        near(0.25, 0.75, 0.4),
        near(0.35, 0.4, 0.4),
        near(0.45, 0.05, 0.4),
        near(0.25, 0.0, 0.0),
    ]


def test_remdm_rescale() -> None:
    """As above with σ = 0.4·σ_max = 0.4, 0.4, 0.2, 0: the third step moves 3/4 - 0.8/2 = 0.35, stays 1/4 - 0.1."""
    rescale = schedules.remdm_rescale(0.4)
    assert [numbers(rescale(step, 4)) for step in range(4)] == [
        near(0.25, 0.75, 0.4),
        near(0.35, 0.4, 0.4),
        near(0.35, 0.15, 0.2),
        near(0.25, 0.0, 0.0),
    ]


def test_remdm_conf() -> None:
    """Masks move as without remasking; σ_max of the four steps is shared out, nothing at the last."""
    found = [numbers(schedules.remdm_conf(step, 4)) for step in range(4)]
    assert found == [near(1, 3, 1), near(1, 2, 1), near(1, 1, 0.5), near(1, 0, 0)]


def test_remdm_loop() -> None:
    """Ten steps, t_on 0.6, t_off 0.3, alpha_on 0.8, η 0.1.

    t = 1 .9 .8 .7 (rising): α(t) = (1 - t)·0.8/0.4, by 0.2 a step: moves 0.2, stays 0.8 0.6 0.4 0.2.
    t = .6 .5 .4 (standing): moves 0.8 - 0.9·0.8 = 0.08, stays 0.2 - 0.08 = 0.12, loses 0.1.
    t = .3 .2 .1 (to the end): α(t) = 1 - t·0.2/0.3, by 1/15 a step: moves 1/15, stays 2/15, 1/15, and 0 at last.
    """
    loop = schedules.remdm_loop(0.1, 0.6, 0.3, 0.8)
    found = [numbers(loop(step, 10)) for step in range(10)]
    assert found[:4] == [near(0.2, stay, 0) for stay in (0.8, 0.6, 0.4, 0.2)]
    assert found[4:7] == [near(0.08, 0.12, 0.1)] * 3
    assert found[7:9] == [near(1 / 15, 2 / 15, 0), near(1 / 15, 1 / 15, 0)]
    assert found[9][0] > 0 and found[9][1:] == [0.0, 0.0]


def test_a_loop_that_steps_over_t_on_stops_there() -> None:
    """Three steps: t = 1, 2/3 rise (the second to t_on = 0.55 only, alpha_on), t = 1/3 is the last: all that is left.

    First α: 0 to (1/3)·0.9/0.45 = 2/3; then 2/3 to 0.9: moves 0.9 - 2/3, stays 0.1.
    """
    loop = schedules.remdm_loop(0.02, 0.55, 0.05, 0.9)
    assert numbers(loop(0, 3)) == near(2 / 3, 1 / 3, 0)
    assert numbers(loop(1, 3)) == near(0.9 - 2 / 3, 0.1, 0)
    assert numbers(loop(2, 3))[1:] == [0.0, 0.0]


def test_the_share_of_dream() -> None:
    """Two steps of ten, by hand: t = 1, .9001 and .8002, so 1 - .9001 = .0999 and 1 - .8002/.9001 = .11099. Of 64 masks
    int(6.39) = 6 and int(6.44) of the 58 that are left; of 10, int(.999) = 0: nothing until the last step, if ever."""
    shares = [schedules.dream(step, 10).share for step in range(10)]
    assert shares[:2] == near_float32(0.0999, 0.11099) and shares[-1] == 1.0
    given = opened([0.5] * 64, [0] * 64)
    none = torch.full((64,), 0.5, dtype=torch.float64)
    assert len(places(commit.fixed_count(*given, schedules.dream(0, 10), none))) == 6
    few = opened([0.5] * 10, [0] * 10)
    assert places(commit.fixed_count(*few, schedules.dream(0, 10), none[:10])) == []
    assert places(commit.fixed_count(*few, schedules.dream(9, 10), none[:10])) == list(range(10))


EVERY = {
    "plain": log_linear,
    "dream": schedules.dream,
    "cap": schedules.remdm_cap(0.3),
    "rescale": schedules.remdm_rescale(1.0),
    "conf": schedules.remdm_conf,
    "loop": schedules.remdm_loop(0.1, 0.55, 0.05, 0.9),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 64, 1000])
def test_every_schedule_ends_with_all_committed(name: str, steps: int) -> None:
    """A last step that is the first too may lose tokens: there are none yet."""
    rates = [EVERY[name](step, steps) for step in range(steps)]
    assert all(rate.move >= 0 and rate.stay >= 0 and 0 <= rate.revoke <= 1 for rate in rates)
    assert rates[-1].move > 0 and rates[-1].stay == 0 and (rates[-1].revoke == 0 or steps == 1)
    assert [rate.steps_left for rate in rates] == list(range(steps, 0, -1))


@pytest.mark.parametrize("name", ["cap", "rescale", "loop"])
def test_the_expected_share_of_tokens_follows_alpha(name: str) -> None:
    """A share a of tokens becomes a(1 - σ) + (1 - a)·move/(move + stay): ReMDM's marginal, α_s whatever σ is."""
    steps, share = 20, 0.0
    expected = [(step + 1) / steps for step in range(steps)]
    if name == "loop":  # t = 1 to 0.6 rises to 0.9 at 0.55; the last of 20 steps is the only one with t ≤ 0.05
        expected = [min((step + 1) / steps * 0.9 / 0.45, 0.9) for step in range(19)] + [1.0]
    for step in range(steps):
        rates = EVERY[name](step, steps)
        share = share * (1 - rates.revoke) + (1 - share) * rates.move / (rates.move + rates.stay)
        assert share == pytest.approx(expected[step])


# --- Commit and revoke ------------------------------------------------------------------------------------------------


def opened(
    p: list[float], rows: list[int], s: list[float] | None = None, late: list[int] | None = None
) -> tuple[Open, Candidates]:
    """Open positions of confidence p; all masks of a row are open."""
    row, log_p = torch.tensor(rows), torch.tensor(p).log()
    weight = torch.tensor(s or [1.0] * len(p)).log()
    behind = torch.tensor(late or [0] * len(p)).bool()
    open_ = Open(int(row.max()) + 1, row, torch.arange(len(p)), weight, torch.bincount(row), behind)
    return open_, Candidates(log_p, log_p, lambda chosen: (chosen, log_p[chosen]))


def places(found: Tensor) -> list[int]:
    return found.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("name", "options", "p", "left", "committed"), BY_HAND, ids=str)
def test_ranking_rules(name: str, options: dict[str, Any], p: list[float], left: int, committed: list[int]) -> None:
    rule = make_decoder(decoder_options(name, options, name)).rule
    uniform = torch.full((len(p),), 0.5, dtype=torch.float64)
    assert places(rule.commit(*opened(p, [0] * len(p)), Rates(1.0, 1.0, left), uniform)) == committed


def test_threshold() -> None:
    """Bar 0.5. Row 0 passes twice. Row 1 never: the best of ceil(3/3) = 1. Row 2: .9·1/4 fails, .6·1 passes.

    Two steps left instead of three: row 1 commits ceil(3/2) = 2, and row 0, which passes twice, no third.
    """
    p = [0.5, 0.2, 0.9, 0.1, 0.4, 0.3, 0.9, 0.6]
    given = opened(p, [0, 0, 0, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1, 0.25, 1])
    none = torch.zeros(8).double()
    assert places(commit.threshold(0.5)(*given, log_linear(0, 3), none)) == [0, 2, 4, 7]
    assert places(commit.threshold(0.5)(*given, log_linear(1, 3), none)) == [0, 2, 4, 5, 7]
    assert places(commit.threshold(0.0)(*given, log_linear(0, 3), none)) == list(range(8))


def test_factor() -> None:
    """Bound 1. Row 0, by rank: 2(1 - .9) = .2, 3(1 - .8) = .6, 4(1 - .6) = 1.6 fails: two.

    Row 1: 2(1 - .4) = 1.2 fails at once, so the schedule's ceil(2/4) = 1.
    Row 2: .95·1/2 = .475: 2·.525 = 1.05 fails; one. Bound 2 lets it pass, and row 0's third (1.6), not its fourth (4).
    """
    p = [0.6, 0.9, 0.2, 0.8, 0.4, 0.3, 0.95]
    given = opened(p, [0, 0, 0, 0, 1, 1, 2], [1, 1, 1, 1, 1, 1, 0.5])
    none = torch.zeros(7).double()
    assert places(commit.factor(1.0)(*given, log_linear(0, 4), none)) == [1, 3, 4, 6]
    # Row 1: 2(1 - .4) = 1.2 passes, 3(1 - .3) = 2.1 fails.
    assert places(commit.factor(2.0)(*given, log_linear(0, 4), none)) == [0, 1, 3, 4, 6]
    # One step left: everything.
    assert places(commit.factor(1.0)(*given, log_linear(3, 4), none)) == list(range(7))


def test_factor_is_strict() -> None:
    """3(1 - 1/2) = 1.5 is not below 1.5."""
    given = opened([0.5, 0.5], [0, 0])
    assert places(commit.factor(1.5)(*given, log_linear(0, 2), torch.zeros(2).double())) == [0]
    assert places(commit.factor(1.5001)(*given, log_linear(0, 2), torch.zeros(2).double())) == [0, 1]


def test_entropy_bounded() -> None:
    """Bound .6. Row 0, -ln of .9 .8 .6 .5: .105 .223 .511 .693. Before each: 0, .105, .329, .839: three.

    Row 1, .4 .3: .916 1.204: 0, .916: one, as the schedule's ceil(2/4). Row 2, .95·1/2 and .7: .357, .744: two.
    At most two a step: row 0's third waits. At bound 0 the first alone.
    """
    p = [0.6, 0.9, 0.5, 0.8, 0.4, 0.3, 0.95, 0.7]
    given = opened(p, [0, 0, 0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1, 0.5, 1])
    none = torch.zeros(8).double()
    assert places(commit.entropy_bounded(0.6)(*given, log_linear(0, 4), none)) == [0, 1, 3, 4, 6, 7]
    assert places(commit.entropy_bounded(0.6, 2)(*given, log_linear(0, 4), none)) == [1, 3, 4, 6, 7]
    assert places(commit.entropy_bounded(0.0)(*given, log_linear(0, 4), none)) == [1, 4, 7]
    assert places(commit.entropy_bounded(0.0, 1)(*given, log_linear(3, 4), none)) == list(range(8))


def test_frechet() -> None:
    """Margin .2: below .8. Row 0, 1 - c of .95 .9 .8 .5: .05 .1 .2 .5; with the last once more .1 .25 .55 1.35: three.

    `factor` with the same bound asks 2·.05 = .1, 3·.1 = .3, 4·.2 = .8: two. Row 1: 2·.4 = .8 is not below .8, so the
    schedule's one. Row 2, .95·.9 and .9: .145, .1, in that order .2 and .245 + .145 = .39: two.
    """
    p = [0.8, 0.95, 0.5, 0.9, 0.6, 0.3, 0.95, 0.9]
    given = opened(p, [0, 0, 0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1, 0.9, 1])
    none = torch.zeros(8).double()
    assert places(commit.frechet(0.2)(*given, log_linear(0, 4), none)) == [0, 1, 3, 4, 6, 7]
    assert places(commit.factor(0.7999)(*given, log_linear(0, 4), none)) == [1, 3, 4, 6, 7]
    assert places(commit.frechet(0.2, 2)(*given, log_linear(0, 4), none)) == [1, 3, 4, 6, 7]


@given(st.floats(0.05, 1.0), st.integers(1, 12), st.floats(0.0, 0.9))
def test_frechet_of_equal_confidences_is_factor(confidence: float, count: int, margin: float) -> None:
    """Its authors' special case: n(1 - c) + (1 - c) < 1 - margin. Where the two sides are not all but equal."""
    sides = [(n + 1) * (1 - confidence) - (1 - margin) for n in range(1, count + 1)]
    assume(all(abs(side) > 1e-4 for side in sides))
    given_, none = opened([confidence] * count, [0] * count), torch.zeros(count).double()
    found = [
        places(rule(*given_, log_linear(0, 99), none)) for rule in (commit.frechet(margin), commit.factor(1 - margin))
    ]
    assert found[0] == found[1]


def test_prophet() -> None:
    """Bar 2. Row 0: gaps 1 3, mean 2: all. Row 1: 1 2 2.5, mean 5.5/3: the surest, ceil(3/4). Row 2: 9, late: none."""
    open_, candidates = opened([0.5, 0.6, 0.2, 0.9, 0.3, 0.4, 0.8], [0, 0, 1, 1, 1, 2, 2], late=[0, 0, 0, 0, 0, 1, 0])
    given = open_, replace(candidates, gap=torch.tensor([1.0, 3.0, 1.0, 2.0, 2.5, 9.0, 9.0]))
    rates = schedules.prophet(7.5, 5.0, 2.0)(3, 4)
    rates = replace(rates, steps_left=4)
    assert places(commit.prophet(*given, rates, torch.zeros(7).double())) == [0, 1, 3, 6]


def test_the_stages_of_prophet() -> None:
    """Of 100 steps, the 32nd is the last early one, the 66th the last in the middle; the rest as without."""
    bars = [schedules.prophet(3.0, 2.0, 1.0)(step, 100).gap for step in range(100)]
    assert (bars.count(3.0), bars.count(2.0), bars.count(1.0)) == (32, 34, 34) and sorted(bars, reverse=True) == bars
    assert [replace(schedules.prophet(3.0, 2.0, 1.0)(step, 7), gap=math.inf) for step in range(7)] == [
        log_linear(step, 7) for step in range(7)
    ]


def test_left_first() -> None:
    """Decay ln 2 and windows 1 1 1/2: .5, .6/2 = .3, .9/4·1/2: two of three with two steps left."""
    given, none = opened([0.5, 0.6, 0.9], [0] * 3, [1, 1, 0.5]), torch.zeros(3).double()
    assert places(commit.left_first(math.log(2))(*given, log_linear(0, 2), none)) == [0, 1]
    assert places(commit.left_first(0.0)(*given, log_linear(0, 2), none)) == [0, 1]  # .5 .6 .45
    assert places(commit.left_first(0.0)(*given, log_linear(0, 3), none)) == [1]


def test_at_random_follows_the_window() -> None:
    """One of two positions with s = 3 : 1 commits: the first in 3/4 of 4000 rows (4 standard deviations: 0.027)."""
    rows = [row for row in range(4000) for _ in range(2)]
    given = opened([0.5] * 8000, rows, [0.9, 0.3] * 4000)
    uniform = torch.rand(8000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = commit.at_random(*given, log_linear(0, 2), uniform).view(4000, 2)
    assert found.sum(-1).tolist() == [1] * 4000
    assert found[:, 0].double().mean().item() == pytest.approx(0.75, abs=0.027)


def test_by_confidence() -> None:
    """σ = 1/2 over a row's tokens of p = .2 .9: e^-.2 and e^-.9 over their sum, halved; a single token gets it all."""
    row, log_p = torch.tensor([0, 0, 2]), torch.tensor([0.2, 0.9, 0.4]).log()
    found = commit.by_confidence(3, row, log_p, Rates(1.0, 1.0, 2, 0.5))
    first, second = math.exp(-0.2), math.exp(-0.9)
    assert found.tolist() == pytest.approx([first / (first + second) / 2, second / (first + second) / 2, 0.5])
    assert commit.by_confidence(3, row[:0], log_p[:0], Rates(1.0, 1.0, 2, 0.5)).tolist() == []
    assert commit.uniformly(3, row, log_p, Rates(1.0, 1.0, 2, 0.3)).tolist() == [0.3] * 3


@given(data=st.data(), k=st.integers(1, 5), vocab=st.integers(8 * 64, 4000))
def test_largest_is_topk(data: st.DataObject, k: int, vocab: int) -> None:
    """Also with the largest side by side in one block or in the tail, with ties, and with -inf."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(3, vocab, generator=generator).round(decimals=1)
    start = data.draw(st.integers(0, vocab - 6))
    logits[0, start : start + 6] += 5
    logits[1, torch.arange(vocab) != start] = -math.inf
    values, ids = propose.largest(logits, k)
    assert torch.equal(values, logits.topk(k).values) and torch.equal(logits.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


# --- Proposals --------------------------------------------------------------------------------------------------------


def source(logits: Tensor, uniform: list[float]) -> Source:
    drawn = torch.tensor(uniform, dtype=torch.float64)
    return Source(
        len(logits), logits.shape[1], logits.device, lambda chosen: logits[chosen], lambda chosen: drawn[chosen]
    )


def test_the_confidences() -> None:
    """p = (1/2 1/4 1/8 1/8 0): margin 1/4; H = 1/2·1 + 1/4·2 + 2·1/8·3 = 1.75 bits, e^-H = 2^-1.75.

    p = (1 0 0 0 0): margin 1, e^-H = 1. The rank of `random` is the same everywhere.
    """
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]).log()
    expected = {"probability": [0.5, 1], "margin": [0.25, 1], "entropy": [2**-1.75, 1], "random": [1, 1]}
    for name, values in expected.items():
        candidates = propose.single(name, 0.0)(source(logits, [0.5, 0.5]))  # type: ignore[arg-type]
        assert candidates.log_confidence.exp().tolist() == pytest.approx(values)
        tokens, log_p = candidates.draw(torch.tensor([True, True]))
        assert tokens.tolist() == [0, 2] and log_p.exp().tolist() == pytest.approx([0.5, 1])


def test_a_temperature_draws_and_ranks_by_the_plain_probability() -> None:
    """p = (1/2 1/4 1/4) at T = 1/2: squares 4 : 1 : 1, cumulated 2/3 5/6 1; at T = 2: roots √2 : 1 : 1, .414 .707 1.

    What ranks is p itself: 1/2 or 1/4.
    """
    logits = torch.tensor([0.5, 0.25, 0.25]).log().repeat(4, 1)
    uniform = [0.4, 0.6, 0.7, 0.84]
    for temperature, tokens in ((0.5, [0, 0, 1, 2]), (1.0, [0, 1, 1, 2]), (2.0, [0, 1, 1, 2])):
        candidates = propose.single("probability", temperature)(source(logits, uniform))
        found, log_p = candidates.draw(torch.ones(4, dtype=torch.bool))
        assert found.tolist() == tokens
        assert torch.equal(log_p, candidates.log_confidence)
        assert log_p.exp().tolist() == pytest.approx([0.25 if token else 0.5 for token in tokens])


def test_calibrated() -> None:
    """p = 1/2 of token 0 and 3/4 of token 1, which are 1/8 and 1/2 of a corpus; clip 1: .5·ln 8 = 1.04, cut to 1;
    .75·ln 2 = .52. With clip 10: .104 and .052. A token beyond the counts is as rare as the rarest: 1/8."""
    background = torch.tensor([1 / 8, 1 / 2, 3 / 8, 1 / 8]).log()  # the last: of ids beyond
    logits = torch.tensor([[0.5, 0.2, 0.2, 0.0, 0.1], [0.0, 0.75, 0.25, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1, 0.6]]).log()
    for clip, expected in ((1.0, [1.0, 0.75 * math.log(2), 1.0]), (10.0, [0.05 * math.log(8), 0.075 * math.log(2)])):
        candidates = propose.calibrated(background, clip)(source(logits, [0.5] * 3))
        assert candidates.log_confidence.exp().tolist()[: len(expected)] == pytest.approx(expected)
        tokens, log_p = candidates.draw(torch.ones(3, dtype=torch.bool))
        assert tokens.tolist() == [0, 1, 4] and log_p.exp().tolist() == pytest.approx([0.5, 0.75, 0.6])
    bare = propose.calibrated(None, 10.0)(source(logits, [0.5] * 3))
    assert bare.log_confidence.exp().tolist() == pytest.approx([0.5, 0.75, 0.6])


def test_how_far_the_best_is_ahead() -> None:
    """Logits 3 1 0 and 2 2 2: gaps 2 and 0."""
    candidates = propose.ahead(source(torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.0, 2.0]]), [0.5, 0.5]))
    assert candidates.gap is not None
    assert candidates.gap.tolist() == pytest.approx([2.0, 0.0], abs=1e-6)


# --- Windows and plans ------------------------------------------------------------------------------------------------


def test_the_exponential_kernel() -> None:
    """Kernel 5: reach 2, weights e^-|d| (e^{-2|d|/2}). Tokens at 0 and 3 of 6: the sums of their weights."""
    committed = torch.tensor([[1, 0, 0, 1, 0, 0]]).bool()
    e = math.exp(-1)
    u = [1, e + e * e, e * e + e, 1, e, e * e]
    found = windows.conv(5, "tanh", 0.7, "exponential")(committed)[0]
    assert found.exp().tolist() == pytest.approx([math.tanh(0.7 * value) for value in u])
    # Kernel 7: reach 3, weights e^{-2|d|/3}.
    e = math.exp(-2 / 3)
    u = [1 + e**3, e + e**2, e**2 + e, 1 + e**3, e, e**2]
    found = windows.conv(7, "linear", 1.0, "exponential")(committed)[0]
    assert found.exp().tolist() == pytest.approx([value / 7 for value in u])
    # Kernel 1 has no reach: itself alone.
    assert windows.conv(1, "step", 1.0, "exponential")(committed)[0].exp().tolist() == [1, 0, 0, 1, 0, 0]
    assert windows.conv(5, "tanh", 0.7, "exponential")(torch.zeros(1, 6).bool())[0].exp().tolist() == [1] * 6


def test_the_certainty_prior() -> None:
    """σ = 1, a = e^-1/2, b = e^-2, c = e^-9/2, d = e^-8 (e^-25/2 and less left out): all of it 1 + 2(a + b + c + d).

    Left of the canvas all is known: a + b + c + d at position 0, b + c + d at 1, c + d at 2, d at 3. A token at 2 adds
    b, a, 1, a. The same row with padding on its right.
    """
    a, b, c, d = (math.exp(-(k**2) / 2) for k in (1, 2, 3, 4))
    known = [a + b + c + d + b, b + c + d + a, c + d + 1, d + a]
    expected = [value / (1 + 2 * (a + b + c + d)) for value in known]
    alone = windows.certainty(1.0)(torch.tensor([[0, 0, 1, 0]]).bool())
    padded = windows.certainty(1.0)(torch.tensor([[0, 0, 1, 0, *[0] * 30], [1] * 34]).bool())
    assert alone[0].exp().tolist() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(padded[0, :4], alone[0])
    # In a long text of tokens everything is known, but right of its end.
    assert padded[1, 0].exp().item() == pytest.approx(1) and padded[1, 33].exp().item() < 0.75
    both = windows.both(windows.certainty(1.0), windows.conv(3, "tanh", 1.0))(torch.tensor([[0, 0, 1, 0]]).bool())
    assert both[0].exp().tolist() == pytest.approx([0, *(value * math.tanh(1) for value in expected[1:])], rel=1e-4)


def test_sliding() -> None:
    """10 positions in 4 steps: fronts at 2.5 5 7.5 10, rounded up; three behind each, as far as there are any."""
    assert plans.sliding(10, 4, 3) == [
        Phase(1, 0, 6, 10, must=3, first=0, total=4),
        Phase(1, 0, 8, 10, must=5, first=1, total=4),
        Phase(1, 0, 10, 10, must=8, first=2, total=4),
        Phase(1, 0, 10, 10, must=10, first=3, total=4),
    ]
    # More steps than positions: each front is reached, none is passed twice as fast.
    fronts = [phase.must for phase in plans.sliding(3, 7, 0)]
    assert fronts == [1, 1, 2, 2, 3, 3, 3]
    assert all(0 <= after - before <= 1 for before, after in pairwise(fronts))
