"""The prompt around an instruction (paper §A.1.2 uses Alpaca's)."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from dlm.data.records import Record
from dlm.data.tokenizer import broken, encode_broken, special_tokens
from dlm.files import write_json

TEMPLATE_FILE = "template.json"
FIELD = re.compile(r"\{(instruction|input)\}")


@dataclass(frozen=True)
class Template:
    """Two texts with the fields {instruction} and {input}; special tokens in them are meant as such."""

    prompt: str
    prompt_with_input: str

    def render(self, record: Record) -> str:
        """The prompt, up to where the answer starts. Braces in the record's own text are left alone."""
        fields = {"instruction": record.instruction, "input": record.input}
        text = self.prompt_with_input if record.input else self.prompt
        return FIELD.sub(lambda field: fields[field[1]], text)

    def encode(self, tokenizer: PreTrainedTokenizerFast, records: Sequence[Record]) -> list[list[int]]:
        """Token ids of each record's prompt, as the tokenizer reads it as a whole: the template's special tokens become
        their ids, those that a record's text spells stay text."""
        special = special_tokens(tokenizer).values()
        harmless = [Record(broken(r.instruction, special), broken(r.input, special), "") for r in records]
        return encode_broken(tokenizer, [self.render(record) for record in harmless])

    def save(self, folder: Path) -> None:
        """Beside a checkpoint's weights, so that the model carries its own prompt format."""
        write_json(folder / TEMPLATE_FILE, asdict(self))


def _llada(user: str) -> str:
    start, end = "<|start_header_id|>", "<|end_header_id|>"
    return f"<|startoftext|>{start}user{end}\n\n{user}<|eot_id|>{start}assistant{end}\n\n"


def _dream(user: str) -> str:
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


BOTH = "{instruction}\n\n{input}"
# What published models were tuned on, by name.
TEMPLATES = {
    "alpaca": Template(
        "### Instruction:\n{instruction}\n\n### Response:\n",
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    ),
    "llada": Template(_llada("{instruction}"), _llada(BOTH)),
    "dream": Template(_dream("{instruction}"), _dream(BOTH)),
}


def load_template(folder: Path | str) -> Template | None:
    """The template saved with a checkpoint, None where there is none."""
    path = Path(folder) / TEMPLATE_FILE
    return Template(**json.loads(path.read_text("utf-8"))) if path.is_file() else None
