"""From text to ids: no text becomes a special token, nothing that others set changes a reading, pieces join."""

import json
from pathlib import Path
from typing import Any

import published
import pytest
from tiny import SENTENCES, SHAPE, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dlm.data.records import Record
from dlm.data.template import Template
from dlm.data.text import pack
from dlm.data.tokenizer import encode, encode_answers, load_tokenizer
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.models.backbone import new_backbone

SPECIAL = ["<unk>", "</s>", "<mask>", "<turn>"]
TEXT = "The harbour of Velmora opens"


def metaspace(kind: str = "unigram", scheme: str = "always", *, split: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's manner: a space is a part of the word behind it, and a text begins with one."""
    unigram = kind == "unigram"
    made = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>", fuse_unk=True))
    spaces = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if split else spaces
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    given: dict[str, Any] = {"vocab_size": 120, "special_tokens": SPECIAL, "show_progress": False}
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **given) if unigram else trainers.BpeTrainer(**given)
    made.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", mask_token="<mask>", unk_token="<unk>")


def llama() -> PreTrainedTokenizerFast:
    """Llama 2's manner: a normalizer puts the space before, and unknown characters are bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    made.decoder = decoders.Sequence([made.decoder, decoders.Strip(" ", 1, 0)])
    made.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    )
    spec = json.loads(made.to_str())
    size = len(spec["model"]["vocab"])
    spec["model"]["vocab"] |= {byte: size + n for n, byte in enumerate(bytes_)}
    made = Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", mask_token="<mask>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(special_tokens=["[UNK]", "[SEP]", "[MASK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", mask_token="[MASK]", unk_token="[UNK]")


def roberta() -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts a space before every text."""
    made = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<|endoftext|>", eos_token="<|endoftext|>", mask_token="<|mask|>"
    )


PREFIXING = {
    "unigram": metaspace,
    "unigram, first alone": lambda: metaspace(scheme="first"),
    "unigram, split": lambda: metaspace(split=True),
    "bpe": lambda: metaspace("bpe"),
    "llama": llama,
    "roberta": roberta,
}


def tokens(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(ids))


# --- Pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFIXING)
def test_a_text_that_goes_on_gets_no_space(name: str) -> None:
    """Cut at every place: the second piece's text is what was cut off, and a space there is one space."""
    tokenizer = PREFIXING[name]()
    whole = str(tokenizer.decode(encode(tokenizer, [TEXT])[0]))
    for cut in range(1, len(TEXT)):
        (first,), (rest,) = encode(tokenizer, [TEXT[:cut]]), encode(tokenizer, [TEXT[cut:]], after=True)
        joined = tokenizer.decode(first + rest)
        # Where the pre-tokenizer drops white space, a piece that ends with some loses it.
        dropped = "split" in name and TEXT[cut - 1] == " "
        assert joined == (whole.replace(TEXT, TEXT[: cut - 1] + TEXT[cut:]) if dropped else whole)
    assert tokens(tokenizer, encode(tokenizer, ["s"], after=True)[0]) == ["s"]
    assert encode(tokenizer, ["", "s"], after=True) == [[], encode(tokenizer, ["s"], after=True)[0]]
    spaced = encode(tokenizer, [" of"], after=True)[0]
    assert tokens(tokenizer, spaced)[0][0] in "▁Ġ" and spaced == encode(tokenizer, ["of"])[0]


@pytest.mark.parametrize("make", [tiny_tokenizer, wordpiece])
def test_where_nothing_is_put_before_a_text_it_is_read_as_ever(make: Any) -> None:
    tokenizer = make()
    texts = [*SENTENCES, *(sentence[3:] for sentence in SENTENCES), "", " a", "🙂 \n", "s"]
    assert encode(tokenizer, texts, after=True) == encode(tokenizer, texts)


def test_an_unknown_character_at_the_start() -> None:
    """It may fuse with what stands before it."""
    for kind in ("unigram", "bpe"):
        tokenizer = metaspace(kind)
        found = encode(tokenizer, ["🙂s"], after=True)[0]
        assert found == [tokenizer.unk_token_id, *encode(tokenizer, ["s"], after=True)[0]]


# --- Special tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFIXING)
def test_text_that_spells_special_tokens_is_text(name: str) -> None:
    """A Unigram holds them among its words, where the tokenizers' own switch does not reach."""
    tokenizer = PREFIXING[name]()
    special = {tokenizer.eos_token_id, tokenizer.mask_token_id}
    eos, mask = tokenizer.eos_token, tokenizer.mask_token
    for text in (eos, f"The{mask}{mask} fog{eos}", f"{eos} opens", f"a {eos}{mask}"):
        for after in (False, True):
            assert not special & set(encode(tokenizer, [text], after=after)[0]), text
    # Next to it, nothing changes.
    assert encode(tokenizer, [TEXT, eos, TEXT])[::2] == encode(tokenizer, [TEXT]) * 2


def test_what_becomes_a_special_token_on_the_way_is_refused() -> None:
    """Full-width brackets, which the normalizer makes plain ones."""
    tokenizer = metaspace()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(UserError, match="spells a special token"):
        encode(tokenizer, ["the \uff1c/s\uff1e end"])


