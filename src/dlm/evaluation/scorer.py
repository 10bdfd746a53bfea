"""Who says how likely a response is: the pipeline's own reference, or any causal LM with a tokenizer of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from dlm.data.splits import read_split
from dlm.data.tokenizer import encode
from dlm.evaluation.perplexity import response_perplexities
from dlm.files import read_json
from dlm.models.backbone import load_checkpoint

TRAINING_RESPONSES = 500
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scorer:
    """A causal LM for perplexity (METHOD §6).

    Attributes:
        eos_id: end-of-text of the ids that it reads.
        tokenizer: where it reads texts by its own; None where it reads the pipeline's ids.
    """

    model: torch.nn.Module
    eos_id: int
    tokenizer: PreTrainedTokenizerFast | None = None

    def perplexities(self, prompts: Sequence[Row], responses: Sequence[Row], batch_size: int) -> list[float | None]:
        """Perplexity of each response given its prompt; None for an empty one.

        With a tokenizer of its own, what exceeds the model's positions is left out.

        Args:
            prompts: rows with prompt_ids, and prompt (the text) for another tokenizer.
            responses: rows with tokens, and answer (the text).
        """
        if self.tokenizer is None:
            asked, said = [row["prompt_ids"] for row in prompts], [row["tokens"] for row in responses]
        else:
            asked = encode(self.tokenizer, [row["prompt"] for row in prompts])
            said = encode(self.tokenizer, [row["answer"] for row in responses])
            config: Any = self.model.config
            longest = getattr(config, "max_position_embeddings", None)
            if longest is not None:
                asked = [ids[-longest + 1 :] for ids in asked]
                said = [ids[: longest - len(before)] for ids, before in zip(said, asked, strict=True)]
        return response_perplexities(self.model, asked, said, self.eos_id, batch_size)


def load_scorer(
    build: Path, path: str | None, reference: torch.nn.Module, eos_id: int, batch_size: int
) -> tuple[Scorer, list[float | None]]:
    """The scorer, and its perplexities of training responses.

    Args:
        path: folder or hub name of a causal LM; None for the reference of `build`.
        reference: that, loaded.
        eos_id: the pipeline's end-of-text.

    Raises:
        UserError: as load_checkpoint.
    """
    if path is None:
        return Scorer(reference, eos_id), read_json(build / "models" / "reference" / "training_perplexities.json")
    model, tokenizer = load_checkpoint(path, causal=True)
    tokenizer.backend_tokenizer.no_truncation()
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    scorer = Scorer(model, tokenizer.eos_token_id or 0, tokenizer)
    rows = read_split(build / "data", "train", ["prompt", "output"])[:TRAINING_RESPONSES]
    return scorer, scorer.perplexities(rows, [{"answer": row["output"]} for row in rows], batch_size)
