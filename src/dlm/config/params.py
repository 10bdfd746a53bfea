"""The parameters of the pipeline: params.yaml as frozen dataclasses, one block per stage.

`load_params` reads and checks the whole file, so every stage refuses an impossible value before anything runs, wherever
in the file it stands.
"""

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlm.config.data import DataParams, TemplateParams, TokenizerParams
from dlm.config.decoders import DecoderOptions, decoder_options
from dlm.config.decoding import AblationParams, DecodeParams, InfillParams, SelectParams
from dlm.config.evaluation import EvaluateParams
from dlm.config.report import ReportParams, SweepsParams
from dlm.config.schema import LARGEST_SEED, at_least, build, dotted, require
from dlm.config.training import BaseParams, ModelParams, NegativesParams, R2ftParams, ReferenceParams, SftParams
from dlm.config.yaml import load_yaml
from dlm.errors import UserError


@dataclass(frozen=True)
class Params:
    """params.yaml."""

    seed: int
    data: DataParams
    template: TemplateParams
    tokenizer: TokenizerParams
    model: ModelParams
    base: BaseParams
    reference: ReferenceParams
    sft: SftParams
    negatives: NegativesParams
    r2ft: R2ftParams
    decode: DecodeParams
    decoding: dict[str, Any]
    select: SelectParams
    ablation: AblationParams
    infill: InfillParams
    sweeps: SweepsParams
    evaluate: EvaluateParams
    report: ReportParams

    def check(self, where: str) -> None:
        at_least(self, where, 0, ["seed"])
        require(self.seed <= LARGEST_SEED, dotted(where, "seed"), f"at most {LARGEST_SEED}", self.seed)
        for name, block in self.decoding.items():
            for options in _each(name, block, f"{where}decoding.{name}"):
                for steps in self.decode.steps:
                    options.check_lengths(self.decode.gen_length, steps, f"{where}decoding.{name}")
        for block, names in (
            ("report", self.report.decoders),
            ("infill", self.infill.decoders),
            ("sweeps.rejection", self.sweeps.rejection.decoders),
        ):
            for name in names:
                told = f"among decoding's {list(self.decoding)}"
                require(name in self.decoding, f"{where}{block}.decoders", told, name)
        same = self.reference.init != "pretrain" or self.base.rows == "text"
        require(same, f"{where}reference.init", "another than pretrain where base.rows is records", self.reference.init)
        for name in self.sweeps.rejection.negatives:
            self.negatives_of(name)
        if "semi_ar" in self.decoding:
            long = f"{where}ablation.steps (decoding.semi_ar)"
            for options in _each("semi_ar", self.decoding["semi_ar"], f"{where}decoding.semi_ar"):
                options.check_lengths(self.decode.gen_length, self.ablation.steps, long)
        if self.decode.gen_length > self.data.window:
            raise UserError(
                f"{where}decode.gen_length must be at most data.window ({self.data.window}), "
                f"got {self.decode.gen_length}"
            )
        longest = max(self.data.canvas_length, self.base.sequence_length)
        if longest > self.model.max_length:
            raise UserError(
                f"{where}model.max_length must be at least {longest} "
                f"(data.max_prompt_length + data.window, base.sequence_length), got {self.model.max_length}"
            )

    def negatives_of(self, name: str) -> NegativesParams:
        """The block `negatives` with the changes of sweeps.rejection.negatives.<name>; UserError for a name without."""
        where, known = f"params.yaml: sweeps.rejection.negatives.{name}", self.sweeps.rejection.negatives
        if name not in known:
            raise UserError(f"{where} is missing; known: {', '.join(known)}")
        require(isinstance(known[name], dict), where, "a block of changes to negatives", known[name])
        return build(NegativesParams, {**asdict(self.negatives), **known[name]}, where)

    def decoder(self, name: str, **changes: Any) -> DecoderOptions:
        """The options of `decoding.<name>`, some of them changed; of a list of candidates the first.

        Raises:
            UserError: a name without a block.
        """
        first = {**self.candidates(name)[0], **changes}
        return decoder_options(name, {**(self.decoding[name] or {}), **first}, f"params.yaml: decoding.{name}")

    def candidates(self, name: str) -> list[dict[str, Any]]:
        """What the lists of `decoding.<name>` leave to choose: every combination of their values, by option.

        `kernel_size: [17, 9]` gives [{"kernel_size": 17}, {"kernel_size": 9}]; a block without lists gives [{}].

        Raises:
            UserError: a name without a block.
        """
        if name not in self.decoding:
            raise UserError(f"params.yaml: decoding.{name} is missing; known: {', '.join(self.decoding)}")
        return _combinations(self.decoding[name])


def _combinations(block: Any) -> list[dict[str, Any]]:
    lists = {key: value for key, value in block.items() if isinstance(value, list)} if isinstance(block, dict) else {}
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _each(name: str, block: Any, where: str) -> list[DecoderOptions]:
    """The checked options of a decoder's block, one for each of its candidates."""
    found = _combinations(block)
    require(bool(found), where, "without empty lists", block)
    return [decoder_options(name, {**block, **chosen} if chosen else block, where) for chosen in found]


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check the parameter file. Raises UserError in one line for anything that is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the repository's root or pass --params") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return parse_params(text, Path(path).name)


def parse_params(text: str, name: str) -> Params:
    """Check the text of a parameter file; `name` is what errors call it."""
    try:
        raw = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{name} must be a block of keys, got {' '.join(repr(raw).split())[:80]}")
    return build(Params, raw, f"{name}: ")


def tracked(params: Params, *names: str) -> dict[str, Any]:
    """The named top-level blocks as plain values, for the tracker; `decoding.conv` picks one decoder's block."""
    whole = asdict(params)
    picked = {}
    for name in names:
        block, _, rest = name.partition(".")
        picked[name] = whole[block][rest] if rest else whole[block]
    return picked
