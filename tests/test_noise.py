"""Noise: uniform, float64, pinned, and a function of (row, step, channel, position) alone."""

import pytest
import torch
from tiny import chi_square_p
from torch import Tensor

from dlm.decoding.noise import COMMIT, TOKEN, row_keys, uniforms

WORD = 2**64
GOLDEN_KEYS = [-8689261237987037365, -1528067324332730362, -556249751557289834]
GOLDEN_COMMIT = [0.8967683870373753, 0.19249846419470956, 0.36823800627519715]
GOLDEN_TOKEN = [0.4505089768236417, 0.8781485698835927, 0.1847177351349149]


def splitmix64(x: int) -> int:
    """One output of Steele, Lea and Flood's generator from state x, in Python's own integers."""
    x = (x + 0x9E3779B97F4A7C15) % WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
    return x ^ (x >> 31)


def unmix(x: int) -> int:
    """The state that splitmix64 turns into x."""
    for shift, factor in ((31, 1), (27, 0x94D049BB133111EB), (30, 0xBF58476D1CE4E5B9)):
        x = (x * pow(factor, -1, WORD)) % WORD
        whole = x
        for _ in range(64 // shift + 1):
            whole = x ^ (whole >> shift)
        x = whole
    return (x - 0x9E3779B97F4A7C15) % WORD


def signed(x: int) -> int:
    return x - WORD if x >= WORD // 2 else x


def draw(key: int, step: int, channel: int, count: int) -> Tensor:
    return uniforms(torch.full((count,), key), step, channel, torch.arange(count))


def many(rows: int = 40, steps: int = 25, positions: int = 50) -> Tensor:
    """[rows, steps, 2 channels, positions]."""
    keys = row_keys([[row] for row in range(rows)], 0)
    row, position = (grid.flatten() for grid in torch.meshgrid(keys, torch.arange(positions), indexing="ij"))
    grid = [[uniforms(row, s, c, position).view(rows, positions) for c in (COMMIT, TOKEN)] for s in range(steps)]
    return torch.stack([torch.stack(pair, 1) for pair in grid], 1)


def test_the_reference_is_splitmix64() -> None:
    """The published first output of splitmix64 for seed 0; and the inverse inverts."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert all(splitmix64(unmix(x)) == x for x in (0, 1, 12345, WORD - 1, 0xE220A8397B1DCDAF))


def test_equals_the_reference() -> None:
    """u = splitmix64(splitmix64(key ^ (4·step + channel)) ^ position) / 2^64, to the bits that fit a float64."""
    for key in (0, 1, -1, 2**62 + 17, -(2**63)):
        for step in (0, 1, 1000):
            for channel in (COMMIT, TOKEN):
                for position in (0, 1, 511):
                    bits = splitmix64(splitmix64((key % WORD) ^ (4 * step + channel)) ^ position)
                    found = uniforms(torch.tensor([key]), step, channel, torch.tensor([position]))
                    assert found.item() == pytest.approx(bits / WORD, abs=2.0**-50)


def test_golden_values() -> None:
    """Pinned: when these change, every recorded generation changes."""
    assert row_keys([[1, 2, 3], [], [1, 2, 3]], 0).tolist() == GOLDEN_KEYS
    keys = row_keys([[1, 2, 3]], 7).repeat(3)
    assert uniforms(keys, 5, COMMIT, torch.arange(3)).tolist() == pytest.approx(GOLDEN_COMMIT, abs=1e-12)
    assert uniforms(keys, 5, TOKEN, torch.arange(3)).tolist() == pytest.approx(GOLDEN_TOKEN, abs=1e-12)


def test_uniform_in_float64() -> None:
    u = many().flatten()
    assert u.dtype == torch.float64
    assert 0 < u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1
    n = len(u)
    assert abs(u.mean().item() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert abs(u.var().item() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    counts = torch.histc(u, bins=20, min=0, max=1).tolist()
    assert chi_square_p(counts, [n / 20] * 20) > 0.001
    # Finer than float32: hardly any of them survives the rounding.
    assert (u.float().double() == u).double().mean() < 1e-3


@pytest.mark.parametrize("axis", range(4), ids=["rows", "steps", "channels", "positions"])
def test_neighbours_are_uncorrelated(axis: int) -> None:
    """Along each argument: lag-1 correlation, and the pairs fill a 5 x 5 grid evenly."""
    u = many()
    length = u.shape[axis]
    first, second = u.narrow(axis, 0, length - 1).flatten(), u.narrow(axis, 1, length - 1).flatten()
    n = len(first)
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    assert abs(correlation) < 4 / n**0.5
    cells = torch.bincount((first * 5).long() * 5 + (second * 5).long(), minlength=25).tolist()
    assert chi_square_p(cells, [n / 25] * 25) > 0.001


@pytest.mark.parametrize("bits", [0, 1, WORD - 1, WORD - 2**11, WORD // 2 + 2**11])
def test_strictly_inside_the_unit_interval(bits: int) -> None:
    """Also where all 64 random bits are zeros, or ones: u = 1 would commit nothing and could draw a token of p = 0."""
    step, position = 3, 9
    key = unmix(unmix(bits) ^ position) ^ (4 * step + TOKEN)
    u = uniforms(torch.tensor([signed(key)]), step, TOKEN, torch.tensor([position]))
    assert 0.0 < u.item() < 1.0
    assert u.item() == pytest.approx(bits / WORD, abs=2.0**-50)


def test_no_generator_state_and_no_batch_mates() -> None:
    keys, positions = row_keys([[1], [2], [3]], 0).repeat_interleave(4), torch.arange(4).repeat(3)
    together = uniforms(keys, 2, COMMIT, positions)
    torch.manual_seed(99)
    shuffle = torch.randperm(12)
    assert torch.equal(uniforms(keys[shuffle], 2, COMMIT, positions[shuffle]), together[shuffle])
    for i in range(12):
        assert uniforms(keys[i : i + 1], 2, COMMIT, positions[i : i + 1]) == together[i]
    assert uniforms(keys[:0], 2, COMMIT, positions[:0]).shape == (0,)


def test_every_argument_matters() -> None:
    base = draw(5, 0, COMMIT, 100)
    others = [draw(6, 0, COMMIT, 100), draw(5, 1, COMMIT, 100), draw(5, 0, TOKEN, 100), base.roll(1)]
    assert all(not (base == other).any() for other in others)
    assert torch.equal(base, draw(5, 0, COMMIT, 100))


def test_row_keys() -> None:
    """A key follows the seed, the prompt and how many equal prompts came before; not the row's place."""
    keys = row_keys([[1, 2], [3], [1, 2], [1], [2], [1, 2]], 0)
    assert keys.dtype == torch.int64
    assert len(set(keys.tolist())) == 6
    assert row_keys([[3], [1, 2], [1, 2]], 0).tolist() == keys[[1, 0, 2]].tolist()
    assert row_keys([[1, 2]], 0).item() == keys[0]
    assert row_keys([(1, 2)], 0).item() == keys[0]
    assert row_keys([[1, 2]], 1).item() not in keys.tolist()
    # Digits that run together are other prompts: 1, 12 is not 11, 2; seed 1 with 0 is not seed 10.
    assert (
        len({row_keys([prompt], seed).item() for prompt, seed in [([1, 12], 0), ([11, 2], 0), ([0], 1), ([], 10)]}) == 4
    )
