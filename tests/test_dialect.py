"""One YAML for DVC and for us: spellings, what is written, `dvc exp run -S`."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from workspaces import Workspace

from dlm.cli import request
from dlm.cli.main import parsers
from dlm.config.yaml import dump_yaml, load_yaml, split_variant
from dlm.pipeline.profiles import render

ROOT = Path(__file__).parents[1]
SPELLINGS: dict[str, Any] = {
    "3e-05": 3e-5,
    "3e-5": 3e-5,
    "1e5": 1e5,
    ".5e-3": 0.5e-3,
    "1.0e-2": 0.01,
    "-2E+3": -2000.0,
    "1.e3": 1000.0,
    "+.5": 0.5,
    ".5": 0.5,
    "1_000": 1000,
    "1_0.5": 10.5,
    "-.inf": -float("inf"),
    "1e400": float("inf"),
    "010": 10,
    "08": 8,
    "-010": -10,
    "0o17": 15,
    "0x1F": 31,
    "0b11": 3,
    "true": True,
    "False": False,
    "null": None,
    "~": None,
    "2024-01-31": datetime.date(2024, 1, 31),
    **{word: word for word in ("yes", "No", "on", "OFF", "y", "n")},
    **{word: word for word in ("1:30", "1:30.5", "-1:30", "_1", "e5", "1e", ".", "0o8", "0xg", "1e5 m")},
    **{f"{quote}{word}{quote}": word for quote in "'\"" for word in ("3e-05", "010", "true", "null", "1:30")},
}


def of_dvc(text: str) -> Any:
    return YAML(typ="safe").load(text)


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_spelling(text: str) -> None:
    wanted = SPELLINGS[text]
    for found in (load_yaml(f"a: {text}")["a"], of_dvc(f"a: {text}")["a"]):
        assert (type(found), found) == (type(wanted), wanted)
    assert load_yaml(f"{{a: [{text}]}}") == {"a": [wanted]}


@settings(max_examples=1000, derandomize=True, deadline=None)
@given(st.text("0123456789.eE+-:xob", min_size=1, max_size=7))
def test_what_looks_like_a_number_is_read_as_dvc_reads_it(text: str) -> None:
    """But `.5e3`: a number in YAML 1.2, to DVC's reader text, which wants a sign in the exponent."""
    try:
        theirs = of_dvc(f"[{text}]")
    except Exception:
        return  # no YAML, or `.` and the like, which its reader stumbles on
    ours = load_yaml(f"[{text}]")
    if isinstance(ours[0], float) and "." in text[:2] and isinstance(theirs[0], str):
        assert ours == [float(text)]
    else:
        assert repr(ours) == repr(theirs)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(
    st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none() | st.text() | st.sampled_from([*SPELLINGS])
)
@example(3e-5)
@example(1e16)
def test_what_is_written_is_read_alike(value: Any) -> None:
    """By YAML 1.1, 1.2 and here."""
    text = dump_yaml({"a": value})
    for found in (load_yaml(text)["a"], yaml.safe_load(text)["a"], of_dvc(text)["a"]):
        assert (type(found), found) == (type(value), value)


def test_a_float_is_written_with_its_point() -> None:
    assert dump_yaml({"b": 3e-5, "a": ["3e-5", 1e16]}) == "b: 3.0e-05\na:\n- '3e-5'\n- 1.0e+16\n"


@pytest.mark.parametrize("text", ["a: [", "a: 2024-99-99", "a: !!bool 3", "a: !!timestamp x", "a: 1\na: 2", "[" * 5000])
def test_what_is_no_yaml(text: str) -> None:
    with pytest.raises(ValueError):
        load_yaml(text)


def test_a_rendered_profile_is_read_alike(tmp_path: Path) -> None:
    """And keeps its spellings where it can."""
    (tmp_path / "builtin.yaml").write_text("a: 1.0e-2  # why\nb: 1\nc: x\n")
    lines = [f"k{index}: {text}" for index, text in enumerate(SPELLINGS)]
    (tmp_path / "fast.yaml").write_text("\n".join(["b: 3e-5", *lines]))
    text = render(tmp_path, "fast")
    wanted = {"a": 0.01, "b": 3e-5, "c": "x", **{f"k{i}": value for i, value in enumerate(SPELLINGS.values())}}
    assert load_yaml(text) == yaml.safe_load(text) == of_dvc(text) == wanted
    assert "\na: 1.0e-2  # why\nb: 3.0e-05\nc: x\n" in text and ": 0x1F\n" in text and ": '1:30'\n" in text


def test_a_value_on_the_command_line() -> None:
    words = [str(ROOT / "data/base/mdlm"), "Say it.", "--decoder", "threshold", "--set", "threshold=9e-1"]
    assert request.check(parsers()[1]["generate"].parse_intermixed_args(words)).decoders[0].options.threshold == 0.9
    assert split_variant("factor:factor=2e0,suffix=none", "decoder") == ("factor", {"factor": 2.0, "suffix": "none"})


SCRIPT = """
import json
from dataclasses import asdict
from dlm.config.params import load_params
with open("read.json", "w") as file:
    json.dump(asdict(load_params()), file)
"""
STAGE = {"cmd": "python read.py", "params": ["sft", "r2ft", "base", "report"], "outs": ["read.json"]}


def test_dvc_exp_run_sets_what_is_read(tmp_path: Path) -> None:
    """DVC writes `3e-05`, `1:30` and `on` plain."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "profiles/builtin.yaml").read_bytes())
    (tmp_path / "read.py").write_text(SCRIPT)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"read": STAGE}}))
    folder = object.__new__(Workspace)  # of its own files
    folder.folder = tmp_path
    folder.run("git", "init", "-q")
    folder.name_user()
    folder.run("dvc", "init", "-q")
    folder.run("git", "add", "-A")
    folder.run("git", "commit", "-qm", "start")
    changes = ["sft.training.learning_rate=3e-5", "r2ft.gamma=1e-7", "base.held_out=0", "report.title='1:30'"]
    folder.run("dvc", "exp", "run", *(word for change in changes for word in ("-S", change)))
    written = (tmp_path / "params.yaml").read_text()
    assert "learning_rate: 3e-05" in written and "title: 1:30" in written
    found = json.loads((tmp_path / "read.json").read_text())
    assert found["sft"]["training"]["learning_rate"] == 3e-5
    assert (found["r2ft"]["gamma"], found["base"]["held_out"], found["report"]["title"]) == (1e-7, 0.0, "1:30")
    folder.run("dvc", "exp", "run", "-S", "report.title=on")
    assert json.loads((tmp_path / "read.json").read_text())["report"]["title"] == "on"
