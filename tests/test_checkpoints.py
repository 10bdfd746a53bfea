"""Published checkpoints: the logits of an independent forward pass, round trips, refusals."""

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from dlm.cli.main import main
from dlm.data.records import Record
from dlm.data.template import TEMPLATES
from dlm.data.tokenizer import encode, load_tokenizer
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint, save_checkpoint

Forward = Callable[[published.Weights, Tensor], Tensor]
KINDS: dict[str, tuple[Callable[..., published.Weights], Forward, str]] = {
    "llada": (published.llada, published.llada_logits, "LlamaForCausalLM"),
    "dream": (published.dream, published.dream_logits, "Qwen2ForCausalLM"),
    "mdlm": (published.mdlm, published.mdlm_logits, "MdlmForCausalLM"),
}
LAYOUT = "layout must be auto, causal_lm, masked_lm, llada, dream, mdlm, bd3lm, sdar, fast_dllm, got 'gpt'"
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return published.gpt2(tmp_path / "gpt2")


def load(kind: str, folder: Path, gpt2: Path, **options: Any) -> Any:
    return load_checkpoint(folder, causal=False, tokenizer=gpt2 if kind == "mdlm" else None, **options)


def logits(denoiser: Denoiser, canvas: Tensor, kept: Tensor | None) -> Tensor:
    with torch.inference_mode():
        whole = kept is None
        hidden = denoiser.hidden(canvas, None) if whole else denoiser.hidden_of_kept(canvas, kept)
        return denoiser.logits(hidden.flatten(0, 1)).view(*canvas.shape, -1)


def same(found: Tensor, expected: Tensor) -> None:
    """Float32 rounding: no logit is off by 1e-5 of the largest."""
    largest = expected[expected.isfinite()].abs().max().item()
    torch.testing.assert_close(found, expected, atol=1e-5 * largest, rtol=0)


@every_kind
def test_logits(kind: str, tmp_path: Path, gpt2: Path) -> None:
    """Alone, and as a short row padded on the right, on the left, and between."""
    write, forward, name = KINDS[kind]
    weights = write(tmp_path / "model", seed=3)
    model, tokenizer = load(kind, tmp_path / "model", gpt2)
    assert type(model).__name__ == name
    mask = tokenizer.mask_token_id
    assert (mask, tokenizer.eos_token_id) == ((299, 0) if kind == "mdlm" else (1, 0))
    denoiser = Denoiser(model, mask)
    ids = torch.randint(2, 290, (2, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 5:8] = mask
    expected = forward(weights, ids)
    expected[..., mask] = -torch.inf
    assert expected[..., :mask].std() > 0.5
    same(logits(denoiser, ids, None), expected)
    kept = torch.ones(2, 12, dtype=torch.bool)
    kept[1, 9:] = False
    short = forward(weights, ids[1:, :9])[0]
    short[:, mask] = -torch.inf
    same(logits(denoiser, ids, kept)[1, :9], short)
    # Rotary positions count differences: three places to the right it is the same text.
    left = torch.cat([ids[1:, 9:], ids[1:, :9]], dim=1)
    same(logits(denoiser, left, kept[1:].flip(1))[0, 3:], short)


@every_kind
def test_every_weight_matters(kind: str, tmp_path: Path, gpt2: Path) -> None:
    """A change of any published tensor changes the converted model: none is dropped, none is read twice."""
    write, _, _ = KINDS[kind]
    weights = write(tmp_path / "model", seed=3)
    before = load(kind, tmp_path / "model", gpt2)[0].state_dict()
    config = {"llada": published.LLADA, "dream": published.DREAM, "mdlm": published.MDLM}[kind]
    for name, value in weights.items():
        changed = {**weights, name: value + 1}
        folder = tmp_path / "changed"
        shutil.copytree(tmp_path / "model", folder)
        for file in folder.glob("model*"):
            file.unlink()
        published.write_checkpoint(folder, config, changed, value.dtype)
        after = load(kind, folder, gpt2)[0].state_dict()
        shutil.rmtree(folder)
        assert any(not torch.equal(after[key], before[key]) for key in before), name


@every_kind
def test_round_trip(kind: str, tmp_path: Path, gpt2: Path) -> None:
    """`dlm convert` writes what loads again with the same logits, with plain transformers where the class is theirs."""
    write, _, name = KINDS[kind]
    write(tmp_path / "model", seed=5)
    out = tmp_path / "converted"
    arguments = ["convert", str(tmp_path / "model"), str(out), "--template", "alpaca"]
    main([*arguments, *(["--tokenizer", str(gpt2)] if kind == "mdlm" else [])])
    first, second = load(kind, tmp_path / "model", gpt2, dtype="auto"), load_checkpoint(out, causal=False, dtype="auto")
    assert first[0].dtype == second[0].dtype == (torch.float32 if kind == "mdlm" else torch.bfloat16)
    assert first[1].get_vocab() == second[1].get_vocab() and second[1].mask_token_id == first[1].mask_token_id
    states = first[0].state_dict(), second[0].state_dict()
    assert states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )
    if kind != "mdlm":
        plain: Any = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        ids = torch.randint(2, 290, (1, 9))
        with torch.inference_mode():
            assert type(plain).__name__ == name and torch.equal(plain(ids).logits, second[0](ids).logits)
    lm = DiffusionLM.load(out)
    assert lm.template == TEMPLATES["alpaca"]
    answer = lm.generate([lm.prompt("Sing")], "conv", steps=4, gen_length=8, kernel_size=5)
    assert answer.tokens.shape == (1, 8) and (answer.tokens != lm.denoiser.mask_id).all()


