"""An OpenAI-compatible chat endpoint asked for one token at a time: many at once, patiently, nothing twice."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar

from dlm.errors import UserError
from dlm.evaluation.judges.client import Client, Refusal, Usage
from dlm.evaluation.judges.replies import Reply, ReplyCache

T = TypeVar("T")
CACHE = Path(".cache/judge")
REASKS = 2  # for a reply that is no verdict
UNANSWERED = 8  # prompts in a row without any reply: the endpoint is down, not the prompt's fault
LONGEST_WAIT = 30.0  # seconds that the backoff grows to
FATAL = {
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
        timeout: seconds without a byte after which a request is given up.
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
        self._unanswered = 0

    def ask(self, prompts: Sequence[str], read: Callable[[Reply], T | None]) -> list[T | None]:
        """What `read` makes of the reply to each prompt, in order; None where no reply or no readable one came.

        Args:
            prompts: equal ones are asked once.
            read: gives None for a malformed reply, which is asked for again.

        Raises:
            UserError: the endpoint refuses the key or does not know the model, or has left UNANSWERED prompts in a row
                without a reply. What was answered until then is kept.
        """
        wanted = list(dict.fromkeys(prompts))
        self._stop.clear()
        self._unanswered = 0
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            values = dict(zip(wanted, pool.map(lambda prompt: self._value(prompt, read), wanted), strict=True))
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
        for attempt in range(1 + REASKS):
            if self._stop.is_set():
                return None
            # What greedy decoding got wrong it would get wrong again.
            reply = self._reply(prompt, temperature=1.0 if attempt else 0.0)
            if reply is None:
                break
            if (value := read(reply)) is not None:
                self._cache.put(key, reply)
                return value
        if not self._stop.is_set():
            with self._lock:
                self.usage.failures += 1
        return None

    def _reply(self, prompt: str, temperature: float) -> Reply | None:
        for attempt in range(1 + self._retries):
            with self._lock:
                self.usage.requests += 1
            outcome = self._client.send(prompt, temperature)
            if not isinstance(outcome, Refusal):
                with self._lock:
                    self._unanswered = 0
                    self.usage.prompt_tokens += outcome.prompt_tokens
                    self.usage.completion_tokens += outcome.completion_tokens
                return outcome.reply
            if not outcome.again or attempt == self._retries:
                self._give_up_on(outcome)
                return None
            delay = outcome.wait or min(self._backoff * 2**attempt, LONGEST_WAIT)
            # Never before Retry-After; spread out, so that the threads do not come back all at once.
            if self._stop.wait(delay * random.uniform(1, 1.5)):
                return None
        return None

    def _give_up_on(self, refusal: Refusal) -> None:
        with self._lock:
            self._unanswered += 1
            unanswered = self._unanswered
        if refusal.status in FATAL:
            self._stop.set()
            told = FATAL[refusal.status].format(key_variable=self._key_variable, model=self._model)
            raise UserError(f"{self._base_url}: {told} (status {refusal.status})")
        if unanswered >= UNANSWERED:
            self._stop.set()
            raise UserError(
                f"{self._base_url}: {unanswered} prompts in a row got no reply ({refusal.reason}); see that it runs "
                "and that base_url and model are right, then run again: what was answered is kept"
            )
