"""The report in a real browser: nothing that a model wrote runs, every figure is drawn, nothing is fetched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import answers, figures, page  # noqa: F401 (a fixture)

from dlm.analysis.figures import ReportFigure, write_figures
from dlm.analysis.page import side_by_side

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
# Written after the page's own text: what the browser made of it.
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  document.documentElement.dataset.found = [
    document.title, document.scripts.length, document.querySelectorAll("svg").length, images.length,
    images.filter(image => image.complete && image.naturalWidth > 400).length,
    performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
    document.documentElement.scrollWidth <= innerWidth,
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


@pytest.mark.parametrize("width", [1400, 400])
def test_report(figures: list[ReportFigure], width: int, tmp_path: Path) -> None:  # noqa: F811
    rows = [{**row, "answer": text} for row, text in zip(answers(8), HOSTILE, strict=True)]
    example = {"id": 0, "instruction": HOSTILE[1], "input": HOSTILE[0], "output": HOSTILE[2]}
    text = page(
        title="Report",
        figures=write_figures(tmp_path / "figures", figures),
        samples=side_by_side([example], {("sft", "conv"): rows}, rows, 0, 3),
        params_text="".join(HOSTILE),
    )
    path = tmp_path / "report.html"
    path.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    found = browse(f"--window-size={width},900", "--dump-dom", path.as_uri(), profile=tmp_path / "profile")
    (told,) = re.findall(r'data-found="([^"]*)"', found)
    # One script, the probe's own; no svg; all images there; nothing fetched; nothing sticks out to the right.
    assert told == f"Report|1|0|{len(figures)}|{len(figures)}|0|true"


def test_screenshot_shows_a_page(tmp_path: Path) -> None:
    path, picture = tmp_path / "report.html", tmp_path / "report.png"
    path.write_text(page(), encoding="utf-8")
    browse("--window-size=1200,900", f"--screenshot={picture}", path.as_uri(), profile=tmp_path / "profile")
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (900, 1200)
    assert 0.02 < (pixels[..., :3].mean(-1) < 0.6).mean() < 0.5  # dark text on a light page
