"""Option `eos`: whether, and when, a decoder may end (LLaDA's confidence_eos_eot_inf and logits_eos_inf)."""

import math
from typing import Any

import pytest
import torch
from enumeration import ROWS, assert_in_distribution, exact_distribution, p_values
from hypothesis import given
from slow import PROMPTS, Task, assert_token_for_token, case_id, fast_decode, network_of_table
from test_decoding_properties import EOS, MASK, Job, histories, jobs, quick
from test_rules_by_hand import opened, places
from tiny import TableDenoiser, tiny_lm
from torch import Tensor

from dlm.decoding import commit
from dlm.decoding.schedules import log_linear

Case = tuple[str, dict[str, Any], int, int]
CAP = {"top_k": 5, "schedule": "cap", "eta": 0.3}

LAST: list[Case] = [
    *(("low_confidence", {"confidence": name}, 10, 4) for name in ("probability", "margin", "entropy", "random")),
    ("low_confidence", {"temperature": 0.7}, 10, 10),
    ("low_confidence", {"temperature": 0.7, "confidence": "random"}, 6, 14),
    *(("threshold", {"threshold": bar}, 10, 10) for bar in (0.0, 0.2, 0.5)),
    *(("factor", {"factor": bound}, 10, 4) for bound in (2.0, 99.0)),
    *(("entropy_bounded", {"gamma": gamma}, 10, 10) for gamma in (0.5, 9.0)),
    ("frechet", {"margin": 0.0, "cfg_scale": 1.0}, 10, 10),
    ("prophet", {"early": 0.4, "middle": 0.4, "late": 0.4}, 10, 10),
    *(("top_k", {"top_k": k}, 10, steps) for k in (1, 5) for steps in (1, 4, 14)),
    ("remdm", CAP, 8, 12),
    ("klass", {"threshold": 0.1, "kl_threshold": 9.0, "history": 1}, 10, 4),
    ("wino", {"threshold": 0.0, "verify_threshold": 0.6, "max_share": 0.7, "max_per_step": 2}, 10, 10),
    ("p2", {"eta": 1.5, "temperature": 0.7}, 10, 4),
    ("credit", {"threshold": 0.4, "strength": 4.0, "power": 0.2, "decay": 0.8}, 10, 10),
    ("sliding_annealing", {"top_k": 5, "reach": 99}, 10, 5),
    ("conv", {"top_k": 5, "kernel_size": 5}, 10, 10),
    ("conv", {"rule": "low_confidence", "kernel_size": 7, "conv_mult": 0.2}, 10, 4),
    ("semi_ar", {"top_k": 5, "variant": "stride", "block_length": 4}, 8, 8),
    ("semi_ar", {"rule": "low_confidence", "variant": "restrict", "block_length": 4}, 8, 4),
    ("repetition_penalty", {"rule": "low_confidence", "penalty": 1.5, "cfg_scale": 1.0}, 10, 10),
]
NEVER: list[Case] = [
    ("categorical", {"cfg_scale": 1.5}, 10, 4),
    ("top_k", {"top_k": 1000}, 10, 4),
    ("low_confidence", {"penalty": 0.5, "cfg_scale": 1.0}, 10, 4),
    ("low_confidence", {"temperature": 0.7, "confidence": "entropy"}, 10, 4),
    ("first_hitting", {}, 10, 10),
    ("remdm", {**CAP, "penalty": 1.5}, 8, 12),
    ("p2", {"eta": 2.0, "temperature": 1.0, "penalty": 1.5}, 8, 12),
    ("klass", {"threshold": 0.1, "kl_threshold": 9.0, "history": 1}, 10, 10),
    ("conv", {"rule": "threshold", "threshold": 0.2, "kernel_size": 3, "penalty": 1.5, "cfg_scale": 1.0}, 10, 4),
]
CASES = [
    (name, {"eos": eos, **options}, *size)
    for eos, some in (("last", LAST), ("never", NEVER))
    for name, options, *size in some
]


