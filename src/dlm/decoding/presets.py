"""The decoders: each a row of parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlm.decoding import commit, plans, propose, windows
from dlm.decoding.options import (
    CategoricalOptions,
    ConvOptions,
    DecoderOptions,
    LowConfidenceOptions,
    SemiArOptions,
    TopKOptions,
)


@dataclass(frozen=True)
class Decoder:
    """The parts that the loop (loop.py) puts together.

    Attributes:
        propose: which token each open position would take.
        commit: which open positions take theirs now.
        window: how much each position may go first.
        plan: (gen_length, steps) -> phases.
        eos_fill, cache: as in DecoderOptions.
    """

    propose: propose.Propose
    commit: commit.Commit
    window: windows.Window
    plan: Callable[[int, int], list[plans.Phase]]
    eos_fill: bool
    cache: bool


def _rule(name: str, top_k: int) -> tuple[propose.Propose, commit.Commit]:
    return {
        "categorical": (propose.categorical, commit.ancestral),
        "top_k": (propose.top_k(top_k), commit.ancestral),
        "low_confidence": (propose.greedy, commit.fixed_count),
    }[name]


def _single(name: str, options: DecoderOptions, top_k: int = 1, window: windows.Window = windows.flat) -> Decoder:
    return Decoder(*_rule(name, top_k), window, plans.whole, options.eos_fill, options.cache)


def _semi_ar(options: SemiArOptions) -> Decoder:
    cut = {"stride": plans.stride, "restrict": plans.restrict}[options.variant]

    def plan(gen_length: int, steps: int) -> list[plans.Phase]:
        return cut(gen_length, steps, options.block_length)

    return Decoder(*_rule(options.rule, options.top_k), windows.flat, plan, options.eos_fill, options.cache)


def _conv(options: ConvOptions) -> Decoder:
    window = windows.conv(options.kernel_size, options.gain, options.conv_mult)
    return _single(options.rule, options, options.top_k, window)


BUILDERS: dict[type[DecoderOptions], Callable[[Any], Decoder]] = {
    CategoricalOptions: lambda options: _single("categorical", options),
    TopKOptions: lambda options: _single("top_k", options, options.top_k),
    LowConfidenceOptions: lambda options: _single("low_confidence", options),
    SemiArOptions: _semi_ar,
    ConvOptions: _conv,
}


def make_decoder(options: DecoderOptions) -> Decoder:
    """The decoder that checked options describe."""
    return BUILDERS[type(options)](options)
