"""How well forms of relevance tell real answers from spoilt ones.

Real answers to real instructions, and the same spoilt in ways that a measure of alignment should notice. Each form is
one number an answer; a spoiling's AUC is the share of pairs of a real and a spoilt answer in which the real one has
the higher number, ties half: 1 always, 0.5 by chance, below it the spoilt ones win. Numbers come from a causal LM's
log-probabilities of an answer after its prompt, and after what stands in the prompt's place: a token alone, or what
all prompts share (the frame). Needs no pipeline. Writes OUT.json and OUT.md.
"""

import argparse
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Arguments, check_device, command_line, default_device, grid, report, write
from scipy.stats import rankdata

from dlm.pipeline.start import run_script
from dlm.config.schema import require
from dlm.data.records import Record
from dlm.data.template import TEMPLATES
from dlm.data.tokenizer import encode
from dlm.errors import UserError
from dlm.evaluation.bootstrap import bootstrap_ci
from dlm.evaluation.scoring.perplexity import response_scores
from dlm.evaluation.scoring.relevance import information, shared_frame
from dlm.models.backbone import load_checkpoint
from dlm.pipeline.hardware import hardware
from dlm.sources.readers import read_records

COLUMNS = {"instruction": "instruction", "input": "input", "output": "output"}
TEMPLATE = TEMPLATES["alpaca"]
LONGEST_PROMPT = 128
OTHERS = 3000  # records at most that are not scored: their answers' most frequent tokens, their prompts' frame
FREQUENT = 100
REAL, FRAME = "real", "frame"
Row = dict[str, Any]
# What an answer's tokens are: their information, whether the prompt has them, whether they are frequent.
Form = Callable[[np.ndarray, np.ndarray, np.ndarray], float | None]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


