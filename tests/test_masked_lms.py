"""Classes of transformers as denoisers: where their positions start and end, what padding and gaps do to them, whether
they see ahead; every layout from several threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import published
import pytest
import torch
import transformers
from safetensors.torch import save_file
from test_adapt import plain_tokenizer
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.cli.main import main
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint, save_checkpoint

PLACES = 66  # of RoBERTa, two of them before the first: 64 are left
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ROBERTA = {**SHAPE, "max_position_embeddings": PLACES, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
# A name, the changes to SHAPE.
KINDS: dict[str, dict[str, Any]] = {
    "Bert": SHAPE,
    "DistilBert": {
        **{"vocab_size": 300, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
        **{"max_position_embeddings": 64, "pad_token_id": 0},
    },
    "ModernBert": {
        **SHAPE,
        **{"num_hidden_layers": 3, "local_attention": 8},
        **{"cls_token_id": 0, "sep_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
    },
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA,
    "Camembert": ROBERTA,
    "MPNet": ROBERTA,
    "Esm": {**ROBERTA, "position_embedding_type": "absolute", "mask_token_id": 3},
    "Longformer": {**ROBERTA, "attention_window": 4},
    "DebertaV2": {
        **SHAPE,
        **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4},
        **{"max_relative_positions": 64, "position_biased_input": False, "norm_rel_ebd": "layer_norm"},
    },
    "RoFormer": {**SHAPE, "embedding_size": 32},
    "FNet": SHAPE,
    "ConvBert": {**SHAPE, "embedding_size": 32, "head_ratio": 1},
}
STARTS_LATER = ["Roberta", "XLMRoberta", "Camembert", "MPNet", "Esm", "Longformer"]
BY_BATCH = ["FNet", "ConvBert"]


def scaled(model: Any) -> Any:
    """Scaled up, so that the context matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter.any():
                parameter.mul_(0.3 / parameter.std())
    return model.eval()


def write(kind: str, folder: Path) -> PreTrainedModel:
    """Special tokens in RoBERTa's places; a separator instead of an end of text, whose id is that of the padding."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind])
    model: PreTrainedModel = scaled(getattr(transformers, f"{kind}ForMaskedLM")(config))
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=published.bpe(["<s>", "[SEP]", "</s>", "[MASK]"]), sep_token="[SEP]", mask_token="[MASK]"
    )
    tokenizer.save_pretrained(folder)
    return model


def canvas(*lengths: int) -> list[Tensor]:
    """Rows of text with a few masks in them."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, 300, (length,), generator=generator) for length in lengths]
    for row in rows:
        row[2::3] = 3
    return rows


def expected_logits(model: Any, row: Tensor) -> Tensor:
    """The class's own, of a row by itself, no mask among its tokens; position ids start where the class starts."""
    with torch.no_grad():
        logits: Tensor = model(row[None]).logits[0]
    logits[:, 3] = -torch.inf
    return logits


def found_logits(denoiser: Denoiser, hidden: Tensor) -> Tensor:
    with torch.inference_mode():
        return denoiser.logits(hidden)


def same(found: Tensor, expected: Tensor) -> None:
    largest = expected[expected.isfinite()].abs().max().item()
    torch.testing.assert_close(found, expected, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_classes_own(kind: str, tmp_path: Path) -> None:
    """Alone, and beside rows of other lengths."""
    model = write(kind, tmp_path / "model")
    loaded, tokenizer = load_checkpoint(tmp_path / "model", causal=False)
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (1, 3)
    denoiser = Denoiser(loaded, 3)
    rows = canvas(12, 9, 12, 5)
    tokens, shown = torch.ones(4, 12, dtype=torch.long), torch.zeros(4, 12, dtype=torch.bool)
    for n, row in enumerate(rows):
        tokens[n, : len(row)], shown[n, : len(row)] = row, True
    with torch.inference_mode():
        hidden, whole = denoiser.hidden(tokens, shown), denoiser.hidden(tokens[:1], None)
    same(found_logits(denoiser, whole[0]), expected_logits(model, rows[0]))
    for n, row in enumerate(rows):
        same(found_logits(denoiser, hidden[n, : len(row)]), expected_logits(model, row))


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_canvas(kind: str, tmp_path: Path) -> None:
    """As many places as there are, none more; an end of text among them, whatever its id."""
    write(kind, tmp_path / "model")
    lm = DiffusionLM.load(tmp_path / "model")
    assert lm.denoiser.max_length == 64
    for decoder in ("top_k", "conv"):
        out = lm.generate([[5] * 40, [9, 1, 1, 7]], decoder, steps=4, gen_length=24)
        assert out.tokens.shape == (2, 24) and (out.tokens != 3).all()
    with pytest.raises(UserError, match="exceeds the model's 64 positions"):
        lm.generate([[5] * 41], "top_k", steps=4, gen_length=24)


@pytest.mark.parametrize("kind", STARTS_LATER)
@torch.no_grad()
def test_places_are_counted_whatever_stands_there(kind: str, tmp_path: Path) -> None:
    """The padding's id is that of an end of text here; it is content, and moves nothing behind it."""
    model: Any = write(kind, tmp_path / "model")
    denoiser = Denoiser(load_checkpoint(tmp_path / "model", causal=False)[0], 3)
    [row] = canvas(12)
    row[4:6] = 1
    positions = torch.arange(2, 14)[None]
    expected = model.base_model(row[None], position_ids=positions).last_hidden_state
    torch.testing.assert_close(denoiser.hidden(row[None], None), expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in BY_BATCH])
