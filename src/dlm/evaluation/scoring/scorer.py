"""The model that says how likely a response is: the pipeline's reference, or another causal LM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from dlm.data.splits import read_split
from dlm.data.tokenizer import before_eos, encode, encode_answers
from dlm.evaluation.scoring.perplexity import response_perplexities, response_scores
from dlm.evaluation.scoring.relevance import Relevance, relevance, shared_frame
from dlm.models.backbone import load_checkpoint

TRAINING_RESPONSES = 500
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scorer:
    """A causal LM for perplexity (docs/method.md §6) and relevance.

    Attributes:
        eos_id: end-of-text of the ids that it reads.
        tokenizer: the model's own, to read texts with; None for a model that reads the pipeline's ids.
        frame: what all training prompts share, in the model's ids (relevance.shared_frame). An empty one is replaced
            by an end-of-text.
    """

    model: torch.nn.Module
    eos_id: int
    tokenizer: PreTrainedTokenizerFast | None = None
    frame: Sequence[int] = ()

    def perplexities(self, prompts: Sequence[Row], responses: Sequence[Row], batch_size: int) -> list[float | None]:
        """Perplexity of each response given its prompt; None for an empty one.

        With a tokenizer of its own, what exceeds the model's positions is left out.

        Args:
            prompts: rows with prompt_ids, and prompt (the text) for another tokenizer.
            responses: rows with tokens, and answer (the text).
        """
        asked, said = self._read(prompts, responses)
        return response_perplexities(self.model, asked, said, self.eos_id, batch_size)

    def scores(
        self, prompts: Sequence[Row], responses: Sequence[Row], batch_size: int
    ) -> tuple[list[float | None], list[Relevance]]:
        """Perplexity of each response, and its relevance to its prompt; the arguments are those of `perplexities`."""
        asked, said = self._read(prompts, responses)
        given = response_scores(self.model, asked, said, self.eos_id, batch_size)
        bare = response_scores(self.model, self._frames(said), said, self.eos_id, batch_size)
        contents = [before_eos(ids, self.eos_id) for ids in said]
        perplexities = [None if row is None else row.perplexity for row in given]
        return perplexities, [relevance(*row) for row in zip(given, bare, contents, asked, strict=True)]

    def _frames(self, said: Sequence[list[int]]) -> list[list[int]]:
        """The frame in place of each response's prompt, at least one token."""
        frame, longest = list(self.frame) or [self.eos_id], self._longest()
        return [frame if longest is None else frame[-(longest - len(ids)) :] for ids in said]

    def _read(self, prompts: Sequence[Row], responses: Sequence[Row]) -> tuple[list[list[int]], list[list[int]]]:
        """The ids of both."""
        if self.tokenizer is None:
            asked, said = [row["prompt_ids"] for row in prompts], [row["tokens"] for row in responses]
        else:
            texts = [row["prompt"] for row in prompts]
            asked = encode(self.tokenizer, texts)
            said = encode_answers(self.tokenizer, texts, [row["answer"] for row in responses])
            longest = self._longest()
            if longest is not None:
                asked = [ids[-longest + 1 :] for ids in asked]
                said = [ids[: longest - len(before)] for ids, before in zip(said, asked, strict=True)]
        return asked, said

    def _longest(self) -> int | None:
        """Positions of a model with a tokenizer of its own; the pipeline's rows are made to fit."""
        config: Any = None if self.tokenizer is None else self.model.config
        return getattr(config, "max_position_embeddings", None)


def load_scorer(build: Path, path: str | None, reference: torch.nn.Module, eos_id: int) -> Scorer:
    """The scorer, as evaluate.scorer names it.

    Args:
        build: where the training prompts are.
        path: folder or hub name of a causal LM; None for the reference.
        reference: that, loaded.
        eos_id: the pipeline's end-of-text.

    Raises:
        UserError: as load_checkpoint.
    """
    if path is None:
        rows = read_split(build / "data/training", "train", ["prompt_ids"])[:TRAINING_RESPONSES]
        return Scorer(reference, eos_id, frame=shared_frame([row["prompt_ids"] for row in rows]))
    model, tokenizer = load_checkpoint(path, causal=True)
    tokenizer.backend_tokenizer.no_truncation()
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    rows = read_split(build / "data/training", "train", ["prompt"])[:TRAINING_RESPONSES]
    frame = shared_frame(encode(tokenizer, [row["prompt"] for row in rows]))
    return Scorer(model, tokenizer.eos_token_id or 0, tokenizer, frame)


def training_perplexities(scorer: Scorer, rows: Sequence[Row], batch_size: int = 50) -> list[float | None]:
    """The scorer's perplexities of the first training responses, what a response's own is compared with (inlier).

    Args:
        rows: of the training split (prompt, prompt_ids, output, answer_ids).
    """
    sample = rows[:TRAINING_RESPONSES]
    said = [{"tokens": row["answer_ids"], "answer": row["output"]} for row in sample]
    return scorer.perplexities(sample, said, batch_size)
