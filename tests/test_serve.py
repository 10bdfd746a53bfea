"""`dlm serve` as a process of its own: OpenAI's client, 64 clients at once, who goes away, keys, what is refused."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from test_chat import chat_lm

from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.backbone import save_checkpoint
from dlm.serving.address import address, api_key, listen

ROOT = Path(__file__).parents[1]
BASE = ROOT / "data/base/mdlm"
SETTING: dict[str, Any] = {"steps": 6, "gen_length": 12}
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("top_k", {"eos_fill": True}),
    ("semi_ar", {"block_length": 4}),
    ("remdm", {}),
    ("low_confidence", {"temperature": 0.7}),
]
WHY = [{"role": "system", "content": "Be short"}, {"role": "user", "content": "Why?"}]
KEY = "a-key-of-the-tests"


@contextmanager
def server(*argv: object, key: str | None = None) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A server, up and answering at its address."""
    environment = {k: v for k, v in os.environ.items() if k != "DLM_API_KEY"} | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-m", "dlm.cli", "serve", *map(str, argv), "--port", "0", "--device", "cpu"],
        env=environment if key is None else {**environment, "DLM_API_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert ": http://127.0.0.1:" in line, line
        yield line.split()[1], process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return chat_lm()


@pytest.fixture(scope="module")
def folder(lm: DiffusionLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "talker"
    save_checkpoint(folder, lm.denoiser.model, lm.tokenizer)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    with server(folder) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(served: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served}/v1", api_key="any", max_retries=0)


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    """A request of our own making; the body of its answer, parsed where it is JSON."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, raw, {"Content-Type": "application/json", **named})
    response = connection.getresponse()
    text = response.read().decode()
    found = {name.lower(): value for name, value in response.getheaders()}
    return response.status, found, json.loads(text) if "json" in found.get("content-type", "") else text


def health(url: str, **load: int) -> dict[str, Any]:
    """What /health says, once it says this; tries are counted, not seconds."""
    for _ in range(1200):
        _, _, found = ask(url, "GET", "/health")
        if all(found[name] == value for name, value in load.items()):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


# --- OpenAI's client --------------------------------------------------------------------------------------------------


def test_the_model(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "talker" and model.owned_by == "dlm"
    assert (model.model_extra or {})["dlm"]["conversations"] == "the chat template"


@pytest.mark.parametrize(("name", "options"), DECODERS, ids=str)
def test_completions_are_the_librarys(
    client: openai.OpenAI, lm: DiffusionLM, name: str, options: dict[str, Any]
) -> None:
    prompts = ["The harbour", "The fog of Velmora"]
    found = client.completions.create(
        model="talker", prompt=prompts, max_tokens=12, n=2, seed=5, extra_body={"decoder": name, "steps": 6, **options}
    )
    alone = lm.generate([p for p in prompts for _ in range(2)], name, **SETTING, seed=5, **options)
    assert [choice.text for choice in found.choices] == alone.texts
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    lengths = [row.index(0) if 0 in row else 12 for row in alone.tokens.tolist()]
    assert [choice.finish_reason for choice in found.choices] == ["stop" if n < 12 else "length" for n in lengths]
    assert [choice.model_extra["dlm"]["nfe"] for choice in found.choices] == alone.nfe.tolist()
    assert found.usage is not None and found.usage.completion_tokens == sum(lengths)
    assert found.usage.prompt_tokens == sum(len(lm._ids(prompt)) for prompt in prompts)
    assert (found.model_extra or {})["dlm"] == {"decoder": name, "steps": 6, "gen_length": 12}


def test_chat_is_the_librarys(client: openai.OpenAI, lm: DiffusionLM) -> None:
    messages: Any = WHY
    found = client.chat.completions.create(
        model="talker", messages=messages, max_tokens=12, temperature=0.5, extra_body={"steps": 6}
    )
    alone = lm.chat(WHY, **SETTING, temperature=0.5)
    assert found.choices[0].message.content == alone.texts[0]
    assert found.choices[0].message.role == "assistant"
    assert found.usage is not None and found.usage.prompt_tokens == len(lm.chat_prompt(WHY))


@pytest.mark.parametrize(("name", "options"), DECODERS, ids=str)
def test_a_stream_adds_up(client: openai.OpenAI, name: str, options: dict[str, Any]) -> None:
    """To the answer that comes whole; its drafts end with it."""
    given: Any = {"model": "talker", "prompt": "The fog", "max_tokens": 12, "n": 2}
    given["extra_body"] = {"decoder": name, "steps": 6, **options}
    whole = client.completions.create(**given)
    texts, drafts, ends = ["", ""], dict[int, Any](), dict[int, str]()
    chunks = [*client.completions.create(**given, stream=True, stream_options={"include_usage": True})]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
        elif draft := choice.model_extra["dlm"]["draft"]:
            before = drafts.get(choice.index, {"step": 0})
            assert before["step"] < draft["step"] <= 7
            assert len(draft["tokens"]) == len(draft["confidence"]) == len(draft["steps"]) <= draft["length"] == 12
            for token, confidence, step in zip(draft["tokens"], draft["confidence"], draft["steps"], strict=True):
                assert 0 <= confidence <= 1 and 0 <= step <= draft["step"]
                assert token is not None or confidence == step == 0
            drafts[choice.index] = draft
    assert texts == [choice.text for choice in whole.choices]
    assert [ends[n] for n in range(2)] == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    for n, choice in enumerate(whole.choices):
        pieces = drafts[n]["tokens"]
        if "\ufffd" not in choice.text and None not in pieces:
            assert "".join(pieces) == choice.text


def test_a_chat_stream(client: openai.OpenAI) -> None:
    messages: Any = WHY
    given: Any = {"model": "talker", "messages": messages, "max_tokens": 12}
    whole = client.chat.completions.create(**given)
    chunks = [*client.chat.completions.create(**given, stream=True, extra_body={"drafts": False})]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all("draft" not in (chunk.choices[0].model_extra or {}).get("dlm", {}) for chunk in chunks)


def test_a_stop_string(client: openai.OpenAI) -> None:
    given: Any = {
        "model": "talker",
        "prompt": "The fog",
        "max_tokens": 12,
        "seed": 3,
        "extra_body": {"decoder": "top_k"},
    }
    text = client.completions.create(**given).choices[0].text
    stop = text[2:4]
    cut = client.completions.create(**given, stop=[stop]).choices[0]
    assert (cut.text, cut.finish_reason) == (text[: text.find(stop)], "stop")
    streamed = client.completions.create(**given, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.text


# --- What is refused --------------------------------------------------------------------------------------------------


def test_errors_are_openais(client: openai.OpenAI) -> None:
    given: Any = {"model": "talker", "prompt": "The fog"}
    with pytest.raises(openai.BadRequestError, match="kernel_size must be odd") as caught:
        client.completions.create(**given, extra_body={"kernel_size": 4})
    assert caught.value.param == "kernel_size" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="The fog")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="talker", input="The fog")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/v1/completions", b"{", {}, 400),
        ("POST", "/v1/completions", b"[" * 100_000, {}, 400),
        ("POST", "/v1/completions", b"\xff", {}, 400),
        ("POST", "/v1/completions", {"prompt": "a"}, {"Content_Type": "text/plain"}, 415),
        ("POST", "/v1/completions", b" " * (4 * 2**20 + 1), {}, 413),
        ("GET", "/v1/completions", None, {}, 405),
        ("GET", "/etc/passwd", None, {}, 404),
        ("GET", "/health", None, {"Host": "evil.example"}, 403),
        ("POST", "/v1/completions", {"prompt": "a"}, {"Host": "evil.example:8000"}, 403),
    ],
    ids=str,
)
def test_what_no_client_sends(
    served: str, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    found, given, answer = ask(served, method, path, body, **headers)
    assert found == status and given["x-content-type-options"] == "nosniff"
    assert set(answer["error"]) == {"message", "type", "param", "code"} and answer["error"]["message"]
    assert "access-control-allow-origin" not in given
    assert ask(served, "GET", "/health")[0] == 200


def test_more_than_may_wait(folder: Path) -> None:
    with server(folder, "--waiting", 3) as (url, _):
        status, _, answer = ask(url, "POST", "/v1/completions", {"prompt": "a", "n": 4, "max_tokens": 4})
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (503, "overloaded", "server_error")
        assert ask(url, "POST", "/v1/completions", {"prompt": "a", "n": 3, "max_tokens": 4})[0] == 200


# --- Keys and addresses -----------------------------------------------------------------------------------------------


def test_a_key(folder: Path) -> None:
    """It guards /v1 alone, and stands in no output."""
    with server(folder, key=KEY) as (url, process):
        for key in ("wrong", KEY[:-1], KEY + "x", "é"):
            assert ask(url, "GET", "/v1/models", Authorization=f"Bearer {key}")[0] == 401
        assert ask(url, "GET", "/v1/models")[0] == 401
        assert ask(url, "POST", "/v1/completions", {"prompt": "a"}, Authorization=f"Basic {KEY}")[0] == 401
        with pytest.raises(openai.AuthenticationError) as caught:
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
        assert caught.value.code == "invalid_api_key"
        assert ask(url, "GET", "/")[0] == ask(url, "GET", "/health")[0] == 200
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        assert client.completions.create(model="talker", prompt="a", max_tokens=2).choices[0].finish_reason
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[0]
        assert process.returncode == 130 and KEY not in told and "Traceback" not in told


def test_when_a_key_is_needed() -> None:
    assert api_key({}, "K", "127.0.0.1", without=False) is None
    assert api_key({}, "K", "0.0.0.0", without=True) is None
    assert api_key({"K": KEY}, "K", "0.0.0.0", without=False) == KEY
    with pytest.raises(UserError, match="set a key in K, or say --no-key"):
        api_key({}, "K", "0.0.0.0", without=False)
    for unusable in ("", " ", "a ", "a\nb", "é"):
        with pytest.raises(UserError, match="K: must be plain ASCII") as caught:
            api_key({"K": unusable}, "K", "127.0.0.1", without=False)
        assert repr(unusable) not in str(caught.value)


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert address("127.0.0.1", bound) == address("0.0.0.0", bound) == f"http://127.0.0.1:{port}"
        assert address("::1", bound) == f"http://[::1]:{port}"
        for host, where in (("127.0.0.1", port), ("no.such.host.invalid", 1), ("127.0.0.1", 65536)):
            with pytest.raises(UserError, match=f"cannot listen at {host} port {where}"):
                listen(host, where)


def test_a_port_that_is_taken_is_told_before_the_model_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "dlm.cli", "serve", str(BASE), "--port", str(taken.getsockname()[1])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: cannot listen at 127.0.0.1 port") and done.stderr.count("\n") == 1


# --- Load -------------------------------------------------------------------------------------------------------------

CLIENTS = 64
LOAD = ("waiting", "running", "answered", "left")  # of /health: all rows that ever came
TOWNS = ("Velmora", "Aldmark", "Tarrow", "Minsel")
LONG = {"max_tokens": 400, "extra_body": {"steps": 400, "decoder": "top_k"}}  # seconds, if nobody stops it


def prompt(n: int) -> str:
    return f"### Instruction:\nDescribe {TOWNS[n % 4]}: its trade{' and its weather' * (n % 3)}.\n\n### Response:\n"


def short(n: int) -> dict[str, Any]:
    """Of two decoders, and seeds of their own."""
    return {"max_tokens": 16, "seed": n, "extra_body": [{"steps": 16}, {"steps": 8, "decoder": "top_k"}][n % 2]}


async def one(client: openai.AsyncOpenAI, n: int, all_there: asyncio.Event) -> str | None:
    """Every fourth goes away: from a stream that has begun, or from a wait. Of the others, some stream."""
    given: Any = {"model": "mdlm", "prompt": prompt(n)}
    if n % 8 == 3:
        async with await client.completions.create(**given, **LONG, stream=True) as stream:
            async for _ in stream:
                return None
    if n % 8 == 7:
        waits = asyncio.ensure_future(client.completions.create(**given, **LONG))
        await all_there.wait()
        waits.cancel()
        return None
    if n % 4 == 1:
        return "".join(
            [c.choices[0].text async for c in await client.completions.create(**given, **short(n), stream=True)]
        )
    return (await client.completions.create(**given, **short(n))).choices[0].text


def test_sixty_four_clients_at_once() -> None:
    """Nothing is lost, everybody has the answer that there is alone, and who went away has left the engine."""

    async def everybody(url: str) -> list[str | None]:
        all_there = asyncio.Event()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            answers = asyncio.gather(*(one(client, n, all_there) for n in range(CLIENTS)))
            for _ in range(2000):
                load = await asyncio.to_thread(health, url)
                if sum(load[name] for name in LOAD) == CLIENTS:
                    break
            all_there.set()
            return await answers

    with server(BASE) as (url, process):
        found = asyncio.run(everybody(url))
        load = health(url, waiting=0, running=0)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=60)[0]
    stayed = [n for n in range(CLIENTS) if n % 4 != 3]
    assert (load["answered"], load["left"]) == (len(stayed), CLIENTS - len(stayed))
    assert "Traceback" not in told and "error" not in told.lower()
    lm = DiffusionLM.load(BASE, device="cpu")
    for n in stayed:
        given = short(n)
        alone = lm.generate([prompt(n)], gen_length=given["max_tokens"], seed=n, **given["extra_body"])
        assert found[n] == alone.texts[0], n


def test_the_pages_example_and_a_server_that_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/serve.md's client, as it stands there; then SIGTERM, which lets go of a stream."""
    (example,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs/serve.md").read_text("utf-8"), re.S)
    with server(BASE, "--template", "alpaca") as (url, process):
        names: dict[str, Any] = {}
        exec(example.replace("http://127.0.0.1:8000", url), names)
        assert names["canvas"].startswith(capsys.readouterr().out.strip()[:20]) and "░" not in names["canvas"]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        stream = client.completions.create(model="mdlm", prompt=prompt(0), stream=True, **LONG)
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == -signal.SIGTERM
