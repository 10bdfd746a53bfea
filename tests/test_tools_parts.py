"""What travels to another machine and back: rows of ids (tools/pack.py), checkpoints in parts (parts.py)."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pack
import parts
import pytest
import torch
from safetensors.torch import load_file
from test_adapt import saved
from tiny import SENTENCES, tiny_model, tiny_tokenizer

from dlm.data.text import pack as packed
from dlm.data.text import read_rows
from dlm.data.tokenizer import encode, load_tokenizer
from dlm.errors import UserError
from dlm.models.backbone import load_checkpoint, save_checkpoint


def run(monkeypatch: pytest.MonkeyPatch, script: Any, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


# Rows of ids


def test_text_as_rows_of_ids(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of the text itself, as a tokenizer without a mask gives them; two bytes an id where that is enough."""
    folder, _ = saved(tmp_path / "ar")
    (tmp_path / "text.txt").write_text("\n\n".join(SENTENCES))
    out = tmp_path / "deeper" / "rows.npy"
    run(monkeypatch, pack, tmp_path / "text.txt", folder, "--length", 16, "--out", out)
    expected = packed(load_tokenizer(folder), SENTENCES, 16)
    assert len(expected) > 3 and capsys.readouterr().out == f"{out}: {len(expected)} rows of 16\n"
    assert np.load(out).dtype == np.uint16
    assert [row.tolist() for row in read_rows(out, 16, 300)] == expected
    assert [path.name for path in out.parent.iterdir()] == ["rows.npy"]


def test_ids_that_need_four_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(tmp_path / "ar")[0])
    tokenizer.add_tokens([f"<{i}>" for i in range(66_000)])
    tokenizer.save_pretrained(tmp_path / "wide")
    (tmp_path / "text.txt").write_text("fog <65999>")
    run(monkeypatch, pack, tmp_path / "text.txt", tmp_path / "wide", "--length", 8, "--out", tmp_path / "rows.npy")
    found = np.load(tmp_path / "rows.npy")
    ids = encode(tokenizer, ["fog <65999>"])[0]
    assert ids[-1] == 301 + 65_999
    assert found.dtype == np.uint32 and found.tolist() == [ids + [0] * (8 - len(ids))]


def test_text_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "ar")
    with pytest.raises(UserError, match="No such file"):
        run(monkeypatch, pack, tmp_path / "none.txt", folder, "--length", 8, "--out", tmp_path / "rows.npy")
    assert not (tmp_path / "rows.npy").exists()


# Checkpoints in parts


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", tiny_model(3), tiny_tokenizer())
    (tmp_path / "model" / "template.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """A tiny model makes several files, too."""
    assert parts.PART == 16_000_000
    monkeypatch.setattr(parts, "PART", 5_000)
    return 5_000


def test_there_and_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, small: int) -> None:
    """Matrices within half a step of their row's largest weight / 127, vectors and all other files as they were."""
    run(monkeypatch, parts, "pack", checkpoint, tmp_path / "out", "--name", "r2ft")
    made = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in made] == [f"r2ft.{number:03}" for number in range(len(made))]
    sizes = [path.stat().st_size for path in made]
    assert len(sizes) > 2 and set(sizes[:-1]) == {small} and 0 < sizes[-1] <= small

    run(monkeypatch, parts, "join", tmp_path / "out", tmp_path / "joined", "--name", "r2ft")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "joined"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        if weight.ndim == 2:
            step = weight.abs().amax(1, keepdim=True) / 127
            assert ((after[name] - weight).abs() <= step * 0.5001).all()
            assert not torch.equal(after[name], weight)
        else:
            assert torch.equal(after[name], weight)
    others = {path.name for path in checkpoint.iterdir()} - {"model.safetensors"}
    assert "template.json" in others
    for name in others:
        assert (tmp_path / "joined" / name).read_bytes() == (checkpoint / name).read_bytes()
    model, tokenizer = load_checkpoint(tmp_path / "joined", causal=False)
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab() and model.dtype == torch.float32


def test_eight_bits_by_hand() -> None:
    """Rows whose largest weights are 1.27 and 0: steps of 0.01 and of nothing."""
    weights = {"matrix": torch.tensor([[1.27, -0.014, 0.006], [0.0, 0.0, 0.0]]), "vector": torch.tensor([0.123])}
    found = parts.quantised(weights)
    assert found["matrix"].dtype == torch.int8 and found["matrix"].tolist() == [[127, -1, 1], [0, 0, 0]]
    assert found["matrix.scale"][0].item() == pytest.approx(0.01)
    assert torch.equal(found["vector"], weights["vector"]) and len(found) == 3
    again = parts.dequantised(found)
    torch.testing.assert_close(again["matrix"], torch.tensor([[1.27, -0.01, 0.01], [0.0, 0.0, 0.0]]))
    assert again.keys() == weights.keys()


@pytest.mark.parametrize("lost", ["first", "middle", "last", "all", "half of one"])
def test_a_missing_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, small: int, lost: str
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, parts, "pack", checkpoint, out, "--name", "r2ft")
    made = sorted(out.iterdir())
    if lost == "half of one":
        made[1].write_bytes(made[1].read_bytes()[:2_500])
    for path in {"first": made[:1], "middle": made[1:2], "last": made[-1:], "all": made}.get(lost, []):
        path.unlink()
    with pytest.raises(UserError, match=r"not all parts r2ft.000, r2ft.001, ... are there and whole; fetch them again"):
        run(monkeypatch, parts, "join", out, tmp_path / "joined", "--name", "r2ft")
    assert not (tmp_path / "joined").exists()


def test_other_parts_beside_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, small: int) -> None:
    """Another checkpoint's, and what a longer one of the same name has left behind."""
    out = tmp_path / "out"
    run(monkeypatch, parts, "pack", checkpoint, out, "--name", "r2ft")
    run(monkeypatch, parts, "pack", checkpoint, out, "--name", "sft")
    count = len(list(out.glob("r2ft.*")))
    (out / f"r2ft.{count:03}").write_bytes(b"of the longer one")
    run(monkeypatch, parts, "join", out, tmp_path / "joined", "--name", "r2ft")
    assert load_checkpoint(tmp_path / "joined", causal=False)[0].num_parameters() == tiny_model().num_parameters()


def test_what_it_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors there; give a checkpoint's folder"):
        run(monkeypatch, parts, "pack", tmp_path, tmp_path / "out", "--name", "a")
    run(monkeypatch, parts, "pack", checkpoint, tmp_path / "out", "--name", "a")
    with pytest.raises(UserError, match="is there already; name a new folder"):
        run(monkeypatch, parts, "join", tmp_path / "out", checkpoint, "--name", "a")
    with pytest.raises(SystemExit):
        run(monkeypatch, parts, "pack", checkpoint, tmp_path / "out")
    assert "required: --name" in capsys.readouterr().err
