"""What holds for every decoder, whatever its options, lengths, prompts and logits."""

import math
from dataclasses import dataclass, replace
from typing import Any

from decoder_cases import DECODERS as CASES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import Recorder, TableDenoiser

from dlm.decoding.decoder import Decoder, make_decoder
from dlm.decoding.denoiser import Denoiser
from dlm.decoding.loop import Decoded, decode
from dlm.decoding.noise import row_keys
from dlm.decoding.options import DECODERS, PRESETS, RULES, decoder_options
from dlm.decoding.plans import Phase

VOCAB, EOS, MASK = 7, 0, 1
SLIDING = ("sliding_annealing",)  # a window of its own: neither kernel nor blocks
REVISING = ("remdm", "wino", "p2")
DRAWN_LATE = ("categorical", "first_hitting", "tweedie")  # whether a token is EOS is not known before it commits

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Job:
    name: str
    options: dict[str, Any]
    gen_length: int
    steps: int
    prompts: list[list[int]]
    seed: int

    @property
    def denoiser(self) -> TableDenoiser:
        return TableDenoiser(VOCAB, MASK, seed=self.seed)

    @property
    def rule(self) -> str:
        return self.options.get("rule", "top_k") if self.name in PRESETS else self.name

    @property
    def passes(self) -> int:
        """Forward passes of a step: guidance takes two."""
        return 2 if self.options.get("cfg_scale") else 1

    @property
    def phases(self) -> list[Phase]:
        return self.decoder().rule.plan(self.gen_length, self.steps)

    def decoder(self, **more: Any) -> Decoder:
        return make_decoder(decoder_options(self.name, {**self.options, **more}, self.name))

    def having(self, **changes: Any) -> "Job":
        return replace(self, options={**self.options, **changes})

    def plain(self) -> "Job":
        """The rule itself under its own name, with neither window nor blocks."""
        kept = {key: value for key, value in self.options.items() if key in RULES[self.rule].__dataclass_fields__}
        return replace(self, name=self.rule, options=kept).having(kernel_size=None, block_length=None)

    def run(
        self, denoiser: Denoiser | None = None, rows: slice = slice(None), trace: bool = False, **more: Any
    ) -> Decoded:
        return decode(
            denoiser or self.denoiser,
            self.prompts[rows],
            self.decoder(**more),
            gen_length=self.gen_length,
            steps=self.steps,
            keys=row_keys(self.prompts, self.seed)[rows],
            eos_id=EOS,
            trace=trace,
        )


def prompt_lists(least: int = 0, most_rows: int = 3) -> st.SearchStrategy[list[list[int]]]:
    token = st.sampled_from([i for i in range(VOCAB) if i != MASK])
    return st.lists(st.lists(token, min_size=least, max_size=5), min_size=1, max_size=most_rows)


COMMON: dict[str, list[Any]] = {
    "eos_fill": [False, True],
    "eos": ["free", "free", "last", "never"],
    "penalty": [1.0, 1.0, 1.5],
    "cfg_scale": [0.0, 0.0, 1.0],
}
WINDOW: dict[str, list[Any]] = {
    "kernel_size": [1, 3, 5, 31],
    "kernel": ["box", "exponential"],
    "gain": ["tanh", "linear", "sigmoid", "step"],
    "conv_mult": [0.05, 0.5, 4.0],
}


@st.composite
def jobs(
    draw: st.DrawFn,
    names: tuple[str, ...] = DECODERS,
    rows: int = 3,
    rules: tuple[str, ...] = tuple(RULES),
    revising: bool = True,
    approximate: bool = False,
) -> Job:
    """Any decoder with any common options; `revising`: ReMDM and stride too; `approximate`: masks left off too."""

    def one_of(choices: dict[str, list[Any]]) -> dict[str, Any]:
        return {key: draw(st.sampled_from(values)) for key, values in choices.items()}

    name = draw(st.sampled_from(names))
    fit = [rule for rule in rules if (revising or rule not in REVISING) and not (name in PRESETS and rule in SLIDING)]
    if not revising and name in REVISING:
        name = "top_k"
    rule = draw(st.sampled_from(fit)) if name in PRESETS else name
    options = one_of(COMMON) | one_of(CASES[rule].draws)
    if rule in DRAWN_LATE and options["eos"] == "last":
        del options["eos"]
    if name in PRESETS:
        options["rule"] = rule
    gen_length, steps = draw(st.integers(1, 10)), draw(st.integers(1, 14))
    narrow = rule in SLIDING
    if name == "conv" or (rule not in SLIDING and draw(st.integers(0, 3)) == 0):
        options |= one_of(WINDOW)
        narrow = True
    if name == "semi_ar" or (rule not in SLIDING and draw(st.integers(0, 3)) == 0):
        options["variant"] = draw(st.sampled_from(["stride", "restrict"] if revising else ["restrict"]))
        options["block_length"] = draw(st.integers(1, 4))
        blocks = draw(st.integers(1, 3))
        gen_length, steps = blocks * options["block_length"], blocks * draw(st.integers(1, 5))
        narrow |= options["variant"] == "restrict"
    if narrow and approximate and rule != "wino":
        options |= one_of({"suffix": ["full", "none", "dropout"], "suffix_window": [1, 4], "suffix_scale": [1.0, 9.0]})
    return Job(name, options, gen_length, steps, draw(prompt_lists(most_rows=rows)), draw(st.integers(0, 999)))


