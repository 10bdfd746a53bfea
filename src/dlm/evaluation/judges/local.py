"""A causal LM on this machine as judge: one forward pass a prompt, no sampling; pairs are shown in both orders."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dlm.errors import UserError
from dlm.evaluation.judges.grades import expected
from dlm.evaluation.judges.pairs import Pair, Verdict
from dlm.evaluation.judges.prompts import GRADES, LETTERS, grade_prompt, pairwise_prompt
from dlm.models.backbone import load_checkpoint

# Without a chat template the text itself must lead to the label.
CUE = "\nThe better reply is"
GRADE_CUE = "\nThe grade is"
PLACE = "<<the prompt>>"


class LocalModel:
    """Puts prompts to a causal LM and reads which of a few labels it would write next.

    Args:
        model: a causal LM; put into eval mode.
        tokenizer: its own; the prompt goes through its chat template if it has one.
        batch_size: prompts through the model at once.

    Raises:
        UserError: the chat template drops what the user says.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, batch_size: int = 8) -> None:
        self._model, self._tokenizer, self._batch_size = model.eval(), tokenizer, batch_size
        tokenizer.backend_tokenizer.no_truncation()  # a prompt cut short would lose its question
        self._longest = getattr(model.config, "max_position_embeddings", None)
        self._before, self._after = _template(tokenizer)

    def shares(self, prompts: Sequence[str], labels: Sequence[str], cue: str) -> dict[str, list[float]]:
        """Prompt -> P(label) / Σ P(labels) of the next token; without the prompts that exceed the model's positions.

        Args:
            cue: put behind a prompt where the model has no chat template.

        Raises:
            UserError: a label is no single token.
        """
        spelled = [_label_ids(self._tokenizer, label) for label in labels]
        ids = {prompt: self._encode(prompt, cue) for prompt in prompts}
        fitting = {prompt: row for prompt, row in ids.items() if self._longest is None or len(row) <= self._longest}
        # Ordered by what they are, not by who wrote which: the roles swapped make the same batches. The longest first.
        order = sorted(fitting, key=lambda prompt: (-len(fitting[prompt]), prompt))
        shares_of: dict[str, list[float]] = {}
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            shares = self._next_labels([fitting[prompt] for prompt in batch], spelled)
            shares_of |= dict(zip(batch, shares.tolist(), strict=True))
        return shares_of

    def _encode(self, prompt: str, cue: str) -> list[int]:
        backend = self._tokenizer.backend_tokenizer
        if self._before is None:
            return list(backend.encode(prompt + cue).ids)
        # In between, text that spells a special token is text: an answer cannot end its turn and judge itself.
        return [*self._before, *backend.encode(prompt, add_special_tokens=False).ids, *self._after]

    @torch.no_grad()
    def _next_labels(self, rows: list[list[int]], spelled: Sequence[list[int]]) -> Float[Tensor, "batch labels"]:
        """The labels' shares after each row, in float64; no row's last token sees the padding on its right."""
        last = torch.tensor([len(row) - 1 for row in rows])
        input_ids = torch.zeros(len(rows), int(last.max()) + 1, dtype=torch.long)
        visible = torch.zeros_like(input_ids)
        for place, row in enumerate(rows):
            input_ids[place, : len(row)] = torch.tensor(row)
            visible[place, : len(row)] = 1
        # A large vocabulary's logits at every position would not fit; these are the rows' last ones.
        kept, column = last.unique(return_inverse=True)
        device = next(self._model.parameters()).device
        logits = self._model(
            input_ids=input_ids.to(device),
            attention_mask=visible.to(device),
            logits_to_keep=kept.to(device),
            use_cache=False,
        ).logits[torch.arange(len(rows)), column.to(device)]
        return torch.stack([logits[:, ids].double().logsumexp(dim=1) for ids in spelled], dim=1).softmax(dim=1).cpu()


def load_local_model(
    path: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | str = "auto", batch_size: int = 8
) -> LocalModel:
    """A model from a folder or the hub.

    Raises:
        UserError: as `load_checkpoint`, or as `LocalModel`.
    """
    model, tokenizer = load_checkpoint(path, causal=True, dtype=dtype)
    cast(torch.nn.Module, model).to(device)
    return LocalModel(model, tokenizer, batch_size=batch_size)


class LocalJudge:
    """Compares the probabilities of the two letters after the prompt, in both orders of the candidates."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def prefer(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """One verdict for each pair; None where a prompt is longer than the model's positions.

        Swapping answer and baseline gives 1 - preference.

        Raises:
            UserError: as `LocalModel.shares`.
        """
        texts = [
            (
                pairwise_prompt(pair.instruction, pair.answer, pair.baseline),
                pairwise_prompt(pair.instruction, pair.baseline, pair.answer),
            )
            for pair in pairs
        ]
        shares_of = self._model.shares([text for both in texts for text in both], LETTERS, CUE)
        first = {text: shares[0] for text, shares in shares_of.items()}
        return [
            Verdict(0.5 + (first[ours] - first[theirs]) / 2 if ours in first and theirs in first else None)
            for ours, theirs in texts
        ]

    def costs(self) -> dict[str, int]:
        return {}


class LocalGrader:
    """The expected grade under the probabilities of the digits after the prompt."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def grade(self, answers: Sequence[tuple[str, str]]) -> list[float | None]:
        """The grade of each (instruction, answer), in [1, 5]; None where a prompt is longer than the model's positions.

        Raises:
            UserError: as `LocalModel.shares`.
        """
        prompts = [grade_prompt(*answer) for answer in answers]
        shares_of = self._model.shares(prompts, GRADES, GRADE_CUE)
        return [expected(shares_of[prompt]) if prompt in shares_of else None for prompt in prompts]

    def costs(self) -> dict[str, int]:
        return {}


def _label_ids(tokenizer: PreTrainedTokenizerFast, label: str) -> list[int]:
    """The tokens that spell a label, bare or after a space (as byte-level and SentencePiece vocabularies mark it)."""
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[token] for token in (label, f"Ġ{label}", f"▁{label}") if token in vocabulary]
    if not ids:
        raise UserError(f"the judge's tokenizer has no token for {label}; take another model as judge")
    return ids


def _template(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int] | None, list[int]]:
    """What the chat template puts before and after the user's text; (None, []) without a template."""
    if not tokenizer.chat_template:
        return None, []
    turn = [{"role": "user", "content": PLACE}]
    text = str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False, enable_thinking=False))
    before, place, after = text.partition(PLACE)
    if not place:
        raise UserError("the judge's chat template drops the user's text; take another model as judge")
    backend = tokenizer.backend_tokenizer
    kept = backend.encode_special_tokens
    backend.encode_special_tokens = False  # the template's own markers are special tokens
    try:
        around = [list(backend.encode(part, add_special_tokens=False).ids) for part in (before, after)]
    finally:
        backend.encode_special_tokens = kept
    return around[0], around[1]
