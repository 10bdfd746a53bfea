"""Perplexity under an n-gram model of held-out text (nltk), with Witten-Bell smoothing.

The reference has the architecture, tokens and training text of the models that it scores, and may favour them. The
n-gram model shares only the tokens. It sees no farther back than n - 1 tokens.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from nltk.lm.api import LanguageModel
from nltk.lm.models import InterpolatedLanguageModel
from nltk.lm.smoothing import WittenBell
from nltk.util import everygrams

from dlm.errors import UserError


class _WittenBell(WittenBell):  # type: ignore[misc]
    """nltk's smoothing with two changes: a context's counts are cached, and single tokens are smoothed with the uniform
    distribution, so that no token is impossible."""

    def __init__(self, vocabulary: Any, counter: Any, size: int) -> None:
        super().__init__(vocabulary, counter)
        self.size = size
        self._gamma = functools.cache(super()._gamma)

    def unigram_score(self, word: str) -> float:
        kinds, uses = self.counts.unigrams.B(), self.counts.unigrams.N()
        return (self.counts.unigrams[word] + kinds / self.size) / (uses + kinds)


class NgramScorer:
    """An n-gram model over token ids.

    Args:
        rows: the text, documents of ids.
        order: n.
        size: of the vocabulary.

    Raises:
        UserError: no text.
    """

    def __init__(self, rows: Iterable[Sequence[int]], order: int, size: int) -> None:
        texts = [[str(token) for token in row] for row in rows if row]
        if not texts:
            raise UserError("the n-gram scorer has no held-out text to count; raise data.valid_size or base.held_out")
        self.order = order
        self._model: LanguageModel = InterpolatedLanguageModel(_WittenBell, order, params={"size": size})
        self._model.fit((everygrams(text, max_len=order) for text in texts), (word for text in texts for word in text))

    def perplexity(self, prompt: Sequence[int], response: Sequence[int]) -> float | None:
        """exp(mean -log p) of the response's tokens, each given up to n - 1 before it; None for an empty response."""
        if not response:
            return None
        words = [str(token) for token in [*prompt, *response]]
        places = range(len(prompt), len(words))
        contexts = [tuple(words[max(0, i - self.order + 1) : i]) for i in places]
        logs = [
            math.log(self._model.unmasked_score(words[i], context)) for i, context in zip(places, contexts, strict=True)
        ]
        return math.exp(-sum(logs) / len(logs))