def test_what_is_left_out_is_as_if_it_were_not_shown(kind: str, tmp_path: Path) -> None:
    """Gaps wider than windows and buckets; rows of different lengths."""
    model: Any = write(kind, tmp_path / "model")
    denoiser = Denoiser(load_checkpoint(tmp_path / "model", causal=False)[0], 3)
    tokens = torch.stack(canvas(40, 40))
    kept = torch.ones(2, 40, dtype=torch.bool)
    kept[0, 10:30], kept[1, 3:20], kept[1, 36:] = False, False, False
    start = 2 if kind in STARTS_LATER else 0
    places = {"position_ids": start + torch.arange(40).expand(2, 40)} if start else {}
    with torch.no_grad():
        expected = model.base_model(tokens, attention_mask=kept.long(), **places).last_hidden_state
        found = denoiser.hidden_of_kept(tokens, kept)
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", BY_BATCH)
def test_what_cannot_be_left_out(kind: str, tmp_path: Path) -> None:
    """They mix a place with its neighbours whether these are shown or not. A row's answer is still its own."""
    write(kind, tmp_path / "model")
    lm = DiffusionLM.load(tmp_path / "model")
    prompts = [[5, 6, 7], [9], [11, 12]]
    together = lm.generate(prompts, "top_k", steps=4, gen_length=8)
    alone = [lm.generate([prompt], "top_k", steps=4, gen_length=8).tokens[0] for prompt in prompts]
    assert torch.equal(together.tokens, torch.stack(alone))
    with pytest.raises(UserError, match=rf"^suffix must be full for {kind}ForMaskedLM: "):
        lm.generate(prompts, "semi_ar", steps=4, gen_length=8, block_length=4, variant="restrict", suffix="none")


def test_heads_for_other_tasks(tmp_path: Path) -> None:
    """BERT is published with a head for pairs of sentences and a pooler, RoBERTa with a pooler."""
    own: Any = write("Bert", tmp_path / "model")
    whole: Any = transformers.BertForPreTraining(own.config)
    whole.load_state_dict(own.state_dict(), strict=False)
    whole.config.architectures = ["BertForMaskedLM"]
    weights = {**whole.state_dict(), "bert.embeddings.position_ids": torch.arange(64)[None]}
    weights = {name: value.clone() for name, value in weights.items()}
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    model: Any = load_checkpoint(tmp_path / "model", causal=False)[0]
    with torch.no_grad():
        assert torch.equal(model(torch.arange(9)[None]).logits, own(torch.arange(9)[None]).logits)
    save_file({**weights, "bert.surplus": torch.ones(1)}, tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"unexpected keys: bert.surplus; mend either"):
        load_checkpoint(tmp_path / "model", causal=False)


def test_a_tokenizer_written_in_python(tmp_path: Path) -> None:
    write("Esm", tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["<cls>", "<pad>", "<eos>", "<mask>", "<unk>", *"LAGVSERTIDPKQNFYMHWC"])
    )
    transformers.EsmTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    with pytest.raises(
        UserError, match="model: EsmTokenizer is written in Python; only those of tokenizers can be used"
    ):
        DiffusionLM.load(tmp_path / "model")


def test_masked_lms_have_no_shadow(tmp_path: Path) -> None:
    """Their positions cannot each see others; the other rule that takes tokens back goes with all."""
    write("Bert", tmp_path / "model")
    lm = DiffusionLM.load(tmp_path / "model")
    with pytest.raises(UserError, match="wino goes with Llama-like") as caught:
        lm.generate([[5]], "wino", steps=4, gen_length=8)
    assert "\n" not in str(caught.value)
    assert lm.generate([[5]], "p2", steps=4, gen_length=8).tokens.shape == (1, 8)


def test_masked_lms_have_no_kv_cache(tmp_path: Path) -> None:
    write("Bert", tmp_path / "model")
    with pytest.raises(UserError, match="kv_cache goes with Llama-like"):
        DiffusionLM.load(tmp_path / "model").generate(
            [[5]], "semi_ar", steps=4, gen_length=8, block_length=4, variant="restrict", kv_cache="dual"
        )


# Decoder-only classes

