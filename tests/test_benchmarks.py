"""The benchmarks measure the same thing on both sides: the plain decoder is the library's decoder; the scripts run."""

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import approximations
import decode as decode_script
import pytest
import table
import torch
import yaml
from common import command_line
from memory import child_peak
from plain import PlainDecoder, supports
from subjects import BUILTIN, SHAPES, Subject, random_model
from tiny import tiny_lm

from dlm.config.params import load_params
from dlm.config.yaml import split_variant
from dlm.data.template import Template
from dlm.decoding.commit import Open, ancestral
from dlm.decoding.options import DecoderOptions, decoder_options
from dlm.decoding.propose import Source, top_k
from dlm.decoding.schedules import log_linear
from dlm.decoding.windows import conv, flat
from dlm.errors import UserError
from dlm.files import write_json
from dlm.sources.prepare import SPLITS, load_splits, make_tokenizer, tokenise, write_prepared

ROOT = Path(__file__).parents[1]
PROMPT = [31, 5, 32, 33, 34, 35]
LM = tiny_lm(2)


def plain_decoder(options: DecoderOptions, dtype: torch.dtype = torch.float64) -> PlainDecoder:
    return PlainDecoder(LM.denoiser.model, LM.denoiser.mask_id, options, dtype)


def half_done() -> torch.Tensor:
    """A canvas of 24 with the prompt and two islands of tokens."""
    canvas = torch.full((1, 24), LM.denoiser.mask_id)
    canvas[0, :6] = torch.tensor(PROMPT)
    canvas[0, [9, 17]] = torch.tensor([70, 90])
    return canvas


# --- The plain decoder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [{}, {"kernel_size": 5}, {"kernel_size": 9, "conv_mult": 0.3}], ids=str)
@torch.inference_mode()
def test_a_plain_step_has_the_librarys_probabilities(block: dict[str, Any]) -> None:
    """Commit probabilities to 1e-6 (float32 logits) and the tokens' conditional ones, position by position."""
    options = decoder_options("top_k", {"top_k": 4, **block}, "top_k")
    canvas, steps, step = half_done(), 5, 2
    weights, ids = plain_decoder(options).transition(
        canvas, torch.softmax(plain_decoder(options).log_probs(canvas).double(), -1), 3 / 5, 2 / 5
    )
    masked = canvas == LM.denoiser.mask_id
    weights, share = weights[masked], (weights[..., :-1].sum(-1) / weights.sum(-1))[masked]

    window = conv(options.kernel_size, "tanh", options.conv_mult) if options.kernel_size else flat
    log_weight = window(~masked)[masked]
    logits = LM.denoiser.logits(LM.denoiser.hidden(canvas, torch.ones_like(masked))[masked])
    source = Source(len(logits), logits.shape[1], logits.device, lambda some: logits[some], lambda some: some.double())
    candidates = top_k(4)(source)
    row, position = masked.nonzero(as_tuple=True)
    open_ = Open(1, row, position, log_weight, masked.sum(-1), torch.zeros_like(row, dtype=torch.bool))
    rates = log_linear(step, steps)
    assert ancestral(open_, candidates, rates, share * (1 - 1e-6))[share > 0].all()
    assert not ancestral(open_, candidates, rates, share * (1 + 1e-6)).any()
    assert bool((share == 0).any()) == bool(block)  # the last positions are out of either kernel's reach

    best = torch.softmax(logits, -1).topk(4).values.double()
    given = weights[share > 0, :-1] / weights[share > 0, :-1].sum(-1, keepdim=True)
    torch.testing.assert_close(given, (best / best.sum(-1, keepdim=True))[share > 0], atol=1e-6, rtol=0)
    assert ids is not None and (ids[..., -1] == LM.denoiser.mask_id).all()


