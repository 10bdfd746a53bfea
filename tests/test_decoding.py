"""Every decoder against a slow, obvious one: the paper's formulas in loops over one row, and numbers by hand."""

import math
from typing import Any

import pytest
import torch
from enumeration import ROWS, assert_in_distribution, exact_distribution, p_values
from slow import PROMPTS, Task, assert_token_for_token, case_id, fast_decode, network_of_table
from tiny import TableDenoiser, tiny_lm, tiny_model
from torch import Tensor

from dlm.decoding import commit, plans, propose, windows
from dlm.decoding.commit import Open
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.plans import Phase
from dlm.decoding.propose import Candidates, Source
from dlm.decoding.schedules import Rates, log_linear

# --- Token for token ------------------------------------------------------------------------------------------------

GAINS = ("tanh", "linear", "sigmoid", "step")
RULES = ("categorical", "top_k", "low_confidence")

WHOLE: list[tuple[str, dict[str, Any]]] = [
    ("categorical", {}),
    ("top_k", {"top_k": 1}),
    ("top_k", {"top_k": 5}),
    ("top_k", {"top_k": 1000}),
    ("low_confidence", {}),
    *(("conv", {"rule": "top_k", "top_k": 5, "kernel_size": 5, "gain": gain, "conv_mult": 0.3}) for gain in GAINS),
    *(("conv", {"rule": "low_confidence", "kernel_size": 7, "gain": gain, "conv_mult": 0.2}) for gain in GAINS),
    ("conv", {"rule": "top_k", "top_k": 2, "kernel_size": 3}),
    ("conv", {"rule": "low_confidence", "kernel_size": 3}),
    ("conv", {"rule": "top_k", "top_k": 3, "kernel_size": 1}),
]
BLOCKS: list[tuple[str, dict[str, Any]]] = [
    ("semi_ar", {"rule": rule, "variant": variant, "top_k": 4, "block_length": 4})
    for rule in RULES
    for variant in ("stride", "restrict")
]
CASES = [
    *((name, options, gen_length, steps) for name, options in WHOLE for gen_length, steps in ((10, 4), (6, 14))),
    *((name, options, gen_length, steps) for name, options in BLOCKS for gen_length, steps in ((12, 6), (8, 16))),
]


