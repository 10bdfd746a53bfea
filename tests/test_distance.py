"""Kinds of tokens by distance from the prompt, by hand."""

import numpy as np
import pytest
import torch
from tiny import tiny_lm

from dlm.evaluation.distance import (
    KINDS,
    binned,
    candidates,
    first_probabilities,
    masses,
    one_hot,
    token_kinds,
    written_kinds,
)

END, PRIOR, REPEATED, OTHER = range(len(KINDS))
FREQUENT = frozenset({2, 3})


def test_kinds_by_hand() -> None:
    """0 ends, 2 and 3 are frequent (3 in the context too), 4 is repeated."""
    assert token_kinds(6, [3, 4, 0], FREQUENT, ends=[0]).tolist() == [END, OTHER, PRIOR, PRIOR, REPEATED, OTHER]


def test_written_kinds_see_what_stands_before() -> None:
    assert written_kinds([5, 5, 2, 4, 0], [4], FREQUENT, eos_id=0) == [OTHER, REPEATED, PRIOR, REPEATED, END]
    assert written_kinds([], [4], FREQUENT, eos_id=0) == []


def test_masses_and_candidates() -> None:
    probabilities = np.array([[0.1, 0.2, 0.3, 0.1, 0.1, 0.2], [0.0, 0.0, 0.0, 0.0, 0.9, 0.1]])
    kinds = token_kinds(6, [3, 4, 0], FREQUENT, ends=[0])
    assert masses(probabilities, kinds) == pytest.approx(np.array([[0.1, 0.4, 0.1, 0.4], [0.0, 0.0, 0.9, 0.1]]))
    assert candidates(probabilities, 3).tolist() == [[2, 1, 5], [4, 5, 0]]


def test_binned_by_hand() -> None:
    """Bins of 2 over 3 positions: one response has 3 tokens, the other ends after its first."""
    rows = [one_hot([OTHER, PRIOR, PRIOR]), one_hot([PRIOR])]
    found = binned(rows, [0, 1], width=2, length=3, samples=20)
    assert [point["value"] for point in found["high_prior"]] == [0.75, 1.0]
    assert [point["value"] for point in found["other"]] == [0.25, 0.0]
    assert found["end"][1] == {"value": 0.0, "ci": None}
    assert binned([one_hot([])], [0], width=2, length=2, samples=20)["other"] == [{"value": None, "ci": None}]


def test_first_probabilities_are_of_a_masked_window() -> None:
    lm = tiny_lm()
    prompt = [5, 6, 7]
    found = first_probabilities(lm, prompt, 4)
    mask = lm.denoiser.mask_id
    with torch.no_grad():
        logits = lm.denoiser.model(torch.tensor([prompt + [mask] * 4])).logits[0, 3:]
    logits[:, mask] = float("-inf")
    assert np.allclose(found, logits.double().softmax(-1).numpy(), atol=1e-6)
    assert not found[:, mask].any()
