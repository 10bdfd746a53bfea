"""The `dlm` command: what it lists, reads, prints and refuses; and that what a model writes cannot steer a terminal."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_chat import chat_lm
from tiny import tiny_lm

from dlm.analysis.escape import one_line, printable
from dlm.cli import cli
from dlm.cli import main as command_main
from dlm.cli.decoders import meanings, options_of, overview, summary
from dlm.cli.main import main
from dlm.cli.prompts import Prompt, read_prompts
from dlm.cli.watch import View, watched
from dlm.data.template import Template
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DECODERS, RULES, decoder_options
from dlm.errors import UserError
from dlm.models.backbone import save_checkpoint

ROOT = Path(__file__).parents[1]
TEMPLATE = Template("Q: {instruction}\nA:", "Q: {instruction}\nI: {input}\nA:")
SMALL = ["--steps", "4", "--gen-length", "8", "--device", "cpu"]
SETTING: dict[str, Any] = {"steps": 4, "gen_length": 8}
DLM = [sys.executable, "-m", "dlm.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
RED = "\x1b[31mred\x9b0m\x07"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a template. A random byte-level model: it writes control characters, too."""
    folder = tmp_path_factory.mktemp("raw")
    lm = tiny_lm(2)
    save_checkpoint(folder, lm.denoiser.model, lm.tokenizer)
    return folder


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a template."""
    folder = tmp_path_factory.mktemp("instruct")
    lm = tiny_lm(2)
    save_checkpoint(folder, lm.denoiser.model, lm.tokenizer)
    TEMPLATE.save(folder)
    return folder


@pytest.fixture(scope="module")
def lm(instruct: Path) -> DiffusionLM:
    return DiffusionLM.load(instruct, device="cpu")


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """And frames as fast as they come."""
    stdin(monkeypatch, b"")
    monkeypatch.setattr("dlm.cli.watch.LEAST", 0.0)


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def json_rows(capsys: pytest.CaptureFixture[str], *argv: object) -> list[dict[str, Any]]:
    main([*map(str, argv), "--json"])
    captured = capsys.readouterr()
    assert captured.err == ""
    return [json.loads(line) for line in captured.out.splitlines()]


def dlm(*argv: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """`dlm` as a process of its own."""
    command = [*DLM, *map(str, argv)]
    return subprocess.run(command, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=120, **options)


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


# --- decoders -------------------------------------------------------------------------------------------------------


def test_the_overview_names_every_decoder_once() -> None:
    lines = overview().splitlines()
    assert [line.split()[0] for line in lines] == list(DECODERS)
    assert all(line.endswith(summary(name)) and summary(name) for name, line in zip(DECODERS, lines, strict=True))


@pytest.mark.parametrize("name", DECODERS)
def test_every_option_is_listed_with_its_default_and_a_meaning(name: str) -> None:
    options = decoder_options(name, {}, name)
    text = options_of(name)
    for field in fields(options):
        value = getattr(options, field.name)
        shown = value if isinstance(value, str) else json.dumps(value)
        assert re.search(rf"^  {field.name} \(.+; default {re.escape(shown)}\)\n {{6}}\S", text, re.M), field.name
    assert ("  rule (" in text) == (name not in RULES)
    assert "None" not in text


def test_meanings_by_hand() -> None:
    class Base:
        """First.

        Attributes:
            one: the first
                of two lines.
            two, three: both.
        """

    class Own(Base):
        """Second.

        Attributes:
            two: its own.
        """

    assert meanings(Own) == {"one": "the first of two lines.", "two": "its own.", "three": "two, three: both."}


def test_types_of_options() -> None:
    text = options_of("conv")
    assert "kernel_size (whole number or null; default 33)" in text
    assert "gain (tanh | linear | sigmoid | step; default tanh)" in text
    assert text.index("kernel_size") < text.index("Options of every decoder") < text.index("eos_fill")


def test_decoders_start_without_torch() -> None:
    code = "import sys; from dlm.cli.main import main; main(['decoders']); main(['decoders', 'conv'])"
    code += "; print([name for name in ('torch', 'transformers', 'numpy', 'rich') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


# --- generate -------------------------------------------------------------------------------------------------------


def test_json_is_what_the_library_returns(lm: DiffusionLM, instruct: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["The harbour", "Describe it."]
    rows = json_rows(capsys, "generate", instruct, *SMALL, "--seed", 5, "--set", "kernel_size=3", *prompts)
    whole = [lm.prompt(prompt) for prompt in prompts]
    out = lm.generate(whole, **SETTING, seed=5, kernel_size=3)
    assert rows == [
        {
            "prompt": f"Q: {prompts[b]}\nA:",
            "prompt_ids": whole[b],
            "text": out.texts[b],
            "tokens": out.tokens[b].tolist(),
            "nfe": out.nfe[b].item(),
            "leftover_masks": out.leftover_masks[b].item(),
            "commit_step": out.commit_step[b].tolist(),
        }
        for b in range(2)
    ]


def test_texts_alone_and_under_headings(lm: DiffusionLM, instruct: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["one", "two\nlines"]
    texts = [printable(text) for text in lm.generate([*map(lm.prompt, prompts)], **SETTING).texts]
    main(["generate", str(instruct), *SMALL, "one"])
    assert capsys.readouterr().out == texts[0] + "\n"
    main(["generate", str(instruct), "one", *SMALL, prompts[1]])
    assert capsys.readouterr().out == f"==> one <==\n{texts[0]}\n\n==> two lines <==\n{texts[1]}\n"


def test_prompts_behind_a_double_dash(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", *SMALL, "--json", str(raw), "--", "-5 degrees", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["-5 degrees", "--json"]


@pytest.mark.parametrize(
    ("options", "expected"), [([], "Q: It.\nA:"), (["--instruction"], "Q: It.\nA:"), (["--raw"], "It.")]
)
def test_the_template(instruct: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str) -> None:
    assert json_rows(capsys, "generate", instruct, *SMALL, *options, "It.")[0]["prompt"] == expected


def test_without_a_template_prompts_are_raw(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json_rows(capsys, "generate", raw, *SMALL, "It.")[0]["prompt"] == "It."
    with pytest.raises(UserError, match="no prompt template"):
        main(["generate", str(raw), *SMALL, "--instruction", "It."])


def test_a_block_of_params_yaml(
    lm: DiffusionLM, instruct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of lists of candidates the first of each."""
    text = (ROOT / "params.yaml").read_text("utf-8")
    path = tmp_path / "params.yaml"
    block = "  conv:\n    rule: [low_confidence, top_k]\n    kernel_size: [5, 3]\n    eos_fill: true\n"
    path.write_text(re.sub(r"^  conv:\n(    .*\n)+", block, text, count=1, flags=re.M), "utf-8")
    argv = ["generate", instruct, *SMALL, "--params", path, "--block", "conv", "It."]
    prompt, options = lm.prompt("It."), {"rule": "low_confidence", "kernel_size": 5, "eos_fill": True}
    assert json_rows(capsys, *argv)[0]["tokens"] == lm.generate([prompt], **SETTING, **options).tokens[0].tolist()
    changed = json_rows(capsys, *argv, "--set", "rule=top_k", "--set", "top_k=2")[0]["tokens"]
    options |= {"rule": "top_k", "top_k": 2}
    assert changed == lm.generate([prompt], **SETTING, **options).tokens[0].tolist()


