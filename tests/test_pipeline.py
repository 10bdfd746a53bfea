"""dvc.yaml against the code: each stage depends on exactly the modules that decide its result."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dlm.decoding.options import DECODERS

ROOT = Path(__file__).parent.parent
PIPELINE = {
    **yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"],
    **yaml.safe_load((ROOT / "sweeps/dvc.yaml").read_text())["stages"],
}

# These carry values, errors or records of a run; given the same parameters they cannot change what a stage computes.
PLUMBING = {
    "src/dlm/__init__.py",
    "src/dlm/blocks.py",
    "src/dlm/blocks_results.py",
    "src/dlm/cli.py",
    "src/dlm/data/records.py",
    "src/dlm/errors.py",
    "src/dlm/files.py",
    "src/dlm/params.py",
    "src/dlm/processes.py",
    "src/dlm/schema.py",
    "src/dlm/times.py",
    "src/dlm/tracking.py",
}


def module_file(name: str) -> str | None:
    path = ROOT / "src" / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return str(candidate.relative_to(ROOT))
    return None


def imported(path: str) -> set[str]:
    """Files of src/dlm that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {file for name in names if name.startswith("dlm") and (file := module_file(name))}
    return found


def closure(path: str) -> set[str]:
    """Everything a script reaches through imports, not looking behind the plumbing."""
    seen: set[str] = set()
    pending = [path]
    while pending:
        for file in imported(pending.pop()) - seen - PLUMBING:
            seen.add(file)
            pending.append(file)
    return {file for file in seen if (ROOT / file).read_text().count("\n") > 1}


def body(stage: dict) -> dict:
    return stage.get("do", stage)


@pytest.mark.parametrize("name", PIPELINE)
def test_deps_are_the_imports(name: str) -> None:
    stage = body(PIPELINE[name])
    script = stage["cmd"].split()[1]
    deps = {dep for dep in stage["deps"] if dep.startswith(("src/", "stages/")) and dep.endswith(".py")}
    assert deps == closure(script) | {script}


@pytest.mark.parametrize("name", PIPELINE)
def test_stage_reads_only_tracked_parameters(name: str) -> None:
    """Each `params.<block>` that a script reads stands in the stage's params (or a part of the block does)."""
    stage = body(PIPELINE[name])
    tree = ast.parse((ROOT / stage["cmd"].split()[1]).read_text())
    blocks = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    items = PIPELINE[name].get("foreach", {})
    entries = [*stage["params"], *(item["length"] for item in (items.values() if isinstance(items, dict) else ()))]
    tracked = {entry.split(".")[0] for entry in entries}
    # `params.decoder(name)` and `params.candidates(name)` read decoding.<name>.
    reads = {"decoder": "decoding", "candidates": "decoding", "negatives_of": "negatives"}
    assert {reads.get(block, block) for block in blocks} <= tracked


def test_matrix_covers_params() -> None:
    """Every decoder of the matrix has its block, and decode and evaluate run over the same cells."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert PIPELINE["decode"]["matrix"] == PIPELINE["evaluate"]["matrix"]
    assert PIPELINE["decode"]["matrix"]["decoder"] == params["report"]["decoders"]
    assert set(params["report"]["decoders"]) <= set(params["decoding"])


def test_every_decoder_has_its_block() -> None:
    """So that it can be a cell: a name on the axes is all that is missing."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(DECODERS) == set(params["decoding"])


def test_report_depends_on_every_cell() -> None:
    """The report lists its inputs one by one (a folder that many stages write into breaks pulling a fresh clone)."""
    axes = PIPELINE["decode"]["matrix"]
    cells = {f"{checkpoint}-{decoder}" for checkpoint in axes["checkpoint"] for decoder in axes["decoder"]}
    deps = set(PIPELINE["report"]["deps"])
    assert {f"build/answers/{cell}.jsonl" for cell in cells} <= deps
    assert {f"build/evaluation/{cell}.json" for cell in cells} <= deps
    assert "build/evaluation/reference-nucleus.json" in deps


@pytest.mark.parametrize("script", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_help(script: Path) -> None:
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "--params" in done.stdout
