"""The shipped base: small enough for git, loadable, and what it claims to be."""

from pathlib import Path

import pytest

from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint

BASE = Path(__file__).parent.parent / "data" / "base"


def test_fits_in_git() -> None:
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) <= 10_000_000


@pytest.mark.parametrize(("name", "causal"), [("mdlm", False), ("reference", True)])
def test_loads_as_what_it_is(name: str, causal: bool) -> None:
    model, tokenizer = load_checkpoint(BASE / name, causal=causal)
    assert model.num_parameters() < 1_100_000
    assert tokenizer.mask_token_id is not None
    with pytest.raises(UserError, match="needed here"):
        load_checkpoint(BASE / name, causal=not causal)


def test_both_share_one_vocabulary() -> None:
    vocabularies = [
        load_checkpoint(BASE / name, causal=c)[1].get_vocab() for name, c in [("mdlm", False), ("reference", True)]
    ]
    assert vocabularies[0] == vocabularies[1]
