"""Switching params.yaml to another scale: every profile gives a file that loads, comments and all."""

import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from dlm.config.params import load_params
from dlm.errors import UserError
from dlm.pipeline.profiles import DEFAULT, main, merge, render

ROOT = Path(__file__).parents[1]
PROFILES = ROOT / "profiles"
NAMES = sorted(path.stem for path in PROFILES.glob("*.yaml"))
OVERLAYS = [name for name in NAMES if name != DEFAULT]


def leaves(raw: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    if not isinstance(raw, dict):
        return {path: raw}
    return {key: value for name, inner in raw.items() for key, value in leaves(inner, (*path, name)).items()}


def test_there_are_profiles() -> None:
    assert DEFAULT in NAMES
    assert OVERLAYS


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_renders_to_a_file_that_loads(tmp_path: Path, name: str) -> None:
    (tmp_path / "params.yaml").write_text(render(PROFILES, name), encoding="utf-8")
    load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_changes_what_it_names_and_nothing_else(name: str) -> None:
    whole = leaves(yaml.safe_load((PROFILES / f"{DEFAULT}.yaml").read_text("utf-8")))
    overlay = leaves(yaml.safe_load((PROFILES / f"{name}.yaml").read_text("utf-8")))
    assert leaves(yaml.safe_load(render(PROFILES, name))) == {**whole, **overlay}
    assert {**whole, **overlay} != whole


def test_the_shipped_params_are_the_default_profile() -> None:
    assert (ROOT / "params.yaml").read_text("utf-8") == (PROFILES / f"{DEFAULT}.yaml").read_text("utf-8")
    assert render(PROFILES, DEFAULT) == (ROOT / "params.yaml").read_text("utf-8")


@pytest.mark.parametrize("name", OVERLAYS)
def test_comments_survive(name: str) -> None:
    text = (PROFILES / f"{DEFAULT}.yaml").read_text("utf-8")
    written = [line.partition("  # ")[2].strip() for line in text.splitlines() if "  # " in line]
    rendered = render(PROFILES, name)
    missing = [comment for comment in written if comment not in rendered]
    assert len(written) > 50
    assert missing == []
    assert rendered.startswith(f"# Profile: {name} (profiles/{name}.yaml over profiles/{DEFAULT}.yaml)\n")


LAUNCH = sorted((PROFILES / "launch").glob("*.yaml"))


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["paper-small", "paper-large"])
def test_the_launch_files_suit_the_papers_profiles(path: Path, name: str) -> None:
    """accelerate reads them, and as many processes can share every run's micro-batches."""
    config = load_config_from_file(str(path))
    params = yaml.safe_load(render(PROFILES, name))
    for stage in ("reference", "sft", "r2ft"):
        shared = params[stage]["training"]["gradient_accumulation"]
        assert shared % config.num_processes == 0


@pytest.mark.parametrize("name", ["big", "", "../params", "builtin.yaml"])
def test_an_unknown_profile_is_told_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"is not a profile; known: {', '.join(NAMES)}"):
        render(PROFILES, name)


def test_merge_by_hand() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 2, "c": {"z": 3}}
    merge(base, {"a": {"y": [9]}, "b": {"new": 4}, "c": None, "d": 5})
    assert base == {"a": {"x": 1, "y": [9]}, "b": {"new": 4}, "c": None, "d": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Profiles of a test's own: the shipped default, and one small overlay."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / f"{DEFAULT}.yaml").write_bytes((PROFILES / f"{DEFAULT}.yaml").read_bytes())
    (tmp_path / "profiles" / "fast.yaml").write_text("decode: {steps: [8], seeds: [5]}\n")
    (tmp_path / "params.yaml").write_bytes((PROFILES / f"{DEFAULT}.yaml").read_bytes())
    return tmp_path


def switch(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["profiles", *arguments])
    main()


def test_switching_there_and_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "params.yaml").read_bytes()
    switch(folder, monkeypatch, "fast")
    assert load_params(folder / "params.yaml").decode.steps == (8,)
    assert load_params(folder / "params.yaml").decode.seeds == (5,)
    shown = capsys.readouterr().out
    assert "\n-  steps: [16, 64] " in shown
    assert "\n+  steps: [8] " in shown
    assert "params.yaml is now the profile fast" in shown
    switch(folder, monkeypatch)
    assert (folder / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "profiles"]


@pytest.mark.parametrize(
    ("overlay", "says"),
    [
        ("decode: {batch_size: 0}", "decode.batch_size must be at least 1, got 0"),
        ("decode: {stps: 8}", "decode.stps is not a known key; did you mean steps?"),
        ("decode: {steps: 8", "fast.yaml: not valid YAML"),
        ("decode: [8]", "decode must be a block of keys"),
        ("- decode", "fast.yaml"),
    ],
)
def test_a_broken_profile_leaves_params_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, overlay: str, says: str
) -> None:
    before = (folder / "params.yaml").read_bytes()
    (folder / "profiles" / "fast.yaml").write_text(overlay)
    with pytest.raises(UserError) as caught:
        switch(folder, monkeypatch, "fast")
    assert says in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (folder / "params.yaml").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "profiles"]


def test_an_empty_overlay_is_the_default(folder: Path) -> None:
    (folder / "profiles" / "fast.yaml").write_text("# nothing yet\n")
    assert yaml.safe_load(render(folder / "profiles", "fast")) == yaml.safe_load(render(folder / "profiles", DEFAULT))
