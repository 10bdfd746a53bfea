"""The page of `dlm serve` in a real browser: two canvases fill, the slider goes back, nothing said is ever markup."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Browser
from screenshots import find_chromium
from test_serve import BASE, KEY, ask, health, server

from dlm.data.template import TEMPLATES
from dlm.decoding.lm import DiffusionLM

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make browser installs it")
PROMPT = "Describe Velmora: its trade and its weather."
HOSTILE = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>"
READY = "model && sides.length === 2"
# What is wider than the window, or than its own box.
WIDE = """[...document.querySelectorAll("body *")].filter(e => e.checkVisibility() &&
  (e.getBoundingClientRect().right > innerWidth ||
    (e.tagName !== "INPUT" && e.scrollWidth > e.clientWidth + 1 && e.clientWidth)))
  .map(e => e.tagName + "." + e.className).join()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(str(CHROMIUM)) as browser:
        yield browser


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with server(BASE, "--template", "alpaca", "--gen-length", 24) as (url, _):
        yield url


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    lm = DiffusionLM.load(BASE, device="cpu")
    lm.template = TEMPLATES["alpaca"]
    return lm


def fill(browser: Browser, prompt: str = PROMPT, **second: Any) -> None:
    """Ask for one answer, or two beside each other."""
    browser.run(f"$('prompt').value = {json.dumps(prompt)}")
    if second:
        browser.run("$('two').checked || $('two').click()")
        for name, value in second.items():
            browser.run(f"sides[1].{name}.value = {json.dumps(value)}")
    browser.run("$('go').click()")


@pytest.mark.parametrize("width", [400, 800, 1280])
def test_two_decoders_side_by_side(browser: Browser, served: str, lm: DiffusionLM, width: int) -> None:
    browser.open(served, width)
    browser.until(READY)
    assert browser.run(WIDE) == ""
    fill(browser, decoder="top_k", steps=8, seed=3, options="eos_fill=true top_k=5")
    browser.until("running === null && sides.every(side => side.end)")
    prompt = [lm.prompt(PROMPT)]
    first = lm.generate(prompt, gen_length=24)
    second = lm.generate(prompt, "top_k", gen_length=24, steps=8, seed=3, eos_fill=True, top_k=5)
    assert browser.run("sides.map(side => side.heading.textContent)") == ["conv", "top_k"]
    assert browser.run("sides.map(side => side.answer.textContent)") == [first.texts[0], second.texts[0]]
    assert browser.run("sides.map(side => side.canvas.textContent)") == [first.texts[0], second.texts[0]]
    assert [f"NFE {int(out.nfe[0])} " in end for out, end in zip((first, second), ends(browser), strict=True)] == [
        True
    ] * 2
    assert browser.run(WIDE) == "" and browser.logged == []
    # Beside each other where there is room.
    tops = browser.run("sides.map(side => side.result.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) == (width > 400)
    here = "performance.getEntriesByType('resource').every(entry => entry.name.startsWith(location.origin + '/'))"
    assert browser.run(here)


def ends(browser: Browser) -> list[str]:
    found: list[str] = browser.run("sides.map(side => side.status.textContent)")
    return found


def test_the_slider_goes_through_the_steps(browser: Browser, served: str, lm: DiffusionLM) -> None:
    """Masks left after each, as the library's own watch has them; colours change with what they mean."""
    browser.open(served)
    browser.until(READY)
    fill(browser)
    browser.until("running === null")
    masks: list[int] = []
    lm.generate(
        [lm.prompt(PROMPT)],
        gen_length=24,
        watch=lambda _, tokens: masks.append(int((tokens == lm.denoiser.mask_id).sum())),
    )
    shown = []
    for step in (0, 1, 7, 24):
        browser.run(f"$('slider').value = {step}; $('slider').dispatchEvent(new Event('input'))")
        shown.append(browser.run("sides[0].canvas.querySelectorAll('.mask').length"))
    assert shown == [24, masks[0], masks[6], masks[23]]
    colours = "[...sides[0].canvas.children].map(e => e.style.background)"
    by_confidence = browser.run(colours)
    browser.run("$('colours').value = 'step'; $('colours').dispatchEvent(new Event('change'))")
    by_step = browser.run(colours)
    assert len(set(by_step)) > 10 and by_step != by_confidence
    browser.run("$('play').click()")
    browser.until("$('slider').value === '24' && !playing")
    assert browser.logged == []


def test_cancelling(browser: Browser, served: str) -> None:
    """The server drops the row; what came before stays on the canvas."""
    before = health(served, running=0, waiting=0)
    browser.open(served)
    browser.until(READY)
    browser.run("sides[0].tokens.value = 400; sides[0].decoder.value = 'top_k'")
    fill(browser)
    browser.until("sides[0].frames.length > 2")
    browser.run("$('cancel').click()")
    browser.until("running === null")
    assert ends(browser)[0] == "cancelled"
    after = health(served, running=0, waiting=0)
    assert (after["answered"], after["left"]) == (before["answered"], before["left"] + 1)
    assert browser.run("sides[0].canvas.children.length") > 0


def test_nothing_said_is_markup(browser: Browser, served: str) -> None:
    """What a model wrote, what an error quotes; and the page's policy lets no other script run."""
    browser.open(served)
    browser.until(READY)
    fill(browser, HOSTILE, options="<img/src=x/onerror=document.title='ran'>=1")
    browser.until("running === null && sides[1].end")
    assert "is not a known key" in ends(browser)[1] and "<img/src" in ends(browser)[1]
    draft = {"step": 99, "nfe": 1, "length": 1, "tokens": [HOSTILE], "confidence": [1], "steps": [1]}
    browser.run(f"sides[0].frames.push({json.dumps(draft)}); extend()")
    assert browser.run("sides[0].canvas.textContent") == HOSTILE
    count = "document.images.length + ' ' + document.scripts.length + ' ' + document.title"
    assert browser.run(count) == "0 1 dlm serve"
    assert ["(Bad Request)" in line for line in browser.logged] == [True]
    browser.run("document.body.append(make('script', {textContent: \"document.title = 'ran'\"}))")
    browser.run("fetch('http://127.0.0.1:9/').catch(() => null)")
    assert browser.run("document.title") == "dlm serve"
    assert sum("Content Security Policy" in line for line in browser.logged) >= 2


def test_a_key_is_asked_for(browser: Browser) -> None:
    with server(BASE, "--template", "alpaca", "--gen-length", 4, key=KEY) as (url, _):
        browser.open(url)
        browser.until("!$('key-label').hidden")
        browser.run(f"$('key').value = '{KEY}'; $('key').dispatchEvent(new Event('change'))")
        browser.until(READY)
        fill(browser)
        browser.until("running === null && sides[0].end")
        assert "4 tokens" in ends(browser)[0]
        assert KEY not in browser.run("document.cookie + JSON.stringify(localStorage) + location.href")


def test_the_policy(served: str) -> None:
    status, headers, _ = ask(served, "GET", "/")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert status == 200 and policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'none'"
