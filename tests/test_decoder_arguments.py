"""Whatever options and numbers a caller passes: one clear line, or a whole answer."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_lm

from dlm.decoding.options import DECODERS, RULES
from dlm.errors import UserError

HINTS = {name: hint for rule in RULES.values() for name, hint in get_type_hints(rule).items()}
NAMES = sorted({field.name for rule in RULES.values() for field in fields(rule)} | {"rule"})
WORDS = sorted({word for hint in HINTS.values() if get_origin(hint) is Literal for word in get_args(hint)} | set(RULES))
LM = tiny_lm()
PROMPTS = ["Describe the harbour", "The fog"]


def likely(name: str) -> st.SearchStrategy[Any]:
    """Values of about the right type: the others are refused at once and teach little."""
    hint = HINTS.get(name)
    if name == "rule" or get_origin(hint) is Literal:
        return st.sampled_from([*(get_args(hint) or RULES), "tanhh"])
    if hint is bool:
        return st.booleans()
    if hint is float:
        return st.one_of(st.floats(-0.5, 4), st.sampled_from([0.0, 1.0, float("nan"), float("inf"), 1e-300, 1e308]))
    return st.one_of(st.integers(-2, 12), st.none(), st.sampled_from([33, 10**9]))


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from(WORDS), st.just([1])
)
odd = st.dictionaries(st.sampled_from([*NAMES, "kernelsize", "steps "]), anything, max_size=3)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A decoder, options (mostly of its own), and numbers (mostly possible ones)."""
    decoder = draw(st.sampled_from(DECODERS))
    own = [field.name for field in fields(RULES.get(decoder, RULES["top_k"]))]
    keys = draw(st.lists(st.sampled_from(own), max_size=3, unique=True))
    block = {key: draw(likely(key)) for key in keys}
    numbers = {"steps": draw(st.sampled_from([1, 2, 3, 4, 8])), "gen_length": 8, "batch_size": 2}
    if draw(st.integers(0, 4)) == 0:
        block |= draw(odd)
        decoder = draw(st.sampled_from([decoder, "convv"]))
        numbers |= {
            "steps": draw(st.sampled_from([None, 0, 50])),
            "gen_length": draw(st.sampled_from([0, 1, 6, 10**6])),
        }
        numbers["batch_size"] = draw(st.sampled_from([-1, 1]))
    return decoder, block, numbers


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(calls())
def test_refused_in_one_line_or_answered_whole(call: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    decoder, block, numbers = call
    try:
        out = LM.generate(PROMPTS, decoder, **numbers, **block)
    except UserError as error:
        assert "\n" not in str(error) and str(error)
        return
    assert out.tokens.shape == (2, numbers["gen_length"]) and len(out.texts) == 2
    assert not (out.tokens == LM.denoiser.mask_id).any()
    assert (out.nfe >= 1).all()


def test_the_cases_reach_both_ends() -> None:
    """Most plain blocks pass, so that the test above decodes and does not only refuse."""
    assert LM.generate(PROMPTS, "conv", gen_length=8, steps=4, kernel_size=3, gain="linear").tokens.shape == (2, 8)
    with pytest.raises(UserError, match="is not a decoder"):
        LM.generate(PROMPTS, "convv", gen_length=8)
