"""What holds for every decoder, whatever its options, lengths, prompts and logits."""

import math
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import Recorder, TableDenoiser

from dlm.decoding.loop import Decoded, decode
from dlm.decoding.noise import row_keys
from dlm.decoding.options import DECODERS, RULES, TopKOptions, decoder_options
from dlm.decoding.presets import make_decoder
from dlm.models.denoiser import Denoiser

VOCAB, EOS, MASK = 7, 0, 1
WINDOWED = tuple(name for name in RULES if name != "sliding_annealing")  # rules that windows and blocks go with

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

    def run(self, denoiser: Denoiser | None = None, rows: slice = slice(None), **more: Any) -> Decoded:
        return decode(
            denoiser or self.denoiser,
            self.prompts[rows],
            make_decoder(decoder_options(self.name, {**self.options, **more}, self.name)),
            gen_length=self.gen_length,
            steps=self.steps,
            keys=row_keys(self.prompts, self.seed)[rows],
            eos_id=EOS,
        )


def prompt_lists(least: int = 0, most_rows: int = 3) -> st.SearchStrategy[list[list[int]]]:
    token = st.sampled_from([i for i in range(VOCAB) if i != MASK])
    return st.lists(st.lists(token, min_size=least, max_size=5), min_size=1, max_size=most_rows)


@st.composite
def jobs(draw: st.DrawFn, names: tuple[str, ...] = tuple(DECODERS), rows: int = 3, rules: tuple[str, ...] = ()) -> Job:
    name = draw(st.sampled_from(names))
    options: dict[str, Any] = {"eos_fill": draw(st.booleans())}
    gen_length, steps = draw(st.integers(1, 10)), draw(st.integers(1, 14))
    options["penalty"] = draw(st.sampled_from([1.0, 1.5]))
    if name in ("top_k", "conv", "semi_ar", "remdm"):
        options["top_k"] = draw(st.sampled_from([1, 2, 3, 99]))
    if name == "remdm":
        options["schedule"] = draw(st.sampled_from(["loop", "cap", "rescale", "conf"]))
    if name == "conv":
        options["rule"] = draw(st.sampled_from(rules or WINDOWED))
        options["kernel"] = draw(st.sampled_from(["box", "exponential"]))
        options["kernel_size"] = draw(st.sampled_from([1, 3, 5, 31]))
        options["gain"] = draw(st.sampled_from(["tanh", "linear", "sigmoid", "step"]))
        options["conv_mult"] = draw(st.sampled_from([0.05, 0.5, 4.0]))
    if name == "semi_ar":
        options["rule"] = draw(st.sampled_from(rules or WINDOWED))
        options["variant"] = draw(st.sampled_from(["stride", "restrict"]))
        options["block_length"] = draw(st.integers(1, 4))
        blocks = draw(st.integers(1, 3))
        gen_length, steps = blocks * options["block_length"], blocks * draw(st.integers(1, 5))
    return Job(name, options, gen_length, steps, draw(prompt_lists(most_rows=rows)), draw(st.integers(0, 999)))


def plain_options(job: Job) -> dict[str, Any]:
    """A conv's or semi-AR's options without the window or the blocks."""
    kept = {"eos_fill", "penalty"} | ({"top_k"} if issubclass(RULES[job.options["rule"]], TopKOptions) else set())
    return {key: value for key, value in job.options.items() if key in kept}


def revokes(job: Job) -> bool:
    """Whether a committed token may be masked again."""
    return "remdm" in (job.name, job.options.get("rule"))


def same(one: Decoded, other: Decoded) -> bool:
    return all(
        getattr(one, part).tolist() == getattr(other, part).tolist()
        for part in ("tokens", "leftover_masks", "commit_step")
    )


