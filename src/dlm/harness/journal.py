"""What a run has answered so far, on disk, so that one that was killed goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch

from dlm.errors import UserError
from dlm.files import code_hash
from dlm.pipeline.progress import Advance


class Journal:
    """Answers by what was asked: a file of JSON lines to which every finished batch is added.

    Args:
        path: the file; None keeps the answers in memory alone.
        setting: what the answers depend on besides the question. Those of another setting stay in the file, unread.

    Raises:
        UserError: a file that is something else.
    """

    def __init__(self, path: Path | None, setting: Sequence[Any]) -> None:
        self.path = path
        self._setting = json.dumps(setting, sort_keys=True)
        self._answers: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{path}:{number}: not a line that a run of tasks left; name another file") from None
        if len(whole) < len(data):  # a line that the end of its run cut off
            with path.open("r+b") as handle:
                handle.truncate(len(whole))

    def _key(self, question: Any) -> str:
        return hashlib.sha256(f"{self._setting}\n{json.dumps(question)}".encode()).hexdigest()

    def answers(
        self,
        questions: Sequence[Any],
        run: Callable[[list[Any]], Sequence[Any]],
        batch_size: int,
        *,
        together: Callable[[Any], Hashable] = lambda _: None,
        advance: Advance = lambda count, note="", earlier=False: None,
    ) -> dict[Any, Any]:
        """The answer to every question, by `run` in batches, in the order given; equal questions are asked once.

        The batches do not depend on what is known, and one that is known in part runs as a whole: a run that goes on
        computes exactly what it would have.

        Args:
            questions: hashable, and good for JSON.
            run: a batch of questions -> their answers, good for JSON.
            together: only questions for which it gives the same are in one batch.
            advance: called with the number of questions that have been answered; `earlier` for those of the file.
        """
        groups: dict[Hashable, list[Any]] = {}
        for question in dict.fromkeys(questions):
            groups.setdefault(together(question), []).append(question)
        found: dict[Any, Any] = {}
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                keys = [self._key(question) for question in batch]
                known = all(key in self._answers for key in keys)
                if not known:
                    self._add(dict(zip(keys, run(batch), strict=True)))
                found |= {question: self._answers[key] for question, key in zip(batch, keys, strict=True)}
                advance(len(batch), earlier=known)
        return found

    def _add(self, answers: dict[str, Any]) -> None:
        self._answers |= answers
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items())
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write("".join(lines))


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of a model's weights and of this package's code."""
    digest = hashlib.sha256(code_hash().encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
