"""A file of one's own in data/input, tracked by DVC: experiments in other folders and colleagues have it, too."""

import json
import time
from pathlib import Path

import pytest
import yaml
from test_sharing import tasks
from workspaces import Workspace, running

from dlm.pipeline.profiles import merge

FILE = "data/input/sums.jsonl"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What docs/your-data.md says: a file, its parameters, `dvc add`, a commit, and the stage prepare."""
    folder = tmp_path_factory.mktemp("own")
    made = Workspace(folder / "owner")
    rows = [{"instruction": f"What is {a} plus {b}?", "output": f"{a + b}."} for a in range(9) for b in range(9)]
    (made.folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    merge(made.params, {"data": {"source": "file", "file": {"path": FILE}}, "tokenizer": {"vocab_size": 300}})
    made.write(made.params)
    made.run("dvc", "remote", "modify", "local", "url", str(folder / "remote"))
    made.run("dvc", "add", FILE)
    made.run("dvc", "repro", "prepare")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "own data")
    return made


def test_git_holds_what_leads_to_the_file(own: Workspace) -> None:
    """The file itself, and what nobody has added, stay out of it."""
    (own.folder / "data/input/other.jsonl").write_text("{}\n")
    tracked = own.run("git", "ls-files", "data/input").stdout.split()
    assert tracked == ["data/input/README.md", f"{FILE}.dvc"]
    assert own.run("git", "status", "--porcelain", "--untracked-files=all").stdout == ""
    (own.folder / "data/input/other.jsonl").unlink()
    assert "prepare" not in own.stale()


def test_a_temporary_folder_has_the_file(own: Workspace) -> None:
    own.run("dvc", "exp", "run", "--temp", "-n", "apart", "-S", "data.eval_size=5", "prepare")
    assert examples(own, "apart") == 5


def test_a_queue_has_the_file(own: Workspace) -> None:
    own.run("dvc", "exp", "run", "--queue", "-n", "queued", "-S", "data.eval_size=6", "prepare")
    own.run("dvc", "queue", "start")
    try:
        deadline = time.monotonic() + 240
        while set(tasks(own).values()) & {"Queued", "Running"}:
            assert time.monotonic() < deadline
            time.sleep(2)
    finally:
        own.run("dvc", "queue", "stop", "--kill", check=False)
    assert tasks(own) == {"queued": "Success"}
    assert examples(own, "queued") == 6


def examples(workspace: Workspace, name: str) -> int:
    """Evaluation prompts that an experiment has prepared."""
    (ref,) = workspace.run("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").stdout.split()
    lock = yaml.safe_load(workspace.run("git", "show", f"{ref}:dvc.lock").stdout)
    (out,) = lock["stages"]["prepare"]["outs"]
    cache = workspace.folder / ".dvc/cache/files/md5"
    listing = json.loads((cache / out["md5"][:2] / out["md5"][2:]).read_text())
    (md5,) = [entry["md5"] for entry in listing if entry["relpath"] == "stats.json"]
    return json.loads((cache / md5[:2] / md5[2:]).read_text())["examples"]["eval"]


def test_a_colleague_pulls_the_file(own: Workspace, tmp_path: Path) -> None:
    """And what was made of it: nothing to run."""
    own.run("dvc", "push", "prepare", f"{FILE}.dvc")
    own.run("git", "clone", "-q", str(own.folder), str(tmp_path / "colleague"))
    there = own.at(tmp_path / "colleague")
    there.run("dvc", "pull", "prepare", f"{FILE}.dvc")
    assert (there.folder / FILE).read_bytes() == (own.folder / FILE).read_bytes()
    assert running(there.run("dvc", "repro", "prepare").stdout) == set()
