"""Every rule and every option against the slow decoder, token for token, and against every run enumerated."""

from typing import Any

import pytest
from enumeration import ROWS, assert_in_distribution, exact_distribution, p_values
from slow import PROMPTS, Task, assert_token_for_token, case_id, fast_decode, network_of_table
from test_decoding import CASES as PLAIN
from tiny import TableDenoiser, tiny_lm

from dlm.config.decoders import DECODERS

Case = tuple[str, dict[str, Any], int, int]
LOOP = {"schedule": "loop", "eta": 0.1, "t_on": 0.6, "t_off": 0.2, "alpha_on": 0.7}
CONFIDENCES = ("probability", "margin", "entropy", "random")

RULES: list[Case] = [
    *(("low_confidence", {"confidence": name}, 10, 4) for name in CONFIDENCES[1:]),
    *(("low_confidence", {"confidence": name, "temperature": 0.7}, 10, 4) for name in CONFIDENCES),
    ("low_confidence", {"temperature": 2.0}, 6, 14),
    *(("threshold", {"threshold": bar}, *size) for bar, size in ((0.2, (10, 10)), (0.5, (10, 4)), (0.0, (6, 3)))),
    *(("factor", {"factor": bound}, 10, 10) for bound in (0.5, 2.0, 3.0)),
    ("factor", {"factor": 2.0}, 10, 4),
    ("first_hitting", {}, 8, 8),
    ("first_hitting", {}, 10, 4),
    ("remdm", {"top_k": 5, **LOOP}, 8, 20),
    ("remdm", {"top_k": 5, **LOOP}, 10, 3),
    *(("remdm", {"top_k": 5, "schedule": schedule, "eta": 0.3}, 8, 12) for schedule in ("cap", "rescale", "conf")),
    ("remdm", {"top_k": 1000, "schedule": "rescale", "eta": 1.0}, 8, 12),
    *(("sliding_annealing", {"top_k": 5, "reach": reach}, 10, 4) for reach in (0, 3, 99)),
    ("sliding_annealing", {"top_k": 1, "reach": 2}, 6, 14),
]
WINDOWS: list[Case] = [
    ("remdm", {"top_k": 5, "kernel_size": 5, **LOOP}, 8, 20),
    *(
        ("remdm", {"top_k": 5, "kernel_size": 5, "conv_mult": 0.4, "schedule": schedule, "eta": 0.3}, 8, 12)
        for schedule in ("cap", "rescale", "conf")
    ),
    *(
        ("conv", {"top_k": 5, "kernel_size": 7, "kernel": "exponential", "gain": gain, "conv_mult": 0.8}, 10, 4)
        for gain in ("tanh", "linear", "sigmoid", "step")
    ),
    ("conv", {"rule": "categorical", "kernel_size": 5, "kernel": "exponential"}, 10, 10),
    *(
        ("conv", {"rule": "low_confidence", "kernel_size": 7, "conv_mult": 0.2, "confidence": name}, 10, 4)
        for name in CONFIDENCES[1:]
    ),
    ("conv", {"rule": "low_confidence", "kernel_size": 5, "kernel": "exponential", "temperature": 0.7}, 10, 10),
    ("conv", {"rule": "threshold", "threshold": 0.2, "kernel_size": 5}, 10, 10),
    ("conv", {"rule": "factor", "factor": 2.0, "kernel_size": 5}, 10, 10),
    ("conv", {"rule": "first_hitting", "kernel_size": 5, "conv_mult": 0.3}, 10, 10),
]
BLOCKS: list[Case] = [
    ("semi_ar", {"rule": rule, "variant": variant, "block_length": 4, **options}, 8, 8)
    for rule, options in (
        ("top_k", {"top_k": 5, "kernel_size": 5}),
        ("low_confidence", {"kernel_size": 5, "kernel": "exponential"}),
        ("low_confidence", {"confidence": "margin", "temperature": 0.5}),
        ("threshold", {"threshold": 0.2}),
        ("factor", {"factor": 2.0}),
        ("first_hitting", {}),
        ("remdm", {"top_k": 5, "schedule": "cap", "eta": 0.3}),
    )
    for variant in ("stride", "restrict")
]
LOGITS: list[Case] = [
    ("repetition_penalty", {"penalty": 1.5, "top_k": 5}, 10, 10),
    ("repetition_penalty", {"penalty": 0.5, "top_k": 5}, 10, 4),
    ("repetition_penalty", {"rule": "low_confidence", "penalty": 3.0}, 10, 10),
    ("categorical", {"cfg_scale": 1.5}, 10, 4),
    ("top_k", {"top_k": 5, "cfg_scale": 0.5}, 6, 14),
    ("low_confidence", {"cfg_scale": 2.0, "confidence": "entropy"}, 10, 10),
    ("conv", {"top_k": 5, "cfg_scale": 1.0, "penalty": 1.5, "kernel_size": 5}, 10, 10),
    (
        "semi_ar",
        {"rule": "threshold", "threshold": 0.3, "variant": "restrict", "block_length": 4, "cfg_scale": 1.0},
        8,
        8,
    ),
    ("remdm", {"top_k": 5, "cfg_scale": 1.0, "penalty": 2.0, "schedule": "cap", "eta": 0.3}, 8, 8),
]
CASES = [*RULES, *WINDOWS, *BLOCKS, *LOGITS]


