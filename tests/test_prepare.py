"""From records to tokenised splits: what is dropped, what is kept together, and that text survives its tokens."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dlm.blocks import DataParams, TokenizerParams
from dlm.data.prepare import SPLITS, deal, load_splits, make_tokenizer, statistics, tokenise, vocabulary, write_prepared
from dlm.data.records import Record
from dlm.data.splits import Example, log_prior, read_split, write_examples
from dlm.data.template import Template, load_template
from dlm.data.tokenizer import EOS, MASK, before_eos, decode, encode, load_tokenizer, train_tokenizer
from dlm.errors import UserError
from dlm.params import load_params

ROOT = Path(__file__).parents[1]
SHIPPED = load_params(ROOT / "profiles" / "builtin.yaml")
DATA = replace(
    SHIPPED.data,
    valid_size=20,
    eval_size=15,
    builtin=replace(SHIPPED.data.builtin, grammar=str(ROOT / "data/builtin/grammar.yaml"), train_size=150),
)
TEMPLATE = Template("Q: {instruction}\nA: ", "Q: {instruction}\nI: {input}\nA: ")
BYTES = train_tokenizer([], 260)  # no merges: one id a byte
MERGED = train_tokenizer(["the cat sat on the mat, the end <|mask|> of the text"] * 3, 300)


def record(instruction: str, output: str = "x", context: str = "") -> Record:
    return Record(instruction, context, output)


# Template


def test_a_prompt_by_hand() -> None:
    assert TEMPLATE.render(record("Sing")) == "Q: Sing\nA: "
    assert TEMPLATE.render(record("Sing", context="a song")) == "Q: Sing\nI: a song\nA: "
    backwards = Template("{instruction}", "{input} -> {instruction} ({input})")
    assert backwards.render(record("b", context="a")) == "a -> b (a)"


@pytest.mark.parametrize("text", ["{input}", "{instruction}", "{", "}", "{0}", "{{x}}", "set {instruction} to {input}"])
def test_braces_in_a_record_are_left_alone(text: str) -> None:
    assert TEMPLATE.render(record(text)) == f"Q: {text}\nA: "
    assert TEMPLATE.render(record(text, context=text)) == f"Q: {text}\nI: {text}\nA: "
    assert TEMPLATE.render(record("x", context=text)) == f"Q: x\nI: {text}\nA: "


def test_a_template_travels_with_a_checkpoint(tmp_path: Path) -> None:
    assert load_template(tmp_path) is None
    odd = Template("»{instruction}«\n", "{instruction}\t{input}")
    odd.save(tmp_path)
    assert load_template(tmp_path) == odd


# Tokenizer


def reload(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def bare_gpt2(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    """GPT-2's two files alone, and no mask among them."""
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    vocab = {token: i for i, token in enumerate(token for token in tokens if token != MASK)}
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return load_tokenizer(folder)


@pytest.fixture(params=["bytes", "merged", "reloaded", "bare gpt2"], scope="module")
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return {
        "bytes": lambda: BYTES,
        "merged": lambda: MERGED,
        "reloaded": lambda: reload(MERGED, tmp_path_factory.mktemp("saved")),
        "bare gpt2": lambda: bare_gpt2(MERGED, tmp_path_factory.mktemp("gpt2")),
    }[request.param]()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " two  spaces ",
        "line\nbreak\ttab\r\n",
        "naïve café 日本 🦀\u200d",
        "a mask <|mask|> in text",
        "<|endoftext|><|mask|><|endoftext|>",
        "cleaning , up ' nothing n't .",
    ],
)
def test_text_survives_its_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    (ids,) = encode(tokenizer, [text])
    assert decode(tokenizer, ids) == text
    assert tokenizer.mask_token_id not in ids
    assert tokenizer.eos_token_id not in ids
    assert decode(tokenizer, [*ids, tokenizer.eos_token_id, tokenizer.mask_token_id]) == text


