"""Training within minutes, by a clock of the test's own: when it ends, and what its learning rate follows."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_training import TRAINING, At, Crash, Started, crash, elsewhere, one_thread, same_weights, sft, tiny_model  # noqa: F401 (fixtures)
from transformers import TrainerCallback

from dlm.errors import UserError
from dlm.training import fit as run

TWELVE = 12 / 60  # minutes


class Clock(TrainerCallback):
    """A second a step; and the rates that the steps are made with, as shares of the full one."""

    def __init__(self) -> None:
        self.now, self.rates = 100.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.now += 1

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"] / args.learning_rate)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def test_it_ends_when_the_time_is_over(clock: Clock, tmp_path: Path) -> None:
    """After 10 of 100 steps; the last figures are of the tenth, though it is no multiple of eval_every."""
    model = tiny_model()
    found = sft(model, replace(TRAINING, steps=100, minutes=10 / 60), clock)
    assert [row["step"] for row in found] == [0, 4, 8, 10]
    assert len(clock.rates) == 10
    assert found[-1]["eval_loss"] < found[0]["eval_loss"]
    assert not same_weights(model, tiny_model())
    assert list((tmp_path / ".cache/training").iterdir()) == []


def test_no_time_is_one_step(clock: Clock) -> None:
    assert [row["step"] for row in sft(tiny_model(), replace(TRAINING, minutes=0), clock)] == [0, 1]


@pytest.mark.parametrize(
    ("schedule", "at"),
    [("linear", lambda gone: 1 - gone), ("cosine", lambda gone: (1 + math.cos(math.pi * gone)) / 2)],
)
def test_the_rate_follows_the_time(clock: Clock, schedule: Any, at: Any) -> None:
    """12 s for 102 steps of 1 s, 2 of them warm-up, which stay as they are: rates of 0 and 1/2, then the whole one.

    Each of the 10 s after it is 10 of the 100 steps that there were to be. A step's end moves the schedule to where the
    time is, and the rate of the step after the next comes from there, one step on: step 5 is made at place 11 of 100,
    step 6 at 21, the twelfth at 81.
    """
    sft(tiny_model(), replace(TRAINING, steps=102, lr_schedule=schedule, minutes=TWELVE), clock)
    places = [0, 1, *range(11, 82, 10)]
    assert clock.rates == pytest.approx([0, 1 / 2, *(at(place / 100) for place in places)], abs=1e-9)


def test_a_long_run_ends_at_the_end_of_its_schedule(clock: Clock) -> None:
    """200 s of a schedule of 10,000 steps: the last rate is that of the time two steps before its end."""
    sft(tiny_model(), replace(TRAINING, steps=10_000, warmup_steps=0, eval_every=500, minutes=200 / 60), clock)
    assert len(clock.rates) == 200
    assert clock.rates[-1] == pytest.approx(0, abs=3 / 199)
    assert clock.rates == sorted(clock.rates, reverse=True)


def test_a_constant_rate_stays(clock: Clock) -> None:
    sft(tiny_model(), replace(TRAINING, steps=102, lr_schedule="constant", minutes=TWELVE), clock)
    assert clock.rates == [0, 1 / 2, *[1] * 10]


def test_a_warm_up_that_the_time_does_not_reach_the_end_of(clock: Clock) -> None:
    sft(tiny_model(), replace(TRAINING, steps=100, warmup_steps=8, minutes=4 / 60), clock)
    assert clock.rates == [0, 1 / 8, 2 / 8, 3 / 8]


def test_the_steps_are_followed_where_they_are_nearer_their_end(clock: Clock) -> None:
    """40 s for 12 steps of 1 s: the run is the one without a limit of time, to the bit."""
    free, limited = tiny_model(), tiny_model()
    expected = sft(free, TRAINING, clock)
    rates, clock.rates = clock.rates, []
    assert rates == pytest.approx([0, 1 / 2, *(1 - place / 10 for place in range(10))])
    assert sft(limited, replace(TRAINING, minutes=40 / 60), clock) == expected
    assert clock.rates == rates
    assert same_weights(limited, free)


def test_the_rate_changes_over_to_what_is_nearer_its_end(clock: Clock) -> None:
    """From step 7 on the steps take no time: the schedule goes on with them, from where the time had moved it."""

    class Halt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.now -= state.global_step >= 6

    sft(tiny_model(), replace(TRAINING, steps=12, warmup_steps=2, minutes=7 / 60), clock, Halt())
    # Of 5 s after the warm-up each is 2 of the 10 steps; at the end of step 6 the place is 8 of 10.
    assert clock.rates == pytest.approx([0, 1 / 2, 1, 0.9, 0.7, 0.5, 0.3, 0.1, 0, 0, 0, 0], abs=1e-9)


def test_without_a_limit_no_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TRAINING.minutes is None
    monkeypatch.setattr(run, "time", None)
    assert [row["step"] for row in sft(tiny_model(), TRAINING)] == [0, 4, 8, 12]


def test_a_cut_run_goes_on_with_the_rate_that_it_had(clock: Clock) -> None:
    """With its whole time again, which begins with the rest; the schedule does not go back."""
    params = replace(TRAINING, steps=102, minutes=TWELVE)
    with pytest.raises(Crash):
        sft(tiny_model(), params, clock, At(10, crash))
    rates, clock.rates = clock.rates, []
    started = Started()
    found = sft(tiny_model(), params, clock, started)
    assert started.step == 8
    assert clock.rates[0] == pytest.approx(rates[8])
    assert clock.rates == sorted(clock.rates, reverse=True)
    assert found[-1]["step"] == 8 + 12


def test_several_processes_have_no_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    params = replace(TRAINING, gradient_accumulation=2, minutes=1.0)
    with pytest.raises(UserError, match=r"^sft: minutes must be null for several processes, whose clocks differ"):
        sft(tiny_model(), params)


def test_a_visitor_sees_the_last_step(clock: Clock) -> None:
    """Though it is no multiple of save_every: the model that comes back is the one of the last step."""
    seen: dict[int, Any] = {}
    params = replace(TRAINING, steps=100, minutes=10 / 60)

    def visit(step: int, model: Any) -> None:
        seen[step] = {name: value.clone() for name, value in model.state_dict().items()}

    model = tiny_model()
    sft(model, params, clock, visit=visit)
    assert list(seen) == [4, 8, 10]
    assert all((value == seen[10][name]).all() for name, value in model.state_dict().items())
