"""The model `dlm` of lm-evaluation-harness: all three kinds of requests, by `DiffusionLM`, `score` and `rolling`."""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from dlm.config.schema import require
from dlm.data.tokenizer import before_eos, special_tokens
from dlm.decoding.arguments import checked_decoder, listed, whole
from dlm.decoding.lm import DiffusionLM
from dlm.decoding.options import DecoderOptions, in_blocks
from dlm.decoding.results import text_behind
from dlm.errors import UserError
from dlm.harness.contexts import Contexts
from dlm.harness.journal import Journal, fingerprint
from dlm.likelihood import Order, is_greedy, rolling, score
from dlm.pipeline.progress import progress

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the harness's names for one thing
Prompted = tuple[tuple[int, ...], tuple[int, ...]]  # the ids of a context and of its continuation
Text = tuple[tuple[int, ...]]
Asked = tuple[tuple[int, ...], int, int]  # the ids of a context, the tokens to generate, which of its repeats


@register_model("dlm")
class HarnessLM(LM):
    """A masked diffusion language model for lm-evaluation-harness 0.4.

    lm_eval.simple_evaluate(model="dlm", model_args={"pretrained": "build/models/r2ft", "steps": 64}, tasks=["gsm8k"])

    Args:
        pretrained: a checkpoint (folder, adapters too, or hub name), or a model that is loaded.
        decoder, steps, options: as in `DiffusionLM.generate`; steps are as many as tokens unless given.
        gen_length: tokens to generate where a task names no `max_gen_toks`.
        order, samples: of log-likelihoods, as in `score`.
        max_length: tokens of a canvas; the model's longest unless given. Longer contexts lose their beginning.
        seed: of the noise, of answers and of likelihoods; a repeat of a request has the next seed.
        batch_size: rows or canvases a pass; `auto` is 32.
        device, precision, compile, layout, tokenizer: as in `DiffusionLM.load`. A CUDA device, the harness's default,
            is the CPU where there is none.
        resume: a file that keeps what is answered; the same call after a kill goes on from there.

    Raises:
        UserError: as `DiffusionLM.load` and `DiffusionLM.generate`.
    """

    def __init__(
        self,
        pretrained: DiffusionLM | Path | str,
        *,
        decoder: str | DecoderOptions | None = None,
        steps: int | None = None,
        gen_length: int = 256,
        order: Order = "any",
        samples: int = 64,
        max_length: int | None = None,
        seed: int = 0,
        batch_size: int | str = 32,
        device: str | None = None,
        precision: str = "fp32",
        compile: str = "none",
        layout: str = "auto",
        tokenizer: Path | str | None = None,
        resume: Path | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.decoder, self._where = checked_decoder(decoder, options)
        self.steps = None if steps is None else whole("steps", steps, 1)
        self.gen_length = whole("gen_length", gen_length, 1)
        digits = isinstance(batch_size, str) and batch_size.isdecimal()  # the harness's command line gives a text
        batch_size = int(batch_size) if digits else 32 if batch_size == "auto" else batch_size
        self.batch_size = whole("batch_size", batch_size, 1)
        if not isinstance(pretrained, DiffusionLM):
            there = device is None or not device.startswith("cuda") or torch.cuda.is_available()
            pretrained = DiffusionLM.load(
                pretrained, device if there else "cpu", precision, compile, layout=layout, tokenizer=tokenizer
            )
        self.lm = pretrained
        self.decoder = in_blocks(self.decoder, self.lm.denoiser.block_size, self._where)
        limit = self.lm.denoiser.max_length
        if max_length is not None:
            require(limit is None or max_length <= limit, "max_length", f"at most the model's {limit}", max_length)
            limit = whole("max_length", max_length, 2)
        self._device = self.lm.denoiser.device
        self._scoring: dict[str, Any] = {"order": order, "samples": samples, "seed": seed}
        self._contexts = Contexts(self.lm, limit)
        self._ignored: Counter[str] = Counter()
        denoiser = self.lm.denoiser
        weights = "" if resume is None else fingerprint(denoiser.model)
        setting = [weights, denoiser.bf16, denoiser.compile, type(self.decoder).__name__, asdict(self.decoder)]
        self._journal = Journal(
            None if resume is None else Path(resume), [*setting, self.steps, self._scoring, limit, self.lm.ends]
        )

    # --- Requests -----------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding of its length writes it (`is_greedy`)."""
        pairs = self._contexts.pairs([request.args for request in requests])
        asked: list[Prompted] = [(tuple(context), tuple(ids)) for context, ids in pairs]

        def run(batch: list[Prompted]) -> list[tuple[float, bool]]:
            contexts, continuations = zip(*batch, strict=True)
            scores = score(self.lm, contexts, continuations, batch_size=self.batch_size, **self._scoring)
            order = self._scoring["order"]
            greedy = is_greedy(self.lm, contexts, continuations, order=order, batch_size=self.batch_size)
            return list(zip(scores.log_likelihood.tolist(), greedy.tolist(), strict=True))

        return self._answers("loglikelihood", requests, asked, run, lambda request, one, answer: tuple(answer))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of each text as a whole, read in windows; an empty one's is 0."""
        asked = [(tuple(self.lm._ids(request.args[0], "a text")),) for request in requests]

        def run(batch: list[Text]) -> list[float]:
            texts = [ids for (ids,) in batch if ids]
            length = self._contexts.limit
            scores = (
                rolling(self.lm, texts, length=length, batch_size=self.batch_size, **self._scoring) if texts else None
            )
            values = iter([] if scores is None else scores.log_likelihood.tolist())
            return [next(values) if ids else 0.0 for (ids,) in batch]

        return self._answers("loglikelihood_rolling", requests, asked, run, lambda request, one, answer: answer)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each context by `DiffusionLM.generate`, up to its first stop string."""
        asked: list[Asked] = []
        repeats: Counter[str] = Counter()
        for request in requests:
            context, settings = request.args
            length = self._length(settings)
            ids = self._contexts.fitted(self._contexts.ids(context), length, "an answer")
            asked.append((tuple(ids), length, repeats[repr(request.args)]))
            repeats[repr(request.args)] += 1
            self._ignored.update({name for name, value in settings.items() if value} - {"until", *LENGTHS})

        def run(batch: list[Asked]) -> list[list[int]]:
            _, length, repeat = batch[0]
            out = self.lm.generate(
                [ids for ids, _, _ in batch],
                self.decoder,
                steps=self.steps,
                gen_length=length,
                seed=self._scoring["seed"] + repeat,
                batch_size=self.batch_size,
            )
            return [before_eos(row, self.lm.tokenizer.eos_token_id) for row in out.tokens.tolist()]

        def text(request: Instance, one: Asked, answer: list[int]) -> str:
            return self._until(one[0], answer, request.args[1].get("until") or [])

        return self._answers("generate_until", requests, asked, run, text, together=lambda one: one[1:])

    def _length(self, settings: dict[str, Any]) -> int:
        """The tokens to generate, which the decoder must be able to divide."""
        name = next((name for name in LENGTHS if settings.get(name) is not None), None)
        length = self.gen_length if name is None else whole(name, settings[name], 1)
        self.decoder.check_lengths(length, length if self.steps is None else self.steps, self._where)
        return length

    def _until(self, context: Sequence[int], answer: Sequence[int], until: str | Sequence[str]) -> str:
        """The text of an answer's ids as it reads behind its context, up to the first of the stop strings."""
        stops = [stop for stop in listed(until, "until") if stop]
        ends = {i for i, token in special_tokens(self.lm.tokenizer).items() if token in stops}
        ids = [*takewhile(lambda token: token not in ends, answer)]
        text = text_behind(self.lm.tokenizer, [*context, *ids], len(context), len(context) + len(ids))
        return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]

    def _answers(
        self,
        kind: str,
        requests: list[Instance],
        asked: Sequence[Any],
        run: Callable[[list[Any]], Sequence[Any]],
        finish: Callable[[Instance, Any, Any], Any],
        together: Callable[[Any], Any] = lambda _: None,
    ) -> list[Any]:
        """The answer to each request, of which `asked` is what the model is asked, its first part ids.

        Every batch goes into the journal and into the harness's own cache (use_cache) when it is done.
        """
        owners: dict[Any, list[Instance]] = {}
        for question, request in zip(asked, requests, strict=True):
            owners.setdefault((kind, *question), []).append(request)

        def run_and_keep(batch: list[Any]) -> Sequence[Any]:
            answers = run([question[1:] for question in batch])
            for question, answer in zip(batch, answers, strict=True):
                for request in owners[question]:
                    self.cache_hook.add_partial(kind, request.args, finish(request, question[1:], answer))
            return answers

        longest_first = sorted(owners, key=lambda question: -len(question[1]))
        with progress(kind, len(owners), "requests") as advance:
            found = self._journal.answers(
                longest_first,
                run_and_keep,
                self.batch_size,
                together=lambda question: together(question[1:]),
                advance=advance,
            )
        return [finish(request, one, found[kind, *one]) for request, one in zip(requests, asked, strict=True)]

    # --- What the harness asks besides --------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text. Its last message is the assistant's where `add_generation_prompt` is false."""
        return self._contexts.render(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` uses. Raises UserError for one by name: a checkpoint has one."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise UserError(f"chat template {chat_template!r}: templates have no names here; give none")
        template = self.lm.template
        return self.lm.tokenizer.chat_template or (None if template is None else template.prompt)

    @property
    def tokenizer_name(self) -> str:
        """Another each time: what cache_requests kept of another run's conversations are texts without ids here."""
        return f"dlm-{uuid.uuid4().hex}"

    def get_model_info(self) -> dict[str, Any]:
        """What the results' `config` says of the model: the settings, and what was cut or not heeded."""
        return {
            "dlm": repr(self.lm),
            "decoder": {"rule": type(self.decoder).__name__.removesuffix("Options"), **asdict(self.decoder)},
            "steps": self.steps,
            "gen_length": self.gen_length,
            **self._scoring,
            "max_length": self._contexts.limit,
            "contexts_cut": self._contexts.cut,
            "context_tokens_cut": self._contexts.cut_tokens,
            "settings_not_heeded": dict(self._ignored),
        }