@every_kind
def test_weights_that_do_not_match(kind: str, tmp_path: Path, gpt2: Path) -> None:
    """Which ones, both ways: one line."""
    write, _, _ = KINDS[kind]
    weights = dict(write(tmp_path / "model"))
    lost = next(name for name in weights if "mlp.0.bias" in name or "ff_proj" in name or "gate_proj" in name)
    weights["model.surplus.weight"] = weights.pop(lost).clone()
    for file in (tmp_path / "model").glob("model*"):
        file.unlink()
    config = {"llada": published.LLADA, "dream": published.DREAM, "mdlm": published.MDLM}[kind]
    published.write_checkpoint(tmp_path / "model", config, weights)
    with pytest.raises(UserError) as error:
        load(kind, tmp_path / "model", gpt2)
    told = str(error.value)
    assert "\n" not in told and str(tmp_path / "model") in told
    assert ("missing keys" in told and "surplus" in told) or "mlp.0.bias" in told


def test_mdlm_has_nothing_left_over(tmp_path: Path, gpt2: Path) -> None:
    """But the rotary frequencies, which its network saves."""
    weights = published.mdlm(tmp_path / "model")
    rotary = {"backbone.rotary_emb.inv_freq": 1 / 10000 ** (torch.arange(0, 8, 2) / 8)}
    published.write_checkpoint(tmp_path / "model", published.MDLM, weights | rotary)
    load("mdlm", tmp_path / "model", gpt2)
    published.write_checkpoint(tmp_path / "model", published.MDLM, weights | {"backbone.surplus": torch.ones(2)})
    with pytest.raises(UserError, match=r"weights and config.json differ, unexpected keys: backbone.surplus"):
        load("mdlm", tmp_path / "model", gpt2)


