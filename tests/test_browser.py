"""The report in a real browser: nothing that a model wrote runs, every figure is drawn, nothing is fetched."""

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from screenshots import find_chromium
from test_report import ORDERED, answers, cells, figures, page  # noqa: F401 (a fixture)

from dlm.analysis.figures import ReportFigure, write_figures
from dlm.analysis.page import side_by_side
from dlm.analysis.table import build_table

CHROMIUM = find_chromium()
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
]
# Tries of a generated text to run: markup, an attribute, a link, and the template's own syntax.
HOSTILE = (
    "<script>document.title = 'ran'</script>",
    "<img src=x onerror=\"document.title = 'ran'\">",
    '"><svg onload="document.title = \'ran\'">',
    "{{ 7 * 7 }}{% raw %}",
)
# Written after the page's own text: what the browser made of it, at first and with everything unfolded.
PROBE = """<script>
const wide = () => [...document.querySelectorAll("body *")].filter(e => {
  const own = e.closest(".scroll");  // what scrolls in a box of its own may be wider than that
  const inside = e.clientWidth && e.scrollWidth > e.clientWidth + 1;
  return own ? e === own && own.getBoundingClientRect().right > innerWidth
    : inside || e.getBoundingClientRect().right > innerWidth;
}).map(e => e.tagName + "." + e.className);
addEventListener("load", () => {
  const images = [...document.images];
  const boxes = [...document.querySelectorAll(".scroll")].filter(e => e.checkVisibility()).length;
  const verdict = document.querySelector(".verdict").getBoundingClientRect().top;
  const first = [wide().join(), boxes, verdict < 900, document.body.scrollHeight];
  document.querySelectorAll("details").forEach(e => e.open = true);
  document.documentElement.dataset.layout = JSON.stringify([...first, wide().join()]);
  document.documentElement.dataset.found = [
    document.title, document.scripts.length, document.querySelectorAll("svg").length, images.length,
    images.filter(image => image.complete && image.naturalWidth > 400).length,
    performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
  ].join("|");
});
</script>"""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; make browser installs it")
pytestmark = needs_chromium


def browse(*arguments: str, profile: Path) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("width", [400, 800, 1280, 1920])
def test_report(figures: list[ReportFigure], width: int, tmp_path: Path) -> None:  # noqa: F811
    """The first verdict within the first 900 pixels; nothing wider than its box, folded or not."""
    rows = [{**row, "answer": text} for row, text in zip(answers(8), HOSTILE, strict=True)]
    example = {"id": 0, "instruction": HOSTILE[1], "input": HOSTILE[0], "output": HOSTILE[2] + "x" * 200}
    decoders = list(ORDERED)
    text = page(
        title="Report",
        rows=build_table(
            [{**row, "area": 0.5} for steps in (16, 64) for row in every_cell(steps)],
            {(decoder, 16): {"rule": "low_confidence", "kernel_size": 129} for decoder in decoders},
        ),
        figures=write_figures(tmp_path / "figures", figures),
        samples=side_by_side([example], {(c, d): rows for c in ("sft", "r2ft") for d in decoders}, rows, 0, 3),
        params_text="".join(HOSTILE) + "y" * 300,
    )
    path = tmp_path / "report.html"
    path.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    found = browse(f"--window-size={width},900", "--dump-dom", path.as_uri(), profile=tmp_path / "profile")
    (told,) = re.findall(r'data-found="([^"]*)"', found)
    # One script, the probe's own; no svg; all images there; nothing fetched.
    assert told == f"Report|1|0|{len(figures)}|{len(figures)}|0"
    (layout,) = re.findall(r'data-layout="([^"]*)"', found)
    wide, boxes, at_once, height, wide_unfolded = json.loads(unescape(layout))
    assert (wide, boxes, at_once, wide_unfolded) == ("", 0, True, "")
    assert height < (6000 if width == 400 else 4000)


def every_cell(steps: int) -> list[dict[str, Any]]:
    """Cells with wide numbers; the reference once."""
    rows = cells(ORDERED, perplexity=123456.7, length=1024.5)
    return [{**row, "steps": row["steps"] and steps} for row in rows[steps != 16 :]]


def test_screenshot_shows_a_page(tmp_path: Path) -> None:
    path, picture = tmp_path / "report.html", tmp_path / "report.png"
    path.write_text(page(), encoding="utf-8")
    browse("--window-size=1200,900", f"--screenshot={picture}", path.as_uri(), profile=tmp_path / "profile")
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (900, 1200)
    assert 0.02 < (pixels[..., :3].mean(-1) < 0.6).mean() < 0.5  # dark text on a light page
