"""Rainbow Padding from prepare to evaluate: an adapted model with three pad tokens."""

from pathlib import Path

import torch
from scripts import stage
from test_adapted_base import prepared

from dlm.files import read_json, read_jsonl
from dlm.models.backbone import load_checkpoint
from dlm.models.interface import pad_cycle


def test_three_pad_tokens_go_through_the_stages(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tokenizer={"pad_cycle": 3})
    for name in ("prepare", "base", "reference", "negatives"):
        stage(name, folder=folder)
    for variant in ("sft", "sft_answer"):
        stage("sft", "--variant", variant, folder=folder)
    stage("r2ft", folder=folder)
    ids = [301, 302, 303]  # behind the 300 entries and the mask
    assert read_json(folder / "build/data/training/vocabulary.json")["vocab_size"] == 304
    rows = {}
    for name in ("base", "sft", "r2ft"):
        model, tokenizer = load_checkpoint(folder / "build/models" / name, causal=False)
        assert pad_cycle(model) == ids and len(tokenizer) == 304
        rows[name] = model.get_input_embeddings().weight[ids]
    assert not torch.equal(rows["sft"], rows["base"])
    reference, its_tokenizer = load_checkpoint(folder / "build/models/reference", causal=True)
    assert len(reference.get_input_embeddings().weight) == 300 and not {*ids} & set(its_tokenizer.get_vocab().values())
    for checkpoint in ("sft", "r2ft"):
        stage("decode", "--checkpoint", checkpoint, "--decoder", "conv", folder=folder)
        answers = read_jsonl(folder / f"build/answers/{checkpoint}-conv.jsonl")
        assert len(answers) == 3 and not any({*ids} & set(row["tokens"]) for row in answers)
        stage("evaluate", "--checkpoint", checkpoint, "--decoder", "conv", folder=folder)