@pytest.mark.parametrize("eos_fill", [False, True], ids=["", "eos_fill"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_token_for_token(case: Case, eos_fill: bool) -> None:
    """Three prompts of unequal length in one batch of a real model, against the slow decoder."""
    name, options, gen_length, steps = case
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    task = Task(name, {**options, "eos_fill": eos_fill}, gen_length, steps, 0, denoiser.mask_id)
    assert_token_for_token(denoiser, PROMPTS, task)


APART: list[Case] = [
    ("low_confidence", {}, 10, 10),
    ("low_confidence", {"confidence": "random"}, 10, 10),
    ("threshold", {"threshold": 0.0}, 10, 10),
    ("factor", {"factor": 99.0}, 10, 10),
    ("top_k", {"top_k": 5}, 10, 4),
    ("remdm", CAP, 8, 12),
    ("sliding_annealing", {"top_k": 5, "reach": 99}, 10, 5),
    ("conv", {"top_k": 5, "kernel_size": 5}, 10, 10),
]


@pytest.mark.parametrize("case", APART, ids=case_id)
def test_the_three_differ(case: Case) -> None:
    name, options, gen_length, steps = case
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    free, last, never = (
        fast_decode(denoiser, PROMPTS, Task(name, {**options, "eos": eos}, gen_length, steps, 0, denoiser.mask_id))
        for eos in ("free", "last", "never")
    )
    assert (free.tokens == 0).any() and not (never.tokens == 0).any()
    assert (free.commit_step != last.commit_step).any()


# --- In distribution --------------------------------------------------------------------------------------------------

SAMPLED: list[Case] = [
    ("top_k", {"top_k": 2, "eos": "last"}, 3, 3),
    ("top_k", {"top_k": 3, "eos": "last", "eos_fill": True, "kernel_size": 7}, 3, 3),
    ("low_confidence", {"temperature": 1.0, "eos": "last"}, 3, 3),
    ("low_confidence", {"temperature": 1.0, "confidence": "random", "eos": "last"}, 3, 3),
    ("categorical", {"eos": "never"}, 3, 2),
]


@pytest.mark.parametrize("case", SAMPLED, ids=case_id)
def test_in_distribution(case: Case) -> None:
    assert_in_distribution(case)


@pytest.mark.parametrize("case", SAMPLED, ids=case_id)
def test_the_distributions_can_be_told_apart(case: Case) -> None:
    name, options, gen_length, steps = case
    table = TableDenoiser(vocab=4, mask_id=1, seed=3)
    responses, stamps = exact_distribution(
        network_of_table(table), [2, 3], Task(name, options, gen_length, steps, 0, 1)
    )
    free = fast_decode(table, [[2, 3]] * ROWS, Task(name, {**options, "eos": "free"}, gen_length, steps, 0, 1))
    assert min(p_values(free, responses, stamps)) < 1e-4


# --- Whatever the options ---------------------------------------------------------------------------------------------


@quick
@given(jobs(approximate=True))
def test_never_is_never(job: Job) -> None:
    """Not at a step, not where leftover masks are filled, and not as the prompt's own EOS seen again."""
    found = job.having(eos="never").run(trace=True)
    assert found.trace is not None
    assert not (found.tokens == EOS).any() and not (found.trace.token == EOS).any()


@quick
@given(jobs(names=("low_confidence", "threshold", "factor", "entropy_bounded", "frechet", "prophet")))
def test_what_ends_waits_for_what_does_not(job: Job) -> None:
    """Where a step commits an EOS, each mask whose best token is another one commits, too."""
    job = job.having(eos="last", eos_fill=False, kernel_size=None, block_length=None, penalty=1.0, cfg_scale=0.0)
    job = job.having(temperature=0.0) if job.rule == "low_confidence" else job
    _, steps = histories(job)
    for prompt, history in zip(job.prompts, steps, strict=True):
        canvas = torch.tensor([[*prompt, *[MASK] * job.gen_length]])
        for events in history:
            logits = job.denoiser.logits(job.denoiser.hidden(canvas, canvas >= 0)[0])[len(prompt) :]
            others = {i for i, token in enumerate(logits.argmax(-1).tolist()) if token != EOS}
            masks = {i for i, token in enumerate(canvas[0, len(prompt) :].tolist()) if token == MASK}
            if any(token == EOS for _, token, _ in events):
                assert masks & others <= {offset for offset, *_ in events}
            for offset, token, _ in events:
                canvas[0, len(prompt) + offset] = token


# --- By hand ----------------------------------------------------------------------------------------------------------


class Fixed(TableDenoiser):
    """The same probabilities [position, vocab] whatever stands on the canvas."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__(len(probabilities[0]), 1)
        self.table = torch.tensor(probabilities).log()

    def hidden(self, canvas: Tensor, visible: Tensor | None) -> Tensor:
        return self.table[: canvas.shape[1]].expand(len(canvas), -1, -1).clone()


#         EOS mask  2    3
FOUR = [[0.9, 0.0, 0.1, 0.0], [0.4, 0.0, 0.6, 0.0], [0.7, 0.0, 0.0, 0.3], [0.3, 0.0, 0.2, 0.5]]
DECODED: list[tuple[str, dict[str, Any], int, list[int], list[int]]] = [
    # The first and third position would end, .9 and .7; the others are sure of a word, .6 and .5.
    ("low_confidence", {"eos": "free"}, 4, [0, 2, 0, 3], [0, 2, 1, 3]),
    ("low_confidence", {"eos": "last"}, 4, [0, 2, 0, 3], [2, 0, 3, 1]),
    ("low_confidence", {"eos": "last"}, 3, [0, 2, 0, 3], [1, 0, 2, 0]),  # two, one, one
    ("low_confidence", {"eos": "last"}, 1, [0, 2, 0, 3], [0, 0, 0, 0]),
    # p = 1 1 1 and .5/.7 are left.
    ("low_confidence", {"eos": "never"}, 4, [2, 2, 3, 3], [0, 1, 2, 3]),
    # The bar of .6: .9 .6 .7 pass at once; last: .6 alone, then .5 for the schedule's one, then both ends as ever.
    ("threshold", {"threshold": 0.6, "eos": "free"}, 4, [0, 2, 0, 3], [0, 0, 0, 1]),
    ("threshold", {"threshold": 0.6, "eos": "last"}, 4, [0, 2, 0, 3], [2, 0, 2, 1]),
    ("threshold", {"threshold": 0.6, "eos": "never"}, 4, [2, 2, 3, 3], [0, 0, 0, 0]),
    # One candidate each and one step: all that is left commits.
    ("top_k", {"top_k": 1, "eos": "last"}, 1, [0, 2, 0, 3], [0, 0, 0, 0]),
    # EOS-fill: the first end stands at the left, and what had committed behind it goes.
    ("low_confidence", {"eos": "last", "eos_fill": True}, 4, [0, 0, 0, 0], [2, -1, -1, -1]),
    # A kernel without reach: nothing can commit after the first, and the leftover masks are filled without EOS.
    ("conv", {"kernel_size": 1, "rule": "low_confidence", "eos": "never"}, 4, [2, 2, 3, 3], [0, 4, 4, 4]),
]


@pytest.mark.parametrize("case", DECODED, ids=str)
def test_four_positions(case: tuple[str, dict[str, Any], int, list[int], list[int]]) -> None:
    name, options, steps, tokens, stamps = case
    found = fast_decode(Fixed(FOUR), [[]], Task(name, options, 4, steps, 0, 1))
    assert (found.tokens[0].tolist(), found.commit_step[0].tolist()) == (tokens, stamps)


def test_an_end_is_cheaper_than_a_tie() -> None:
    """A margin of 0 is log 0: it still goes before an EOS with a margin of .8."""
    found = fast_decode(
        Fixed([[0.9, 0.0, 0.1, 0.0], [0.0, 0.0, 0.5, 0.5]]),
        [[]],
        Task("low_confidence", {"confidence": "margin", "eos": "last"}, 2, 2, 0, 1),
    )
    assert found.commit_step[0].tolist() == [1, 0]


def test_who_is_late() -> None:
    """Row 0: its two ends wait for the third. Row 1 has ends only. Row 2: the other one commits in any case."""
    row, ends = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([1, 0, 1, 1, 1, 1, 0]).bool()
    free = torch.tensor([1, 1, 1, 1, 1, 1, 0]).bool()
    assert places(commit.ends_last(row, ends, free, log_linear(0, 2), 3)) == [0, 2]
    assert places(commit.ends_last(row, ends, free, log_linear(1, 2), 3)) == []


def test_late_positions_fill_the_number_and_no_more() -> None:
    """p = .9 .2 .7 .5, late the first and third. Ranked: .5 .2 .9 .7, whatever passes.

    Bar .5: .5 passes. Bound 1: 2(1 - .5) = 1 fails; bound 2: 1 < 2, 3(1 - .2) = 2.4 fails; bound 99: both that count.
    """
    given_, half = opened([0.9, 0.2, 0.7, 0.5], [0] * 4, late=[1, 0, 1, 0]), torch.full((4,), 0.5).double()
    for steps, fixed in ((4, [3]), (2, [1, 3]), (1, [0, 1, 2, 3])):
        assert places(commit.fixed_count(*given_, log_linear(0, steps), half)) == fixed
    assert places(commit.fixed_count(*given_, log_linear(1, 3), half)) == [1, 3]
    for rule, found in (
        (commit.threshold(0.5), [3]),
        (commit.threshold(0.0), [1, 3]),
        (commit.factor(1.0), [3]),
        (commit.factor(2.0), [3]),
        (commit.factor(99.0), [1, 3]),
        (commit.entropy_bounded(0.6), [3]),  # -ln .5 = .693 stands before the second
        (commit.entropy_bounded(0.7), [1, 3]),
        (commit.entropy_bounded(99.0), [1, 3]),
    ):
        assert places(rule(*given_, log_linear(0, 4), half)) == found
    # By chance, among the two that may: the larger number goes first; then the larger of the late ones.
    chance = torch.tensor([0.8, 0.3, 0.9, 0.2]).double()
    assert places(commit.at_random(*given_, log_linear(0, 4), chance)) == [1]
    three = commit.Open(1, given_[0].row, given_[0].position, given_[0].log_weight, torch.tensor([5]), given_[0].late)
    assert places(commit.at_random(three, given_[1], log_linear(0, 2), chance)) == [1, 2, 3]


def test_late_positions_weigh_nothing() -> None:
    """Masses .9 .2 .7 .5, the first of two steps: s_norm = 4/(.2 + .5), weights 8/7 and 20/7 against 1: 8/15, 20/27."""
    given_ = opened([0.9, 0.2, 0.7, 0.5], [0] * 4, late=[1, 0, 1, 0])
    share = torch.tensor([0.0, 8 / 15, 0.0, 20 / 27]).double()
    below, above = share - 1e-6, share + 1e-6
    below[share == 0] = math.ulp(0.0)
    assert places(commit.ancestral(*given_, log_linear(0, 2), below)) == [1, 3]
    assert places(commit.ancestral(*given_, log_linear(0, 2), above)) == []
