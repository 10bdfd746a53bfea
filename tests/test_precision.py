"""`precision: auto`: what it comes to on which processor for which model, that it is told, and where a run goes on."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from test_training import TRAINING, At, Crash, Started, crash, elsewhere, one_thread, sft, tiny_model  # noqa: F401 (fixtures)
from tiny import tiny_model as tiny_causal
from tiny import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.evaluation.divergence import response_features
from dlm.evaluation.scoring.perplexity import response_perplexities
from dlm.models import precision
from dlm.models.backbone import save_checkpoint
from dlm.models.precision import bf16_unit, decide


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the processor is said to have."""

    def has(**flags: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(flags))

    return has


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "avx512_bf16"),
        ({"avx512_bf16": True, "amx_bf16": True}, "amx_bf16"),
        ({"avx512_bf16": False, "avx512_f": True}, None),
        ({"neon": True}, None),
    ],
)
def test_auto_on_a_cpu(processor: Any, flags: dict[str, bool], unit: str | None) -> None:
    processor(**flags)
    assert bf16_unit() == unit
    assert [decide("auto", width, "cpu").bf16 for width in (128, 255, 256, 576)] == [False, False, *[bool(unit)] * 2]
    assert str(decide("auto", 576, "cpu")).startswith(f"bf16 (auto: {unit}," if unit else "fp32 (auto: the processor")


def test_the_builtin_models_stay_in_float32(processor: Any) -> None:
    """They are 128 wide; results have the same hash on every processor."""
    processor(avx512_bf16=True, amx_bf16=True)
    assert str(decide("auto", 128, "cpu")) == "fp32 (auto: the model is 128 wide, amx_bf16 pays from 256 on)"


def test_an_older_torch_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not decide("auto", 4096, "cpu").bf16


def test_a_named_precision_is_what_it_says(processor: Any) -> None:
    processor()
    assert [decide(name, 8, device).bf16 for name in ("fp32", "bf16") for device in ("cpu", "cuda")] == [
        False,
        False,
        True,
        True,
    ]
    assert decide("bf16", 8, "cpu").why == ""
    with pytest.raises(UserError, match="precision must be auto, fp32 or bf16, got 'fp16'"):
        decide("fp16", 8, "cpu")


def wide(folder: Path, dtype: torch.dtype) -> Path:
    shape: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = LlamaConfig(hidden_size=256, vocab_size=300, max_position_embeddings=64, bos_token_id=None, **shape)
    config.is_causal, config.eos_token_id = False, 0
    save_checkpoint(folder, LlamaForCausalLM(config).to(dtype), tiny_tokenizer())
    return folder


@pytest.mark.parametrize("has", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_goes_by_it(tmp_path: Path, processor: Any, has: bool, dtype: torch.dtype) -> None:
    """Weights in half precision are widened where the arithmetic is float32, and stay as they are where it is not."""
    processor(avx512_bf16=has)
    lm = DiffusionLM.load(wide(tmp_path / "wide", dtype), "cpu", "auto")
    assert lm.denoiser.bf16 == lm.precision.bf16 == has
    assert lm.denoiser.model.dtype == (dtype if has else torch.float32)
    assert lm.generate([[5, 6]], "low_confidence", steps=2, gen_length=4).tokens.shape == (1, 4)


def test_training_tells_and_computes_in_it(
    processor: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model is 16 wide; a bar of 16 makes it a wide one."""
    monkeypatch.setattr(precision, "WIDE", 16)
    processor(avx512_bf16=True)
    model, seen = tiny_model(), set[torch.dtype]()
    model.model.layers[0].mlp.register_forward_hook(lambda _, args, output: seen.add(output.dtype))
    sft(model, replace(TRAINING, steps=1, precision="auto"))
    assert seen == {torch.bfloat16} and model.dtype == torch.float32
    assert "sft: bf16 (auto: avx512_bf16, the model is 16 wide)\n" in capsys.readouterr().err
    sft(tiny_model(), replace(TRAINING, steps=1, precision="fp32"))
    assert "fp32" not in capsys.readouterr().err


@pytest.mark.parametrize(("there", "goes_on"), [("auto", False), ("fp32", False), ("bf16", True)])
def test_on_another_processor_a_run_goes_on_only_where_it_is_told_to(
    processor: Any, monkeypatch: pytest.MonkeyPatch, there: str, goes_on: bool
) -> None:
    """Begun in bf16 by `auto`; the other processor has none, so `auto` is float32 there, another run."""
    monkeypatch.setattr(precision, "WIDE", 16)
    processor(avx512_bf16=True)
    with pytest.raises(Crash):
        sft(tiny_model(), replace(TRAINING, precision="auto"), At(10, crash))
    processor()
    started = Started()
    with pytest.raises(Crash):
        sft(tiny_model(), replace(TRAINING, precision=there), started, At(11, crash))
    assert (started.step > 0) == goes_on


def test_a_wide_scorer_computes_in_bfloat16_where_the_processor_does(processor: Any) -> None:
    """Its perplexities are those of float32 but for the rounding, its features too; a narrow one's are float32's."""
    config = LlamaConfig(
        vocab_size=40, hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    wide = LlamaForCausalLM(config).eval()
    rows = ([[1, 2, 3]] * 2, [[4, 5, 6, 7], [8, 9]], 0)
    found = []
    for has in (False, True):
        processor(avx512_bf16=has)
        found.append((response_perplexities(wide, *rows), response_features(wide, *rows)))
    (exact, states), (rounded, rounded_states) = found
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.01)
    assert (states != rounded_states).any() and abs(states - rounded_states).max() < 0.05
    narrow = tiny_causal(causal=True)
    processor(avx512_bf16=False)
    exact = response_perplexities(narrow, *rows)
    processor(avx512_bf16=True)
    assert response_perplexities(narrow, *rows) == exact
