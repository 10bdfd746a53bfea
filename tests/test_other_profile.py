"""stages/other_profile.py: the whole pipeline on a profile, in a folder of its own."""

import json
from pathlib import Path

import pytest
import yaml
from workspaces import TINY, Workspace

from dlm.pipeline.profiles import merge


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With a profile that is small enough."""
    made = Workspace(tmp_path_factory.mktemp("other_profile"))
    profile: dict = json.loads(json.dumps(TINY))
    few = {"decode": {"steps": [4], "seeds": [0]}, "decoding": {"top_k": {"top_k": 1}, "conv": {"kernel_size": 9}}}
    merge(profile, {**few, "report": {"decoders": ["semi_ar", "conv"], "title": "Tiny"}})
    (made.folder / "profiles/tiny.yaml").write_text(yaml.safe_dump(profile))
    return made


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_whole_profile(repository: Workspace) -> None:
    """Its report's folder, but for the durations; nothing of the default run is touched, and it comes out again."""
    command = ("dvc", "repro", "sweeps/dvc.yaml:other_profile@tiny")
    params = yaml.safe_load((repository.folder / "params.yaml").read_text())
    repository.write({**params, "sweeps": {**params["sweeps"], "profiles": ["tiny"]}})
    repository.know_sweeps()
    repository.run(*command)
    results = repository.folder / "results/tiny"
    assert {"table.json", "table.md", "report.html", "figures", "metrics"} <= files(results)
    assert "run.json" not in files(results)
    cells = {(row["checkpoint"], row["decoder"]) for row in json.loads((results / "table.json").read_text())}
    assert cells == {("reference", "nucleus"), *((c, d) for c in ("sft", "r2ft") for d in ("semi_ar", "conv"))}
    assert files(repository.folder / "build") == {"profiles"}
    assert "didn't change" in repository.run(*command).stdout
    [run] = [run for run in repository.runs() if run.data.tags.get("stage") == "other_profile"]
    assert "r2ft-conv.quality_S4" in run.data.metrics


def test_a_stage_that_fails_is_told(repository: Workspace) -> None:
    """What there was stays."""
    results = repository.folder / "results/broken"
    results.mkdir(parents=True)
    (results / "table.md").write_text("as it was")
    profile = yaml.safe_load((repository.folder / "profiles/tiny.yaml").read_text())
    merge(profile, {"base": {"init": "checkpoint", "checkpoint": "nowhere/at/all"}})
    (repository.folder / "profiles/broken.yaml").write_text(yaml.safe_dump(profile))
    ended = repository.run("python", "stages/other_profile.py", "--profile", "broken", check=False)
    assert ended.returncode == 2
    assert "error: profile broken: not done: base, " in ended.stderr.splitlines()[-1]
    assert (results / "table.md").read_text() == "as it was"


def test_a_name_that_is_no_profile(repository: Workspace) -> None:
    ended = repository.run("python", "stages/other_profile.py", "--profile", "nobody", check=False)
    assert ended.returncode == 2
    assert "'nobody' is not a profile" in ended.stderr and "profile nobody: not done: all of it" in ended.stderr
