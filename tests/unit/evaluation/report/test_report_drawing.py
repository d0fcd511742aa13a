"""Numbers, axes, names and drawings of the report."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from plpm_ray.evaluation.report import numbers as n
from plpm_ray.evaluation.report import svg
from plpm_ray.evaluation.report.bars import stacked_shares
from plpm_ray.evaluation.report.layout import LONGEST_NAME, Cell, Group, Names, table
from plpm_ray.evaluation.report.lines import PANEL, WIDE, Axes, Series, line_chart, spread, y_range
from plpm_ray.evaluation.report.markup import Markup, el, plain
from plpm_ray.evaluation.report.mini import mini_axis, mini_interval
from plpm_ray.evaluation.report.rows import Dot, Row, row_chart, row_range
from plpm_ray.evaluation.report.scales import Scale, extent, tick_labels, ticks


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (n.change(0.01234, 0.008, 0.0166), ("+1.23 %", "+0.80 to +1.66 %")),
        (n.change(-0.28158, None, None), ("−28.2 %", "")),
        (n.change(0.00205, 0.00198, 0.00212), ("+0.205 %", "+0.198 to +0.212 %")),
        (n.change(0.0, -0.001, 0.001), ("0.00 %", "−0.10 to +0.10 %")),
        (n.change(None, None, None), ("–", "")),
        (n.estimate(186.959, 183.52, 190.39), ("187.0", "183.5 to 190.4")),
        (n.estimate(1234567.0, None, None), ("1,234,567", "")),
        (n.fixed(-0.0004, 2, sign=True), "0.00"),
        (n.fixed(-1234.5, 1), "−1,234.5"),
        (n.number(0.004561), "0.00456"),
        (n.number(float("nan")), "–"),
        (n.percent(0.4567), "45.7 %"),
        (n.p_value(0.0004), "< 0.001"),
        (n.p_phrase(0.012), "p = 0.012"),
        (n.with_unit(n.DASH, "s"), "–"),
        (n.plural(1, "policy", "policies"), "1 policy"),
        (n.plural(2000, "user"), "2,000 users"),
    ],
)
def test_numbers_are_as_precise_as_their_intervals(shown: object, wanted: object) -> None:
    spaced = (
        tuple(t.replace("\u00a0", " ") for t in shown)
        if isinstance(shown, tuple)
        else str(shown).replace("\u00a0", " ")
    )
    assert spaced == wanted


def test_ticks_are_round_and_inside_whatever_the_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = float(rng.normal(0, 10 ** rng.uniform(-4, 6)))
        high = low + float(10 ** rng.uniform(-4, 6))
        values, decimals = ticks(low, high, 5)
        assert 2 <= len(values) <= 6
        assert low - 1e-9 <= values[0] < values[-1] <= high + 1e-9
        assert np.allclose(np.diff(values), values[1] - values[0])
        texts = [t for _, t in tick_labels(low, high, 5)]
        assert len(set(texts)) == len(texts) and decimals >= 0


def test_an_axis_always_has_an_extent() -> None:
    for values in ([], [3.0], [0.0, 0.0], [float("nan"), None], [5.0, 5.0, 5.0]):
        low, high = extent(values, include=(0.0,) if values == [3.0] else ())
        assert high > low
    assert extent([1.0, 2.0], include=(0.0,))[0] == 0.0, "no margin below a floor of zero"
    assert Scale(0, 10, 100, 0)(2.5) == 75.0
    assert Scale(0, 10, 0, 100).inside(12) == 100.0


def test_labels_are_moved_apart_in_order_and_stay_inside() -> None:
    rng = np.random.default_rng(1)
    for count in (1, 2, 5, 9):
        wanted = sorted(rng.uniform(0, 200, count).tolist())
        moved = spread(wanted, 15.0, 0.0, 200.0)
        assert all(b - a > 14.0 for a, b in itertools.pairwise(moved))
        assert moved[0] >= -0.5 and moved[-1] <= 200.5
    assert spread([10.0, 100.0], 15.0, 0.0, 200.0) == [10.0, 100.0], "what is apart is left alone"


def test_long_texts_lose_their_middle_and_fit() -> None:
    for text in ("IIT", "a" * 80, "policy with a long name, version 17", "汉字" * 30):
        cut = svg.fitted(text, 90.0)
        assert svg.text_width(cut) <= 90.0
        assert cut[0] == text[0] and cut[-1] == text[-1]
    assert svg.fitted("IIT", 90.0) == "IIT"
    assert svg.text_width("e\u0301") == svg.text_width("e"), "a combining accent has no width"


def test_names_stay_distinct_when_shortened() -> None:
    labels = [f"{'x' * 60}{i}{'y' * 60}" for i in range(12)] + ["IIT", "", "two\nlines"]
    names = Names(labels)
    short = [names.short(label) for label in labels]
    assert len(set(short)) == len(labels)
    assert max(map(len, short)) <= LONGEST_NAME
    assert (
        names.short("IIT") == "IIT"
        and names.short("two\nlines") == "two lines"
        and names.short("") == "(no name)"
    )
    assert 'title="' in names(labels[0]) and 'title="' not in names("IIT")


def test_everything_but_markup_is_escaped() -> None:
    nasty = "<b>\"'&\u202e\x00"
    assert (
        el("p", nasty, title=nasty) == '<p title="&lt;b&gt;&quot;&#x27;&amp;">&lt;b&gt;&quot;&#x27;&amp;</p>'
    )
    assert el("p", Markup("<b>"), None, [1, " of ", 2.5]) == "<p><b>1 of 2.5</p>"
    assert el("td", class_="num", colspan=2, hidden=None, x=1.0) == '<td class="num" colspan="2" x="1"></td>'
    assert plain("a\n b\t\x07c") == "a b c"


def well_formed(drawing: Markup) -> ElementTree.Element:
    """Parsed, with a name and a description unless it is an ornament."""
    root = ElementTree.fromstring(drawing)
    if root.get("aria-hidden") != "true":
        assert root.get("role") == "img"
        title, description = root.find("title"), root.find("desc")
        assert title is not None and title.text and description is not None and description.text
    assert "nan" not in drawing.lower().replace("nanny", "")
    return root


LINES = [
    Series("IIT", [0, 1, 2], [0.0, 1.0, None], [-1.0, 0.0, None], [1.0, 2.0, None]),
    Series("<other>", [0, 1, 2], [1.0, None, 3.0], style=7),
    Series("chance", [0, 1, 2], [0.0, 0.0, 0.0], role="reference"),
    Series("grey", [0, 1, 2], [2.0, 2.0, 2.0], role="context"),
]


@pytest.mark.parametrize("width", [PANEL, WIDE])
def test_a_line_chart_draws_every_line_its_band_and_the_border(width: int) -> None:
    axes = Axes("day", "growth, %", y_sign=True, zero=True, border=(0.5, "AA days", "AB days"))
    root = well_formed(line_chart(LINES, axes, "Growth", "how it grew", width, named=True))
    drawn = [e.get("class") for e in root]
    assert sum("line" in (c or "").split() for c in drawn) == 4
    assert drawn.count("band f0") == 1 and drawn.count("border") == 1
    texts = {"".join(e.itertext()) for e in root.iter("text")}
    assert {"IIT", "<other>", "chance", "AB days", "growth, %", "day", "+2"} <= texts
    assert "grey" not in texts, "lines behind others are not named"
    border = next(e for e in root if e.get("class") == "border")
    xs = [
        float(p.split()[0])
        for p in str(next(e for e in root if e.get("class") == "line s0").get("d"))[1:].split("L")
    ]
    assert float(str(border.get("x1"))) == pytest.approx((xs[0] + xs[1]) / 2, abs=0.1)


def test_lines_differ_by_more_than_colour() -> None:
    series = [Series(str(i), [0, 1], [i, i + 1.0], style=i) for i in range(6)]
    root = well_formed(line_chart(series, Axes("x", "y"), "t", "d"))
    dashes = [e.get("stroke-dasharray") for e in root if "line" in str(e.get("class")).split()]
    assert len(set(dashes)) == 6


def test_a_chart_of_nothing_is_still_a_drawing() -> None:
    well_formed(line_chart([Series("none", [], [])], Axes("x", "y"), "t", "d", named=True))
    well_formed(row_chart([Row("none", [])], "x", "t", "d"))
    low, high = y_range([])
    assert low < high


def test_rows_show_points_whiskers_and_the_reference() -> None:
    rows = [Row("A", [Dot(1, open_=True), Dot(2, 1.5, 2.5)], "1 → 2"), Row("B", [Dot(3, alarm=True)], "3")]
    root = well_formed(row_chart(rows, "seconds", "t", "d", reference=(2.0, "truth"), join=True))
    drawn = [str(e.get("class")) for e in root]
    assert (
        drawn.count("open accent") == 1 and drawn.count("full accent") == 1 and drawn.count("full alarm") == 1
    )
    assert (
        drawn.count("joint") == 1
        and drawn.count("whisker accent") == 1
        and drawn.count("reference-line") == 1
    )
    tags = {str(e.get("class")): e.tag for e in root}
    assert tags["full alarm"] != tags["full accent"], "an alarm has another shape, not only another colour"


def test_small_differences_do_not_fill_a_panel() -> None:
    low, high = row_range([Row("A", [Dot(100.0)]), Row("B", [Dot(100.2)])], least=0.1)
    assert high - low == pytest.approx(10.0, rel=0.01)


def test_a_small_interval_points_to_what_lies_beyond() -> None:
    def shapes(dot: Dot | None) -> list[str]:
        return [e.tag for e in well_formed(mini_interval(dot, -1.0, 1.0, zero=0.0))]

    assert shapes(Dot(0.5, 0.2, 0.8)) == ["line", "line", "circle"]
    assert shapes(Dot(0.5, 0.2, 1.8)) == ["line", "line", "circle", "polygon"], "an end beyond"
    assert shapes(Dot(2.0, 1.5, 2.5)) == ["line", "polygon"], "all beyond"
    assert shapes(None) == ["line"]
    axis = [str(e.text) for e in well_formed(mini_axis(-1.0, 1.0, 0.0, sign=True, unit=" %")).iter("text")]
    assert axis[-1] == "+1.0 %" and "0" in axis


def test_stacked_bars_fill_the_row_and_carry_their_shares() -> None:
    root = well_formed(stacked_shares([("A", [0.5, 0.47, 0.03])], ["x", "y", "z"], "t", "d", WIDE))
    bars = [e for e in root.iter("rect") if e.find("title") is not None]
    widths = [float(str(e.get("width"))) for e in bars]
    assert widths[0] / sum(widths) == pytest.approx(0.5, abs=0.001)
    texts = ["".join(e.itertext()) for e in root.iter("text")]
    assert "50\u00a0%" in texts and "3\u00a0%" not in texts, "no number where there is no room for it"
    assert {"x", "y", "z"} <= set(texts), "the legend"


def test_a_table_without_rows_is_left_out() -> None:
    assert table("nothing", ["a"], []) == ""
    assert table("nothing", ["a"], [Group("heading", [])]) == ""
    built = table("some", ["a", Cell("b", "word")], [["x", Cell(1, "good")]])
    assert '<th scope="row">x</th><td class="num good">1</td>' in built and '<th scope="col">b</th>' in built