pieces = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([EOS, MASK, "the ", "<|", "|>"])), max_size=5)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pieces.map("".join))
def test_any_text_survives_its_tokens(text: str) -> None:
    for tokenizer in (BYTES, MERGED):
        (ids,) = encode(tokenizer, [text])
        assert decode(tokenizer, ids) == text
        assert not {tokenizer.mask_token_id, tokenizer.eos_token_id} & set(ids)


def test_special_tokens_are_two_and_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token_id != tokenizer.mask_token_id
    assert max(tokenizer.eos_token_id, tokenizer.mask_token_id) < len(tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokenizer.mask_token_id) == MASK


def test_content_ends_before_the_first_eos() -> None:
    assert before_eos([5, 0, 7, 0], 0) == [5]
    assert before_eos([5, 6], 0) == [5, 6]
    assert before_eos([0], 0) == before_eos([], 0) == []


def test_training_keeps_to_the_vocabulary_and_repeats() -> None:
    texts = [f"{a} {b}" for a in ("red", "green", "blue") for b in ("apples", "pears")] * 4
    first, second = (train_tokenizer(iter(texts), 290) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert 258 < len(first) <= 290
    assert len(encode(first, ["green apples"])[0]) < len("green apples")


def test_params_choose_the_tokenizer(tmp_path: Path) -> None:
    MERGED.save_pretrained(tmp_path)
    given = make_tokenizer(TokenizerParams("given", 1280, str(tmp_path)), TEMPLATE, [])
    assert given.get_vocab() == MERGED.get_vocab()
    trained = make_tokenizer(TokenizerParams("train", 262, "unused"), TEMPLATE, [record("zz", "zzzz")] * 5)
    assert len(trained) <= 262
    assert "zz" in trained.get_vocab()


def test_a_tokenizer_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(tmp_path)


# Dealing


def dealt(records: list[Record], **sizes: int | None) -> dict[str, list[Record]]:
    return deal(records, replace(DATA, **{"valid_size": 2, "eval_size": 3, "max_records": None, **sizes}), 42)


def prompts(records: list[Record]) -> set[tuple[str, str]]:
    return {(r.instruction, r.input) for r in records}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=20, max_size=60), st.integers(0, 1000))
def test_equal_prompts_stay_in_one_split(drawn: list[tuple[int, int]], seed: int) -> None:
    records = [record(f"ask {i}", f"answer {n}", "context" * has) for n, (i, has) in enumerate(drawn)]
    sizes = replace(DATA, valid_size=2, eval_size=1, max_records=None)
    if len(prompts(records)) <= 3:
        return
    splits = deal(records, sizes, seed)
    assert len(splits["eval"]) == 1
    assert len(splits["valid"]) == 2
    held = [*prompts(splits["eval"]), *prompts(splits["valid"])]
    assert len(set(held)) == 3
    expected = Counter(r.output for r in records if (r.instruction, r.input) not in held)
    assert Counter(r.output for r in splits["train"]) == expected


def test_sizes_and_seeds() -> None:
    records = [record(f"ask {i}") for i in range(30)]
    splits = dealt(records)
    assert {name: len(split) for name, split in splits.items()} == {"eval": 3, "valid": 2, "train": 25}
    assert dealt(records) == splits
    assert deal(records, replace(DATA, valid_size=2, eval_size=3), 43) != splits
    assert [r.instruction for r in splits["train"]] != sorted(r.instruction for r in splits["train"])
    assert len(dealt(records, max_records=7)["train"]) == 7
    assert dealt(records, max_records=7)["eval"] == splits["eval"]
    apart = deal(records, replace(DATA, valid_size=2, eval_size=3), 42, eval_size=0)
    assert (len(apart["eval"]), len(apart["valid"]), len(apart["train"])) == (0, 2, 28)


def test_too_few_records() -> None:
    """Five are held out: six different prompts are the least."""
    with pytest.raises(UserError, match=r"must be below the 5 different prompts of the source, got 5; lower them"):
        dealt([record(f"ask {i % 5}", str(i)) for i in range(50)])
    assert len(dealt([record(f"ask {i % 6}", str(i)) for i in range(60)])["train"]) == 10


