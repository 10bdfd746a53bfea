"""The options of each decoder, as plain dataclasses: what a block `decoding.<name>` of params.yaml may hold.

A decoder is a rule (which token a position would take, which positions commit), and parts that go with any rule: a
window, hard blocks, a repetition penalty, guidance, EOS-fill, caches. `conv`, `semi_ar` and `repetition_penalty` are
names for a rule with such a part switched on.

No torch here: params.yaml is checked before anything heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dlm.config.schema import Count, Natural, NonNegative, Positive, Share, build, dotted, require
from dlm.errors import UserError

Gain = Literal["tanh", "linear", "sigmoid", "step"]
Kernel = Literal["box", "exponential"]
Confidence = Literal["probability", "margin", "entropy", "random"]
RemdmSchedule = Literal["loop", "cap", "rescale", "conf"]


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """Common to all decoders.

    Attributes:
        eos_fill: once a response position holds EOS, everything to its right becomes EOS (paper §B.2).
        eos: free; last: what would take EOS goes behind its row's other positions, whatever its confidence (LLaDA's
            confidence_eos_eot_inf; not for rules that draw tokens late); never: EOS cannot come (logits_eos_inf).
        cache: a step that committed nothing leaves its logits to the next (paper §B.2); exact.
        kernel_size: a Conv window of so many positions (paper §4.1; odd), None for no window.
        kernel: box (the paper's) or exponential: weights exp(-2·distance / reach), reach = kernel_size // 2.
        gain: g of the window's weights g(conv_mult·u), u the committed tokens within the kernel.
        conv_mult: the factor inside g.
        block_length: hard blocks of so many positions from left to right (semi-AR), None for the whole window at once.
        variant: of the blocks: stride (the paper's baseline) or restrict (LLaDA).
        penalty: logits of tokens already on the canvas shrink by this factor (CTRL; paper §4.2); 1 is off.
        cfg_scale: classifier-free guidance w: logits + w·(logits - logits without the context) (LLaDA); 0 is off.
        suffix: masks that cannot commit at this step: full keeps them on the canvas (exact), none leaves them out,
            dropout keeps some near ones (DPad). Both are approximations; they narrow `conv` and `restrict` blocks.
        suffix_window, suffix_scale, suffix_sigma: DPad's W, a and k.
        kv_cache: Fast-dLLM's approximate key-value cache for `restrict` blocks: prefix keeps what stands before the
            block, dual what stands after it too; refreshed at each block.
    """

    eos_fill: bool = False
    eos: Literal["free", "last", "never"] = "free"
    cache: bool = True
    kernel_size: int | None = None
    kernel: Kernel = "box"
    gain: Gain = "tanh"
    conv_mult: Positive = 1.0
    block_length: Count | None = None
    variant: Literal["stride", "restrict"] = "stride"
    penalty: Positive = 1.0
    cfg_scale: NonNegative = 0.0
    suffix: Literal["full", "none", "dropout"] = "full"
    suffix_window: Count = 256
    suffix_scale: NonNegative = 2.0
    suffix_sigma: NonNegative = 4.0
    kv_cache: Literal["none", "prefix", "dual"] = "none"

    def check(self, where: str) -> None:
        odd = self.kernel_size is None or (self.kernel_size >= 1 and self.kernel_size % 2 == 1)
        require(odd, dotted(where, "kernel_size"), "odd and at least 1", self.kernel_size)
        restricted = self.block_length is not None and self.variant == "restrict"
        narrows = self.kernel_size is not None or restricted or isinstance(self, SlidingAnnealingOptions)
        require(
            narrows or self.suffix == "full",
            dotted(where, "suffix"),
            "full where every mask may commit (it goes with kernel_size, or block_length and variant: restrict)",
            self.suffix,
        )
        unknown = self.eos == "last" and isinstance(self, CategoricalOptions | FirstHittingOptions | TweedieOptions)
        require(not unknown, dotted(where, "eos"), "free or never where tokens are drawn only to commit", self.eos)
        plain = self.suffix == "full" and not self.cfg_scale
        require(
            self.kv_cache == "none" or (restricted and plain),
            dotted(where, "kv_cache"),
            "none without block_length and variant: restrict, and with suffix or cfg_scale",
            self.kv_cache,
        )

    def check_lengths(self, gen_length: int, steps: int, where: str) -> None:
        """Refuse a window or a number of steps this decoder cannot divide."""
        if self.block_length is None:
            return
        if gen_length % self.block_length:
            raise UserError(
                f"{dotted(where, 'block_length')} must divide gen_length ({gen_length}), got {self.block_length}"
            )
        blocks = gen_length // self.block_length
        if steps % blocks:
            raise UserError(
                f"{where}: steps must be a multiple of the {blocks} blocks "
                f"(gen_length {gen_length} / block_length {self.block_length}), got {steps}"
            )

    def check_infilling(self, where: str) -> None:
        """Refuse what supposes that the response goes from left to right and nothing stands behind it."""
        require(not self.eos_fill, dotted(where, "eos_fill"), "false where context stands on the right", True)
        require(
            self.block_length is None,
            dotted(where, "block_length"),
            "null for infilling (blocks go from left to right; conv needs none)",
            self.block_length,
        )


@dataclass(frozen=True, kw_only=True)
class CategoricalOptions(DecoderOptions):
    """Ancestral sampling over the whole vocabulary (MDLM; paper Eq. 4)."""


@dataclass(frozen=True, kw_only=True)
class TweedieOptions(DecoderOptions):
    """Tokens by their scores, as many as the scores' sums ask for (SEDD's Tweedie sampler); softmax: `categorical`.

    Attributes:
        score_offset: what a position's logits exceed the logarithms of its scores by, whose sum is 1 where the model is
            right; None for what the checkpoint says, and for a softmax, whose sum is always 1, where it says nothing.
    """

    score_offset: float | None = None


@dataclass(frozen=True, kw_only=True)
class TopKOptions(DecoderOptions):
    """The k best candidates per position, one global rescaling (paper §A.3).

    Attributes:
        top_k: k, how many candidates each position keeps.
    """

    top_k: Count = 20


@dataclass(frozen=True, kw_only=True)
class LowConfidenceOptions(DecoderOptions):
    """A fixed number of positions a step, the most confident first (LLaDA; Dream's margin and entropy).

    Attributes:
        confidence: what ranks: the token's probability, the margin over the second, the negative entropy, or chance.
        temperature: 0 takes the best token; above it the token is drawn from p^(1/temperature).
        tempered: whether the confidence is that of p^(1/temperature), as in Dream, and not of p.
        count: how many commit: llada, ceil(masks left / steps left); dream, int(masks left·(1 - s/t)), all at the last
            step.
        ranking_temperature: 0 takes the most confident; above it positions are drawn without replacement in proportion
            to exp(confidence / ranking_temperature) (Dream's alg_temp; its confidence for entropy is -H).
    """

    confidence: Confidence = "probability"
    temperature: NonNegative = 0.0
    tempered: bool = False
    count: Literal["llada", "dream"] = "llada"
    ranking_temperature: NonNegative = 0.0


@dataclass(frozen=True, kw_only=True)
class ThresholdOptions(DecoderOptions):
    """Every position whose best token passes a confidence, at least the schedule's number (Fast-dLLM).

    Attributes:
        threshold: the probability from which a position commits.
    """

    threshold: Share = 0.9


@dataclass(frozen=True, kw_only=True)
class FactorOptions(DecoderOptions):
    """The n most confident positions with (n + 1)(1 - confidence of the n-th) < factor (Fast-dLLM).

    Attributes:
        factor: f of the rule; the larger it is, the more positions commit at a step.
    """

    factor: Positive = 1.0


@dataclass(frozen=True, kw_only=True)
class KlassOptions(DecoderOptions):
    """Every sure position whose distribution has come to rest, at least the schedule's number (KLASS).

    Attributes:
        threshold: the probability above which a position may commit (0.9 in the authors' function; 0.6 in their script
            for LLaDA on GSM8K).
        kl_threshold: how many nats the distribution may have moved by, at most, from one pass to the next.
        history: over how many passes in a row.
    """

    threshold: Share = 0.9
    kl_threshold: Positive = 0.01
    history: Count = 2


@dataclass(frozen=True, kw_only=True)
class CreditOptions(DecoderOptions):
    """`threshold` over logits that favour the tokens which earlier passes preferred (CreditDecoding).

    Attributes:
        threshold: the probability, credit included, from which a position commits.
        strength: the factor of log(1 + credit) that is added to the logits; 0 is `threshold`.
        power: a pass gives its likeliest token its probability to this power; below 1 the unsure passes count for more.
        decay: what is left of a credit after a pass.
    """

    threshold: Share = 0.9
    strength: NonNegative = 0.7
    power: NonNegative = 0.2
    decay: Share = 0.8


@dataclass(frozen=True, kw_only=True)
class FirstHittingOptions(DecoderOptions):
    """One position a step, chosen at random, sampled from the whole vocabulary (Zheng et al.; bd3lms).

    Exact ancestral sampling in as many steps as tokens; with fewer steps several positions share one.
    """


@dataclass(frozen=True, kw_only=True)
class RemdmOptions(TopKOptions):
    """ReMDM (Wang et al. 2025): `top_k` whose committed tokens may be masked again; kernel_size adds Conv.

    Attributes:
        schedule: loop, cap, rescale or conf.
        eta: how often a committed token is masked again (not for conf).
        t_on, t_off, alpha_on: the loop runs from t_on down to t_off at a constant alpha_on.
    """

    schedule: RemdmSchedule = "loop"
    eta: Share = 0.04
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def check(self, where: str) -> None:
        TopKOptions.check(self, where)
        require(0 < self.t_on < 1, dotted(where, "t_on"), "between 0 and 1", self.t_on)
        require(0 < self.t_off < self.t_on, dotted(where, "t_off"), f"above 0, below t_on ({self.t_on})", self.t_off)
        require(0 < self.alpha_on < 1, dotted(where, "alpha_on"), "between 0 and 1", self.alpha_on)
        most = (1 - self.alpha_on) / self.alpha_on
        require(
            self.schedule != "loop" or self.eta <= most,
            dotted(where, "eta"),
            f"at most {most:.4g} ((1 - alpha_on) / alpha_on)",
            self.eta,
        )


@dataclass(frozen=True, kw_only=True)
class SlidingAnnealingOptions(TopKOptions):
    """Every step commits the next gen_length / steps positions, and samples the `reach` behind them (paper §E.1.1).

    Attributes:
        reach: how many positions behind those that must commit may do so too.
    """

    reach: Natural = 32

    def check(self, where: str) -> None:
        TopKOptions.check(self, where)
        for name in ("kernel_size", "block_length"):
            value = getattr(self, name)
            require(value is None, dotted(where, name), "null: sliding_annealing is a window of its own", value)

    def check_infilling(self, where: str) -> None:
        raise UserError(f"{where}: sliding_annealing goes from left to right and cannot fill gaps; conv can")


@dataclass(frozen=True, kw_only=True)
class WinoOptions(DecoderOptions):
    """Commits above a low bar, and takes back what a mask in its place finds improbable (WINO).

    A pass runs over the canvas and as many masks again as the block has positions; it counts as one.

    Attributes:
        threshold: the probability above which a position commits.
        verify_threshold: the probability below which a token is masked again.
        max_share: at most this share of the masks commits at a step (5 at least), unless the schedule asks for more.
        max_per_step: and at most so many.
    """

    threshold: Share = 0.6
    verify_threshold: Share = 0.9
    max_share: Share = 0.7
    max_per_step: Count = 20

    def check(self, where: str) -> None:
        DecoderOptions.check(self, where)
        for name, value, needed in (("suffix", self.suffix, "full"), ("kv_cache", self.kv_cache, "none")):
            require(value == needed, dotted(where, name), f"{needed} for wino, whose pass has masks of its own", value)


@dataclass(frozen=True, kw_only=True)
class P2Options(DecoderOptions):
    """Every step ranks all positions, masked or not, and masks the lowest again: path planning (P2).

    Attributes:
        planner: what ranks: self, log p of the candidate or of the token that stands there; or random.
        eta: a factor of the log p of tokens; above 1 they go back more easily, at 0 never.
        temperature: candidates are drawn from p^(1/temperature); 0 takes the best.
    """

    planner: Literal["self", "random"] = "self"
    eta: NonNegative = 1.0
    temperature: NonNegative = 1.0


@dataclass(frozen=True, kw_only=True)
class EntropyBoundedOptions(DecoderOptions):
    """The positions of least entropy H whose sum of H, without the largest, stays within gamma (EB-Sampler).

    Attributes:
        gamma: the bound in nats; 0 commits one position a step, the larger it is, the more.
        max_per_step: at most so many positions commit at a step, unless the schedule asks for more; None for no cap.
    """

    gamma: NonNegative = 0.1
    max_per_step: Count | None = None


@dataclass(frozen=True, kw_only=True)
class FrechetOptions(DecoderOptions):
    """The n most confident positions that no other choice can beat, by all n confidences (Fast-dLLM++; see `factor`).

    Attributes:
        margin: by how much the bound on their joint probability must exceed that of any rival; smaller commits more.
        max_per_step: at most so many positions commit at a step, unless the schedule asks for more; None for no cap.
    """

    margin: Share = 0.25
    max_per_step: Count | None = None


@dataclass(frozen=True, kw_only=True)
class PcSamplerOptions(DecoderOptions):
    """A fixed number of positions a step: the surest of them that say something, the leftmost first (PC-Sampler).

    Attributes:
        decay: a position's score counts exp(-decay) times as much as that of the position before it; 0 is off.
        clip: the largest score before the position counts, in nats.
        background: a JSON file with `token_counts`, how often each id occurs in a corpus (the pipeline's is
            build/data/training/vocabulary.json): frequent tokens score less. None for confidence alone.
    """

    decay: NonNegative = 0.25
    clip: Positive = 10.0
    background: str | None = None


@dataclass(frozen=True, kw_only=True)
class CertaintyPriorOptions(DecoderOptions):
    """A fixed number of positions a step, by confidence times the share of known tokens around (d2Cache).

    Attributes:
        sigma: standard deviation of the Gaussian that counts the tokens around, in positions; a small one goes from
            left to right, a large one anywhere.
    """

    sigma: Positive = 10.0

    def check(self, where: str) -> None:
        super().check(where)
        require(self.sigma <= 1000, dotted(where, "sigma"), "at most 1000 positions", self.sigma)


@dataclass(frozen=True, kw_only=True)
class ProphetOptions(DecoderOptions):
    """As `low_confidence`, but all that is left commits once the best tokens are far ahead of the second (Prophet).

    Attributes:
        early, middle, late: the mean distance of the two best logits over a row's open positions from which it ends, in
            nats: in the first third of the steps, in the second, in the last.
    """

    early: NonNegative = 7.5
    middle: NonNegative = 5.0
    late: NonNegative = 2.5


RULES: dict[str, type[DecoderOptions]] = {
    "categorical": CategoricalOptions,
    "top_k": TopKOptions,
    "low_confidence": LowConfidenceOptions,
    "threshold": ThresholdOptions,
    "factor": FactorOptions,
    "first_hitting": FirstHittingOptions,
    "remdm": RemdmOptions,
    "sliding_annealing": SlidingAnnealingOptions,
    "klass": KlassOptions,
    "credit": CreditOptions,
    "wino": WinoOptions,
    "p2": P2Options,
    "entropy_bounded": EntropyBoundedOptions,
    "frechet": FrechetOptions,
    "pc_sampler": PcSamplerOptions,
    "certainty_prior": CertaintyPriorOptions,
    "prophet": ProphetOptions,
    "tweedie": TweedieOptions,
}


@dataclass(frozen=True)
class Preset:
    """A name for a rule (top_k unless the block says otherwise) with some options that have other defaults."""

    summary: str
    options: dict[str, Any]
    rule: str = "top_k"


PRESETS: dict[str, Preset] = {
    "conv": Preset("A soft window around what is decoded, over any rule (paper §4.1).", {"kernel_size": 33}),
    "semi_ar": Preset("Hard blocks from left to right, over any rule (LLaDA; stride).", {"block_length": 32}),
    "repetition_penalty": Preset("Tokens on the canvas become less likely (CTRL; paper §4.2).", {"penalty": 1.2}),
}
DECODERS = (*RULES, *PRESETS)


def decoder_options(name: str, block: Any, where: str) -> DecoderOptions:
    """Check a decoder's options. A block may name its `decoder`; otherwise the block's own name is the decoder's.

    Raises:
        UserError: an unknown decoder or option, or an impossible value.
    """
    if block is not None and not isinstance(block, dict):
        raise UserError(f"{where} must be a block of options, got {block!r}")
    options = {str(key): value for key, value in (block or {}).items()}
    decoder = options.pop("decoder", name)
    if not isinstance(decoder, str) or decoder not in DECODERS:
        raise UserError(f"{where}: {decoder!r} is not a decoder; known: {', '.join(DECODERS)}")
    if decoder not in PRESETS:
        return build(RULES[decoder], options, where)
    preset = PRESETS[decoder]
    rule = options.pop("rule", preset.rule)
    if not isinstance(rule, str) or rule not in RULES:
        raise UserError(f"{dotted(where, 'rule')} must be one of {', '.join(RULES)}, got {rule!r}")
    for key, value in preset.options.items():
        require(options.get(key, value) is not None, dotted(where, key), f"given for {decoder}", None)
    if "top_k" not in RULES[rule].__dataclass_fields__:
        options.pop("top_k", None)  # so that changing a block's rule alone is enough
    return build(RULES[rule], {**preset.options, **options}, where)


def default_options(changes: Mapping[str, Any], *, infill: bool = False) -> DecoderOptions:
    """What the command line and the library decode with where no decoder is named: `conv` over `low_confidence`, with
    EOS-fill unless there are gaps. On validation prompts it wrote the best answers (docs/generate.md).

    Raises:
        UserError: as `decoder_options`; top_k without its rule, which this is not.
    """
    require("top_k" not in changes or "rule" in changes, "conv.top_k", "given with rule: top_k", changes.get("top_k"))
    return decoder_options("conv", {"rule": "low_confidence", "eos_fill": not infill, **changes}, "conv")


def in_blocks(options: DecoderOptions, block_size: int, where: str) -> DecoderOptions:
    """The same decoder for a block-causal model: inside its blocks of `block_size` positions, one after the other. 0 is
    any other model, for which nothing changes.

    Raises:
        UserError: blocks of another size or kind, a window of its own, or an approximation that leaves out what such a
            model does not see, or keeps what it keeps exactly.
    """
    if not block_size:
        return options
    own = f"for this model, which has blocks of {block_size}"
    sliding = isinstance(options, SlidingAnnealingOptions)
    require(not sliding, f"{where}: decoder", f"another {own}", "sliding_annealing")
    given = options.block_length
    same = given is None or (given == block_size and options.variant == "restrict")
    told = f"{block_size} with variant restrict, or left out, {own}"
    require(same, dotted(where, "block_length"), told, given if given != block_size else options.variant)
    for name, exact in (("suffix", "full"), ("kv_cache", "none")):
        value = getattr(options, name)
        require(
            value == exact, dotted(where, name), f"{exact} {own} and an exact cache (docs/block-diffusion.md)", value
        )
    return override(options, where, block_length=block_size, variant="restrict")


def override(options: DecoderOptions, where: str, **changes: Any) -> DecoderOptions:
    """The same decoder with some options changed, checked again."""
    return build(type(options), {**asdict(options), **changes}, where)
