"""One thread owns the model. Rows that want the same decoding go through it together; whoever goes away leaves."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from dlm.decoding.decoder import make_decoder
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.loop import Draft, decode
from dlm.decoding.noise import row_keys
from dlm.decoding.options import DecoderOptions
from dlm.errors import UserError
from dlm.serving.reader import Reader

GATHER = 0.005  # seconds that an idle engine waits for more rows: those sent at once then share their first batch


@dataclass(frozen=True)
class Setting:
    """What the rows of one batch share."""

    options: DecoderOptions
    steps: int
    gen_length: int


@dataclass(frozen=True)
class Frame:
    """One row's draft: what `Draft` says of it."""

    step: int
    tokens: list[int]
    confidence: list[float]
    commit_step: list[int]
    nfe: int


@dataclass(frozen=True)
class Update:
    """News of a row: the beginning of its answer that is certain, and its draft where that is wanted."""

    choice: int
    text: str
    frame: Frame | None


@dataclass(frozen=True)
class Answer:
    """A row's end.

    Attributes:
        reason: stop or length.
        tokens: of the answer.
        nfe, leftover_masks: as `Decoded` has them.
    """

    choice: int
    text: str
    reason: str
    tokens: int
    nfe: int
    leftover_masks: int


@dataclass(frozen=True)
class Failure:
    """Decoding failed, for all rows that were in it."""

    message: str
    status: int


Event = Update | Answer | Failure


class Full(Exception):
    """More rows wait than the engine takes."""


@dataclass(eq=False)
class Job:
    """The rows of one request.

    Attributes:
        prompts: token ids; the rows' noise is that of `DiffusionLM.generate(prompts, seed=seed)`.
        put: called with every event, from the engine's thread.
        stops: strings that end an answer; they are no part of it.
        watched: whether updates are wanted, and `drafts`, whether with drafts.
        gone: nobody waits for it any more.
    """

    setting: Setting
    prompts: Sequence[list[int]]
    put: Callable[[Event], None]
    seed: int = 0
    stops: Sequence[str] = ()
    watched: bool = False
    drafts: bool = False
    gone: bool = False


@dataclass(eq=False)
class _Row:
    job: Job
    choice: int
    key: Tensor  # []
    reader: Reader
    shown: list[int] = field(default_factory=list)  # the last draft that was sent

    @property
    def ids(self) -> list[int]:
        return self.job.prompts[self.choice]


@dataclass(frozen=True)
class Load:
    """Rows that wait, that are in the running batch, that were answered, and that left before."""

    waiting: int
    running: int
    answered: int
    left: int


class Engine:
    """Batches of at most `batch_size` rows, the longest waiting first; at most `capacity` rows wait."""

    def __init__(self, lm: DiffusionLM, batch_size: int = 32, capacity: int = 1024) -> None:
        self.lm, self.batch_size, self.capacity = lm, batch_size, capacity
        self._waiting: list[_Row] = []
        self._running = self._answered = self._left = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Drop what waits and what runs, and wait for the thread's end."""
        with self._changed:
            self._closed = True
            self._left += len(self._waiting)
            self._waiting = []
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Raises Full."""
        tokenizer, ends, mask_id = self.lm.tokenizer, self.lm.ends, self.lm.denoiser.mask_id
        keys = row_keys(job.prompts, job.seed)
        rows = [_Row(job, n, key, Reader(tokenizer, mask_id, ends, job.stops)) for n, key in enumerate(keys)]
        with self._changed:
            if len(self._waiting) + len(rows) > self.capacity:
                raise Full
            self._waiting += rows
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Its waiting rows go now, its running ones after this step. Nothing happens to a job that is done."""
        job.gone = True
        with self._changed:
            rest = [row for row in self._waiting if row.job is not job]
            self._left += len(self._waiting) - len(rest)
            self._waiting = rest

    def load(self) -> Load:
        with self._changed:
            return Load(len(self._waiting), self._running, self._answered, self._left)

    # --- The engine's own thread --------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while rows := self._next():
            try:
                self._decode(rows)
            except UserError as error:  # what this model cannot do (a cache, say) shows only here
                self._fail(rows, str(error), 400)
            except torch.OutOfMemoryError:
                self._fail(rows, "the device is out of memory; ask for less, or serve with a smaller --batch-size", 503)
            except Exception:  # a fault of one decoding; the others go on
                traceback.print_exc(file=sys.stderr)
                self._fail(rows, "decoding failed; the server's own output says why", 500)
            with self._changed:
                self._running = 0

    def _next(self) -> list[_Row]:
        """The next batch; none when the engine is stopped."""
        batch: list[_Row] = []
        while not batch and not self._closed:
            with self._changed:
                idle = not self._waiting
                self._changed.wait_for(lambda: self._waiting or self._closed)
            if idle:
                time.sleep(GATHER)
            with self._changed:
                same = [row for row in self._waiting if row.job.setting == self._waiting[0].job.setting]
                batch = same[: self.batch_size]
                self._waiting = [row for row in self._waiting if row not in batch]
                self._running = len(batch)
        return batch

    def _decode(self, rows: list[_Row]) -> None:
        setting, left = rows[0].job.setting, set[int]()
        done = decode(
            self.lm.denoiser,
            [row.ids for row in rows],
            make_decoder(setting.options),
            gen_length=setting.gen_length,
            steps=setting.steps,
            keys=torch.stack([row.key for row in rows]),
            eos_id=self.lm.tokenizer.eos_token_id,
            ends=self.lm.ends,
            padding=self.lm.padding,
            follow=partial(self._follow, rows, left),
        )
        for place, row in enumerate(rows):
            if place not in left:
                row.reader.read(done.tokens[place].tolist(), setting.gen_length)
                self._answer(row, int(done.nfe[place]), int(done.leftover_masks[place]))

    def _follow(self, rows: list[_Row], left: set[int], draft: Draft) -> set[int]:
        """Tell what is new after a step; who leaves: those that nobody waits for, and those at a stop string."""
        for place, row in enumerate(rows):
            if place in left:
                continue
            job, stopped = row.job, False
            if job.watched or job.stops:
                tokens = draft.tokens[place].tolist()
                row.reader.read(tokens, draft.settled)
                stopped = bool(job.stops) and row.reader.reason == "stop"
                if job.watched and tokens != row.shown and not job.gone:
                    row.shown = tokens
                    job.put(Update(row.choice, row.reader.text, _frame(draft, place) if job.drafts else None))
            if job.gone or self._closed:
                left.add(place)
                with self._changed:
                    self._left += 1
                    self._running -= 1
            elif stopped:
                left.add(place)
                self._answer(row, int(draft.nfe[place]), 0)
        return left

    def _answer(self, row: _Row, nfe: int, leftover_masks: int) -> None:
        reader = row.reader
        with self._changed:
            self._answered += 1
            self._running -= 1
        row.job.put(Answer(row.choice, reader.text, reader.reason or "length", reader.tokens, nfe, leftover_masks))

    def _fail(self, rows: list[_Row], message: str, status: int) -> None:
        for job in {row.job for row in rows if not row.job.gone}:
            job.put(Failure(message, status))


def _frame(draft: Draft, place: int) -> Frame:
    return Frame(
        draft.step,
        draft.tokens[place].tolist(),
        draft.confidence[place].tolist(),
        draft.commit_step[place].tolist(),
        int(draft.nfe[place]),
    )