SMALL = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "eos_token_id": 0}
LLAMA_LIKE = {**SMALL, "num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 64}
DECODERS: dict[str, dict[str, Any]] = {
    "GPTNeo": {**SMALL, "num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "Mamba": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": 0},
    "Rwkv": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": 0},
    "StableLm": {**LLAMA_LIKE, "num_key_value_heads": 4},
    "Mpt": {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "Bloom": {**SMALL, "n_layer": 2, "n_head": 4},
    "Mistral": {**LLAMA_LIKE, "num_key_value_heads": 2, "sliding_window": 8},
    "OPT": {**LLAMA_LIKE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Qwen2": {**LLAMA_LIKE, "num_key_value_heads": 2},
}


def decoder(kind: str, folder: Path) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**DECODERS[kind])
    model = scaled(getattr(transformers, f"{kind}ForCausalLM")(config))
    tokenizer = plain_tokenizer()
    tokenizer.mask_token = "<|reserved|>"
    save_checkpoint(folder, model, tokenizer)
    return model


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("GPTNeo", "its first position does not see the second;"),
        ("Mamba", "its first position does not see the second;"),
        ("Rwkv", "its first position does not see the second;"),
        ("StableLm", "its first position does not see the second where there is no padding;"),
        ("Mpt", r"cannot be run \(AttributeError: "),
    ],
)
def test_a_class_that_keeps_its_causal_mask(kind: str, told: str, tmp_path: Path) -> None:
    """Its configuration may say otherwise; it would write from left to right and say nothing."""
    model = decoder(kind, tmp_path / "model")
    told = f"^{kind}ForCausalLM: {told}.* is no denoiser, name another$"
    with pytest.raises(UserError, match=told):
        load_checkpoint(tmp_path / "model", causal=False, layout="causal_lm")
    model.config.is_causal = False
    save_checkpoint(tmp_path / "said", model, load_checkpoint(tmp_path / "model", causal=True)[1])
    with pytest.raises(UserError, match=told):
        DiffusionLM.load(tmp_path / "said")


def test_conversion_of_a_class_that_is_causal_without_padding(tmp_path: Path) -> None:
    decoder("StableLm", tmp_path / "model")
    with pytest.raises(UserError, match="does not see the second where there is no padding; it cannot be adapted"):
        main(["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--layout", "causal_lm"])
    assert not (tmp_path / "out").exists()


SUFFIX: dict[str, Any] = {"steps": 8, "gen_length": 40, "block_length": 10, "variant": "restrict"}


@pytest.mark.parametrize("kind", ["Mistral", "OPT", "Qwen2"])
@torch.no_grad()
def test_gaps_in_a_decoder_only_class(kind: str, tmp_path: Path) -> None:
    """A window goes by the order of what is shown, and OPT counts what is shown unless it is told the places."""
    model = decoder(kind, tmp_path / "model")
    lm = DiffusionLM.load(tmp_path / "model", layout="causal_lm")
    model.config.is_causal = False
    tokens, kept = torch.stack(canvas(40, 40)), torch.ones(2, 40, dtype=torch.bool)
    kept[0, 10:30], kept[1, 3:20], kept[1, 36:] = False, False, False
    places = torch.arange(40).expand(2, 40)
    expected = model.get_decoder()(tokens, attention_mask=kept.long(), position_ids=places).last_hidden_state
    torch.testing.assert_close(lm.denoiser.hidden_of_kept(tokens, kept)[kept], expected[kept])
    if kind == "Mistral":
        with pytest.raises(UserError, match="kv_cache goes with Llama-like"):
            lm.generate([[5]], "semi_ar", kv_cache="dual", **SUFFIX)
    else:
        assert lm.generate([[5]], "semi_ar", kv_cache="dual", **SUFFIX).tokens.shape == (1, 40)


def test_a_class_without_position_ids(tmp_path: Path) -> None:
    """Bloom has no limit, and counts what it is shown: right beside padding, wrong with gaps."""
    decoder("Bloom", tmp_path / "model")
    lm = DiffusionLM.load(tmp_path / "model", layout="causal_lm")
    assert lm.denoiser.max_length is None
    prompts = [[5, 6, 7], [9]]
    together = lm.generate(prompts, "semi_ar", **SUFFIX)
    alone = [lm.generate([prompt], "semi_ar", **SUFFIX).tokens[0] for prompt in prompts]
    assert torch.equal(together.tokens, torch.stack(alone))
    with pytest.raises(UserError, match=r"^suffix must be full for BloomForCausalLM: "):
        lm.generate(prompts, "semi_ar", suffix="none", **SUFFIX)


# Threads


def ours(folder: Path) -> None:
    save_checkpoint(folder, tiny_model(1), tiny_tokenizer())


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "ours": ours,
    "llada": published.llada,
    "dream": published.dream,
    "mdlm": published.mdlm,
    **{kind: lambda folder, kind=kind: write(kind, folder) for kind in ("Bert", "ModernBert", "Roberta", "FNet")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_share_a_model(layout: str, tmp_path: Path) -> None:
    """Eight threads on one model give the answers that it gives one after another."""
    LAYOUTS[layout](tmp_path / "model")
    gpt2 = published.gpt2(tmp_path / "gpt2") if layout == "mdlm" else None
    lm = DiffusionLM.load(tmp_path / "model", tokenizer=gpt2)
    prompts = [["The harbour", "Fog", "In Velmora"][n % 3] + "!" * (n % 7) for n in range(24)]

    def answer(prompt: str) -> tuple[list[str], list[int]]:
        out = lm.generate([prompt], "top_k", steps=8, gen_length=16)
        return out.texts, out.tokens[0].tolist()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(answer, prompts))
    assert found == [answer(prompt) for prompt in prompts]
