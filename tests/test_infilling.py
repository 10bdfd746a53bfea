"""Gaps with context on all sides: what infill() keeps, fills, tells and refuses."""

from typing import Any

import pytest
import torch
from slow import PROMPTS, Task, network_of_model, shadow_of_model, slow_fill
from test_tokenizer import metaspace
from tiny import SHAPE, tiny_lm

from dlm.data.tokenizer import encode
from dlm.decoding.lm import DiffusionLM, Infilling, cut_at_eos
from dlm.decoding.noise import row_keys
from dlm.errors import UserError
from dlm.models.backbone import new_backbone

M = 1  # the mask's id
CANVASES = [
    [5, 9, M, M, M, 70, 31],
    [M, M, 100, 101, 102, M, M, M, M],
    [*range(200, 206), M, 7, M, M, M, 8, M, M],
    [M] * 4,
    [3, *[M] * 9],
    [*[M] * 5, 12, 13],
]
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("categorical", {}),
    ("top_k", {"top_k": 5}),
    ("low_confidence", {}),
    ("low_confidence", {"confidence": "margin", "temperature": 0.7}),
    ("threshold", {"threshold": 0.2}),
    ("factor", {"factor": 1.5}),
    ("entropy_bounded", {"gamma": 4.0}),
    ("frechet", {"margin": 0.0}),
    ("pc_sampler", {"decay": 0.1}),
    ("certainty_prior", {"sigma": 2.0}),
    ("prophet", {"early": 0.5, "middle": 0.4, "late": 0.3}),
    ("first_hitting", {}),
    ("tweedie", {"score_offset": 7.7}),
    ("remdm", {"top_k": 5, "schedule": "cap", "eta": 0.3}),
    ("remdm", {"top_k": 5, "schedule": "conf", "kernel_size": 5}),
    ("klass", {"threshold": 0.1, "kl_threshold": 2.0, "history": 1}),
    ("credit", {"threshold": 0.6, "strength": 4.0, "power": 0.2, "decay": 0.8, "kernel_size": 5}),
    ("wino", {"threshold": 0.1, "verify_threshold": 0.6, "max_share": 0.7, "max_per_step": 20}),
    ("p2", {"eta": 1.5, "temperature": 0.7}),
    ("conv", {"rule": "p2", "kernel_size": 5, "eta": 1.0, "temperature": 0.0}),
    ("repetition_penalty", {"top_k": 5, "penalty": 1.5}),
    ("conv", {"top_k": 5, "kernel_size": 5}),
    ("conv", {"rule": "low_confidence", "kernel_size": 3}),
    ("conv", {"top_k": 5, "kernel_size": 5, "cfg_scale": 1.0, "kernel": "exponential"}),
    ("conv", {"rule": "low_confidence", "kernel_size": 5, "eos": "last"}),
    ("conv", {"top_k": 5, "kernel_size": 3, "cfg_scale": 1.0, "eos": "never"}),
]
every_decoder = pytest.mark.parametrize(
    ("name", "options"), DECODERS, ids=["-".join([name, *map(str, options.values())]) for name, options in DECODERS]
)


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_lm(2)


def rows(out: Infilling) -> list[tuple]:
    return [
        (text, gaps, tokens.tolist(), nfe, left, stamps.tolist())
        for text, gaps, tokens, nfe, left, stamps in zip(
            out.texts, out.gaps, out.tokens, out.nfe.tolist(), out.leftover_masks.tolist(), out.commit_step, strict=True
        )
    ]


