"""A slow, obvious decoder: the published formulas in loops over one row (see enumeration.py for every possible run)."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from decoder_cases import DECODERS
from tiny import TableDenoiser
from torch import Tensor

from dlm.decoding.decoder import make_decoder
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.loop import Decoded, decode
from dlm.decoding.noise import COMMIT, REVOKE, TOKEN, row_keys, uniforms
from dlm.decoding.options import decoder_options

Network = Callable[[list[int]], list[list[float]]]  # a canvas -> logits of every position, the mask's -inf (SUBS)
Candidates = list[tuple[int, float]]  # (token, weight)
Noise = Callable[[int, int], float]
Shadow = Callable[[list[int], list[int]], list[list[float]]]  # a canvas, places -> logits of a mask in each place
State = tuple[tuple[int, ...], tuple[int, ...]]  # canvas, commit step of every position from the first response one on
PROMPTS = [[5, 9, 70, 0, 31], [100, 101], list(range(200, 209))]


@dataclass(frozen=True)
class Span:
    """A run of steps: offsets [start, end) may commit, those before `must` always do; masked again from `keep` on.

    Its steps are number `begin`, `begin` + 1, ... of `total` from time 1 to 0.
    """

    steps: int
    start: int
    end: int
    keep: int
    must: int
    begin: int
    total: int


@dataclass(frozen=True)
class Now:
    """One step of one row: the canvas, its probabilities, the masks that the span may fill, the step's number, and what
    the scores of each position add up to."""

    canvas: list[int]
    p: list[list[float]]
    here: list[int]
    must: set[int]
    step: int
    total: int
    sums: list[float] = field(default_factory=list)
    past: list["Seen"] = field(default_factory=list)
    votes: dict[int, list["Vote"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What a pass showed of one row: the canvas, and every position's logits, guided and not yet penalised."""

    canvas: list[int]
    logits: list[list[float]]


@dataclass(frozen=True)
class Vote:
    """The likeliest token of a position at a pass, its probability then, and how many passes there had been."""

    token: int
    p: float
    number: int


