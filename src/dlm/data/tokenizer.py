"""Tokenizers: a byte-level BPE trained here, or a saved one; both leave with an end-of-text and a mask token."""

import os
import re
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Tokenizer

from dlm.errors import UserError
from dlm.files import check_hub, gguf_place, is_gguf

EOS = "<|endoftext|>"
MASK = "<|mask|>"
BREAK = "\udfff"  # half a surrogate pair, which no valid text holds
ANCHOR = "\U00013000"  # a hieroglyph: no vocabulary has it in a word
READING = threading.Lock()  # a call sets options on the tokenizer, which threads share


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `vocab_size` entries, special tokens included."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return _finish(PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS, mask_token=MASK))


def load_tokenizer(path: Path | str, mask_token: str | None = None) -> PreTrainedTokenizerFast:
    """Load a saved tokenizer (a folder, a GGUF file, or a hub name).

    The mask is the one that a config.json beside it names (LLaDA's tokenizer does not), else one is added where there
    is none. Dream's files are Qwen2's, though they name a class of its own.

    Args:
        mask_token: an entry of the tokenizer to become the mask, where it has none.

    Raises:
        UserError: nothing there, not a tokenizer, one without an end-of-text token or that entry, with another mask, or
            with one that a text may hold.
    """
    check_hub(path)
    model = {} if is_gguf(path) else _config_beside(path)
    bare_gpt2 = (Path(path) / "merges.txt").is_file() and not (Path(path) / "tokenizer_config.json").is_file()
    try:
        # A folder with GPT-2's two files alone does not say what it is.
        is_dream = model.get("model_type") == "Dream"
        kind: Any = Qwen2Tokenizer if is_dream else GPT2Tokenizer if bare_gpt2 else AutoTokenizer
        place, named = gguf_place(path) if is_gguf(path) else (str(path), {})
        tokenizer: Any = kind.from_pretrained(place, trust_remote_code=False, **named)
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: no tokenizer could be loaded ({str(error).splitlines()[0]}); give a folder") from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{path}: {type(tokenizer).__name__} is written in Python; only those of tokenizers can be used"
        )
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token  # a masked LM's texts end with it
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: the tokenizer has no end-of-text token; add one and save it again")
    mask_id = model.get("mask_token_id")
    if mask_token is not None and tokenizer.mask_token != mask_token:
        if tokenizer.mask_token is not None or mask_token not in tokenizer.get_vocab():
            problem = (
                "is no entry of it" if tokenizer.mask_token is None else f"differs from its own, {tokenizer.mask_token}"
            )
            raise UserError(f"{path}: the mask token {mask_token!r} {problem}; name another, or none")
        tokenizer.add_special_tokens({"mask_token": mask_token})
    if tokenizer.mask_token_id is None:
        known = None if mask_id is None else tokenizer.convert_ids_to_tokens(mask_id)
        tokenizer.add_special_tokens({"mask_token": known or MASK})
    if mask_id is not None and tokenizer.mask_token_id != mask_id:
        raise UserError(
            f"{path}: the tokenizer's mask is {tokenizer.mask_token_id}, the model's {mask_id}; give the model's own"
        )
    if tokenizer.mask_token_id == tokenizer.eos_token_id or _is_held_by_texts(tokenizer, tokenizer.mask_token_id):
        what = "the end-of-text" if tokenizer.mask_token_id == tokenizer.eos_token_id else "a piece of ordinary texts"
        remedy = "name another, or none" if mask_token is not None else "give the tokenizer one that no text holds"
        raise UserError(f"{path}: the mask token {tokenizer.mask_token!r} is {what}; {remedy}")
    return _finish(tokenizer)


def _is_held_by_texts(tokenizer: PreTrainedTokenizerFast, token: int) -> bool:
    """Whether reading a text may give a token, the unknown one included."""
    try:
        return any(token in ids for ids in encode(tokenizer, [str(tokenizer.decode([token])), ANCHOR]))
    except UserError:  # special though it is, its text cannot be read otherwise
        return True


def _config_beside(path: Path | str) -> dict[str, Any]:
    """The model's config.json where there is one."""
    try:
        return PreTrainedConfig.get_config_dict(str(path))[0]
    except (OSError, ValueError):
        return {}


