"""Every decoder against a slow, obvious one: the paper's formulas in loops over one row, and numbers by hand."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny import TableDenoiser, chi_square_p, tiny_lm, tiny_model
from torch import Tensor

from dlm.decoding import commit, plans, propose, windows
from dlm.decoding.commit import Open
from dlm.decoding.loop import Decoded, decode
from dlm.decoding.noise import COMMIT, TOKEN, row_keys, uniforms
from dlm.decoding.options import DECODERS, decoder_options
from dlm.decoding.plans import Phase
from dlm.decoding.presets import make_decoder
from dlm.decoding.propose import Candidates, Source
from dlm.decoding.schedules import Rates, log_linear
from dlm.models.denoiser import Denoiser

Network = Callable[[list[int]], list[list[float]]]  # a canvas -> p_ij of every position, the mask's 0 (SUBS)
Offers = dict[int, list[tuple[int, float]]]  # position -> (token, weight) of each candidate
State = tuple[tuple[int, ...], tuple[int, ...]]  # canvas, commit step of every response position


# --- The slow decoder ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What to decode with: a decoder's name and options as in params.yaml, and the lengths."""

    name: str
    options: dict[str, Any]
    gen_length: int
    steps: int
    eos_id: int
    mask_id: int

    @property
    def rule(self) -> str:
        return self.options.get("rule", "top_k") if self.name in ("conv", "semi_ar") else self.name

    @property
    def phases(self) -> list[tuple[int, int, int, int]]:
        """(steps, first and last offset that may commit, offset from where all is masked again afterwards)."""
        if self.name != "semi_ar":
            return [(self.steps, 0, self.gen_length, self.gen_length)]
        size = self.options["block_length"]
        starts = range(0, self.gen_length, size)
        each = self.steps // len(starts)
        if self.options["variant"] == "restrict":
            return [(each, start, start + size, self.gen_length) for start in starts]
        return [(each, start, self.gen_length, start + size) for start in starts]

    def window(self, canvas: list[int], i: int) -> float:
        """s_i."""
        if self.name != "conv":
            return 1.0
        kernel, mult = self.options["kernel_size"], self.options.get("conv_mult", 1.0)
        u = 0
        for j in range(i - (kernel - 1) // 2, i + (kernel - 1) // 2 + 1):
            if 0 <= j < len(canvas) and canvas[j] != self.mask_id:
                u += 1
        return {
            "tanh": math.tanh(mult * u),
            "linear": min(1.0, mult * u / kernel),
            "sigmoid": 1 / (1 + math.exp(-mult * u)),
            "step": 1.0 if u > 0 else 0.0,
        }[self.options.get("gain", "tanh")]

    def offers(self, canvas: list[int], p: list[list[float]], here: list[int], steps: int) -> Offers:
        """p_ij·s_i·s_norm·(t - s) of the kept candidates j at the masked positions i (`here`)."""
        kept = {}
        for i in here:
            kept[i] = list(enumerate(p[i]))
            if self.rule == "top_k":
                kept[i].sort(key=lambda pair: -pair[1])
                kept[i] = kept[i][: self.options["top_k"]]
        s = {i: self.window(canvas, i) for i in here}
        everything = sum(p_ij for i in here for p_ij in p[i])
        held = sum(p_ij * s[i] for i in here for _, p_ij in kept[i])
        s_norm = everything / held if held > 0 else 0.0
        return {i: [(j, p_ij * s[i] * s_norm * (1 / steps)) for j, p_ij in kept[i]] for i in here}

    def ranked(self, canvas: list[int], p: list[list[float]], here: list[int], steps_left: int) -> dict[int, int]:
        """The best token at the ceil(masks left / steps left) positions of highest confidence·s_i, ties to the left."""
        score = {i: max(p[i]) * self.window(canvas, i) for i in here}
        able = sorted((i for i in here if score[i] > 0), key=lambda i: (-score[i], i))
        return {i: p[i].index(max(p[i])) for i in able[: math.ceil(len(here) / steps_left)]}

    def fill_eos(self, canvas: list[int], prompt_length: int) -> None:
        if self.options.get("eos_fill") and self.eos_id in canvas[prompt_length:]:
            first = canvas.index(self.eos_id, prompt_length)
            canvas[first:] = [self.eos_id] * (len(canvas) - first)


@dataclass
class Slow:
    tokens: list[int]
    commit_step: list[int]
    leftover: int
    nfe: int
    nfe_uncached: int


def slow_decode(network: Network, prompt: list[int], task: Task, key: Tensor) -> Slow:
    """One row, step by step. Sampled decisions take the library's noise, so that they can be compared one by one."""
    first = len(prompt)
    canvas = prompt + [task.mask_id] * task.gen_length
    stamp = [-1] * task.gen_length
    nfe = nfe_uncached = clock = 0
    changed = True

    def write(new: dict[int, int]) -> None:
        for i, token in new.items():
            canvas[i] = token
            stamp[i - first] = clock
        canvas[:], stamp[:] = settle(canvas, stamp, task, first)

    for steps, start, end, keep in task.phases:
        for step in range(steps):
            here = [i for i in range(first + start, first + end) if canvas[i] == task.mask_id]
            if here:
                p = network(canvas)
                nfe, nfe_uncached = nfe + changed, nfe_uncached + 1
                if task.rule == "low_confidence":
                    new = task.ranked(canvas, p, here, steps - step)
                else:
                    new = sample(task.offers(canvas, p, here, steps), (steps - step - 1) / steps, first, key, clock)
                changed = bool(new)
                write(new)
            clock += 1
        for i in range(first + keep, len(canvas)):
            canvas[i], stamp[i - first], changed = task.mask_id, -1, True
        write({})
    left = [i for i, token in enumerate(canvas) if token == task.mask_id]
    if left:
        p = network(canvas)
        nfe, nfe_uncached = nfe + changed, nfe_uncached + 1
        write({i: p[i].index(max(p[i])) for i in left})
    return Slow(canvas[first:], stamp, len(left), nfe, nfe_uncached)


def sample(offers: Offers, stay: float, first: int, key: Tensor, clock: int) -> dict[int, int]:
    """Commit where u < Σ_j w_ij / (Σ_j w_ij + s), with the token at which a second u passes the cumulated weights."""
    offsets = torch.tensor([i - first for i in offers])
    commits, draws = (
        uniforms(key.repeat(len(offers)), clock, channel, offsets).tolist() for channel in (COMMIT, TOKEN)
    )
    new = {}
    for (i, candidates), u_commit, u_token in zip(offers.items(), commits, draws, strict=True):
        move = sum(weight for _, weight in candidates)
        if move > 0 and u_commit < move / (move + stay):
            passed = itertools.accumulate(weight for _, weight in candidates)
            new[i] = next(token for (token, _), mass in zip(candidates, passed, strict=True) if mass > u_token * move)
    return new


def exact_distribution(network: Network, prompt: list[int], task: Task) -> tuple[dict, dict]:
    """P(response) and P(commit steps) of a sampled decoder, every possible run enumerated."""
    first = len(prompt)
    states: dict[State, float] = {((*prompt, *[task.mask_id] * task.gen_length), (-1,) * task.gen_length): 1.0}
    clock = 0
    for steps, start, end, keep in task.phases:
        for step in range(steps):
            after: dict[State, float] = defaultdict(float)
            for (canvas, stamp), mass in states.items():
                here = [i for i in range(first + start, first + end) if canvas[i] == task.mask_id]
                offers = task.offers(list(canvas), network(list(canvas)), here, steps) if here else {}
                for new, probability in joint_draws(offers, (steps - step - 1) / steps):
                    written, when = list(canvas), list(stamp)
                    for i, token in new.items():
                        written[i], when[i - first] = token, clock
                    after[settle(written, when, task, first)] += mass * probability
            states, clock = after, clock + 1
        again: dict[State, float] = defaultdict(float)
        for (canvas, stamp), mass in states.items():
            masks = task.gen_length - keep
            kept = [*canvas[: first + keep], *[task.mask_id] * masks], [*stamp[:keep], *[-1] * masks]
            again[settle(*kept, task, first)] += mass
        states = again
    responses: dict[tuple[int, ...], float] = defaultdict(float)
    stamps: dict[tuple[int, ...], float] = defaultdict(float)
    for (canvas, stamp), mass in states.items():
        p = network(list(canvas))
        greedy = [p[i].index(max(p[i])) if token == task.mask_id else token for i, token in enumerate(canvas)]
        last = [clock if a == task.mask_id else w for a, w in zip(canvas[first:], stamp, strict=True)]
        response, times = settle(greedy, last, task, first)
        responses[response[first:]] += mass
        stamps[times] += mass
    return responses, stamps


def joint_draws(offers: Offers, stay: float) -> Iterator[tuple[dict[int, int], float]]:
    """What may be committed at a step, and how probable it is: one draw a position over {k tokens, stay masked}."""
    choices = []
    for candidates in offers.values():
        total = sum(weight for _, weight in candidates) + stay
        moves = [(token, weight / total) for token, weight in candidates if weight > 0]
        choices.append(moves + ([] if moves and stay == 0 else [(None, stay / total if moves else 1.0)]))
    for draws in itertools.product(*choices):
        new = {i: token for i, (token, _) in zip(offers, draws, strict=True) if token is not None}
        yield new, math.prod(share for _, share in draws)


def settle(canvas: list[int], stamp: list[int], task: Task, first: int) -> State:
    """EOS-fill; a position that it changed has no step of its own any more."""
    filled = list(canvas)
    task.fill_eos(filled, first)
    when = [-1 if a != b else w for a, b, w in zip(canvas[first:], filled[first:], stamp, strict=True)]
    return tuple(filled), tuple(when)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / sum(weights) for weight in weights]


