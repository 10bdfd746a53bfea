"""params.yaml: the shipped file loads, and whatever is wrong with another one is told in one line."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlm.config.params import Params, load_params, tracked
from dlm.config.schema import build
from dlm.config.yaml import dump_yaml, load_yaml
from dlm.decoding.options import LowConfidenceOptions, TopKOptions
from dlm.errors import UserError

SHIPPED = Path(__file__).parents[1] / "profiles" / "builtin.yaml"
RAW = load_yaml(SHIPPED.read_text("utf-8"))
GONE = Ellipsis  # a sentinel whose text is the same in every process


def edited(edits: dict[str, Any]) -> dict[str, Any]:
    """The shipped values with some replaced, added or (GONE) removed, each by its dotted key."""
    raw = copy.deepcopy(RAW)
    for dotted, value in edits.items():
        *blocks, key = dotted.split(".")
        block = raw
        for name in blocks:
            block = block[name]
        if value is GONE:
            del block[key]
        else:
            block[key] = value
    return raw


def load(folder: Path, text: str | bytes) -> Params:
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_params(path)


def complaint(folder: Path, text: str | bytes) -> str:
    """What load_params says about a file: one line, and nothing but a UserError."""
    with pytest.raises(UserError) as caught:
        load(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shipped_file_loads() -> None:
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    assert params.sft.training.steps >= 1


def test_values_arrive_as_written() -> None:
    params = load_params(SHIPPED)
    assert params.seed == 42
    assert params.data.builtin.slots == (4, 5)
    assert params.data.max_records is None
    assert params.base.training.learning_rate == 1e-2
    assert params.r2ft.training.lr_schedule == "constant"
    assert params.decode.seeds == (0,)
    assert params.decode.steps == (16, 64)
    assert params.decoder("conv") == TopKOptions(top_k=1, kernel_size=17, eos_fill=True)
    assert params.decoder("semi_ar") == TopKOptions(top_k=1, block_length=64, eos_fill=True)
    assert tracked(params, "seed", "decoding.conv", "decode") == {
        "seed": 42,
        "decoding.conv": RAW["decoding"]["conv"],
        "decode": {**RAW["decode"], "seeds": (0,), "steps": (16, 64)},
    }


def test_a_decoder_without_a_block_is_named() -> None:
    for read in load_params(SHIPPED).decoder, load_params(SHIPPED).block:
        with pytest.raises(UserError, match=r"decoding\.duo is missing; known: categorical, top_k"):
            read("duo")


def test_candidates_are_all_combinations_in_order(tmp_path: Path) -> None:
    """The last list goes round fastest; a plain value is none of the choice; what stands first is what is taken."""
    edits = {"decoding.conv": {"rule": ["top_k", "low_confidence"], "top_k": 5, "kernel_size": [33, 9]}}
    params = load(tmp_path, dump_yaml(edited(edits)))
    assert params.block("conv").candidates == (
        {"rule": "top_k", "kernel_size": 33},
        {"rule": "top_k", "kernel_size": 9},
        {"rule": "low_confidence", "kernel_size": 33},
        {"rule": "low_confidence", "kernel_size": 9},
    )
    assert params.decoder("conv") == TopKOptions(top_k=5, kernel_size=33)
    last = params.decoder("conv", **params.block("conv").candidates[-1], top_k=7)
    assert last == LowConfidenceOptions(kernel_size=9)
    assert params.block("categorical").candidates == params.block("remdm").candidates == ({},)


@pytest.mark.parametrize("block", [None, {}])
def test_a_block_without_options_has_one_candidate(tmp_path: Path, block: dict[str, Any] | None) -> None:
    assert load(tmp_path, dump_yaml(edited({"decoding.categorical": block}))).block("categorical").candidates == ({},)


@pytest.mark.parametrize(
    ("steps", "judged"),
    [([128], 128), ([16, 64], 64), ([64, 257], 64), ([64, 255], 255), ([8, 16], 16), ([512, 1024], 512)],
)
def test_claims_are_judged_at_the_budget_nearest_to_the_papers(steps: list[int], judged: int) -> None:
    """By ratio: 64 is half of 128, 255 less than twice as much, 257 more. Of equals (64, 256) the smaller."""
    decode = load_params(SHIPPED).decode
    assert replace(decode, steps=tuple(steps)).judged_steps == judged
    assert replace(decode, steps=(64, 256)).judged_steps == 64


GOOD: list[dict[str, Any]] = [
    {"data.max_records": 1},
    {"data.builtin.topics": None},
    {"data.window": 128, "decode.gen_length": 128},
    {"model.max_length": 256},  # the canvas is 64 + 128, base.sequence_length 256
    {"model.hidden_size": 128, "model.heads": 64},
    {"negatives.z_min": 40, "negatives.z_max": 40},
    {"negatives.examples": None},
    {"sft.training.learning_rate": 1},
    {"sft.training.warmup_steps": 0, "sft.training.weight_decay": 0},
    {"r2ft.margin": -1.5, "r2ft.gamma": 0},
    {"reference.top_p": 1},
    {"data.source": "file", "data.file.path": "records.jsonl"},
    {"decoding.wide": {"decoder": "conv", "kernel_size": 65}},
    {"decoding.categorical": None},
    {"decoding.conv.kernel_size": 1},
    {"decoding.semi_ar.block_length": 8},  # 16 blocks of one step each
    {"decoding.semi_ar.block_length": [8, 128]},
    {"decoding.conv.kernel_size": [33]},
    {"decoding.x": {"decoder": ["top_k", "low_confidence"], "eos_fill": [True, False]}},
    {"decode.steps": [8]},
    {"decoding.top_k.kernel_size": 3},
    {"decoding.conv": {"rule": "categorical", "kernel": "exponential", "top_k": 5}},
    {"decoding.conv.suffix": "none"},
    {"decoding.x": {"decoder": "remdm", "schedule": "rescale", "eta": 1}},
    {"decoding.x": {"decoder": "remdm", "eta": 0.1, "alpha_on": 0.9}},
    {"decoding.x": {"decoder": "semi_ar", "rule": "factor", "variant": "restrict", "kv_cache": "dual"}},
    {"decoding.repetition_penalty": {"rule": "threshold", "threshold": 1, "penalty": 0.5}},
    {"base.init": "adapt", "base.anneal_steps": 100, "base.logits_shift": 0},
    {"base.rows": "text", "base.text": "a.txt", "base.records_share": 1, "reference.init": "random"},
    {"base.rows": "text", "base.text": "rows.npy", "base.records_share": 0.3, "base.held_out": 0.1},
    {"sft.padding_weight": 0, "sft.loss_average": "example", "sft.training.minutes": 0.5, "r2ft.training.minutes": 0},
    {"tokenizer.mask_token": "<|reserved|>", "tokenizer.pad_cycle": 7},
    {"decoding": {}, "report.decoders": [], "infill.decoders": [], "sweeps.rejection.decoders": []},
]


@pytest.mark.parametrize("edits", GOOD, ids=str)
def test_possible_values_load(tmp_path: Path, edits: dict[str, Any]) -> None:
    load(tmp_path, dump_yaml(edited(edits)))


# The edit; the key and the value that the message must name; its remedy.
BAD: list[tuple[dict[str, Any], str, str, str]] = [
    # Unknown and missing keys.
    ({"decod": 1}, "params.yaml: decod ", "", "did you mean decode?"),
    ({"data.windw": 128}, "params.yaml: data.windw ", "", "did you mean window?"),
    ({"sft.training.lr": 1e-3}, "params.yaml: sft.training.lr ", "", "learning_rate"),
    ({"decoding.conv.kernel_sise": 3}, "params.yaml: decoding.conv.kernel_sise ", "", "did you mean kernel_size?"),
    ({"decoding.threshold.top_k": 3}, "params.yaml: decoding.threshold.top_k ", "", "known here: "),
    ({"report.decoders": ["conv", "comb"]}, "params.yaml: report.decoders ", "'comb'", "among decoding's"),
    ({"report.decoders": ["top_k"]}, "params.yaml: report.decoders ", "['top_k']", "with conv, which the ablation"),
    ({"decoding.top_k.xyzzy": 3}, "params.yaml: decoding.top_k.xyzzy ", "", "known here: "),
    ({"decoding.top_k.eta": 0.1}, "params.yaml: decoding.top_k.eta ", "", "is not a known key"),
    ({"decoding.convolution": {}}, "params.yaml: decoding.convolution", "'convolution'", "known: categorical"),
    ({"decoding.x": {"decoder": "y"}}, "params.yaml: decoding.x", "'y'", "known: categorical"),
    ({"decoding.x": {"decoder": ["conv", "y"]}}, "params.yaml: decoding.x", "'y'", "known: categorical"),
    ({"decoding.x": {"decoder": [["conv"]]}}, "params.yaml: decoding.x", "['conv']", "known: categorical"),
    ({"decoding.x": {"decoder": {"a": 1}}}, "params.yaml: decoding.x", "{'a': 1}", "known: categorical"),
    ({"data.window": GONE}, "params.yaml: data.window ", "", "is missing; add it (a whole number)"),
    ({"r2ft": GONE}, "params.yaml: r2ft ", "", "is missing; add it (a block of keys)"),
    ({"report.title": GONE}, "params.yaml: report.title ", "", "is missing; add it (text)"),
    # Types.
    ({"data": 3}, "params.yaml: data ", "3", "a block of keys"),
    ({"decode.steps": 16}, "params.yaml: decode.steps ", "16", "a list"),
    ({"decode.steps": None}, "params.yaml: decode.steps ", "None", "a list"),
    ({"decode.steps": ["16"]}, "params.yaml: decode.steps[0] ", "'16'", "a whole number"),
    ({"decode.steps": [16, 64.0]}, "params.yaml: decode.steps[1] ", "64.0", "a whole number"),
    ({"decode.steps": [True, 64]}, "params.yaml: decode.steps[0] ", "True", "a whole number"),
    ({"decode.steps": [16, None]}, "params.yaml: decode.steps[1] ", "None", "a whole number"),
    ({"ablation.steps": "16"}, "params.yaml: ablation.steps ", "'16'", "a whole number"),
    ({"data.max_records": True}, "params.yaml: data.max_records ", "True", "a whole number"),
    ({"r2ft.gamma": True}, "params.yaml: r2ft.gamma ", "True", "a number"),
    ({"r2ft.gamma": float("nan")}, "params.yaml: r2ft.gamma ", "nan", "a number"),
    ({"sft.training.learning_rate": "3e-5"}, "sft.training.learning_rate ", "'3e-5'", "write it without quotes"),
    ({"decoding.conv.conv_mult": "1e-1"}, "params.yaml: decoding.conv.conv_mult ", "'1e-1'", "without quotes"),
    ({"negatives.at_least_answer": 1}, "params.yaml: negatives.at_least_answer ", "1", "true or false"),
    ({"decoding.conv.eos_fill": "yes"}, "params.yaml: decoding.conv.eos_fill ", "'yes'", "true or false"),
    ({"report.title": 7}, "params.yaml: report.title ", "7", "text"),
    ({"decode.seeds": 3}, "params.yaml: decode.seeds ", "3", "a list"),
    ({"decode.seeds": [0, "1"]}, "params.yaml: decode.seeds[1] ", "'1'", "a whole number"),
    ({"decoding.conv": 33}, "params.yaml: decoding.conv ", "33", "a block of options"),
    ({"data.file.columns": []}, "params.yaml: data.file.columns ", "[]", "a block of keys"),
    ({"data.hub.columns.output": 1}, "params.yaml: data.hub.columns.output ", "1", "text"),
    # Names.
    ({"data.source": "web"}, "params.yaml: data.source ", "'web'", "one of builtin, file, hub"),
    ({"sft.training.lr_schedule": "step"}, "sft.training.lr_schedule ", "'step'", "one of constant, cosine, linear"),
    ({"base.training.precision": "fp16"}, "base.training.precision ", "'fp16'", "one of auto, fp32, bf16"),
    ({"negatives.rule": "random"}, "negatives.rule ", "'random'", "one of continuation, inside, outside"),
    ({"decoding.conv.gain": "relu"}, "decoding.conv.gain ", "'relu'", "one of tanh, linear, sigmoid, step"),
    ({"decoding.semi_ar.variant": "hop"}, "decoding.semi_ar.variant ", "'hop'", "one of stride, restrict"),
    ({"decoding.conv.rule": "conv"}, "decoding.conv.rule ", "'conv'", "one of categorical, top_k, low_confidence"),
    ({"decoding.conv.kernel": 3}, "decoding.conv.kernel ", "3", "one of box, exponential"),
    ({"decoding.remdm": {"schedule": "loops"}}, "decoding.remdm.schedule ", "'loops'", "one of loop, cap, rescale"),
    ({"decoding.low_confidence": {"confidence": "top"}}, "confidence ", "'top'", "one of probability, margin"),
    # Ranges.
    ({"seed": -1}, "params.yaml: seed ", "-1", "at least 0"),
    ({"seed": 2**32}, "params.yaml: seed ", str(2**32), "at most 4294967295"),
    ({"data.window": 1}, "params.yaml: data.window ", "1", "at least 2"),
    ({"data.max_records": 0}, "params.yaml: data.max_records ", "0", "at least 1"),
    ({"data.builtin.holdout": 1.5}, "params.yaml: data.builtin.holdout ", "1.5", "between 0 and 1"),
    ({"data.builtin.slots": []}, "params.yaml: data.builtin.slots ", "()", "a list of counts from 1"),
    ({"data.builtin.slots": [0]}, "params.yaml: data.builtin.slots ", "(0,)", "a list of counts from 1"),
    ({"data.builtin.topics": 0}, "params.yaml: data.builtin.topics ", "0", "at least 1"),
    ({"tokenizer.vocab_size": 259}, "params.yaml: tokenizer.vocab_size ", "259", "at least 260"),
    ({"model.layers": 0}, "params.yaml: model.layers ", "0", "at least 1"),
    ({"sft.training.batch_size": 0}, "params.yaml: sft.training.batch_size ", "0", "at least 1"),
    ({"sft.training.learning_rate": 0.0}, "params.yaml: sft.training.learning_rate ", "0.0", "above 0"),
    ({"sft.training.warmup_steps": -1}, "params.yaml: sft.training.warmup_steps ", "-1", "at least 0"),
    ({"reference.top_p": 1.1}, "params.yaml: reference.top_p ", "1.1", "between 0 and 1"),
    ({"reference.temperature": 0}, "params.yaml: reference.temperature ", "0.0", "above 0"),
    ({"negatives.g_max": 0}, "params.yaml: negatives.g_max ", "0", "at least 1"),
    ({"negatives.eos_probability": -0.1}, "params.yaml: negatives.eos_probability ", "-0.1", "between 0 and 1"),
    ({"r2ft.beta_w": -1}, "params.yaml: r2ft.beta_w ", "-1.0", "at least 0"),
    ({"decode.steps": [0, 16]}, "params.yaml: decode.steps ", "(0, 16)", "a list of numbers from 1"),
    ({"decode.steps": []}, "params.yaml: decode.steps ", "()", "a list of numbers from 1"),
    ({"decode.steps": [64, 16]}, "params.yaml: decode.steps ", "(64, 16)", "each above the one before"),
    ({"decode.steps": [16, 16]}, "params.yaml: decode.steps ", "(16, 16)", "each above the one before"),
    ({"ablation.steps": 0}, "params.yaml: ablation.steps ", "0", "at least 1"),
    ({"likelihood.records": 0}, "params.yaml: likelihood.records ", "0", "at least 1"),
    ({"likelihood.samples": 8}, "params.yaml: likelihood.samples ", "8", "at least 16"),
    ({"likelihood.samples": 20}, "params.yaml: likelihood.samples ", "20", "a multiple of 8"),
    ({"decoding.pc_sampler": {"background": "a"}}, "decoding.pc_sampler.background ", "'a'", "left out here, for DVC"),
    ({"rivals.decoders": {"pc_sampler": {"background": "a"}}}, "rivals.decoders.pc_sampler.background ", "'a'", "left"),
    ({"select.prompts": 0}, "params.yaml: select.prompts ", "0", "at least 1"),
    ({"select.seeds": [2, 2]}, "params.yaml: select.seeds ", "(2, 2)", "a list of different numbers"),
    ({"decode.seeds": []}, "params.yaml: decode.seeds ", "()", "a list of different numbers"),
    ({"decode.seeds": [1, 1]}, "params.yaml: decode.seeds ", "(1, 1)", "a list of different numbers"),
    ({"ablation.seeds": []}, "params.yaml: ablation.seeds ", "()", "a list of different numbers"),
    ({"evaluate.bootstrap_samples": 9}, "params.yaml: evaluate.bootstrap_samples ", "9", "at least 10"),
    ({"decoding.top_k.top_k": 0}, "params.yaml: decoding.top_k.top_k ", "0", "at least 1"),
    ({"decoding.conv.conv_mult": 0}, "params.yaml: decoding.conv.conv_mult ", "0.0", "above 0"),
    ({"decoding.conv.penalty": 0}, "params.yaml: decoding.conv.penalty ", "0.0", "above 0"),
    ({"decoding.conv.cfg_scale": -1}, "params.yaml: decoding.conv.cfg_scale ", "-1.0", "at least 0"),
    ({"decoding.threshold": {"threshold": 1.5}}, "decoding.threshold.threshold ", "1.5", "between 0 and 1"),
    ({"decoding.factor": {"factor": 0}}, "decoding.factor.factor ", "0.0", "above 0"),
    ({"decoding.low_confidence": {"temperature": -1}}, "temperature ", "-1.0", "at least 0"),
    ({"decoding.sliding_annealing": {"reach": -1}}, "sliding_annealing.reach ", "-1", "at least 0"),
    ({"rivals.passes": [8]}, "params.yaml: rivals.passes ", "(8,)", "two numbers from 1"),
    ({"rivals.passes": [8, 8]}, "params.yaml: rivals.passes ", "(8, 8)", "the second above the first"),
    ({"rivals.window": {}}, "params.yaml: rivals.window ", "{}", "with kernel_size"),
    ({"rivals.decoders": {}}, "params.yaml: rivals.decoders ", "{}", "a decoder or more"),
    ({"rivals.decoders": {"top_k": 3}}, "params.yaml: rivals.decoders.top_k ", "3", "a block of options"),
    ({"rivals.decoders": {"conv": {}}}, "params.yaml: rivals.decoders.conv ", "{}", "without a window"),
    ({"rivals.decoders": {"top_k": {"steps": [0]}}}, "rivals.decoders.top_k.steps ", "[0]", "a whole number from 1"),
    ({"rivals.decoders": {"top_k": {"steps": []}}}, "rivals.decoders.top_k.steps ", "[]", "no empty list"),
    ({"rivals.decoders": {"threshold": {"threshold": [2]}}}, "decoders.threshold.threshold ", "2.0", "between 0"),
    ({"decoding.entropy_bounded": {"gamma": -1}}, "decoding.entropy_bounded.gamma ", "-1.0", "at least 0"),
    ({"decoding.entropy_bounded": {"max_per_step": 0}}, "entropy_bounded.max_per_step ", "0", "at least 1"),
    ({"decoding.remdm": {"t_on": 1}}, "decoding.remdm.t_on ", "1.0", "between 0 and 1"),
    ({"sft.training.minutes": -1}, "params.yaml: sft.training.minutes ", "-1.0", "at least 0"),
    ({"sft.loss_average": "row"}, "params.yaml: sft.loss_average ", "'row'", "one of token, example"),
    ({"sft.padding_weight": 1.5}, "params.yaml: sft.padding_weight ", "1.5", "between 0 and 1"),
    ({"base.init": "adapt", "base.anneal_steps": -1}, "params.yaml: base.anneal_steps ", "-1", "at least 0"),
    ({"base.records_share": -0.5}, "params.yaml: base.records_share ", "-0.5", "between 0 and 1"),
    ({"base.logits_shift": 2}, "params.yaml: base.logits_shift ", "2", "one of 0, 1"),
    ({"tokenizer.pad_cycle": -1}, "params.yaml: tokenizer.pad_cycle ", "-1", "at least 0"),
    # What cannot go together.
    ({"base.anneal_steps": 5}, "params.yaml: base.anneal_steps ", "5", "0 unless adapted"),
    ({"base.records_share": 0.1}, "params.yaml: base.records_share ", "0.1", "0 where the rows are the training"),
    ({"base.rows": "text", "base.records_share": 0.1}, "base.records_share ", "0.1", "the training records alone"),
    (
        {"tokenizer.source": "train", "tokenizer.mask_token": "<m>"},
        "params.yaml: tokenizer.mask_token ",
        "'<m>'",
        "null for a tokenizer that is trained",
    ),
    ({"decoding.remdm": {"eta": 0.2}}, "decoding.remdm.eta ", "0.2", "at most 0.1111"),
    ({"decoding.remdm": {"t_off": 0.6}}, "decoding.remdm.t_off ", "0.6", "below t_on (0.55)"),
    ({"decoding.sliding_annealing": {"kernel_size": 3}}, "kernel_size ", "3", "null: sliding_annealing is a window"),
    ({"decoding.top_k.suffix": "none"}, "decoding.top_k.suffix ", "'none'", "full where every mask may commit"),
    ({"decoding.conv.kv_cache": "dual"}, "decoding.conv.kv_cache ", "'dual'", "none without block_length"),
    ({"decoding.conv.kernel_size": None}, "decoding.conv.kernel_size ", "None", "given for conv"),
    (
        {"reference.init": "pretrain"},
        "params.yaml: reference.init ",
        "'pretrain'",
        "another than pretrain where base.rows is",
    ),
    ({"base.rows": "text", "base.held_out": 0.1}, "params.yaml: base.held_out ", "0.1", "0 where text is train"),
    (
        {"base.suffix_share": 0.1, "base.crop_share": 0.1},
        "params.yaml: base.crop_share ",
        "0.1",
        "0 where suffix_share",
    ),
    ({"base.rows": "text", "base.suffix_share": 0.1}, "params.yaml: base.suffix_share ", "0.1", "0 where rows is text"),
    ({"base.text": "data/input/a.txt"}, "params.yaml: base.text ", "data/input/a.txt", "train where rows is records"),
    ({"data.source": "file"}, "params.yaml: data.file.path ", "None", "must name a file"),
    ({"data.file.columns": {"instruction": "q"}}, "data.file.columns ", "{'instruction': 'q'}", "input and output"),
    ({"template.prompt": "Q: {question}"}, "params.yaml: template.prompt ", "'Q: {question}'", "{instruction} in it"),
    ({"template.prompt_with_input": "{instruction}"}, "template.prompt_with_input ", "'{instruction}'", "{input}"),
    ({"model.hidden_size": 100, "model.heads": 3}, "params.yaml: model.hidden_size ", "100 and 3", "even multiple"),
    ({"model.hidden_size": 12, "model.heads": 4}, "params.yaml: model.hidden_size ", "12 and 4", "even multiple"),
    ({"model.max_length": 191}, "params.yaml: model.max_length ", "191", "at least 256"),
    ({"model.max_length": 300, "data.window": 256}, "params.yaml: model.max_length ", "300", "at least 320"),
    ({"decode.gen_length": 256}, "params.yaml: decode.gen_length ", "256", "at most data.window (128)"),
    ({"negatives.z_max": 29}, "params.yaml: negatives.z_max ", "29", "at least z_min (30)"),
    ({"decoding.conv.kernel_size": 128}, "params.yaml: decoding.conv.kernel_size ", "128", "odd and at least 1"),
    ({"decoding.conv.kernel_size": -1}, "params.yaml: decoding.conv.kernel_size ", "-1", "odd and at least 1"),
    ({"decoding.semi_ar.block_length": 48}, "decoding.semi_ar.block_length ", "48", "must divide gen_length (128)"),
    # Of candidates each one, at each number of steps.
    ({"decoding.conv.kernel_size": [65, 32]}, "params.yaml: decoding.conv.kernel_size ", "32", "odd and at least 1"),
    ({"decoding.conv.rule": ["top_k", "hop"]}, "params.yaml: decoding.conv.rule ", "'hop'", "one of categorical"),
    ({"decoding.conv.kernel_size": [[9]]}, "params.yaml: decoding.conv.kernel_size ", "[9]", "a whole number"),
    ({"decoding.conv.kernel_size": []}, "params.yaml: decoding.conv ", "'kernel_size': []", "without empty lists"),
    ({"decoding.semi_ar.block_length": [32, 48]}, "semi_ar.block_length ", "48", "must divide gen_length (128)"),
    ({"decoding.semi_ar.block_length": [32, 4]}, "params.yaml: decoding.semi_ar", "16", "a multiple of the 32 blocks"),
    ({"decode.steps": [6, 16]}, "params.yaml: decoding.semi_ar", "6", "a multiple of the 8 blocks"),
    ({"decode.steps": [16, 66]}, "params.yaml: decoding.semi_ar", "66", "a multiple of the 8 blocks"),
    ({"ablation.steps": 12}, "params.yaml: ablation.steps (decoding.semi_ar)", "12", "a multiple of the 8 blocks"),
]


@pytest.mark.parametrize(("edits", "key", "value", "remedy"), BAD, ids=[str(row[0]) for row in BAD])
def test_an_impossible_edit_is_one_clear_line(
    tmp_path: Path, edits: dict[str, Any], key: str, value: str, remedy: str
) -> None:
    message = complaint(tmp_path, dump_yaml(edited(edits)))
    assert message.startswith("params.yaml: ")
    assert key.strip() in message
    assert value in message
    assert remedy in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a block of keys"),
        ("# only a comment\n", "a block of keys"),
        ("- a\n- b\n", "a block of keys"),
        ("just words\n", "a block of keys"),
        ("data:\n\tsource: builtin\n", "not valid YAML"),
        ("data: {source: builtin\n", "not valid YAML"),
        ("a: *unknown\n", "not valid YAML"),
        ("seed: 1\ndata: {}\nseed: 2\n", "the key seed stands twice in one block; keep one"),
        ("decoding: {conv: {top_k: 1, top_k: 2}}\n", "the key top_k stands twice"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("a: \x00\n", "not valid YAML"),
        (b"report: {title: caf\xe9}\n", "not UTF-8"),
        (b"\xff\xfe\x00\x00", "not UTF-8"),
        ("seed: 2024-99-99\n", "not valid YAML"),  # a date, to YAML, and no day of any calendar
        pytest.param("seed: 1" + "0" * 5000 + "\n", "", id="seed of 5001 digits"),
        ("? [a, b]\n: 1\n", "not valid YAML"),
        ("? |\n  two\n  lines\n: 1\n", "two"),
    ],
)
def test_a_file_that_is_not_params(tmp_path: Path, text: str | bytes, says: str) -> None:
    message = complaint(tmp_path, text)
    assert "params.yaml" in message
    assert says in message


def test_a_missing_file_names_itself_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nowhere\.yaml: no such file; run from the repository's root or pass --params"
    ):
        load_params(tmp_path / "nowhere.yaml")


def test_an_integer_beyond_the_floats_is_refused(tmp_path: Path) -> None:
    message = complaint(tmp_path, dump_yaml(edited({"r2ft.margin": 10**400})))
    assert "r2ft.margin" in message


@pytest.mark.parametrize(
    "key", ["sft.training.learning_rate", "sft.training.weight_decay", "r2ft.gamma", "r2ft.margin"]
)
def test_infinity_is_no_setting(tmp_path: Path, key: str) -> None:
    message = complaint(tmp_path, dump_yaml(edited({key: float("inf")})))
    assert key in message
    assert "inf" in message


# Anything anywhere


def nodes(raw: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every leaf and every block."""
    if path:
        yield path
    if isinstance(raw, dict):
        for key, value in raw.items():
            yield from nodes(value, (*path, key))


