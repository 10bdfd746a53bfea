"""Every tensor shape written in these packages' signatures is checked while the tests run."""

import pytest
from jaxtyping import install_import_hook

install_import_hook(["dlm.decoding", "dlm.diffusion", "dlm.evaluation", "dlm.models"], "typecheck.checker")
pytest.register_assert_rewrite("slow", "enumeration")
