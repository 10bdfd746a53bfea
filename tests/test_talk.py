"""`dlm chat`: several turns through a pipe and on a terminal, its commands, what no longer fits, Ctrl-C."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_chat import chat_lm
from tiny import tiny_lm

from dlm.analysis.escape import printable
from dlm.cli import request
from dlm.cli.main import main
from dlm.data.template import TEMPLATES, Template
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.backbone import save_checkpoint
from dlm.serving import conversation

ROOT = Path(__file__).parents[1]
TEMPLATE = Template("Q: {instruction}\nA:", "Q: {instruction}\nI: {input}\nA:")
SMALL = ["--steps", "4", "--gen-length", "8", "--device", "cpu"]
SETTING: dict[str, Any] = {"steps": 4, "gen_length": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    lm = tiny_lm(2)
    save_checkpoint(folder, lm.denoiser.model, lm.tokenizer)
    TEMPLATE.save(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder: Path) -> DiffusionLM:
    return DiffusionLM.load(folder, device="cpu")


def talk(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, *options: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    main(["chat", str(folder), *SMALL, *options])


def answers(lm: DiffusionLM, turns: list[str], decoder: str | None = None, **setting: Any) -> list[str]:
    """A conversation whose answers the library gives, one after the other."""
    messages: list[dict[str, str]] = []
    texts = []
    for text in turns:
        messages += [{"role": "user", "content": text}]
        kept, ids, _ = conversation.that_fits(lm, messages, 8)
        texts += lm.generate([ids], decoder, **{**SETTING, **setting}).texts
        messages = [*kept, {"role": "assistant", "content": texts[-1]}]
    return [printable(text) for text in texts]


def test_several_turns_through_a_pipe(
    lm: DiffusionLM, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers alone on stdout; what an answer says depends on the turns before it."""
    talk(monkeypatch, folder, "Why?\n\nAnd?\n", "--set", "kernel_size=3")
    found = capsys.readouterr()
    expected = answers(lm, ["Why?", "And?"], kernel_size=3)
    assert found.out == "".join(f"{text}\n" for text in expected)
    assert found.err == "messages go into the prompt template\n"
    assert expected[1] != answers(lm, ["And?"], kernel_size=3)[0]


def test_commands(
    lm: DiffusionLM, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["Why?", "/reset", "/decoder top_k", "/set top_k=5", "/steps 2", "And?", "/quit", "More?"]
    talk(monkeypatch, folder, "\n".join(lines))
    expected = [*answers(lm, ["Why?"]), *answers(lm, ["And?"], "top_k", top_k=5, steps=2)]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in expected)


def test_a_message_that_begins_with_a_slash(
    lm: DiffusionLM, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(monkeypatch, folder, "//quit\n")
    assert capsys.readouterr().out == answers(lm, ["/quit"])[0] + "\n"


def test_the_oldest_turns_go_and_that_is_said_once(
    lm: DiffusionLM, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = ["The harbour?", "The fog?", "The boats?", "The trade?", "Why?"]
    talk(monkeypatch, folder, "\n".join(turns))
    found = capsys.readouterr()
    assert found.out == "".join(f"{text}\n" for text in answers(lm, turns))
    assert found.err.count("the oldest turns are left out") == 1


def test_a_chat_template_and_a_system_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = chat_lm()
    save_checkpoint(tmp_path, lm.denoiser.model, lm.tokenizer)
    talk(monkeypatch, tmp_path, "Why?\n", "--system", "Be short")
    found = capsys.readouterr()
    turns = [{"role": "system", "content": "Be short"}, {"role": "user", "content": "Why?"}]
    assert found.out == printable(lm.chat(turns, **SETTING).texts[0]) + "\n"
    assert found.err == "messages go into the chat template\n"
    with pytest.raises(UserError, match=r"--template alpaca: .* has a chat template; leave it out"):
        talk(monkeypatch, tmp_path, "Why?\n", "--template", "alpaca")


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("/foo", [], "/foo is no command; /help lists them"),
        ("/decoder beam", [], "'beam' is not a decoder"),
        ("/set kernel_size=4", [], "kernel_size must be odd"),
        ("/steps 0", [], "/steps must be a whole number, at least 1, got '0'"),
        ("/decoder semi_ar", [], "block_length must divide gen_length"),
        ("Why? " * 40, [], "the message has [0-9]+ tokens with its template"),
        ("Why?", ["--template", "x"], "--template must be one of alpaca, llada, dream, got 'x'"),
        ("Why?", ["--decoder", "beam"], "'beam' is not a decoder"),
        ("Why?", ["--set", "decoder=conv"], "--set decoder=...: use --decoder"),
        ("Why?", ["--gen-length", "0"], "--gen-length must be at least 1"),
    ],
)
def test_mistakes(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, options: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        talk(monkeypatch, folder, text, *options)


def test_on_a_terminal(lm: DiffusionLM, folder: Path) -> None:
    """Frames, then the answer; a mistake is told and the talk goes on; Ctrl-C takes a message back; Ctrl-D ends."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TERM": "xterm", "COLUMNS": "80"}
    slow = ["--steps", "16", "--gen-length", "16", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlm.cli", "chat", str(folder), *slow],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""

    def until(pattern: str) -> str:
        nonlocal seen
        while not (found := re.search(pattern.encode(), seen)):
            assert select.select([ours], [], [], 60)[0], f"no {pattern!r} in {seen!r}"
            seen += os.read(ours, 4096)
        text, seen = seen[: found.end()], seen[found.end() :]
        return text.decode("utf-8", "replace")

    def say(text: str) -> None:
        os.write(ours, text.encode() + b"\n")

    try:
        until("/help says what else you can do")
        until("> ")
        say("/foo")
        until("error: /foo is no command")
        say("Why?")
        until("step 3/16")
        process.send_signal(signal.SIGINT)
        until("stopped; the message is taken back")
        until("> ")
        say("And?")
        until(r"16 steps · NFE \d+")
        until("> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_the_names_of_templates() -> None:
    """They are checked before what has the templates is imported."""
    assert tuple(TEMPLATES) == request.TEMPLATES