@dataclass(frozen=True)
class Task:
    """What to decode with: a decoder's name and options as in params.yaml, and the lengths."""

    name: str
    options: dict[str, Any]
    gen_length: int
    steps: int
    eos_id: int
    mask_id: int

    def option(self, name: str, default: Any = None) -> Any:
        return self.options.get(name, default)

    @property
    def rule(self) -> str:
        presets = ("conv", "semi_ar", "repetition_penalty")
        return self.option("rule", "top_k") if self.name in presets else self.name

    @property
    def spans(self) -> list[Span]:
        length, steps, size = self.gen_length, self.steps, self.option("block_length")
        if self.rule == "sliding_annealing":
            fronts = [math.ceil(length * (i + 1) / steps) for i in range(steps)]
            ends = [min(front + self.options["reach"], length) for front in fronts]
            return [Span(1, 0, ends[i], length, fronts[i], i, steps) for i in range(steps)]
        if size is None:
            return [Span(steps, 0, length, length, 0, 0, steps)]
        each = steps // (length // size)
        if self.option("variant") == "restrict":
            return [Span(each, start, start + size, length, 0, 0, each) for start in range(0, length, size)]
        return [Span(each, start, length, start + size, 0, 0, each) for start in range(0, length, size)]

    # --- The formulas -----------------------------------------------------------------------------------------------

    def probabilities(self, network: Network, canvas: list[int], context: set[int]) -> list[list[float]]:
        """LLaDA's guidance, CTRL's penalty, LLaDA's ban on EOS, softmax."""
        return [softmax(row) for row in self.penalised(self.guided(network, canvas, context), canvas)]

    def sums(self, logits: list[list[float]]) -> list[float]:
        """What SEDD's scores, exp(logit - offset), add up to at each position; 1 for a softmax."""
        offset = self.option("score_offset")
        return [1.0 if offset is None else sum(math.exp(z - offset) for z in row) for row in logits]

    def guided(self, network: Network, canvas: list[int], context: set[int]) -> list[list[float]]:
        logits, w = network(canvas), self.option("cfg_scale", 0.0)
        if w:
            without = network([self.mask_id if i in context else token for i, token in enumerate(canvas)])
            pairs = [list(zip(a, b, strict=True)) for a, b in zip(logits, without, strict=True)]
            logits = [[u + (w + 1) * (c - u) if c > -math.inf else c for c, u in row] for row in pairs]
        return logits

    def penalised(self, logits: list[list[float]], canvas: list[int]) -> list[list[float]]:
        logits, penalty = [list(row) for row in logits], self.option("penalty", 1.0)
        for token in set(canvas) - {self.mask_id}:
            for row in logits if penalty != 1 else []:
                row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
        for row in logits if self.option("eos") == "never" else []:
            row[self.eos_id] = -math.inf
        return logits

    def window(self, canvas: list[int], i: int) -> float:
        """s_i; 1 for all where it would be 0 for all, as nothing stands on the canvas."""
        kernel, mult = self.option("kernel_size"), self.option("conv_mult", 1.0)
        if kernel is None:
            return self.certainty(canvas, i)
        reach = (kernel - 1) // 2
        u = 0.0
        for j in range(i - reach, i + reach + 1):
            if 0 <= j < len(canvas) and canvas[j] != self.mask_id:
                u += math.exp(-2 * abs(i - j) / reach) if self.option("kernel") == "exponential" else 1
        s = {
            "tanh": math.tanh(mult * u),
            "linear": min(1.0, mult * u / kernel),
            "sigmoid": 1 / (1 + math.exp(-mult * u)),
            "step": 1.0 if u > 0 else 0.0,
        }[self.option("gain", "tanh")]
        return (s or float(set(canvas) == {self.mask_id})) * self.certainty(canvas, i)

    def certainty(self, canvas: list[int], i: int) -> float:
        """d2Cache's prior: the Gaussian mass around i that lies left of the canvas or on a token."""
        if self.rule != "certainty_prior":
            return 1.0
        far = 30 * math.ceil(self.options["sigma"])
        mass = {j: math.exp(-((i - j) ** 2) / (2 * self.options["sigma"] ** 2)) for j in range(i - far, i + far + 1)}
        known = [j for j in mass if j < 0 or (j < len(canvas) and canvas[j] != self.mask_id)]
        return sum(mass[j] for j in known) / sum(mass.values())

    def rates(self, step: int, total: int) -> tuple[float, float, float]:
        """Weights of a mask to move and to stay from t to s, and σ. The last step moves all that is left."""
        t, s = (total - step) / total, (total - step - 1) / total
        if self.rule != "remdm" or self.options["schedule"] == "conf":
            return 1 / total, s, min(1.0, s / (1 - t)) if t < 1 else 1.0
        eta, schedule = self.options["eta"], self.options["schedule"]
        if schedule == "loop":
            on, off, flat = (self.options[name] for name in ("t_on", "t_off", "alpha_on"))
            if step == total - 1:
                return 1.0, 0.0, 0.0
            if t > on:
                alpha_t, alpha_s, sigma = flat * (1 - t) / (1 - on), flat * (1 - max(s, on)) / (1 - on), 0.0
            elif t > off:
                alpha_t, alpha_s, sigma = flat, flat, eta
            else:
                alpha_t, alpha_s, sigma = 1 - t * (1 - flat) / off, 1 - s * (1 - flat) / off, 0.0
        else:
            alpha_t, alpha_s = 1 - t, 1 - s
            most = min(1.0, (1 - alpha_s) / alpha_t) if step else 1.0
            sigma = min(eta, most) if schedule == "cap" else eta * most
        return alpha_s - (1 - sigma) * alpha_t, 1 - alpha_s - sigma * alpha_t, sigma

    def kept(self, p: list[float]) -> Candidates:
        every = list(enumerate(p))
        if self.rule not in ("top_k", "remdm", "sliding_annealing"):
            return every
        return sorted(every, key=lambda pair: -pair[1])[: self.options["top_k"]]

    def joint(self, now: Now) -> dict[int, tuple[Candidates, float]]:
        """Of every mask: p_ij·s_i·s_norm·move of the kept candidates j, and the weight of staying masked."""
        move, stay, _ = self.rates(now.step, now.total)
        if self.rule == "tweedie":
            return {i: self.leap(now, i, move / (move + stay)) for i in now.here}
        kept = {i: self.kept(now.p[i]) for i in now.here}
        free = [i for i in now.here if i not in now.must]
        s = {i: self.window(now.canvas, i) for i in free}
        s |= dict.fromkeys(self.late(now, {i: kept[i][0][0] for i in free if s[i] > 0}), 0.0)
        everything = sum(p_ij for i in free for p_ij in now.p[i])
        held = sum(p_ij * s[i] for i in free for _, p_ij in kept[i])
        s_norm = everything / held if held > 0 else 0.0
        weighed = {i: ([(j, p_ij * s[i] * s_norm * move) for j, p_ij in kept[i]], stay) for i in free}
        return weighed | {i: (kept[i], 0.0) for i in now.here if i in now.must}

    def leap(self, now: Now, i: int, share: float) -> tuple[Candidates, float]:
        """SEDD: token j has the weight (t - s)/t times its score, the mask what is left to 1; at the last step none."""
        s = [self.window(now.canvas, j) for j in now.here]
        mean = sum(s) / len(s)
        weight = now.sums[i] * share * (self.window(now.canvas, i) / mean if mean else 0.0)
        stay = 0.0 if share == 1 else max(0.0, 1 - now.sums[i] * share)
        return [(j, p_ij * weight) for j, p_ij in enumerate(now.p[i])], stay

    def confidence(self, p: list[float], token: int) -> float:
        temperature = self.option("temperature", 0.0)
        if self.option("tempered") and temperature:
            weights = [weight for _, weight in tempered(p, temperature)]
            p = [weight / sum(weights) for weight in weights]
        if path := self.option("background"):
            counts = json.loads(Path(path).read_text())["token_counts"]
            frequency = (counts[token] + 1) / (sum(counts) + len(counts))
            return min(self.option("clip"), -p[token] * math.log(frequency))
        top = sorted(p, reverse=True)
        entropy = -sum(p_j * math.log(p_j) for p_j in p if p_j > 0)
        by = {"margin": top[0] - top[1], "entropy": math.exp(-entropy)}
        return by.get(self.option("confidence", DECODERS[self.rule].confidence), p[token])

    @property
    def in_drawn_order(self) -> bool:
        chance = self.rule == "first_hitting" or self.option("confidence") == "random"
        return chance or bool(self.option("ranking_temperature"))

    def draw_weight(self, now: Now, i: int, token: int) -> float:
        """s_i, times exp(confidence / T) where the ranking has a temperature (Dream's alg_temp; its entropy is -H)."""
        temperature, by = self.option("ranking_temperature"), self.option("confidence")
        confidence = 0.0
        if temperature and by != "random":
            confidence = self.confidence(now.p[i], token)
            confidence = (math.log(confidence) if by == "entropy" else confidence) / temperature
        return self.window(now.canvas, i) * math.exp(confidence)

    def quota(self, now: Now) -> int:
        masks, left = len(now.here), now.total - now.step
        if self.option("count") == "dream" and left > 1:
            t, s = (1 - (1 - 1e-3) * step / now.total for step in (now.step, now.step + 1))
            return int(masks * (1 - s / t))
        return math.ceil(masks / left)

    def able(self, now: Now) -> list[int]:
        return [i for i in now.here if self.window(now.canvas, i) > 0]

    def late(self, now: Now, best: dict[int, int]) -> set[int]:
        """LLaDA's EOS without confidence: where something else can commit, and this is not the step that fills all."""
        ends = {i for i, token in best.items() if token == self.eos_id}
        waits = self.option("eos") == "last" and now.step < now.total - 1 and len(ends) < len(best)
        return ends if waits else set()

    def chosen(self, now: Now, score: dict[int, float], tokens: dict[int, int]) -> list[int]:
        """The positions that a ranking rule commits, given what ranks each and its token; ties to the left."""
        late = self.late(now, tokens)
        if self.rule == "klass":
            ready = [i for i in score if i not in late and score[i] > self.options["threshold"] and self.rests(now, i)]
            others = sorted(set(score) - set(ready), key=lambda i: (i in late, -score[i], i))
            return ready + others[: max(self.quota(now) - len(ready), 0)]
        order = sorted(score, key=lambda i: (i in late, -score[i], i))
        able = len(order) - len(late)
        passing = DECODERS[self.rule].passing(self.options, [score[i] for i in order[:able]])
        if self.rule == "prophet" and self.ahead(now, list(score)):
            passing = able
        return order[: max(self.quota(now), passing)]

    def rests(self, now: Now, i: int) -> bool:
        """KLASS: KL(p_t || p_{t-1}) of each of the last passes, all of which saw a mask here."""
        last = now.past[-self.options["history"] - 1 :]
        if len(last) <= self.options["history"] or any(seen.canvas[i] != self.mask_id for seen in last):
            return False
        pairs = itertools.pairwise(softmax(self.penalised([seen.logits[i]], now.canvas)[0]) for seen in last)
        return all(divergence(p, before) < self.options["kl_threshold"] for before, p in pairs)

    def credited(self, now: Now, i: int) -> list[float]:
        """CreditDecoding: softmax of the logits, up to a constant log p, with what the votes have gathered."""
        last, credit = len(now.past), [0.0] * len(now.p[i])
        if all(vote.number != last for vote in now.votes.setdefault(i, [])):
            best = max(now.p[i])
            now.votes[i].append(Vote(now.p[i].index(best), best, last))
        for vote in now.votes[i]:
            credit[vote.token] += vote.p ** self.options["power"] * self.options["decay"] ** (last - vote.number)
        weights = [p * (1 + c) ** self.options["strength"] for p, c in zip(now.p[i], credit, strict=True)]
        return [weight / sum(weights) for weight in weights]

    def ahead(self, now: Now, able: list[int]) -> bool:
        """Prophet: whether the mean log-ratio of the two best tokens has reached the stage's bar."""
        tops = [sorted(now.p[i], reverse=True)[:2] for i in able]
        done = (now.step + 1) / now.total
        bar = self.options["early" if done < 0.33 else "middle" if done < 0.67 else "late"]
        return bool(tops) and sum(math.log(first / second) for first, second in tops) / len(tops) >= bar

    def lost(self, now: Now, committed: list[int], sure: dict[int, float]) -> dict[int, float]:
        """ReMDM: how probable it is for each committed position to be masked again; `sure`: p when it was committed."""
        sigma = self.rates(now.step, now.total)[2]
        if self.options["schedule"] != "conf":
            return dict.fromkeys(committed, sigma)
        total = sum(math.exp(-sure[i]) for i in committed)
        return {i: sigma * math.exp(-sure[i]) / total for i in committed}

    def revocable(self, now: Now, span: Span, first: int, response: set[int]) -> list[int]:
        """Response tokens of the span; with EOS-fill only what stands before the end."""
        if self.rule not in ("remdm", "wino", "p2"):
            return []
        ended = self.option("eos_fill") and self.eos_id in now.canvas[first:]
        end = min(first + span.end, now.canvas.index(self.eos_id, first) if ended else len(now.canvas))
        return [i for i in range(first + span.start, end) if i in response and now.canvas[i] != self.mask_id]

    def fill_eos(self, canvas: list[int], first: int) -> None:
        if self.option("eos_fill") and self.eos_id in canvas[first:]:
            end = canvas.index(self.eos_id, first)
            canvas[end:] = [self.eos_id] * (len(canvas) - end)


