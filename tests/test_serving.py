"""The serving engine without a network: answers as alone, who goes away leaves, texts only grow; bad bodies."""

import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_chat import TURNS, chat_lm
from tiny import tiny_lm

from dlm.data.template import TEMPLATES
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import decoder_options
from dlm.errors import UserError
from dlm.models.interface import backbone
from dlm.serving import body, conversation
from dlm.serving.body import Asked, BadRequest, Defaults
from dlm.serving.engine import Answer, Engine, Event, Failure, Frame, Full, Job, Setting, Update
from dlm.serving.reader import Reader

LENGTH, STEPS = 12, 6
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("top_k", {"eos_fill": True}),
    ("conv", {"kernel_size": 5}),
    ("semi_ar", {"block_length": 4}),
    ("remdm", {}),
    ("low_confidence", {"temperature": 0.7}),
]


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    """One whose answers end early now and then."""
    return tiny_lm(2, eos_scale=2.0)


class Client:
    """A job and what came of it."""

    def __init__(self, lm: DiffusionLM, decoder: int, prompts: list[list[int]], **more: Any) -> None:
        self.name, self.options = DECODERS[decoder]
        self.events: queue.Queue[Event] = queue.Queue()
        setting = Setting(decoder_options(self.name, self.options, self.name), STEPS, LENGTH)
        self.job = Job(setting, prompts, self.events.put, **more)
        self.lm = lm

    def came(self) -> list[Event]:
        """Everything up to the last answer or a failure."""
        found: list[Event] = []
        while sum(isinstance(event, Answer) for event in found) < len(self.job.prompts):
            found.append(self.events.get(timeout=60))
            if isinstance(found[-1], Failure):
                break
        return found

    def answers(self) -> list[Answer]:
        return sorted((e for e in self.came() if isinstance(e, Answer)), key=lambda answer: answer.choice)

    def check(self) -> None:
        """As `lm.generate` has it, alone."""
        given = {"steps": STEPS, "gen_length": LENGTH, "seed": self.job.seed, **self.options}
        alone = self.lm.generate(self.job.prompts, self.name, **given)
        found = self.answers()
        assert [answer.text for answer in found] == alone.texts
        assert [answer.nfe for answer in found] == alone.nfe.tolist()
        for answer, tokens in zip(found, alone.tokens.tolist(), strict=True):
            assert answer.tokens == (tokens.index(0) if 0 in tokens else LENGTH)
            assert answer.reason == ("stop" if 0 in tokens else "length")


def clients(lm: DiffusionLM, count: int, **more: Any) -> list[Client]:
    """Of all decoders, prompt lengths and seeds; one, two or three answers each, some to equal prompts."""
    made = []
    for n in range(count):
        prompt = [9 + n % 7, 70, 100 + n % 5, *[40 + n] * (n % 4)]
        made.append(Client(lm, n % len(DECODERS), [prompt] * (1 + n % 3), seed=n % 4, **more))
    return made


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def paced(lm: DiffusionLM) -> Iterator[threading.Semaphore]:
    """Every forward pass waits for a `release`."""
    pace = threading.Semaphore(0)
    hook = backbone(lm.denoiser.model).register_forward_pre_hook(lambda *_: pace.acquire() and None)
    try:
        yield pace
    finally:
        hook.remove()
        pace.release(10_000)


def wait_for(engine: Engine, **load: int) -> None:
    """Until the engine's load is this; tries are counted, not seconds."""
    for _ in range(2000):
        if all(getattr(engine.load(), name) == value for name, value in load.items()):
            return
        threading.Event().wait(0.01)
    raise AssertionError(engine.load())


# --- Batches ----------------------------------------------------------------------------------------------------------


def test_sixty_four_together_are_answered_as_each_alone(lm: DiffusionLM) -> None:
    sizes = []
    hook = backbone(lm.denoiser.model).register_forward_pre_hook(
        lambda _, args, named: sizes.append(len(named["input_ids"])) or None, with_kwargs=True
    )
    asked = clients(lm, 64)
    engine = Engine(lm, batch_size=16)
    for client in asked:
        engine.submit(client.job)
    with running(engine):
        wait_for(engine, waiting=0, running=0)
    hook.remove()
    assert max(sizes) == 16  # batches are filled, and no more than that
    for client in asked:
        client.check()
    rows = sum(len(client.job.prompts) for client in asked)
    assert (engine.load().answered, engine.load().left) == (rows, 0)


