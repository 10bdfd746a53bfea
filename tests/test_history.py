"""Rules that look back at earlier passes (klass, credit): numbers worked out by hand, and what counts as a pass."""

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from slow import PROMPTS, Task, fast_decode
from test_decoding_properties import Job, jobs, quick, same
from test_rules_by_hand import opened, places
from tiny import tiny_lm
from torch import Tensor

from dlm.decoding import credit, klass, propose
from dlm.decoding.history import History, Lookback, Past, Votes
from dlm.decoding.propose import Candidates, Source
from dlm.decoding.schedules import log_linear


def source(passes: list[Tensor], seen: list[int], votes: Votes | None = None) -> Source:
    """Positions whose probabilities were `passes`, the newest first."""
    logits = [p.log() for p in passes]
    no_numbers = torch.zeros(len(seen), 0, dtype=torch.long)
    none = Votes(no_numbers, no_numbers.float(), no_numbers, torch.zeros(len(seen)).bool())
    past = Past(torch.tensor(seen), lambda ago, chosen: logits[ago][chosen], votes or none)
    unused: Callable[[Tensor], Tensor] = lambda chosen: torch.zeros(len(chosen)).double()  # noqa: E731
    return Source(len(seen), passes[0].shape[1], logits[0].device, lambda chosen: logits[0][chosen], unused, past)


# --- KLASS ------------------------------------------------------------------------------------------------------------


def test_kl_divergence() -> None:
    """(1/2 1/4 1/4 0) from (1/4 1/4 1/2 0): 1/2·ln 2 + 0 - 1/4·ln 2 = 1/4·ln 2; from itself 0; from (1 0 0 0) ∞.

    (1 0 0 0) from (1/2 1/4 1/4 0): ln 2.
    """
    p = torch.tensor([0.5, 0.25, 0.25, 0.0]).log().repeat(3, 1)
    q = torch.tensor([[0.25, 0.25, 0.5, 0.0], [0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    assert klass.kl_divergence(p, q).tolist() == pytest.approx([math.log(2) / 4, 0, math.inf])
    assert klass.kl_divergence(q[2:], p[2:]).tolist() == pytest.approx([math.log(2)])


@given(st.lists(st.floats(-8, 8), min_size=5, max_size=5), st.lists(st.floats(-8, 8), min_size=5, max_size=5))
def test_a_divergence_is_never_negative(a: list[float], b: list[float]) -> None:
    """And 0 for the same distribution (Gibbs)."""
    p, q = (torch.tensor([values]).double().log_softmax(-1) for values in (a, b))
    assert klass.kl_divergence(p, q).item() >= -1e-12
    assert klass.kl_divergence(p, p).item() == 0


def test_what_is_stable() -> None:
    """Confidence above .6, KL of two passes in a row below .05.

    Position 0: .8 .2 three times: KL 0, 0. 1: the same, seen twice only. 2: .8 .2 after .7 .3 after .7 .3:
    .8·ln(8/7) + .2·ln(2/3) = .0257, 0. 3: the same move one pass earlier and back from .5 .5:
    0, .8·ln 1.6 + .2·ln .4 = .193. 4: never sure (.6 is not above .6).
    """
    now = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    before = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.7, 0.3], [0.8, 0.2], [0.6, 0.4]])
    earlier = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.7, 0.3], [0.5, 0.5], [0.6, 0.4]])
    given_ = source([now, before, earlier], [3, 2, 3, 3, 3])

    def stable(threshold: float, kl_threshold: float, history: int) -> list[int]:
        found = klass.propose(threshold, kl_threshold, history)(given_).stable
        assert found is not None
        return places(found)

    assert stable(0.6, 0.05, 2) == [0, 2]
    assert stable(0.6, 0.02, 2) == [0]
    assert stable(0.6, 0.2, 2) == [0, 2, 3]
    assert stable(0.6, 0.05, 1) == [0, 1, 2, 3]
    assert stable(0.5, 0.05, 1) == [0, 1, 2, 3, 4]


def with_stable(p: list[float], rows: list[int], stable: list[int], **more: list) -> tuple:
    open_, candidates = opened(p, rows, **more)
    return open_, Candidates(
        candidates.log_mass, candidates.log_confidence, candidates.draw, stable=torch.tensor(stable).bool()
    )