@pytest.mark.parametrize("name", ["categorical", "top_k", "conv"])
@torch.inference_mode()
def test_the_plain_draw_follows_its_weights(name: str) -> None:
    """The mean number of commits of 300 steps lies within four standard errors of the sum of their probabilities."""
    options = decoder_options(name, {"kernel_size": 5} if name == "conv" else {}, name)
    decoder, canvas, draws = plain_decoder(options), half_done(), 300
    masked = canvas == decoder.mask_id
    weights, _ = decoder.transition(canvas, torch.softmax(decoder.log_probs(canvas).double(), -1), 3 / 5, 2 / 5)
    stay = weights[..., decoder.mask_id if name == "categorical" else -1]
    share = (1 - stay / weights.sum(-1))[masked]
    results = [decoder._step(canvas, 24, 2, 5, torch.Generator().manual_seed(seed)) for seed in range(draws)]
    assert all((result[~masked] == canvas[~masked]).all() for result in results)
    mean = sum(int((result[masked] != decoder.mask_id).sum()) for result in results) / draws
    error = float((share * (1 - share)).sum() / draws) ** 0.5
    assert abs(mean - float(share.sum())) < 4 * error
    if name == "conv":
        assert share.sum() < masked.sum() / 3 + 1e-6


@pytest.mark.parametrize(
    ("name", "block", "steps"),
    [
        ("low_confidence", {}, 5),
        ("conv", {"rule": "low_confidence", "kernel_size": 5}, 5),
        ("semi_ar", {"rule": "low_confidence", "variant": "restrict", "block_length": 4}, 6),
        ("top_k", {"top_k": 1}, 1),
        ("conv", {"kernel_size": 33, "top_k": 1}, 1),
        ("conv", {"kernel_size": 3, "top_k": 1}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_without_chance_the_tokens_are_the_librarys(
    name: str, block: dict[str, Any], steps: int, dtype: torch.dtype
) -> None:
    """Greedy rules, and one step of one candidate, leave nothing to the noise (a kernel of 3 leaves masks over)."""
    options = decoder_options(name, block, name)
    out = LM.generate([PROMPT], name, steps=steps, gen_length=12, **block)
    plain = plain_decoder(options, dtype).decode(PROMPT, 12, steps, torch.Generator())
    assert supports(options)
    assert plain.nfe == int(out.nfe[0])
    tokens = plain.tokens[6:].tolist()
    end = tokens.index(0) if 0 in tokens else 12
    assert tokens[:end] + [0] * (12 - end) == out.tokens[0].tolist()


def test_what_the_plain_decoder_does_not_know() -> None:
    yes = [("conv", {"suffix": "none", "cache": False}), ("categorical", {}), ("top_k", {"top_k": 3})]
    no = [
        ("semi_ar", {}),
        ("threshold", {}),
        ("remdm", {}),
        ("repetition_penalty", {}),
        ("conv", {"gain": "linear"}),
        ("low_confidence", {"temperature": 0.5}),
        ("low_confidence", {"confidence": "margin"}),
        ("top_k", {"cfg_scale": 1.0}),
        ("low_confidence", {"eos": "last"}),
    ]
    assert all(supports(decoder_options(name, block, name)) for name, block in yes)
    assert not any(supports(decoder_options(name, block, name)) for name, block in no)


# --- Models and the command line --------------------------------------------------------------------------------------


def test_random_models_see_both_sides_and_prompts_nest() -> None:
    shape = SHAPES["mdlm-small"]
    assert (shape.layers, shape.hidden, shape.heads, shape.vocab) == (12, 768, 12, 50258)
    small = type(shape)(1, 16, 2, 16, 50, 32, 49, 48)
    model = random_model(small, "cpu", torch.float32)
    canvas = torch.tensor([[3, 4, 5], [3, 4, 6]])
    with torch.inference_mode():
        logits = model(canvas).logits
    assert (logits[0, 0] != logits[1, 0]).any() and not model.config.tie_word_embeddings
    subject = Subject("tiny", model, 49, 48, False)
    many = subject.prompts(9, 7)
    assert subject.prompts(4, 7) == many[:4] and max(map(max, many)) < 48


def test_variants_are_read_as_yaml() -> None:
    assert split_variant("conv", "decoder") == ("conv", {})
    assert split_variant("conv:suffix=none,kernel_size=65,eos_fill=true", "decoder") == (
        "conv",
        {"suffix": "none", "kernel_size": 65, "eos_fill": True},
    )
    with pytest.raises(UserError, match="decoder wants KEY=VALUE"):
        split_variant("conv:suffix", "decoder")


def run(monkeypatch: pytest.MonkeyPatch, script: Any, *words: object) -> None:
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, words), "--threads", threads])
    script.main()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "llada-8b", "--device", "cpu"], "needs a GPU"),
        (["--lengths", "600"], "at most 512"),
        (["--lengths", "64"], "at least 65"),
        (["--decoders", "convv"], "'convv' is not a decoder"),
        (["--batch-sizes", "0"], "--batch-sizes must be at least 1, got 0"),
        (["--batch-sizes", "two"], "--batch-sizes"),
        (["--decoders", "semi_ar", "--steps", "3"], "multiple of the 4 blocks"),
        (["--device", "tpu"], "--device must be cpu or cuda"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(monkeypatch, decode_script, *words, "--out", tmp_path / "x")
    assert not list(tmp_path.iterdir())


# --- The scripts, at a tiny scale -------------------------------------------------------------------------------------


def test_decode_writes_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(decode_script, "FORWARD_SECONDS", 0.02)
    out = tmp_path / "tiny.run"
    sizes = ["--batch-sizes", 1, 2, "--lengths", 24, "--prompt-length", 8, "--steps", 4, "--repeats", 2]
    decoders = ["--decoders", "top_k", "conv:kernel_size=5,suffix=none", "threshold"]
    dtypes = ["--plain-dtypes", "float64", "float32"]
    device = ["--device", "cpu", "--no-memory"]
    run(monkeypatch, decode_script, *sizes, *decoders, *dtypes, *device, "--out", out)
    result = json.loads((tmp_path / "tiny.run.json").read_text())
    rows = result["rows"]
    assert len(rows) == 2 * (2 + 2 + 2) + (2 + 2)
    dlm = [row for row in rows if row["implementation"] == "dlm"]
    assert [(row["decoder"], row["batch_size"]) for row in dlm[:2]] == [("top_k", 1), ("top_k", 2)]
    for row in dlm:
        assert len(row["seconds"]) == 2 and 1 <= row["nfe"] <= 5
        assert row["tokens_per_second"] == pytest.approx(16 * row["sequences_per_second"])
        assert set(row["speedup"]) == (set() if row["decoder"] == "threshold" else {"plain float64", "plain float32"})
        floor = row["step_over_forward"]
        assert 0 < floor["low"] <= floor["median"] <= floor["high"]
    text = (tmp_path / "tiny.run.md").read_text()
    assert capsys.readouterr().out == text and text.count("\n| ") == 1 + 1 + len(rows)
    for written in (text, json.dumps(result)):
        assert str(tmp_path) not in written and platform.node() not in written and str(ROOT) not in written
    first = (tmp_path / "tiny.run.png").read_bytes()
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path / "tiny.run.json")])
    table.main()
    assert (tmp_path / "tiny.run.png").read_bytes() == first and (tmp_path / "tiny.run.md").read_text() == text


