"""Autoregressive models that become masked diffusion LMs: what they keep, and that everything goes with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SENTENCES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from dlm.data.tokenizer import load_tokenizer
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DECODERS
from dlm.diffusion.forward import annealed
from dlm.errors import UserError
from dlm.models.adapt import adapt
from dlm.models.backbone import load_checkpoint, save_checkpoint
from dlm.models.interface import head, states, token_count

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """An autoregressive model's: an end-of-text, a reserved entry, no mask. 300 entries."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|reserved|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def causal_model(kind: str, rows: int, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    shared = {"vocab_size": rows, "tie_word_embeddings": tied, "pad_token_id": 0}
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0, **shared)
        model: Any = GPT2LMHeadModel(config)
    else:
        config_class, model_class = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        }[kind]
        model = model_class(config_class(**SMALL, **shared))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.35 / parameter.std())
    found: PreTrainedModel = model.eval()
    return found


def saved(folder: Path, kind: str = "llama", spare: int = 0, tied: bool = True) -> tuple[Path, PreTrainedModel]:
    """An autoregressive checkpoint on disk, its vocabulary `spare` rows wider than its tokenizer."""
    tokenizer = plain_tokenizer()
    model = causal_model(kind, len(tokenizer) + spare, tied)
    save_checkpoint(folder, model, tokenizer)
    return folder, model


def adapted(folder: Path, shift: int = 1, mask_token: str | None = None) -> tuple[PreTrainedModel, Any]:
    model, tokenizer = load_checkpoint(folder, causal=True, mask_token=mask_token)
    return adapt(model, tokenizer, logits_shift=shift), tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