ODD = """3e-5 1:30 2024-01-31 2024-01-31T10:00:00Z .nan .inf -.inf 1e400 0x1F 0o17 1_000 yes off ~ - {} [] '' "\\n"
    !!str !!binary !!set{a} *a &a = 2024-13-01"""
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["builtin", "file", "conv", "top_k", "{instruction}", "3e-5", "a\nb", "1e3", "2024-01-31"]),
)
keys = st.one_of(
    st.text(max_size=5), st.sampled_from(["decoder", "path", "steps", "instruction", "input", "output", "kernel_size"])
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
written = st.sampled_from(ODD.split()) | values.map(lambda value: json.dumps(value))


@settings(
    max_examples=1000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from(list(nodes(RAW))), written)
def test_any_value_anywhere_loads_or_is_refused_in_one_line(tmp_path: Path, path: tuple[str, ...], text: str) -> None:
    """The text is read as a value is; where it is none, in the whole file, of which reading takes most of the time."""
    key = ".".join(path)
    try:
        value = load_yaml(f"key: {text}")["key"]
    except ValueError:
        value = GONE
    try:
        if value is GONE:
            load(tmp_path, dump_yaml(edited({key: "PUT HERE"})).replace("PUT HERE", text))
        else:
            build(Params, edited({key: value}), "params.yaml: ")
    except UserError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(str(tmp_path)) or str(error).startswith("params.yaml: ")
