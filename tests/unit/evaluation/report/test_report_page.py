"""The page: what it says of runs of every kind, that it is whole, and that it asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from plpm_ray.core.errors import PlpmError
from plpm_ray.core.storage import read_json, write_json
from plpm_ray.evaluation import report
from tests import report_runs as runs
from tests.report_experiments import NASTY, ab_run
from tests.report_pages import Page, edited, outcome, page


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return runs.every_kind(tmp_path_factory.mktemp("runs"))


def test_one_file_that_asks_for_nothing(folders: list[Path], tmp_path: Path) -> None:
    path = report.write(folders, tmp_path / "deep" / "report.html")
    source = path.read_text(encoding="utf-8")
    found = Page(source)
    assert len(source) < 1_500_000
    links = [
        v
        for _, attributes, _ in found.elements
        for k, v in attributes.items()
        if k in ("src", "href", "srcset", "data")
    ]
    assert all(v == "data:," or str(v).startswith("#run-") for v in links)
    assert not found.of("script", "iframe", "object", "img", "base", "form")
    assert not any(k.startswith("on") or k == "style" for _, a, _ in found.elements for k in a)
    assert not re.search(r"@import|@font-face|url\(", source)
    style = source.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(a["content"] for a in found.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy


def test_it_can_be_read_without_seeing_it(folders: list[Path]) -> None:
    found = page(*folders)
    assert found.of("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), "no level of heading is skipped"
    tables, captions = found.of("table"), found.of("caption")
    assert len(tables) == len(captions) > 8
    drawings = [a for tag, a, _ in found.elements if tag == "svg"]
    assert all((a.get("aria-hidden") == "true") != (a.get("role") == "img") for a in drawings)
    names = [path for tag, _, path in found.elements if tag in ("title", "desc") and path[-1] == "svg"]
    assert len(names) == 2 * sum(a.get("role") == "img" for a in drawings)
    assert all(a.get("scope") in ("row", "col", "rowgroup") for a in found.of("th"))
    ids = [a["id"] for _, a, _ in found.elements if "id" in a]
    assert len(set(ids)) == len(ids) == len(folders)


def test_a_run_says_what_was_run_and_every_metric_with_its_unit(folders: list[Path]) -> None:
    found = page(folders[0])
    record = read_json(folders[0] / "ab.json")
    for said in (
        "kuaishou",
        "120,000 in all",
        "7 AA, then 21 AB, after 14 to warm up",
        "seed 0",
        "✓ passed, p = 0.410",
    ):
        assert said in found.said
    for row in record["metrics"]:
        assert row["title"] in found.said
        if row["arm"] != record["control"]:
            assert re.search(rf"\d {re.escape(row['unit'])}", found.said), row["unit"]
    for version in record["versions"].values():
        assert version in found.said
    assert "µs" in found.said and "better" in found.said and "differs" in found.said and "†" in found.said


def test_a_failed_sample_ratio_check_stands_before_everything(tmp_path: Path) -> None:
    failed = ab_run(tmp_path / "failed", sample_ratio_ok=False)
    said = page(failed).said
    assert said.index("Sample ratio check failed") < said.index("Metrics")
    assert re.search(r"IIT has 1[78],\d{3} instead of 20,000", said) and "✗ failed, p < 0.001" in said
    assert "see the warning there" in page(failed, runs.aa_run(tmp_path / "aa")).said, (
        "the list of runs warns too"
    )
    assert "Sample ratio check failed" not in page(ab_run(tmp_path / "fine")).said


def test_only_a_calibration_of_the_same_world_lends_its_target(folders: list[Path], tmp_path: Path) -> None:
    other = edited(
        runs.calibration_run(tmp_path / "other"), "calibration.json", lambda r: r.update(world="elsewhere")
    )
    target = "dashed: share of video views in the targets of the calibration run"
    assert target in page(folders[0], folders[1]).said
    assert target not in page(folders[0], other).said
    assert target not in page(folders[0]).said


def test_checks_say_what_holds_and_what_does_not(folders: list[Path], tmp_path: Path) -> None:
    calibrated, covered, same = (page(folder).said for folder in folders[1:4])
    assert (
        "6 of 8 targets are met within 5 %; furthest off is drop-off on explore: 25.1 % instead of 22.0 % (+14.1 %)."
        in calibrated
    )
    assert "hold the true value as often as stated for 5 of 6 combinations" in covered
    assert (
        "3 more are refused every time" in covered
        and "✗ not as stated" in covered
        and "truth 186 s" in covered
    )
    assert (
        "12 of 13 metrics" in same and "(✓) by chance, given their number" in same and "warning" not in same
    )
    failed = edited(runs.aa_run(tmp_path / "aa"), "aa.json", lambda r: r.update(family_ok=False))
    assert "not explained by chance" in page(failed).said


def test_runs_on_logs_are_shown_too(folders: list[Path]) -> None:
    uplift, judged, swept, trained = (page(folder).said for folder in folders[4:8])
    assert (
        "The highest Qini coefficient (arm explore) is that of ISP: 0.150" in uplift
        and "random order" in uplift
    )
    assert "Differences to ISP" in uplift and "average effect" in uplift
    assert (
        "IIT has the highest value by snips: 187.0 s per decision (95 % interval 183.6 to 190.4), against 169 s per decision"
        in judged
    )
    assert "refused effective sample size 12 of 16311 is below 100" in judged
    assert "Best of 2 trials by dr is trial 3 (alpha 0.310, beta 1.20): 36.6 s per session" in swept
    assert "Trained for 8 epochs; validation loss 0.270." in trained and "Loss by epoch" in trained


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    def strip(record: dict[str, Any]) -> None:
        record.update(metrics=[], latency={}, versions={}, sample_ratio=None)

    folder = edited(ab_run(tmp_path / "run", arms=("base", "IIT")), "ab.json", strip)
    headings = re.findall(r"<h3>([^<]+)", report.render([report.read_run(folder)]))
    assert headings == [
        "Growth of DAU and LT",
        "Moves between one page and several",
        "Pages",
        "Tidal curve",
        "Arms",
    ]
    bare = edited(
        runs.calibration_run(tmp_path / "bare"), "calibration.json", lambda r: r.update(rows=[], hourly=None)
    )
    assert "<h3>" not in report.render([report.read_run(bare)])


def test_missing_numbers_become_dashes(tmp_path: Path) -> None:
    folder = ab_run(tmp_path / "run")
    empty = dict.fromkeys(
        ("value", "relative", "low", "high", "p_value", "gap_share", "difference", "variance_reduction")
    )
    outcome(folder, "lt", "IIT", **empty)
    source = (folder / "ab.json").read_text(encoding="utf-8").replace('"seed": 0', '"seed": null')
    (folder / "ab.json").write_text(source.replace('"p_value": 0.41', '"p_value": NaN'), encoding="utf-8")
    found = page(folder)
    assert "–" in found.said and "nan" not in found.said.lower() and "None" not in found.said


def test_many_arms_and_pages_stay_small_and_fold_their_tables(tmp_path: Path) -> None:
    arms = ["base", *(f"arm {i}" for i in range(9)), "random", "oracle"]
    folder = ab_run(
        tmp_path / "run", arms=arms, pages=[f"page {i}" for i in range(32)], aa_days=14, ab_days=60
    )
    path = report.write([folder], tmp_path)
    assert path == tmp_path / "report.html" and path.stat().st_size < 1_500_000
    found = Page(path.read_text(encoding="utf-8"))
    assert len(found.of("details")) == 3
    assert "Share of sessions landing on each page, AA days → AB days" in found.said


def test_what_people_named_cannot_become_markup(tmp_path: Path) -> None:
    folder = ab_run(
        tmp_path / NASTY[:8].replace("/", ""),
        arms=("base", NASTY, NASTY + "2"),
        pages=(NASTY, "b"),
    )
    edited(folder, "ab.json", lambda r: r.update(world=NASTY))
    found = Page(report.render([report.read_run(folder)], title=NASTY))
    assert not found.of("script", "img")
    assert "\u202e" not in found.said
    assert '<script>document.title="taken"</script>' in found.said, "shown as it is"


def test_the_order_is_of_interest_and_a_run_counts_once(folders: list[Path], tmp_path: Path) -> None:
    path = report.write([*reversed(folders), folders[0]], tmp_path / "out")
    kinds = re.findall(r'class="kind">([^<]+)', path.read_text(encoding="utf-8"))
    assert path == tmp_path / "out" / "report.html"
    others = ["Uplift", "Off-policy estimators", "Evaluation on logs", "Models that say numbers"]
    assert kinds == [
        "A/B experiment",
        *others,
        "Calibration",
        "A/A experiments",
        "Sweep",
        "Training",
        "Stream",
    ]
    named = report.write([tmp_path.parent / folders[0]], tmp_path / "named.html", title="Spring & summer")
    assert "<title>Spring &amp; summer</title>" in named.read_text(encoding="utf-8")


def test_the_same_runs_give_the_same_file(folders: list[Path], tmp_path: Path) -> None:
    first, second = (report.write(folders, tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second


def test_what_the_statistics_give_can_be_reported(tmp_path: Path) -> None:
    """`analyse` and the report agree on the format."""
    import numpy as np
    import pyarrow as pa

    from plpm_ray.evaluation.experiment import analyse

    folder, rng = (
        ab_run(tmp_path / "run", arms=("base", "IIT", "random", "oracle"), pages=("a", "b")),
        np.random.default_rng(0),
    )
    totals = "active_days use_s watch_s video_views sessions drop_offs last7_active_days".split()
    totals += [f"{kind}_{page}" for kind in ("effective", "assigned") for page in ("a", "b")]
    columns: dict[str, Any] = {
        "user_id": np.arange(800),
        "arm": np.repeat(["base", "IIT", "random", "oracle"], 200),
    }
    columns |= {
        f"{period}_{total}": rng.poisson(4, 800).astype(float) for period in ("aa", "ab") for total in totals
    }
    found = analyse(
        pa.table(columns),
        ["a", "b"],
        control="base",
        arms=["base", "IIT", "random", "oracle"],
        aa_days=7,
        ab_days=7,
    )
    edited(folder, "ab.json", lambda r: r.update(json.loads(json.dumps(found))))
    assert "Lifetime (LT)" in page(folder).said


def test_nothing_is_written_where_a_run_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlpmError):
        report.write([tmp_path / "none"], tmp_path / "report.html")
    with pytest.raises(PlpmError, match="no runs"):
        report.write([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_trained_navigator_is_shown_with_its_parts(tmp_path: Path) -> None:
    summary = {
        "status": "finished",
        "navigator": "klan",
        "version": "klan-42bad3eb6f",
        "config": {"fusion": "adaptive", "gamma": None, "population": [0.25, 0.75]},
        "versions": {"isp": "klan.isp-9b417aac5e", "am": "klan.am-56e05de8d1"},
        "part_metrics": {"isp": {"loss": 0.652}, "am": {"auc": 0.727}},
    }
    write_json(tmp_path / "klan" / "summary.json", summary)
    said = page(tmp_path / "klan").said
    assert "Composed of 2 parts." in said and "klan.am-56e05de8d1" in said
    assert "population 0.250, 0.750" in said and "auc 0.727" in said and "loss 0.652" in said