@every_kind
@torch.no_grad()
def test_shards_and_types(kind: str, tmp_path: Path, gpt2: Path) -> None:
    """Any layout in shards or in one file, in bfloat16 or float32."""
    write, forward, _ = KINDS[kind]
    config = {"llada": published.LLADA, "dream": published.DREAM, "mdlm": published.MDLM}[kind]
    weights = write(tmp_path / "model", seed=3)
    ids = torch.randint(2, 290, (1, 12), generator=torch.Generator().manual_seed(1))
    for dtype, shards in ((torch.bfloat16, 3), (torch.float32, 1)):
        for file in (tmp_path / "model").glob("model*"):
            file.unlink()
        written = published.write_checkpoint(tmp_path / "model", config, weights, dtype, shards)
        model, _ = load(kind, tmp_path / "model", gpt2)
        assert load(kind, tmp_path / "model", gpt2, dtype="auto")[0].dtype == dtype
        found = Denoiser(model, 1).logits(Denoiser(model, 1).hidden(ids, None)[0])
        expected = forward(written, ids)[0]
        expected[:, 1] = -torch.inf
        same(found, expected)


@torch.no_grad()
def test_tied_heads(tmp_path: Path) -> None:
    """LLaDA's weight_tying, Dream's tie_word_embeddings: no head in the file."""
    ids = torch.randint(2, 290, (1, 12), generator=torch.Generator().manual_seed(1))
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("llada", {**published.LLADA, "weight_tying": True}, "model.transformer.ff_out.weight", "wte.weight"),
        ("dream", {**published.DREAM, "tie_word_embeddings": True}, "lm_head.weight", "embed_tokens.weight"),
    ]
    for kind, config, head, embeddings in cases:
        write, forward, _ = KINDS[kind]
        weights = dict(write(tmp_path / kind, seed=3))
        for file in (tmp_path / kind).glob("model*"):
            file.unlink()
        del weights[head]
        written = published.write_checkpoint(tmp_path / kind, config, weights, torch.float32, 2)
        model, _ = load_checkpoint(tmp_path / kind, causal=False)
        tied = next(value for name, value in written.items() if name.endswith(embeddings))
        expected = forward({**written, head: tied}, ids)[0]
        expected[:, 1] = -torch.inf
        same(Denoiser(model, 1).logits(Denoiser(model, 1).hidden(ids, None)[0]), expected)


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("llada", {"scale_logits": True}, "scale_logits must be False for a LLaDA read as a Llama, got True"),
        ("llada", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling must be None for a LLaDA"),
        ("llada", {"input_emb_norm": True}, "input_emb_norm must be False for a LLaDA"),
        ("llada", {"residual_dropout": 0.1}, "residual_dropout must be 0.0 for a LLaDA"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window must be False for a Dream read as a Qwen2"),
        ("dream", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type dynamic makes a row depend on its"),
        ("mdlm", {"time_conditioning": True}, "time_conditioning must be False for an MDLM run without time"),
    ],
)
def test_what_a_configuration_may_not_say(
    kind: str, change: dict[str, Any], told: str, tmp_path: Path, gpt2: Path
) -> None:
    """Each changes the network, and would be ignored."""
    KINDS[kind][0](tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=f"config.json: {told}"):
        load(kind, tmp_path / "model", gpt2)


@torch.no_grad()
def test_dreams_rope_scaling(tmp_path: Path) -> None:
    """Linear: positions divided by the factor. Yarn: as plain Qwen2 has it."""
    weights = published.dream(tmp_path / "model", seed=3)
    file = tmp_path / "model/config.json"
    config = json.loads(file.read_text())
    ids = torch.randint(2, 290, (1, 12), generator=torch.Generator().manual_seed(1))
    found = {}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    for scaling in (None, {"type": "linear", "factor": 4.0}, yarn):
        file.write_text(json.dumps({**config, "rope_scaling": scaling}))
        model, _ = load_checkpoint(tmp_path / "model", causal=False)
        found["none" if scaling is None else str(scaling["type"])] = model.get_decoder()(ids).last_hidden_state
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1000000.0}
    plain: Any = type(model)(model.config).eval()
    plain.load_state_dict(model.state_dict())
    scaled = plain.get_decoder()(ids, position_ids=torch.arange(12)[None] / 4).last_hidden_state
    torch.testing.assert_close(found["linear"], scaled, atol=1e-4, rtol=1e-4)
    rope = {**yarn, "rope_type": "yarn", "rope_theta": 1000000.0}
    rope.pop("type")
    model.config.rope_parameters = rope
    plain = type(model)(model.config).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(found["yarn"], plain.get_decoder()(ids).last_hidden_state)
    assert weights and (found["yarn"] - found["none"]).abs().max() > 1e-2


