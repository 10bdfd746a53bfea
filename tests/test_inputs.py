"""What a parameter names on this disk is a dependency of the stages that read it (src/dlm/pipeline/inputs.py)."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from scripts import stage
from test_pipeline import PIPELINE, body
from workspaces import ROOT, TINY, Workspace, running

from dlm.config.params import Params, load_params, parse_params
from dlm.config.yaml import dump_yaml
from dlm.decoding.options import RULES
from dlm.files import read_json
from dlm.pipeline import inputs
from dlm.pipeline.inputs import Digests, read_by
from dlm.pipeline.profiles import merge

PRETRAIN = {"init": "pretrain", "rows": "text"}
FILE = {"source": "file", "file": {"path": "elsewhere"}}
# Each parameter that may name a file or folder, what makes the stages read it, and these.
NAMES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "data.builtin.grammar": ({}, {"prepare"}),
    "data.evaluation.path": ({"data": {**FILE, "evaluation": {"name": "alpaca_eval"}}}, {"prepare"}),
    "data.file.path": ({"data": FILE}, {"prepare"}),
    "data.file.eval_path": ({"data": FILE}, {"prepare"}),
    "data.hub.name": ({"data": {"source": "hub"}}, {"prepare"}),
    "tokenizer.path": ({}, {"prepare"}),
    "base.checkpoint": ({}, {"base"}),
    "base.tokenizer": ({}, {"base"}),
    "base.text": (
        {"base": {**PRETRAIN, "held_out": 0.1}, "reference": {"init": "pretrain"}},
        {"base", "reference", "fluency"},
    ),
    "reference.checkpoint": ({}, {"reference"}),
    "evaluate.scorer": ({}, {"reference"}),
    "evaluate.judge.model": (
        {"evaluate": {"judge": {"kind": "local"}}},
        {"evaluate", "settings", "block_diffusion", "sedd"},
    ),
    "evaluate.judge.difficulty": ({}, {"evaluate", "block_diffusion", "sedd"}),
}
# Text that names nothing which is read: columns, tokens, words, commands (what these name says where a stage runs, not
# what it computes), a folder that is written to.
OTHERS = [
    "data.file.columns",
    "data.hub.config",
    "data.hub.split",
    "data.hub.columns",
    "template.prompt",
    "template.prompt_with_input",
    "tokenizer.mask_token",
    "base.launcher",
    "reference.launcher",
    "sft.launcher",
    "sft.lora.targets",
    "r2ft.launcher",
    "decode.launcher",
    "infill.decoders",
    "rivals.checkpoint",
    "block_diffusion.beside",
    "sweeps.baseline",
    "sweeps.profiles",
    "sweeps.rejection.decoders",
    "evaluate.judge.base_url",
    "evaluate.judge.key_variable",
    "report.results",
    "report.decoders",
    "report.title",
]


def texts(kind: Any, prefix: str = "") -> Iterator[str]:
    """Parameters whose values are any text, or several."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for leaf in leaves(hint):
            if dataclasses.is_dataclass(leaf):
                yield from texts(leaf, f"{prefix}{name}.")
            elif leaf is str:
                yield f"{prefix}{name}"


def leaves(hint: Any) -> list[Any]:
    """The types of the values in a type."""
    if get_origin(hint) is Literal:
        return []
    if get_origin(hint) is Annotated:
        return leaves(get_args(hint)[0])
    values = get_args(hint)[-1:] if get_origin(hint) is dict else get_args(hint)
    return [leaf for value in values for leaf in leaves(value)] if values else [hint]


