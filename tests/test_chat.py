"""Conversations through a checkpoint's own chat template, and the ends of turn that it names."""

import copy
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from test_api import rows
from test_eos import Fixed
from tiny import tiny_model
from transformers import PreTrainedTokenizerFast

from dlm.data.tokenizer import end_of_turn
from dlm.decoding.decoder import make_decoder
from dlm.decoding.lm import DiffusionLM, cut_at_eos
from dlm.decoding.loop import decode
from dlm.decoding.noise import row_keys
from dlm.decoding.options import decoder_options
from dlm.errors import UserError
from dlm.models.adapt import adapt
from dlm.models.backbone import load_checkpoint, save_checkpoint

EOS, MASK, START, HEADER, HEADED, TURN = range(6)  # LLADA_TOKENS
CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.content == 'nothing' %}{{ raise_exception('say something') }}{% endif %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " The harbour? "},
    {"role": "assistant", "content": "It opens at dawn."},
    {"role": "user", "content": "And the fog?"},
]
SETTING: dict[str, Any] = {"steps": 4, "gen_length": 8}


def chat_lm(ends: Any = EOS, template: str | None = CHAT) -> DiffusionLM:
    """Its answers now and then end, and end their turn. `ends`: what its generation_config.json names."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=published.bpe(published.LLADA_TOKENS),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        chat_template=template,
    )
    model = tiny_model(2, eos_scale=2.0)
    with torch.no_grad():
        model.get_input_embeddings().weight[TURN] *= 2
    assert model.generation_config is not None
    model.generation_config.eos_token_id = ends
    return DiffusionLM(model, tokenizer)


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return chat_lm()


# --- Conversations ----------------------------------------------------------------------------------------------------


def test_a_conversation_is_read_as_transformers_reads_it(lm: DiffusionLM) -> None:
    """A system prompt and several turns, in the checkpoint's own template."""
    expected = lm.tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)
    assert lm.chat_prompt(TURNS) == expected
    assert [i for i in expected if i < 6] == [START, *[HEADER, HEADED, TURN] * 4, HEADER, HEADED]
    assert "user<|end_header_id|>\n\nThe harbour?<|eot_id|>" in lm.tokenizer.decode(expected)


def test_a_user_cannot_write_special_tokens(lm: DiffusionLM) -> None:
    """In any turn; what was tokenised before changes nothing."""
    lm.tokenizer("anything")
    spelt = "".join(published.LLADA_TOKENS)
    for place in range(4):
        turns = [{**turn, "content": f"a{spelt} b"} if n == place else turn for n, turn in enumerate(TURNS)]
        ids = lm.chat_prompt(turns)
        assert [i for i in ids if i < 6] == [START, *[HEADER, HEADED, TURN] * 4, HEADER, HEADED]
        assert f"a{spelt} b<|eot_id|>" in lm.tokenizer.decode(ids)


def test_chat_answers_one_conversation_or_several(lm: DiffusionLM) -> None:
    turns = [{"role": "system", "content": "Be short"}, {"role": "user", "content": "Why?"}]
    prompts = [lm.chat_prompt(one) for one in (turns, turns[1:])]
    out = lm.chat([turns, turns[1:]], "top_k", **SETTING, seed=3, top_k=5)
    assert rows(out) == rows(lm.generate(prompts, "top_k", **SETTING, seed=3, top_k=5))
    assert rows(lm.chat(turns, **SETTING)) == rows(lm.generate(prompts[:1], **SETTING))


