"""The arguments of each command of `dlm`."""

import argparse
from pathlib import Path
from typing import NoReturn

from dlm.pipeline.start import fail
from dlm.cli import harness


class Parser(argparse.ArgumentParser):
    """Errors are one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} ({self.prog} --help says what it takes)")


def add_generate(parser: Parser) -> None:
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a name on the Hugging Face hub")
    parser.add_argument("texts", metavar="PROMPT", nargs="*", help="a prompt; without any: --prompts, or stdin")
    parser.add_argument(
        "--prompts",
        dest="file",
        metavar="FILE",
        type=Path,
        help="one prompt a line, or JSON (lines, an array) with `instruction` (and `input`), `messages`, `prompt` or "
        "`prompt_ids` (used as they are)",
    )
    _add_template(parser)
    parser.set_defaults(infill=False)
    parser.add_argument("--gen-length", type=int, default=128, metavar="N", help="tokens to generate (default: 128)")
    default = "without: conv over low_confidence with eos_fill, the best with as many steps as tokens"
    _add_shared(parser, default, steps="as many as tokens")


def add_chat(parser: Parser) -> None:
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a name on the Hugging Face hub")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    _add_talk(parser, steps="as many as tokens", length="tokens of an answer (default: 128)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    _add_running(parser)


def add_serve(parser: Parser) -> None:
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a name on the Hugging Face hub")
    parser.add_argument("--host", default="127.0.0.1", help="the interface to listen at (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="its port; 0 takes a free one (default: 8000)"
    )
    parser.add_argument("--name", help="the name that requests call the model by (default: the folder's, the hub's)")
    parser.add_argument(
        "--key-variable",
        metavar="NAME",
        default="DLM_API_KEY",
        help="the environment variable that holds the API key (default: DLM_API_KEY); unset, none is asked for",
    )
    parser.add_argument(
        "--no-key", action="store_true", help="let others than this machine in (--host) though no key is set"
    )
    parser.add_argument(
        "--waiting", type=int, default=1024, metavar="N", help="answers that may wait; more are refused (default: 1024)"
    )
    length = "tokens of an answer where a request says nothing (default: 128)"
    _add_talk(parser, steps="as many as the answer has tokens", length=length)
    _add_running(parser)


def _add_talk(parser: Parser, steps: str, length: str) -> None:
    parser.set_defaults(infill=False, block=None)
    parser.add_argument(
        "--template", metavar="NAME", help="a prompt format in place of its own: alpaca, llada or dream"
    )
    default = "without: conv over low_confidence with eos_fill"
    parser.add_argument("--decoder", metavar="NAME", help=f"one of `dlm decoders`, with its own defaults ({default})")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="an option of the decoder; repeatable"
    )
    parser.add_argument("--steps", type=int, metavar="N", help=f"denoising steps (default: {steps})")
    parser.add_argument("--gen-length", type=int, default=128, metavar="N", help=length)


def _add_template(parser: Parser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--instruction",
        dest="template",
        action="store_true",
        default=None,
        help="prompts are instructions, put into the checkpoint's template (default where it has one)",
    )
    how.add_argument("--raw", dest="template", action="store_false", default=None, help="prompts are used as they are")
    how.add_argument("--chat", action="store_true", help="prompts are a user's messages, put into the chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system prompt of conversations without one")


def add_score(parser: Parser) -> None:
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a name on the Hugging Face hub")
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="JSON (lines, an array): prompts as `generate` takes them, each with its `answer`",
    )
    _add_template(parser)
    parser.add_argument("--text", action="store_true", help="FILE is running text, documents between empty lines")
    parser.add_argument(
        "--length", type=int, metavar="N", help="with --text: tokens of a window (default: the model's)"
    )
    _add_estimate(parser)
    parser.add_argument("--end", action="store_true", help="count an end of text behind each answer, too")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    _add_running(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _add_estimate(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--order",
        choices=["any", "left_to_right"],
        default="any",
        help="any: the bound over all orders, by Monte Carlo (default); left_to_right: the chain rule",
    )
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="passes an answer (default: 64)")


def add_lm_eval(parser: Parser) -> None:
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a name on the Hugging Face hub")
    parser.set_defaults(infill=False)
    harness.add_tasks(parser)
    _add_estimate(parser.add_argument_group("likelihood"))
    decoding = _add_decoding(parser, "without: as `generate`", steps="as many as tokens")
    decoding.add_argument(
        "--gen-length", type=int, default=256, metavar="N", help="tokens where a task does not say (default: 256)"
    )
    _add_running(parser)


def add_infill(parser: Parser) -> None:
    parser.add_argument("checkpoint", help="a checkpoint's folder, or a name on the Hugging Face hub")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text with gaps; without any: --texts, or stdin")
    parser.add_argument(
        "--texts",
        dest="file",
        metavar="FILE",
        type=Path,
        help="one text a line, or JSON (lines, an array) with `text` or `canvas_ids`",
    )
    parser.set_defaults(infill=True, gen_length=None, system=None)
    default = "without: conv over low_confidence"
    _add_shared(parser, default, steps="as many as the fullest text has masks")


def add_convert(parser: Parser) -> None:
    parser.add_argument("source", help="a published checkpoint's folder or GGUF file, or its name on the hub")
    parser.add_argument("folder", type=Path, help="where to write the converted one")
    _add_layout(parser)
    parser.add_argument(
        "--template", metavar="NAME", help="the prompt format to save with it: alpaca, llada or dream (default: none)"
    )
    parser.add_argument("--causal", action="store_true", help="an autoregressive model, to stay one (a GGUF file, say)")
    parser.add_argument(
        "--logits-shift",
        type=int,
        choices=[0, 1],
        help="with --layout causal_lm: 1 predicts each position at the one before, as the model did; 0 at itself "
        "(default: 1)",
    )
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="a block-causal model, of N positions a block (to be trained as one)",
    )
    parser.add_argument("--mask-token", metavar="TOKEN", help="an entry of the tokenizer to become its mask")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of the weights (default: auto, as published)",
    )


def _add_layout(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--layout",
        metavar="NAME",
        default="auto",
        help="causal_lm, masked_lm, llada, dream, mdlm, bd3lm, sdar or fast_dllm (default: auto, by config.json)",
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="where the tokenizer is, if not beside the model")


def _add_running(parser: Parser) -> None:
    running = parser.add_argument_group("running")
    running.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows at once (default: 32)")
    running.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda if there is any)")
    running.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="fp32",
        help="(default: fp32; auto: bf16 if it pays)",
    )
    _add_layout(running)
    running.add_argument(
        "--compile", choices=["none", "default", "cuda_graphs"], default="none", help="torch.compile (default: none)"
    )


def _add_decoding(parser: Parser, default: str, steps: str) -> argparse._ActionsContainer:
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--decoder", metavar="NAME", help=f"one of `dlm decoders`, with its own defaults ({default})")
    decoding.add_argument("--block", metavar="NAME", help="a block `decoding.NAME` of params.yaml instead")
    decoding.add_argument("--params", metavar="FILE", type=Path, help="where --block is looked up (params.yaml)")
    decoding.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="an option of the decoder; repeatable"
    )
    decoding.add_argument("--steps", type=int, metavar="N", help=f"denoising steps (default: {steps})")
    decoding.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    return decoding


def _add_shared(parser: Parser, default: str, steps: str) -> None:
    _add_decoding(parser, default, steps)
    _add_running(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object a line")
    output.add_argument("--watch", action="store_true", help="see one text being filled in (on a terminal)")
    output.add_argument("--record", metavar="FILE.svg", type=Path, help="draw one text being filled in, as it moves")
    output.add_argument(
        "--beside",
        metavar="NAME[:KEY=VALUE,...]",
        action="append",
        default=[],
        help="with --record: another decoder, --set's options on it too, beside the first; repeatable",
    )
    output.add_argument("--trace", metavar="FILE", type=Path, help="write every change of the canvas as JSON lines")
