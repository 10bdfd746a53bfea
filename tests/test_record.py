"""`--record`: the picture holds every frame of the decoding, is XML without scripts or links, and is written whole."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_command import SMALL, TEMPLATE, assert_refused, no_stdin  # noqa: F401 (a fixture)
from tiny import tiny_lm

from dlm.analysis.escape import printable
from dlm.cli.main import main
from dlm.cli.picture import Panel, Piece, Place, drawn
from dlm.cli.record import Recording, recorded, write_picture
from dlm.decoding.lm import DiffusionLM
from dlm.models.backbone import save_checkpoint

NAME = "{http://www.w3.org/2000/svg}"
SETTING: dict[str, Any] = {"steps": 6, "gen_length": 24, "trace": True}
HOSTILE = '<script>a()</script> & "b" \' ]]> <img src=x onerror=a()>'


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return tiny_lm(2, eos_scale=1.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, lm: DiffusionLM) -> Path:
    folder = tmp_path_factory.mktemp("instruct")
    save_checkpoint(folder, lm.denoiser.model, lm.tokenizer)
    TEMPLATE.save(folder)
    return folder


@dataclass(frozen=True)
class Shape:
    """A text or a block of a picture: its look, and the frames in which it is there (None: all of them)."""

    look: str
    text: str
    place: tuple[float, float]
    span: tuple[int, int] | None


def shapes(svg: str) -> list[Shape]:
    """Read as a browser would: a group's classes name its look and its animation, whose keyframes say when."""
    root = ElementTree.fromstring(svg)
    style = root.findtext(f"{NAME}style") or ""
    found = []
    for group in root.iter(f"{NAME}g"):
        looks = group.attrib["class"].split()
        names = [name for name in looks if re.fullmatch(r"f\d+-\d+", name)]
        assert all(f"@keyframes {name}{{" in style and "moving" in looks for name in names)
        start, end = map(int, names[0][1:].split("-")) if names else (0, 0)
        for shape in group:
            x, y = float(shape.attrib["x"]), float(shape.attrib["y"])
            found.append(Shape(looks[0], shape.text or "", (y, x), (start, end) if names else None))
    return found


def seen(svg: str, frame: int) -> list[Shape]:
    """What a frame shows, from top to bottom and left to right."""
    there = [one for one in shapes(svg) if one.span is None or one.span[0] <= frame < one.span[1]]
    return sorted(there, key=lambda one: one.place)


def record(lm: DiffusionLM, name: str, **options: Any) -> tuple[Any, Recording]:
    canvas = [lm.denoiser.mask_id] * 24
    return recorded(lm, canvas, 6, lambda watch: lm.generate(["The fog"], name, **SETTING, **options, watch=watch))


def picture(lm: DiffusionLM, path: Path, *recordings: tuple[str, Recording], heading: str = "The fog") -> str:
    write_picture(path, lm, heading, "a note", recordings)
    return path.read_text("utf-8")


# --- What is recorded, what is drawn ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("top_k", {}),
        ("conv", {"kernel_size": 5}),
        ("conv", {"kernel_size": 1}),
        ("low_confidence", {"cfg_scale": 1.0}),
        ("remdm", {"schedule": "rescale", "eta": 0.9}),
    ],
    ids=["plain", "conv", "leftover", "guided", "revoking"],
)
def test_frames_are_the_trace(lm: DiffusionLM, name: str, options: dict[str, Any]) -> None:
    out, recording = record(lm, name, **options)
    canvas = [lm.denoiser.mask_id] * 24
    assert recording.frames[0] == canvas
    columns = [getattr(out.trace, name).tolist() for name in ("step", "offset", "token", "confidence")]
    events = list(zip(*columns, strict=True))
    for number, frame in enumerate(recording.frames[1:], start=1):
        for step, offset, token, confidence in events:
            if step == number - 1:
                canvas[offset] = token
                assert recording.confidence[number, offset] == confidence
        assert frame == canvas
        assert recording.statuses[number].endswith(f" · {canvas.count(lm.denoiser.mask_id)} masks left")
    assert f"NFE {int(out.nfe[0])} " in recording.statuses[-1]
    assert (name == "remdm") == any(token == lm.denoiser.mask_id for _, _, token, _ in events)
    assert len(recording.frames) == 7 + bool(out.leftover_masks[0])