@torch.no_grad()
def test_mdlms_dropout(tmp_path: Path, gpt2: Path) -> None:
    """Of its blocks' two branches and of nothing else, in training alone; it goes with a converted folder."""
    published.mdlm(tmp_path / "model")
    arguments = ["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--tokenizer", str(gpt2)]
    main(arguments)
    ids = torch.randint(2, 290, (1, 12))
    for model in (load("mdlm", tmp_path / "model", gpt2)[0], load_checkpoint(tmp_path / "out", causal=False)[0]):
        shares = {name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)}
        assert {name.rpartition(".")[2] for name, share in shares.items() if share == 0.1} == {
            "post_attention_dropout",
            "post_mlp_dropout",
        }
        assert set(shares.values()) == {0.0, 0.1} and model.config.attention_dropout == 0.0
        forward: Any = model
        assert torch.equal(forward(ids).logits, forward(ids).logits)
        forward.train()
        assert not torch.equal(forward(ids).logits, forward(ids).logits)


def test_a_layout_that_is_another(tmp_path: Path) -> None:
    published.dream(tmp_path / "model")
    with pytest.raises(UserError, match=r"has no .d_model., which layout llada needs"):
        load_checkpoint(tmp_path / "model", causal=False, layout="llada")
    with pytest.raises(UserError, match=LAYOUT):
        load_checkpoint(tmp_path / "model", causal=False, layout="gpt")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**published.LLADA, **config, "alibi": True}))
    with pytest.raises(UserError, match=r"config.json: alibi must be False for a LLaDA read as a Llama, got True"):
        load_checkpoint(tmp_path / "model", causal=False, layout="llada")


def test_a_model_of_sedd(tmp_path: Path) -> None:
    """Their config.json has these keys and no model_type; the network reads the noise level."""
    config = {"tokens": 50257, "graph": {"type": "absorb"}, "noise": {"type": "loglinear"}, "model": {"n_blocks": 12}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"a model of SEDD, whose network sees the noise level.*\(docs/sedd.md\)$"):
        load_checkpoint(tmp_path, causal=False)


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    """The remedy is a layout of ours; a newer transformers may not know it either."""
    published.llada(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "frobnicate"}))
    with pytest.raises(
        UserError, match=r"model_type 'frobnicate' is no architecture of transformers.*--layout$"
    ) as caught:
        load_checkpoint(tmp_path, causal=False)
    assert "pip" not in str(caught.value) and "\n" not in str(caught.value)
    load_checkpoint(tmp_path, causal=False, layout="llada")


def test_an_autoregressive_model_as_a_denoiser(tmp_path: Path) -> None:
    """Only where the layout says so."""
    from tiny import tiny_model

    model = tiny_model(1, causal=True)
    del model.config.is_causal
    save_checkpoint(tmp_path / "model", model, tiny_tokenizer())
    with pytest.raises(UserError, match="a masked diffusion model"):
        load_checkpoint(tmp_path / "model", causal=False)
    found, _ = load_checkpoint(tmp_path / "model", causal=False, layout="causal_lm")
    expected = tiny_model(1, causal=True)
    expected.config.is_causal = False
    ids = torch.randint(2, 290, (1, 9))
    denoisers = Denoiser(found, 1), Denoiser(expected, 1)
    assert torch.equal(logits(denoisers[0], ids, None), logits(denoisers[1], ids, None))


