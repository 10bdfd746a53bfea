"""An OpenAI-compatible chat endpoint asked for verdicts: many at once, patiently, nothing twice."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from threading import Event, Lock
from typing import TypeVar

from dlm.errors import UserError
from dlm.evaluation.judges.client import Client, Refusal, Usage
from dlm.evaluation.judges.replies import Reply, ReplyCache, without_reasoning

T = TypeVar("T")
CACHE = Path(".cache/judge")
# How a prompt is asked until there is a verdict: (room to reason, temperature). One token is enough for most models.
# What greedy decoding got wrong it would get wrong again.
REASONING = ((True, 0.0), (True, 1.0))
AT_ONCE = ((False, 0.0), *REASONING)
FAILED = 8  # prompts in a row without a verdict: the endpoint's fault, not the prompts'
LONGEST_WAIT = 30.0  # seconds that the backoff grows to
FATAL: dict[int | None, str] = {
    401: "the endpoint refuses the key; put a valid one into the environment variable {key_variable}",
    403: "the key in the environment variable {key_variable} may not use the model {model}; change either",
    404: "no model {model} there; mend the model's name or base_url (it usually ends in /v1)",
}


class ChatEndpoint:
    """Puts prompts to a model behind /chat/completions.

    Replies are kept in `cache`, one file a model, under a hash of the model and the prompt: neither the key nor the URL
    counts, so a model that moves keeps its replies. Prompts that end without a verdict are asked again the next time.

    Args:
        base_url: up to and including /v1.
        model: the endpoint's name for it.
        key_variable: the environment variable that holds the key. The key is in no message and no file.
        concurrency: requests at once.
        timeout: seconds without a byte after which a request for one token is given up.
        retries: further tries after 408, 409, 429, 5xx, a timeout or a broken connection.
        backoff: seconds before the first retry, doubled for each further one; a server's Retry-After goes first.
        cache: folder of the replies.

    Raises:
        UserError: no URL, or the variable is not set or holds what cannot be a key.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        key_variable: str,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 6,
        backoff: float = 1.0,
        cache: Path | str = CACHE,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise UserError(f"base_url must start with http:// or https://, got {base_url!r}")
        key = os.environ.get(key_variable, "").strip()
        if not key:
            raise UserError(
                f"no key for {base_url}: set the environment variable {key_variable} (any text if it asks for none)"
            )
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"the environment variable {key_variable} holds characters no key has; set it again")
        self.usage = Usage()
        self._base_url, self._model, self._key_variable = base_url, model, key_variable
        self._concurrency, self._retries, self._backoff = concurrency, retries, backoff
        self._client = Client(base_url, model, key, timeout)
        self._cache = ReplyCache(Path(cache) / f"{hashlib.sha256(model.encode()).hexdigest()[:16]}.jsonl")
        self._lock = Lock()
        self._stop = Event()
        self._reasons = False
        self._failed = 0

    def ask(self, prompts: Sequence[str], read: Callable[[Reply], T | None]) -> list[T | None]:
        """What `read` makes of the reply to each prompt, in order; None where no reply or no readable one came.

        Args:
            prompts: equal ones are asked once.
            read: gives None for a malformed reply, which is asked for again, with room to reason before the verdict.

        Raises:
            UserError: the endpoint refuses the key or does not know the model, or has given no verdict on FAILED
                prompts in a row. What was answered until then is kept.
        """
        distinct_prompts = list(dict.fromkeys(prompts))
        self._stop.clear()
        self._failed = 0
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            replies = pool.map(lambda prompt: self._value(prompt, read), distinct_prompts)
            values = dict(zip(distinct_prompts, replies, strict=True))
        finally:
            self._stop.set()  # nobody goes on waiting for a retry
            pool.shutdown(cancel_futures=True)
        return [values[prompt] for prompt in prompts]

    def _value(self, prompt: str, read: Callable[[Reply], T | None]) -> T | None:
        key = hashlib.sha256(json.dumps([self._model, prompt]).encode()).hexdigest()
        kept = self._cache.get(key)
        if kept is not None and (value := read(kept)) is not None:
            with self._lock:
                self.usage.cache_hits += 1
            return value
        problem = ""
        for room, temperature in REASONING if self._reasons else AT_ONCE:
            outcome = self._outcome(prompt, temperature, room)
            if outcome is None:
                return None
            if isinstance(outcome, Refusal):
                problem = outcome.reason
                break
            if (value := read(outcome)) is not None:
                with self._lock:
                    self._failed = 0
                    self._reasons |= room
                self._cache.put(key, replace(outcome, text=without_reasoning(outcome.text)))
                return value
            problem = f"the last reply: {shorten(outcome.text, 200)!r}"
        self._fail(problem)
        return None

    def _outcome(self, prompt: str, temperature: float, room: bool) -> Reply | Refusal | None:
        """The reply, or why there is none after all retries; None once the whole run has been given up.

        Raises:
            UserError: the endpoint will refuse all other prompts as well.
        """
        for attempt in range(1 + self._retries):
            if self._stop.is_set():
                break
            with self._lock:
                self.usage.requests += 1
            outcome = self._client.send(prompt, temperature, room)
            if not isinstance(outcome, Refusal):
                with self._lock:
                    self.usage.prompt_tokens += outcome.prompt_tokens
                    self.usage.completion_tokens += outcome.completion_tokens
                return outcome.reply
            if outcome.status in FATAL and not outcome.again:
                self._stop.set()
                problem = FATAL[outcome.status].format(key_variable=self._key_variable, model=self._model)
                raise UserError(f"{self._base_url}: {problem} ({outcome.reason})")
            if not outcome.again or attempt == self._retries:
                return outcome
            delay = min(self._backoff * 2**attempt, LONGEST_WAIT) if outcome.wait is None else outcome.wait
            # Never before Retry-After; spread out, so that the threads do not come back all at once.
            self._stop.wait(delay * random.uniform(1, 1.5))
        return None

    def _fail(self, problem: str) -> None:
        with self._lock:
            self.usage.failures += 1
            self._failed += 1
            failed = self._failed
        if failed >= FAILED:
            self._stop.set()
            raise UserError(
                f"{self._base_url}: {failed} prompts in a row got no verdict ({problem}); see that it runs, that "
                "base_url and model are right and that the model can answer with one letter or digit, then run again: "
                "what was answered is kept"
            )