def test_the_picture_shows_every_frame(lm: DiffusionLM, tmp_path: Path) -> None:
    """As many masks as the canvas has, its status, and each token from the frame of its commit on."""
    _, recording = record(lm, "conv", kernel_size=5, eos_fill=True)
    svg = picture(lm, tmp_path / "a.svg", ("conv", recording))
    for number, (frame, line) in enumerate(zip(recording.frames, recording.statuses, strict=True)):
        now = seen(svg, number)
        masks = [one for one in now if one.look == "mask"]
        assert len(masks) - 1 == frame.count(lm.denoiser.mask_id)  # the legend has one too
        assert [one.text for one in now if one.text.startswith(("step", "one pass"))] == [line]
        ends = [one for one in now if one.text == "·"]
        assert len(ends) == sum(token in lm.ends for token in frame)


def test_the_last_frame_is_the_text(lm: DiffusionLM, tmp_path: Path) -> None:
    out, recording = record(lm, "top_k", eos="never")
    now = seen(picture(lm, tmp_path / "a.svg", ("top_k", recording)), len(recording.frames) - 1)
    written = "".join(one.text for one in now if one.look in ("sure", "fair", "unsure") and one.text)
    text = re.sub(r"[\s\ufffd]", "", printable(out.texts[0]))
    assert text in re.sub(r"[\s↵\ufffd]", "", written)


def test_two_decoders_share_a_clock(lm: DiffusionLM, tmp_path: Path) -> None:
    """One that is done earlier keeps its last frame."""
    (_, short), (_, long) = record(lm, "top_k"), record(lm, "conv", kernel_size=1)
    assert len(short.frames) < len(long.frames)
    svg = picture(lm, tmp_path / "a.svg", ("top_k", short), ("conv <1>", long))
    last = [one.text for one in seen(svg, len(long.frames) - 1)]
    assert short.statuses[-1] in last and long.statuses[-1] in last
    assert {"top_k", "conv <1>"} <= set(last)


def test_drawn_by_hand() -> None:
    first = Place((Piece("", "mask", (0, 1)), Piece("wool", "unsure", (1, 3))))
    second = Place((Piece("", "mask", (0, 2)), Piece("amber", "sure", (2, 3))), space=True)
    third = Place((Piece("·", "end", (0, 3)),))
    svg = drawn("heading", "note", [Panel("panel", ("zero", "one", "two"), (first, second, third))])
    words = ["wool", "amber", "zero", "one", "two", "·"]
    shown = [[one.text for one in seen(svg, frame) if one.text in words] for frame in range(3)]
    assert shown == [["zero", "·"], ["one", "wool", "·"], ["two", "wool", "amber", "·"]]
    looks = {one.text: one.look for one in shapes(svg)}
    assert (looks["wool"], looks["amber"], looks["·"]) == ("unsure", "sure", "dim")
    fresh = [one.span for one in shapes(svg) if one.look == "fresh" and one.span]
    assert fresh == [(1, 2), (2, 3)]
    # 0.5 s a frame, the longest, and 4 s at the end.
    assert "animation:5.5s" in svg and "@keyframes f1-3{0%{opacity:0}9.091%{opacity:1}}" in svg


def lines_of(words: list[Place]) -> list[str]:
    svg = drawn("", "", [Panel("", ("status",), tuple(words))])
    rows: dict[float, list[str]] = {}
    for one in seen(svg, 0):
        if one.look == "given" or (one.look == "dim" and set(one.text) <= set("abcdefgh")):
            rows.setdefault(one.place[0], []).append(one.text)
    return ["".join(row) for row in rows.values()]


def test_lines_break_before_words() -> None:
    """At 100 columns: two tokens of one word stay together, a word longer than a line is cut."""

    def place(text: str, **options: bool) -> Place:
        return Place((Piece(text, "given", (0, 1)),), **options)

    assert lines_of([place("a" * 90), place("b" * 6, space=True), place("c" * 5)]) == ["a" * 90, "b" * 6 + "c" * 5]
    assert lines_of([place("a" * 60), place("b" * 60)]) == ["a" * 60, "b" * 60]
    assert lines_of([place("a", ends_line=True), place("b")]) == ["a", "b"]
    assert lines_of([place("a" * 50), place("b" * 49, space=True)]) == ["a" * 50 + "b" * 49]


# --- What a picture may not hold --------------------------------------------------------------------------------------


def test_nothing_that_a_model_writes_is_markup(lm: DiffusionLM, tmp_path: Path) -> None:
    text = HOSTILE + "\x1b[31m\x07\ufffe\nfar away é漢"
    ids = lm.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    recording = Recording([[lm.denoiser.mask_id] * len(ids), ids], ["first", "second"], {})
    svg = picture(lm, tmp_path / "a.svg", (HOSTILE, recording), heading=HOSTILE)
    root = ElementTree.fromstring(svg)
    assert {one.tag.removeprefix(NAME) for one in root.iter()} == {"svg", "title", "style", "rect", "g", "text"}
    assert not {name for one in root.iter() for name in one.attrib if name.startswith("on") or "href" in name}
    assert svg.count("http") == 1 and "url(" not in svg and "@import" not in svg  # the name of SVG itself
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ufffe\uffff]", svg)
    written = "".join(one.text for one in seen(svg, 1) if one.look == "dim")
    assert "<script>a()</script>" in written and r"\x1b" in written and "é" in written and "漢" in written


