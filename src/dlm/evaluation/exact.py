"""The exact judge that the builtin corpus's task has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dlm.config.data import DataParams
from dlm.evaluation.builtin.grammar import GRAMMAR, load_grammar
from dlm.evaluation.items import ListJudge
from dlm.evaluation.slots import SlotJudge, SlotReport


@runtime_checkable
class CorpusJudge(Protocol):
    """Counts what an answer to one of the corpus's records holds."""

    def report(self, answer: str, meta: Mapping[str, Any]) -> SlotReport | None:
        """The counts of one answer; None where the record's meta asks for nothing that this judge knows."""
        ...


def corpus_judge(data: DataParams, prepared: Path) -> CorpusJudge | None:
    """The judge of the data that params.yaml names; None where it is not the builtin corpus.

    Args:
        prepared: what the prepare stage left, the grammar among it.
    """
    if data.source != "builtin":
        return None
    return SlotJudge(load_grammar(prepared / GRAMMAR)) if data.has_grammar else ListJudge()