def test_those_who_come_later_wait_for_the_next_batch(lm: DiffusionLM) -> None:
    first, *others = clients(lm, 12)
    with paced(lm) as pace, running(Engine(lm, batch_size=8)) as engine:
        engine.submit(first.job)
        wait_for(engine, running=1, waiting=0)
        for client in others:
            engine.submit(client.job)
        assert engine.load().waiting == sum(len(client.job.prompts) for client in others)
        pace.release(10_000)
        for client in (first, *others):
            answers = client.answers()
            assert len(answers) == len(client.job.prompts)


def test_more_than_may_wait_are_refused(lm: DiffusionLM) -> None:
    engine = Engine(lm, capacity=3)
    engine.submit(Client(lm, 0, [[9]] * 2).job)
    with pytest.raises(Full):
        engine.submit(Client(lm, 0, [[9]] * 2).job)
    engine.submit(Client(lm, 0, [[9]]).job)
    with running(engine):
        wait_for(engine, answered=3)


# --- Who goes away ----------------------------------------------------------------------------------------------------


def test_who_waits_and_goes_away_is_never_computed(lm: DiffusionLM) -> None:
    first, second, third = clients(lm, 3)
    engine = Engine(lm, batch_size=1)
    for client in (first, second, third):
        engine.submit(client.job)
    engine.cancel(second.job)
    assert (engine.load().waiting, engine.load().left) == (4, 2)
    with running(engine):
        first.check()
        third.check()
        wait_for(engine, answered=4, left=2, waiting=0, running=0)
    assert second.events.empty()


def test_who_runs_and_goes_away_leaves_the_batch(lm: DiffusionLM) -> None:
    """After the step that runs; the others' answers stay what they are, and further passes are narrower."""
    asked = [Client(lm, 3, [[9 + n, 70]], seed=n) for n in range(4)]
    sizes = []
    with paced(lm) as pace, running(Engine(lm)) as engine:
        backbone(lm.denoiser.model).register_forward_pre_hook(
            lambda _, args, named: sizes.append(len(named["input_ids"])) or None, with_kwargs=True
        )
        for client in asked:
            engine.submit(client.job)
        wait_for(engine, running=4, waiting=0)
        engine.cancel(asked[1].job)
        engine.cancel(asked[2].job)
        pace.release(1)
        wait_for(engine, running=2, left=2)
        pace.release(10_000)
        asked[0].check()
        asked[3].check()
        wait_for(engine, answered=2, left=2, running=0)
    assert sizes[0] == 4 and max(sizes[1:]) == 2
    assert asked[1].events.empty() and asked[2].events.empty()
    backbone(lm.denoiser.model)._forward_pre_hooks.clear()


def test_cancelling_what_is_done_does_nothing(lm: DiffusionLM) -> None:
    (client,) = clients(lm, 1)
    with running(Engine(lm)) as engine:
        engine.submit(client.job)
        client.check()
        engine.cancel(client.job)
        wait_for(engine, answered=1, left=0)


def test_a_stopped_engine_drops_everything(lm: DiffusionLM) -> None:
    asked = clients(lm, 6)
    engine = Engine(lm, batch_size=1)
    with paced(lm) as pace:
        for client in asked:
            engine.submit(client.job)
        engine.start()
        wait_for(engine, running=1)
        stopping = threading.Thread(target=engine.stop)
        stopping.start()
        wait_for(engine, waiting=0)
        pace.release(10_000)
        stopping.join()
    rows = sum(len(client.job.prompts) for client in asked)
    load = engine.load()
    assert load.answered + load.left == rows and load.running == 0 and load.left >= rows - 1