def test_the_builtin_source() -> None:
    splits, counts = load_splits(DATA, 42)
    assert {name: len(records) for name, records in splits.items()} == {"train": 150, "valid": 20, "eval": 15}
    assert counts == {"read": 185, "kept": 185}


def test_the_file_source(tmp_path: Path) -> None:
    rows = [{"instruction": f"ask {i}", "input": "", "output": f"answer {i}"} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"instruction": f"new {i}"}) + "\n" for i in range(9)))
    columns = {"instruction": "instruction", "input": "input", "output": "output"}
    data = replace(DATA, source="file", valid_size=4, eval_size=6)
    held = replace(data, file=replace(data.file, path=str(tmp_path / "train.jsonl"), columns=columns))
    splits, counts = load_splits(held, 42)
    assert {name: len(records) for name, records in splits.items()} == {"train": 30, "valid": 4, "eval": 6}
    assert (counts["read"], counts["duplicate"], counts["kept"]) == (41, 1, 40)
    apart = replace(held, file=replace(held.file, eval_path=str(tmp_path / "eval.jsonl")))
    splits, _ = load_splits(apart, 42)
    assert {name: len(records) for name, records in splits.items()} == {"train": 36, "valid": 4, "eval": 6}
    assert [r.instruction for r in splits["eval"]] == [f"new {i}" for i in range(6)]


# Tokenising


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    """One id a byte: the prompt of `ab` is `Q: ab\\nA: `, 9 ids. At most 9 ids of prompt, and a window of 5 for the
    answer and its EOS, so 4 ids of answer."""
    data = replace(DATA, max_prompt_length=9, window=5)
    records = [
        record("ab", "four"),
        record("abc", "four"),
        record("ab", "five!"),
        record("é", "é"),
        record("abc", "five!"),
    ]
    kept, dropped = tokenise(records, TEMPLATE, BYTES, data, needs_answer=True)
    assert [example.record for example in kept] == [records[0], records[3]]
    assert dropped == {"prompt_too_long": 2, "answer_too_long": 1}
    assert [len(example.prompt_ids) for example in kept] == [9, 9]
    assert [len(example.answer_ids) for example in kept] == [4, 2]
    assert kept[0].prompt == "Q: ab\nA: "
    kept, dropped = tokenise(records, TEMPLATE, BYTES, data, needs_answer=False)
    assert [example.record for example in kept] == [records[0], records[2], records[3]]
    assert dropped == {"prompt_too_long": 2, "answer_too_long": 0}


def test_nothing_that_fits_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no record fits data\.max_prompt_length \(8\) and data\.window \(128\)"):
        tokenise([record("ab", "x")], TEMPLATE, BYTES, replace(DATA, max_prompt_length=8), needs_answer=True)


def test_the_builtin_corpus_fits_the_shipped_lengths() -> None:
    """A tokenizer trained as profiles/builtin-base.yaml says, on fewer records: next to nothing may be dropped."""
    splits, _ = load_splits(replace(DATA, builtin=replace(DATA.builtin, train_size=1500)), 42)
    template = Template(SHIPPED.template.prompt, SHIPPED.template.prompt_with_input)
    tokenizer = make_tokenizer(TokenizerParams("train", SHIPPED.tokenizer.vocab_size, ""), template, splits["train"])
    for name in SPLITS:
        kept, dropped = tokenise(splits[name], template, tokenizer, DATA, needs_answer=name != "eval")
        assert sum(dropped.values()) <= 0.01 * len(splits[name])
        assert decode(tokenizer, kept[0].prompt_ids + kept[0].answer_ids) == kept[0].prompt + kept[0].record.output


def example(instruction: str, output: str) -> Example:
    (kept,), _ = tokenise([record(instruction, output)], TEMPLATE, BYTES, DATA, needs_answer=True)
    return kept