def _finish(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    # For who calls the backend itself; transformers sets it anew at every call of its own, and so does `encode`.
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return tokenizer


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """Special tokens by id. The unknown token is none of them: any text may hold it."""
    unknown = set(_ids(tokenizer, [ANCHOR])[0])
    added = tokenizer.added_tokens_decoder.items()
    return {i: token.content for i, token in added if token.special and i not in unknown}


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token that closes the assistant's turn in the chat template; None where there is none."""
    answer = "It opens at dawn."
    turns = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": answer}]
    try:
        _, found, behind = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(answer)
    except (TemplateError, ValueError, TypeError):  # no template, or one that wants other turns
        return None
    if not found:
        return None
    added = [(token.content, i) for i, token in tokenizer.added_tokens_decoder.items()]
    closing = [token for token in added if behind.lstrip().startswith(token[0])]
    return max(closing, key=lambda token: len(token[0]))[1] if closing else None


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], *, after: bool = False) -> list[list[int]]:
    """Token ids of each text, without any special token added. Text that spells a special token is text.

    Args:
        after: the texts go on from others: without the space that some tokenizers (SentencePiece's) put before each.

    Raises:
        UserError: a text of which the tokenizer itself makes a special token.
    """
    rows = _ids(tokenizer, texts, after=after)
    special = special_tokens(tokenizer)
    # Vocabularies of SentencePiece hold special tokens among their words.
    for n in [n for n, ids in enumerate(rows) if not special.keys().isdisjoint(ids)]:
        [rows[n]] = encode_broken(tokenizer, [broken(texts[n], special.values())], after=after)
        if not special.keys().isdisjoint(rows[n]):
            raise UserError(f"{texts[n][:60]!r} spells a special token, which this tokenizer cannot read as text")
    return rows


def encode_answers(tokenizer: PreTrainedTokenizerFast, prompts: list[str], answers: list[str]) -> list[list[int]]:
    """Token ids of each answer as it is read behind its prompt: no space comes between that neither of them has.

    Where the prompt ends in white space that the tokenizer drops, the answer begins a word.

    Raises:
        UserError: as `encode`.
    """
    tails = [prompt[len(prompt.rstrip()) :] for prompt in prompts]
    bare, *tailed = _ids(tokenizer, ["a", *("a" + tail for tail in dict.fromkeys(tails))])
    dropped = {tail for tail, ids in zip(dict.fromkeys(tails), tailed, strict=True) if tail and ids == bare}
    rows = encode(tokenizer, answers, after=True)
    first = [n for n, tail in enumerate(tails) if tail in dropped]
    for n, ids in zip(first, encode(tokenizer, [answers[n] for n in first]), strict=True):
        rows[n] = ids
    return rows


def broken(text: str, special: Iterable[str]) -> str:
    """A text with a BREAK in each special token that it spells, for `encode_broken`."""
    spelt = [token for token in special if token in text]
    return re.sub(f"(?=({'|'.join(map(re.escape, spelt))})).", rf"\g<0>{BREAK}", text, flags=re.S) if spelt else text


def encode_broken(tokenizer: PreTrainedTokenizerFast, texts: list[str], *, after: bool = False) -> list[list[int]]:
    """Token ids of texts with BREAKs: special tokens that they spell become their ids, broken ones stay text."""
    pieces = [text.split(BREAK) for text in texts]
    rest = iter(_ids(tokenizer, [piece for _, *more in pieces for piece in more], after=True, special=True))
    firsts = _ids(tokenizer, [first for first, *_ in pieces], after=after, special=True)
    return [first + [i for _ in more for i in next(rest)] for first, (_, *more) in zip(firsts, pieces, strict=True)]


def _ids(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], *, after: bool = False, special: bool = False
) -> list[list[int]]:
    """Token ids of each text; of what follows something (`after`); special tokens as such, or as text."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

    def encodings(given: list[str]) -> list[Encoding]:
        # Through transformers: what its other callers left set (special tokens, truncation, padding) is set anew.
        with READING:
            done = tokenizer(
                given,
                add_special_tokens=False,
                split_special_tokens=not special,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        return list(done.encodings or [])

    if not texts:
        return []
    if after:
        bare, anchored = encodings(["a", ANCHOR + "a"])
        rest = [(start, i) for i, (start, end) in zip(anchored.ids, anchored.offsets, strict=True) if end > 1]
        # A whole word of both is no use (WordPiece), and where nothing is put before a text there is no need.
        if rest and all(start == 1 for start, _ in rest) and [i for _, i in rest] != bare.ids:
            anchored_texts = encodings([ANCHOR + text for text in texts])
            return [[i for i, (_, end) in zip(e.ids, e.offsets, strict=True) if end > 1] for e in anchored_texts]
    return [encoding.ids for encoding in encodings(texts)]


def before_eos(tokens: list[int], eos_id: int) -> list[int]:
    """The content tokens: everything before the first EOS."""
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text of content tokens (no special tokens among them expected; any are dropped)."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
