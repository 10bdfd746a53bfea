"""From records to tokenised splits: what is dropped, what is kept together, and that text survives its tokens."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import stage
from test_tokenizer import PREFIXING
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dlm.config.data import DataParams, TokenizerParams
from dlm.config.params import load_params
from dlm.data.records import Record
from dlm.data.splits import Example, log_prior, read_split, write_examples
from dlm.data.template import Template, load_template
from dlm.data.tokenizer import EOS, MASK, before_eos, decode, encode, load_tokenizer, train_tokenizer
from dlm.errors import UserError
from dlm.files import read_json
from dlm.sources.prepare import (
    SPLITS,
    deal,
    fit_splits,
    left_out,
    load_splits,
    make_tokenizer,
    statistics,
    tokenise,
    vocabulary,
    write_prepared,
)

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


def source(folder: Path, rows: list[dict[str, str]], prompts: list[str] | None = None, **sizes: float) -> DataParams:
    """The parameters of a file with these rows, and of a file with evaluation prompts."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "eval.jsonl"
    if prompts is not None:
        path.write_text("".join(json.dumps({"instruction": prompt}) + "\n" for prompt in prompts))
    columns = {"instruction": "instruction", "input": "input", "output": "output"}
    file = replace(DATA.file, path=str(folder / "train.jsonl"), columns=columns)
    file = replace(file, eval_path=None if prompts is None else str(path))
    return replace(DATA, source="file", file=file, **{"valid_size": 4, "eval_size": 6, **sizes})


def rows_of(count: int, answer: str = "answer") -> list[dict[str, str]]:
    return [{"instruction": f"ask {i}", "input": "", "output": f"{answer} {i}"} for i in range(count)]


def test_the_file_source(tmp_path: Path) -> None:
    rows = rows_of(40)
    held = source(tmp_path, [*rows, rows[0]])
    splits, counts = load_splits(held, 42)
    assert {name: len(records) for name, records in splits.items()} == {"train": 30, "valid": 4, "eval": 6}
    assert (counts["read"], counts["duplicate"], counts["kept"]) == (41, 1, 40)
    apart = source(tmp_path, rows, [f"new {i}" for i in range(9)])
    splits, counts = load_splits(apart, 42)
    assert (len(splits["train"]), len(splits["valid"]), counts["in_evaluation"]) == (36, 4, 0)
    assert [r.instruction for r in splits["eval"]] == [f"new {i}" for i in range(9)]
    fitted, _ = fit_splits(splits, TEMPLATE, BYTES, apart)
    assert [e.record for e in fitted["eval"]] == splits["eval"][:6]


def test_what_is_evaluated_is_not_trained_on(tmp_path: Path) -> None:
    """However it is spaced and written, and in valid neither; also prompts beyond eval_size. No other record moves."""
    rows = [*rows_of(30), {"instruction": "Ask", "input": " 31", "output": "a"}]
    data = source(tmp_path, rows, ["ASK  3", "ask 4 ", "new", "ask 31", *(f"ask {i}" for i in range(20, 26))])
    splits, counts = load_splits(data, 42)
    assert counts["in_evaluation"] == 9 and counts["kept"] == 31
    trained = {r.instruction for name in ("train", "valid") for r in splits[name]}
    assert trained == {f"ask {i}" for i in range(30)} - {"ask 3", "ask 4", *(f"ask {i}" for i in range(20, 26))}
    before, _ = load_splits(source(tmp_path, rows, ["new"]), 42)
    assert splits["train"] == [record for record in before["train"] if record in splits["train"]]
    fitted, dropped = fit_splits(splits, TEMPLATE, BYTES, data)
    assert len(fitted["valid"]) == 4 and len(fitted["train"]) == 31 - 9 - 4
    assert left_out(counts, fitted, dropped, data) == ["records left out: evaluation prompts as well 9 (29.0%)"]
    with pytest.raises(UserError, match="all records are evaluation prompts as well; name another file"):
        load_splits(source(tmp_path, rows_of(9), [f"ask {i}" for i in range(9)]), 42)


def test_a_sets_question_is_known_without_what_is_added_to_it(tmp_path: Path) -> None:
    rows = rows_of(30)
    data = source(tmp_path, rows)
    copy = tmp_path / "gsm8k.jsonl"
    copy.write_text("".join(json.dumps({"question": q, "answer": "#### 1"}) + "\n" for q in ("ask 7", "other")))
    data = replace(data, evaluation=replace(data.evaluation, name="gsm8k", path=str(copy), chain_of_thought=True))
    splits, counts = load_splits(data, 42)
    assert counts["in_evaluation"] == 1 and len(splits["train"]) + len(splits["valid"]) == 29


# Sizes and what is left out


def ragged(folder: Path, too_long: int, **sizes: float) -> tuple[dict[str, list[Record]], dict[str, int], DataParams]:
    """100 prompts with two answers each; those of the first so many are both too long for a window of 32."""
    rows = [
        {"instruction": f"ask {i}", "input": "", "output": ("long " * 10 if i < too_long else "short ") + str(k)}
        for i in range(100)
        for k in range(2)
    ]
    data = source(folder, rows, **{"valid_size": 20, "eval_size": 30, "window": 32, **sizes})
    return *load_splits(data, 42), data


