"""Short replies of a judge: their log-probabilities, and a file of them that survives being killed."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from errno import ENOSPC
from pathlib import Path
from threading import Lock
from typing import Any

REASONING_ENDS = re.compile(r".*(</think(ing)?>|</reasoning>|\[/THINK\])", re.DOTALL)
REASONING_BEGINS = re.compile(r"\s*(<think(ing)?>|<reasoning>|\[THINK\])")
LEAST_MASS = 0.01  # labels that carry less of the probability together were not what the judge wanted to say


@dataclass(frozen=True)
class Reply:
    """What a judge said.

    Attributes:
        text: the reply, with the reasoning that it may begin with.
        top: the likeliest first tokens with their natural log-probabilities; empty where the server gives none and
            where they belong to the reasoning.
    """

    text: str
    top: tuple[tuple[str, float], ...] = ()


def without_reasoning(text: str) -> str:
    """A reply without the reasoning that it begins with; empty where the reasoning does not end."""
    rest = REASONING_ENDS.sub("", text, count=1)
    return "" if REASONING_BEGINS.match(rest) else rest


def label_shares(reply: Reply, labels: Sequence[str]) -> list[float] | None:
    """P(label) / Σ P(labels) of the first token, from its log-probabilities.

    White space around a token does not count, so " A" adds to "A"; a label that is not among the likeliest has 0.

    Returns:
        One share a label, or None where the labels carry less than LEAST_MASS together or there are no
        log-probabilities.
    """
    mass = [sum(math.exp(value) for token, value in reply.top if token.strip() == label) for label in labels]
    return [part / sum(mass) for part in mass] if sum(mass) >= LEAST_MASS else None


def label_alone(reply: Reply, labels: Sequence[str]) -> str | None:
    """The label that the text without its reasoning is, white space and punctuation aside; None for any other text."""
    match = re.fullmatch(r"[\W_]*(\w+)[\W_]*", without_reasoning(reply.text))
    return match[1] if match and match[1] in labels else None


class ReplyCache:
    """Replies by key in one JSON-lines file that only grows.

    A line goes out in a single write to a file opened for appending, so neither threads nor processes mix their lines,
    and a kill can tear the last one at most. Lines that are not whole are skipped: what they held is asked again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        content = path.read_bytes() if path.is_file() else b""
        self._torn = bool(content) and not content.endswith(b"\n")
        self._replies = {key: reply for line in content.split(b"\n") for key, reply in _parse(line)}

    def get(self, key: str) -> Reply | None:
        """The reply kept under a key."""
        return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply, on disk before this returns (though not past a power cut).

        Raises:
            OSError: the file cannot be written, or the disk is full.
        """
        line = json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as handle:
                whole = b"\n" + line if self._torn else line
                written = handle.write(whole)
            self._torn = written != len(whole)
            if self._torn:
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(self._path))
            self._replies[key] = reply


def _parse(line: bytes) -> list[tuple[str, Reply]]:
    try:
        row: dict[str, Any] = json.loads(line)
        top = tuple((str(token), float(value)) for token, value in row["top"])
        return [(str(row["key"]), Reply(str(row["text"]), top))]
    except (ValueError, KeyError, TypeError):
        return []
