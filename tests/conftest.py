"""Every tensor shape written in these packages' signatures is checked while the tests run; what several files share."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import dlm

if TYPE_CHECKING:
    from workspaces import Small

# Not the interface to users, lm.py: it answers arguments of other types with a line of its own.
decoding = [f"dlm.decoding.{path.stem}" for path in (Path(dlm.__file__).parent / "decoding").glob("*.py")]
decoding.remove("dlm.decoding.lm")
install_import_hook([*decoding, "dlm.diffusion", "dlm.evaluation", "dlm.models"], "typecheck.checker")
pytest.register_assert_rewrite("slow", "enumeration", "workspaces")
# No test fails for being slow.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


# `make test` deals files to two processes: what takes longest comes first, and what shares `small` to one of them.
LONG = [
    *("end_to_end", "tour", "surviving", "sharing", "runs", "bad_input", "docs", "tools_quarter_hour"),
    *("tools_pipeline", "training", "other_profile", "inputs", "distributed", "invariance", "masked_lms"),
    *("own_data", "params", "decoding_rules", "report", "lm_eval"),
]


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist would sort the files by their numbers of tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> "Small":
    """A whole run, committed, made once for all processes of the tests. Work in copies of it."""
    from workspaces import Small

    shared = hasattr(request.config, "workerinput")  # each process of pytest-xdist has a folder in one of them all
    folder = tmp_path_factory.getbasetemp().parent if shared else tmp_path_factory.getbasetemp()
    made = folder / "small.json"
    with FileLock(folder / "small.lock"):
        if not made.exists():
            (folder / "small").mkdir()
            small = Small(folder / "small")
            small.make()
            made.write_text(json.dumps(small.params))
    return Small.made(folder / "small", json.loads(made.read_text()))