def test_statistics_by_hand() -> None:
    """Training answers `aab` and `b`: a twice, b twice, all else never. Valid and eval do not count."""
    a, b = encode(BYTES, ["ab"])[0]
    splits = {
        "train": [example("x", "aab"), example("xyz", "b")],
        "valid": [example("x", "ccc")],
        "eval": [example("xy", "dd")],
    }
    known = vocabulary(splits["train"], BYTES)
    found = statistics(splits, BYTES, {"read": 4}, known["token_counts"])
    counts = [0] * len(BYTES)
    counts[a], counts[b] = 2, 2
    assert known["token_counts"] == counts
    assert found["most_frequent"][:2] == [["a", 2], ["b", 2]]
    assert (known["vocab_size"], known["eos_id"], known["mask_id"]) == (258, BYTES.eos_token_id, BYTES.mask_token_id)
    assert found["examples"] == {"train": 2, "valid": 1, "eval": 1}
    assert found["records"] == {"read": 4}
    # Prompts of 8 and 10 ids, answers of 3 and 1; percentiles interpolate.
    assert found["prompt_length"]["train"] == {"p0": 8.0, "p5": 8.1, "p50": 9.0, "p95": 9.9, "p100": 10.0}
    assert found["answer_length"]["train"] == pytest.approx({"p0": 1, "p5": 1.1, "p50": 2, "p95": 2.9, "p100": 3})
    assert json.loads(json.dumps([found, known], allow_nan=False)) == [found, known]


# On disk


def test_log_prior_by_hand() -> None:
    """Counts 0, 1, 4 of 8 with one added to each."""
    assert log_prior([0, 1, 4]) == pytest.approx([math.log(1 / 8), math.log(2 / 8), math.log(5 / 8)])


def test_splits_survive_the_disk(tmp_path: Path) -> None:
    examples = [
        Example(Record("naïve\n", "{x}", "", {"topic": "é", "slots": ["a"]}), "prompt", [1, 2], []),
        Example(Record("two", "", "out"), "", [], [3, 2**31 - 1]),
    ]
    write_examples(tmp_path / "valid.parquet", examples)
    assert read_split(tmp_path, "valid") == [
        {
            "id": 0,
            "instruction": "naïve\n",
            "input": "{x}",
            "output": "",
            "prompt": "prompt",
            "meta": '{"topic": "\\u00e9", "slots": ["a"]}',
            "prompt_ids": [1, 2],
            "answer_ids": [],
        },
        {
            "id": 1,
            "instruction": "two",
            "input": "",
            "output": "out",
            "prompt": "",
            "meta": "{}",
            "prompt_ids": [],
            "answer_ids": [3, 2**31 - 1],
        },
    ]
    assert read_split(tmp_path, "valid", ["answer_ids", "id"])[1] == {"answer_ids": [3, 2**31 - 1], "id": 1}


def test_splits_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.parquet: no such file; run the prepare stage"):
        read_split(tmp_path, "train")
    write_examples(tmp_path / "train.parquet", [example("x", "y")])
    whole = (tmp_path / "train.parquet").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not parquet at all", whole[:-9] + b"\0" * 9):
        (tmp_path / "train.parquet").write_bytes(broken)
        with pytest.raises(UserError, match=r"train\.parquet: broken parquet \(.*; run `dvc repro -f prepare`"):
            read_split(tmp_path, "train")


def prepare(data: DataParams, folder: Path) -> None:
    """What the prepare stage does."""
    records, counts = load_splits(data, 42)
    tokenizer = make_tokenizer(TokenizerParams("train", 400, ""), TEMPLATE, records["train"])
    splits = {}
    for name in SPLITS:
        splits[name], counts[name] = tokenise(records[name], TEMPLATE, tokenizer, data, needs_answer=name != "eval")
    write_prepared(folder, splits, tokenizer, counts)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    data = replace(DATA, max_prompt_length=200, window=300)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        prepare(data, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    assert len(read_split(tmp_path / "first", "train")) == 150