@every_decoder
def test_token_for_token(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """Six canvases in one batch against the slow decoder, which fills each alone; the context is guidance's context.

    A canvas of masks alone is left out: all its positions look the same but for rounding, so rankings are ties.
    """
    canvases = [canvas for canvas in CANVASES if set(canvas) != {M}]
    task = Task(name, options, max(map(len, canvases)), 6, 0, M)
    out = lm.infill(canvases, name, steps=6, seed=11, **options)
    network = network_of_model(lm.denoiser)
    for row, (canvas, key) in enumerate(zip(canvases, row_keys(canvases, 11), strict=True)):
        slow = slow_fill(network, canvas, 0, task, key, shadow_of_model(lm.denoiser))
        assert out.tokens[row].tolist() == slow.tokens
        assert out.commit_step[row].tolist() == slow.commit_step
        assert (out.leftover_masks[row], out.nfe[row]) == (slow.leftover, slow.nfe)


@every_decoder
def test_the_context_stays_and_the_gaps_are_filled(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    out = lm.infill(CANVASES, name, steps=4, **options)
    assert len(out.texts) == len(out.gaps) == len(out.tokens) == len(out.commit_step) == len(CANVASES)
    for canvas, tokens, stamps in zip(CANVASES, out.tokens, out.commit_step, strict=True):
        assert tokens.shape == stamps.shape == (len(canvas),)
        assert M not in tokens.tolist()
        for token, found, stamp in zip(canvas, tokens.tolist(), stamps.tolist(), strict=True):
            assert (found == token and stamp == -1) if token != M else 0 <= stamp <= 4


@every_decoder
def test_rows_do_not_see_each_other(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """Alone, together, in another order, in other batches: longer canvases beside it, other numbers of gaps."""
    setting = {"decoder": name, "steps": 6, "seed": 4, **options}
    canvases = [canvas for canvas in CANVASES if set(canvas) != {M}]
    together = rows(lm.infill(canvases, **setting))
    assert together == [rows(lm.infill([canvas], **setting))[0] for canvas in canvases]
    assert together[::-1] == rows(lm.infill(canvases[::-1], **setting))
    assert together == rows(lm.infill(canvases, **setting, batch_size=2))


def test_both_sides_matter(lm: DiffusionLM) -> None:
    """Another token at the right end of the canvas, other tokens in the gap."""
    outs = [lm.infill([[5, 9, M, M, M, 70, last]], "low_confidence").tokens[0][2:5].tolist() for last in range(2, 40)]
    assert len(set(map(tuple, outs))) > 5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("low_confidence", {}),
        ("low_confidence", {"confidence": "entropy"}),
        ("threshold", {"threshold": 0.2}),
        ("factor", {"factor": 1.5}),
        ("entropy_bounded", {"gamma": 4.0}),
        ("conv", {"rule": "low_confidence", "kernel_size": 5}),
        ("low_confidence", {"penalty": 1.5, "cfg_scale": 1.0}),
    ],
)
def test_masks_at_the_right_end_are_generation(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    """Greedy, so the noise (whose key is the canvas here and the prompt there) does not come in."""
    answer = lm.generate(PROMPTS, name, steps=5, gen_length=10, **options)
    for row, prompt in enumerate(PROMPTS):
        out = lm.infill([[*prompt, *[M] * 10]], name, steps=5, **options)
        assert cut_at_eos(out.tokens[0][None, len(prompt) :], 0)[0].tolist() == answer.tokens[row].tolist()
        assert out.commit_step[0][len(prompt) :].tolist() == answer.commit_step[row].tolist()
        assert (out.nfe[0], out.leftover_masks[0]) == (answer.nfe[row], answer.leftover_masks[row])


def test_conv_fills_a_gap_from_both_ends(lm: DiffusionLM) -> None:
    """Kernel 3, one token a step: every commit stands beside context or beside an earlier commit, and both ends go."""
    canvas = [5, 9, *[M] * 8, 70, 31]
    outs = [lm.infill([canvas], "conv", rule="first_hitting", kernel_size=3, seed=seed) for seed in range(5)]
    firsts = set()
    for out in outs:
        stamps = out.commit_step[0].tolist()
        assert out.leftover_masks.item() == 0 and sorted(stamps[2:10]) == list(range(8))
        for i in range(2, 10):
            assert stamps[i] > min(stamps[i - 1], stamps[i + 1])
        firsts.add(stamps.index(0))
    assert firsts == {2, 9}


# --- Texts ------------------------------------------------------------------------------------------------------------


def test_texts_and_ids_are_the_same_canvas(lm: DiffusionLM) -> None:
    """`[MASK]` is one token, `[MASK:3]` three; the text around is tokenized by itself."""

    def encode(text: str) -> list[int]:
        return lm.tokenizer.backend_tokenizer.encode(text).ids

    text = "The harbour[MASK:3] opens at[MASK] and the fog[MASK:2]"
    ids = [*encode("The harbour"), M, M, M, *encode(" opens at"), M, *encode(" and the fog"), M, M]
    one = rows(lm.infill(text, kernel_size=5))
    assert one == rows(lm.infill([text], kernel_size=5)) == rows(lm.infill([ids], kernel_size=5))
    assert one == rows(lm.infill([torch.tensor(ids)], kernel_size=5))


def test_the_texts(lm: DiffusionLM) -> None:
    """Context, gap, context, gap: the gaps' texts come from left to right, and the whole is context and gaps."""
    out = lm.infill(["The harbour[MASK:3] opens at[MASK] dawn", "[MASK:2]the fog"], "top_k", top_k=3, seed=3)
    assert [len(gaps) for gaps in out.gaps] == [2, 1]
    decode = lm.tokenizer.decode
    first = out.tokens[0].tolist()
    start = len(lm.tokenizer.backend_tokenizer.encode("The harbour").ids)
    assert out.gaps[0][0] == decode(first[start : start + 3], skip_special_tokens=True)
    assert out.texts[0].startswith("The harbour") and out.texts[0].endswith(" dawn") and " opens at" in out.texts[0]
    assert out.texts[1].endswith("the fog")
    assert out.texts == [decode(row.tolist(), skip_special_tokens=True) for row in out.tokens]
    joined = f"The harbour{out.gaps[0][0]} opens at{out.gaps[0][1]} dawn"
    # A gap's bytes may be a part of a character, which shows as a replacement in either text.
    assert "�" in joined or out.texts[0] == joined


def test_no_space_is_invented_behind_a_gap() -> None:
    """With tokenizers in SentencePiece's manner, which put one before every text. A gap's text has its own space."""
    tokenizer = metaspace("bpe")
    lm = DiffusionLM(new_backbone(SHAPE, tokenizer, 0, causal=False), tokenizer)
    text = "The harbour[MASK:2]s of[MASK:3] fog"
    (start,), (end,) = encode(tokenizer, ["The harbour"]), encode(tokenizer, ["fog"])
    middle = lm._canvas(text)[len(start) + 2 : -len(end) - 3]
    assert tokenizer.convert_ids_to_tokens(middle)[0] == "s" and tokenizer.decode(middle) == "s of"
    mask = tokenizer.mask_token_id
    assert lm._canvas(text) == [*start, mask, mask, *middle, mask, mask, mask, *end]
    out = lm.infill([text], steps=2)
    assert out.texts[0] == f"The harbour{out.gaps[0][0]}s of{out.gaps[0][1]} fog"
    assert out.texts == [tokenizer.decode(out.tokens[0].tolist(), skip_special_tokens=True)]


def test_a_gap_is_its_own_run_of_masks(lm: DiffusionLM) -> None:
    """Two gaps with nothing between are one; text that only looks like a gap is text."""
    assert [len(row) for row in lm.infill(["a[MASK:2][MASK:3]b"], steps=2).gaps] == [1]
    out = lm.infill(["[mask] [MASK:x] [MASK:2]"], steps=2)
    assert len(out.gaps[0]) == 1 and out.texts[0].startswith("[mask] [MASK:x] ")


def test_steps_are_the_fullest_canvas_s_masks(lm: DiffusionLM) -> None:
    """And so, greedy and without a threshold, every canvas takes one pass a token."""
    out = lm.infill([[5, M, M, 6], [5, M, M, M, M, M, 6]], "low_confidence")
    assert out.nfe.tolist() == [2, 5] and int(max(row.max() for row in out.commit_step)) == 4


# --- What is refused --------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "eos_fill": ([[5, M]], {"eos_fill": True}, ["conv.eos_fill", "false", "right"]),
    "blocks": ([[5, M]], {"decoder": "semi_ar"}, ["semi_ar.block_length", "null", "left to right"]),
    "a block": ([[5, M]], {"decoder": "top_k", "block_length": 1}, ["top_k.block_length", "null"]),
    "kept keys": (
        [[5, M]],
        {"decoder": "semi_ar", "variant": "restrict", "kv_cache": "dual"},
        ["semi_ar.block_length", "null"],
    ),
    "a sliding window": ([[5, M]], {"decoder": "sliding_annealing"}, ["sliding_annealing", "left to right"]),
    "no gap": ([[5, M], [5, 6]], {}, ["canvas 1", "[MASK:8]", "[5, 6]"]),
    "a text without a gap": ("The fog", {}, ["canvas 0", "[MASK:8]", "'The fog'"]),
    "an empty text": ("", {}, ["canvas 0", "''"]),
    "a gap of nothing": ("a [MASK:0] b[MASK]", {}, ["canvas 0: a gap", "at least one token", "[MASK:0]"]),
    "an endless gap": ("a [MASK:99999999999]", {}, ["canvas 0", "a gap of 99999999999 tokens", "64"]),
    "more digits than Python reads": ("a [MASK:" + "9" * 5000 + "]", {}, ["canvas 0", "a gap of 999", "64"]),
    "no canvas": ([], {}, ["pass at least one"]),
    "too long": (["a [MASK]", "a [MASK:40] b [MASK:40]"], {}, ["canvas 1 has", "exceeds the model's 64", "shorten it"]),
    "steps": ([[5, M]], {"steps": 0}, ["steps", "at least 1"]),
    "a large id": ([[300, M]], {}, ["canvas 0", "vocabulary"]),
    "ids without a list": ([5, M], {}, ["canvas 0", "list of token ids"]),
    "a mapping": ({"text": "[MASK]"}, {}, ["canvases must be a list", "got dict"]),
    "half a pair": (["[MASK]", "a\ud800[MASK]"], {}, ["canvas 1", "not valid Unicode", "character 1"]),
    "a truth value": ([[5, M]], {"seed": True}, ["seed must be a whole number", "True"]),
    "an unknown option": ([[5, M]], {"gen_length": 4}, ["conv.gen_length", "not a known key"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_that_names_it(lm: DiffusionLM, case: str) -> None:
    canvases, options, words = REFUSED[case]
    with pytest.raises(UserError) as caught:
        lm.infill(canvases, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