# --- One run ----------------------------------------------------------------------------------------------------------


@dataclass
class Slow:
    tokens: list[int]
    commit_step: list[int]
    leftover: int
    nfe: int
    nfe_uncached: int


def slow_decode(network: Network, prompt: list[int], task: Task, key: Tensor, shadow: Shadow | None = None) -> Slow:
    return slow_fill(network, prompt + [task.mask_id] * task.gen_length, len(prompt), task, key, shadow)


def slow_fill(
    network: Network, start: list[int], first: int, task: Task, key: Tensor, shadow: Shadow | None = None
) -> Slow:
    """One row, step by step. Sampled decisions take the library's noise, so that they can be compared one by one."""
    canvas, stamp = list(start), [-1] * (len(start) - first)
    response = {i for i in range(first, len(start)) if start[i] == task.mask_id}
    context = set(range(len(start))) - response
    sure: dict[int, float] = {}
    past: list[Seen] = []
    votes: dict[int, list[Vote]] = {}
    nfe = nfe_uncached = clock = 0
    changed = True
    each = 2 if task.option("cfg_scale") else 1

    def noise(channel: int, i: int) -> float:
        return uniforms(key.view(1), clock, channel, torch.tensor([i - first])).item()

    def write(new: dict[int, int], when: int) -> None:
        for i, token in new.items():
            canvas[i] = token
            stamp[i - first] = when
        canvas[:], stamp[:] = settle(canvas, stamp, task, first)

    for span in task.spans:
        for step in range(span.begin, span.begin + span.steps):
            masks = [i for i in sorted(response) if canvas[i] == task.mask_id]
            here = [i for i in masks if span.start <= i - first < span.end]
            must = {i for i in here if i - first < span.must}
            now = Now(list(canvas), [], here, must, step, span.total)
            lost = []
            kept = task.revocable(now, span, first, response)
            if kept and task.rule == "remdm":
                lost = [i for i, chance in task.lost(now, kept, sure).items() if noise(REVOKE, i) < chance]
            if here:
                logits = task.guided(network, canvas, context)
                penalised = task.penalised(logits, canvas)
                p = [softmax(row) for row in penalised]
                if changed:
                    past.append(Seen(list(canvas), logits))
                now = Now(list(canvas), p, here, must, step, span.total, task.sums(penalised), past, votes)
                nfe, nfe_uncached = nfe + each * changed, nfe_uncached + each
                if task.rule in ("wino", "p2"):
                    recent = sum(when == clock - 1 for when in stamp) if clock else 0
                    block = [i for i in range(first + span.start, first + span.end) if i in response]
                    verify = partial(verified, task, shadow, canvas, context, block)
                    new, lost = revise(task, now, kept, recent, verify, noise)
                else:
                    new = decide(task, now, noise)
                sure |= {i: now.p[i][token] for i, token in new.items()}
                changed = bool(new)
                write(new, clock)
            if lost:
                changed = True
                write(dict.fromkeys(lost, task.mask_id), -1)
            clock += 1
        beyond = [i for i in response if i >= first + span.keep]
        changed |= bool(beyond)
        write(dict.fromkeys(beyond, task.mask_id), -1)
    left = [i for i in sorted(response) if canvas[i] == task.mask_id]
    if left:
        p = task.probabilities(network, canvas, context)
        nfe, nfe_uncached = nfe + each * changed, nfe_uncached + each
        write({i: p[i].index(max(p[i])) for i in left}, clock)
    return Slow(canvas[first:], stamp, len(left), nfe, nfe_uncached)


