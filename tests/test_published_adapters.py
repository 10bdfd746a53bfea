"""Adapters as others publish them: in their base's names, of other kinds, with too much or too little in them."""

import json
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlm.config.training import LoraParams
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.adapters import unwrapped
from dlm.models.backbone import load_checkpoint, load_trainable

RANK, ALPHA = 2, 6
LORA = LoraParams(rank=4, alpha=4, dropout=0.0, targets=("q_proj",), merge=False)  # of new ones
PREFIX = "base_model.model.model.transformer."
IDS = torch.randint(2, 290, (2, 12), generator=torch.Generator().manual_seed(1))


def adapter(
    folder: Path, base: Path, targets: tuple[str, ...], weights: published.Weights, **config: Any
) -> published.Weights:
    """A random adapter as peft saves one of LLaDA's own class; the base's weights with it merged in, by hand."""
    generator = torch.Generator().manual_seed(4)
    found: dict[str, Tensor] = {}
    merged = dict(weights)
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in targets:
            continue
        rank = config.get("rank_pattern", {}).get(module.rpartition(".")[2], RANK)
        alpha = config.get("alpha_pattern", {}).get(module.removeprefix("model.transformer."), ALPHA)
        a = torch.randn(rank, weight.shape[1], generator=generator) * 0.1
        b = torch.randn(weight.shape[0], rank, generator=generator) * 0.1
        found[f"base_model.model.{module}.lora_A.weight"] = a
        found[f"base_model.model.{module}.lora_B.weight"] = b
        merged[name] = weight.float() + alpha / rank * b @ a
    folder.mkdir()
    save_file(found, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "target_modules": list(targets),
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return merged


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits[..., : published.VOCAB]
    return found


@pytest.mark.parametrize(
    ("targets", "config"),
    [
        (("q_proj", "k_proj", "v_proj"), {}),
        (("q_proj", "attn_out", "ff_proj", "up_proj", "ff_out"), {}),  # ff_out: of every block, and the head
        (("q_proj", "attn_out"), {"rank_pattern": {"attn_out": 3}, "alpha_pattern": {"blocks.1.q_proj": 12}}),
    ],
)
def test_an_adapter_in_lladas_names(targets: tuple[str, ...], config: dict[str, Any], tmp_path: Path) -> None:
    """Its logits are those of the base's weights with it merged in; and it is what further training starts from."""
    weights = published.llada(tmp_path / "base", seed=3)
    merged = adapter(tmp_path / "adapter", tmp_path / "base", targets, weights, **config)
    expected = published.llada_logits(merged, IDS)
    assert (expected - published.llada_logits(weights, IDS)).abs().max() > 0.1
    model, tokenizer = load_checkpoint(tmp_path / "adapter", causal=False)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert tokenizer.mask_token_id == 1
    trainable, _ = load_trainable(tmp_path / "adapter", LORA, 0)
    assert any(value.requires_grad for value in trainable.parameters())
    error = (logits(unwrapped(trainable.eval())).float() - expected).abs().mean()
    assert error < 0.1 < (expected - published.llada_logits(weights, IDS)).abs().mean()  # in bfloat16, as the base is
    assert DiffusionLM.load(tmp_path / "adapter").generate([[5]], "top_k", steps=2, gen_length=4).tokens.shape == (1, 4)


def test_a_whole_head_beside_an_adapter(tmp_path: Path) -> None:
    weights = published.llada(tmp_path / "base", seed=3)
    merged = adapter(
        tmp_path / "adapter", tmp_path / "base", ("v_proj",), weights, modules_to_save=["transformer.ff_out"]
    )
    file = tmp_path / "adapter/adapter_model.safetensors"
    merged["model.transformer.ff_out.weight"] = weights["model.transformer.ff_out.weight"].float().flip(0).contiguous()
    head = {f"{PREFIX}ff_out.weight": merged["model.transformer.ff_out.weight"]}
    save_file({**load_file(file), **head}, file, metadata={"format": "pt"})
    model, _ = load_checkpoint(tmp_path / "adapter", causal=False)
    torch.testing.assert_close(logits(model), published.llada_logits(merged, IDS), atol=1e-4, rtol=1e-4)


def changed(found: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = f"{PREFIX}blocks.0.q_proj.lora_B.weight"
    if how == "missing":
        return {key: value for key, value in found.items() if key != name}
    if how == "left over":
        return {**found, f"{PREFIX}blocks.7.q_proj.lora_B.weight": found[name].clone()}
    if how == "of another model":
        return {key.replace("model.transformer.blocks", "gpt.h"): value for key, value in found.items()}
    return {**found, name: found[name][:5].clone()}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", r"missing: base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight$"),
        ("left over", r"left over: base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight$"),
        ("of another model", r"left over: base_model.model.gpt.h.0"),
        ("of another shape", r"size mismatch"),
    ],
)
def test_weights_that_do_not_fit(how: str, told: str, tmp_path: Path) -> None:
    """Nothing is left out in silence."""
    weights = published.llada(tmp_path / "base", seed=3)
    adapter(tmp_path / "adapter", tmp_path / "base", ("q_proj",), weights)
    file = tmp_path / "adapter/adapter_model.safetensors"
    save_file(changed(load_file(file), how), file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=told) as error:
        load_checkpoint(tmp_path / "adapter", causal=False)
    assert str(error.value).startswith(str(tmp_path / "adapter")) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["IA3", "PREFIX_TUNING", "LOHA"])
def test_adapters_of_other_kinds(kind: str, tmp_path: Path) -> None:
    weights = published.llada(tmp_path / "base")
    adapter(tmp_path / "adapter", tmp_path / "base", ("q_proj",), weights, peft_type=kind)
    with pytest.raises(UserError, match=f"adapter: an adapter of type {kind}, only LORA can be read"):
        load_checkpoint(tmp_path / "adapter", causal=False)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """Pickled weights are not read."""
    weights = published.llada(tmp_path / "base")
    adapter(tmp_path / "adapter", tmp_path / "base", ("q_proj",), weights)
    file = tmp_path / "adapter/adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "adapter/adapter_model.bin")
    file.unlink()
    with pytest.raises(
        UserError, match=r"adapter: no adapter_model.safetensors there; save the adapter as safetensors"
    ):
        load_checkpoint(tmp_path / "adapter", causal=False)
    (tmp_path / "adapter/adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json: not valid JSON"):
        load_checkpoint(tmp_path / "adapter", causal=False)