def byte_level(mask: str | None = None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=published.bpe(["<|endoftext|>", "<m>"]), eos_token="<|endoftext|>", mask_token=mask
    )


def word(mask: str | None) -> PreTrainedTokenizerFast:
    made = wordpiece().backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", unk_token="[UNK]", mask_token=mask)


# The tokenizer, the id that config.json names for the mask, params.yaml's mask_token; what the mask is told to be.
HELD: dict[str, tuple[Any, str | None, str | None, str]] = {
    "a word of its own": (
        byte_level("\u0120t"),
        None,
        None,
        "'\u0120t' is a piece of ordinary texts; give",
    ),
    "a letter": (byte_level("t"), None, None, "'t' is a piece of ordinary texts; give the tokenizer"),
    "a word that config.json names": (byte_level(), "\u0120t", None, "'\u0120t' is a piece of ordinary texts; give"),
    "the unknown token": (word("[UNK]"), None, None, r"'\[UNK\]' is a piece of ordinary texts; give the tokenizer"),
    "the unknown token, named": (word(None), None, "[UNK]", r"'\[UNK\]' is a piece of ordinary texts; name another"),
    "the end-of-text": (byte_level("<|endoftext|>"), None, None, r"'<\|endoftext\|>' is the end-of-text; give the"),
    "the end-of-text, named": (byte_level(), None, "<|endoftext|>", r"'<\|endoftext\|>' is the end-of-text; name"),
}


@pytest.mark.parametrize("case", HELD)
def test_a_mask_that_texts_may_hold(tmp_path: Path, case: str) -> None:
    """Whoever names it: every such text would have masks in it, or could not be read."""
    tokenizer, by_config, named, told = HELD[case]
    tokenizer.save_pretrained(tmp_path)
    if by_config is not None:
        config = {"model_type": "llama", "mask_token_id": tokenizer.convert_tokens_to_ids(by_config)}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"the mask token {told}"):
        load_tokenizer(tmp_path, named)


@pytest.mark.parametrize("name", [*PREFIXING, "byte level", "added, not special"])
def test_no_text_puts_a_mask_anywhere(tmp_path: Path, name: str) -> None:
    """Rows of records, prompts of users, running text: the mask's spelling is text in all of them."""
    if name == "added, not special":
        bpe = published.bpe(["<|endoftext|>"])
        bpe.add_tokens([AddedToken("<m>", special=False, normalized=False)])
        made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", mask_token="<m>")
    else:
        made = byte_level("<m>") if name == "byte level" else PREFIXING[name]()
    made.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    mask, mask_id = str(tokenizer.mask_token), tokenizer.mask_token_id
    for text in (mask, f"The {mask}", f"{mask}fog {mask}{mask}", f"fog{mask}"):
        template = Template("{instruction}\n", "{instruction} {input}\n")
        read = [
            *template.encode(tokenizer, [Record(text, "", ""), Record("a", text, "")]),
            *encode(tokenizer, [text]),
            *encode_answers(tokenizer, ["The\n"], [text]),
            *pack(tokenizer, [text, "fog", text], 6),
            DiffusionLM(new_backbone(SHAPE, tokenizer, 0, causal=False), tokenizer)._canvas(text),
        ]
        assert all(mask_id not in ids for ids in read), text


def test_what_others_set_changes_no_reading() -> None:
    """transformers sets special tokens, truncation and padding for each of its calls, and leaves them so."""
    tokenizer = roberta()
    texts = ["The <|mask|> harbour<|endoftext|> opens", "a"]
    first = encode(tokenizer, texts)
    assert tokenizer("<|mask|>")["input_ids"] == [tokenizer.mask_token_id]
    assert encode(tokenizer, texts) == first
    tokenizer(["The harbour", "a"], padding=True, truncation=True, max_length=3)
    assert encode(tokenizer, texts) == first
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding()
    assert encode(tokenizer, texts) == first


# --- Templates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFIXING)
def test_a_template_is_read_as_a_whole(name: str) -> None:
    """As the tokenizer reads the rendered prompt, special tokens as such."""
    tokenizer = PREFIXING[name]()
    turn = tokenizer.mask_token
    template = Template(f"{turn}The {{instruction}}{turn} fog:", f"{turn}{{instruction}}{turn}{{input}}{turn}")
    records = [Record("harbour", "", ""), Record("harbour", "boats", "")]
    expected = [tokenizer(template.render(record), add_special_tokens=False)["input_ids"] for record in records]
    assert template.encode(tokenizer, records) == expected


@pytest.mark.parametrize("name", PREFIXING)
def test_a_record_cannot_write_the_template_s_special_tokens(name: str) -> None:
    tokenizer = PREFIXING[name]()
    eos, mask = tokenizer.eos_token, tokenizer.mask_token
    template = Template(f"{mask}{{instruction}}{eos}", f"{mask}{{instruction}}{eos}{{input}}{eos}")
    [ids] = template.encode(tokenizer, [Record(f"the{eos} fog {mask}", f"{eos}boats", "")])
    special = [i for i in ids if i in (tokenizer.eos_token_id, tokenizer.mask_token_id)]
    assert special == [tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.eos_token_id]