def decide(task: Task, now: Now, noise: Callable[[int, int], float]) -> dict[int, int]:
    """What one step commits, in the library's noise."""
    if task.rule in ("categorical", "top_k", "remdm", "sliding_annealing", "tweedie"):
        new = {}
        for i, (candidates, stay) in task.joint(now).items():
            move = sum(weight for _, weight in candidates)
            if move > 0 and noise(COMMIT, i) < move / (move + stay):
                new[i] = drawn(candidates, noise(TOKEN, i))
        return new
    able = task.able(now)
    temperature = 1.0 if task.rule == "first_hitting" else task.option("temperature", 0.0)
    if task.rule == "credit":
        now = replace(now, p=[task.credited(now, i) if i in able else p for i, p in enumerate(now.p)])
    if temperature:
        tokens = {i: drawn(tempered(now.p[i], temperature), noise(TOKEN, i)) for i in able}
    else:
        tokens = {i: now.p[i].index(max(now.p[i])) for i in able}
    if task.in_drawn_order:
        # The largest Gumbel keys are a draw without replacement in proportion to the weights.
        weights = {i: task.draw_weight(now, i, tokens[i]) for i in able}
        score = {i: math.log(weight) - math.log(-math.log(noise(COMMIT, i))) for i, weight in weights.items()}
    else:
        ranks, window = DECODERS[task.rule].ranks, {i: task.window(now.canvas, i) for i in able}
        score = {i: ranks(task.options, i, task.confidence(now.p[i], tokens[i])) * window[i] for i in able}
    return {i: tokens[i] for i in task.chosen(now, score, tokens)}


