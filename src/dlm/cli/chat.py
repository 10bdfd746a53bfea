"""`dlm chat`: a conversation in the terminal; on a terminal each answer fills in place."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from rich.console import Console

from dlm.analysis.escape import printable
from dlm.cli.run import load_to_talk
from dlm.cli.watch import watched
from dlm.config.schema import require
from dlm.config.yaml import setting
from dlm.decoding.arguments import checked_decoder
from dlm.decoding.lm import DiffusionLM, Generation
from dlm.decoding.loop import Watch
from dlm.decoding.options import DECODERS, in_blocks
from dlm.errors import UserError
from dlm.serving import conversation

HELP = """\
/reset             begin anew
/decoder [NAME]    another decoder, with its own defaults; without a name: which there are
/set KEY=VALUE     change an option of the decoder
/steps [N]         denoising steps; without a number: as many as tokens
/quit              the end, as Ctrl-D is
//...              a message that begins with /
Ctrl-C stops an answer; its message is taken back."""


class Talk:
    """A conversation, and how its answers are decoded."""

    def __init__(self, lm: DiffusionLM, arguments: argparse.Namespace, changes: dict[str, Any]) -> None:
        self.lm, self.gen_length, self.seed = lm, arguments.gen_length, arguments.seed
        self.decoder: str | None = arguments.decoder
        self.changes = changes
        self.steps: int | None = arguments.steps
        self.system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
        self.messages: list[Any] = [*self.system]
        self._told = False

    def answer(self, text: str) -> None:
        """Print the answer to a message. Without one, by Ctrl-C or a UserError, the conversation stays as it was."""
        asked = [*self.messages, {"role": "user", "content": text}]
        kept, ids, gone = conversation.that_fits(self.lm, asked, self.gen_length)
        if gone and not self._told:
            tell("the conversation no longer fits the model; from here on the oldest turns are left out")
            self._told = True
        try:
            out = self._decode(ids)
        except KeyboardInterrupt:
            tell("\nstopped; the message is taken back")
            return
        self.messages = [*kept, {"role": "assistant", "content": out.texts[0]}]

    def _decode(self, ids: list[int]) -> Generation:
        steps = self.gen_length if self.steps is None else self.steps

        def decode(watch: Watch | None = None) -> Generation:
            return self.lm.generate(
                [ids],
                self.decoder,
                steps=steps,
                gen_length=self.gen_length,
                seed=self.seed,
                watch=watch,
                **self.changes,
            )

        if sys.stdout.isatty():
            canvas = [self.lm.denoiser.mask_id] * self.gen_length
            return watched(Console(highlight=False), self.lm, canvas, steps, decode)
        out = decode()
        print(printable(out.texts[0]), flush=True)
        return out

    # --- Commands -----------------------------------------------------------------------------------------------------

    def command(self, line: str) -> None:
        """Raises UserError for an unknown one, or what it does not take."""
        name, _, given = line[1:].partition(" ")
        given = given.strip()
        if name == "reset":
            self.messages, self._told = [*self.system], False
        elif name == "help":
            tell(HELP)
        elif name == "decoder" and not given:
            tell(f"{self.decoder or 'the default, conv over low_confidence'}; known: {', '.join(DECODERS)}")
        elif name == "decoder":
            self._change(given, {}, self.steps)
        elif name == "set":
            self._change(self.decoder, {**self.changes, **dict([setting(given, "/set")])}, self.steps)
        elif name == "steps":
            require(not given or (given.isdecimal() and int(given) > 0), "/steps", "a whole number, at least 1", given)
            self._change(self.decoder, self.changes, int(given) if given else None)
        else:
            raise UserError(f"/{name} is no command; /help lists them, and // begins a message with a slash")

    def _change(self, decoder: str | None, changes: dict[str, Any], steps: int | None) -> None:
        """All of it, or nothing where it does not go together."""
        options, where = checked_decoder(decoder, changes)
        options = in_blocks(options, self.lm.denoiser.block_size, where)
        options.check_lengths(self.gen_length, self.gen_length if steps is None else steps, where)
        self.decoder, self.changes, self.steps = decoder, changes, steps


def tell(text: str) -> None:
    """What is no answer goes to stderr, so that a pipe gets answers alone."""
    print(text, file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace, changes: dict[str, Any]) -> None:
    """Talk until the end of the input. Raises UserError, on a terminal before the first message alone."""
    lm = load_to_talk(arguments)
    talk, interactive = Talk(lm, arguments, changes), sys.stdin is not None and sys.stdin.isatty()
    tell(f"messages go into {conversation.form(lm)}{'; /help says what else you can do' if interactive else ''}")
    for line in _lines(interactive):
        if line.strip() == "/quit":
            return
        try:
            if line.startswith("/") and not line.startswith("//"):
                talk.command(line.rstrip())
            elif line.strip():
                talk.answer(line[1:] if line.startswith("//") else line)
        except UserError as error:
            if not interactive:
                raise
            tell(f"error: {error}")


def _lines(interactive: bool) -> Iterator[str]:
    """One message or command a line."""
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401 (input() then has a history)
        while True:
            try:
                yield input("> ")
            except EOFError:
                print()
                return
    if sys.stdin is None:
        raise UserError("stdin is closed; there is nothing to answer")
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            yield raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"stdin:{number}: not UTF-8 (byte {error.start}); convert it to UTF-8") from None