def network_of_table(table: TableDenoiser) -> Network:
    known: dict[tuple[int, ...], list[list[float]]] = {}

    def network(canvas: list[int]) -> list[list[float]]:
        if tuple(canvas) not in known:
            ids = torch.tensor([canvas])
            known[tuple(canvas)] = [
                softmax(row) for row in table.logits(table.hidden(ids, torch.ones_like(ids).bool())[0]).tolist()
            ]
        return known[tuple(canvas)]

    return network


def network_of_model(denoiser: Denoiser) -> Network:
    """The whole model on one row without padding, its head at every position."""

    @torch.inference_mode()
    def network(canvas: list[int]) -> list[list[float]]:
        logits = denoiser.model(input_ids=torch.tensor([canvas])).logits[0]
        logits[:, denoiser.mask_id] = -math.inf
        return [softmax(row) for row in logits.tolist()]

    return network


def fast_decode(denoiser: Denoiser, prompts: list[list[int]], task: Task, **more: Any) -> Decoded:
    options = decoder_options(task.name, {**task.options, **more}, task.name)
    return decode(
        denoiser,
        prompts,
        make_decoder(options),
        gen_length=task.gen_length,
        steps=task.steps,
        keys=row_keys(prompts, 11),
        eos_id=task.eos_id,
    )


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