def test_klass_commits_what_is_ready_and_else_the_surest() -> None:
    """Bar .5, three steps left. Row 0: one is ready, which is its ceil(3/3), the surer one waits. Row 1: none is (.5 is
    not above .5): the surest. Row 2: both ready. With a step less row 0 owes ceil(3/2): the surest besides.
    """
    p = [0.6, 0.9, 0.2, 0.5, 0.4, 0.3, 0.7, 0.8]
    given_ = with_stable(p, [0, 0, 0, 1, 1, 1, 2, 2], [1, 0, 1, 1, 1, 0, 1, 1])
    none = torch.zeros(8).double()
    rule = klass.commit(0.5)
    assert places(rule(*given_, log_linear(0, 3), none)) == [0, 3, 6, 7]
    assert places(rule(*given_, log_linear(1, 3), none)) == [0, 1, 3, 4, 6, 7]
    assert places(rule(*given_, log_linear(2, 3), none)) == list(range(8))


def test_a_window_and_a_late_end_hold_klass_back() -> None:
    """.9·1/2 does not pass .5; a late one is not ready, and takes its turn behind the others."""
    given_ = with_stable([0.9, 0.6, 0.4], [0, 0, 0], [1, 1, 1], s=[0.5, 1.0, 1.0], late=[0, 1, 0])
    none = torch.zeros(3).double()
    assert places(klass.commit(0.5)(*given_, log_linear(0, 3), none)) == [0]
    assert places(klass.commit(0.5)(*given_, log_linear(1, 3), none)) == [0, 2]
    assert places(klass.commit(0.41)(*given_, log_linear(0, 3), none)) == [0]


def test_klass_saves_passes_and_a_longer_history_fewer() -> None:
    """A pass a token where nothing comes to rest; never fewer than history + 1 before several commit at once."""
    denoiser = tiny_lm(2, eos_scale=2.0).denoiser

    def passes(**options: float) -> list[int]:
        task = Task("klass", {"threshold": 0.1, "kl_threshold": 99.0, "history": 1, **options}, 10, 10, 0, 1)
        return fast_decode(denoiser, PROMPTS, task).nfe.tolist()

    assert passes(kl_threshold=1e-9) == passes(threshold=1.0) == passes(history=10) == [10, 10, 10]
    assert passes(threshold=0.0) == [2, 2, 2]  # one token at the first pass, all others at the second
    assert passes(threshold=0.0, history=3) == [4, 4, 4]
    assert any(2 < nfe < 10 for nfe in passes(kl_threshold=1.0))


# --- CreditDecoding ---------------------------------------------------------------------------------------------------


def cast(tokens: list[int], p: list[float], age: list[int], counted: bool = False) -> Votes:
    return Votes(torch.tensor([tokens]), torch.tensor([p]).log(), torch.tensor([age]), torch.tensor([counted]))


def test_trace_credit() -> None:
    """Power 1/2, decay 1/2. Token 2: √.25/4 + √.64/1 = .125 + .8; token 0: √.36/2 = .3; a vote of -inf is none."""
    found = credit.trace_credit(cast([2, 0, 2, 1], [0.25, 0.36, 0.64, 0.0], [2, 1, 0, 0]), 0.5, 0.5, 4)
    assert found.tolist() == [pytest.approx([0.3, 0, 0.925, 0])]
    # Power 0 counts passes; decay 0 the newest alone; neither makes anything of no vote.
    assert credit.trace_credit(cast([2, 2, 1], [0.2, 0.3, 0.0], [2, 1, 0]), 0.0, 1.0, 3).tolist() == [[0, 0, 2]]
    assert credit.trace_credit(cast([2, 1], [0.2, 0.3], [1, 0]), 1.0, 0.0, 3).tolist() == [pytest.approx([0, 0.3, 0])]


def test_credit_of_this_pass_and_of_earlier_ones() -> None:
    """p = (1/2 1/4 1/4), strength 1, power 0, decay 1: weights p·(1 + C).

    This pass alone: 1/2·2 : 1/4 : 1/4, so 2/3. Two votes for token 1 before: 1 : 3/4 : 1/4, still token 0, at 1/2.
    Four of them: 1 : 5/4 : 1/4, token 1 at 1/2. The same four where this pass has been counted: 1/2 : 5/4 : 1/4, 5/8.
    What the history gets is this pass's own vote in any case.
    """
    p, seen = torch.tensor([[0.5, 0.25, 0.25]]), [1]
    for votes, token, chance in (
        (None, 0, 2 / 3),
        (cast([1, 1], [0.9, 0.9], [2, 1]), 0, 1 / 2),
        (cast([1] * 4, [0.9] * 4, [4, 3, 2, 1]), 1, 1 / 2),
        (cast([1] * 4, [0.9] * 4, [3, 2, 1, 0], counted=True), 1, 5 / 8),
    ):
        candidates = credit.propose(1.0, 0.0, 1.0)(source([p], seen, votes))
        tokens, log_p = candidates.draw(torch.tensor([True]))
        assert tokens.tolist() == [token] and candidates.log_confidence.exp().tolist() == pytest.approx([chance])
        assert log_p.exp().tolist() == pytest.approx([p[0, token].item()])  # the trace has the model's own
        assert candidates.vote is not None
        assert candidates.vote[0].tolist() == [0] and candidates.vote[1].exp().tolist() == pytest.approx([0.5])