@pytest.mark.parametrize("eos_fill", [False, True], ids=["", "eos_fill"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_token_for_token(case: Case, eos_fill: bool) -> None:
    """Three prompts of unequal length in one batch of a real model; tokens, steps, leftovers and NFE of each row."""
    name, options, gen_length, steps = case
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    assert_token_for_token(
        denoiser, PROMPTS, Task(name, {**options, "eos_fill": eos_fill}, gen_length, steps, 0, denoiser.mask_id)
    )


# What must differ from what, or the comparison above would not see an option that does nothing.
APART: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(("low_confidence", {}, {"confidence": name}) for name in CONFIDENCES[1:]),
    ("low_confidence", {}, {"temperature": 0.7}),
    ("low_confidence", {}, {"penalty": 1.5}),
    ("low_confidence", {"penalty": 2.0}, {"penalty": 0.5}),
    ("low_confidence", {}, {"cfg_scale": 1.0}),
    ("low_confidence", {"kernel_size": 7, "conv_mult": 0.2}, {"kernel": "exponential"}),
    ("threshold", {"threshold": 0.5}, {"threshold": 0.2}),
    ("factor", {"factor": 0.5}, {"factor": 2.0}),
    ("remdm", {"schedule": "cap", "eta": 0.0}, {"eta": 0.3}),
    ("remdm", {"schedule": "cap", "eta": 0.3}, {"schedule": "rescale"}),
    ("remdm", {"schedule": "cap", "eta": 0.3}, {"schedule": "conf"}),
    ("remdm", {"schedule": "cap", "eta": 0.1}, LOOP),
    ("remdm", LOOP, {"eta": 0.3}),
    ("sliding_annealing", {"reach": 0}, {"reach": 3}),
]


@pytest.mark.parametrize("case", APART, ids=str)
def test_every_option_changes_the_answer(case: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    name, options, change = case
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    plain, other = (
        fast_decode(denoiser, PROMPTS, Task(name, chosen, 10, 10, 0, denoiser.mask_id))
        for chosen in (options, {**options, **change})
    )
    assert (plain.commit_step != other.commit_step).any() or (plain.tokens != other.tokens).any()


def test_a_threshold_between_the_confidences_is_not_vacuous() -> None:
    """With as many steps as tokens, a bar that some confidences pass and some do not takes fewer passes than tokens.

    A bar of 0 needs one pass; one that nothing passes, and a factor that no first rank passes, one a token.
    """
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser

    def passes(name: str, **options: Any) -> list[int]:
        return fast_decode(denoiser, PROMPTS, Task(name, options, 10, 10, 0, denoiser.mask_id)).nfe.tolist()

    assert any(1 < nfe < 10 for nfe in passes("threshold", threshold=0.3))
    assert passes("threshold", threshold=0.0) == [1, 1, 1]
    assert passes("threshold", threshold=1.0) == passes("factor", factor=1e-6) == [10, 10, 10]
    assert any(1 < nfe < 10 for nfe in passes("factor", factor=1.5))
    assert passes("factor", factor=99.0) == [1, 1, 1]


def test_remdm_revises() -> None:
    """At η = 1, σ_t = min(1, (1 - α_s)/α_t): of 10 steps, number 1 to 4 mask every earlier token again (α_s ≤ 1 - α_t).

    So nothing that step 3 or an earlier one committed is left; without revising, some of it is.
    """
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    stamps = [
        fast_decode(denoiser, PROMPTS, Task("remdm", {"schedule": "rescale", "eta": eta}, 10, 10, 0, 1)).commit_step
        for eta in (1.0, 0.0)
    ]
    assert stamps[0].min() == 4 and stamps[1].min() < 4


# --- In distribution --------------------------------------------------------------------------------------------------

SAMPLED: list[Case] = [
    ("remdm", {"top_k": 2, "schedule": "cap", "eta": 0.4}, 2, 4),
    ("remdm", {"top_k": 2, "schedule": "rescale", "eta": 0.6, "eos_fill": True}, 2, 4),
    ("remdm", {"top_k": 2, **LOOP, "eta": 0.3}, 2, 6),
    ("remdm", {"top_k": 2, "schedule": "cap", "eta": 0.4, "kernel_size": 3, "conv_mult": 0.4}, 2, 4),
    ("sliding_annealing", {"top_k": 2, "reach": 1}, 3, 3),
    ("sliding_annealing", {"top_k": 3, "reach": 9, "eos_fill": True}, 3, 2),
    ("first_hitting", {}, 3, 3),
    ("first_hitting", {}, 3, 2),
    ("low_confidence", {"temperature": 0.7}, 3, 3),
    ("low_confidence", {"temperature": 2.0, "confidence": "entropy"}, 3, 2),
    ("low_confidence", {"temperature": 1.0, "confidence": "random"}, 3, 2),
    ("top_k", {"top_k": 2, "penalty": 2.0}, 3, 3),
    ("categorical", {"cfg_scale": 1.0}, 3, 2),
]


@pytest.mark.parametrize("case", SAMPLED, ids=case_id)
def test_in_distribution(case: Case) -> None:
    """4000 answers against the enumeration of every possible run."""
    assert_in_distribution(case)


CAP = {"top_k": 2, "schedule": "cap", "eta": 0.4}


@pytest.mark.parametrize(
    ("truth", "other", "steps"),
    [
        (("remdm", CAP), ("remdm", {**CAP, "eta": 0.3}), 4),
        (("remdm", CAP), ("remdm", {**CAP, "schedule": "rescale"}), 4),
        (("remdm", CAP), ("remdm", {**CAP, "schedule": "conf"}), 4),
        (("remdm", CAP), ("top_k", {"top_k": 2}), 4),
        (("sliding_annealing", {"top_k": 2, "reach": 1}), ("sliding_annealing", {"top_k": 2, "reach": 0}), 2),
        (("sliding_annealing", {"top_k": 2, "reach": 1}), ("top_k", {"top_k": 2}), 2),
        (("first_hitting", {}), ("categorical", {}), 2),
        (("low_confidence", {"temperature": 0.7}), ("low_confidence", {"temperature": 0.9}), 2),
        (("low_confidence", {"temperature": 0.7}), ("first_hitting", {}), 2),
    ],
    ids=str,
)
def test_the_distributions_can_be_told_apart(truth: tuple[str, dict], other: tuple[str, dict], steps: int) -> None:
    table = TableDenoiser(vocab=4, mask_id=1, seed=3)
    responses, stamps = exact_distribution(network_of_table(table), [2, 3], Task(*truth, 2, steps, 0, 1))
    found = fast_decode(table, [[2, 3]] * ROWS, Task(*other, 2, steps, 0, 1))
    assert min(p_values(found, responses, stamps)) < 1e-4


def test_first_hitting_is_ancestral_sampling() -> None:
    """The theorem (Zheng et al.): one random position at a time, each sampled, is `categorical` with many steps.

    With infinitely many steps no two positions commit together; 60 for 2 tokens come close enough for 4000 rows.
    """
    table = TableDenoiser(vocab=4, mask_id=1, seed=3)
    responses, _ = exact_distribution(network_of_table(table), [2, 3], Task("first_hitting", {}, 2, 2, 0, 1))
    found = fast_decode(table, [[2, 3]] * ROWS, Task("categorical", {}, 2, 60, 0, 1))
    assert p_values(found, responses, {tuple(row): 1.0 for row in found.commit_step.tolist()})[0] > 0.001


def test_every_decoder_is_covered() -> None:
    assert {name for name, *_ in [*PLAIN, *CASES]} == set(DECODERS)
