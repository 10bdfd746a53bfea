"""From judged answers to a cell's win rates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_distributed import by_two
from test_judges import KEY, VARIABLE, Server, said

from dlm.errors import UserError
from dlm.evaluation.judges.pairs import Pair, Verdict
from dlm.evaluation.preferences import (
    add_grades,
    add_preferences,
    baseline_of,
    judge_failed,
    read_difficulty,
    win_rates,
)
from dlm.evaluation.winrate import length_controlled_win_rate


def row(number: int, preference: float | None, ours: int = 20, theirs: int = 20) -> dict[str, Any]:
    return {"id": number, "preference": preference, "characters": ours, "baseline_characters": theirs}


def test_seeds_of_a_prompt_are_one_prompt() -> None:
    """Prompt 0 has 1 and 0, prompt 1 has 1 and a failure, prompt 2 only a failure: (0.5 + 1) / 2."""
    found = win_rates([row(0, 1.0), row(0, 0.0), row(1, 1.0), row(1, None), row(2, None)], None)
    assert found["win_rate"] == 75
    low, high = found["win_rate_ci"]
    assert (low, high) == (pytest.approx(75 - 1.96 * 25), 100)  # sd of (0.5, 1) / sqrt(2) = 25 points, cut at 100


def test_lengths_and_difficulty_go_into_the_controlled_rate() -> None:
    rows = [row(0, 0.8, 30), row(1, 0.5, 10), row(2, 0.9, 35), row(3, 0.4, 5)]
    lengths = [30, 10, 35, 5]
    preferences = [0.8, 0.5, 0.9, 0.4]
    assert win_rates(rows, None)["lc_win_rate"] == length_controlled_win_rate(preferences, lengths, [20] * 4)
    hard = {0: 1.0, 1: -1.0, 2: 0.5, 3: 2.0}
    with_hard = win_rates(rows, hard)["lc_win_rate"]
    assert with_hard == length_controlled_win_rate(preferences, lengths, [20] * 4, [1.0, -1.0, 0.5, 2.0])


@pytest.mark.parametrize("rows", [[], [{"id": 0}], [row(0, None)]])
def test_without_preferences(rows: list[dict[str, Any]]) -> None:
    assert set(win_rates(rows, None).values()) == {None}


def test_the_baseline_answers_the_same_prompt_and_seed() -> None:
    answers = [{"id": 4, "seed": 0, "answer": "a"}, {"id": 4, "seed": 1, "answer": "b"}]
    assert baseline_of(answers) == {(4, 0): "a", (4, 1): "b"}


class Recorder:
    """Keeps what it is shown; prefers nothing and grades nothing."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def prefer(self, pairs: Sequence[Pair]) -> list[Verdict]:
        self.shown += pairs
        return [Verdict(None)] * len(pairs)

    def grade(self, answers: Sequence[tuple[str, str]]) -> list[float | None]:
        self.shown += answers
        return [None] * len(answers)

    def costs(self) -> dict[str, int]:
        return {}


def test_the_judge_sees_the_input_too() -> None:
    examples = {
        4: {"instruction": "Add.", "input": "1 and 2", "meta": "{}"},
        7: {"instruction": "Go.", "input": "", "meta": "{}"},
    }
    answers = [{"id": number, "seed": 0, "answer": "3"} for number in (4, 7)]
    judge, rows = Recorder(), [dict(answer) for answer in answers]
    add_preferences(rows, answers, examples, {(4, 0): "2", (7, 0): "4"}, judge)
    add_grades(rows, answers, examples, judge)
    first, second = Pair("Add.\n\n1 and 2", "3", "2", {}), Pair("Go.", "3", "4", {})
    assert judge.shown == [first, second, (first.instruction, "3"), ("Go.", "3")]
    assert judge_failed(rows) == 1


ASKING = """
import json, os, sys
from dlm.evaluation.judges.chat import ChatEndpoint
from dlm.evaluation.judges.endpoint import EndpointGrader, EndpointJudge
from dlm.evaluation.preferences import add_grades, add_preferences
from dlm.pipeline.processes import leave
url, variable = sys.argv[1:]
endpoint = ChatEndpoint(base_url=url, model="judge", key_variable=variable, cache="cache")
examples = {n: {"instruction": f"Name town {n}.", "input": "", "meta": "{}"} for n in range(5)}
answers = [{"id": n, "seed": 0, "answer": f"Town {n}."} for n in examples]
rows = [{} for _ in answers]
add_preferences(rows, answers, examples, {(n, 0): f"A market in town {n}." for n in examples}, EndpointJudge(endpoint))
add_grades(rows, answers, examples, EndpointGrader(endpoint))
open(f"rank-{os.environ['RANK']}.json", "w").write(json.dumps(rows))
leave()
"""


def test_one_of_two_processes_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a judge is paid for, once; both have its verdicts."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(lambda body, number: said("4") if "Grade" in body["messages"][0]["content"] else said("A"))
    (tmp_path / "asking.py").write_text(ASKING)
    try:
        by_two(tmp_path, "asking.py", server.url, VARIABLE)
    finally:
        server.close()
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert all(row["preference"] in (0, 1) and row["grade"] == 4 for row in first)
    assert len(server.prompts) == len(set(server.prompts)) == 5 + 5


def test_the_share_of_failures_by_hand() -> None:
    """One of three preferences and one of two grades."""
    rows = [{"preference": 1.0, "grade": None}, {"preference": None, "grade": 3.5}, {"preference": 0.0}]
    assert judge_failed(rows) == 2 / 5 and judge_failed([{}]) is None


def test_difficulty_by_place(tmp_path: Path) -> None:
    """AlpacaEval's layout. Prompt 1 of the prepared set was the set's third."""
    path = tmp_path / "hard.csv"
    path.write_text("index,instruction_difficulty\n0,0.5\n1,-1.25\n2,2.0\n")
    assert read_difficulty(path, {0: 0, 1: 2}) == {0: 0.5, 1: 2.0}
    with pytest.raises(UserError, match="3 rows for 4 prompts"):
        read_difficulty(path, {0: 3})
    path.write_text("index,other\n0,0.5\n")
    with pytest.raises(UserError, match="a column instruction_difficulty with a number in every row"):
        read_difficulty(path, {0: 0})
    with pytest.raises(UserError, match=r"No such file.*set it to a CSV or to null"):
        read_difficulty(tmp_path / "none.csv", {0: 0})
