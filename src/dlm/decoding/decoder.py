"""The decoders: each a row of parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dlm.decoding import commit, credit, klass, plans, propose, revise, schedules, windows
from dlm.decoding.background import read_background
from dlm.decoding.commit import Commit, Revoke
from dlm.decoding.history import Lookback
from dlm.decoding.options import (
    CategoricalOptions,
    CertaintyPriorOptions,
    CreditOptions,
    DecoderOptions,
    EntropyBoundedOptions,
    FactorOptions,
    FirstHittingOptions,
    FrechetOptions,
    KlassOptions,
    LowConfidenceOptions,
    P2Options,
    PcSamplerOptions,
    ProphetOptions,
    RemdmOptions,
    SlidingAnnealingOptions,
    ThresholdOptions,
    TopKOptions,
    TweedieOptions,
    WinoOptions,
)
from dlm.decoding.plans import Plan
from dlm.decoding.propose import Propose
from dlm.decoding.revise import Revise
from dlm.decoding.schedules import Schedule
from dlm.decoding.windows import Window


@dataclass(frozen=True)
class Rule:
    """What tells one decoder from another.

    Attributes:
        propose: which token each open position would take.
        commit: which open positions take theirs now.
        schedule: how much is committed, and masked again, at each step.
        revoke: how probable it is for each committed token to be masked again, None for never.
        plan: (gen_length, steps) -> phases.
        revise: decides in place of `commit` and `revoke`, from this pass, what commits and what is masked again.
        shadow: whether `revise` judges each token by a mask in its place (Denoiser.hidden_with_shadow), not by itself.
        lookback: what of earlier passes it reads (history.py), None for nothing.
        window: its own, to which Conv's is added.
    """

    propose: Propose
    commit: Commit
    schedule: Schedule = schedules.log_linear
    revoke: Revoke | None = None
    plan: Plan = plans.whole
    revise: Revise | None = None
    shadow: bool = False
    lookback: Lookback | None = None
    window: Window = windows.flat


@dataclass(frozen=True)
class Decoder:
    """The parts that the loop (loop.py) puts together: a rule, its window, and what any rule can be given.

    `options` are read for what is a number or a switch (penalty, guidance, suffix, EOS-fill, caches).
    """

    rule: Rule
    window: Window
    options: DecoderOptions


def _remdm(options: RemdmOptions) -> Rule:
    schedule = {
        "loop": schedules.remdm_loop(options.eta, options.t_on, options.t_off, options.alpha_on),
        "cap": schedules.remdm_cap(options.eta),
        "rescale": schedules.remdm_rescale(options.eta),
        "conf": schedules.remdm_conf,
    }[options.schedule]
    revoke = commit.by_confidence if options.schedule == "conf" else commit.uniformly
    return Rule(propose.top_k(options.top_k), commit.ancestral, schedule, revoke)


def _low_confidence(options: LowConfidenceOptions) -> Rule:
    chosen: Commit = commit.at_random if options.confidence == "random" else commit.fixed_count
    if options.ranking_temperature and options.confidence != "random":
        chosen = commit.tempered(options.ranking_temperature, log=options.confidence == "entropy")
    schedule = {"llada": schedules.log_linear, "dream": schedules.dream}[options.count]
    return Rule(propose.single(options.confidence, options.temperature, options.tempered), chosen, schedule)


def _klass(options: KlassOptions) -> Rule:
    offer = klass.propose(options.threshold, options.kl_threshold, options.history)
    return Rule(offer, klass.commit(options.threshold), lookback=Lookback(passes=options.history))


def _credit(options: CreditOptions) -> Rule:
    offer = credit.propose(options.strength, options.power, options.decay)
    return Rule(offer, commit.threshold(options.threshold), lookback=Lookback(votes=True))


def _wino(options: WinoOptions) -> Rule:
    decide = revise.wino(options.threshold, options.verify_threshold, options.max_share, options.max_per_step)
    return Rule(propose.greedy, commit.threshold(options.threshold), revise=decide, shadow=True)


def _p2(options: P2Options) -> Rule:
    decide = revise.p2(options.eta, at_random=options.planner == "random")
    return Rule(
        propose.single("probability", options.temperature), commit.fixed_count, schedules.overall, revise=decide
    )


BUILDERS: dict[type[DecoderOptions], Callable[[Any], Rule]] = {
    CategoricalOptions: lambda options: Rule(propose.categorical, commit.ancestral),
    TopKOptions: lambda options: Rule(propose.top_k(options.top_k), commit.ancestral),
    LowConfidenceOptions: _low_confidence,
    ThresholdOptions: lambda options: Rule(propose.greedy, commit.threshold(options.threshold)),
    FactorOptions: lambda options: Rule(propose.greedy, commit.factor(options.factor)),
    FirstHittingOptions: lambda options: Rule(propose.categorical, commit.at_random),
    RemdmOptions: _remdm,
    SlidingAnnealingOptions: lambda options: Rule(
        propose.top_k(options.top_k), commit.ancestral, plan=partial(plans.sliding, reach=options.reach)
    ),
    KlassOptions: _klass,
    CreditOptions: _credit,
    WinoOptions: _wino,
    P2Options: _p2,
    EntropyBoundedOptions: lambda options: Rule(
        propose.single("entropy", 0.0), commit.entropy_bounded(options.gamma, options.max_per_step)
    ),
    FrechetOptions: lambda options: Rule(propose.greedy, commit.frechet(options.margin, options.max_per_step)),
    PcSamplerOptions: lambda options: Rule(
        propose.calibrated(read_background(options.background), options.clip), commit.left_first(options.decay)
    ),
    CertaintyPriorOptions: lambda options: Rule(
        propose.greedy, commit.fixed_count, window=windows.certainty(options.sigma)
    ),
    ProphetOptions: lambda options: Rule(
        propose.ahead, commit.prophet, schedules.prophet(options.early, options.middle, options.late)
    ),
    TweedieOptions: lambda options: Rule(propose.scores(options.score_offset), commit.tweedie),
}


def make_decoder(options: DecoderOptions) -> Decoder:
    """The decoder that checked options describe."""
    rule = BUILDERS[type(options)](options)
    if options.block_length is not None:
        cut = {"stride": plans.stride, "restrict": plans.restrict}[options.variant]
        rule = replace(rule, plan=partial(cut, block_length=options.block_length))
    window = rule.window
    if options.kernel_size is not None:
        window = windows.both(
            window, windows.conv(options.kernel_size, options.gain, options.conv_mult, options.kernel)
        )
    return Decoder(rule, window, options)