FORMS: dict[str, Form] = {
    "mean, all tokens": lambda nats, copied, frequent: _mean(nats),
    "mean, copied left out but for frequent": lambda nats, copied, frequent: _mean(nats[~copied | frequent]),
    "mean, copied left out": lambda nats, copied, frequent: _mean(nats[~copied]),
    "mean, copied as 0 (`relevance`)": lambda nats, copied, frequent: _mean(np.where(copied, 0, nats)),
    "sum, copied as 0 (`relevance_total`)": lambda nats, copied, frequent: float(nats[~copied].sum()),
}
CLOSENESS, DISTANT = "closeness", "mean, copied as 0 (`relevance`)"  # the one is of the other
NOTES = """\
- AUC against the real answers (mean of the spoilt ones, nats): 0.5 is chance, below it the spoilt ones win.
- 95% bootstrap intervals are in the JSON; none reaches further than {reach:.2f} to a side.
- frame: what all prompts share, {frame!r}. Copied: the prompt has the token. Frequent: among the 100 most
  frequent tokens of other answers.
- closeness: -|z| of `relevance`, by mean and deviation of half of the real answers, of the others."""


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    model, tokenizer = load_checkpoint(arguments.model, causal=True, dtype=dtype)
    torch.nn.Module.to(model, arguments.device)
    draw = random.Random(arguments.seed)
    for start in arguments.starts:
        require(0 <= start < len(tokenizer), "--starts", f"token ids, below {len(tokenizer)}", start)
    records = read_records(arguments.data, COLUMNS)[0]
    draw.shuffle(records)
    aside = min(OTHERS, len(records) // 2)
    others, chosen = records[:aside], chosen_records(records[aside:], tokenizer, arguments)
    counts = Counter(token for ids in encode(tokenizer, [record.output for record in others]) for token in ids)
    frame = shared_frame(encode(tokenizer, list(map(TEMPLATE.render, others))))
    bare = {**{str(tokenizer.convert_ids_to_tokens(start)): [start] for start in arguments.starts}, FRAME: frame}
    frequent = [token for token, _ in counts.most_common(FREQUENT)]
    answers = {REAL: [record.output for record in chosen], **spoilt(chosen, tokenizer, draw)}
    result = {
        "title": arguments.out.name,
        "command": command_line(),
        "hardware": hardware(arguments.device),
        "settings": {
            "model": Path(arguments.model).name,
            "precision": arguments.precision,
            "answers": len(chosen),
            "tokens": arguments.tokens,
            "frame": tokenizer.decode(frame),
        },
        "rows": compare(model, tokenizer, chosen, answers, bare, frequent, arguments.batch_size),
    }
    write(arguments.out, result, to_markdown(result))


def parse() -> argparse.Namespace:
    parser = Arguments(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="a causal LM: folder, GGUF file or hub name")
    add("--data", type=Path, required=True, help="records with instruction, input and output")
    add("--answers", type=int, default=200, metavar="N", help="real answers (default 200)")
    add("--tokens", nargs=2, type=int, default=[20, 120], metavar="N", help="shortest and longest (default 20 120)")
    add("--starts", nargs="*", type=int, default=[], metavar="ID", help="tokens to stand alone in the prompt's place")
    add("--batch-size", type=int, default=10, metavar="N", help="rows through the model at once (default 10)")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the weights (default fp32)")
    add("--seed", type=int, default=0, metavar="N", help="of the choice and the shuffles (default 0)")
    add("--device", default=default_device(), help="cpu or cuda (default: a GPU if any)")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of torch on the CPU")
    add("--out", type=Path, required=True, help="where to write, without an ending: results/relevance/NAME")
    arguments = parser.parse_args()
    for name, least in (("answers", 4), ("batch_size", 1), ("threads", 1)):
        value = getattr(arguments, name)
        require(value >= least, "--" + name.replace("_", "-"), f"at least {least}", value)
    check_device(arguments.device)
    return arguments


def chosen_records(records: Sequence[Record], tokenizer: Any, arguments: argparse.Namespace) -> list[Record]:
    """The first whose answer and prompt have a length that is wanted."""
    shortest, longest = arguments.tokens
    found: list[Record] = []
    for record in records:
        prompt, answer = encode(tokenizer, [TEMPLATE.render(record), record.output])
        if shortest <= len(answer) <= longest and len(prompt) <= LONGEST_PROMPT:
            found.append(record)
        if len(found) == arguments.answers:
            return found
    raise UserError(f"--answers {arguments.answers}: {len(found)} of {arguments.data} fit --tokens; ask for fewer")


def spoilt(records: Sequence[Record], tokenizer: Any, draw: random.Random) -> dict[str, list[str]]:
    """The answers spoilt in each way, in the records' order."""
    real = [record.output for record in records]
    return {
        "another's": [*real[1:], real[0]],
        "a third": [" ".join(text.split(" ")[: max(1, len(text.split(" ")) // 3)]) for text in real],
        "first sentence again and again": [repeated(text, tokenizer) for text in real],
        "prompt copied": [f"{record.instruction}\n{record.input}".strip() for record in records],
        "words shuffled": [" ".join(draw.sample(text.split(), len(text.split()))) for text in real],
    }


def repeated(text: str, tokenizer: Any) -> str:
    """The first sentence (or line) as often as it takes to be as long, in tokens."""
    found = re.match(r"\s*(.+?[.!?](?=\s|$)|.+)", text)
    sentence = found[1] if found else text
    length = len(encode(tokenizer, [text])[0])
    return str(tokenizer.decode(encode(tokenizer, [" ".join([sentence] * length)])[0][:length]))


def compare(
    model: torch.nn.Module,
    tokenizer: Any,
    records: Sequence[Record],
    answers: dict[str, list[str]],
    bare: dict[str, list[int]],
    frequent: Sequence[int],
    batch_size: int,
) -> list[Row]:
    """A row for each form in each context of `bare`."""
    prompts = encode(tokenizer, list(map(TEMPLATE.render, records)))
    values: dict[tuple[str, str], dict[str, np.ndarray]] = defaultdict(dict)
    for name, texts in answers.items():
        said = encode(tokenizer, texts)
        given = response_scores(model, prompts, said, tokenizer.eos_token_id, batch_size)
        likelihoods = [None if row is None else -row.losses.mean().item() for row in given]
        values["–", "log-likelihood given the prompt"][name] = numbers(likelihoods)
        for context, ids in bare.items():
            alone = response_scores(model, [ids] * len(said), said, tokenizer.eos_token_id, batch_size)
            known = [
                None
                if after is None or before is None
                else (information(after, before).numpy(), np.isin(tokens, prompt), np.isin(tokens, frequent))
                for after, before, tokens, prompt in zip(given, alone, said, prompts, strict=True)
            ]
            for form, value in FORMS.items():
                values[context, form][name] = numbers([None if row is None else value(*row) for row in known])
        report(f"{name}: {sum(map(len, said))} tokens")
    rows = [compared(*key, found) for key, found in values.items()]
    return rows + [compared(context, CLOSENESS, near(values[context, DISTANT])) for context in bare]


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Undefined ones (no token left) are the lowest."""
    return np.array([-np.inf if value is None else value for value in values])


def near(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """-|z| of the odd rows, by mean and standard deviation of the real answers among the even ones."""
    even = values[REAL][::2]
    return {name: -abs((found[1::2] - even.mean()) / even.std()) for name, found in values.items()}


def compared(context: str, form: str, values: dict[str, np.ndarray]) -> Row:
    """Mean and standard deviation of the real answers; of each spoiling its mean, its AUC and its interval."""
    real = values[REAL]
    spoilings = {}
    for name, found in values.items():
        if name != REAL:
            rows = np.arange(len(real))
            interval = bootstrap_ci(np.zeros(len(real)), rows, statistic=lambda i, x=found: auc(real[i], x[i]))  # type: ignore[misc]
            spoilings[name] = {"mean": defined_mean(found), "auc": auc(real, found), "auc_ci": interval}
    return {
        "context": context,
        "form": form,
        "real": {"mean": defined_mean(real), "sd": float(real.std())},
        "spoilt": spoilings,
    }


def defined_mean(values: np.ndarray) -> float | None:
    return _mean(values[np.isfinite(values)])


def auc(above: np.ndarray, below: np.ndarray) -> float:
    """Share of pairs in which the first is higher, ties half."""
    ranks = rankdata(np.concatenate([above, below]))[: len(above)]
    return float((ranks.mean() - (len(above) + 1) / 2) / len(below))


def to_markdown(result: Row) -> str:
    machine, settings, rows = result["hardware"], result["settings"], result["rows"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores used"
    lines = [["in the prompt's place", "form", "real", *rows[0]["spoilt"]]]
    for row in rows:
        cells = [f"{one['auc']:.2f} ({shown(one['mean'])})" for one in row["spoilt"].values()]
        lines.append(
            [row["context"].replace("|", "\\|").replace("<", "\\<"), row["form"], shown(row["real"]["mean"]), *cells]
        )
    reach = max((one["auc_ci"][1] - one["auc_ci"][0]) / 2 for row in rows for one in row["spoilt"].values())
    shortest, longest = settings["tokens"]
    title = (
        f"**{result['title']}**: {settings['answers']} answers of {shortest} to {longest} tokens, under "
        f"{settings['model']} ({settings['precision']}) on {where}, torch {machine['torch']}."
    )
    notes = NOTES.format(reach=reach, frame=settings["frame"])
    return "\n\n".join([title, f"`{result['command']}`", grid(lines, 2), notes]) + "\n"


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    run_script(main)
