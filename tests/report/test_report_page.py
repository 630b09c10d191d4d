"""The report in a real browser: what readers see on a desk and on a phone, in light and dark, with scripts and without.

Chromium is needed. In CI it must be there (.ci/run installs it); elsewhere its absence skips these tests, and says so.
"""

import io
import os
from pathlib import Path

import pytest
import run_directories as made
from browser import Reader, Seen, executable, look, look_often
from PIL import Image

from unsloth_accel import report

pytestmark = pytest.mark.skipif(
    executable() is None and os.environ.get("CI") != "true",
    reason="no Chromium here: install `chromium` (Debian, Ubuntu) or put `google-chrome` on PATH; CI has it",
)

WIDTH = "document.documentElement.scrollWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
TEXT = "document.body.innerText"
BOXES = """[...document.querySelectorAll('h1, .cards strong, .chart svg, .bar')].map(element => {
    const box = element.getBoundingClientRect()
    return [box.left, box.right, box.width, box.height]
})"""
OVERLAPS = """[...document.querySelectorAll('.tags')].flatMap(tags => {
    const boxes = [...tags.children].map(tag => tag.getBoundingClientRect()).sort((a, b) => a.top - b.top)
    const axis = tags.parentElement.querySelector('.xs em').getBoundingClientRect()
    const over = boxes.filter(box => box.bottom > axis.top + 2 && box.right > axis.left && box.height > 16)
    return [...boxes.slice(1).filter((box, index) => box.top < boxes[index].bottom - 1), ...over]
}).length"""
CUT = """[...document.querySelectorAll('.cards > div, .xs span, .notice, .row, td')]
    .filter(element => element.scrollWidth > element.clientWidth + 1 && element.clientWidth).map(e => e.innerText)"""
