"""The report in a real browser: it asks for nothing, fits a phone, can be read in both schemes, and prints whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from plpm_ray.evaluation import report
from tests.headless_browser import NAMES, Browser, browser, find_browser
from tests.report_experiments import ARMS, NASTY, ab_run
from tests.report_runs import every_kind

PHONE, DESK, PAPER = 360, 1200, 702  # CSS pixels; A4 less its margins

# boxes of the visible texts of every drawing, to find those that leave it, touch one another, or are too small
TEXTS = """
[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0).flatMap(s => {
  const o = s.getBoundingClientRect();
  const boxes = [...s.querySelectorAll('text')].map(t => ({t, b: t.getBoundingClientRect()})).filter(x => x.b.width > 0);
  const name = x => x.t.lastChild.textContent;
  const beyond = b => b.left < o.left - 2 || b.right > o.right + 2 || b.top < o.top - 2 || b.bottom > o.bottom + 2;
  const out = boxes.filter(x => beyond(x.b)).map(x => 'outside: ' + name(x));
  const small = boxes.filter(x => x.b.height < 9).map(x => 'small: ' + name(x));
  const touching = boxes.flatMap((x, i) => boxes.slice(i + 1).filter(y =>
    Math.min(x.b.right, y.b.right) - Math.max(x.b.left, y.b.left) > 2 &&
    Math.min(x.b.bottom, y.b.bottom) - Math.max(x.b.top, y.b.top) > 3).map(y => 'touching: ' + name(x) + ' | ' + name(y)));
  return [...out, ...small, ...touching];
})
"""

# contrast of every visible text with what is behind it, as in WCAG 2.2
CONTRAST = """
(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = rgb(c).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if ((rgb(c)[3] ?? 1) > 0) return c; } return 'rgb(255, 255, 255)'; };
  const found = {};
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length) continue;
    const drawn = e instanceof SVGElement, style = getComputedStyle(e);
    if (drawn && /^on\\d/.test(e.getAttribute('class') ?? '')) continue;  // on a coloured bar: measured below
    const [a, b] = [light(drawn ? style.fill : style.color), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found[`${e.tagName}.${e.getAttribute('class') ?? ''} ${e.textContent.slice(0, 30)}`] = ratio;
  }
  for (const e of document.querySelectorAll('svg text[class^=on]')) {
    const bar = document.querySelector('rect.f' + e.getAttribute('class').slice(2));
    const [a, b] = [light(getComputedStyle(e).fill), light(getComputedStyle(bar).fill)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found[e.getAttribute('class')] = (a + 0.05) / (b + 0.05);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, Path, Path]]:
    """A browser, a report of runs of every kind, and one of an experiment with many arms and hostile names."""
    executable = find_browser()
    if executable is None:
        pytest.skip(f"no browser found: none of {', '.join(NAMES)} on PATH, and PLPM_CHROMIUM is not set")
    folder = tmp_path_factory.mktemp("report")
    usual = report.write(every_kind(folder), folder / "usual.html")
    arms = [ARMS[0], *(f"{NASTY}{i}" for i in range(9)), "random", "oracle"]
    pages = ["featured", "explore", "following", NASTY]
    many = ab_run(folder / "many", arms=arms, pages=pages, aa_days=14, ab_days=60, sample_ratio_ok=False)
    with browser(executable, folder / "profile") as opened:
        yield opened, usual, report.write([many], folder / "many.html", title=NASTY)


def each(page: tuple[Browser, Path, Path]) -> Iterator[Browser]:
    opened, *files = page
    for file in files:
        opened.open(file)
        yield opened


def test_it_asks_for_nothing_and_complains_of_nothing(page: tuple[Browser, Path, Path]) -> None:
    for opened in each(page):
        requests = [p["request"]["url"] for name, p in opened.events if name == "Network.requestWillBeSent"]
        assert [url.split(":")[0] for url in requests] == ["file"]
        complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        assert [event for event in opened.events if event[0] in complaints] == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_never_scrolls_sideways(page: tuple[Browser, Path, Path], width: int) -> None:
    for opened in each(page):
        opened.resize(width)
        # a phone widens its window to what the page asks for, so both are measured
        assert opened.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        boxes = opened.evaluate(
            "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg, details:not([open])')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert boxes == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_texts_of_drawings_are_whole_and_apart(page: tuple[Browser, Path, Path], width: int) -> None:
    for opened in each(page):
        opened.resize(width)
        opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert opened.evaluate(TEXTS) == []
        assert opened.evaluate("document.querySelectorAll('svg text').length") > 100


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_in_both_schemes(page: tuple[Browser, Path, Path], dark: bool) -> None:
    for opened in each(page):
        opened.resize(DESK, dark=dark)
        background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        assert opened.evaluate(CONTRAST) == {}


def test_names_stay_text_and_no_script_runs(page: tuple[Browser, Path, Path]) -> None:
    opened, _, many = page
    opened.open(many)
    assert opened.evaluate("document.scripts.length + document.images.length") == 0
    assert opened.evaluate("document.title").startswith('<script>document.title="taken"</script>')
    assert opened.evaluate("document.querySelector('bdi[title]').title") in (
        NASTY.replace("\u202e", "") + f"{i}" for i in range(9)
    )
    attempt = "(() => { const s = document.createElement('script'); s.textContent = 'window.taken = 1';"
    assert opened.evaluate(attempt + " document.body.append(s); return window.taken ?? 0; })()") == 0


def test_it_prints_on_several_white_pages_with_nothing_cut(page: tuple[Browser, Path, Path]) -> None:
    for opened in each(page):
        opened.resize(PAPER, dark=True, media="print")
        assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        wide = (
            "[...document.querySelectorAll('table, figure')].filter(t => t.getBoundingClientRect().right > innerWidth + 1)"
            ".map(t => t.textContent.slice(0, 60))"
        )
        assert opened.evaluate(wide) == []
        pdf = opened.pdf()
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3