def revise(
    task: Task, now: Now, standing: list[int], recent: int, verify: Callable[[], dict[int, float]], noise: Noise
) -> tuple[dict[int, int], list[int]]:
    """What a step of WINO or P2 commits, and what it masks again. A row that cannot commit is left as it is."""
    able = task.able(now)
    if not able:
        return {}, []
    temperature = task.option("temperature", 0.0)
    if temperature:
        tokens = {i: drawn(tempered(now.p[i], temperature), noise(TOKEN, i)) for i in able}
    else:
        tokens = {i: now.p[i].index(max(now.p[i])) for i in able}
    late, window = task.late(now, tokens), {i: task.window(now.canvas, i) for i in able}
    if task.rule == "p2":
        by_chance = task.option("planner") == "random"
        new = {i: noise(COMMIT, i) if by_chance else now.p[i][tokens[i]] for i in able}
        old = {i: noise(REVOKE, i) if by_chance else now.p[i][now.canvas[i]] for i in standing}
        score = {i: math.log(new[i] * window[i]) for i in able}
        score |= {i: task.options["eta"] * math.log(p) for i, p in old.items()}
        every = len(now.here) + len(standing)
        kept = every - every * (now.total - now.step - 1) // now.total
        order = sorted(score, key=lambda i: (i in late, -score[i]))
        return {i: tokens[i] for i in order[:kept] if i in tokens}, [i for i in order[kept:] if i not in tokens]
    score = {i: now.p[i][tokens[i]] * window[i] for i in able}
    order = sorted(score, key=lambda i: (i in late, -score[i], i))
    most = min(max(int(len(now.here) * task.options["max_share"]), 5), task.options["max_per_step"])
    wide = [i for i in order[:most] if i not in late and score[i] > task.options["threshold"]]
    chosen = order[: max(len(wide), math.ceil(len(now.here) / (now.total - now.step)))]
    if len(chosen) < 2 or now.step == now.total - 1:
        return {i: tokens[i] for i in chosen}, []
    sure = verify()
    doubtful = sorted(standing, key=lambda i: sure[i])[: max(recent - 1, 0)]
    return {i: tokens[i] for i in chosen}, [i for i in doubtful if sure[i] < task.options["verify_threshold"]]