@quick
@given(jobs())
def test_the_result_is_whole(job: Job) -> None:
    """Every position holds a token of the vocabulary, never the mask, in at most `steps` passes (+1: leftovers)."""
    found = job.run()
    rows = len(job.prompts)
    assert found.tokens.shape == found.commit_step.shape == (rows, job.gen_length)
    assert found.nfe.shape == found.leftover_masks.shape == (rows,)
    assert ((found.tokens >= 0) & (found.tokens < VOCAB) & (found.tokens != MASK)).all()
    assert (found.nfe >= 1).all() and (found.nfe <= job.steps + (found.leftover_masks > 0)).all()
    assert ((found.commit_step >= -1) & (found.commit_step <= job.steps)).all()
    if job.options["eos_fill"]:
        assert (found.tokens[found.commit_step == -1] == EOS).all()
    else:
        assert (found.commit_step >= 0).all()
        # The extra pass comes after the last step, and it fills what was left and nothing else.
        assert (found.commit_step == job.steps).sum(-1).tolist() == found.leftover_masks.tolist()
    if job.name != "conv":
        assert not found.leftover_masks.any()


@quick
@given(jobs(rows=1))
def test_the_prompt_never_changes(job: Job) -> None:
    """In every canvas that the model sees: the prompt, then masks and tokens, nothing else."""
    recorder = Recorder(job.denoiser)
    found = job.run(recorder)
    prompt = job.prompts[0]
    assert len(recorder.canvases) == found.nfe.item()
    for canvas in recorder.canvases:
        assert canvas.shape == (1, len(prompt) + job.gen_length)
        assert canvas[0, : len(prompt)].tolist() == prompt
    assert (recorder.canvases[0][0, len(prompt) :] == MASK).all()


@quick
@given(jobs(names=tuple(name for name in DECODERS if name != "semi_ar"), rows=1))
def test_every_position_commits_once(job: Job) -> None:
    """Masked up to its commit_step, its final token ever after (-1: EOS-fill set it, maybe over a token).

    What ReMDM masks again is masked just before its last commit at the latest.
    """
    recorder = Recorder(job.denoiser)
    found = job.run(recorder, cache=False)
    tokens, stamps = found.tokens[0].tolist(), found.commit_step[0].tolist()
    for step, canvas in enumerate(recorder.canvases):
        response = canvas[0, len(job.prompts[0]) :].tolist()
        for seen, token, stamp in zip(response, tokens, stamps, strict=True):
            if stamp >= 0 and (step >= stamp or not revokes(job)):
                assert seen == (MASK if step <= stamp else token)


