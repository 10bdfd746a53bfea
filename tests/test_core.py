"""The library alone: decoding with the packages of no extra."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import dlm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What is hidden is neither to be imported nor to be found as installed: transformers asks for both.
CODE = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import MetadataPathFinder

hidden = set(sys.argv[1].split(","))

class Rest:
    invalidate_caches = staticmethod(PathFinder.invalidate_caches)

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in hidden else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(*arguments, **options):
        found = MetadataPathFinder.find_distributions(*arguments, **options)
        return (each for each in found if each.name.lower().replace("-", "_") not in hidden)

sys.meta_path[:] = [Rest if finder is PathFinder else finder for finder in sys.meta_path]
from dlm import DiffusionLM

lm = DiffusionLM.load("data/base/mdlm")
out = lm.generate(["Velmora lives from"], decoder="conv", steps=4, gen_length=8)
assert out.tokens.shape == (1, 8)
assert lm.infill(["Velmora [MASK:4] trade"], steps=2).gaps
from dlm.cli.main import main
main(["decoders", "conv"])
main(["generate", "data/base/mdlm", "Velmora", "--steps", "2", "--gen-length", "4"])
"""


def packages(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", name)[0].lower() for name in requirements}


CORE = packages(PROJECT["dependencies"])
EXTRAS = set().union(*(packages(given) for extra, given in PROJECT["optional-dependencies"].items() if extra != "dev"))


def test_decoding_needs_the_core_alone() -> None:
    others = EXTRAS - CORE - {"dlm", "filelock"}  # torch wants a file lock, too
    modules = {module for module, owners in packages_distributions().items() if others & {o.lower() for o in owners}}
    assert {"mlflow", "dvc", "datasets", "sklearn", "matplotlib", "openai", "peft", "accelerate"} <= modules
    hidden = modules | {name.replace("-", "_") for name in others}
    done = subprocess.run([sys.executable, "-c", CODE, ",".join(hidden)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_import_is_of_a_package_that_is_asked_for() -> None:
    code = "\n".join(path.read_text() for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "stages").glob("*.py")])
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", code, re.M)) - set(sys.stdlib_module_names) - {"dlm"}
    owners = packages_distributions()
    through_others = {"huggingface_hub", "sqlalchemy", "triton"}  # transformers', mlflow's, torch's
    lacking = {
        m for m in imported - through_others if m in owners and not (CORE | EXTRAS) & {o.lower() for o in owners[m]}
    }
    assert not lacking


def test_what_the_package_shows() -> None:
    assert set(dir(dlm)) == {"DiffusionLM", "Generation", "Infilling", "UserError", "__version__"}
    assert all(hasattr(dlm, name) for name in dir(dlm))
    assert (ROOT / "src/dlm/py.typed").is_file()