def verified(
    task: Task, shadow: Shadow | None, canvas: list[int], context: set[int], block: list[int]
) -> dict[int, float]:
    """The probability that a mask in the place of each token of the block gives it, by the shadow of WINO."""
    assert shadow is not None
    logits = task.penalised(task.guided(lambda shown: shadow(shown, block), canvas, context), canvas)
    return {i: softmax(row)[canvas[i]] for i, row in zip(block, logits, strict=True)}


def tempered(p: list[float], temperature: float) -> Candidates:
    return [(j, p_j ** (1 / temperature)) for j, p_j in enumerate(p)]


def drawn(candidates: Candidates, uniform: float) -> int:
    """The token at which the cumulated weights pass the uniform number."""
    passed = itertools.accumulate(weight for _, weight in candidates)
    bar = uniform * sum(weight for _, weight in candidates)
    return next(token for (token, _), mass in zip(candidates, passed, strict=True) if mass > bar)


def settle(canvas: list[int], stamp: list[int], task: Task, first: int) -> State:
    """EOS-fill; a position that it changed has no step of its own any more."""
    filled = list(canvas)
    task.fill_eos(filled, first)
    when = [-1 if a != b else w for a, b, w in zip(canvas[first:], filled[first:], stamp, strict=True)]
    return tuple(filled), tuple(when)