@quick
@given(jobs(names=("semi_ar",)))
def test_each_block_commits_in_its_own_phase(job: Job) -> None:
    blocks = job.gen_length // job.options["block_length"]
    stamps = job.run().commit_step
    for offset in range(job.gen_length):
        own = stamps[:, offset]
        assert ((own == -1) | (own // (job.steps // blocks) == offset // job.options["block_length"])).all()


@quick
@given(jobs(names=("low_confidence", "semi_ar"), rules=("low_confidence",)))
def test_low_confidence_counts(job: Job) -> None:
    """ceil(masks left / steps left) at every step, of the whole window or of each block (`restrict`)."""
    job = replace(job, options={**job.options, "eos_fill": False})
    if job.name == "semi_ar":
        job.options["variant"] = "restrict"
    blocks = job.gen_length // job.options.get("block_length", job.gen_length)
    expected = []
    for _ in range(blocks):
        left, steps = job.gen_length // blocks, job.steps // blocks
        for step in range(steps):
            expected.append(math.ceil(left / (steps - step)))
            left -= expected[-1]
    for row in job.run().commit_step.tolist():
        assert [row.count(step) for step in range(job.steps)] == expected


@quick
@given(jobs(names=("conv",)), prompt_lists(least=1))
def test_conv_over_the_whole_canvas_is_no_conv(job: Job, prompts: list[list[int]]) -> None:
    """A kernel that covers everything from everywhere, gain `step`: s_i = 1, token for token its plain rule."""
    reach = max(map(len, prompts)) + job.gen_length
    job = replace(job, prompts=prompts)
    rule = job.options["rule"]
    plain = plain_options(job)
    conv = job.run(kernel_size=2 * reach + 1, gain="step")
    assert same(conv, replace(job, name=rule, options=plain).run())


@quick
@given(jobs(names=("semi_ar",)), st.integers(1, 10), st.integers(1, 14))
def test_one_block_is_no_block(job: Job, gen_length: int, steps: int) -> None:
    job = replace(job, gen_length=gen_length, steps=steps)
    rule = job.options["rule"]
    plain = plain_options(job)
    assert same(job.run(block_length=gen_length), replace(job, name=rule, options=plain).run())


@quick
@given(jobs())
def test_the_cache_is_exact(job: Job) -> None:
    with_cache, without = job.run(cache=True), job.run(cache=False)
    assert same(with_cache, without)
    assert (with_cache.nfe <= without.nfe).all()


@quick
@given(jobs(rows=2), st.sampled_from([0.5, 2.0]))
def test_guidance_is_whole_and_takes_two_passes(job: Job, cfg_scale: float) -> None:
    """With the cache, without it, alone and together: the same; an even number of passes."""
    found = job.run(cfg_scale=cfg_scale)
    assert same(found, job.run(cfg_scale=cfg_scale, cache=False))
    assert (found.tokens != MASK).all() and (found.nfe % 2 == 0).all()
    assert found.tokens[0].tolist() == job.run(cfg_scale=cfg_scale, rows=slice(0, 1)).tokens[0].tolist()


def test_the_cache_saves_passes() -> None:
    """14 steps for 3 tokens: a pass for each step that follows a change, at most 4 (the first counts as one)."""
    job = Job("top_k", {"top_k": 2}, 3, 14, [[2, 3]], 0)
    assert job.run().nfe.item() <= 4 < job.run(cache=False).nfe.item() <= 14


@quick
@given(jobs(names=("conv",), rows=2), prompt_lists(least=1), st.integers(1, 4), st.integers(6, 10))
def test_a_small_kernel_leaves_masks_and_they_are_filled(
    job: Job, prompts: list[list[int]], steps: int, gen_length: int
) -> None:
    """With a kernel of 3 only the position beside the text can commit: one a step at most, one at the last step."""
    options = {**job.options, "kernel_size": 3, "gain": "step", "eos_fill": False}
    found = replace(job, prompts=prompts, options=options, steps=steps, gen_length=gen_length).run()
    assert (found.leftover_masks >= gen_length - steps).all() and (found.leftover_masks < gen_length).all()
    if options["rule"] == "low_confidence":
        assert (found.leftover_masks == gen_length - steps).all()
        assert (found.nfe == steps + 1).all()
    assert (found.tokens != MASK).all()
    # From left to right, and the rest at once.
    assert (found.commit_step.diff(dim=-1) >= 0).all()


@quick
@given(jobs(names=("conv",)))
def test_leftovers_are_filled_greedily(job: Job) -> None:
    """The extra pass takes the best token everywhere, on the canvas as the steps left it."""
    changes = {"eos_fill": False, "kernel_size": 3, "gain": "tanh", "penalty": 1.0}
    job = replace(job, options={**job.options, **changes}, steps=2)
    job = replace(job, prompts=job.prompts[:1])
    found = job.run()
    prompt, left = job.prompts[0], found.commit_step[0] == job.steps
    canvas = found.tokens.clone()
    canvas[0, left] = MASK
    canvas = canvas.new_tensor([prompt + canvas[0].tolist()])
    logits = job.denoiser.logits(job.denoiser.hidden(canvas, canvas >= 0)[0])[len(prompt) :]
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
@given(jobs())
def test_rows_do_not_see_each_other(job: Job) -> None:
    together = job.run()
    for row in range(len(job.prompts)):
        alone = job.run(rows=slice(row, row + 1))
        for part in ("tokens", "nfe", "leftover_masks", "commit_step"):
            assert getattr(together, part)[row].tolist() == getattr(alone, part)[0].tolist()