def settings(changes: dict[str, Any], **values: str) -> Params:
    """The shipped parameters with these changes, then with each named value."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(raw, changes)
    for name, value in values.items():
        *path, key = name.split(".")
        block = raw
        for part in path:
            block = block[part]
        assert key in block
        block[key] = value
    return parse_params(dump_yaml(raw), "params.yaml")


def recorded(params: Params, kept: Path) -> dict[str, Any]:
    digests = Digests(kept)
    found = {stage: digests.record(named) for stage, named in read_by(params).items()}
    digests.keep()
    return found


def changed(params: Params, change: Any, kept: Path) -> set[str]:
    """The stages whose file is another one after `change()`."""
    before = recorded(params, kept)
    change()
    after = recorded(params, kept)
    return {stage for stage in before if before[stage] != after[stage]}


def test_every_text_is_known() -> None:
    """A new parameter of text stands in one of the two lists; the one of decoders is refused in params.yaml."""
    found = [name for name in texts(Params) if not name.startswith(("decoding.", "block_diffusion.decoders."))]
    assert sorted(found) == sorted([*NAMES, *OTHERS])
    assert [name for options in RULES.values() for name in texts(options)] == ["background"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_change_reaches_who_reads_it(tmp_path: Path, name: str, kind: str) -> None:
    """And nobody else: a file, one in a folder, one in a folder behind a link."""
    changes, readers = NAMES[name]
    file = tmp_path / "named"
    if kind != "file":
        (tmp_path / "named").mkdir()
        file = tmp_path / "named/inside"
    if kind == "link":
        (tmp_path / "behind").mkdir()
        file = tmp_path / "behind/inside"
        (tmp_path / "named/below").symlink_to(tmp_path / "behind")
    file.write_text("before")
    params = settings(changes, **{name: str(tmp_path / "named")})
    assert changed(params, lambda: file.write_text("behind"), tmp_path / "kept.json") == readers
    assert changed(params, lambda: (tmp_path / "other").write_text("new"), tmp_path / "kept.json") == set()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"data": {"builtin": {"task": "lists"}}}, "data.builtin.grammar"),
        ({"data": FILE}, "data.builtin.grammar"),
        ({}, "data.file.path"),
        ({"data": {**FILE, "evaluation": {"name": "wiki"}}}, "data.file.eval_path"),
        ({}, "data.hub.name"),
        ({"tokenizer": {"source": "train"}}, "tokenizer.path"),
        ({"base": {"init": "random"}}, "base.checkpoint"),
        ({"base": {"init": "random"}}, "base.tokenizer"),
        ({"base": {"init": "random", "rows": "text"}}, "base.text"),
        ({"reference": {"init": "random"}}, "reference.checkpoint"),
        ({"evaluate": {"judge": {"kind": "endpoint"}}}, "evaluate.judge.model"),
    ],
)
def test_what_other_values_leave_unread(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    (tmp_path / "named").write_text("before")
    params = settings(changes, **{name: str(tmp_path / "named")})
    assert changed(params, lambda: (tmp_path / "named").write_text("after"), tmp_path / "kept.json") == set()


def test_stages_depend_on_what_is_written_for_them() -> None:
    """Each on its own file, where it has one, and on the parameters that the file goes by."""
    named = {name: {parameter for parameter, (_, readers) in NAMES.items() if name in readers} for name in PIPELINE}
    named["evaluate_reference"] = named["evaluate"]
    files = {}
    for name, stage_of in PIPELINE.items():
        found = body(stage_of)
        files[name] = [dep for dep in found["deps"] if dep.startswith("build/inputs")]
        script = "evaluate" if name == "evaluate_reference" else name
        assert files[name] == ([f"build/inputs/{script}.json"] if named[name] else [])
        for parameter in named[name]:
            assert any(f"{parameter}.".startswith(f"{tracked}.") for tracked in found["params"]), (name, parameter)
        assert "data/input" not in found["deps"] or name == "inputs"
    assert {f"build/inputs/{name}.json" for name in read_by(load_params(ROOT / "params.yaml"))} == {
        file for found in files.values() for file in found
    }


def test_a_name_that_is_not_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's, or missing: no digest, until there is something of that name."""
    monkeypatch.chdir(tmp_path)
    params = settings({"base": {"tokenizer": None}}, **{"base.checkpoint": "owner/name", "evaluate.scorer": ""})
    found = recorded(params, tmp_path / "kept.json")
    assert found["base"] == {"base.checkpoint": {"value": "owner/name", "sha256": None}}
    assert "evaluate.scorer" not in found["reference"]
    assert changed(params, lambda: Path("owner/name").mkdir(parents=True), tmp_path / "kept.json") == {"base"}