def test_the_sizes_asked_for_are_the_sizes_got(tmp_path: Path) -> None:
    """Records that fit take the place of those that do not; what is held out is in no other split."""
    records, _, data = ragged(tmp_path, 40)
    splits, dropped = fit_splits(records, TEMPLATE, BYTES, data)
    assert {name: len(split) for name, split in splits.items()} == {
        "eval": 30,
        "valid": 20,
        "train": 2 * (100 - 40 - 30 - 20) + 2 * sum(e.record.output.startswith("long") for e in splits["eval"]),
    }
    asked = {name: prompts([e.record for e in split]) for name, split in splits.items()}
    assert sum(map(len, asked.values())) == len(set.union(*asked.values()))
    stay = [record for record in records["valid"] if record.output.startswith("short")]
    assert [e.record for e in splits["valid"]][: len(stay)] == stay and 0 < len(stay) < 20
    assert dropped["valid"] == {"prompt_too_long": 0, "answer_too_long": 20 - len(stay)}
    again, _ = fit_splits(records, TEMPLATE, BYTES, data)
    assert again == splits


def test_training_records_that_fit_are_as_many_as_asked_for(tmp_path: Path) -> None:
    records, _, data = ragged(tmp_path, 40, max_records=20)
    splits, dropped = fit_splits(records, TEMPLATE, BYTES, data)
    assert [len(splits[name]) for name in SPLITS] == [20, 20, 30]
    whole, of_all = fit_splits(records, TEMPLATE, BYTES, replace(data, max_records=None))
    assert splits["eval"] == whole["eval"] and splits["train"] == whole["train"][:20]
    assert dropped["train"]["answer_too_long"] <= of_all["train"]["answer_too_long"]


def test_more_asked_for_than_fits(tmp_path: Path) -> None:
    """Of 100 prompts 45 have an answer that fits; some of these are among the 30 evaluated."""
    records, _, data = ragged(tmp_path, 55, max_dropped=1.0, valid_size=44)
    with pytest.raises(UserError, match=r"data\.valid_size is 44, but only \d\d different prompts of the source fit"):
        fit_splits(records, TEMPLATE, BYTES, data)


def test_a_prompt_set_that_is_short_says_so(tmp_path: Path) -> None:
    """Of nine prompts two are too long, and ten are asked for; with five asked for, later ones fill up."""
    prompts = ["x" * 70, "one", "two", "y" * 80, *(f"new {i}" for i in range(5))]
    data = source(tmp_path, rows_of(30), prompts, eval_size=10)
    records, counts = load_splits(data, 42)
    splits, dropped = fit_splits(records, TEMPLATE, BYTES, data)
    assert [e.record.instruction for e in splits["eval"]] == ["one", "two", *(f"new {i}" for i in range(5))]
    assert left_out(counts, splits, dropped, data) == [
        "evaluation prompts left out: prompt longer than data.max_prompt_length 2 (22.2%)",
        "eval has 7 examples, data.eval_size is 10: no more of them fit",
    ]
    few = replace(data, eval_size=2)
    splits, dropped = fit_splits(records, TEMPLATE, BYTES, few)
    assert [e.record.instruction for e in splits["eval"]] == ["one", "two"]
    assert left_out(counts, splits, dropped, few) == [
        "evaluation prompts left out: prompt longer than data.max_prompt_length 1 (33.3%)"
    ]


def test_what_was_left_out_by_hand(tmp_path: Path) -> None:
    """Of 50 rows one is empty, one double; of the 48 left two are too long, and one prompt."""
    rows = [*rows_of(44), {"instruction": "ask 0", "input": "", "output": "answer 0"}]
    rows += [{"instruction": "a", "input": "", "output": " "}, {"instruction": "b" * 99, "input": "", "output": "c"}]
    rows += [{"instruction": f"d{i}", "input": "", "output": "e" * 200} for i in range(2)]
    rows += [{"instruction": "f", "input": "", "output": "g"}]
    data = source(tmp_path, rows)
    records, counts = load_splits(data, 42)
    splits, dropped = fit_splits(records, TEMPLATE, BYTES, data)
    assert left_out(counts, splits, dropped, data) == [
        "records left out: prompt longer than data.max_prompt_length 1 (2.1%), "
        "answer longer than data.window 2 (4.2%), empty output 1 (2.0%), double 1 (2.0%)"
    ]


def test_nothing_is_said_of_nothing() -> None:
    data = replace(DATA, max_prompt_length=300, window=600)
    records, counts = load_splits(data, 42)
    splits, dropped = fit_splits(records, TEMPLATE, BYTES, data)
    assert left_out(counts, splits, dropped, data) == []


