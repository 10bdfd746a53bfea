"""The parameters of the pipeline: params.yaml as frozen dataclasses, one block per stage.

`load_params` reads and checks the whole file, so every stage refuses an impossible value before anything runs, wherever
in the file it stands.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from dlm.blocks import (
    LARGEST_SEED,
    BaseParams,
    DataParams,
    ModelParams,
    NegativesParams,
    R2ftParams,
    ReferenceParams,
    SftParams,
    TemplateParams,
    TokenizerParams,
)
from dlm.blocks_results import AblationParams, DecodeParams, EvaluateParams, InfillParams, ReportParams
from dlm.decoding.options import DecoderOptions, decoder_options
from dlm.errors import UserError
from dlm.schema import at_least, build, dotted, require


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
    ablation: AblationParams
    infill: InfillParams
    evaluate: EvaluateParams
    report: ReportParams

    def check(self, where: str) -> None:
        at_least(self, where, 0, ["seed"])
        require(self.seed <= LARGEST_SEED, dotted(where, "seed"), f"at most {LARGEST_SEED}", self.seed)
        for name, block in self.decoding.items():
            options = decoder_options(name, block, f"{where}decoding.{name}")
            options.check_lengths(self.decode.gen_length, self.decode.steps, f"{where}decoding.{name}")
        for name in self.report.decoders:
            require(name in self.decoding, f"{where}report.decoders", f"among decoding's {list(self.decoding)}", name)
        for name in self.infill.decoders:
            require(name in self.decoding, f"{where}infill.decoders", f"among decoding's {list(self.decoding)}", name)
        for length in self.ablation.blocks:
            options = decoder_options("semi_ar", {"block_length": length}, f"{where}ablation.blocks")
            options.check_lengths(self.decode.gen_length, self.decode.steps, f"{where}ablation.blocks")
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

    def decoder(self, name: str, **changes: Any) -> DecoderOptions:
        """The options of `decoding.<name>`, some of them changed. Raises UserError for a name without a block."""
        if name not in self.decoding:
            raise UserError(f"params.yaml: decoding.{name} is missing; known: {', '.join(self.decoding)}")
        block = self.decoding[name]
        changed = {**(block or {}), **changes} if changes else block
        return decoder_options(name, changed, f"params.yaml: decoding.{name}")


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check the parameter file. Raises UserError in one line for anything that is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the repository's root or pass --params") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return parse_params(text, Path(path).name)


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader keeps the last of two equal keys in silence; here the second is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} stands twice in one block; keep one", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_params(text: str, name: str) -> Params:
    """Check the text of a parameter file; `name` is what errors call it."""
    try:
        raw = yaml.load(text, _UniqueKeys)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, a number of thousands of digits
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
