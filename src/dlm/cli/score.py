"""`dlm score`: how likely a checkpoint finds answers, or running text."""

import argparse
import json

from dlm.cli.output import printable
from dlm.cli.prompts import Prompt, read_prompts
from dlm.cli.run import load, whole_prompt
from dlm.data.text import read_documents
from dlm.data.tokenizer import encode_answers
from dlm.decoding.lm import DiffusionLM
from dlm.errors import UserError
from dlm.likelihood import perplexity, score


def run(arguments: argparse.Namespace) -> None:
    """Read, load, score, print. Raises UserError."""
    settings = {"samples": arguments.samples, "seed": arguments.seed, "batch_size": arguments.batch_size}
    if arguments.text:
        documents = list(read_documents(str(arguments.file)))
        whole = perplexity(load(arguments), documents, length=arguments.length, **settings)
        values = {"perplexity": whole.perplexity, "nats": whole.nats, "standard_error": whole.standard_error}
        line = f"{whole.perplexity:.2f} perplexity, {whole.nats:.4f} ± {whole.standard_error:.4f} nats a token"
        print(json.dumps({**values, "tokens": whole.tokens}) if arguments.json else f"{line}, {whole.tokens:,} tokens")
        return
    prompts = read_prompts((), arguments.file, "FILE")
    lacking = [prompt.where for prompt in prompts if prompt.answer is None]
    if lacking:
        raise UserError(f"{lacking[0]}: has no `answer`; give one, or say --text for running text")
    lm = load(arguments)
    rows = [_row(lm, prompt, arguments) for prompt in prompts]
    found = score(lm, *zip(*rows, strict=True), order=arguments.order, end=arguments.end, **settings)
    columns = (found.log_likelihood.tolist(), found.standard_error.tolist(), found.tokens.tolist())
    for prompt, value, error, tokens in zip(prompts, *columns, strict=True):
        if arguments.json:
            row = {"log_likelihood": value, "standard_error": error, "tokens": tokens}
            print(json.dumps({"prompt": prompt.text, "answer": prompt.answer, **row}))
        else:
            print(f"{value:10.3f} ± {error:.3f}  {tokens:4} tokens  {printable(prompt.answer or '')}")


def _row(lm: DiffusionLM, prompt: Prompt, arguments: argparse.Namespace) -> tuple[list[int], list[int]]:
    """A prompt's ids, and those of its answer as they are read behind it."""
    ids, text = whole_prompt(lm, prompt, arguments)
    return ids, encode_answers(lm.tokenizer, [text], [prompt.answer or ""])[0]