def test_values_are_read_as_yaml(lm: DiffusionLM, instruct: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"kernel_size": None, "eos_fill": True, "rule": "low_confidence", "temperature": 0.5}
    argv = ["--decoder", "repetition_penalty", "--set", "kernel_size=null", "--set", "eos_fill=true"]
    argv += ["--set", "rule=low_confidence", "--set", "temperature=0.5"]
    rows = json_rows(capsys, "generate", instruct, *SMALL, *argv, "It.")
    out = lm.generate([lm.prompt("It.")], "repetition_penalty", **SETTING, **changes)
    assert rows[0]["tokens"] == out.tokens[0].tolist()


def test_a_trace(lm: DiffusionLM, instruct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("an older one")
    rows = json_rows(capsys, "generate", instruct, *SMALL, "--batch-size", 1, "--trace", path, "Describe it.", "It.")
    trace = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert set(trace[0]) == {"step", "row", "offset", "token", "text", "confidence"}
    for b, row in enumerate(rows):
        # Conv masks nothing again: the last word on each position is the only one.
        written = {change["offset"]: change for change in trace if change["row"] == b}
        assert len(written) == sum(change["row"] == b for change in trace) == 8
        assert [written[i]["step"] for i in range(8)] == row["commit_step"]
        end = row["tokens"].index(0) if 0 in row["tokens"] else 8
        assert [written[i]["token"] for i in range(end)] == row["tokens"][:end]
    assert all(change["text"] == lm.tokenizer.decode([change["token"]]) for change in trace)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]


