"""One entry a decoder: the settings that every test of decoders goes through, and what tells its slow twin from others.

The tests that read it: test_decoding_rules.py (token for token against slow.py), test_invariance.py, test_memory.py,
test_synchronisation.py and test_gpu.py (a row alone and in a batch), test_decoding_properties.py (drawn at random).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Options = dict[str, Any]
Case = tuple[str, Options, int, int]  # a decoder's name, its options, gen_length, steps

LOOP = {"schedule": "loop", "eta": 0.1, "t_on": 0.6, "t_off": 0.2, "alpha_on": 0.7}
WINO = {"threshold": 0.1, "verify_threshold": 0.9, "max_share": 0.7, "max_per_step": 20}
CONFIDENCES = ("probability", "margin", "entropy", "random")
GAINS = ("tanh", "linear", "sigmoid", "step")


def as_they_are(options: Options, position: int, confidence: float) -> float:
    return confidence


def none_more(options: Options, scores: list[float]) -> int:
    return 0


@dataclass(frozen=True)
class Decoder:
    """What is tested of one decoder.

    Attributes:
        compared: (options, gen_length, steps) decoded token for token as slow.py does.
        apart: (options, change): the change must show in an answer, or the comparison would hold for a rule that does
            nothing.
        invariant: options with which a row's answer must not depend on its batch.
        draws: values of each option that the random tests take.
        confidence: what the rule's confidence is where no option says: probability or entropy.
        ranks: slow: (options, position, confidence) -> what a rule that commits the surest positions ranks them by.
        by_hand: (options, the confidences of all of a row's masks from the first position on, steps left, the positions
            that a rule which ranks commits), worked out by hand.
        passing: slow: (options, scores from the best on) -> how many such a rule commits whatever the schedule says.
    """

    compared: tuple[tuple[Options, int, int], ...] = ()
    apart: tuple[tuple[Options, Options], ...] = ()
    invariant: tuple[Options, ...] = ()
    draws: dict[str, list[Any]] = field(default_factory=dict)
    by_hand: tuple[tuple[Options, list[float], int, list[int]], ...] = ()
    confidence: str = "probability"
    ranks: Callable[[Options, int, float], float] = as_they_are
    passing: Callable[[Options, list[float]], int] = none_more


def above_threshold(options: Options, scores: list[float]) -> int:
    return sum(score >= options["threshold"] for score in scores)


def within_factor(options: Options, scores: list[float]) -> int:
    count = 0
    while count < len(scores) and (count + 2) * (1 - scores[count]) < options["factor"]:
        count += 1
    return count


def within_entropy(options: Options, scores: list[float]) -> int:
    """The largest n whose entropies, -log of the scores, add up to at most gamma without their largest."""
    entropies = [-math.log(score) for score in scores]
    fits = [n for n in range(1, len(scores) + 1) if sum(entropies[:n]) - max(entropies[:n]) <= options["gamma"]]
    return min(max(fits, default=0), options.get("max_per_step") or len(scores))


def within_frechet(options: Options, scores: list[float]) -> int:
    """The largest n whose bound on all n being right exceeds what any other choice can have by the margin."""
    count = 0
    for n in range(1, len(scores) + 1):
        if sum(scores[:n]) - (n - 1) - (1 - scores[n - 1]) > options["margin"]:
            count = n
    return min(count, options.get("max_per_step") or len(scores))


DECODERS: dict[str, Decoder] = {
    "categorical": Decoder(
        compared=(({"cfg_scale": 1.5}, 10, 4),),
        invariant=({}, {"cfg_scale": 1.0}),
    ),
    "top_k": Decoder(
        compared=(({"top_k": 5, "cfg_scale": 0.5}, 6, 14),),
        invariant=({"top_k": 5}, {"top_k": 5, "eos": "last"}),
        draws={"top_k": [1, 2, 3, 99]},
    ),
    "low_confidence": Decoder(
        compared=(
            *(({"confidence": name}, 10, 4) for name in CONFIDENCES[1:]),
            *(({"confidence": name, "temperature": 0.7}, 10, 4) for name in CONFIDENCES),
            ({"temperature": 2.0}, 6, 14),
            ({"cfg_scale": 2.0, "confidence": "entropy"}, 10, 10),
            *(({"confidence": name, "temperature": 0.7, "tempered": True}, 10, 4) for name in CONFIDENCES),
            ({"count": "dream"}, 10, 4),
            ({"count": "dream", "confidence": "entropy", "kernel_size": 5}, 6, 14),
            *(({"confidence": name, "ranking_temperature": 0.3}, 10, 4) for name in CONFIDENCES),
            ({"ranking_temperature": 0.1, "kernel_size": 5, "conv_mult": 0.3, "count": "dream"}, 10, 4),
        ),
        apart=(
            *(({}, {"confidence": name}) for name in CONFIDENCES[1:]),
            ({}, {"temperature": 0.7}),
            ({"temperature": 0.3}, {"tempered": True}),
            ({}, {"count": "dream"}),
            ({}, {"ranking_temperature": 0.3}),
            ({"confidence": "entropy"}, {"ranking_temperature": 0.3}),
            ({}, {"penalty": 1.5}),
            ({"penalty": 2.0}, {"penalty": 0.5}),
            ({}, {"cfg_scale": 1.0}),
            ({"kernel_size": 7, "conv_mult": 0.2}, {"kernel": "exponential"}),
        ),
        invariant=(
            {},
            {"confidence": "margin", "temperature": 0.7},
            {"confidence": "random"},
            {
                "confidence": "entropy",
                "temperature": 0.7,
                "tempered": True,
                "ranking_temperature": 0.4,
                "count": "dream",
            },
            {"eos": "last"},
        ),
        draws={
            "confidence": list(CONFIDENCES),
            "temperature": [0.0, 0.7],
            "tempered": [False, True],
            "count": ["llada", "dream"],
            "ranking_temperature": [0.0, 0.0, 0.4],
        },
        by_hand=(
            ({}, [0.5, 0.6, 0.9], 2, [1, 2]),  # ceil(3/2) = 2
            ({}, [0.5, 0.6, 0.9], 3, [2]),  # ceil(3/3) = 1
            # e^(p / 0.1) in proportion e^5 : e^6 : e^9, all with the same noise: the order is that of p.
            ({"ranking_temperature": 0.1}, [0.5, 0.6, 0.9], 2, [1, 2]),
        ),
    ),
    "threshold": Decoder(
        compared=tuple(({"threshold": bar}, *size) for bar, size in ((0.2, (10, 10)), (0.5, (10, 4)), (0.0, (6, 3)))),
        apart=(({"threshold": 0.5}, {"threshold": 0.2}),),
        invariant=({"threshold": 0.3},),
        draws={"threshold": [0.0, 0.3, 0.6]},
        by_hand=(({"threshold": 0.55}, [0.5, 0.6, 0.9], 3, [1, 2]), ({"threshold": 0.95}, [0.5, 0.6, 0.9], 3, [2])),
        passing=above_threshold,
    ),
    "factor": Decoder(
        compared=(*(({"factor": bound}, 10, 10) for bound in (0.5, 2.0, 3.0)), ({"factor": 2.0}, 10, 4)),
        apart=(({"factor": 0.5}, {"factor": 2.0}),),
        invariant=({"factor": 1.5},),
        draws={"factor": [0.5, 1.5, 3.0]},
        # (n + 1)(1 - p): 2·0.1 = 0.2, 3·0.4 = 1.2, 4·0.5 = 2.
        by_hand=(({"factor": 1.0}, [0.5, 0.6, 0.9], 3, [2]), ({"factor": 1.3}, [0.5, 0.6, 0.9], 3, [1, 2])),
        passing=within_factor,
    ),
    "first_hitting": Decoder(compared=(({}, 8, 8), ({}, 10, 4)), invariant=({},)),
    "remdm": Decoder(
        compared=(
            ({"top_k": 5, **LOOP}, 8, 20),
            ({"top_k": 5, **LOOP}, 10, 3),
            *(({"top_k": 5, "schedule": schedule, "eta": 0.3}, 8, 12) for schedule in ("cap", "rescale", "conf")),
            ({"top_k": 1000, "schedule": "rescale", "eta": 1.0}, 8, 12),
            ({"top_k": 5, "kernel_size": 5, **LOOP}, 8, 20),
            *(
                ({"top_k": 5, "kernel_size": 5, "conv_mult": 0.4, "schedule": schedule, "eta": 0.3}, 8, 12)
                for schedule in ("cap", "rescale", "conf")
            ),
            ({"top_k": 5, "cfg_scale": 1.0, "penalty": 2.0, "schedule": "cap", "eta": 0.3}, 8, 8),
        ),
        apart=(
            ({"schedule": "cap", "eta": 0.0}, {"eta": 0.3}),
            ({"schedule": "cap", "eta": 0.3}, {"schedule": "rescale"}),
            ({"schedule": "cap", "eta": 0.3}, {"schedule": "conf"}),
            ({"schedule": "cap", "eta": 0.1}, LOOP),
            (LOOP, {"eta": 0.3}),
        ),
        invariant=tuple({"top_k": 5, "schedule": name, "eta": 0.1} for name in ("loop", "cap", "rescale", "conf")),
        draws={"top_k": [1, 3], "schedule": ["loop", "cap", "rescale", "conf"], "eta": [0.1, 0.05]},
    ),
    "sliding_annealing": Decoder(
        compared=(*(({"top_k": 5, "reach": reach}, 10, 4) for reach in (0, 3, 99)), ({"top_k": 1, "reach": 2}, 6, 14)),
        apart=(({"reach": 0}, {"reach": 3}),),
        invariant=({"top_k": 5, "reach": 4},),
        draws={"top_k": [1, 3], "reach": [0, 2, 99]},
    ),
    "klass": Decoder(
        compared=(
            ({"threshold": 0.2, "kl_threshold": 0.5, "history": 1}, 10, 10),
            ({"threshold": 0.2, "kl_threshold": 2.0, "history": 2}, 10, 10),
            ({"threshold": 0.0, "kl_threshold": 1.0, "history": 1, "cfg_scale": 1.0}, 10, 4),
            ({"threshold": 0.1, "kl_threshold": 99.0, "history": 3, "eos": "last"}, 10, 10),
            ({"threshold": 0.2, "kl_threshold": 1.0, "history": 1, "penalty": 2.0}, 10, 10),
            ({"threshold": 0.1, "kl_threshold": 2.0, "history": 1, "block_length": 5, "variant": "stride"}, 10, 8),
            ({"threshold": 0.1, "kl_threshold": 2.0, "history": 1, "block_length": 5, "variant": "restrict"}, 10, 8),
        ),
        apart=(
            ({"threshold": 0.1, "kl_threshold": 0.2, "history": 1}, {"threshold": 0.5}),
            ({"threshold": 0.1, "kl_threshold": 0.2, "history": 1}, {"kl_threshold": 5.0}),
            ({"threshold": 0.1, "kl_threshold": 5.0, "history": 1}, {"history": 3}),
        ),
        invariant=({"threshold": 0.1, "kl_threshold": 1.0, "history": 1},),
        draws={"threshold": [0.0, 0.3], "kl_threshold": [0.1, 1.0, 99.0], "history": [1, 2]},
    ),
    "credit": Decoder(
        compared=(
            ({"threshold": 0.5, "strength": 2.0, "power": 0.5, "decay": 0.8}, 10, 10),
            ({"threshold": 0.4, "strength": 5.0, "power": 0.0, "decay": 1.0, "eos": "last"}, 10, 10),
            ({"threshold": 0.9, "strength": 3.0, "power": 1.0, "decay": 0.0, "cfg_scale": 1.0}, 10, 4),
            ({"threshold": 0.6, "strength": 4.0, "power": 0.2, "decay": 0.9, "penalty": 1.5}, 6, 14),
            *(
                (
                    {"threshold": 0.6, "strength": 4.0, "power": 0.2, "decay": 0.9, "block_length": 5, "variant": cut},
                    10,
                    8,
                )
                for cut in ("stride", "restrict")
            ),
        ),
        apart=(
            ({"threshold": 0.6, "strength": 0.0}, {"strength": 4.0}),
            ({"threshold": 0.8, "strength": 4.0, "power": 0.0}, {"power": 2.0}),
            ({"threshold": 0.8, "strength": 4.0, "decay": 0.0}, {"decay": 1.0}),
            ({"threshold": 0.6, "strength": 4.0}, {"threshold": 0.95}),
        ),
        invariant=({"threshold": 0.6, "strength": 4.0},),
        draws={"threshold": [0.3, 0.9], "strength": [0.0, 0.7, 5.0], "power": [0.0, 0.2], "decay": [0.0, 0.8, 1.0]},
        passing=above_threshold,
    ),
    "wino": Decoder(
        compared=(
            ({**WINO, "verify_threshold": 0.5}, 10, 10),
            ({**WINO, "verify_threshold": 1.0}, 12, 8),
            ({**WINO, "threshold": 0.0, "max_per_step": 3}, 12, 12),
            ({**WINO, "verify_threshold": 0.6, "cfg_scale": 1.0, "penalty": 1.5}, 10, 10),
            ({**WINO, "verify_threshold": 0.6, "eos": "last"}, 10, 10),
            *(({**WINO, "block_length": 6, "variant": cut}, 12, 12) for cut in ("stride", "restrict")),
        ),
        apart=(
            (WINO, {"threshold": 0.6}),
            (WINO, {"verify_threshold": 0.0}),
            ({**WINO, "threshold": 0.0}, {"max_per_step": 1}),
            ({**WINO, "threshold": 0.0}, {"max_share": 1.0}),
        ),
        invariant=({**WINO, "verify_threshold": 0.6},),
        draws={
            "threshold": [0.0, 0.2],
            "verify_threshold": [0.3, 0.9],
            "max_share": [0.2, 0.7],
            "max_per_step": [1, 3, 20],
        },
    ),
    "p2": Decoder(
        compared=(
            ({"eta": 1.0, "temperature": 0.0}, 10, 10),
            ({"eta": 1.0, "temperature": 0.7}, 10, 4),
            ({"eta": 2.0, "temperature": 1.0}, 6, 14),
            ({"eta": 0.0, "temperature": 0.0}, 10, 10),
            ({"eta": 1.0, "temperature": 1.0, "planner": "random"}, 10, 10),
            ({"eta": 1.5, "temperature": 0.0, "cfg_scale": 1.0, "penalty": 1.5}, 10, 10),
            ({"eta": 1.5, "temperature": 0.0, "eos": "last"}, 10, 10),
            *(
                ({"eta": 1.5, "temperature": 0.0, "block_length": 5, "variant": cut}, 10, 10)
                for cut in ("stride", "restrict")
            ),
        ),
        apart=(
            ({"temperature": 0.0}, {"eta": 0.0}),
            ({"temperature": 0.0}, {"temperature": 1.0}),
            ({"temperature": 0.0}, {"planner": "random"}),
        ),
        invariant=({}, {"eta": 2.0, "planner": "random"}),
        draws={"eta": [0.0, 1.0, 3.0], "temperature": [0.0, 1.0], "planner": ["self", "random"]},
    ),
    "entropy_bounded": Decoder(
        compared=(
            *(({"gamma": gamma}, 10, 10) for gamma in (3.0, 0.5, 9.0)),
            ({"gamma": 5.0}, 10, 4),
            ({"gamma": 9.0, "max_per_step": 2}, 10, 10),
        ),
        apart=(({"gamma": 0.5}, {"gamma": 9.0}), ({"gamma": 9.0}, {"max_per_step": 1})),
        invariant=({"gamma": 4.0}, {"gamma": 9.0, "max_per_step": 3}),
        draws={"gamma": [0.0, 0.7, 2.5], "max_per_step": [None, None, 2]},
        confidence="entropy",
        # -ln of .9 .6 .5: .105, .511, .693. Without its largest: of one 0, of two .105, of three .616.
        by_hand=(
            ({"gamma": 0.0}, [0.5, 0.6, 0.9], 3, [2]),
            ({"gamma": 0.2}, [0.5, 0.6, 0.9], 3, [1, 2]),
            ({"gamma": 0.62}, [0.5, 0.6, 0.9], 3, [0, 1, 2]),
            ({"gamma": 0.62, "max_per_step": 2}, [0.5, 0.6, 0.9], 3, [1, 2]),
            ({"gamma": 0.0, "max_per_step": 1}, [0.5, 0.6, 0.9], 2, [1, 2]),  # the schedule's two
        ),
        passing=within_entropy,
    ),
    "frechet": Decoder(
        # Guidance makes the tiny model sure enough for some to pass.
        compared=(
            *(({"margin": margin, "cfg_scale": 1.0}, 10, 10) for margin in (0.0, 0.25)),
            ({"margin": 0.0, "cfg_scale": 1.0, "max_per_step": 2}, 10, 10),
            ({"margin": 0.25}, 10, 4),
        ),
        apart=(
            ({"margin": 0.0, "cfg_scale": 1.0}, {"margin": 1.0}),
            ({"margin": 0.0, "cfg_scale": 1.0}, {"max_per_step": 1}),
        ),
        invariant=({"margin": 0.0},),
        draws={"margin": [0.0, 0.25, 1.0], "max_per_step": [None, None, 2]},
        # 1 - c of .9 .6 .5: .1, .4, .5. Their sum with the last once more: .2, .9, 1.5.
        by_hand=(
            ({"margin": 0.25}, [0.5, 0.6, 0.9], 3, [2]),
            ({"margin": 0.0}, [0.5, 0.6, 0.9], 3, [1, 2]),
            ({"margin": 0.0, "max_per_step": 1}, [0.5, 0.6, 0.9], 3, [2]),
            ({"margin": 1.0}, [0.5, 0.6, 0.9], 3, [2]),
        ),
        passing=within_frechet,
    ),
    "pc_sampler": Decoder(
        compared=(({"decay": 0.3}, 10, 4), ({"decay": 0.0}, 10, 4), ({"decay": 0.05}, 6, 14)),
        apart=(({"decay": 0.0}, {"decay": 0.3}),),
        invariant=({"decay": 0.3},),
        draws={"decay": [0.0, 0.25, 5.0]},
        # Decay ln 2 halves each position: .5, .6/2 = .3, .9/4 = .225. Two steps left for three masks: two commit.
        by_hand=(({"decay": math.log(2)}, [0.5, 0.6, 0.9], 2, [0, 1]), ({"decay": 0.0}, [0.5, 0.6, 0.9], 2, [1, 2])),
        ranks=lambda options, i, confidence: confidence * math.exp(-options["decay"] * i),
    ),
    "certainty_prior": Decoder(
        compared=(
            *(({"sigma": sigma}, 10, 4) for sigma in (1.5, 0.4, 10.0)),
            ({"sigma": 3.0, "cfg_scale": 1.0}, 6, 14),
        ),
        apart=(({"sigma": 10.0}, {"sigma": 0.7}), ({"sigma": 10.0}, {"kernel_size": 3})),
        invariant=({"sigma": 2.0},),
        draws={"sigma": [0.3, 1.0, 10.0]},
    ),
    "prophet": Decoder(
        compared=(
            *(({"early": bar, "middle": bar, "late": bar}, 10, 10) for bar in (0.4, 0.2, 0.8)),
            ({"early": 7.5, "middle": 0.3, "late": 0.1}, 10, 7),
        ),
        apart=(({"early": 9.0, "middle": 9.0, "late": 9.0}, {"middle": 0.0}),),
        invariant=({"early": 0.6, "middle": 0.4, "late": 0.2},),
        draws={"early": [0.0, 1.0, 7.5], "middle": [0.5, 5.0], "late": [0.0, 0.7]},
    ),
    "tweedie": Decoder(
        # The tiny model's scores add up to about e^7.7 without an offset.
        compared=(
            *(({"score_offset": offset}, *size) for offset, size in ((7.7, (10, 4)), (7.0, (10, 4)), (9.0, (6, 14)))),
            ({"score_offset": 7.7, "cfg_scale": 1.0, "penalty": 1.5}, 10, 4),
            ({"score_offset": 7.7, "eos": "never"}, 10, 4),
            *(({"score_offset": 7.7, "block_length": 5, "variant": cut}, 10, 8) for cut in ("stride", "restrict")),
            ({}, 10, 4),
        ),
        apart=(({}, {"score_offset": 7.7}), ({"score_offset": 7.7}, {"score_offset": 7.0})),
        invariant=({"score_offset": 7.7}, {}),
        draws={"score_offset": [None, 0.0, 2.0, 5.0]},
    ),
    "conv": Decoder(
        compared=(
            *(
                ({"top_k": 5, "kernel_size": 7, "kernel": "exponential", "gain": gain, "conv_mult": 0.8}, 10, 4)
                for gain in GAINS
            ),
            ({"rule": "categorical", "kernel_size": 5, "kernel": "exponential"}, 10, 10),
            *(
                ({"rule": "low_confidence", "kernel_size": 7, "conv_mult": 0.2, "confidence": name}, 10, 4)
                for name in CONFIDENCES[1:]
            ),
            ({"rule": "low_confidence", "kernel_size": 5, "kernel": "exponential", "temperature": 0.7}, 10, 10),
            ({"rule": "threshold", "threshold": 0.2, "kernel_size": 5}, 10, 10),
            ({"rule": "factor", "factor": 2.0, "kernel_size": 5}, 10, 10),
            ({"rule": "first_hitting", "kernel_size": 5, "conv_mult": 0.3}, 10, 10),
            ({"top_k": 5, "cfg_scale": 1.0, "penalty": 1.5, "kernel_size": 5}, 10, 10),
        ),
        invariant=(
            *({"gain": gain, "kernel_size": 5, "top_k": 5} for gain in GAINS),
            {"rule": "low_confidence", "kernel_size": 7, "conv_mult": 0.3},
            {"rule": "remdm", "kernel_size": 5, "kernel": "exponential", "penalty": 1.3, "cfg_scale": 0.5},
        ),
    ),
    "semi_ar": Decoder(
        compared=(
            *(
                ({"rule": rule, "variant": variant, "block_length": 4, **options}, 8, 8)
                for rule, options in (
                    ("top_k", {"top_k": 5, "kernel_size": 5}),
                    ("low_confidence", {"kernel_size": 5, "kernel": "exponential"}),
                    ("low_confidence", {"confidence": "margin", "temperature": 0.5}),
                    ("threshold", {"threshold": 0.2}),
                    ("factor", {"factor": 2.0}),
                    ("first_hitting", {}),
                    ("remdm", {"top_k": 5, "schedule": "cap", "eta": 0.3}),
                )
                for variant in ("stride", "restrict")
            ),
            ({"rule": "threshold", "threshold": 0.3, "variant": "restrict", "block_length": 4, "cfg_scale": 1.0}, 8, 8),
        ),
        invariant=tuple(
            {"rule": rule, "variant": variant, "block_length": 4}
            for rule in ("categorical", "top_k", "low_confidence")
            for variant in ("stride", "restrict")
        ),
    ),
    "repetition_penalty": Decoder(
        compared=(
            ({"penalty": 1.5, "top_k": 5}, 10, 10),
            ({"penalty": 0.5, "top_k": 5}, 10, 4),
            ({"rule": "low_confidence", "penalty": 3.0}, 10, 10),
        ),
        invariant=({"top_k": 5},),
    ),
}

COMPARED: list[Case] = [(name, *case) for name, decoder in DECODERS.items() for case in decoder.compared]
# Conv goes over every rule that ranks or weighs positions: a new rule under it, too.
OVER_RULES: list[Case] = [
    ("conv", {"rule": name, **options, "kernel_size": 5}, gen_length, steps)
    for name, decoder in DECODERS.items()
    for options, gen_length, steps in decoder.compared[:1]
    if name not in ("conv", "semi_ar", "repetition_penalty", "sliding_annealing")
]
BY_HAND = [(name, *case) for name, decoder in DECODERS.items() for case in decoder.by_hand]
APART = [(name, *pair) for name, decoder in DECODERS.items() for pair in decoder.apart]
INVARIANT: list[tuple[str, Options]] = [(name, options) for name, one in DECODERS.items() for options in one.invariant]
