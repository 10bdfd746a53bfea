"""dvc.yaml against the code: each stage depends on exactly the modules that decide its result."""

import ast
import graphlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from scripts import stage as run_stage

ROOT = Path(__file__).parent.parent
PIPELINE = {
    **yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"],
    **yaml.safe_load((ROOT / "sweeps/pipeline.yaml").read_text())["stages"],
}

# These carry values, errors or records of a run; given the same parameters they cannot change what a stage computes.
PLUMBING = ("src/dlm/__init__.py", "src/dlm/config/", "src/dlm/errors.py", "src/dlm/files.py", "src/dlm/pipeline/")
# Values like config's, but with defaults that params.yaml need not name: they lie where a change of them is seen.
OPTIONS = "src/dlm/decoding/options.py"
# More than MOST dependencies, and why.
MOST = 8
MANY = {
    "fluency": 9,  # reads the cells' answers, the reference's, and their figures, of two rooms
    "rivals": 9,  # decodes, evaluates and draws
    "block_diffusion": 14,  # trains, decodes, evaluates and draws, beside cells of the matrix
    "sedd": 13,  # trains, decodes, judges and evaluates
    "settings": 11,  # decodes, judges and evaluates, against the answers of a cell
    "r2ft_sweep": 11,  # trains, and decodes and evaluates on the way
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
        for file in imported(pending.pop()) - seen:
            if not file.startswith(PLUMBING):
                seen.add(file)
                pending.append(file)
    return {file for file in seen if (ROOT / file).read_text().count("\n") > 1}


def room(file: str) -> str:
    """The folder of src/dlm that a file lies in; a file of src/dlm itself is its own. The options are config's."""
    return "config" if file == OPTIONS else Path(file).relative_to("src/dlm").parts[0]


def body(stage: dict) -> dict:
    return stage.get("do", stage)


@pytest.mark.parametrize("name", PIPELINE)
def test_imports_lie_inside_deps(name: str) -> None:
    """Whatever decides a stage's result lies in what it depends on, and it depends on no room for nothing."""
    stage = body(PIPELINE[name])
    own = stage["cmd"].split()[1]
    # A stage that depends on the whole folder starts them all.
    scripts = [f"stages/{path.name}" for path in (ROOT / "stages").glob("*.py")] if "stages" in stage["deps"] else [own]
    code = {dep for dep in stage["deps"] if dep.split("/")[0] in ("src", "stages")}
    files = {file for script in scripts for file in (script, *closure(script))}
    inside = {dep: {file for file in files if file == dep or file.startswith(f"{dep}/")} for dep in code}
    assert files == set().union(*inside.values())
    assert all(inside.values()), [dep for dep, found in inside.items() if not found]


@pytest.mark.parametrize("name", PIPELINE)
def test_dependencies_are_few(name: str) -> None:
    """So that dvc.yaml is read in a minute; what has more is of the sweeps, which the default run leaves out."""
    count = len(body(PIPELINE[name])["deps"])
    assert count == MANY[name] if name in MANY else count <= MOST


def test_no_stage_of_the_default_run_has_many() -> None:
    assert not set(MANY) & set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


def test_rooms_have_no_circles() -> None:
    """Each room of src/dlm imports only rooms that do not lead back to it."""
    uses: dict[str, set[str]] = {}
    for path in (ROOT / "src/dlm").rglob("*.py"):
        file = str(path.relative_to(ROOT))
        others = {room(other) for other in imported(file)} - {room(file), "__init__.py"}
        uses.setdefault(room(file), set()).update(others)
    del uses["__init__.py"]  # the front door: it knows where DiffusionLM is
    ordered = tuple(graphlib.TopologicalSorter(uses).static_order())
    assert ordered.index("config") < ordered.index("decoding") < ordered.index("evaluation") < ordered.index("cli")


def test_what_python_compiles_is_no_change(tmp_path: Path) -> None:
    """Stages depend on folders, and Python writes its __pycache__ into them."""
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    room = tmp_path / "src/dlm/decoding"
    (room / "__pycache__").mkdir(parents=True)
    compiled = ["__pycache__/loop.cpython-311.pyc", "loop.pyc"]
    for name in ("loop.py", *compiled):
        (room / name).touch()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    found = subprocess.run(
        [sys.executable, "-m", "dvc", "check-ignore", *(str(room / name) for name in ("loop.py", *compiled))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert found.stdout.splitlines() == [str(room / name) for name in compiled], found.stderr


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
    if name.startswith("evaluate"):
        blocks.remove("block")  # for the run's description alone
    items = PIPELINE[name].get("foreach", {})
    entries = [
        *stage.get("params", ()),
        *(item["length"] for item in (items.values() if isinstance(items, dict) else ())),
    ]
    tracked = {entry.split(".")[0] for entry in entries}
    # `params.decoder(name)` and `params.block(name)` read decoding.<name>.
    reads = {"decoder": "decoding", "block": "decoding", "negatives_of": "negatives"}
    assert {reads.get(block, block) for block in blocks} <= tracked


def test_matrix_covers_params() -> None:
    """Every decoder of the one axis has its block."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    axes = {
        name: stage["matrix"]["decoder"] for name, stage in PIPELINE.items() if "decoder" in stage.get("matrix", {})
    }
    assert axes == dict.fromkeys(("select", "decode", "evaluate"), "${report.decoders}")
    assert set(params["report"]["decoders"]) <= set(params["decoding"])


@pytest.mark.parametrize("script", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_help(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_stage(script.stem, "--help")
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"usage: {script.name} ") and "--params" in told.out and told.err == ""