# --- Failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("broken"), 500), (torch.OutOfMemoryError("no memory"), 503), (UserError("not with this"), 400)],
    ids=str,
)
def test_a_failure_is_told_and_the_next_is_served(
    lm: DiffusionLM, error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        hook.remove()
        raise error

    first, second = clients(lm, 2)
    hook = backbone(lm.denoiser.model).register_forward_pre_hook(fail)
    with running(Engine(lm)) as engine:
        engine.submit(first.job)
        (told,) = first.came()
        assert isinstance(told, Failure) and told.status == status
        assert (str(error) in told.message) == (status == 400)
        engine.submit(second.job)
        second.check()
    assert ("broken" in capsys.readouterr().err) == (status == 500)


# --- What is told on the way ------------------------------------------------------------------------------------------


def test_texts_only_grow(lm: DiffusionLM) -> None:
    """For every decoder, also those that mask again; drafts tell the whole canvas."""
    asked = clients(lm, 20, watched=True, drafts=True)
    with running(Engine(lm, batch_size=4)) as engine:
        for client in asked:
            engine.submit(client.job)
        for client in asked:
            before, texts = dict[int, Frame](), dict[int, str]()
            for event in client.came():
                assert isinstance(event, Update | Answer)
                assert event.text.startswith(texts.get(event.choice, ""))
                texts[event.choice] = event.text
                if isinstance(event, Update):
                    assert event.frame is not None and len(event.frame.tokens) == LENGTH
                    last = before.get(event.choice)
                    assert last is None or (last.step < event.frame.step and last.tokens != event.frame.tokens)
                    before[event.choice] = event.frame
            given = {"steps": STEPS, "gen_length": LENGTH, "seed": client.job.seed, **client.options}
            assert [*map(texts.get, range(len(texts)))] == lm.generate(client.job.prompts, client.name, **given).texts


@pytest.mark.parametrize("decoder", range(len(DECODERS)))
def test_a_stop_string_ends_an_answer(lm: DiffusionLM, decoder: int) -> None:
    """Where it first stands; what is certain from the left leaves the batch there."""
    prompts = [[9 + n, 70] for n in range(6)]
    whole = Client(lm, decoder, prompts)
    with running(Engine(lm)) as engine:
        engine.submit(whole.job)
        texts = [answer.text for answer in whole.answers()]
        stops = sorted({text[len(text) // 2 : len(text) // 2 + 2] for text in texts if len(text) > 3})
        assert stops
        cut = Client(lm, decoder, prompts, stops=stops, watched=True)
        engine.submit(cut.job)
        found = cut.answers()
    for answer, text in zip(found, texts, strict=True):
        places = [text.find(stop) for stop in stops if stop in text]
        assert answer.text == text[: min(places, default=len(text))]
        assert answer.reason == "stop" or not places
        assert answer.tokens <= LENGTH


# --- The reader -------------------------------------------------------------------------------------------------------


def test_the_reader_by_hand(lm: DiffusionLM) -> None:
    """é is two bytes, and so two tokens here: half of it is no text yet. Nor is what may begin a stop string."""
    ids = lm.tokenizer("é", add_special_tokens=False)["input_ids"]
    a, b, c = (lm.tokenizer.convert_tokens_to_ids(letter) for letter in "abc")
    mask = lm.denoiser.mask_id
    assert len(ids) == 2
    reader = Reader(lm.tokenizer, mask, [0], ["bc"])
    told = []
    for tokens in ([mask] * 8, [a, ids[0], mask, b, *[mask] * 4], [a, *ids, b, mask, c, mask, mask]):
        reader.read(tokens, 8)
        told.append((reader.text, reader.reason))
    reader.read([a, *ids, b, a, c, mask, mask], 8)
    told.append((reader.text, reader.reason))
    reader.read([a, *ids, b, a, c, b, c], 7)  # the last position may be masked again
    told.append((reader.text, reader.reason))
    reader.read([a, *ids, b, a, c, b, c], 8)
    assert told == [("", None), ("a", None), ("aé", None), ("aébac", None), ("aébac", None)]
    assert (reader.text, reader.reason, reader.tokens) == ("aébac", "stop", 8)


def test_the_readers_ends_by_hand(lm: DiffusionLM) -> None:
    a, mask = lm.tokenizer.convert_tokens_to_ids("a"), lm.denoiser.mask_id
    for tokens, settled, expected in (
        ([a, a, 0, mask], 4, ("aa", "stop", 2)),
        ([a, a, 0, mask], 2, ("aa", None, 2)),
        ([a, a, a, a], 4, ("aaaa", "length", 4)),
        ([0, mask, mask, mask], 4, ("", "stop", 0)),
    ):
        reader = Reader(lm.tokenizer, mask, [0])
        reader.read(tokens, settled)
        assert (reader.text, reader.reason, reader.tokens) == expected


@given(st.lists(st.integers(2, 299), max_size=10), st.data())
def test_a_readers_text_grows_to_the_whole(tokens: list[int], data: st.DataObject) -> None:
    """Whatever order the tokens come in."""
    lm = tiny_lm()
    reader, canvas = Reader(lm.tokenizer, 1, [0], ["ab", "e "]), [1] * len(tokens)
    for place in data.draw(st.permutations(range(len(tokens)))):
        before = reader.text
        canvas[place] = tokens[place]
        reader.read(canvas, len(canvas))
        assert reader.text.startswith(before)
    text = lm.tokenizer.decode(tokens)
    cuts = [text.find(stop) for stop in ("ab", "e ") if stop in text]
    assert not tokens or reader.text == text[: min(cuts, default=None)]


# --- Conversations ----------------------------------------------------------------------------------------------------


def test_the_chat_template_comes_first() -> None:
    lm = chat_lm()
    lm.template = TEMPLATES["alpaca"]
    assert conversation.form(lm) == conversation.CHAT
    assert conversation.prompt_ids(lm, TURNS) == lm.chat_prompt(TURNS)


def test_a_prompt_template_takes_turn_after_turn(lm: DiffusionLM) -> None:
    talking = tiny_lm(2)
    talking.template = TEMPLATES["alpaca"]
    assert conversation.form(talking) == conversation.TEMPLATE
    text = talking.tokenizer.decode(conversation.prompt_ids(talking, TURNS))
    first = "### Instruction:\nBe short.\n\n The harbour? \n\n### Response:\nIt opens at dawn.\n\n"
    assert text == first + "### Instruction:\nAnd the fog?\n\n### Response:\n"


def test_without_a_template_turns_are_lines(lm: DiffusionLM) -> None:
    assert conversation.form(lm) == conversation.BARE
    text = lm.tokenizer.decode(conversation.prompt_ids(lm, TURNS))
    assert text == "Be short.\n The harbour? \nIt opens at dawn.\nAnd the fog?"
    with pytest.raises(UserError, match="must end with a message of the user"):
        conversation.prompt_ids(lm, TURNS[:3])


def test_the_oldest_turns_go(lm: DiffusionLM) -> None:
    """A user's turn with its answer; the system's message and the last one stay."""
    long = [TURNS[0], *TURNS[1:3] * 4, TURNS[3]]
    whole = len(conversation.prompt_ids(lm, long))
    last = len(conversation.prompt_ids(lm, [TURNS[0], TURNS[3]]))
    assert whole > 64 > last
    kept, ids, gone = conversation.that_fits(lm, long, 12)
    assert len(ids) + 12 <= 64 and gone in (2, 4, 6, 8) and len(kept) + gone == len(long)
    assert kept == [TURNS[0], *long[1 + gone :]]
    more = conversation.prompt_ids(lm, [TURNS[0], *long[gone - 1 :]])
    assert len(more) + 12 > 64  # no more went than had to
    assert conversation.that_fits(lm, TURNS[3:], 12) == (TURNS[3:], conversation.prompt_ids(lm, TURNS[3:]), 0)
    with pytest.raises(UserError, match=r"the message has \d+ tokens.*the model's 64 positions; shorten"):
        conversation.that_fits(lm, long, 60)


# --- Bodies -----------------------------------------------------------------------------------------------------------


def asked(lm: DiffusionLM, defaults: Defaults | None = None, **given: Any) -> Asked:
    return body.completion(lm, "tiny", defaults or Defaults(max_tokens=16), {"prompt": "The fog", **given})


def test_what_a_plain_body_asks_for(lm: DiffusionLM) -> None:
    found = asked(lm)
    ids = lm._ids("The fog")
    assert found.rows == [ids] and found.prompt_tokens == len(ids)
    assert (found.setting.steps, found.setting.gen_length, found.seed, found.stops) == (16, 16, 0, ())
    assert not found.stream and found.decoder == "conv"
    assert found.setting.options == body.checked_decoder(None, {})[0]


def test_several_prompts_and_answers(lm: DiffusionLM) -> None:
    found = asked(lm, prompt=[[9, 70], "The fog"], n=2, max_tokens=4, stop="x", seed=-3, user="me", top_p=1.0)
    ids = lm._ids("The fog")
    assert found.rows == [[9, 70], [9, 70], ids, ids] and found.prompt_tokens == 2 + len(ids)
    assert (found.setting.steps, found.setting.gen_length, found.seed, found.stops) == (4, 4, -3, ("x",))
    assert asked(lm, prompt=[9, 70]).rows == [[9, 70]]


def test_the_servers_defaults(lm: DiffusionLM) -> None:
    """Its options are those of its decoder: a request that names another gets none of them."""
    defaults = Defaults("top_k", {"top_k": 3}, steps=5, max_tokens=10)
    own = asked(lm, defaults)
    assert own.setting == Setting(decoder_options("top_k", {"top_k": 3}, ""), 5, 10)
    changed = asked(lm, defaults, kernel_size=3, steps=2)
    assert changed.setting == Setting(decoder_options("top_k", {"top_k": 3, "kernel_size": 3}, ""), 2, 10)
    other = asked(lm, defaults, decoder="remdm")
    assert other.setting == Setting(decoder_options("remdm", {}, ""), 5, 10)


def test_the_answers_default_length_is_what_fits(lm: DiffusionLM) -> None:
    assert asked(lm, prompt=[9] * 60).setting.gen_length == 4


def test_temperature_goes_to_decoders_that_have_one(lm: DiffusionLM) -> None:
    assert asked(lm, temperature=1).setting.options.temperature == 1.0  # type: ignore[attr-defined]
    assert asked(lm, temperature=None).setting == asked(lm).setting


REFUSED: dict[str, tuple[Any, str | None, str]] = {
    "no object": ([1], None, "the body must be a JSON object"),
    "no prompt": ({}, "prompt", "prompt must be a text"),
    "an empty list": ({"prompt": []}, "prompt", "prompt must be a text"),
    "a number": ({"prompt": 3}, "prompt", "prompt must be a text"),
    "mixed": ({"prompt": [3, "a"]}, "prompt", "prompt must be a text"),
    "outside the vocabulary": ({"prompt": [300]}, "prompt", "outside the vocabulary of 300"),
    "another model": ({"prompt": "a", "model": "gpt-4"}, "model", "is not served here; 'tiny' is"),
    "too long": ({"prompt": "a", "max_tokens": 64}, "max_tokens", "exceeds the model's 64 positions"),
    "a long prompt": ({"prompt": [9] * 64}, "max_tokens", "exceeds the model's 64 positions"),
    "no tokens": ({"prompt": "a", "max_tokens": 0}, "max_tokens", "max_tokens must be at least 1"),
    "half a token": ({"prompt": "a", "max_tokens": 1.5}, "max_tokens", "max_tokens must be a whole number"),
    "true is no number": ({"prompt": "a", "n": True}, "n", "n must be a whole number"),
    "too many": ({"prompt": "a", "n": 129}, "n", "n must be between 1 and 128"),
    "too many prompts": ({"prompt": ["a"] * 65, "n": 2}, "n", "must be at most 128, got 130"),
    "a step too few": ({"prompt": "a", "steps": 0}, "steps", "steps must be at least 1"),
    "stream": ({"prompt": "a", "stream": "yes"}, "stream", "stream must be true or false"),
    "stop": ({"prompt": "a", "stop": [""]}, "stop", "none of them empty"),
    "seed": ({"prompt": "a", "seed": "x"}, "seed", "seed must be a whole number"),
    "top_p": ({"prompt": "a", "top_p": 0.9}, "top_p", "top_p has no meaning"),
    "logprobs": ({"prompt": "a", "logprobs": 5}, "logprobs", "logprobs has no meaning"),
    "a decoder": ({"prompt": "a", "decoder": "beam"}, "decoder", "'beam' is not a decoder"),
    "no decoder": ({"prompt": "a", "decoder": 3}, "decoder", "decoder must be a decoder's name"),
    "an option": ({"prompt": "a", "kernel_sise": 3}, "kernel_sise", "did you mean kernel_size"),
    "its value": ({"prompt": "a", "kernel_size": 4}, "kernel_size", "kernel_size must be odd"),
    "blocks": ({"prompt": "a", "block_length": 5}, "block_length", "must divide gen_length"),
    "a temperature": (
        {"prompt": "a", "decoder": "top_k", "temperature": 1},
        "temperature",
        "temperature must be left out: top_k has none",
    ),
    "a cold one": ({"prompt": "a", "temperature": -1}, "temperature", "temperature must be at least 0"),
    "half a pair": ({"prompt": "a\ud800"}, "prompt", "not valid Unicode"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bodies_that_are_refused(lm: DiffusionLM, case: str) -> None:
    given, field, told = REFUSED[case]
    with pytest.raises(BadRequest, match=re.escape(told)) as caught:
        body.completion(lm, "tiny", Defaults(max_tokens=16), given)
    assert caught.value.field == field and "\n" not in str(caught.value)


def test_messages(lm: DiffusionLM) -> None:
    """Contents in parts, and OpenAI's name for the system."""
    parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "fog?"}]
    given = [{"role": "developer", "content": "Short.", "name": None}, {"role": "user", "content": parts}]
    found = body.chat(lm, "tiny", Defaults(), {"messages": given, "max_completion_tokens": 3, "max_tokens": 3})
    assert lm.tokenizer.decode(found.rows[0]) == "Short.\nThe fog?" and found.setting.gen_length == 3
    for wrong, told in (
        (None, "messages must be a list"),
        ([], "must end with a message of the user"),
        ([{"role": "tool", "content": "x"}], "message 0: role must be one of system, user, assistant"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 0: content must be text"),
        (["hello"], "message 0 must have a role and a content"),
    ):
        with pytest.raises(BadRequest, match=told) as caught:
            body.chat(lm, "tiny", Defaults(), {"messages": wrong})
        assert caught.value.field == "messages"