def test_the_file_is_the_same_on_another_machine(tmp_path: Path) -> None:
    """The same repository in another place, with other times: no path or time of this one is in it."""
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        shutil.copytree(ROOT / "data", folder / "data", symlinks=True)
        shutil.copy(ROOT / "params.yaml", folder)
        stage("inputs", folder=folder)
        made.append({path.name: path.read_bytes() for path in (folder / "build/inputs").iterdir()})
        assert (folder / ".cache/inputs.json").is_file()
    assert made[0] == made[1] and b"/" + b"tmp" not in b"".join(made[0].values())
    assert set(made[0]) == {f"{name}.json" for name in read_by(load_params(ROOT / "params.yaml"))}


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its size or times change; what was written just now is not trusted to have times of its own."""
    reads: list[str] = []
    whole = inputs.hashlib.file_digest
    monkeypatch.setattr(inputs.hashlib, "file_digest", lambda file, name: reads.append(file.name) or whole(file, name))
    file, kept = tmp_path / "weights", tmp_path / "kept.json"
    file.write_text("one")

    def digest() -> str | None:
        digests = Digests(kept)
        found = digests.of(file)
        digests.keep()
        return found

    monkeypatch.setattr(inputs, "SETTLED", 1e12)
    assert digest() == digest() and len(reads) == 2
    monkeypatch.setattr(inputs, "SETTLED", -1e12)
    first = digest()
    assert digest() == first and len(reads) == 3
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text("two")
    os.utime(file, ns=times)  # as `cp -p` and rsync leave it: only the time of the change itself is another
    assert digest() != first and len(reads) == 4
    kept.write_text('{"half')
    assert digest() != first and len(reads) == 5
    file.unlink()
    assert digest() is None and read_json(kept) == {}


def test_links_and_hidden_files(tmp_path: Path) -> None:
    """A link to the folder itself, one to nothing, what a download leaves; a name is content as well."""
    folder = tmp_path / "named"
    (folder / ".cache").mkdir(parents=True)
    (folder / "a").write_text("text")
    before = Digests(tmp_path / "kept").of(folder)
    (folder / "round").symlink_to(folder)
    (folder / "nothing").symlink_to(tmp_path / "gone")
    (folder / ".cache/etag").write_text("1")
    assert Digests(tmp_path / "kept").of(folder) == before
    (folder / "a").rename(folder / "b")
    assert Digests(tmp_path / "kept").of(folder) != before


def test_an_adapter_stands_on_its_base(tmp_path: Path) -> None:
    """A checkpoint that is an adapter alone: the base that it names is read, too."""
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path}/base"}}')
    params = settings({}, **{"base.checkpoint": str(tmp_path / "adapter")})
    weights = tmp_path / "base/model.safetensors"
    assert changed(params, lambda: weights.write_text("1"), tmp_path / "kept.json") == {"base"}
    (tmp_path / "adapter/adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path}/adapter"}}')
    assert Digests(tmp_path / "kept.json").of(tmp_path / "adapter") is not None


def test_another_scorer_is_another_reference(tmp_path: Path) -> None:
    """Whoever scores depends on the reference alone: its folder changes with the scorer's, be it in what changes no
    perplexity, and by the record of it alone. Without a scorer there is no record."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    shutil.copytree(ROOT / "data/base/reference", tmp_path / "scorer")
    made = tmp_path / "build/models/reference"

    def reference(scorer: str | None) -> dict[str, bytes]:
        (tmp_path / "params.yaml").write_text(dump_yaml(raw | {"evaluate": {**raw["evaluate"], "scorer": scorer}}))
        stage("reference", folder=tmp_path)
        return {path.name: path.read_bytes() for path in made.iterdir()}

    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(raw, TINY)
    (tmp_path / "params.yaml").write_text(dump_yaml(raw))
    stage("prepare", folder=tmp_path)
    first = reference("scorer")
    assert reference("scorer") == first
    (tmp_path / "scorer/notes.txt").write_text("other")
    second = reference("scorer")
    assert {name for name in first | second if first.get(name) != second.get(name)} == {"scorer.json"}
    assert "scorer.json" not in reference(None)


def test_a_checkpoint_in_a_pipeline(tmp_path: Path) -> None:
    """`dvc repro base`: a doubled tensor of a folder that only params.yaml names makes it run again, files beside it do
    not, and the old tensor brings the old base back."""
    here = Workspace(tmp_path / "clone")
    mine, out = here.folder / "models/mine", here.folder / "build/models/base/model.safetensors"
    shutil.copytree(ROOT / "data/base/mdlm", mine)
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    here.params |= {block: shipped[block] for block in ("tokenizer", "model", "base", "reference")}
    here.params["base"]["checkpoint"] = "models/mine"
    here.write(here.params)

    def repro() -> set[str]:
        return running(here.run("dvc", "repro", "base").stdout)

    assert repro() == {"prepare", "base"}
    first = out.read_bytes()
    assert repro() == set() and "base" not in here.stale()
    (here.folder / "data/input/other.txt").write_text("new")
    (here.folder / "models/other.txt").write_text("new")
    assert repro() == set()

    weights = load_file(mine / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: 2 * weights[name]}, mine / "model.safetensors", {"format": "pt"})
    assert repro() == {"base"}
    assert torch.equal(load_file(out)[name], 2 * weights[name])
    shutil.copy(ROOT / "data/base/mdlm/model.safetensors", mine)
    assert repro() == set() and out.read_bytes() == first

    here.params["base"]["checkpoint"] = "models/none/there"
    here.write(here.params)
    told = here.run("dvc", "repro", "base", check=False)
    assert told.returncode != 0 and "error: 'models/none/there': no such folder" in told.stderr
