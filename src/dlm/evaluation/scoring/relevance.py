"""Relevance: how much likelier the prompt makes an answer (pointwise mutual information under a causal LM).

The information of a token is log p(token | prompt, tokens before) - log p(token | frame, tokens before), in nats. The
frame is what all prompts share, their template with nothing asked: against a bare end-of-text every answer would gain
from the template alone, wrong ones too. A token that occurs in the prompt counts 0, so that copying earns nothing.
results/relevance compares this with other forms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.evaluation.scoring.perplexity import Scored


@dataclass(frozen=True)
class Relevance:
    """Of one answer.

    Attributes:
        total: information of its tokens that do not occur in the prompt, nats: 0 for an empty answer or a copy, below 0
            where the prompt makes the answer less likely.
        tokens: of the answer, copied ones too.
    """

    total: float
    tokens: int

    @property
    def per_token(self) -> float | None:
        """Nats a token; None for an empty answer."""
        return self.total / self.tokens if self.tokens else None


def shared_frame(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all prompts begin with, followed by what all end with: a template's text without its fields.

    Args:
        prompts: token ids of each.

    Returns:
        Token ids, fewer than the shortest prompt has or as many; none of fewer than two different prompts.
    """
    kinds = sorted(set(map(tuple, prompts)))
    if len(kinds) < 2:
        return []
    shortest = min(map(len, kinds))
    start = _shared(kinds, shortest)
    end = _shared([kind[::-1] for kind in kinds], shortest - start)
    return [*kinds[0][:start], *kinds[0][len(kinds[0]) - end :]]


def _shared(rows: Sequence[tuple[int, ...]], most: int) -> int:
    """How many tokens all rows begin with, `most` at most."""
    return next((i for i in range(most) if len({row[i] for row in rows}) > 1), most)


def information(given: Scored, bare: Scored) -> Float[Tensor, " length"]:
    """log p(token | prompt, before) - log p(token | frame, before), nats, float64, of each content token.

    Args:
        given: the response scored after its prompt.
        bare: the same after the frame.
    """
    return bare.losses.double() - given.losses.double()


def relevance(given: Scored | None, bare: Scored | None, content: Sequence[int], prompt: Sequence[int]) -> Relevance:
    """Of one response.

    Args:
        given, bare: as for `information`; None for an empty response.
        content: its tokens before any end-of-text.
        prompt: token ids, of the same tokenizer.
    """
    if given is None or bare is None:
        return Relevance(0.0, 0)
    asked = set(prompt)
    new = torch.tensor([token not in asked for token in content])
    return Relevance(information(given, bare)[new].sum().item(), len(content))