def test_the_builtin_corpus_is_never_dealt_again() -> None:
    """Its splits hold different combinations: what does not fit is missed, and that is said."""
    data = replace(DATA, max_prompt_length=300, window=330, max_dropped=1.0)
    records, counts = load_splits(data, 42)
    splits, dropped = fit_splits(records, TEMPLATE, BYTES, data)
    lost = dropped["valid"]["answer_too_long"]
    assert lost and len(splits["valid"]) == 20 - lost
    assert left_out(counts, splits, dropped, data)[1] == (
        f"valid has {20 - lost} examples, data.valid_size is 20: no more of them fit"
    )


def test_most_of_the_records_do_not_fit(tmp_path: Path) -> None:
    """Above data.max_dropped nothing is prepared."""
    records, _, data = ragged(tmp_path, 60)
    told = r"5\d% of the records are longer .*data\.window \(32\) .*\(answer_too_long 5\d%\), data\.max_dropped is 0\.5"
    with pytest.raises(UserError, match=told):
        fit_splits(records, TEMPLATE, BYTES, data)
    prompts = ["x" * 70, "y" * 80, "new"]
    apart = source(tmp_path, rows_of(30), prompts)
    with pytest.raises(UserError, match="67% of the evaluation prompts are longer"):
        fit_splits(load_splits(apart, 42)[0], TEMPLATE, BYTES, apart)
    allowed = replace(apart, max_dropped=0.7)
    assert len(fit_splits(load_splits(allowed, 42)[0], TEMPLATE, BYTES, allowed)[0]["eval"]) == 1


def test_the_stage_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And that most did not fit, in one line, without leaving anything."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    rows = [*rows_of(90), *({"instruction": f"{i} " * 99, "input": "", "output": "d"} for i in range(10))]
    data = source(tmp_path, rows)
    params["data"] |= {"source": "file", "valid_size": 10, "eval_size": 20}
    params["data"]["file"]["path"] = data.file.path
    params["tokenizer"]["path"] = str(ROOT / "data/base/mdlm")
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    stage("prepare", folder=tmp_path)
    assert capsys.readouterr().out == "records left out: prompt longer than data.max_prompt_length 10 (10.0%)\n"
    examples = read_json(tmp_path / "build/data/stats.json")["examples"]
    assert examples == {"train": 60, "valid": 10, "eval": 20}
    params["data"]["max_dropped"] = 0.05
    path.write_text(yaml.safe_dump(params))
    with pytest.raises(SystemExit) as ended:
        stage("prepare", "--build", "other", folder=tmp_path)
    assert ended.value.code == 2 and not (tmp_path / "other").exists()
    assert "10% of the records are longer" in capsys.readouterr().err


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


@pytest.mark.parametrize("name", PREFIXING)
def test_no_space_is_invented_before_an_answer(name: str) -> None:
    """With tokenizers that put one before every text: prompt and answer read as the whole text does."""
    tokenizer = PREFIXING[name]()
    for form in ("{instruction}\n", "{instruction}\n\nAnswer:\n", "{instruction}, ", "{instruction}the"):
        records = [record("Describe the harbour", "salt boats leave")]
        kept, _ = tokenise(records, Template(form, form), tokenizer, DATA, needs_answer=True)
        whole = tokenizer(kept[0].prompt + kept[0].record.output, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(kept[0].prompt_ids + kept[0].answer_ids) == tokenizer.decode(whole)
        assert tokenizer.decode(kept[0].answer_ids).lstrip() == "salt boats leave"


def test_a_template_that_spells_the_mask() -> None:
    """Its special tokens are meant as such: every prompt would have a mask in it."""
    template = Template("{instruction}\n", f"{{instruction}} {MASK} {{input}}\n")
    records = {name: [record("ab")] for name in SPLITS}
    with pytest.raises(UserError, match=r"template.prompt_with_input must be without the mask token, got"):
        fit_splits(records, template, BYTES, DATA)


def test_nothing_that_fits_is_an_error() -> None:
    data = replace(DATA, max_prompt_length=8, max_dropped=1.0)
    with pytest.raises(
        UserError, match=r"nothing for train fits data\.max_prompt_length \(8\) and data\.window \(128\)"
    ):
        fit_splits({name: [record("ab", "x")] for name in SPLITS}, TEMPLATE, BYTES, data)


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
    with pytest.raises(UserError, match=r"train\.parquet: no such file; run the stage that makes it"):
        read_split(tmp_path, "train")
    write_examples(tmp_path / "train.parquet", [example("x", "y")])
    whole = (tmp_path / "train.parquet").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not parquet at all", whole[:-9] + b"\0" * 9):
        (tmp_path / "train.parquet").write_bytes(broken)
        with pytest.raises(UserError, match=r"train\.parquet: broken parquet \(.*; delete it and run"):
            read_split(tmp_path, "train")


def prepare(data: DataParams, folder: Path) -> None:
    """What the prepare stage does."""
    records, counts = load_splits(data, 42)
    tokenizer = make_tokenizer(TokenizerParams("train", 400, ""), TEMPLATE, records["train"])
    splits, dropped = fit_splits(records, TEMPLATE, tokenizer, data)
    write_prepared(folder, splits, tokenizer, {**counts, "dropped": dropped})


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    data = replace(DATA, max_prompt_length=200, window=300)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        prepare(data, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    assert len(read_split(tmp_path / "first/training", "train")) == 150