def same(one: Decoded, other: Decoded) -> bool:
    return all(
        getattr(one, part).tolist() == getattr(other, part).tolist()
        for part in ("tokens", "leftover_masks", "commit_step")
    )


@quick
@given(jobs(approximate=True))
def test_the_result_is_whole(job: Job) -> None:
    """Every position holds a token of the vocabulary, never the mask.

    In at most `steps` passes (+1: leftovers), twice as many under guidance.
    """
    found = job.run()
    rows = len(job.prompts)
    assert found.tokens.shape == found.commit_step.shape == (rows, job.gen_length)
    assert found.nfe.shape == found.leftover_masks.shape == (rows,)
    assert ((found.tokens >= 0) & (found.tokens < VOCAB) & (found.tokens != MASK)).all()
    assert (found.nfe >= 1).all()
    assert (found.nfe <= job.passes * (job.steps + (found.leftover_masks > 0))).all()
    assert ((found.commit_step >= -1) & (found.commit_step <= job.steps)).all()
    if job.options["eos_fill"]:
        assert (found.tokens[found.commit_step == -1] == EOS).all()
    else:
        assert (found.commit_step >= 0).all()
        # The extra pass comes after the last step, and it fills what was left and nothing else.
        assert (found.commit_step == job.steps).sum(-1).tolist() == found.leftover_masks.tolist()
    if "kernel_size" not in job.options:
        assert not found.leftover_masks.any()


@quick
@given(jobs(rows=1))
def test_the_prompt_never_changes(job: Job) -> None:
    """In every canvas that the model sees: the prompt, then masks and tokens, nothing else.

    Guidance shows each canvas a second time, its prompt masked.
    """
    recorder = Recorder(job.denoiser)
    found = job.run(recorder)
    prompt = job.prompts[0]
    assert len(recorder.canvases) == found.nfe.item()
    for canvas in recorder.canvases[:: job.passes]:
        assert canvas.shape == (1, len(prompt) + job.gen_length)
        assert canvas[0, : len(prompt)].tolist() == prompt
    assert (recorder.canvases[0][0, len(prompt) :] == MASK).all()
    if job.passes == 2:
        for canvas, hushed in zip(recorder.canvases[::2], recorder.canvases[1::2], strict=True):
            assert (hushed[0, : len(prompt)] == MASK).all()
            assert hushed[0, len(prompt) :].tolist() == canvas[0, len(prompt) :].tolist()


def histories(job: Job) -> tuple[Decoded, list[list[list[tuple[int, int, int]]]]]:
    """What was decoded, and of each row and step what happened: (offset, token, what had stood there)."""
    found = job.run(trace=True)
    assert found.trace is not None
    canvases = [[MASK] * job.gen_length for _ in job.prompts]
    steps: list[list[list[tuple[int, int, int]]]] = [[[] for _ in range(job.steps + 1)] for _ in job.prompts]
    columns = (found.trace.step, found.trace.row, found.trace.offset, found.trace.token)
    for step, row, offset, token in zip(*(column.tolist() for column in columns), strict=True):
        steps[row][step].append((offset, token, canvases[row][offset]))
        canvases[row][offset] = token
    return found, steps


@quick
@given(jobs(revising=False))
def test_every_position_commits_once(job: Job) -> None:
    """A rule that never revises: one event a position, at its commit_step, with its final token."""
    found, steps = histories(job.having(eos_fill=False))
    for row, history in enumerate(steps):
        events = [(offset, token, step) for step, events in enumerate(history) for offset, token, _ in events]
        final = zip(range(job.gen_length), found.tokens[row].tolist(), found.commit_step[row].tolist(), strict=True)
        assert sorted(events) == list(final)