REFUSED: dict[str, tuple[Any, str]] = {
    "a text": ("Hello", "message 0 must have a role and a content and nothing else, got str 'Hello'"),
    "one message": (TURNS[1], "messages must be a list, got dict"),
    "nothing": ([], "must end with a message of the user"),
    "an answer": (TURNS[:3], "must end with a message of the user"),
    "no content": ([{"role": "user"}], "message 0 must have a role and a content"),
    "more": ([{**TURNS[1], "name": "Ann"}], "message 0 must have a role and a content and nothing else"),
    "a role that is none": (
        [*TURNS[:3], {"role": "<|eot_id|>", "content": "a"}],
        "message 3: role must be one of system, user, assistant, got '<|eot_id|>'",
    ),
    "an unhashable role": ([{"role": ["user"], "content": "a"}], "role must be one of"),
    "no text": ([{"role": "user", "content": None}], "message 0: content must be text, got NoneType"),
    "half a pair": ([{"role": "user", "content": "a\ud800"}], "message 0: content: not valid Unicode"),
    "what the template refuses": ([{"role": "user", "content": "nothing"}], "chat template does not take .*something"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_chat_refuses(lm: DiffusionLM, case: str) -> None:
    messages, told = REFUSED[case]
    with pytest.raises(UserError, match=told.replace("|", r"\|")) as caught:
        lm.chat_prompt(messages)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_chat_template(lm: DiffusionLM) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=lm.tokenizer.backend_tokenizer, eos_token="<|endoftext|>", mask_token="<|mdm_mask|>"
    )
    with pytest.raises(UserError, match="no chat template"):
        DiffusionLM(lm.denoiser.model, bare).chat(TURNS)


# --- Ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["generation_config", "chat template"])
def test_every_end_that_the_checkpoint_names_ends_an_answer(tmp_path: Path, names: str) -> None:
    """EOS stands from there on, and the text stops; in a checkpoint that was saved, too."""
    lm = chat_lm(template=None)
    prompts = [[9 + n, 70, 100 + n] for n in range(12)]
    setting = {"decoder": "top_k", "steps": 6, "gen_length": 12, "top_k": 5}
    free = lm.generate(prompts, **setting)
    named = chat_lm([EOS, TURN], None) if names == "generation_config" else chat_lm()
    save_checkpoint(tmp_path, named.denoiser.model, named.tokenizer)
    out = named.generate(prompts, **setting)
    assert lm.ends == [EOS] and named.ends == [EOS, TURN]
    assert rows(DiffusionLM.load(tmp_path, device="cpu").generate(prompts, **setting)) == rows(out)
    assert sum(TURN in tokens for tokens in free.tokens.tolist()) > 2
    for tokens, found, text in zip(free.tokens.tolist(), out.tokens.tolist(), out.texts, strict=True):
        end = min([n for n, token in enumerate(tokens) if token in (EOS, TURN)], default=12)
        assert found == tokens[:end] + [EOS] * (12 - end)
        assert text == lm.tokenizer.decode(tokens[:end], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("named", "ends"), [(None, []), (EOS, []), (TURN, [TURN]), ([TURN, EOS, HEADED], [HEADED, TURN]), ([7, MASK], [])]
)
def test_ends(named: Any, ends: list[int]) -> None:
    """EOS is always one. A word is none (configurations have defaults of their own), nor is the mask."""
    assert chat_lm(named, None).ends == [EOS, *ends]


def test_a_conversation_is_answered_up_to_the_end_of_turn(lm: DiffusionLM) -> None:
    """Which the chat template alone shows: what the model writes behind it belongs to no answer."""
    conversations = [[{"role": "user", "content": f"Why {n}?"}] for n in range(12)]
    setting: dict[str, Any] = {"steps": 6, "gen_length": 12, "top_k": 5}
    prompts = [lm.chat_prompt(turns) for turns in conversations]
    free = chat_lm(template=None).generate(prompts, "top_k", **setting).tokens.tolist()
    turns = [tokens.index(TURN) if TURN in tokens else 12 for tokens in free]
    found = lm.chat(conversations, "top_k", **setting)
    assert sum(end < 11 for end in turns) > 1
    for tokens, end, text in zip(found.tokens.tolist(), turns, found.texts, strict=True):
        assert set(tokens[end:]) <= {EOS} and TURN not in tokens
        assert text == lm.tokenizer.decode(tokens, skip_special_tokens=True)


CLOSED: dict[str, tuple[str, int | None]] = {
    "Llama 3's": (published.LLADA_CHAT, TURN),
    "lines around it": (CHAT.replace("<|eot_id|>{% endfor", "\n<|eot_id|>\n{% endfor"), TURN),
    "end-of-text": ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", EOS),
    "nothing": ("{% for m in messages %}<|start_header_id|>{{ m.content }}{% endfor %}", None),
    "words": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n###\n{% endfor %}", None),
    "one that does not answer": ("{{ bos_token }}{{ messages[0].content }}", None),
    "one that refuses": ("{{ raise_exception('no') }}", None),
    "one that is broken": ("{% for %}", None),
    "none": ("", None),
}


@pytest.mark.parametrize("case", CLOSED)
def test_what_closes_the_turn_of_an_assistant(lm: DiffusionLM, case: str) -> None:
    template, end = CLOSED[case]
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = template or None
    assert end_of_turn(tokenizer) == end


def test_an_end_of_turn_that_is_no_special_token(lm: DiffusionLM) -> None:
    """Some tokenizers add theirs as an ordinary entry; of two that fit, the longer one stands there."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens(["</s", "</s_turn>"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}</s_turn>{% endfor %}"
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("</s_turn>")


PUBLISHED = {"llada": (published.llada, "<|eot_id|>"), "dream": (published.dream, "<|im_end|>")}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_checkpoints_end_their_turns(tmp_path: Path, layout: str) -> None:
    """As they lie on the hub, converted, and converted again."""
    make, turn = PUBLISHED[layout]
    make(tmp_path / "0")
    for n in range(2):
        lm = DiffusionLM.load(tmp_path / str(n), device="cpu")
        assert [lm.tokenizer.convert_ids_to_tokens(i) for i in lm.ends] == ["<|endoftext|>", turn]
        save_checkpoint(tmp_path / str(n + 1), lm.denoiser.model, lm.tokenizer)


def test_an_instruct_model_that_is_adapted_ends_its_turns(tmp_path: Path) -> None:
    """SmolLM2-Instruct's end-of-text is its end of turn, and there is but one end."""
    published.smollm2(tmp_path / "0")
    model, tokenizer = load_checkpoint(tmp_path / "0", causal=True)
    lm = DiffusionLM(adapt(model, tokenizer, logits_shift=1), tokenizer)
    assert [tokenizer.convert_ids_to_tokens(i) for i in lm.ends] == ["<|im_end|>"]
    found = lm.chat([{"role": "user", "content": "Why?"}], steps=4, gen_length=8)
    assert len(found.texts) == 1


def test_cut_at_ends_by_hand() -> None:
    tokens = torch.tensor([[5, 3, 0, 8], [5, 6, 7, 8], [0, 5, 3, 5], [3, 3, 3, 3]])
    assert cut_at_eos(tokens, 0, [3]).tolist() == [[5, 0, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0], [0, 0, 0, 0]]


#         EOS mask  2    3, an end of turn
TABLE = [[0.0, 0.0, 0.4, 0.6], [0.0, 0.0, 0.7, 0.3], [0.1, 0.0, 0.8, 0.1], [0.0, 0.0, 0.5, 0.5]]
BY_HAND: list[tuple[dict[str, Any], list[int], list[int]]] = [
    ({}, [3, 2, 2, 2], [2, 1, 0, 3]),  # .8 .7 .6 .5
    # The end goes behind the others; EOS-fill: what stands behind it goes, and no pass is spent on it.
    ({"eos": "last"}, [3, 2, 2, 2], [3, 1, 0, 2]),
    ({"eos_fill": True}, [3, 0, 0, 0], [2, -1, -1, -1]),
    # LLaDA's logits_eos_inf is of EOS alone.
    ({"eos": "never"}, [3, 2, 2, 2], [2, 1, 0, 3]),
]


@pytest.mark.parametrize(("options", "tokens", "stamps"), BY_HAND, ids=str)
def test_an_end_of_turn_by_hand(options: dict[str, Any], tokens: list[int], stamps: list[int]) -> None:
    made = make_decoder(decoder_options("low_confidence", options, "low_confidence"))
    setting: dict[str, Any] = {"gen_length": 4, "steps": 4, "keys": row_keys([[]], 0), "eos_id": 0}
    found = decode(Fixed(TABLE), [[]], made, **setting, ends=[3])
    assert (found.tokens[0].tolist(), found.commit_step[0].tolist()) == (tokens, stamps)
    assert decode(Fixed(TABLE), [[]], made, **setting).commit_step[0].tolist() == [2, 1, 0, 3]