@torch.no_grad()
def test_with_a_causal_mask_and_nothing_masked_it_is_the_original(tmp_path: Path, kind: str, tied: bool) -> None:
    """Log-probabilities of every position but the first are the original's at the position before, within 1e-5."""
    folder, original = saved(tmp_path / "ar", kind, tied=tied)
    model, tokenizer = adapted(folder)
    ids = torch.randint(2, 300, (3, 20), generator=torch.Generator().manual_seed(1))
    expected = original(input_ids=ids).logits[:, :-1].log_softmax(-1)
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    found = head(model)(states(model, ids, causal).flatten(0, 1)).view(3, 20, -1)
    found[..., tokenizer.mask_token_id] = -torch.inf  # SUBS
    assert (found.log_softmax(-1)[:, 1:, :300] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
@torch.no_grad()
def test_it_sees_what_comes_after(tmp_path: Path, kind: str) -> None:
    folder, original = saved(tmp_path / "ar", kind)
    ids = torch.randint(2, 300, (1, 12), generator=torch.Generator().manual_seed(2))
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 300
    assert torch.equal(original(input_ids=ids).logits[0, 0], original(input_ids=other).logits[0, 0])
    model, _ = adapted(folder)
    assert (states(model, ids)[0, 0] - states(model, other)[0, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_mask_is_the_mean_of_the_others(tmp_path: Path, tied: bool) -> None:
    folder, original = saved(tmp_path / "ar", tied=tied)
    model, tokenizer = adapted(folder)
    assert (tokenizer.mask_token, tokenizer.mask_token_id, model.config.vocab_size) == ("<|mask|>", 300, 301)
    for before, after in (
        (original.get_input_embeddings().weight, model.get_input_embeddings().weight),
        (original.get_output_embeddings().weight, model.get_output_embeddings().weight),
    ):
        assert torch.equal(after[:300], before)
        torch.testing.assert_close(after[300], before.mean(0))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_spare_rows_and_reserved_tokens_stay_as_they_are(tmp_path: Path) -> None:
    folder, original = saved(tmp_path / "spare", spare=20)
    model, tokenizer = adapted(folder)
    assert (tokenizer.mask_token_id, model.config.vocab_size) == (300, 320)
    assert torch.equal(model.get_input_embeddings().weight, original.get_input_embeddings().weight)
    folder, original = saved(tmp_path / "reserved")
    model, tokenizer = adapted(folder, mask_token="<|reserved|>")
    assert (tokenizer.mask_token_id, model.config.vocab_size, len(tokenizer)) == (1, 300, 300)
    assert torch.equal(model.get_input_embeddings().weight, original.get_input_embeddings().weight)


@pytest.mark.parametrize("shift", [0, 1])
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_denoiser(tmp_path: Path, shift: int) -> None:
    model, tokenizer = adapted(saved(tmp_path / "ar")[0], shift)
    save_checkpoint(tmp_path / "mdlm", model, tokenizer)
    again, _ = load_checkpoint(tmp_path / "mdlm", causal=False)
    ids = torch.randint(2, 300, (2, 12))
    assert torch.equal(states(again, ids), states(model, ids))
    assert again.config.logits_shift == shift
    with pytest.raises(UserError, match="only an autoregressive model can be adapted"):
        adapt(again, tokenizer, logits_shift=1)


def test_a_mask_that_is_no_entry(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "ar")
    with pytest.raises(UserError, match="the mask token '<oops>' is no entry of it; name another, or none"):
        load_tokenizer(folder, "<oops>")


@pytest.mark.parametrize("word", ["t", "\u0120t", "e", "\u0120"])
def test_a_mask_that_texts_hold(word: str, tmp_path: Path) -> None:
    """It would be masked wherever it stands."""
    folder, _ = saved(tmp_path / "ar")
    assert word in load_tokenizer(folder).get_vocab()
    with pytest.raises(UserError, match=f"the mask token '{word}' is a piece of ordinary texts; name another, or none"):
        load_tokenizer(folder, word)
    assert load_tokenizer(folder, "<|reserved|>").mask_token_id == 1


def test_annealing_from_a_causal_mask_to_none() -> None:
    """By hand: at 0 the past alone, at 1 everything, between them whatever was drawn below the share."""
    draw = torch.tensor([[0.5, 0.2, 0.7], [0.9, 0.9, 0.4], [0.0, 0.0, 0.0]])
    assert annealed(draw, 0.0).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert annealed(draw, 0.3).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert annealed(draw, 0.6).int().tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert annealed(draw, 1.0).all()


@torch.no_grad()
def test_annealed_attention_is_what_the_model_attends_to(tmp_path: Path) -> None:
    """All seen is no mask at all; the past alone is the original."""
    folder, original = saved(tmp_path / "ar")
    model, _ = adapted(folder, shift=0)
    ids = torch.randint(2, 300, (2, 10))
    draw = torch.rand(10, 10)
    torch.testing.assert_close(states(model, ids, annealed(draw, 1.0)), states(model, ids))
    causal = original.get_decoder()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states(model, ids, annealed(draw, 0.0)), causal)


@pytest.fixture(scope="module")
def shifted_lm(tmp_path_factory: pytest.TempPathFactory) -> DiffusionLM:
    model, tokenizer = adapted(saved(tmp_path_factory.mktemp("adapt") / "ar")[0])
    return DiffusionLM(model, tokenizer)


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "wino"])
def test_every_decoder_with_a_shifted_model(shifted_lm: DiffusionLM, decoder: str) -> None:
    """Prompts keep their tokens, no mask is left, and a row's answer is what it is alone."""
    prompts = ["The harbour", "In Velmora the winter", "Fog"]
    options = {"block_length": 8} if decoder == "semi_ar" else {}
    together = shifted_lm.generate(prompts, decoder, steps=8, gen_length=16, **options)
    alone = [shifted_lm.generate([prompt], decoder, steps=8, gen_length=16, **options).tokens[0] for prompt in prompts]
    assert torch.equal(together.tokens, torch.stack(alone))
    assert not (together.tokens == shifted_lm.tokenizer.mask_token_id).any()


def test_wino_needs_a_position_predicted_at_itself(shifted_lm: DiffusionLM) -> None:
    with pytest.raises(UserError, match="wino goes with Llama-like backbones that predict a position at itself"):
        shifted_lm.generate(["Fog"], "wino", steps=8, gen_length=16)


def test_infilling_with_a_shifted_model(shifted_lm: DiffusionLM) -> None:
    """The position after a gap is not touched, and the gap's first token is predicted at the context before it."""
    filled = shifted_lm.infill("The harbour [MASK:3] opens", "low_confidence", steps=3)
    assert filled.texts[0].startswith("The harbour ")
    assert filled.texts[0].endswith(" opens")
    ids = [*shifted_lm._ids("The harbour "), 300, *shifted_lm._ids(" opens")]
    one = shifted_lm.infill([ids], "low_confidence", steps=1).tokens[0]
    with torch.no_grad():
        hidden = shifted_lm.denoiser.model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state
        logits = shifted_lm.denoiser.model.get_output_embeddings()(hidden)[0, ids.index(300) - 1]
    logits[300] = -torch.inf
    assert one[ids.index(300)] == logits.argmax()