def test_no_strength_is_threshold() -> None:
    plain = propose.greedy(source([torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])], [1, 1]))
    none = credit.propose(0.0, 0.2, 0.8)(source([torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])], [1, 1]))
    assert torch.equal(plain.draw(plain.log_mass > 0)[0], none.draw(none.log_mass > 0)[0])
    torch.testing.assert_close(plain.log_confidence, none.log_confidence)


@quick
@given(jobs(names=("credit",)))
def test_credit_without_strength_decodes_as_threshold_does(job: Job) -> None:
    plain = Job("threshold", dict(job.options), job.gen_length, job.steps, job.prompts, job.seed)
    for name in ("strength", "power", "decay"):
        del plain.options[name]
    assert same(plain.run(), job.run(strength=0.0))


@quick
@given(jobs(names=("klass",)))
def test_klass_that_rests_at_once_needs_a_pass_more_than_threshold(job: Job) -> None:
    """Threshold 0 and any divergence: the schedule's number at the first pass, all the rest at the second."""
    job = job.having(threshold=0.0, kl_threshold=1e9, history=1, eos_fill=False, kernel_size=None, block_length=None)
    found = job.having(eos="free").run()
    assert (found.nfe <= 2 * job.passes).all() and not found.leftover_masks.any()


# --- What counts as a pass --------------------------------------------------------------------------------------------


def test_a_pass_over_an_unchanged_canvas_is_no_observation() -> None:
    """Row 0 changes between its three passes, row 1 does not after the first, row 2 takes part in the last alone."""
    states = torch.zeros(3, 2, 1)
    history = History(Lookback(passes=2), states, None)
    everywhere = torch.ones(3, 2).bool()
    for number, (rows, changed) in enumerate((([0, 1], [1, 1]), ([0, 1], [1, 0]), ([0, 1, 2], [1, 0, 1])), 1):
        history.push(torch.tensor(rows), torch.tensor(changed).bool(), (states, None), everywhere)
        states[rows] = float(number)
    assert history.count.tolist() == [3, 1, 1]
    assert history.hidden[:, :, 0, 0].tolist() == [[2, 0, 0], [1, 0, 0]]
    row = torch.tensor([0, 1, 2])
    assert history.seen_in_a_row(row, torch.zeros_like(row)).tolist() == [3, 1, 1]


def test_a_position_that_held_a_token_starts_anew() -> None:
    """Masked, a token, masked, masked: two in a row."""
    history = History(Lookback(passes=3), torch.zeros(1, 1, 1), None)
    for masked in (True, False, True, True):
        history.push(torch.tensor([0]), torch.tensor([True]), (torch.zeros(1, 1, 1), None), torch.tensor([[masked]]))
    assert history.seen_in_a_row(torch.tensor([0]), torch.tensor([0])).tolist() == [2]


def test_a_position_votes_once_a_pass() -> None:
    """Position 0 votes at pass 1, again in vain, and at pass 2; position 1 at pass 2 alone."""
    states = torch.zeros(1, 2, 1)
    history, zero, one = History(Lookback(votes=True), states, None), torch.tensor([0]), torch.tensor([1])
    everywhere = torch.ones(1, 2).bool()

    def push() -> None:
        history.push(zero, torch.tensor([True]), (states, None), everywhere)

    push()
    history.vote(zero, zero, torch.tensor([7]), torch.tensor([-1.0]))
    history.vote(zero, zero, torch.tensor([7]), torch.tensor([-1.0]))
    assert history.votes(zero, zero).counted.tolist() == [True]
    push()
    assert history.votes(zero, zero).counted.tolist() == [False]
    both = torch.tensor([0, 0]), torch.tensor([0, 1])
    history.vote(*both, torch.tensor([8, 9]), torch.tensor([-2.0, -3.0]))
    votes = history.votes(*both)
    real = ~votes.log_p.isneginf()
    assert [votes.tokens[i][real[i]].tolist() for i in (0, 1)] == [[7, 8], [9]]
    assert [votes.age[i][real[i]].tolist() for i in (0, 1)] == [[1, 0], [0]]
    assert votes.counted.tolist() == [True, True]
    assert history.votes(one * 0, one).tokens[0][real[1]].tolist() == [9]