# --- Special tokens and conversations ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with both templates, whose special tokens no text can write."""
    folder = tmp_path_factory.mktemp("chatting")
    lm = chat_lm()
    save_checkpoint(folder, lm.denoiser.model, lm.tokenizer)
    Template("<|startoftext|>{instruction}<|eot_id|>", "<|startoftext|>{instruction} {input}<|eot_id|>").save(folder)
    return folder


def test_what_json_prints_gives_the_same_answer_again(
    chatting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Special tokens stand in the ids; in the text beside them they would be text."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Why?"}]}) + '\n{"instruction": "It."}')
    first = json_rows(capsys, "generate", chatting, *SMALL, "--prompts", path)
    assert [row["prompt"] for row in first] == [
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|startoftext|>It.<|eot_id|>",
    ]
    assert all(2 in row["prompt_ids"] and 5 in row["prompt_ids"] for row in first)
    path.write_text("\n".join(map(json.dumps, first)))
    assert json_rows(capsys, "generate", chatting, *SMALL, "--prompts", path) == first
    path.write_text("\n".join(json.dumps({"prompt": row["prompt"]}) for row in first))
    with pytest.raises(UserError, match="exceeds the model's"):  # as text, it is many more tokens
        main(["generate", str(chatting), *SMALL, "--prompts", str(path)])


def test_chat(chatting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text is the user's first message; a conversation of a file goes on; --system is for those that have none."""
    lm = DiffusionLM.load(chatting, device="cpu")
    user, system = {"role": "user", "content": "Why?"}, {"role": "system", "content": "Be brief"}

    def asked(*argv: object) -> list[int]:
        [row] = json_rows(capsys, "generate", chatting, *SMALL, *argv)
        assert row["tokens"] == lm.generate([row["prompt_ids"]], **SETTING).tokens[0].tolist()
        return list(row["prompt_ids"])

    path = tmp_path / "prompts.json"
    assert asked("--chat", "Why?") == lm.chat_prompt([user])
    assert asked("--chat", "--system", "Be brief", "Why?") == lm.chat_prompt([system, user])
    turns = [user, {"role": "assistant", "content": "So"}, {"role": "user", "content": "Oh"}]
    path.write_text(json.dumps([{"messages": turns}]))
    assert asked("--prompts", path) == asked("--chat", "--prompts", path) == lm.chat_prompt(turns)
    path.write_text(json.dumps([{"messages": [system, user]}]))
    assert asked("--chat", "--system", "No", "--prompts", path) == lm.chat_prompt([system, user])
    path.write_text(json.dumps([{"instruction": "Why", "input": "now"}]))
    assert asked("--chat", "--prompts", path) == lm.chat_prompt([{"role": "user", "content": "Why\n\nnow"}])


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([{"role": "user"}], [], ["record 1", "message 0", "content"]),
        ([], [], ["record 1", "end with a message of the user"]),
        ([{"role": "user", "content": "nothing"}], [], ["record 1", "chat template does not take", "something"]),
        ([{"role": "user", "content": "a"}], ["--raw"], ["record 1", "messages", "--raw"]),
    ],
)
def test_what_chat_refuses(
    chatting: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    messages: list[Any],
    options: list[str],
    words: list[str],
) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"messages": messages}]))
    assert_refused(["generate", str(chatting), *SMALL, "--prompts", str(path), *options], words, capsys)


