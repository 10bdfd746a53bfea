"""Every tensor shape written in these packages' signatures is checked while the tests run; what several files share."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: `make test` deals files to two processes."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> "Small":
    """A whole run, committed. Work in copies of it."""
    from workspaces import Small

    made = Small(tmp_path_factory.mktemp("small"))
    made.make()
    return made
