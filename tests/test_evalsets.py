"""The paper's evaluation sets, each from rows in its own layout."""

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from dlm.config.data import EvaluationSetParams
from dlm.data.records import Record
from dlm.errors import UserError
from dlm.sources.evaluation_sets import CHAIN_OF_THOUGHT, SETS, read_evaluation_set

ROWS: dict[str, tuple[str, list[dict[str, Any]], tuple[str, str]]] = {
    "alpaca_eval": (
        "sets.json",
        [{"instruction": "Name a port.", "output": "Velmora.", "generator": "g", "dataset": "d", "id": 0}],
        ("Name a port.", "Velmora."),
    ),
    "mt_bench": (
        "sets.jsonl",
        [{"question_id": 81, "category": "writing", "turns": ["Write a line.", "Again."]}],
        ("Write a line.", ""),
    ),
    "wiki": ("sets.json", [{"instruction": "Explain fog.", "output": "", "id": "f", "category": "c"}],
             ("Explain fog.", "")),
    "arena_hard": (
        "sets.jsonl",
        [{"uid": "u", "category": "c", "cluster": "x", "prompt": "Sort a list."}],
        ("Sort a list.", ""),
    ),
    "gsm8k": (
        "sets.jsonl",
        [{"question": "How many?", "answer": "2 boats carry 3 each.\n2*3=<<2*3=6>>6000\n#### 6,000"}],
        ("How many?", "6000"),
    ),
}  # fmt: skip


def put(folder: Path, file: str, rows: list[dict[str, Any]]) -> str:
    path = folder / file
    lines = "\n".join(map(json.dumps, rows))
    path.write_text(lines if file.endswith("l") else json.dumps(rows), encoding="utf-8")
    return str(path)


def test_every_set_is_tested() -> None:
    assert set(ROWS) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_rows_of_the_layout(tmp_path: Path, name: Any) -> None:
    """Twice the same row under two ids: every prompt is kept, in order, with its place."""
    file, (row,), (instruction, output) = ROWS[name]
    rows = [row, {key: 82 if key == "question_id" else "v" if key == "uid" else value for key, value in row.items()}]
    found = read_evaluation_set(EvaluationSetParams(name, put(tmp_path, file, rows), False))
    assert found == [Record(instruction, "", output, {"set": name, "place": place}) for place in (0, 1)]


def test_lines_of_a_prompt_end_as_unix_has_it(tmp_path: Path) -> None:
    path = put(tmp_path, "sets.json", [{"instruction": "Explain\r\nfog.\r\n"}])
    (found,) = read_evaluation_set(EvaluationSetParams("wiki", path, False))
    assert found.instruction == "Explain\nfog."


def test_chain_of_thought_is_asked_for_behind_the_question(tmp_path: Path) -> None:
    file, rows, _ = ROWS["gsm8k"]
    (found,) = read_evaluation_set(EvaluationSetParams("gsm8k", put(tmp_path, file, rows), True))
    assert found.instruction == f"How many?\n\n{CHAIN_OF_THOUGHT}"


def test_another_sets_file(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", ROWS["gsm8k"][1])
    with pytest.raises(UserError, match=r"record 1 is not one of arena_hard .*; set data\.evaluation\.path"):
        read_evaluation_set(EvaluationSetParams("arena_hard", path, False))


def test_wiki_needs_a_copy() -> None:
    with pytest.raises(UserError, match=r"wiki is not on the hub; set data\.evaluation\.path"):
        read_evaluation_set(EvaluationSetParams("wiki", None, False))


def test_an_id_that_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "arena.jsonl"
    path.write_text("".join(json.dumps({"uid": uid, "prompt": "Say it."}) + "\n" for uid in ("a", "b", "a")))
    with pytest.raises(UserError, match=r"arena.jsonl: records 1 and 3 have the same id a; keep one"):
        read_evaluation_set(EvaluationSetParams("arena_hard", str(path), False))


def test_from_the_hub(tmp_path: Path) -> None:
    """The hub's client against a server with its routes and headers: the repository, the file, and a missing file."""
    asked: list[str] = []
    body = json.dumps(ROWS["alpaca_eval"][1]).encode()

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = self.path == "/datasets/tatsu-lab/alpaca_eval/resolve/main/alpaca_eval.json"
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body) if found else 0))
            self.end_headers()
            if found and self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    hub = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    code = (
        "import sys; from dlm.config.data import EvaluationSetParams as Set\n"
        "from dlm.sources.evaluation_sets import *\n"
        "from dlm.pipeline.start import run_script\n"
        "run_script(lambda: print(read_evaluation_set(Set(sys.argv[1], None, False))))"
    )
    try:
        done, missing = (
            subprocess.run([sys.executable, "-c", code, name], env=environment, capture_output=True, text=True)
            for name in ("alpaca_eval", "gsm8k")
        )
    finally:
        server.shutdown()
        server.server_close()
    record = Record("Name a port.", "", "Velmora.", {"set": "alpaca_eval", "place": 0})
    assert (done.returncode, done.stdout) == (0, f"[{record}]\n"), done.stderr
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert missing.stderr.startswith("error: data.evaluation: gsm8k could not be loaded from the hub")
    assert any(path.startswith("/datasets/openai/gsm8k/resolve/main/main/test-") for path in asked)