# --- Where prompts come from ----------------------------------------------------------------------------------------


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\n\n  \ntwo\u2028{still two}\n{three".encode())
    found = read_prompts([], path, "--prompts")
    assert [prompt.text for prompt in found] == ["one", "two\u2028{still two}", "{three"]
    assert found[1] == Prompt("two\u2028{still two}", f"{path}:4")


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_json_lines(instruct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    rows = [
        {"instruction": "Describe it.", "output": "ignored"},
        {"instruction": "It.", "input": "Velmora"},
        {"prompt": "As it\nis"},
        {"instruction": "It.", "input": None},
    ]
    path = tmp_path / name
    path.write_text("\n\n".join(map(json.dumps, rows)))
    expected = ["Q: Describe it.\nA:", "Q: It.\nI: Velmora\nA:", "As it\nis", "Q: It.\nA:"]
    found = json_rows(capsys, "generate", instruct, *SMALL, "--prompts", path)
    assert [row["prompt"] for row in found] == expected
    again = tmp_path / "again.jsonl"
    again.write_text("\n".join(json.dumps(row) for row in found))
    assert json_rows(capsys, "generate", instruct, *SMALL, "--prompts", again) == found


ROWS: list[Any] = [{"instruction": "Describe it."}, "It.", {"prompt": "As it\nis"}]


@pytest.mark.parametrize("content", [json.dumps(ROWS), json.dumps(ROWS, indent=2), "\n".join(map(json.dumps, ROWS))])
def test_json_is_read_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """An array by what it holds, lines by their first, whatever the file is called, and from stdin."""
    for name in ("prompts.json", "prompts.txt"):
        (tmp_path / name).write_text(content)
        found = read_prompts([], tmp_path / name, "--prompts")
        assert [(prompt.text, prompt.kind) for prompt in found] == [
            ("Describe it.", "instruction"),
            ("It.", "text"),
            ("As it\nis", "prompt"),
        ]
    stdin(monkeypatch, content.encode())
    assert [prompt.text for prompt in read_prompts([], None, "--prompts")] == [prompt.text for prompt in found]


def test_one_object_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps({"instruction": "It.", "input": "Velmora"}, indent=2))
    assert read_prompts([], path, "--prompts") == [Prompt("It.", f"{path}:1", "instruction", "Velmora")]


def test_a_text_that_begins_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    for text in ("[MASK:3] opens", "{three", "[1] is a footnote", "42", '"So"'):
        path.write_text(text)
        assert [prompt.text for prompt in read_prompts([], path, "--texts", infill=True)] == [text]


def test_stdin(raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for argv in ([], ["--prompts", "-"]):
        stdin(monkeypatch, b"one\ntwo\n")
        assert [row["prompt"] for row in json_rows(capsys, "generate", raw, *SMALL, *argv)] == ["one", "two"]


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"caf\xe9", r"prompts.jsonl: not UTF-8 \(byte 3\)"),
    "empty": (b" \n\n", "empty"),
    "broken": (b'{"prompt": "a"}\n{"prompt"', "prompts.jsonl:2: not valid JSON"),
    "broken at once": (b'{"prompt"', "prompts.jsonl:1: not valid JSON"),
    "a list": (b'{"prompt": "a"}\n["a"]', "prompts.jsonl:2: wants an object with instruction, prompt, messages or"),
    "an empty array": (b"[ ]", "holds no text"),
    "a number in an array": (b'["a",\n 3]', "prompts.jsonl: record 2: wants an object"),
    "an array in an array": (b'[{"prompt": "a"}, ["b"]]', "prompts.jsonl: record 2: wants an object"),
    "an array cut short": (b'[{"prompt": "a"},\n', "prompts.jsonl:1: not valid JSON"),
    "ids and an instruction": (b'{"prompt_ids": [5], "instruction": "a"}', "one of them"),
    "ids that are text": (b'{"prompt_ids": ["a"]}', "prompts.jsonl:1: prompt_ids must be a list of token ids"),
    "ids that are true": (b'{"prompt_ids": [true]}', "prompt_ids must be a list of token ids"),
    "no ids": (b'{"prompt_ids": null}', "prompt_ids must be a list of token ids, got None"),
    "messages that are text": (b'{"messages": "a"}', "prompts.jsonl:1: messages must be a list of objects"),
    "messages of text": (b'{"messages": ["a"]}', "messages must be a list of objects"),
    "neither": (b'{"text": "a"}', "prompts.jsonl:1: wants an object"),
    "both": (b'{"prompt": "a", "instruction": "b"}', "one of them"),
    "number": (b'{"prompt": 3}', "prompt must be text, got 3"),
    "input": (b'{"instruction": "a", "input": [1]}', "input must be text"),
    "half a pair": (b'{"prompt": "\\ud83d"}', "prompts.jsonl:1: not valid Unicode"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, case: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(BAD_LINES[case][0])
    with pytest.raises(UserError, match=BAD_LINES[case][1]):
        read_prompts([], path, "--prompts")


# --- infill ---------------------------------------------------------------------------------------------------------


def test_infill(lm: DiffusionLM, instruct: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["The [MASK:3] of [MASK]", "[MASK:5]."]
    canvases = [lm._canvas(text) for text in texts]
    out = lm.infill(texts, steps=4, seed=1, temperature=0.5)
    argv = ["infill", str(instruct), "--device", "cpu", "--steps", "4", "--seed", "1", "--set", "temperature=0.5"]
    rows = json_rows(capsys, *argv, *texts)
    assert [(row["canvas"], row["text"], row["gaps"]) for row in rows] == [
        *zip(texts, out.texts, out.gaps, strict=True)
    ]
    assert [row["tokens"] for row in rows] == [tokens.tolist() for tokens in out.tokens]
    assert [row["canvas_ids"] for row in rows] == canvases
    main([*argv, texts[0]])
    assert capsys.readouterr().out == printable(out.texts[0]) + "\n"


def test_ids_of_gaps_go_round(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids say what a text cannot: a special token beside a gap."""
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"canvas_ids": [5, 0, 1, 1, 70]}))
    first = json_rows(capsys, "infill", raw, "--device", "cpu", "--texts", path, "--seed", 3)
    assert first[0]["canvas_ids"] == [5, 0, 1, 1, 70] and first[0]["tokens"][:2] == [5, 0]
    path.write_text(json.dumps(first[0]))
    assert json_rows(capsys, "infill", raw, "--device", "cpu", "--texts", path, "--seed", 3) == first


def test_infill_reads_json_lines(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "Two\n[MASK:2] lines"}))
    trace = tmp_path / "trace.jsonl"
    rows = json_rows(capsys, "infill", raw, "--device", "cpu", "--texts", path, "--trace", trace)
    assert rows[0]["canvas"] == "Two\n[MASK:2] lines" and len(rows[0]["gaps"]) == 1
    assert len(trace.read_text().splitlines()) == 2


# --- Hostile text ---------------------------------------------------------------------------------------------------


def test_printable_by_hand() -> None:
    assert printable(RED) == r"\x1b[31mred\x9b0m\x07"
    assert printable("a\tb\r\nc\nd\re") == "a\tb\nc\nd\\re"
    assert printable("\x00\x7f\x85\ud800") == r"\x00\x7f\x85\ud800"
    plain = "Ωμέγα 漢字 🙂 e\u0301 \u200d ─ \\x1b"
    assert printable(plain) == plain


def test_headings_are_one_short_line() -> None:
    assert one_line(f"a\n {RED}\tb") == rf"a {printable(RED)} b"
    assert len(one_line("a" * 300)) == 100


def controls(text: str) -> set[str]:
    return {character for character in text if ord(character) < 32 or 127 <= ord(character) < 160} - {"\n", "\t"}


def test_plain_text_holds_no_control_characters(lm: DiffusionLM, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the model, from a prompt in a heading, and from the context of a gap."""
    hostile = [RED, "The"]
    argv = ["--steps", "4", "--gen-length", "40", "--device", "cpu", "--decoder", "categorical"]
    assert any(controls(text) for text in lm.generate(hostile, "categorical", steps=4, gen_length=40).texts)
    main(["generate", str(raw), *argv, *hostile])
    out = capsys.readouterr().out
    assert not controls(out) and printable(RED) in out
    main(["infill", str(raw), "--device", "cpu", RED + "[MASK:2]"])
    out = capsys.readouterr().out
    assert not controls(out) and printable(RED) in out


def test_json_is_pure_ascii(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["infill", str(raw), "--device", "cpu", "--json", RED + "é[MASK:2]"])
    out = capsys.readouterr().out
    assert out.isascii() and not controls(out) and json.loads(out)["text"].startswith(RED + "é")


# --- watch ----------------------------------------------------------------------------------------------------------


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=400, height=50, color_system="truecolor")


def test_watch_ends_with_the_text(lm: DiffusionLM) -> None:
    console = terminal()
    prompt = lm.prompt("Describe it.")
    out = watched(
        console, lm, [lm.denoiser.mask_id] * 8, 4, lambda watch: lm.generate([prompt], **SETTING, watch=watch)
    )
    written = console.file.getvalue()  # type: ignore[attr-defined]
    shown = without_codes(written)
    assert f"step 0/4 · NFE 0 · 8 masks left\n{'░' * 8}" in shown.replace("\r", "")
    assert f"step 4/4 · NFE {int(out.nfe[0]) - bool(out.leftover_masks[0])}" in shown
    last = written.rpartition(" steps · NFE ")[2]
    assert last.startswith(str(int(out.nfe[0])))
    assert last.partition("\n")[2].split() == printable(out.texts[0]).split()
    assert out.texts == lm.generate([prompt], **SETTING).texts
    assert written.endswith("\n") and "\x1b[?25h" in written  # the cursor is back


@pytest.mark.parametrize(
    "options",
    [{}, {"cfg_scale": 1.0}, {"cache": False}, {"kernel_size": 1}],
    ids=["plain", "guided", "all", "leftover"],
)
def test_watch_counts_what_the_library_counts(lm: DiffusionLM, options: dict[str, Any]) -> None:
    console = terminal()
    canvas = [lm.denoiser.mask_id] * 8
    setting = {"decoder": "conv", **SETTING, **options}
    out = watched(console, lm, canvas, 4, lambda watch: lm.generate(["It."], **setting, watch=watch))
    counts = re.findall(r"NFE (\d+) ·", without_codes(console.file.getvalue()))  # type: ignore[attr-defined]
    assert int(counts[-1]) == int(out.nfe[0])
    assert not lm.denoiser.model.get_decoder()._forward_hooks


def test_frames_by_hand(lm: DiffusionLM) -> None:
    """Masks as blocks, fresh tokens highlighted once, ends as dots, escape sequences as text."""
    console, mask = terminal(), lm.denoiser.mask_id
    ids = lm.tokenizer.backend_tokenizer.encode(RED + "é", add_special_tokens=False).ids
    view = View(lm, [mask] * (len(ids) + 3))
    for canvas in ([*ids, mask, mask, 0], [*ids, ids[0], mask, 0]):
        console.print(view.frame(canvas, "status"))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    lines = written.splitlines()
    text, escape = printable(RED) + "é", printable("\x1b")
    assert [without_codes(line) for line in lines] == ["status", f"{text}░░·", "status", f"{text}{escape}░·"]
    assert f"\x1b[30;42m{text}" in lines[1]
    assert lines[3].startswith(f"{text}\x1b[30;42m{escape}\x1b[0m")
    assert not {"\x9b", "\x07"} & set(written)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("argv", [["generate", *SMALL], ["infill", "--device", "cpu"]], ids=["generate", "infill"])
def test_watch_from_the_command_line(raw: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "300", "LINES": "50"}.items():
        monkeypatch.setenv(name, value)
    shown, piped = Terminal(), io.StringIO()
    for stdout in (shown, piped):
        monkeypatch.setattr(sys, "stdout", stdout)
        main([argv[0], str(raw), *argv[1:], "--watch", "The [MASK:4]" + RED])
    text = piped.getvalue()
    assert "step" not in text and "\x1b" not in text
    screen = without_codes(shown.getvalue())
    assert "step 1/4" in screen and "░" in screen and "\x1b" not in screen
    assert screen.rpartition(" steps · NFE ")[2].partition("\n")[2].split() == text.split()


def test_a_terminal_is_told_that_a_checkpoint_is_loaded(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the seconds that it takes; no stream that is read by a program."""
    for command in (["generate", *SMALL], ["infill", "--device", "cpu"]):
        shown = Terminal()
        monkeypatch.setattr(sys, "stderr", shown)
        main([command[0], str(raw), *command[1:], "The [MASK]"])
        assert shown.getvalue() == f"loading {raw} ...\n"
        assert "loading" not in capsys.readouterr().out


# --- What is refused ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "decoder": (["--decoder", "convv", "a"], ["'convv'", "low_confidence"]),
    "option": (["--set", "kernel_sise=5", "a"], ["conv.kernel_sise", "did you mean kernel_size"]),
    "value": (["--set", "kernel_size=64", "a"], ["conv.kernel_size must be odd", "64"]),
    "type": (["--decoder", "conv", "--set", "top_k=five", "a"], ["conv.top_k", "whole number", "'five'"]),
    "an option of another rule": (["--set", "top_k=5", "a"], ["conv.top_k must be given with rule: top_k", "5"]),
    "list": (["--decoder", "conv", "--set", "top_k=[5]", "a"], ["conv.top_k", "whole number"]),
    "no value": (["--set", "top_k=", "a"], ["KEY=VALUE", "'top_k='"]),
    "no equals": (["--set", "top_k", "a"], ["KEY=VALUE", "'top_k'"]),
    "not YAML": (["--set", "top_k=[", "a"], ["--set top_k"]),
    "decoder as an option": (["--set", "decoder=top_k", "a"], ["--decoder"]),
    "reserved name": (["--set", "name=a", "a"], ["conv.name", "not a known key"]),
    "steps": (["--steps", "0", "a"], ["--steps must be at least 1"]),
    "gen_length": (["--gen-length", "0", "a", "--decoder", "semi_ar"], ["--gen-length must be at least 1"]),
    "batch_size": (["--batch-size", "0", "a"], ["--batch-size must be at least 1"]),
    "a number that is none": (["--steps", "many", "a"], ["--steps", "'many'"]),
    "blocks": (["--decoder", "semi_ar", "--gen-length", "40", "a"], ["semi_ar.block_length", "divide"]),
    "both decoders": (["--decoder", "conv", "--block", "conv", "a"], ["--block and --decoder"]),
    "params alone": (["--params", str(ROOT / "params.yaml"), "a"], ["--params", "--block"]),
    "no block": (["--params", str(ROOT / "params.yaml"), "--block", "nope", "a"], ["decoding.nope", "conv"]),
    "value in a block": (
        ["--params", str(ROOT / "params.yaml"), "--block", "conv", "--set", "kernel_size=2", "a"],
        ["params.yaml: decoding.conv.kernel_size", "odd"],
    ),
    "no params": (["--params", "nope.yaml", "--block", "conv", "a"], ["nope.yaml", "no such file"]),
    "two templates": (["--raw", "--instruction", "a"], ["--raw", "not allowed with"]),
    "chat and raw": (["--raw", "--chat", "a"], ["--raw", "not allowed with"]),
    "chat without a chat template": (["--device", "cpu", "--chat", "a"], ["text 1", "no chat template"]),
    "a system prompt without chat": (["--system", "a", "a"], ["--system must be given with --chat", "'a'"]),
    "two sources": (["--prompts", "x.txt", "a"], ["--prompts", "exclude each other"]),
    "no file": (["--prompts", "nope.txt"], ["nope.txt", "cannot be read"]),
    "empty stdin": ([], ["stdin", "no text"]),
    "an argument that is not UTF-8": (["caf\udce9"], ["text 1", "Unicode"]),
    "watch and json": (["--watch", "--json", "a"], ["--watch and --json"]),
    "watch two": (["--watch", "a", "b"], ["--watch", "got 2"]),
    "trace into a folder": (["--trace", "/", "a"], ["--trace /", "not a plain file"]),
    "trace into a device": (["--trace", "/dev/null", "a"], ["/dev/null", "not a plain file"]),
    "trace into nowhere": (["--trace", "/nope/trace", "a"], ["/nope is not a folder"]),
    "device": (["--device", "abacus", "a"], ["--device 'abacus'", "cpu"]),
    "a device without memory": (["--device", "meta", "a"], ["--device 'meta'"]),
    "unknown flag": (["--stepps", "3", "a"], ["--stepps"]),
    "empty instruction": (["--device", "cpu", " "], ["text 1", "instruction is empty"]),
    "too long": (["--device", "cpu", "--gen-length", "64", "a"], ["64 positions"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_generate_refuses(
    instruct: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    argv, words = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    assert_refused(["generate", str(instruct), *argv], words, capsys)
    assert list(tmp_path.iterdir()) == []


def assert_refused(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """By a UserError, or by argparse as `error: ...` and status 2; one line, and nothing printed."""
    with pytest.raises((UserError, SystemExit)) as caught:
        main(argv)
    captured = capsys.readouterr()
    message = str(caught.value) if isinstance(caught.value, UserError) else captured.err.rstrip("\n")
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2 and message.startswith("error: ")
    assert captured.out == "" and "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["infill", "X", "no gap"], ["gap"]),
        (["infill", "X", "--decoder", "semi_ar", "[MASK]"], ["semi_ar.block_length", "infilling"]),
        (["infill", "X", "--set", "eos_fill=true", "[MASK]"], ["conv.eos_fill"]),
        (["infill", "X", "--watch", "[MASK]", "[MASK]"], ["--watch", "got 2"]),
        (["infill", "X", "--watch", "no gap"], ["gap"]),
        (["decoders", "convv"], ["'convv'", "conv"]),
        (["generate", "no/such/folder", "a"], ["no/such/folder", "no such folder"]),
        (["generate", "", "a"], ["no such folder"]),
        (["generate", "/", "a"], ["config.json"]),
        (["generate"], ["checkpoint"]),
        (["fly"], ["'fly'", "generate"]),
        ([], ["COMMAND"]),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_what_is_refused(raw: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]) -> None:
    assert_refused([str(raw) if word == "X" else word for word in argv], words, capsys)


def test_a_terminal_is_not_waited_for(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for nobody in (Terminal("typed"), None):
        monkeypatch.setattr(sys, "stdin", nobody)
        assert_refused(["generate", str(raw)], ["no texts were given", "--prompts", "stdin"], capsys)


def test_raw_has_no_place_for_an_input(instruct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"instruction": "a", "input": "b"}')
    argv = ["generate", str(instruct), *SMALL, "--prompts", str(path)]
    assert_refused([*argv, "--raw"], ["prompts.jsonl:1", "input", "--raw"], capsys)


# --- As a process ---------------------------------------------------------------------------------------------------


def test_generate_from_stdin_in_a_process(lm: DiffusionLM, instruct: Path) -> None:
    done = dlm("generate", instruct, *SMALL, "--json", input=b"Describe it.\n", stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    out = lm.generate([lm.prompt("Describe it.")], **SETTING)
    assert json.loads(done.stdout)["tokens"] == out.tokens[0].tolist()


def test_a_mistake_in_a_process(instruct: Path) -> None:
    done = dlm("generate", instruct, "--set", "kernel_sise=5", "a", input=b"", stdout=subprocess.PIPE)
    message = b"error: conv.kernel_sise is not a known key; did you mean kernel_size?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", message)


def test_ctrl_c(instruct: Path, tmp_path: Path) -> None:
    """While it waits for its prompts: the writer's end of a fifo opens when the reader is there."""
    fifo = tmp_path / "prompts"
    os.mkfifo(fifo)
    command = [*DLM, "generate", str(instruct), "--prompts", str(fifo)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with fifo.open("wb"):
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, b"", b"")


def test_ctrl_c_behind_a_failing_finally(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("clean-up")

    monkeypatch.setattr(command_main, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli()
    assert caught.value.code == 130
    monkeypatch.setattr(command_main, "main", lambda: [][0])
    with pytest.raises(IndexError):
        cli()


def test_a_closed_pipe_ends_quietly() -> None:
    """As with `| head -1`: nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    done = dlm("decoders", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout() -> None:
    with Path("/dev/full").open("w") as full:
        done = dlm("decoders", stdout=full)
    assert done.returncode == 2 and done.stderr.startswith(b"error: No space left") and done.stderr.count(b"\n") == 1