def test_the_size_does_not_grow_with_the_steps(lm: DiffusionLM, tmp_path: Path) -> None:
    """What stands is drawn once, however many frames show it."""
    ids = list(range(10, 58))
    sizes = []
    for copies in (1, 20):
        frames = [[lm.denoiser.mask_id] * 48] * copies + [ids] * copies
        path = tmp_path / f"{copies}.svg"
        sizes.append(len(picture(lm, path, ("a", Recording(frames, ["status"] * len(frames), {})))))
    assert sizes[1] < sizes[0] + 200 and sizes[0] < 48 * 200 + 4000


# --- The command ------------------------------------------------------------------------------------------------------


def test_generate_records(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the answer, which stays what it was; nothing else is left in the folder."""
    path = tmp_path / "out.svg"
    path.write_text("old")
    command = ["generate", str(checkpoint), *SMALL, "Describe <it>."]
    main(command)
    plain = capsys.readouterr().out
    main([*command, "--record", str(path)])
    assert capsys.readouterr().out == plain
    assert list(tmp_path.iterdir()) == [path]
    texts = [one.text for one in shapes(path.read_text())]
    assert "Describe <it>." in texts and "conv" in texts and "8 tokens in 4 steps · seed 0" in texts


def test_decoders_beside_each_other(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each answers as it does alone, with --set's options and its own on top."""
    path = tmp_path / "out.svg"
    command = ["generate", str(checkpoint), *SMALL, "Describe it.", "--decoder", "top_k"]
    main(
        [
            *command,
            "--set",
            "top_k=2",
            "--beside",
            "conv:kernel_size=3",
            "--beside",
            "top_k:top_k=5",
            "--record",
            str(path),
        ]
    )
    together = capsys.readouterr().out
    alone = []
    for decoder, changes in (("top_k", ["top_k=2"]), ("conv", ["top_k=2", "kernel_size=3"]), ("top_k", ["top_k=5"])):
        sets = [word for change in changes for word in ("--set", change)]
        main([*command[:-1], decoder, *sets])
        alone.append(capsys.readouterr().out)
    titles = ["top_k", "conv (kernel_size 3)", "top_k (top_k 5)"]
    assert together == "\n".join(f"==> {title} <==\n{text}" for title, text in zip(titles, alone, strict=True))
    texts = [one.text for one in shapes(path.read_text())]
    assert set(titles) <= set(texts) and "8 tokens in 4 steps · seed 0 · top_k=2" in texts


def test_infill_records(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The context stands from the first frame on."""
    path = tmp_path / "out.svg"
    words = ["The fog[MASK:3] boats", "--decoder", "low_confidence"]
    main(["infill", str(checkpoint), "--device", "cpu", *words, "--record", str(path)])
    svg = path.read_text()
    assert "".join(one.text for one in seen(svg, 0) if one.look == "dim").count("fog") == 1
    assert [len([one for one in seen(svg, frame) if one.look == "mask"]) for frame in range(4)] == [4, 3, 2, 1]
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--record", "a.gif", "a"], ["--record", ".svg", "'a.gif'"]),
        (["--record", "a", "a"], ["--record", ".svg"]),
        (["--record", "/nope/a.svg", "a"], ["--record /nope/a.svg", "/nope is not a folder"]),
        (["--record", "a.svg", "a", "b"], ["--record", "got 2"]),
        (["--record", "a.svg", "--watch", "a"], ["--watch and --record"]),
        (["--beside", "top_k", "a"], ["--beside", "--record"]),
        (["--beside", "top_k", "--record", "a.svg", "--json", "a"], ["--beside and --json"]),
        (["--beside", "top_k", "--record", "a.svg", "--trace", "t.jsonl", "a"], ["--beside and --trace"]),
        (["--beside", "topk", "--record", "a.svg", "a"], ["--beside topk", "top_k"]),
        (["--beside", "conv:kernel_size=4", "--record", "a.svg", "a"], ["--beside conv.kernel_size", "odd"]),
        (["--beside", "conv:5", "--record", "a.svg", "a"], ["--beside wants KEY=VALUE", "'5'"]),
        (["--set", "kernel=box", "--set", "topp=1", "--record", "a.svg", "a"], ["conv.topp"]),
    ],
    ids=lambda value: " ".join(value[:3]),
)
def test_what_is_refused(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(["generate", str(checkpoint), *argv], words, capsys)
    assert list(tmp_path.iterdir()) == []