@pytest.mark.parametrize("eos_fill", [False, True], ids=["", "eos_fill"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_token_for_token(case: tuple[str, dict[str, Any], int, int], eos_fill: bool) -> None:
    """Three prompts of unequal length in one batch of a real model; tokens, steps, leftovers and NFE of each row."""
    name, options, gen_length, steps = case
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    assert_token_for_token(
        denoiser, PROMPTS, Task(name, {**options, "eos_fill": eos_fill}, gen_length, steps, 0, denoiser.mask_id)
    )


def test_the_comparison_sees_what_it_should() -> None:
    """Not vacuous: the model's prompts end early, leave masks and skip forward passes in some of the cases above."""
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    ended = fast_decode(denoiser, PROMPTS, Task("top_k", {"top_k": 5, "eos_fill": True}, 10, 4, 0, 1))
    assert (ended.commit_step == -1).any() and (ended.tokens != 0).any()
    conv = fast_decode(denoiser, PROMPTS, Task("conv", {"top_k": 2, "kernel_size": 3}, 6, 14, 0, 1))
    assert (conv.nfe < 14).any()
    few = fast_decode(denoiser, PROMPTS, Task("conv", {"top_k": 2, "kernel_size": 3}, 10, 4, 0, 1))
    assert (few.leftover_masks > 0).all()


# --- In distribution ------------------------------------------------------------------------------------------------

SAMPLED = [
    ("categorical", {}, 3, 3),
    ("categorical", {"eos_fill": True}, 3, 2),
    ("top_k", {"top_k": 2}, 3, 3),
    ("top_k", {"top_k": 2, "eos_fill": True}, 3, 2),
    *(("conv", {"top_k": 2, "kernel_size": 5, "gain": gain, "conv_mult": 0.4}, 3, 3) for gain in GAINS),
    ("conv", {"top_k": 3, "kernel_size": 3, "eos_fill": True}, 3, 2),
    *(
        ("semi_ar", {"rule": rule, "variant": variant, "top_k": 2, "block_length": 2}, 4, 4)
        for rule in ("categorical", "top_k")
        for variant in ("stride", "restrict")
    ),
]


@pytest.mark.parametrize("case", SAMPLED, ids=case_id)
def test_in_distribution(case: tuple[str, dict[str, Any], int, int]) -> None:
    """Factoring the joint draw into commit and token changes nothing: 4000 answers against the enumeration."""
    assert_in_distribution(case)


@pytest.mark.parametrize(
    "other",
    [
        ("categorical", {}),
        ("top_k", {"top_k": 1}),
        ("top_k", {"top_k": 2}),
        ("conv", {"top_k": 3, "kernel_size": 5, "conv_mult": 0.4}),
        ("conv", {"top_k": 2, "kernel_size": 3, "conv_mult": 0.4}),
        ("conv", {"top_k": 2, "kernel_size": 5, "gain": "sigmoid", "conv_mult": 0.4}),
        ("conv", {"top_k": 2, "kernel_size": 5, "gain": "step"}),
        ("conv", {"top_k": 2, "kernel_size": 5, "conv_mult": 1.5}),
    ],
    ids=lambda other: "-".join([other[0], *map(str, other[1].values())]),
)
def test_the_distributions_can_be_told_apart(other: tuple[str, dict[str, Any]]) -> None:
    table = TableDenoiser(vocab=4, mask_id=1, seed=3)
    task = Task("conv", {"top_k": 2, "kernel_size": 5, "conv_mult": 0.4}, 3, 3, 0, 1)
    responses, stamps = exact_distribution(network_of_table(table), [2, 3], task)
    found = fast_decode(table, [[2, 3]] * ROWS, Task(*other, 3, 3, 0, 1))
    assert min(p_values(found, responses, stamps)) < 1e-4


# --- By hand --------------------------------------------------------------------------------------------------------


def offered(log_mass: list[float], rows: list[int] | None = None, log_s: list[float] | None = None) -> tuple:
    """Open positions and their candidates, as the loop hands them to a commit rule; all masked positions are open."""
    n = len(log_mass)
    row = torch.tensor(rows or [0] * n)
    weights = torch.tensor(log_s or [0.0] * n)
    mass = torch.tensor(log_mass)
    open_ = Open(int(row.max()) + 1, row, torch.arange(n), weights, torch.bincount(row), torch.zeros(n).bool())
    return open_, Candidates(mass, mass, lambda chosen: (chosen, mass[chosen]))


def source(logits: Tensor, uniforms: Tensor | None = None) -> Source:
    """Open positions with known logits [n, vocab] and known uniform numbers."""
    numbers = torch.full((len(logits),), 0.5, dtype=torch.float64) if uniforms is None else uniforms
    return Source(
        len(logits), logits.shape[1], logits.device, lambda chosen: logits[chosen], lambda chosen: numbers[chosen]
    )


def commit_probability(open_: Open, candidates: Candidates, rates: Rates) -> Tensor:
    """Where `ancestral` turns from yes to no as the uniform number grows, by bisection."""
    low, high = torch.zeros(len(open_.row)).double(), torch.ones(len(open_.row)).double()
    for _ in range(50):
        middle = (low + high) / 2
        yes = commit.ancestral(open_, candidates, rates, middle)
        low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
    return low


def test_categorical_commits_at_the_rate_of_the_schedule() -> None:
    """Eq. 4 with alpha_t = 1 - t: from t to s a mask is filled with probability (t - s)/t = 1/(steps left)."""
    open_, candidates = offered([0.0] * 3, rows=[0, 0, 1])
    for step in range(5):
        found = commit_probability(open_, candidates, log_linear(step, 5))
        assert found.tolist() == pytest.approx([1 / (5 - step)] * 3)


def test_top_k_keeps_the_mean_rate() -> None:
    """The odds of committing are w_i/s with mean (t - s)/s over the masks of a row: confident ones first (§A.3)."""
    mass = (torch.rand(12, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05).log()
    rows = [0] * 5 + [1] * 7
    open_, candidates = offered(mass.tolist(), rows)
    for step in range(5):
        p = commit_probability(open_, candidates, log_linear(step, 6))
        odds = p / (1 - p) * (5 - step)
        assert odds[:5].mean().item() == pytest.approx(1) and odds[5:].mean().item() == pytest.approx(1)
        assert torch.equal(p[:5].argsort(), mass[:5].argsort())
    even, candidates = offered([math.log(0.3)] * 4)
    assert commit_probability(even, candidates, log_linear(2, 6)).tolist() == pytest.approx([1 / 4] * 4)
    assert commit_probability(open_, offered(mass.tolist(), rows)[1], log_linear(5, 6)).tolist() == pytest.approx(
        [1] * 12
    )


def test_s_norm_by_hand() -> None:
    """Four masks, k-candidate masses .9 .6 .5 .2, s = 1 1/2 0 1/4; the second of 4 steps, so t - s : s = 1 : 2.

    s_norm = 4 / (.9·1 + .6·1/2 + .2·1/4) = 4 / 1.25 = 3.2. Weights 2.88, .96, .16 against 2 for staying masked:
    2.88/4.88, .96/2.96, .16/2.16. The third position (s = 0) is not open, but it counts among the four.
    """
    mass = torch.tensor([0.9, 0.6, 0.2]).log()
    log_s = torch.tensor([1.0, 0.5, 0.25]).log()
    open_ = Open(1, torch.tensor([0, 0, 0]), torch.tensor([4, 5, 7]), log_s, torch.tensor([4]), torch.zeros(3).bool())
    candidates = Candidates(mass, mass, lambda chosen: (chosen, mass[chosen]))
    found = commit_probability(open_, candidates, log_linear(1, 4))
    assert found.tolist() == pytest.approx([2.88 / 4.88, 0.96 / 2.96, 0.16 / 2.16])


#                committed     #  #  .  .  #  .  .
WINDOWS_BY_HAND: dict[tuple[int, Any, float], list[float]] = {
    (3, "step", 1.0): [1, 1, 1, 1, 1, 1, 0],  # u = 2 2 1 1 1 1 0
    (3, "tanh", 0.5): [math.tanh(u / 2) for u in (2, 2, 1, 1, 1, 1, 0)],
    (5, "tanh", 1.0): [math.tanh(u) for u in (2, 2, 3, 2, 1, 1, 1)],
    (5, "linear", 1.0): [0.4, 0.4, 0.6, 0.4, 0.2, 0.2, 0.2],
    (5, "linear", 3.0): [1, 1, 1, 1, 0.6, 0.6, 0.6],
    (3, "sigmoid", 1.0): [1 / (1 + math.exp(-u)) for u in (2, 2, 1, 1, 1, 1, 0)],
    (1, "step", 1.0): [1, 1, 0, 0, 1, 0, 0],
    (99, "linear", 11.0): [1 / 3] * 7,
}


@pytest.mark.parametrize("setting", WINDOWS_BY_HAND, ids=str)
def test_conv_window_by_hand(setting: tuple[int, Any, float]) -> None:
    """s_i = g(unmasked positions within the kernel), zero padding at both ends; a row sees nothing of its mates.

    Where nothing is committed all positions weigh alike, as there is nowhere to start from.
    """
    committed = torch.tensor([[1, 1, 0, 0, 1, 0, 0], [0] * 7, [0, 0, 1, 0, 0, 1, 1]]).bool()
    log_s = windows.conv(*setting)(committed)
    assert log_s[0].exp().tolist() == pytest.approx(WINDOWS_BY_HAND[setting])
    assert log_s[2].exp().tolist() == pytest.approx(WINDOWS_BY_HAND[setting][::-1])
    nothing = 0.5 if setting[1] == "sigmoid" else 1.0
    assert log_s[1].exp().tolist() == [nothing] * 7


def test_flat_window() -> None:
    assert windows.flat(torch.ones(2, 3).bool()).tolist() == [[0.0] * 3] * 2


def test_fixed_count_by_hand() -> None:
    """Row 0: 5 masks, 2 steps left: ceil(5/2) = 3, the best first, a tie to the left. Row 1: 2 masks, 1 of them.

    Row 2: a lower confidence·s loses: .9·1/4 < .5·1. Row 3: 3 masks, one open: all that can commit.
    """
    p = [0.2, 0.5, 0.1, 0.2, 0.9, 0.3, 0.4, 0.9, 0.5, 0.1]
    s = [1, 1, 1, 1, 1, 1, 1, 0.25, 1, 1]
    row = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 3])
    log_p = torch.tensor(p).log()
    masks, late = torch.tensor([5, 2, 2, 3]), torch.zeros(10).bool()
    open_ = Open(4, row, torch.arange(10), torch.tensor(s).log(), masks, late)
    candidates = Candidates(log_p, log_p, lambda chosen: (chosen, log_p[chosen]))
    found = commit.fixed_count(open_, candidates, log_linear(1, 3), torch.zeros(10).double())
    assert found.tolist() == [True, True, False, False, True, False, True, False, True, True]


def test_many_ties_go_to_the_left() -> None:
    open_, candidates = offered([-1.0] * 200, rows=[0] * 150 + [1] * 50)
    found = commit.fixed_count(open_, candidates, log_linear(0, 4), torch.zeros(200).double())
    assert found.nonzero()[:, 0].tolist() == [*range(38), *range(150, 163)]


def test_candidates_by_hand() -> None:
    """p = 1/2 1/4 1/8 1/8 0: k = 2 keeps 3/4, of which the best is two thirds."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125, 0.0], [0.0, 0.125, 0.5, 0.125, 0.25]]).log() + 3

    both = torch.tensor([0, 0, 1])
    low, high = 0.6666, 0.6667

    def drawn(proposal: propose.Propose, *uniform: float) -> list[int]:
        """Tokens of the three positions under those uniform numbers, and their log p beside them."""
        three = source(logits[both], torch.tensor(uniform).double())
        tokens, log_p = proposal(three).draw(torch.ones(3, dtype=torch.bool))
        torch.testing.assert_close(log_p, logits[both].log_softmax(-1)[torch.arange(3), tokens])
        return tokens.tolist()

    best = propose.top_k(2)(source(logits))
    assert best.log_mass.exp().tolist() == pytest.approx([0.75, 0.75])
    assert best.log_confidence.exp().tolist() == pytest.approx([0.5, 0.5])
    assert drawn(propose.top_k(2), low, high, high) == [0, 1, 4]
    everything = propose.top_k(99)(source(logits))
    assert everything.log_mass.tolist() == pytest.approx([0, 0], abs=1e-6)
    greedy = propose.greedy(source(logits))
    assert greedy.log_confidence.exp().tolist() == pytest.approx([0.5, 0.5])
    assert drawn(propose.greedy, low, high, high) == [0, 0, 2]
    categorical = propose.categorical(source(logits))
    assert categorical.log_mass.tolist() == [0.0, 0.0]
    assert drawn(propose.categorical, 0.49, 0.76, 0.1) == [0, 2, 1]


def test_inverse_cdf_at_the_steps() -> None:
    """The first whose cumulated probability (1/4 1/4 3/4 1) exceeds u, also at a step; weights may sum to 2."""
    probs = torch.tensor([0.25, 0.0, 0.5, 0.25], dtype=torch.float64).repeat(5, 1)
    edges = torch.tensor([0.2, 0.25, 0.5, 0.75, 0.8], dtype=torch.float64)
    for scale in (1, 2):
        assert propose.inverse_cdf(probs * scale, edges).tolist() == [0, 2, 2, 3, 3]


def test_inverse_cdf_never_takes_what_has_no_probability() -> None:
    probs = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0]).double()
    edges = torch.tensor([2.0**-54, 0.29, 0.31, 1 - 2.0**-53], dtype=torch.float64)
    assert propose.inverse_cdf(probs.repeat(4, 1), edges).tolist() == [1, 1, 3, 3]
    thirds = torch.rand(2000, 7, generator=torch.Generator().manual_seed(0)).double()
    thirds[:, [0, 3, 6]] = 0
    nearly_one = torch.full((2000,), 1 - 2.0**-53, dtype=torch.float64)
    drawn = propose.inverse_cdf(thirds / thirds.sum(-1, keepdim=True), nearly_one)
    assert set(drawn.tolist()) == {5}


def test_plans_by_hand() -> None:
    assert plans.whole(12, 7) == [Phase(7, 0, 12, 12, total=7)]
    assert plans.restrict(12, 6, 4) == [Phase(2, start, start + 4, 12, total=2) for start in (0, 4, 8)]
    assert plans.stride(12, 6, 4) == [Phase(2, start, 12, start + 4, total=2) for start in (0, 4, 8)]
    # 7 positions in 3 steps: all before 3, 5, 7 must commit, and two behind them may.
    assert plans.sliding(7, 3, 2) == [
        Phase(1, 0, 5, 7, must=3, first=0, total=3),
        Phase(1, 0, 7, 7, must=5, first=1, total=3),
        Phase(1, 0, 7, 7, must=7, first=2, total=3),
    ]


def test_rates_by_hand() -> None:
    """t : s is (steps left) : (steps left - 1); the last step ends at s = 0 exactly."""
    assert [(rates.move, rates.stay, rates.steps_left) for rates in (log_linear(i, 3) for i in range(3))] == [
        (1.0, 2.0, 3),
        (1.0, 1.0, 2),
        (1.0, 0.0, 1),
    ]


# --- The denoiser ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_denoiser_is_the_whole_model_at_some_positions() -> None:
    """SUBS: the mask has no probability. Else the logits are the model's own; what is not valid changes nothing."""
    model = tiny_model(1)
    denoiser = Denoiser(model, 1)
    canvas = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    hidden = denoiser.hidden(canvas, valid)
    assert hidden.shape == (2, 9, denoiser.width)
    for row, length in enumerate((9, 6)):
        expected = model(input_ids=canvas[row : row + 1, :length]).logits[0].float()
        expected[:, 1] = -math.inf
        found = denoiser.logits(hidden[row, :length])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_denoiser_sees_both_sides() -> None:
    """No causal mask: the first position hears of the last. A causal model of the same weights does not."""
    canvas = torch.randint(2, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    other = canvas.clone()
    other[0, -1] += 1
    valid = torch.ones(1, 9).bool()
    for causal in (False, True):
        denoiser = Denoiser(tiny_model(1, causal=causal), 1)
        same = torch.equal(denoiser.hidden(canvas, valid)[0, 0], denoiser.hidden(other, valid)[0, 0])
        assert same == causal


def test_denoiser_switches_dropout_off() -> None:
    model = tiny_model().train()
    Denoiser(model, 1)
    assert not any(module.training for module in model.modules())


@torch.inference_mode()
def test_bfloat16_is_rounding_only() -> None:
    """SUBS stays exact, and nothing moves by more than bfloat16's 8 bits can explain."""
    canvas = torch.randint(2, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    valid = torch.ones(1, 9).bool()
    full, half = Denoiser(tiny_model(1), 1), Denoiser(tiny_model(1), 1, bf16=True)
    expected, found = (denoiser.logits(denoiser.hidden(canvas, valid)[0].float()) for denoiser in (full, half))
    assert found.dtype == torch.bfloat16 and (found[:, 1] == -math.inf).all()
    shift = (found - expected)[:, 2:].abs()
    assert 0 < shift.max() < 0.1 * expected[:, 2:].std() * 4
