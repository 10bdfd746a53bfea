"""Rules that mask tokens again by what the pass says of them (wino, p2): numbers by hand, and the shadow of a pass."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from slow import PROMPTS, Task, fast_decode
from test_decoding_properties import MASK, Job, histories, jobs, quick
from test_rules_by_hand import opened, places
from tiny import tiny_lm, tiny_model
from torch import Tensor

from dlm.decoding import revise
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.revise import Standing
from dlm.decoding.schedules import Rates, log_linear, overall


def standing(p: list[float], rows: list[int], recent: list[int], uniform: list[float] | None = None) -> Standing:
    numbers = torch.tensor(uniform or [0.5] * len(p), dtype=torch.float64)
    return Standing(
        torch.tensor(rows).long(), torch.arange(len(p)), torch.tensor(p).log(), torch.tensor(recent), numbers
    )


def half(count: int) -> Tensor:
    return torch.full((count,), 0.5, dtype=torch.float64)


# --- WINO -------------------------------------------------------------------------------------------------------------


def test_wino() -> None:
    """Bars .6 and .9, plenty of steps left.

    Row 0: .7 and .8 commit; of its tokens .85 .3 .95 two are below .9, and the step before committed 3, so both may go.
    Row 1: .65 .75 commit; .2 .5 .4 are below, but the step before committed 2: only the lowest goes.
    Row 2: none passes, so the best alone commits, and where one commits nothing is taken back.
    """
    given_ = opened([0.7, 0.2, 0.8, 0.65, 0.75, 0.5, 0.4], [0, 0, 0, 1, 1, 2, 2])
    tokens = standing([0.85, 0.3, 0.95, 0.2, 0.5, 0.4, 0.1], [0, 0, 0, 1, 1, 1, 2], [3, 2, 5])
    chosen, lost = revise.wino(0.6, 0.9, 0.7, 20)(*given_, tokens, log_linear(0, 50), half(7))
    assert places(chosen) == [0, 2, 3, 4, 5] and places(lost) == [0, 1, 3]
    # The last step fills everything and takes nothing back.
    chosen, lost = revise.wino(0.6, 0.9, 0.7, 20)(*given_, tokens, log_linear(49, 50), half(7))
    assert places(chosen) == list(range(7)) and places(lost) == []
    # Below nothing there is nothing.
    assert places(revise.wino(0.6, 0.0, 0.7, 20)(*given_, tokens, log_linear(0, 50), half(7))[1]) == []


@pytest.mark.parametrize(
    ("masks", "share", "most", "expected"),
    [
        (12, 0.7, 20, 8),  # ⌊8.4⌋
        (12, 0.1, 20, 5),  # never fewer than 5
        (40, 0.7, 20, 20),  # ⌊28⌋, at most 20
        (4, 0.7, 20, 4),
        (12, 0.7, 3, 3),
    ],
)
def test_wino_commits_so_many_at_most(masks: int, share: float, most: int, expected: int) -> None:
    """All pass; the surest go first. The schedule's number goes before the cap."""
    p = [0.99 - 0.001 * i for i in range(masks)]
    given_ = opened(p, [0] * masks)
    nobody = standing([], [], [0])
    rule = revise.wino(0.6, 0.9, share, most)
    assert places(rule(*given_, nobody, log_linear(0, 99), half(masks))[0]) == list(range(expected))
    assert places(rule(*given_, nobody, log_linear(98, 99), half(masks))[0]) == list(range(masks))


def test_a_window_and_a_late_end_hold_wino_back() -> None:
    """.9·1/2 does not pass .6; a late one waits though it is sure."""
    given_ = opened([0.9, 0.95, 0.7, 0.8], [0] * 4, [0.5, 1, 1, 1], [0, 1, 0, 0])
    chosen, _ = revise.wino(0.6, 0.9, 0.7, 20)(*given_, standing([], [], [0]), log_linear(0, 9), half(4))
    assert places(chosen) == [2, 3]


