"""The forward process: times that cover (0, 1] evenly, and masks whose rate is the time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dlm.diffusion.forward import T_MIN, antithetic_t, mask_suffix, mask_tokens, row_draws

MASK = 1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(seed))


def cells(t: Tensor, total: int) -> list[int]:
    """Which of `total` equal cells of [T_MIN, 1] each time lies in."""
    return [math.floor((float(value) - T_MIN) / (1 - T_MIN) * total) for value in t.double()]


def test_times_by_hand() -> None:
    """Four rows, the draw u: grid (0+u)/4 .. (3+u)/4, stretched to [0.001, 1): t_i = 0.001 + 0.999 (i + u)/4."""
    u = float(torch.rand(1, generator=generator(7)))
    t = antithetic_t(torch.arange(4), 4, generator(7))
    assert t.tolist() == pytest.approx([0.001 + 0.999 * (i + u) / 4 for i in range(4)], abs=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 2**31))
def test_parts_of_a_global_batch_cover_every_cell_once(parts: list[int], seed: int) -> None:
    """A global batch of sum(parts) rows, each part drawn on its own from an equal generator: one time a cell."""
    total = sum(parts)
    times = [
        antithetic_t(sum(parts[:i]) + torch.arange(count), total, generator(seed)) for i, count in enumerate(parts)
    ]
    whole = torch.cat(times)
    grid = (whole.double() - T_MIN) / (1 - T_MIN) * total
    assert -1e-3 < float(grid[0]) < 1 + 1e-3
    assert torch.allclose(grid - grid[0], torch.arange(total).double(), atol=1e-3)
    assert torch.equal(whole, antithetic_t(torch.arange(total), total, generator(seed)))
    assert float(whole.min()) >= T_MIN
    assert float(whole.max()) <= 1


def test_one_time_a_cell() -> None:
    for seed in range(50):
        u = float(torch.rand(1, generator=generator(seed)))
        assert 0.001 < u < 0.999  # away from the cells' edges, where rounding decides
        times = torch.cat([antithetic_t(offset + torch.arange(8), 32, generator(seed)) for offset in (0, 8, 16, 24)])
        assert cells(times, 32) == list(range(32))


def test_the_mean_time_is_a_half_and_single_draws_are_uniform() -> None:
    """Over 400 seeds a batch of one has t uniform on [0.001, 1): mean 0.5005, sd of the mean 0.2885/20 = 0.0144."""
    alone = torch.cat([antithetic_t(torch.arange(1), 1, generator(seed)) for seed in range(400)])
    assert abs(float(alone.mean()) - 0.5005) < 4 * 0.0144
    assert int((alone < 0.25).sum()) == pytest.approx(100, abs=4 * math.sqrt(400 * 0.25 * 0.75))
    # 64 rows: the grid leaves at most half a cell of error, 1/128, whatever the draw.
    for seed in range(20):
        assert abs(float(antithetic_t(torch.arange(64), 64, generator(seed)).mean()) - 0.5005) <= 1 / 128


def test_times_depend_on_the_generator_alone() -> None:
    torch.manual_seed(0)
    first = antithetic_t(torch.arange(2, 7), 9, generator(3))
    torch.manual_seed(99)
    assert torch.equal(first, antithetic_t(torch.arange(2, 7), 9, generator(3)))
    assert not torch.equal(first, antithetic_t(torch.arange(2, 7), 9, generator(4)))


@pytest.mark.parametrize("t", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_masking_rate_is_the_time(t: float) -> None:
    """n = 40,000 positions: the count of masks is binomial, 4.5 sd = 4.5 sqrt(n t (1-t)) around n t."""
    n = 40_000
    x0 = torch.full((40, 1000), 5)
    xt, masked = mask_tokens(x0, torch.full((40,), t), torch.ones_like(x0, dtype=torch.bool), MASK, draws(11, 40, 1000))
    assert abs(int(masked.sum()) - n * t) <= 4.5 * math.sqrt(n * t * (1 - t))
    assert torch.equal(xt == MASK, masked)


def test_each_row_has_its_own_time() -> None:
    """Rows at t = 0.2 and 0.8 over 20,000 positions: 4.5 sd = 4.5 sqrt(20000 x 0.16) = 255."""
    x0 = torch.full((2, 20_000), 5)
    _, masked = mask_tokens(
        x0, torch.tensor([0.2, 0.8]), torch.ones_like(x0, dtype=torch.bool), MASK, draws(2, 2, 20_000)
    )
    assert masked.sum(-1).tolist() == pytest.approx([4000, 16_000], abs=255)


def test_positions_are_masked_independently() -> None:
    """At t = 0.5, neighbours are both masked in a quarter of 30,000 pairs: 4.5 sd = 4.5 sqrt(30000 x 3/16) = 338."""
    x0 = torch.full((1, 60_000), 5)
    _, masked = mask_tokens(x0, torch.tensor([0.5]), torch.ones_like(x0, dtype=torch.bool), MASK, draws(5, 1, 60_000))
    pairs = masked.view(30_000, 2).all(-1).sum()
    assert abs(int(pairs) - 7500) < 338


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 12))
def test_only_maskable_positions_change(seed: int, batch: int, length: int) -> None:
    draw = generator(seed)
    x0 = torch.randint(2, 50, (batch, length), generator=draw)
    maskable = torch.rand(batch, length, generator=draw) < 0.5
    before = x0.clone()
    xt, masked = mask_tokens(x0, torch.rand(batch, generator=draw), maskable, MASK, draws(seed, batch, length))
    assert not (masked & ~maskable).any()
    assert torch.equal(xt[~masked], x0[~masked])
    assert (xt[masked] == MASK).all()
    assert torch.equal(x0, before)
    again = mask_tokens(x0, torch.ones(batch), maskable, MASK, draws(seed, batch, length))
    assert torch.equal(again[1], maskable)  # t = 1 masks all that may be masked


def test_a_rows_draws_depend_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    whole = row_draws([5, 6, 7], 50)
    assert whole.shape == (3, 50)
    assert float(whole.min()) >= 0
    assert float(whole.max()) < 1
    torch.manual_seed(123)
    assert torch.equal(whole[1:2], row_draws([6], 50))
    assert torch.equal(whole[[2, 0]], row_draws([7, 5], 50))
    assert not torch.equal(whole[0], whole[1])


def test_mask_suffix_by_hand() -> None:
    """Prompt of 2, answer of 3, padding of 3. A cut after 0 to 3 tokens, each about as often; what counts ends with the
    answer's first EOS, and the padding behind it is masked without counting."""
    eos = 0
    x0 = torch.tensor([[7, 8, 4, 5, 6, eos, eos, eos]]).repeat(4000, 1)
    maskable = (torch.arange(8) >= 2).expand(4000, 8)
    masked, counted = mask_suffix(x0, maskable, eos, draws(0, 4000, 1)[:, 0])
    cuts = 8 - masked.sum(-1)
    assert sorted(set(cuts.tolist())) == [2, 3, 4, 5]
    assert all(900 < int((cuts == cut).sum()) < 1100 for cut in (2, 3, 4, 5))
    position = torch.arange(8)
    assert torch.equal(masked, position >= cuts[:, None])
    assert torch.equal(counted, masked & (position <= 5))


def test_mask_suffix_of_an_answer_that_fills_its_canvas() -> None:
    """No EOS: the cut falls before one of the tokens or after the last, where nothing is left to count."""
    x0 = torch.tensor([[7, 4, 5]]).repeat(300, 1)
    masked, counted = mask_suffix(x0, torch.tensor([[False, True, True]]).expand(300, 3), 0, draws(1, 300, 1)[:, 0])
    assert torch.equal(masked, counted)
    assert sorted(set(masked.sum(-1).tolist())) == [0, 1, 2]