def test_memory_is_measured_in_a_child() -> None:
    """192 positions x 8 rows of width 128 in float32 are 0.75 MiB; the pass needs a few of those."""
    setting = {"name": "forward", "decoder": "", "batch_size": 8, "length": 192, "prompt_length": 64, "steps": 1}
    peak = child_peak(ROOT / "benchmarks/decode.py", ("--device", "cpu", "--child", json.dumps(setting)))
    assert 0.75 * 2**20 < peak < 64 * 2**20


def test_paths_stay_out_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/decode.py", "--out", "/some/where/x", "--steps", "4"])
    assert command_line() == "python benchmarks/decode.py --out x --steps 4"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prepare and reference leave, for 60 records, and the shipped base in place of a trained checkpoint."""
    folder = tmp_path_factory.mktemp("build")
    params = load_params(ROOT / "params.yaml")
    sizes = {"valid_size": 8, "eval_size": 4}
    builtin = {**vars(params.data.builtin), "train_size": 60, "grammar": str(ROOT / "data/builtin/grammar.yaml")}
    data = type(params.data)(**{**vars(params.data), **sizes, "builtin": type(params.data.builtin)(**builtin)})
    records, counts = load_splits(data, params.seed)
    template = Template(params.template.prompt, params.template.prompt_with_input)
    given = type(params.tokenizer)(**{**vars(params.tokenizer), "path": str(BUILTIN)})
    tokenizer = make_tokenizer(given, template, records["train"])
    splits = {
        name: tokenise(records[name], template, tokenizer, data, needs_answer=name != "eval")[0] for name in SPLITS
    }
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/builtin/grammar.yaml", folder / "data")
    write_prepared(folder / "data", splits, tokenizer, counts)
    shutil.copytree(BUILTIN, folder / "models" / "sft")
    shutil.copytree(BUILTIN.parent / "reference", folder / "models" / "reference")
    write_json(folder / "models" / "reference" / "training_perplexities.json", [1.5, 2.0])
    return folder


def test_approximations_write_their_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: Path) -> None:
    monkeypatch.chdir(ROOT)
    families = ["--family", "conv", "conv:suffix=none", "--family", "low_confidence", "threshold:threshold=0.5"]
    sizes = ["--prompts", 3, "--steps", 8, "--seeds", 0, 1, "--device", "cpu"]
    run(monkeypatch, approximations, "--build", build, *families, *sizes, "--out", tmp_path / "quality")
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    assert [row["decoder"] for row in rows] == ["conv", "conv:suffix=none", "low_confidence", "threshold:threshold=0.5"]
    for row in rows:
        assert row["n"] == 6 and row["prompts"] == 3 and len(row["seconds"]) == 2 and row["nfe"] <= 9
        assert 0 <= row["well_formed"] <= 1 and len(row["slot_error_rate_ci"]) == 2
        if row["decoder"] == row["base"]:
            assert row["change"]["well_formed"] == {"mean": 0, "ci": [0, 0]}
    text = (tmp_path / "quality.md").read_text()
    assert str(build) not in text and text.count("\n| ") == 1 + 1 + len(rows)


def test_approximations_without_the_exact_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: Path) -> None:
    monkeypatch.chdir(ROOT)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"source": "file", "file": {**params["data"]["file"], "path": "README.md"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    words = ["--family", "conv:eos_fill=false", "conv", "--prompts", 3, "--steps", 8, "--seeds", 0, "--device", "cpu"]
    paths = ["--params", tmp_path / "params.yaml", "--build", build, "--out", tmp_path / "quality"]
    run(monkeypatch, approximations, *words, *paths)
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    assert [list(row["change"]) for row in rows] == [["inlier", "repetition_4"]] * 2
    assert 0 <= rows[1]["inlier"] <= 1 and rows[1]["nfe"] <= rows[0]["nfe"] <= 8 + 1
    assert " inlier ↑ |" in (tmp_path / "quality.md").read_text()


def test_approximations_refuse_what_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="no such file; run the stage"):
        run(monkeypatch, approximations, "--build", tmp_path, "--device", "cpu", "--out", tmp_path / "x")
    with pytest.raises(UserError, match="'convv' is not a decoder"):
        run(monkeypatch, approximations, "--family", "convv", "--device", "cpu", "--out", tmp_path / "x")