@quick
@given(jobs())
def test_only_open_masks_commit(job: Job) -> None:
    """A commit fills a mask within its phase, and within the kernel's reach of what stood there before the step.

    Only a token is masked again, within the phase or, where it ends, beyond the stride.
    """
    job = job.having(eos_fill=False)
    _, steps = histories(job)
    clock = [phase for phase in job.phases for _ in range(phase.steps)]
    reach = job.options["kernel_size"] // 2 if "kernel_size" in job.options else None
    if job.options.get("gain") == "sigmoid":  # 1/2 where there is no context
        reach = None
    for prompt, history in zip(job.prompts, steps, strict=True):
        canvas = [*prompt, *[MASK] * job.gen_length]
        for phase, events in zip(clock, history, strict=False):
            before = list(canvas)
            for offset, token, there in events:
                place = len(prompt) + offset
                assert (there == MASK) != (token == MASK)
                assert phase.start <= offset < phase.end or (token == MASK and offset >= phase.keep)
                anywhere = all(other == MASK for other in before)  # nothing committed: no place to start from
                if token != MASK and reach is not None and not anywhere:
                    near = before[max(place - reach, 0) : place + reach + 1]
                    assert any(other != MASK for other in near)
                canvas[place] = token


@quick
@given(jobs(names=("semi_ar",)))
def test_each_block_commits_in_its_own_phase(job: Job) -> None:
    """Or after the last step, where a kernel left it masked."""
    blocks = job.gen_length // job.options["block_length"]
    stamps = job.run().commit_step
    for offset in range(job.gen_length):
        own = stamps[:, offset]
        phase = own // (job.steps // blocks)
        assert ((own == -1) | (own == job.steps) | (phase == offset // job.options["block_length"])).all()


@quick
@given(jobs(names=("low_confidence", "semi_ar", "first_hitting"), rules=("low_confidence", "first_hitting")))
def test_fixed_counts(job: Job) -> None:
    """ceil(masks left / steps left) at every step, of the whole window or of each block (`restrict`); Dream's share."""
    job = job.having(eos_fill=False, kernel_size=None)
    if "block_length" in job.options:
        job = job.having(variant="restrict")
    blocks = job.gen_length // job.options.get("block_length", job.gen_length)
    expected = []
    for _ in range(blocks):
        left, steps = job.gen_length // blocks, job.steps // blocks
        for step in range(steps):
            dreams = job.options.get("count") == "dream" and step < steps - 1
            expected.append(int(left * 0.999 / (steps - 0.999 * step)) if dreams else math.ceil(left / (steps - step)))
            left -= expected[-1]
    for row in job.run().commit_step.tolist():
        assert [row.count(step) for step in range(job.steps)] == expected


@quick
@given(jobs(names=("threshold", "factor", "klass", "credit", "entropy_bounded", "frechet", "prophet")))
def test_a_threshold_commits_no_fewer_than_the_schedule(job: Job) -> None:
    """As many passes as low_confidence at most, and never a mask left."""
    job = job.having(eos_fill=False, kernel_size=None, block_length=None)
    found, counted = job.run(), replace(job, name="low_confidence", options={"penalty": 1.0}).run()
    assert not found.leftover_masks.any()
    assert (found.nfe <= job.passes * counted.nfe).all()


@quick
@given(jobs(names=("conv",)), prompt_lists(least=1))
def test_conv_over_the_whole_canvas_is_no_conv(job: Job, prompts: list[list[int]]) -> None:
    """A kernel that covers everything from everywhere, gain `step`: s_i = 1, token for token its plain rule."""
    reach = max(map(len, prompts)) + job.gen_length
    job = replace(job, prompts=prompts)
    plain = job.plain().having(block_length=job.options.get("block_length"))
    assert same(job.run(kernel_size=2 * reach + 1, gain="step"), plain.run())


@quick
@given(jobs(names=("semi_ar",)), st.integers(1, 10), st.integers(1, 14))
def test_one_block_is_no_block(job: Job, gen_length: int, steps: int) -> None:
    job = replace(job, gen_length=gen_length, steps=steps)
    plain = job.plain().having(kernel_size=job.options.get("kernel_size"))
    assert same(job.run(block_length=gen_length), plain.run())


@quick
@given(jobs())
def test_options_that_are_off_change_nothing(job: Job) -> None:
    """A penalty of 1, guidance of 0 and a free EOS: exactly the decoder without."""
    bare = replace(
        job, options={key: value for key, value in job.options.items() if key not in ("penalty", "cfg_scale", "eos")}
    )
    if job.name == "repetition_penalty":
        bare = bare.having(penalty=1.0)
    assert same(bare.run(), job.run(penalty=1.0, cfg_scale=0.0, eos="free"))


@quick
@given(jobs(approximate=True))
def test_the_cache_is_exact(job: Job) -> None:
    with_cache, without = job.run(cache=True), job.run(cache=False)
    assert same(with_cache, without)
    assert (with_cache.nfe <= without.nfe).all()


def test_the_cache_saves_passes() -> None:
    """14 steps for 3 tokens: a pass for each step that follows a change, at most 4 (the first counts as one)."""
    job = Job("top_k", {"top_k": 2}, 3, 14, [[2, 3]], 0)
    assert job.run().nfe.item() <= 4 < job.run(cache=False).nfe.item() <= 14


ONE_AT_A_TIME = (
    *("low_confidence", "threshold", "factor", "first_hitting", "klass", "credit"),
    *("entropy_bounded", "frechet", "pc_sampler", "certainty_prior", "prophet"),
)


@quick
@given(jobs(names=("conv",), rows=2, revising=False), prompt_lists(least=1), st.integers(1, 4), st.integers(6, 10))
def test_a_small_kernel_leaves_masks_and_they_are_filled(
    job: Job, prompts: list[list[int]], steps: int, gen_length: int
) -> None:
    """With a kernel of 3 only the position beside the text can commit: one a step at most, one at the last step."""
    job = job.having(kernel_size=3, gain="step", eos_fill=False, block_length=None)
    found = replace(job, prompts=prompts, steps=steps, gen_length=gen_length).run()
    assert (found.leftover_masks >= gen_length - steps).all() and (found.leftover_masks < gen_length).all()
    if job.rule in ONE_AT_A_TIME and job.options.get("count") != "dream":  # which may be none
        assert (found.leftover_masks == gen_length - steps).all()
        assert (found.nfe == job.passes * (steps + 1)).all()
    assert (found.tokens != MASK).all()
    # From left to right, and the rest at once.
    assert (found.commit_step.diff(dim=-1) >= 0).all()


@quick
@given(jobs(names=("conv",)))
def test_leftovers_are_filled_greedily(job: Job) -> None:
    """The extra pass takes the best token everywhere, on the canvas as the steps left it."""
    job = job.having(eos_fill=False, kernel_size=3, gain="tanh", block_length=None, penalty=1.0, cfg_scale=0.0)
    job = replace(job, prompts=job.prompts[:1], steps=2)
    found = job.run()
    prompt, left = job.prompts[0], found.commit_step[0] == job.steps
    canvas = found.tokens.clone()
    canvas[0, left] = MASK
    canvas = canvas.new_tensor([prompt + canvas[0].tolist()])
    logits = job.denoiser.logits(job.denoiser.hidden(canvas, canvas >= 0)[0])[len(prompt) :]
    if job.options.get("eos") == "never":
        logits[:, EOS] = -math.inf
    assert found.tokens[0, left].tolist() == logits.argmax(-1)[left].tolist()


@quick
@given(jobs())
@example(Job("semi_ar", {"variant": "stride", "block_length": 2, "top_k": 2}, 6, 6, [[2, 3], [4]], 5))
def test_eos_fill_fills(job: Job) -> None:
    """Everything after the first EOS of the response is EOS; an EOS in the prompt ends nothing."""
    job = replace(job, prompts=[[*prompt, EOS] for prompt in job.prompts])
    found = job.run(eos_fill=True)
    for tokens in found.tokens.tolist():
        if EOS in tokens:
            assert set(tokens[tokens.index(EOS) :]) == {EOS}


def test_eos_fill_ends_some_and_not_all() -> None:
    found = Job("top_k", {"top_k": 3, "eos_fill": True}, 6, 6, [[2, 3], [EOS], [4, 4], [5]] * 5, 1).run()
    ended = (found.tokens == EOS).any(-1)
    assert ended.any() and not ended.all()
    assert (found.commit_step == -1).any()
    # An ended row takes part in no further pass.
    assert found.nfe[ended].double().mean() < found.nfe[~ended].double().mean()


@quick
@given(jobs(approximate=True))
def test_rows_do_not_see_each_other(job: Job) -> None:
    together = job.run()
    for row in range(len(job.prompts)):
        alone = job.run(rows=slice(row, row + 1))
        for part in ("tokens", "nfe", "leftover_masks", "commit_step"):
            assert getattr(together, part)[row].tolist() == getattr(alone, part)[0].tolist()
