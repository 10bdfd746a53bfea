"""Which answers are shown, and that they cannot be markup."""

import re

from hypothesis import given
from hypothesis import strategies as st

from dlm.analysis.samples import MARKUP, as_text, good_and_bad


def named(*names: str) -> list[dict[str, str]]:
    return [{"answer": name} for name in names]


def test_the_nearest_and_the_farthest_on_a_log_scale() -> None:
    """The median is 8: of 1, 2, 16 and 32 the nearest is 16 (once doubled), the farthest 1 (three times halved)."""
    answers = {"empty": named("x"), "real": named("a", "b", "c"), "conv": named("d", "e", "f", "g", "h")}
    perplexities = {"empty": [None], "real": [4.0, 8.0, 80.0], "conv": [1.0, 2.0, None, 16.0, 32.0]}
    found = [(row["answers"], row["answer"], row["perplexity"]) for row in good_and_bad(answers, perplexities)]
    assert found == [("real", "b", 8.0), ("real", "c", 80.0), ("conv", "g", 16.0), ("conv", "d", 1.0)]


def test_nothing_but_empty_answers() -> None:
    assert good_and_bad({"conv": named("")}, {"conv": [None]}) == []


def test_one_line_without_markup() -> None:
    assert as_text("a|b\n<script>", 20) == "a&#124;b &#60;script&#62;"
    assert as_text("\x1b[2J", 20) == "&#92;x1b&#91;2J"
    assert as_text("0123456789", 8) == "01234..."


@given(st.text())
def test_no_markup_whatever_the_text(text: str) -> None:
    bare = re.sub(r"&#\d+;", "", as_text(text, 50))
    assert not MARKUP & set(bare) and "\n" not in bare