def test_a_model_that_keeps_its_mask(tmp_path: Path) -> None:
    """GPT-Neo does not read config.is_causal: it would go on writing from left to right, and say nothing."""
    config = GPTNeoConfig(
        vocab_size=301, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]], eos_token_id=0
    )
    tokenizer = load_tokenizer(saved(tmp_path / "ar")[0])
    with pytest.raises(
        UserError, match=r"^GPTNeoForCausalLM: its first position does not see the second; it cannot be"
    ):
        adapt(GPTNeoForCausalLM(config), tokenizer, logits_shift=0)


HYBRID: dict[str, Any] = {name: SMALL[name] for name in SMALL if name != "max_position_embeddings"}
MIXED: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRIDS: dict[str, tuple[type, type, dict[str, Any], str]] = {
    "lfm2": (
        Lfm2Config,
        Lfm2ForCausalLM,
        {"layer_types": ["conv", "full_attention"]},
        r"layers.0.conv \(Lfm2ShortConv",
    ),
    "attention first": (
        Lfm2Config,
        Lfm2ForCausalLM,
        {"layer_types": ["full_attention", "conv"]},
        r"layers.1.conv \(Lfm2ShortConv",
    ),
    "jamba": (
        JambaConfig,
        JambaForCausalLM,
        {"attn_layer_period": 2, "attn_layer_offset": 0, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
        r"layers.1.mamba \(JambaMambaMixer",
    ),
    # Attention and a state-space model side by side in every layer.
    "falcon_h1": (
        FalconH1Config,
        FalconH1ForCausalLM,
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4},
        r"layers.0.mamba \(FalconH1Mixer",
    ),
    "qwen3_next": (
        Qwen3NextConfig,
        Qwen3NextForCausalLM,
        {**MIXED, **EXPERTS, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
        r"layers.0.linear_attn \(Qwen3NextGatedDeltaNet",
    ),
    "recurrent_gemma": (
        RecurrentGemmaConfig,
        RecurrentGemmaForCausalLM,
        {"num_hidden_layers": 3, "lru_width": 32},
        r"layers.0.temporal_block \(RecurrentGemmaRecurrentBlock",
    ),
}


def random_model(config_class: Any, model_class: Any, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    found: PreTrainedModel = model_class(config_class(vocab_size=320, pad_token_id=0, **{**HYBRID, **settings}))
    return found.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_hybrid_keeps_its_direction(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """Its first position sees the last through the attention layers; every other layer would go on as before."""
    config_class, model_class, settings, told = HYBRIDS[kind]
    model = random_model(config_class, model_class, **settings).to(dtype)
    model.save_pretrained(tmp_path / "hybrid")
    tokenizer = load_tokenizer(saved(tmp_path / "ar")[0])
    with pytest.raises(UserError, match=rf"^{model_class.__name__}: {told}\) reads .* alone; it cannot be adapted$"):
        adapt(model, tokenizer, logits_shift=1)
    tokenizer.save_pretrained(tmp_path / "hybrid")
    with pytest.raises(UserError, match=r"reads from left to right alone; .*/hybrid is no denoiser, name another$"):
        load_checkpoint(tmp_path / "hybrid", causal=False, layout="causal_lm", dtype="auto")
    load_checkpoint(tmp_path / "hybrid", causal=True, dtype="auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_and_windows_keep_none(tmp_path: Path, dtype: torch.dtype) -> None:
    """What a token's neighbours change in its expert is rounding; a window that is near looks both ways."""
    tokenizer = load_tokenizer(saved(tmp_path / "ar")[0])
    for config_class, model_class, settings in (
        (Qwen3MoeConfig, Qwen3MoeForCausalLM, {**EXPERTS, "head_dim": 8}),
        (Gemma3TextConfig, Gemma3ForCausalLM, {"head_dim": 8, "sliding_window": 2}),
    ):
        adapt(random_model(config_class, model_class, **settings).to(dtype), tokenizer, logits_shift=1)


def test_a_count_of_tokens_that_no_longer_fits(tmp_path: Path) -> None:
    """Saved with 301 of 320 rows known; the tokenizer has grown since."""
    model, tokenizer = adapted(saved(tmp_path / "spare", spare=20)[0])
    assert model.config.token_count == 301
    tokenizer.add_tokens([f"<{n}>" for n in range(19)])
    save_checkpoint(tmp_path / "grown", model, tokenizer)
    again, _ = load_checkpoint(tmp_path / "grown", causal=False)
    assert token_count(again) == 320
