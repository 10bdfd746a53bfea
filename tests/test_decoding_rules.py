"""Every rule and every option against the slow decoder, token for token, and against every run enumerated."""

from pathlib import Path
from typing import Any

import pytest
from decoder_cases import APART, COMPARED, LOOP, OVER_RULES, Case
from enumeration import ROWS, assert_in_distribution, exact_distribution, p_values
from slow import PROMPTS, Task, assert_token_for_token, case_id, fast_decode, network_of_table
from test_decoding import CASES as PLAIN
from tiny import TableDenoiser, tiny_lm

from dlm.decoding.decoder import make_decoder
from dlm.decoding.options import DECODERS, decoder_options
from dlm.errors import UserError
from dlm.files import write_json

CASES = [*COMPARED, *OVER_RULES]


@pytest.mark.parametrize("eos_fill", [False, True], ids=["", "eos_fill"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_token_for_token(case: Case, eos_fill: bool) -> None:
    """Three prompts of unequal length in one batch of a real model; tokens, steps, leftovers and NFE of each row."""
    name, options, gen_length, steps = case
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    assert_token_for_token(
        denoiser, PROMPTS, Task(name, {**options, "eos_fill": eos_fill}, gen_length, steps, 0, denoiser.mask_id)
    )


@pytest.mark.parametrize("case", APART, ids=str)
def test_every_option_changes_the_answer(case: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    """Or the comparison above would not see an option that does nothing."""
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


def test_the_background_of_pc_sampler(tmp_path: Path) -> None:
    """Token for token, and it changes the answer; a file without counts is refused in a line."""
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    path = tmp_path / "counts.json"
    write_json(path, {"token_counts": [7 * i % 50 for i in range(denoiser.vocab_size)]})
    options = {"decay": 0.05, "clip": 0.5, "background": str(path)}
    for clip in (0.5, 10.0):
        assert_token_for_token(
            denoiser, PROMPTS, Task("pc_sampler", {**options, "clip": clip}, 10, 5, 0, denoiser.mask_id)
        )
    with_it, without = (
        fast_decode(denoiser, PROMPTS, Task("pc_sampler", {**options, **change}, 10, 10, 0, denoiser.mask_id))
        for change in ({}, {"background": None})
    )
    assert (with_it.commit_step != without.commit_step).any()
    for found in ({}, {"token_counts": []}, {"token_counts": ["a"]}, [3]):
        write_json(path, found)
        with pytest.raises(UserError, match=r"counts.json: no token_counts; background must be a JSON file"):
            make_decoder(decoder_options("pc_sampler", options, "pc_sampler"))


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
    ("low_confidence", {"temperature": 0.5, "confidence": "margin", "tempered": True}, 3, 3),
    *(("low_confidence", {"ranking_temperature": 0.5, "confidence": by}, 3, 3) for by in ("probability", "entropy")),
    ("low_confidence", {"ranking_temperature": 0.5, "confidence": "margin", "kernel_size": 5}, 3, 3),
    ("low_confidence", {"ranking_temperature": 0.5, "temperature": 0.7, "tempered": True, "count": "dream"}, 3, 2),
    ("top_k", {"top_k": 2, "penalty": 2.0}, 3, 3),
    ("categorical", {"cfg_scale": 1.0}, 3, 2),
    *(("tweedie", {"score_offset": offset}, 3, 3) for offset in (2.0, 3.5)),
    ("tweedie", {"score_offset": 2.5, "kernel_size": 3, "conv_mult": 0.4, "eos_fill": True}, 3, 2),
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
        (("tweedie", {"score_offset": 2.0}), ("categorical", {}), 2),
        (("tweedie", {"score_offset": 2.0}), ("tweedie", {"score_offset": 2.5}), 2),
        (("low_confidence", {"temperature": 0.7}), ("low_confidence", {"temperature": 0.9}), 2),
        (("low_confidence", {"temperature": 0.7}), ("first_hitting", {}), 2),
        *(
            (
                ("low_confidence", {"confidence": by, "ranking_temperature": 0.3}),
                ("low_confidence", {"confidence": by}),
                2,
            )
            for by in ("probability", "margin", "entropy")
        ),
        (
            ("low_confidence", {"ranking_temperature": 0.2, "confidence": "entropy"}),
            ("low_confidence", {"ranking_temperature": 1.0, "confidence": "entropy"}),
            2,
        ),
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