def test_wino_takes_back() -> None:
    """With a low bar and a strict one some token is masked again; with no strict one none is."""
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    for strict, some in ((0.9, True), (0.0, False)):
        options = {"threshold": 0.1, "verify_threshold": strict}
        job = Task("wino", {**options, "max_share": 0.7, "max_per_step": 20}, 12, 12, 0, denoiser.mask_id)
        stamps = fast_decode(denoiser, PROMPTS, job)
        assert (stamps.nfe >= 2).all() and not stamps.leftover_masks.any()
        lm = tiny_lm(2, eos_scale=2.0)
        out = lm.generate(PROMPTS, "wino", gen_length=12, steps=12, trace=True, **options)
        assert out.trace is not None and (out.trace.token == denoiser.mask_id).any().item() == some


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_shadow_of_one_layer_is_a_mask_in_each_place(attention: str) -> None:
    """With one layer nothing else has seen the token: the shadow's state is that of the canvas with a mask there.

    One place at a time (a shadow sees all of itself), rows of 6 and of 4 tokens. The canvas's own states do not change.
    """
    model = tiny_model(3, layers=1)
    model.set_attn_implementation(attention)
    denoiser = Denoiser(model, MASK)
    canvas = torch.randint(2, 300, (2, 6), generator=torch.Generator().manual_seed(0))
    not_padding = torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool()
    plain = denoiser.hidden(canvas, not_padding)
    for place in range(4):
        places, inside = torch.tensor([[place]] * 2), torch.ones(2, 1).bool()
        hidden, shadow = denoiser.hidden_with_shadow(canvas, not_padding, places, inside)
        masked = canvas.clone()
        masked[:, place] = MASK
        torch.testing.assert_close(hidden[not_padding], plain[not_padding], atol=1e-5, rtol=1e-5)
        expected = denoiser.hidden(masked, not_padding)[:, place]
        torch.testing.assert_close(shadow[:, 0], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_shadow_does_not_see_the_token_in_its_place() -> None:
    """Of one layer: another token there changes no shadow of it, but that of every other place; what lies outside
    changes nothing."""
    denoiser = Denoiser(tiny_model(3, layers=1), MASK)
    canvas = torch.tensor([[5, 9, 70, 31, 8]])
    changed = torch.tensor([[5, 9, 71, 31, 8]])
    places, everywhere = torch.tensor([[1, 2, 3, 3]]), torch.ones(1, 5).bool()
    inside = torch.tensor([[True, True, True, False]])
    (_, one), (_, other) = (denoiser.hidden_with_shadow(ids, everywhere, places, inside) for ids in (canvas, changed))
    same = (one[0] - other[0]).abs().amax(-1) < 1e-6
    assert same.tolist()[:3] == [False, True, False]
    _, fewer = denoiser.hidden_with_shadow(canvas, everywhere, places[:, :3], inside[:, :3])
    torch.testing.assert_close(fewer, one[:, :3], atol=1e-5, rtol=1e-5)


# --- P2 ---------------------------------------------------------------------------------------------------------------


def test_overall() -> None:
    """Four steps: 1, 2, 3, 4 of 4 positions are tokens afterwards."""
    assert [(rates.move, rates.stay, rates.steps_left) for rates in (overall(step, 4) for step in range(4))] == [
        (1, 3, 4),
        (2, 2, 3),
        (3, 1, 2),
        (4, 0, 1),
    ]


def planned(eta: float, rates: Rates, **more: list) -> tuple[list[int], list[int]]:
    """Masks .9 .2 .6 and tokens .5 .8 .1 of one row; .7 and .4 of another."""
    given_ = opened([0.9, 0.2, 0.6, 0.7], [0, 0, 0, 1], **more)
    tokens = standing([0.5, 0.8, 0.1, 0.4], [0, 0, 0, 1], [0, 0])
    chosen, lost = revise.p2(eta, at_random=False)(*given_, tokens, rates, half(4))
    return places(chosen), places(lost)


def test_p2() -> None:
    """Row 0 has six positions, row 1 two.

    Half are tokens after step 2 of 4: of .9 .8 .6 | .5 .2 .1 the first three, so two masks commit and two tokens go;
    of .7 | .4 the first. After step 1 of 4 ⌊6·3/4⌋ = 4 and ⌊2·3/4⌋ = 1 are masks: .9 .8, .7. At the last step all.
    η = 2 squares the tokens': .9 .64 .6 | .25; of the other row .7 | .16. η = 0 makes them 1: none goes.
    """
    assert planned(1.0, overall(1, 4)) == ([0, 2, 3], [0, 2, 3])
    assert planned(1.0, overall(0, 4)) == ([0, 3], [0, 2, 3])
    assert planned(1.0, overall(3, 4)) == ([0, 1, 2, 3], [])
    assert planned(2.0, overall(1, 4)) == ([0, 2, 3], [0, 2, 3])
    assert planned(0.0, overall(1, 4)) == ([], [])
    assert planned(0.0, overall(2, 4)) == ([0, 2, 3], [])  # ⌊6/4⌋ = 1 and ⌊2/4⌋ = 0 masks
    # A third of the six: .9 .8. η = 3: .9 | .6 .51: the masks go before the token that was second.
    assert planned(1.0, Rates(2.0, 4.0, 3)) == ([0, 3], [0, 2, 3])
    assert planned(3.0, Rates(2.0, 4.0, 3)) == ([0, 2, 3], [0, 1, 2, 3])


def test_a_window_and_a_late_end_hold_p2_back() -> None:
    """.9·1/2 comes behind .5, .6 and .8; a late one behind every other."""
    assert planned(1.0, overall(1, 4), s=[0.5, 1, 1, 1]) == ([2, 3], [2, 3])
    assert planned(1.0, overall(1, 4), late=[1, 0, 0, 0]) == ([2, 3], [2, 3])


def test_a_random_planner() -> None:
    """u = .9 .3 of the masks, .6 .2 of the tokens, whatever p says: the two largest; η = 3: .216 and .008."""
    given_ = opened([0.1, 0.9], [0, 0])
    tokens, drawn = standing([0.1, 0.9], [0, 0], [0], [0.6, 0.2]), torch.tensor([0.9, 0.3]).double()
    for eta, chosen, lost in ((1.0, [0], [1]), (3.0, [0, 1], [0, 1]), (0.0, [], [])):
        found = revise.p2(eta, at_random=True)(*given_, tokens, overall(1, 4), drawn)
        assert (places(found[0]), places(found[1])) == (chosen, lost)


@quick
@given(jobs(names=("p2",)), st.floats(0.5, 3))
def test_p2_has_as_many_tokens_as_its_schedule(job: Job, eta: float) -> None:
    """N - ⌊N·(S - i)/S⌋ tokens after step i, whatever went back."""
    job = job.having(eos_fill=False, kernel_size=None, block_length=None, eta=eta)
    _, steps = histories(job)
    length = job.gen_length
    for history in steps:
        tokens = 0
        for step, events in enumerate(history[: job.steps], 1):
            tokens += sum(1 if token != MASK else -1 for _, token, _ in events)
            assert tokens == length - length * (job.steps - step) // job.steps


@quick
@given(jobs(names=("p2",)))
def test_p2_without_eta_never_takes_back(job: Job) -> None:
    _, steps = histories(job.having(eos_fill=False, block_length=None, eta=0.0))
    assert all(token != MASK for history in steps for events in history for _, token, _ in events)


@quick
@given(jobs(names=("wino",)))
def test_wino_takes_back_fewer_than_the_step_before_committed(job: Job) -> None:
    """So that the masks never rise over two steps; and nothing where a single token commits."""
    _, steps = histories(job.having(eos_fill=False, block_length=None))
    for history in steps:
        before = 0
        for events in history:
            lost = sum(token == MASK for _, token, _ in events)
            committed = len(events) - lost
            assert lost == 0 or (lost < before and committed > 1)
            before = committed
