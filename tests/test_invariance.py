"""A row's answer depends on its prompt, its seed and the options alone: not on its batch, its order, its process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from decoder_cases import INVARIANT
from test_api import PROMPTS, row, rows
from tiny import tiny_lm

from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DECODERS
from dlm.models.backbone import save_checkpoint

BLOCK = {"variant": "restrict", "block_length": 4}
NEAR = {"suffix_window": 6, "suffix_scale": 1.5, "suffix_sigma": 2.0}
APPROXIMATIONS: list[tuple[str, dict[str, Any]]] = [
    ("conv", {"suffix": "none", "kernel_size": 5}),
    ("conv", {"suffix": "dropout", "kernel_size": 5, **NEAR}),
    ("sliding_annealing", {"suffix": "dropout", "reach": 2, **NEAR}),
    ("semi_ar", {"suffix": "none", "cfg_scale": 1.0, **BLOCK}),
    ("semi_ar", {"suffix": "dropout", "rule": "threshold", "threshold": 0.3, **NEAR, **BLOCK}),
    ("semi_ar", {"kv_cache": "prefix", **BLOCK}),
    ("semi_ar", {"kv_cache": "dual", **BLOCK}),
    ("semi_ar", {"kv_cache": "dual", "rule": "factor", "factor": 1.5, **BLOCK}),
]
every_decoder = pytest.mark.parametrize(
    ("name", "options"),
    [*INVARIANT, *APPROXIMATIONS],
    ids=["-".join([name, *map(str, options.values())]) for name, options in [*INVARIANT, *APPROXIMATIONS]],
)


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    """One whose answers end early now and then."""
    return tiny_lm(2, eos_scale=2.0)


@pytest.fixture(scope="module")
def eager() -> Iterator[DiffusionLM]:
    """The same with transformers' plain attention: another code path for masks and padding."""
    lm = tiny_lm(2, eos_scale=2.0)
    lm.denoiser.model.set_attn_implementation("eager")
    assert lm.denoiser.model.config._attn_implementation == "eager"
    yield lm


@pytest.mark.parametrize("eos_fill", [False, True], ids=["", "eos_fill"])
@every_decoder
def test_batch_invariance(lm: DiffusionLM, name: str, options: dict[str, Any], eos_fill: bool) -> None:
    """Alone, together, in another order, in other batches: the same answer, exactly (float32)."""
    setting = {"decoder": name, "steps": 6, "gen_length": 12, "seed": 4, "eos_fill": eos_fill, **options}
    together = rows(lm.generate(PROMPTS, **setting))
    assert together == [row(lm.generate([prompt], **setting), 0) for prompt in PROMPTS]
    assert together[::-1] == rows(lm.generate(PROMPTS[::-1], **setting))
    assert together == rows(lm.generate(PROMPTS, **setting, batch_size=3))
    assert together[2:5] == rows(lm.generate(PROMPTS[2:5], **setting, batch_size=1))


@every_decoder
def test_batch_invariance_of_eager_attention(
    lm: DiffusionLM, eager: DiffusionLM, name: str, options: dict[str, Any]
) -> None:
    """And the two kinds of attention agree."""
    setting = {"decoder": name, "steps": 6, "gen_length": 12, "seed": 5, **options}
    prompts = PROMPTS[:4]
    together = rows(eager.generate(prompts, **setting))
    assert together == [row(eager.generate([prompt], **setting), 0) for prompt in prompts]
    assert [answer[1] for answer in together] == lm.generate(prompts, **setting).tokens.tolist()


def test_every_decoder_is_tested() -> None:
    assert {name for name, _ in INVARIANT} == set(DECODERS)


SHARD = """
import json, sys
from dlm.decoding.lm import DiffusionLM
lm = DiffusionLM.load(sys.argv[1], device="cpu")
jobs, prompts = json.loads(sys.argv[2])
print(json.dumps([lm.generate(prompts, name, **options).tokens.tolist() for name, options in jobs]))
"""


def test_shards_in_two_processes(lm: DiffusionLM, tmp_path: Path) -> None:
    """Half the prompts here, the other half in a fresh process that loads the checkpoint: the tokens of one call."""
    save_checkpoint(tmp_path, lm.denoiser.model, lm.tokenizer)
    length = {"steps": 6, "gen_length": 12, "seed": 8}
    one_each = {**dict(INVARIANT), **dict(APPROXIMATIONS)}
    jobs = [(name, {**options, **length}) for name, options in one_each.items()]
    here, there = PROMPTS[:6:2], PROMPTS[1:6:2]
    # A path of ours comes first, so that the child imports the very library under test.
    path = os.pathsep.join([str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    child = subprocess.run(
        [sys.executable, "-c", SHARD, str(tmp_path), json.dumps([jobs, there])],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for (name, options), theirs in zip(jobs, json.loads(child.stdout), strict=True):
        ours = lm.generate(here, name, **options).tokens.tolist()
        together = lm.generate(PROMPTS[:6], name, **options).tokens.tolist()
        assert together[::2] == ours and together[1::2] == theirs, (name, options)


def test_equal_prompts_in_shards_differ_by_their_count(lm: DiffusionLM) -> None:
    """The n-th of several equal prompts has a key of its own within a call, so a shard counts anew."""
    setting = {"decoder": "first_hitting", "steps": 6, "gen_length": 12}
    four = rows(lm.generate([[5, 9]] * 4, **setting))
    assert rows(lm.generate([[5, 9]] * 2, **setting)) == four[:2] and four[:2] != four[2:]