BROKEN = """[...document.querySelectorAll('table.wide:not(.settings):not(.ranks) td')].filter(cell => {
    const range = document.createRange()
    range.selectNodeContents(cell)
    return new Set([...range.getClientRects()].map(box => box.top)).size > 1
}).map(cell => cell.innerText)"""
HIDDEN = """[...document.querySelectorAll('.code')].filter(box => {
    box.closest('details')?.setAttribute('open', '')
    return box.scrollWidth > box.clientWidth + 1 || box.firstChild.scrollWidth > box.clientWidth + 1
}).map(box => box.innerText)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("runs")
    found = {}
    for kind, make in made.KINDS.items():
        made_here = make(directory / kind, **({"steps": 300} if kind == "eight-gpus" else {}))
        found[kind] = report.write(made_here)
    other = made.two_gpus(directory / "other", seed=9, speed=1.35, rate=3e-4)
    found["compared"] = report.write_comparison(directory / "two-gpus", other)
    return found


def dark_share(png: bytes) -> float:
    """The part of a picture that is darker than half grey."""
    histogram = Image.open(io.BytesIO(png)).convert("L").histogram()
    return sum(histogram[:128]) / sum(histogram)


def check(seen: Seen, width: int) -> None:
    """Nothing is loaded or complained of, and nothing needs scrolling sideways."""
    assert seen.requests == []
    assert seen.complaints == []
    assert seen.answers[0] <= width


@pytest.mark.parametrize("kind", [*made.KINDS, "compared"])
def test_every_page_fits_phone_and_desk(kind: str, pages: dict[str, Path]) -> None:
    readers = [Reader(width=width, scheme=scheme, whole=False) for width in (390, 1280) for scheme in ("light", "dark")]
    found = look_often(pages[kind], readers, WIDTH, BACKGROUND, BOXES, OVERLAPS, CUT, BROKEN, HIDDEN)
    for reader, seen in zip(readers, found, strict=True):
        check(seen, reader.width)
        for left, right, width, height in seen.answers[2]:
            assert 0 <= left < right <= reader.width
            assert min(width, height) > 10
        assert seen.answers[3] == 0, "labels at the ends of lines cover each other"
        assert seen.answers[4] == [], "words are wider than their place"
        assert seen.answers[5] == [], "figures are broken in their middle"
        assert seen.answers[6] == [], "code goes on beyond its box"
    light, dark = found[0], found[1]
    assert (light.answers[1], dark.answers[1]) == ("rgb(250, 249, 246)", "rgb(18, 20, 23)")
    assert dark_share(light.png) < 0.2 < 0.8 < dark_share(dark.png)


def test_the_headline_is_seen_first(pages: dict[str, Path]) -> None:
    """Within the window, before any scrolling."""
    script = "[...document.querySelectorAll('header *')].filter(e => e.getBoundingClientRect().bottom < innerHeight)"
    script += ".map(e => e.innerText).join(' ')"
    for width in (390, 1280):
        seen = look(pages["two-gpus"], WIDTH, script, reader=Reader(width=width, height=844, whole=False))
        for words in ("finished", "Llama-3.2-1B-Instruct", "2 × NVIDIA H100", "64 rows per step", "1.37 → 0.411"):
            assert words in seen.answers[1]
        for words in ("tokens per second", "MFU 41\u00a0%", "1 min 20 s", "11.5 GiB", "0\u00a0% → 89\u00a0%"):
            assert words in seen.answers[1]


def test_a_failure_is_seen_first(pages: dict[str, Path]) -> None:
    seen = look(pages["crashed"], WIDTH, "document.querySelector('.notice').getBoundingClientRect().bottom", TEXT)
    assert seen.answers[1] < 500
    assert "rank 1 has no memory left at step 61." in seen.answers[2]


def test_the_page_is_whole_without_scripts(pages: dict[str, Path]) -> None:
    """What scripts add is buttons and read-outs; they take nothing away."""
    without = look(pages["two-gpus"], WIDTH, TEXT, reader=Reader(scripts=False))
    # With scripts disabled the page runs none, while the protocol still may.
    seen = look(pages["two-gpus"], WIDTH, TEXT)
    check(without, 1280)
    assert "Copy" not in without.answers[1].split()
    assert without.answers[1].split() == [word for word in seen.answers[1].split() if word != "Copy"]


def test_a_chart_is_read_with_the_keyboard(pages: dict[str, Path]) -> None:
    press = """(() => {
        const plot = document.querySelector('.plot')
        plot.focus()
        const said = []
        for (const key of ['End', 'ArrowLeft', 'Home', 'Escape']) {
            plot.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))
            said.push(plot.querySelector('output').textContent)
        }
        return said
    })()"""
    seen = look(pages["two-gpus"], WIDTH, press)
    check(seen, 1280)
    last, before, first, none = seen.answers[1]
    assert "held-out" not in before, "nothing was evaluated after step 239"
    loss = made_losses(pages["two-gpus"].parent)
    assert last.startswith("step 240: training ")
    assert before.startswith("step 239: training ")
    assert float(last.split("training ")[1].split(",")[0]) == pytest.approx(loss[-1], abs=0.003)
    assert "held-out 1.36" in first
    assert none == ""


def test_the_contents_lead_to_every_section(pages: dict[str, Path]) -> None:
    script = """[...document.querySelectorAll('nav a')].map(link => {
        link.click()
        return [location.hash, link.innerText, document.querySelector(location.hash).innerText]
    })"""
    seen = look(pages["two-gpus"], WIDTH, script, "[...document.querySelectorAll('h2')].map(title => title.innerText)")
    assert [title for _, title, _ in seen.answers[1]] == seen.answers[2]
    assert all(title == at for _, title, at in seen.answers[1])
    assert len(seen.answers[2]) == 8


def test_code_is_copied(pages: dict[str, Path]) -> None:
    click = """(async () => {
        const box = document.querySelector('.code')
        box.querySelector('button').click()
        await new Promise(done => setTimeout(done, 100))
        return [box.querySelector('button').textContent, String(getSelection())]
    })()"""
    seen = look(pages["two-gpus"], WIDTH, click)
    said, selected = seen.answers[1]
    assert said in ("Copied", "Selected")  # a headless browser may refuse the clipboard
    assert said == "Copied" or "FastLanguageModel.from_pretrained" in selected


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    word = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'><svg onload='window.hit = 3'>\""
    page = report.write(made.hostile(tmp_path, word))
    seen = look(page, WIDTH, "window.hit === undefined", TEXT, reader=Reader(width=390))
    check(seen, 390)
    assert seen.answers[1] is True
    assert word in seen.answers[2]


def test_this_looks_at_what_happens(tmp_path: Path) -> None:
    """A page that loads, complains and is too wide is seen as such."""
    page = tmp_path / "page.html"
    html = "<meta name=viewport content='width=device-width'><img src='file:///no.png'><script>undefined.x</script>"
    page.write_text(f"<!doctype html>{html}<p style='width: 900px'>wide", encoding="utf-8")
    seen = look(page, WIDTH, reader=Reader(width=390))
    assert seen.requests == ["file:///no.png"]
    assert any("TypeError" in complaint for complaint in seen.complaints)
    assert seen.answers[0] > 390


def made_losses(directory: Path) -> list[float]:
    from unsloth_accel.report.run_record import read_run_record

    return [line["loss"] for line in read_run_record(directory).steps]
