"""`low_confidence` with Dream's options against Dream's sampling loop, written once more from its description."""

from pathlib import Path

import published
import pytest
import torch
from torch import Tensor

from dlm.decoding.lm import DiffusionLM

PROMPTS = [[5, 9, 70, 2, 31], [100, 101], list(range(200, 209))]
ALGORITHMS = {"maskgit_plus": "probability", "topk_margin": "margin", "entropy": "entropy"}


def dream_sample(weights: published.Weights, prompt: list[int], length: int, steps: int, algorithm: str) -> list[int]:
    """Greedy tokens; at each step int(masks · (1 - s/t)) of them, the most confident first, all at the last step.

    The mask never wins, as with published weights, of which none gives it probability.
    """
    mask_id = published.DREAM["mask_token_id"]
    x = torch.tensor([prompt + [mask_id] * length])
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        masked = x == mask_id
        logits = published.dream_logits(weights, x)
        logits[..., mask_id] = -torch.inf
        probs = logits[masked].softmax(-1)
        confidence, tokens = probs.max(-1)
        if algorithm == "topk_margin":
            first, second = probs.sort(-1, descending=True).values[:, :2].unbind(-1)
            confidence = first - second
        elif algorithm == "entropy":
            confidence = (probs * (probs + 1e-10).log()).sum(-1)
        masks = masked.sum() / len(x)
        count = int(masks * (1 - times[step + 1] / times[step])) if step < steps - 1 else int(masks)
        everywhere = torch.full(x.shape, -torch.inf)
        everywhere[masked] = confidence
        proposed = x.clone()
        proposed[masked] = tokens
        for at in everywhere[0].topk(count).indices.tolist():
            x[0, at] = proposed[0, at]
    found: Tensor = x[0, len(prompt) :]
    return found.tolist()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("length", "steps"), [(10, 4), (12, 12), (7, 5), (6, 14), (20, 6), (5, 1)])
def test_counts_are_those_of_dreams_loop(tmp_path: Path, length: int, steps: int, algorithm: str) -> None:
    """Token for token on a checkpoint as published; with LLaDA's count some answers are others."""
    weights = published.dream(tmp_path)
    lm = DiffusionLM.load(tmp_path, device="cpu")
    options = {"confidence": ALGORITHMS[algorithm], "gen_length": length, "steps": steps}
    found = lm.generate(PROMPTS, "low_confidence", count="dream", **options).tokens.tolist()
    assert found == [dream_sample(weights, prompt, length, steps, algorithm) for prompt in PROMPTS]
    if (length, steps) == (20, 6):
        assert found != lm.generate(PROMPTS, "low_confidence", **options).tokens.tolist()
