"""The parameters of the pipeline: params.yaml as frozen dataclasses, one block per stage.

`load_params` reads and checks the whole file, so every stage refuses an impossible value before anything runs, wherever
in the file it stands.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dlm.config.blocks import BlockDiffusionParams
from dlm.config.data import DataParams, TemplateParams, TokenizerParams
from dlm.config.decoding import (
    AblationParams,
    DecodeParams,
    DecoderBlock,
    InfillParams,
    RivalsParams,
    SeddParams,
    SelectParams,
    decoder_blocks,
)
from dlm.config.evaluation import EvaluateParams, LikelihoodParams
from dlm.config.report import ReportParams, SweepsParams
from dlm.config.schema import LARGEST_SEED, Natural, build, dotted, require
from dlm.config.training import BaseParams, ModelParams, NegativesParams, R2ftParams, ReferenceParams, SftParams
from dlm.config.yaml import load_yaml
from dlm.decoding.options import DecoderOptions
from dlm.errors import UserError


@dataclass(frozen=True)
class Params:
    """params.yaml."""

    seed: Natural
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
    decoding: dict[str, DecoderBlock] = field(metadata={"parse": decoder_blocks})
    select: SelectParams
    ablation: AblationParams
    infill: InfillParams
    rivals: RivalsParams
    block_diffusion: BlockDiffusionParams
    sedd: SeddParams
    sweeps: SweepsParams
    evaluate: EvaluateParams
    likelihood: LikelihoodParams
    report: ReportParams

    def check(self, where: str) -> None:
        require(self.seed <= LARGEST_SEED, dotted(where, "seed"), f"at most {LARGEST_SEED}", self.seed)
        for decoder in self.decoding.values():
            for options in decoder.options:
                for steps in self.decode.steps:
                    options.check_lengths(self.decode.gen_length, steps, decoder.where)
        for block, names in (
            ("report", self.report.decoders),
            ("infill", self.infill.decoders),
            ("sweeps.rejection", self.sweeps.rejection.decoders),
        ):
            for name in names:
                told = f"among decoding's {list(self.decoding)}"
                require(name in self.decoding, f"{where}{block}.decoders", told, name)
        for name in self.rivals.decoders:
            for options, steps in self.rivals.curve(name, False, self.decode.gen_length, f"{where}rivals"):
                options.check_lengths(self.decode.gen_length, steps, f"{where}rivals.decoders.{name}")
        for name, decoder in self.block_diffusion.decoders.items():
            for steps in self.decode.steps:
                self.block_diffusion.options(name).check_lengths(self.decode.gen_length, steps, decoder.where)
        for steps in self.decode.steps:
            options = self.sedd.decoder("tweedie", f"{where}sedd")
            options.check_lengths(self.decode.gen_length, steps, f"{where}sedd.options")
        same = self.reference.init != "pretrain" or self.base.rows == "text"
        require(same, f"{where}reference.init", "another than pretrain where base.rows is records", self.reference.init)
        for name in self.sweeps.rejection.negatives:
            self.negatives_of(name)
        for name in ("conv", "semi_ar"):  # what the ablation decodes, with the settings that select has chosen
            chosen = name not in self.decoding or len(self.decoding[name].candidates) == 1
            told = f"with {name}, which the ablation decodes, too (or decoding.{name} without lists)"
            require(chosen or name in self.report.decoders, f"{where}report.decoders", told, list(self.report.decoders))
        if "semi_ar" in self.decoding:
            long = f"{where}ablation.steps (decoding.semi_ar)"
            for options in self.decoding["semi_ar"].options:
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
            UserError: a name without a block, or an impossible value.
        """
        return self.block(name).changed(**changes)

    def block(self, name: str) -> DecoderBlock:
        """`decoding.<name>`. Raises UserError for a name without a block."""
        if name not in self.decoding:
            raise UserError(f"params.yaml: decoding.{name} is missing; known: {', '.join(self.decoding)}")
        return self.decoding[name]


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
    picked = {}
    for name in names:
        block, _, rest = name.partition(".")
        value: Any = getattr(params, block)
        if block == "decoding":
            value = {decoder: one.values for decoder, one in value.items()}
        elif not isinstance(value, int):
            value = asdict(value)
        picked[name] = value[rest] if rest else value
    return picked