def divergence(p: list[float], q: list[float]) -> float:
    return sum(p_j * math.log(p_j / q_j) for p_j, q_j in zip(p, q, strict=True) if p_j > 0)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


# --- The networks, and the decoder under test -------------------------------------------------------------------------


def network_of_table(table: TableDenoiser) -> Network:
    known: dict[tuple[int, ...], list[list[float]]] = {}

    def network(canvas: list[int]) -> list[list[float]]:
        if tuple(canvas) not in known:
            ids = torch.tensor([canvas])
            known[tuple(canvas)] = table.logits(table.hidden(ids, torch.ones_like(ids).bool())[0]).tolist()
        return [list(row) for row in known[tuple(canvas)]]

    return network


def network_of_model(denoiser: Denoiser) -> Network:
    """The whole model on one row without padding, its head at every position."""

    @torch.inference_mode()
    def network(canvas: list[int]) -> list[list[float]]:
        logits = denoiser.model(input_ids=torch.tensor([canvas])).logits[0]
        logits[:, denoiser.mask_id] = -math.inf
        return logits.tolist()

    return network


def shadow_of_model(denoiser: Denoiser) -> Shadow:
    """WINO's pass over one row: the canvas, then a mask for each place, which sees all but the token of that place."""

    @torch.inference_mode()
    def shadow(canvas: list[int], places: list[int]) -> list[list[float]]:
        length, some = len(canvas), len(places)
        sees = torch.zeros(length + some, length + some).bool()
        sees[:, :length] = True
        sees[length:, length:] = True
        for place, i in enumerate(places):
            sees[length + place, i] = False
        ids = torch.tensor([canvas + [denoiser.mask_id] * some])
        positions = torch.tensor([[*range(length), *places]])
        logits = denoiser.model(input_ids=ids, attention_mask=sees[None, None], position_ids=positions).logits[0]
        logits[:, denoiser.mask_id] = -math.inf
        return logits[length:].tolist()

    return shadow


def fast_decode(denoiser: Denoiser, prompts: list[list[int]], task: Task, **more: Any) -> Decoded:
    options = decoder_options(task.name, {**task.options, **more}, task.name)
    return decode(
        denoiser,
        prompts,
        make_decoder(options),
        gen_length=task.gen_length,
        steps=task.steps,
        keys=row_keys(prompts, 11),
        eos_id=task.eos_id,
    )


def assert_token_for_token(denoiser: Denoiser, prompts: list[list[int]], task: Task) -> None:
    """Tokens, commit steps, leftovers and NFE of every row, the last with and without the cache."""
    keys = row_keys(prompts, 11)
    found, uncached = fast_decode(denoiser, prompts, task), fast_decode(denoiser, prompts, task, cache=False)
    network = network_of_model(denoiser)
    for row, prompt in enumerate(prompts):
        slow = slow_decode(network, prompt, task, keys[row], shadow_of_model(denoiser))
        assert found.tokens[row].tolist() == slow.tokens
        assert found.commit_step[row].tolist() == slow.commit_step
        assert found.leftover_masks[row] == slow.leftover
        assert (found.nfe[row], uncached.nfe[row]) == (slow.nfe, slow.nfe_uncached)


def case_id(case: tuple) -> str:
    """conv-top_k-5-10in4 of (name, options, gen_length, steps)."""
    name, options, gen_length, steps = case
    return "-".join([name, *map(str, options.values()), f"{gen_length}in{steps}"])
