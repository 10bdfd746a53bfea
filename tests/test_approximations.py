"""Masks left off the canvas and kept keys: what the model is shown, where they are exact, and how dropout drops."""

import math
from typing import Any

import pytest
import torch
from tiny import Recorder, TableDenoiser, tiny_model
from torch import Tensor

from dlm.decoding.decoder import make_decoder
from dlm.decoding.denoiser import Denoiser, KeysValues
from dlm.decoding.loop import Decoded, decode, fill
from dlm.decoding.noise import row_keys
from dlm.decoding.options import decoder_options

EOS, MASK = 0, 1
PROMPTS = [[5, 9, 70, 31], [100, 101], [*range(200, 209)]]


def run(
    denoiser: Denoiser, name: str, gen_length: int, steps: int, prompts: list[list[int]] = PROMPTS, **options: Any
) -> Decoded:
    return decode(
        denoiser,
        prompts,
        make_decoder(decoder_options(name, options, name)),
        gen_length=gen_length,
        steps=steps,
        keys=row_keys(prompts, 7),
        eos_id=EOS,
    )


def same(one: Decoded, other: Decoded) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.commit_step, other.commit_step)


# --- A subset of the canvas -------------------------------------------------------------------------------------------

SUBSETS = {
    "holes": [[0, 2, 3, 5, 8], [1, 4], [0, 1, 2, 3, 4, 5, 6, 7, 8]],
    "left padding": [[2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8], [6, 7, 8]],
    "right padding": [[0, 1, 2, 3], [0], [0, 1, 2, 3, 4, 5]],
    "as many everywhere": [[0, 1, 2], [3, 5, 8], [6, 7, 8]],
    "everything": [[*range(9)]] * 3,
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", SUBSETS)
@torch.inference_mode()
def test_what_is_invisible_does_not_exist(case: str, attention: str) -> None:
    """The states are those of the model on the visible tokens alone, one row, unpadded, with their own positions."""
    model = tiny_model(3)
    model.set_attn_implementation(attention)
    denoiser = Denoiser(model, MASK)
    canvas = torch.randint(2, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(3, 9).bool()
    for row, places in enumerate(SUBSETS[case]):
        kept[row, places] = True
    found = denoiser.hidden_of_kept(canvas, kept)
    for row, places in enumerate(SUBSETS[case]):
        alone = model.get_decoder()(
            input_ids=canvas[row : row + 1, places], position_ids=torch.tensor([places])
        ).last_hidden_state[0]
        torch.testing.assert_close(found[row, places], alone, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_positions_matter() -> None:
    """The check above would fail if the visible tokens were moved together: a gap is not no gap."""
    denoiser = Denoiser(tiny_model(3), MASK)
    canvas = torch.tensor([[5, 6, 7, 8, 9, 10]])
    holes = denoiser.hidden_of_kept(canvas, torch.tensor([[True, True, False, False, True, True]]))[:, [0, 1, 4, 5]]
    moved = denoiser.hidden_of_kept(canvas[:, [0, 1, 4, 5]], torch.ones(1, 4).bool())
    assert (holes - moved).abs().max() > 1e-2


# --- Suffix: none -----------------------------------------------------------------------------------------------------


def reached(canvas: list[int], reach: int) -> list[bool]:
    """Whether a token stands within reach."""
    return [
        any(0 <= j < len(canvas) and canvas[j] != MASK for j in range(i - reach, i + reach + 1))
        for i in range(len(canvas))
    ]


@pytest.mark.parametrize("rule", ["top_k", "low_confidence", "threshold", "remdm"])
def test_suffix_none_on_conv_shows_no_mask_that_cannot_commit(rule: str) -> None:
    """All tokens, and those masks whose window holds a token: no more, no less, at every step."""
    recorder = Recorder(TableDenoiser(7, MASK, seed=1))
    extra = {"schedule": "cap", "eta": 0.2} if rule == "remdm" else {}
    found = run(recorder, "conv", 12, 12, [[2, 3, 4]], rule=rule, kernel_size=5, suffix="none", **extra)
    assert not found.leftover_masks.any()
    for canvas, kept in zip(recorder.canvases, recorder.kept, strict=True):
        near = reached(canvas[0].tolist(), 2)
        assert kept[0].tolist() == [token != MASK or near[i] for i, token in enumerate(canvas[0].tolist())]
    assert not recorder.kept[0].all() and recorder.kept[-1].all()


def test_suffix_none_in_the_middle_of_a_text() -> None:
    """A gap between contexts: the masks near either side are shown, those in between are not."""
    recorder = Recorder(TableDenoiser(7, MASK, seed=1))
    canvas = [2, 3, *[MASK] * 9, 4]
    fill(
        recorder,
        [canvas],
        make_decoder(decoder_options("conv", {"kernel_size": 5, "suffix": "none"}, "conv")),
        gen_length=12,
        steps=9,
        keys=row_keys([canvas], 0),
        eos_id=EOS,
    )
    assert recorder.kept[0].tolist() == [[True] * 4 + [False] * 5 + [True] * 3]


@pytest.mark.parametrize("variant", ["none", "dropout"])
def test_blocks_hide_what_stands_behind_them(variant: str) -> None:
    """Suffix none: the prompt and the blocks up to the present one. Dropout: those, and some of the others."""
    recorder = Recorder(TableDenoiser(7, MASK, seed=1))
    options = {"rule": "first_hitting", "variant": "restrict", "block_length": 4, "suffix_window": 8}
    run(recorder, "semi_ar", 12, 12, [[2, 3, 4]], suffix=variant, **options)
    passes = [kept[0].tolist() for kept in recorder.kept]
    assert len(passes) == 12
    for step, kept in enumerate(passes):
        end = 3 + 4 * (step // 4 + 1)
        assert all(kept[:end])
        if variant == "none":
            assert not any(kept[end:])
        else:
            assert kept == passes[step // 4 * 4]  # drawn once a block
    if variant == "dropout":
        assert 0 < sum(passes[0][7:]) < 8


def test_sliding_hides_what_is_beyond_its_reach() -> None:
    recorder = Recorder(TableDenoiser(7, MASK, seed=1))
    run(recorder, "sliding_annealing", 12, 6, [[2, 3, 4]], reach=3, suffix="none")
    for step, kept in enumerate(recorder.kept):
        end = min(3 + 2 * (step + 1) + 3, 15)
        assert kept[0].tolist() == [True] * end + [False] * (15 - end)


@pytest.mark.parametrize("suffix", ["none", "dropout"])
def test_the_leftover_pass_sees_the_whole_canvas(suffix: str) -> None:
    recorder = Recorder(TableDenoiser(7, MASK, seed=1))
    prompts = [[2, 3, 4], [5]]
    found = run(recorder, "conv", 9, 2, prompts, rule="low_confidence", kernel_size=3, suffix=suffix, suffix_scale=0.1)
    assert (found.leftover_masks > 0).all() and found.nfe.tolist() == [3, 3]
    assert recorder.kept[-1].tolist() == [[True] * 12, [True] * 10 + [False] * 2]
    assert not recorder.kept[0].all()


@pytest.mark.parametrize("prompt", [[], [MASK, MASK]])
def test_without_context_the_first_step_sees_all_masks(prompt: list[int]) -> None:
    """Conv may begin anywhere, so that nothing is left out; then its window narrows. A mask id in a prompt is context:
    conv begins beside it."""
    recorder = Recorder(Denoiser(tiny_model(3), MASK))
    options = {"rule": "low_confidence", "kernel_size": 3, "suffix": "none"}
    out = run(recorder, "conv", 6, 6, [prompt], **options)
    assert out.leftover_masks.tolist() == [0] and (out.tokens != MASK).all()
    counts = [int(kept.sum()) for kept in recorder.kept]
    assert counts[0] == (3 if prompt else 6) and min(counts[1:]) < 6


# --- Suffix: dropout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv", {"kernel_size": 5, "rule": "threshold", "threshold": 0.2}),
        ("conv", {"kernel_size": 3, "top_k": 5, "cfg_scale": 0.5}),
        ("semi_ar", {"variant": "restrict", "block_length": 4}),
        ("sliding_annealing", {"reach": 1}),
    ],
)
def test_a_dropout_that_keeps_everything_is_no_dropout(name: str, options: dict[str, Any]) -> None:
    denoiser = Denoiser(tiny_model(3), MASK)
    full = run(denoiser, name, 12, 12, **options)
    wide = {"suffix": "dropout", "suffix_window": 10**6, "suffix_scale": 1e9}
    assert same(full, run(denoiser, name, 12, 12, **options, **wide))
    nothing = {"suffix": "dropout", "suffix_scale": 0.0}
    none = run(denoiser, name, 12, 12, **options, suffix="none")
    assert same(none, run(denoiser, name, 12, 12, **options, **nothing))
    assert not same(none, full)


def test_dropout_keeps_at_the_rate_of_the_density() -> None:
    """The j-th mask behind the block: a·φ(k·j/(W - 1)), at most 1; none from j = W on (DPad).

    1500 rows, within 4.5 standard deviations; a row's draws do not depend on another position's.
    """
    rows, scale, sigma, window = 1500, 2.0, 3.0, 12
    recorder = Recorder(TableDenoiser(5, MASK, seed=1))
    options = {"variant": "restrict", "block_length": 5, "suffix": "dropout"}
    shape = {"suffix_scale": scale, "suffix_sigma": sigma, "suffix_window": window}
    run(recorder, "semi_ar", 20, 4, [[2, 3]] * rows, **options, **shape)
    behind = recorder.kept[0][:, 7:]
    for j, share_kept in enumerate(behind.double().mean(0).tolist()):
        x = sigma * j / (window - 1)
        p = min(scale * math.exp(-x * x / 2) / math.sqrt(2 * math.pi), 1) if j < window else 0.0
        assert share_kept == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / rows) + 1e-12)
    near, far = behind[:, 1].double(), behind[:, 5].double()
    assert abs(torch.corrcoef(torch.stack([near, far]))[0, 1]) < 4.5 / math.sqrt(rows)
    # Other draws for the next block: the third one's masks have kept another pattern by then.
    assert (recorder.kept[1][:, 12:17] != recorder.kept[0][:, 7:12]).any()


def test_dropout_counts_from_the_nearest_open_mask_on_either_side() -> None:
    """A gap of 11, kernel 3: the ends are open. A window of 3 keeps 3 masks behind each, at a scale that keeps all."""
    recorder = Recorder(TableDenoiser(7, MASK, seed=1))
    canvas = [2, *[MASK] * 11, 3]
    options = {"kernel_size": 3, "suffix": "dropout", "suffix_window": 3, "suffix_scale": 1e9, "suffix_sigma": 1.0}
    fill(
        recorder,
        [canvas],
        make_decoder(decoder_options("conv", options, "conv")),
        gen_length=13,
        steps=11,
        keys=row_keys([canvas], 0),
        eos_id=EOS,
    )
    assert recorder.kept[0].tolist() == [[True] * 5 + [False] * 3 + [True] * 5]


# --- Kept keys and values ---------------------------------------------------------------------------------------------


class Spy(Denoiser):
    """Notes every whole pass (canvas, valid, states) and the number of positions that every other pass is asked for."""

    def __init__(self, layers: int, shift: int = 0) -> None:
        model = tiny_model(3, layers=layers)
        model.config.logits_shift = shift
        super().__init__(model, MASK)
        self.whole: list[tuple[Tensor, Tensor, Tensor]] = []
        self.partial: list[int] = []

    def hidden_with_keys(self, canvas: Tensor, not_padding: Tensor) -> tuple[Tensor, KeysValues]:
        hidden, keys = super().hidden_with_keys(canvas, not_padding)
        self.whole.append((canvas.clone(), not_padding.clone(), hidden.clone()))
        return hidden, keys

    def hidden_at(self, canvas: Tensor, positions: Tensor, keys: KeysValues, not_padding: Tensor) -> Tensor:
        self.partial.append(positions.shape[1])
        return super().hidden_at(canvas, positions, keys, not_padding)


KEPT = [
    ("low_confidence", {}),
    ("top_k", {"top_k": 5}),
    ("threshold", {"threshold": 0.3}),
    ("first_hitting", {}),
    ("remdm", {"top_k": 5, "schedule": "cap", "eta": 0.3}),
    ("low_confidence", {"kernel_size": 5, "penalty": 1.5}),
]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("kv_cache", ["prefix", "dual"])
@pytest.mark.parametrize(("rule", "options"), KEPT, ids=[rule + "-" * len(options) for rule, options in KEPT])
def test_kept_keys_are_exact_for_one_layer(rule: str, options: dict[str, Any], kv_cache: str, shift: int) -> None:
    """A first layer's keys and values depend on the token and its place alone, and only the block's tokens change.

    Shifted, the block's first token is predicted at the position before it, in the empty prompt's row at itself.
    """
    spy, prompts = Spy(1, shift), [*PROMPTS, []]
    blocks = {"rule": rule, "variant": "restrict", "block_length": 4, **options}
    found = run(spy, "semi_ar", 12, 12, prompts, **blocks, kv_cache=kv_cache)
    assert same(found, run(spy, "semi_ar", 12, 12, prompts, **blocks))
    assert len(spy.whole) >= 3 and len(spy.partial) >= 3
    assert set(spy.partial) == ({4} if kv_cache == "dual" else {12, 8, 4})


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("kv_cache", ["prefix", "dual"])
@torch.inference_mode()
def test_the_first_pass_of_a_block_is_a_full_pass(kv_cache: str, shift: int) -> None:
    """Three blocks, three whole passes; with two layers the others are approximations, and it shows."""
    spy = Spy(2, shift)
    blocks = {"rule": "low_confidence", "variant": "restrict", "block_length": 4}
    found = run(spy, "semi_ar", 12, 12, **blocks, kv_cache=kv_cache)
    assert len(spy.whole) == 3 and len(spy.partial) == 9
    for number, (canvas, not_padding, hidden) in enumerate(spy.whole):
        expected = spy.hidden(canvas, not_padding)
        torch.testing.assert_close(hidden[not_padding], expected[not_padding], atol=1e-5, rtol=1e-4)
        for row, prompt in enumerate(PROMPTS):
            response = canvas[row, len(prompt) : len(prompt) + 12].tolist()
            assert response == [*found.tokens[row, : 4 * number].tolist(), *[MASK] * (12 - 4 * number)]
    exact = run(spy, "semi_ar", 12, 12, **blocks)
    assert not same(found, exact)
    # A block's first commit comes of the whole pass.
    first = found.commit_step[:, :4] == 0
    assert torch.equal(first, exact.commit_step[:, :4] == 0)
    assert torch.equal(found.tokens[:, :4][first], exact.tokens[:, :4][first])


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_fresh_positions_against_fresh_keys_are_a_full_pass(attention: str, shift: int) -> None:
    """With nothing stale, the kept keys give what the whole canvas gives, padding and positions included."""
    model = tiny_model(3)
    model.config.logits_shift = shift
    model.set_attn_implementation(attention)
    denoiser = Denoiser(model, MASK)
    canvas = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    not_padding = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    whole, keys = denoiser.hidden_with_keys(canvas, not_padding)
    positions = torch.tensor([[3, 4, 5], [0, 1, 2]])
    found = denoiser.hidden_at(canvas, positions, keys, not_padding)
    torch.testing.assert_close(found, whole.gather(1, positions[..., None].expand_as(found)), atol=1e-5, rtol=1e-4)


def test_keys_of_rows_that_end_early() -> None:
    """With EOS-fill, rows drop out of later blocks; the keys of those that stay are found again."""
    denoiser = Denoiser(tiny_model(2, eos_scale=2.0, layers=1), MASK)
    prompts = [[5, 9, 70], [100], [*range(200, 212)], [31, 0, 32, 33], [7, 7], [90, 80], [3] * 20]
    blocks = {"rule": "top_k", "variant": "restrict", "block_length": 4, "eos_fill": True, "kv_cache": "prefix"}
    together = run(denoiser, "semi_ar", 12, 12, prompts, **blocks)
    assert (together.commit_step == -1).any() and (together.nfe.max() > together.nfe.min())
    plain = run(denoiser, "semi_ar", 12, 12, prompts, **{**blocks, "kv_cache": "none"})
    # `prefix` computes all that stands behind the block anew, so it stays exact for one layer.
    assert same(together, plain)
