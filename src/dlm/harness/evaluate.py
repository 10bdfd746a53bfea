"""A run of the harness: its tasks, its results and where they go."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from dlm.config.yaml import dump_yaml
from dlm.errors import UserError
from dlm.files import write_text
from dlm.harness.model import HarnessLM

OURS = Path(__file__).parent / "tasks"
FEWSHOT_SEED = 1234  # the harness's own
Files = Mapping[str, Mapping[str, Path]]  # of a task the file of each split


def evaluate(
    model: HarnessLM,
    tasks: Sequence[str],
    *,
    include: Sequence[Path] = (),
    files: Files | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    one_turn: bool = False,
    system: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    fewshot_seed: int = FEWSHOT_SEED,
    unsafe_code: bool = False,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness and give its results: `results`, `groups`, `samples`, `config` and more.

    Args:
        tasks: names of tasks, groups and tags, or YAML files.
        include: folders with tasks of one's own.
        files: JSON lines in place of a task's dataset on the hub.
        limit: documents a task, or below 1 the share of them.
        num_fewshot: examples before each question; what the task says unless given.
        chat: contexts are conversations, put into the chat template; `one_turn` has the examples in the user's message,
            `system` is the system prompt.
        gen_kwargs: changes of the tasks' `generation_kwargs`.
        fewshot_seed: of the choice of examples.
        unsafe_code: whether tasks may run the code that the model writes, on this machine.

    Raises:
        UserError: a task that is unknown, cannot be loaded or would run code; else as `HarnessLM` and its requests.
    """
    if unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # which the metric asks for again
    manager = _manager(tasks, include)
    loaded = [item for name in dict.fromkeys(tasks) for item in _load(manager, name, (files or {}).get(name, {}))]
    every = [task for item in loaded for task in (item.get_all_tasks() if isinstance(item, Group) else [item])]
    unsafe = [task.task_name for task in every if getattr(task, "UNSAFE_CODE", False)]  # tasks in Python lack it
    if unsafe and not unsafe_code:
        raise UserError(f"{unsafe[0]} runs the code that the model writes; --confirm-run-unsafe-code allows it")
    results = simple_evaluate(
        model=model,
        tasks=loaded,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat and not one_turn,
        system_instruction=system,
        gen_kwargs=dict(gen_kwargs) if gen_kwargs else None,
        fewshot_random_seed=fewshot_seed,
        confirm_run_unsafe_code=unsafe_code,
    )
    assert results is not None  # one process
    return dict(results)


def save(results: Mapping[str, Any], folder: Path) -> None:
    """results.json, and the documents of each task with their requests and answers in samples-TASK.jsonl."""

    def dumped(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, indent=indent) + "\n"

    for task, samples in results["samples"].items():
        write_text(folder / f"samples-{task.replace('/', '_')}.jsonl", "".join(map(dumped, samples)))
    write_text(folder / "results.json", dumped({key: results[key] for key in results if key != "samples"}, 2))


def _manager(tasks: Sequence[str], include: Sequence[Path]) -> TaskManager:
    """What knows these tasks: those here and in `include`, and the harness's own only if need be, as there are 14,000
    files of them.

    Raises:
        UserError: a folder that is not there, an unknown task.
    """
    for folder in include:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name one with the YAML files of tasks")
    unknown: list[str] = []
    for defaults in (False, True):
        manager = TaskManager(include_path=[OURS, *include], include_defaults=defaults)
        unknown = [name for name in tasks if name not in manager.task_index and not Path(name).is_file()]
        if not unknown:
            return manager
    near = get_close_matches(unknown[0], manager.all_tasks, 1)
    remedy = f"did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists them; --include names a folder of others"
    raise UserError(f"{unknown[0]!r} is not a task: {remedy}")


def _load(manager: TaskManager, name: str, files: Mapping[str, Path]) -> list[Task | Group]:
    """A task, a group or a tag's tasks. Raises UserError where its data is not to be had."""
    for path in files.values():
        if not path.is_file():
            raise UserError(f"{path}: no such file; name the JSON lines of {name}")
    entry = manager.task_index.get(name)
    known = Path(name).resolve() if entry is None else entry.yaml_path
    data = {name: str(path.resolve()) for name, path in files.items()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            if data:
                changed = Path(folder) / "task.yaml"
                local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data}}
                changed.write_text(dump_yaml({"include": str(known), **local}), "utf-8")
            loaded = manager.load([str(changed) if data else name])
    except Exception as error:  # the hub, the network and the tasks' own code raise classes of their own
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: the task could not be loaded ({type(error).__name__}: {reason}); --data gives the splits "
            "that it reads files in place of the hub's"
        ) from None
    inside = {task.task_name for group in loaded["groups"].values() for task in group.get_all_tasks()}
    below = {child for children in loaded["group_map"].values() for child in children}
    groups = [group for group in loaded["groups"].values() if group.name not in below]
    return [*groups, *(task for task in loaded["tasks"].values() if task.task_name not in inside)]