def test_an_autoregressive_model_without_a_mask(tmp_path: Path) -> None:
    """GPT-2 has no entry for a mask: as a scorer it needs none."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=299, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "model")
    published.gpt2(tmp_path / "model")
    model, tokenizer = load_checkpoint(tmp_path / "model", causal=True)
    assert model.config.vocab_size == 299 and tokenizer.eos_token_id == 0
    with pytest.raises(UserError, match="a masked diffusion model"):
        load_checkpoint(tmp_path / "model", causal=False)


@pytest.mark.parametrize("kv_cache", ["prefix", "dual"])
def test_dream_keeps_keys_too(tmp_path: Path, kv_cache: str) -> None:
    """A step a block: every pass is a block's first, so that nothing is kept and the tokens are the exact decoder's."""
    published.dream(tmp_path / "model")
    lm = DiffusionLM.load(tmp_path / "model")
    given = {"gen_length": 8, "block_length": 4, "variant": "restrict", "rule": "low_confidence"}
    exact, once = (
        lm.generate([[5], [6, 7]], "semi_ar", steps=2, **given, **more) for more in ({}, {"kv_cache": kv_cache})
    )
    assert torch.equal(exact.tokens, once.tokens)
    assert lm.generate([[5], [6, 7]], "semi_ar", steps=8, kv_cache=kv_cache, **given).tokens.shape == (2, 8)


def test_llada_template(tmp_path: Path) -> None:
    """The literal prompt; its special tokens are ids, those that the user writes are text."""
    published.llada(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    rude = "Sing <|eot_id|>!"
    expected = (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n"
        "Sing <|eot_id|>!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert TEMPLATES["llada"].render(Record(rude, "", "")) == expected
    ids = TEMPLATES["llada"].encode(tokenizer, [Record(rude, "", "")])[0]
    start, header, end, turn = (tokenizer.convert_tokens_to_ids(token) for token in published.LLADA_TOKENS[2:])
    assert [i for i in ids if i < 6] == [start, header, end, turn, header, end]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == expected


def test_threads_share_a_tokenizer(tmp_path: Path) -> None:
    """A template's special tokens are ids and a text's are text, whoever else reads at the moment."""
    published.llada(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    record = Record("Sing <|eot_id|>!", "", "")
    expected = TEMPLATES["llada"].encode(tokenizer, [record])[0], encode(tokenizer, [record.instruction])[0]

    def read(n: int) -> list[int]:
        whole = (
            TEMPLATES["llada"].encode(tokenizer, [record]) if n % 2 == 0 else encode(tokenizer, [record.instruction])
        )
        return whole[0]

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(read, range(2000)))
    finally:
        sys.setswitchinterval(usual)
    assert all(ids == expected[n % 2] for n, ids in enumerate(found))


def test_dream_template(tmp_path: Path) -> None:
    published.dream(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    record = Record("Sing", "a song", "")
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nSing\n\na song<|im_end|>\n<|im_start|>assistant\n"
    )
    assert TEMPLATES["dream"].render(record) == expected
    ids = TEMPLATES["dream"].encode(tokenizer, [record])[0]
    begin, end = (tokenizer.convert_tokens_to_ids(token) for token in published.DREAM_TOKENS[2:])
    assert [i for i in ids if i in (begin, end)] == [begin, end, begin, end, begin]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == expected


def test_alpaca_template_is_the_shipped_one() -> None:
    from dlm.config.params import load_params

    shipped = load_params(Path(__file__).parents[1] / "params.yaml").template
    assert TEMPLATES["alpaca"] == type(TEMPLATES["alpaca"])(shipped.prompt, shipped.prompt_with_input)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--template", "chatml"], "--template must be one of alpaca, llada, dream, got 'chatml'"),
        (["--layout", "gpt"], LAYOUT),
    ],
)
def test_convert_refuses(arguments: list[str], told: str, tmp_path: Path) -> None:
    published.llada(tmp_path / "model")
    with pytest.raises(UserError, match="^" + told.replace("'", ".")):
        main(["convert", str(tmp_path / "model"), str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_convert_overwrites_nothing(tmp_path: Path) -> None:
    published.llada(tmp_path / "model")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already"):
        main(["convert", str(tmp_path / "model"), str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []
