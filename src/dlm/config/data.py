"""Records, template and tokenizer: the blocks `data`, `template`, `tokenizer`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dlm.config.schema import AtLeast, Count, Natural, Share, dotted, require
from dlm.errors import UserError


@dataclass(frozen=True)
class ListsParams:
    """The builtin corpus's lists (evaluation/builtin/lists.py): how many towns an answer names."""

    shortest: Annotated[int, AtLeast(2)]
    longest: int

    def check(self, where: str) -> None:
        require(
            self.shortest <= self.longest <= 64, dotted(where, "longest"), "from shortest to 64 (all)", self.longest
        )


@dataclass(frozen=True)
class BuiltinParams:
    """The builtin corpus: facts about an invented coast (evaluation/builtin/gazetteer.py), or lists of its towns.

    Attributes:
        task: gazetteer, which takes grammar, slots and topics, or lists, which takes the block of that name.
    """

    task: Literal["gazetteer", "lists"]
    grammar: str
    train_size: Count
    slots: tuple[int, ...]
    topics: Count | None
    holdout: Share
    lists: ListsParams

    def check(self, where: str) -> None:
        require(
            bool(self.slots) and min(self.slots) >= 1, dotted(where, "slots"), "a list of counts from 1", self.slots
        )


@dataclass(frozen=True)
class FileParams:
    """Records in the user's own files (sources/readers.py); `eval_path: null` holds prompts out of `path`."""

    path: str | None
    eval_path: str | None
    columns: dict[str, str]

    def check(self, where: str) -> None:
        _check_columns(self.columns, dotted(where, "columns"))


@dataclass(frozen=True)
class HubParams:
    """A dataset of the Hugging Face hub."""

    name: str
    config: str | None
    split: str
    columns: dict[str, str]

    def check(self, where: str) -> None:
        _check_columns(self.columns, dotted(where, "columns"))


@dataclass(frozen=True)
class EvaluationSetParams:
    """What is decoded and evaluated: prompts held out of the records, or a paper's set (sources/evaluation_sets.py).

    Attributes:
        path: a copy of the set on disk; null for the hub's.
        chain_of_thought: ask to reason before the answer (GSM8K).
    """

    name: Literal["held_out", "alpaca_eval", "mt_bench", "wiki", "arena_hard", "gsm8k"]
    path: str | None
    chain_of_thought: bool

    def check(self, where: str) -> None:
        plain = self.name == "gsm8k" or not self.chain_of_thought
        require(plain, dotted(where, "chain_of_thought"), "false but for gsm8k", self.chain_of_thought)
        requirement = f"null where {dotted(where, 'name')} is held_out (data.file.eval_path names prompts of your own)"
        require(self.name != "held_out" or self.path is None, dotted(where, "path"), requirement, self.path)


def _check_columns(columns: dict[str, str], where: str) -> None:
    expected = {"instruction", "input", "output"}
    require(set(columns) == expected, where, "a mapping of instruction, input and output", columns)


@dataclass(frozen=True)
class DataParams:
    """Where records come from, how many are kept, and how long prompt and window may be (tokens).

    Attributes:
        max_dropped: the largest share of the records, or of evaluation prompts of their own, that may be too long.
    """

    source: Literal["builtin", "file", "hub"]
    max_records: Count | None
    valid_size: Count
    eval_size: Count
    max_prompt_length: Count
    window: Annotated[int, AtLeast(2)]
    max_dropped: Share
    evaluation: EvaluationSetParams
    builtin: BuiltinParams
    file: FileParams
    hub: HubParams

    @property
    def canvas_length(self) -> int:
        """Tokens of a training canvas: the longest prompt and the window."""
        return self.max_prompt_length + self.window

    @property
    def has_grammar(self) -> bool:
        """Whether the records are sentences of the builtin corpus's grammar, which judges answers as well."""
        return self.source == "builtin" and self.builtin.task == "gazetteer"

    @property
    def holds_out(self) -> bool:
        """Whether the evaluation prompts come out of the source, as the training records do."""
        from_a_file = self.source == "file" and self.file.eval_path is not None
        return self.evaluation.name == "held_out" and not from_a_file

    def check(self, where: str) -> None:
        fits = self.source != "builtin" or self.evaluation.name == "held_out"
        requirement = f"held_out where {where}.source is builtin: the corpus has words of its own"
        require(fits, f"{where}.evaluation.name", requirement, self.evaluation.name)
        if self.source == "file" and not self.file.path:
            raise UserError(f"{where}.file.path must name a file when {where}.source is file, got {self.file.path!r}")


@dataclass(frozen=True)
class TemplateParams:
    """The prompt around an instruction; {instruction} and {input} are filled in."""

    prompt: str
    prompt_with_input: str

    def check(self, where: str) -> None:
        for name, fields in (("prompt", ["instruction"]), ("prompt_with_input", ["instruction", "input"])):
            text = getattr(self, name)
            for field in fields:
                require("{" + field + "}" in text, dotted(where, name), f"a text with {{{field}}} in it", text)


@dataclass(frozen=True)
class TokenizerParams:
    """`train`: a byte-level BPE on the training records; `given`: a saved tokenizer (folder, GGUF file or hub name).

    Attributes:
        mask_token: an entry of a given tokenizer that becomes its mask; null for its own, or else a new one.
        pad_cycle: how many pad tokens fill a training canvas in turn behind the answer's EOS; 0 for EOS in their place.
    """

    source: Literal["train", "given"]
    vocab_size: Annotated[int, AtLeast(260)]
    path: str
    mask_token: str | None = None
    pad_cycle: Natural = 0

    def check(self, where: str) -> None:
        given = self.source == "given" or self.mask_token is None
        require(given, dotted(where, "mask_token"), "null for a tokenizer that is trained", self.mask_token)