def case_id(case: tuple[str, dict[str, Any], int, int]) -> str:
    name, options, gen_length, steps = case
    return "-".join([name, *map(str, options.values()), f"{gen_length}in{steps}"])


@pytest.mark.parametrize("eos_fill", [False, True], ids=["", "eos_fill"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_token_for_token(case: tuple[str, dict[str, Any], int, int], eos_fill: bool) -> None:
    """Three prompts of unequal length in one batch of a real model; tokens, steps, leftovers and NFE of each row."""
    name, options, gen_length, steps = case
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    task = Task(name, {**options, "eos_fill": eos_fill}, gen_length, steps, 0, denoiser.mask_id)
    prompts = [[5, 9, 70, 0, 31], [100, 101], list(range(200, 209))]
    keys = row_keys(prompts, 11)
    found, uncached = fast_decode(denoiser, prompts, task), fast_decode(denoiser, prompts, task, cache=False)
    network = network_of_model(denoiser)
    for row, prompt in enumerate(prompts):
        slow = slow_decode(network, prompt, task, keys[row])
        assert found.tokens[row].tolist() == slow.tokens
        assert found.commit_step[row].tolist() == slow.commit_step
        assert found.leftover_masks[row] == slow.leftover
        assert (found.nfe[row], uncached.nfe[row]) == (slow.nfe, slow.nfe_uncached)


def test_the_comparison_sees_what_it_should() -> None:
    """Not vacuous: the model's prompts end early, leave masks and skip forward passes in some of the cases above."""
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser
    prompts = [[5, 9, 70, 0, 31], [100, 101], list(range(200, 209))]
    ended = fast_decode(denoiser, prompts, Task("top_k", {"top_k": 5, "eos_fill": True}, 10, 4, 0, 1))
    assert (ended.commit_step == -1).any() and (ended.tokens != 0).any()
    conv = fast_decode(denoiser, prompts, Task("conv", {"top_k": 2, "kernel_size": 3}, 6, 14, 0, 1))
    assert (conv.nfe < 14).any()
    few = fast_decode(denoiser, prompts, Task("conv", {"top_k": 2, "kernel_size": 3}, 10, 4, 0, 1))
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
ROWS = 4000


def p_values(found: Decoded, responses: dict, stamps: dict) -> tuple[float, float]:
    """Of the tokens and of the commit steps; 0 where something came out that never can."""
    values = []
    for drawn, expected in ((found.tokens.tolist(), responses), (found.commit_step.tolist(), stamps)):
        cells = list(expected)
        counts = dict.fromkeys(cells, 0)
        for row in drawn:
            if tuple(row) not in counts:
                return 0.0, 0.0
            counts[tuple(row)] += 1
        values.append(chi_square_p([counts[cell] for cell in cells], [len(drawn) * expected[cell] for cell in cells]))
    return values[0], values[1]


@pytest.mark.parametrize("case", SAMPLED, ids=case_id)
def test_in_distribution(case: tuple[str, dict[str, Any], int, int]) -> None:
    """Factoring the joint draw into commit and token changes nothing: 4000 answers against the enumeration."""
    name, options, gen_length, steps = case
    table = TableDenoiser(vocab=4, mask_id=1, seed=3)
    task = Task(name, options, gen_length, steps, 0, 1)
    responses, stamps = exact_distribution(network_of_table(table), [2, 3], task)
    assert sum(responses.values()) == pytest.approx(1) and sum(stamps.values()) == pytest.approx(1)
    found = fast_decode(table, [[2, 3]] * ROWS, task)
    assert min(p_values(found, responses, stamps)) > 0.001


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
    open_ = Open(int(row.max()) + 1, row, torch.arange(n), weights, torch.bincount(row))
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
    open_ = Open(1, torch.tensor([0, 0, 0]), torch.tensor([4, 5, 7]), log_s, torch.tensor([4]))
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
    """s_i = g(unmasked positions within the kernel), zero padding at both ends; a row sees nothing of its mates."""
    committed = torch.tensor([[1, 1, 0, 0, 1, 0, 0], [0] * 7, [0, 0, 1, 0, 0, 1, 1]]).bool()
    log_s = windows.conv(*setting)(committed)
    assert log_s[0].exp().tolist() == pytest.approx(WINDOWS_BY_HAND[setting])
    assert log_s[2].exp().tolist() == pytest.approx(WINDOWS_BY_HAND[setting][::-1])
    nothing = 0.5 if setting[1] == "sigmoid" else 0.0
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
    open_ = Open(4, row, torch.arange(10), torch.tensor(s).log(), torch.tensor([5, 2, 2, 3]))
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
        tokens, log_p = proposal(three).draw(torch.arange(3))
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
    """The logits stay float32, SUBS stays exact, and nothing moves by more than bfloat16's 8 bits can explain."""
    canvas = torch.randint(2, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    valid = torch.ones(1, 9).bool()
    full, half = Denoiser(tiny_model(1), 1), Denoiser(tiny_model(1), 1, bf16=True)
    expected, found = (denoiser.logits(denoiser.hidden(canvas, valid)[0].float()) for denoiser in (full, half))
    assert found.dtype == torch.float32 and (found[:, 1] == -math.inf).all()
    shift = (found - expected)[:, 2:].abs()
    assert 0 < shift.max() < 0.1 * expected[:, 2:].std() * 4


def test_every_decoder_is_covered() -> None:
    assert {name for name, *_ in CASES} == set(DECODERS)
