"""On a GPU: the tokens of a CPU, from every decoder; graphs; what the kernels find. Skipped where torch sees none."""

from typing import Any

import pytest
import torch
from test_api import PROMPTS
from test_invariance import every_decoder
from tiny import tiny_model, tiny_tokenizer

from dlm.decoding.lm import DiffusionLM
from dlm.models.compiled import compile_layers, restore_layers
from dlm.models.interface import backbone

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SETTING = {"steps": 6, "gen_length": 12, "seed": 4, "eos_fill": True}


@pytest.fixture(scope="module", autouse=True)
def whole_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def made(device: str, **more: Any) -> DiffusionLM:
    return DiffusionLM(tiny_model(2, eos_scale=2.0).to(device), tiny_tokenizer(), **more)


@every_decoder
def test_the_tokens_of_a_cpu(name: str, options: dict[str, Any]) -> None:
    """The noise is the same on every device, so that only rounding could tell them apart."""
    here, there = (made(device).generate(PROMPTS, name, **SETTING, **options) for device in ("cpu", "cuda"))
    assert there.tokens.tolist() == here.tokens.tolist()
    assert there.nfe.tolist() == here.nfe.tolist()
    assert there.commit_step.tolist() == here.commit_step.tolist()


@pytest.mark.parametrize("mode", ["default", "cuda_graphs"])
@pytest.mark.parametrize("name", ["top_k", "low_confidence"])
def test_compiled(name: str, mode: str) -> None:
    """Twice: the second run replays the graphs of the first."""
    expected = made("cuda").generate(PROMPTS, name, **SETTING)
    lm = made("cuda", compile=mode)
    for _ in range(2):
        assert lm.generate(PROMPTS, name, **SETTING).tokens.tolist() == expected.tokens.tolist()


@pytest.mark.parametrize(
    ("rows", "vocab", "k", "dtype"),
    [
        (3, 1000, 20, torch.float32),
        (7, 50258, 20, torch.bfloat16),
        (2, 126464, 1, torch.bfloat16),
        (4, 65, 3, torch.float32),
        (1, 40, 33, torch.bfloat16),
        (5, 4099, 64, torch.float32),
        (0, 300, 5, torch.float32),
    ],
)
def test_the_kernels_find_what_torch_finds(rows: int, vocab: int, k: int, dtype: torch.dtype) -> None:
    """Equal logits (bfloat16 has many) may stand in another order."""
    kernels = pytest.importorskip("dlm.decoding.kernels")
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(rows, vocab, device="cuda", generator=generator).mul(5).to(dtype)
    logits[:, 1] = -torch.inf
    best, tokens, total = kernels.top_k_and_total(logits, k)
    assert torch.equal(best, logits.float().topk(k, dim=-1).values)
    assert torch.equal(logits.float().gather(-1, tokens), best)
    assert all(len(set(row)) == k for row in tokens.tolist())
    torch.testing.assert_close(total[:, 0], logits.float().logsumexp(-1), atol=1e-5, rtol=1e-5)


def test_compiled_layers_train_alike() -> None:
    """Gradients of the layers behind torch.compile, of two lengths; then the layers are as before."""
    gradients = []
    for compiled in (False, True):
        model = tiny_model(2).cuda().train()
        if compiled:
            compile_layers(model)
        for length in (12, 20):
            tokens = torch.arange(2, 2 + 3 * length, device="cuda").view(3, length)
            backbone(model)(input_ids=tokens, use_cache=False).last_hidden_state.square().mean().backward()
        restore_layers(model)
        assert all(module._compiled_call_impl is None for module in model.modules())
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-3)


@every_decoder
def test_bf16(name: str, options: dict[str, Any]) -> None:
    out = made("cuda", precision="bf16").generate(PROMPTS, name, **SETTING, **options)
    assert (out.tokens != tiny_tokenizer().mask_token_id).all()
