"""The prompt around an instruction (paper §A.1.2 uses Alpaca's)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dlm.data.records import Record
from dlm.files import write_json

TEMPLATE_FILE = "template.json"


@dataclass(frozen=True)
class Template:
    """Two texts with the fields {instruction} and {input}."""

    prompt: str
    prompt_with_input: str

    def render(self, record: Record) -> str:
        """The prompt, up to where the answer starts. Braces in the record's own text are left alone."""
        text = self.prompt_with_input if record.input else self.prompt
        head, _, tail = text.partition("{instruction}")
        return head.replace("{input}", record.input) + record.instruction + tail.replace("{input}", record.input)

    def save(self, folder: Path) -> None:
        """Beside a checkpoint's weights, so that the model carries its own prompt format."""
        write_json(folder / TEMPLATE_FILE, asdict(self))


def load_template(folder: Path | str) -> Template | None:
    """The template saved with a checkpoint, None where there is none."""
    path = Path(folder) / TEMPLATE_FILE
    return Template(**json.loads(path.read_text("utf-8"))) if path.is_file() else None
