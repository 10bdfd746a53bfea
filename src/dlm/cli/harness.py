"""`dlm lm-eval`: tasks of lm-evaluation-harness with a checkpoint and a decoder."""

import argparse
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dlm.cli.request import Choice, check_decoder
from dlm.config.schema import require
from dlm.config.yaml import setting
from dlm.errors import UserError
from dlm.files import check_checkpoint

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Asked:
    """A decoder, the names of the tasks, files of their splits, changes of their generation_kwargs."""

    decoder: Choice
    tasks: list[str]
    files: dict[str, dict[str, Path]]
    gen_kwargs: dict[str, Any]


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """The arguments that `generate` and `score` lack."""
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument(
        "--tasks", metavar="NAME,...", required=True, help="tasks, groups and tags of lm-eval, or YAML files"
    )
    tasks.add_argument(
        "--include", metavar="FOLDER", type=Path, action="append", default=[], help="more tasks; repeatable"
    )
    tasks.add_argument(
        "--data",
        metavar="TASK:SPLIT=FILE",
        action="append",
        default=[],
        help="JSON lines in place of a split of a task's dataset on the hub; repeatable",
    )
    tasks.add_argument("--limit", type=float, metavar="N", help="documents a task, or below 1 the share of them")
    tasks.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples before each question (default: the task's)"
    )
    tasks.add_argument("--fewshot-seed", type=int, default=1234, metavar="N", help="of their choice (default: 1234)")
    tasks.add_argument(
        "--chat",
        "--apply-chat-template",
        action="store_true",
        help="contexts are conversations, put into the chat template, or the checkpoint's own where it has none",
    )
    tasks.add_argument("--one-turn", action="store_true", help="with --chat: the examples stand in the user's message")
    tasks.add_argument("--system", metavar="TEXT", help="with --chat: the system prompt")
    tasks.add_argument(
        "--gen-kwargs", metavar="KEY=VALUE", action="append", default=[], help="changes a task's; repeatable"
    )
    tasks.add_argument(
        "--confirm-run-unsafe-code", action="store_true", help="let tasks run what the model writes, on this machine"
    )
    tasks.add_argument("--max-length", type=int, metavar="N", help="tokens of a canvas (default: the model's)")
    tasks.add_argument(
        "--output", metavar="FOLDER", type=Path, help="where results go, and answers so far: the same call goes on"
    )
    tasks.add_argument("--json", action="store_true", help="print the results as one JSON object")


def check(arguments: argparse.Namespace) -> Asked:
    """Check the arguments before torch is loaded. Raises UserError."""
    decoder = check_decoder(arguments)
    for flag, least in (("num_fewshot", 0), ("max_length", 2)):
        value = getattr(arguments, flag)
        require(value is None or value >= least, "--" + flag.replace("_", "-"), f"at least {least}", value)
    require(arguments.limit is None or arguments.limit > 0, "--limit", "above 0", arguments.limit)
    require(arguments.chat or not arguments.one_turn, "--one-turn", "given with --chat", True)
    tasks = [name for name in arguments.tasks.split(",") if name]
    require(bool(tasks), "--tasks", "at least one name", arguments.tasks)
    files: dict[str, dict[str, Path]] = {}
    for text in arguments.data:
        where, equals, path = text.partition("=")
        name, colon, split = where.rpartition(":")
        if not (equals and colon and name and split and path):
            raise UserError(f"--data wants TASK:SPLIT=FILE, got {text!r}")
        require(name in tasks, f"--data {name}", f"one of --tasks ({', '.join(tasks)})", name)
        files.setdefault(name, {})[split] = Path(path)
    check_checkpoint(arguments.checkpoint)
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed; install the extra: pip install '.[lm-eval]', or make lm-eval")
    return Asked(decoder, tasks, files, dict(setting(text, "--gen-kwargs") for text in arguments.gen_kwargs))


def run(arguments: argparse.Namespace, asked: Asked) -> None:
    """Load, evaluate, save, print. Raises UserError."""
    import torch
    from lm_eval.utils import make_table

    from dlm.cli.run import load
    from dlm.harness.evaluate import evaluate, save
    from dlm.harness.model import HarnessLM

    model = HarnessLM(
        load(arguments),
        decoder=asked.decoder.options,
        steps=arguments.steps,
        gen_length=arguments.gen_length,
        order=arguments.order,
        samples=arguments.samples,
        max_length=arguments.max_length,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        resume=None if arguments.output is None else arguments.output / ANSWERS,
    )
    try:
        results = evaluate(
            model,
            asked.tasks,
            include=arguments.include,
            files=asked.files,
            limit=arguments.limit,
            num_fewshot=arguments.num_fewshot,
            chat=arguments.chat,
            one_turn=arguments.one_turn,
            system=arguments.system,
            gen_kwargs=asked.gen_kwargs,
            fewshot_seed=arguments.fewshot_seed,
            unsafe_code=arguments.confirm_run_unsafe_code,
        )
    except torch.OutOfMemoryError:
        raise UserError("the device is out of memory; take a smaller --batch-size or --gen-length") from None
    if arguments.output is not None:
        save(results, arguments.output)
    if arguments.json:
        print(json.dumps(results["results"]))
        return
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    config = results["config"]
    if cut := config["contexts_cut"]:
        lost = f"{config['context_tokens_cut']:,} tokens in all"
        print(f"{cut:,} contexts were longer than the model's canvas and lost their beginning, {lost}", file=sys.stderr)
    if ignored := config["settings_not_heeded"]:
        print(f"not heeded, as the decoder says how tokens are drawn: {', '.join(ignored)}", file=sys.stderr)
