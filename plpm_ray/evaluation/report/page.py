"""The whole page: head, list of runs, one part per run, and the style sheet, all in one file that asks for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import plpm_ray
from plpm_ray.core.errors import DataError
from plpm_ray.core.storage import atomic_writer
from plpm_ray.evaluation.report.assess import assess_part
from plpm_ray.evaluation.report.calibration import calibration_part
from plpm_ray.evaluation.report.coverage import coverage_part
from plpm_ray.evaluation.report.experiment import ab_part
from plpm_ray.evaluation.report.false_positives import aa_part
from plpm_ray.evaluation.report.layout import Part, facts, shorten
from plpm_ray.evaluation.report.markup import Child, Markup, el, label, plain
from plpm_ray.evaluation.report.offline import evaluate_part, navigator_part, sweep_part, train_part
from plpm_ray.evaluation.report.reading import Run, read_run
from plpm_ray.evaluation.report.streaming import stream_part
from plpm_ray.evaluation.report.uplift import uplift_part

_PARTS = {
    "calibration": calibration_part,
    "coverage": coverage_part,
    "aa": aa_part,
    "uplift": uplift_part,
    "evaluate": evaluate_part,
    "assess": assess_part,
    "sweep": sweep_part,
    "navigator": navigator_part,
    "train": train_part,
    "stream": stream_part,
}
# what people came for stands first; within a kind, the order given
_ORDER = (
    "ab",
    "uplift",
    "coverage",
    "evaluate",
    "assess",
    "calibration",
    "aa",
    "sweep",
    "navigator",
    "train",
    "stream",
)


def write(runs: Sequence[str | Path], output: str | Path, title: str | None = None) -> Path:
    """Writes the report of some runs.

    Args:
        runs: run folders of any kinds; a run named twice counts once. A calibration run lends its hourly target to the
            experiments on the same world.
        output: the HTML file, or a folder, for `report.html` in it.
        title: of the page; default: from what was run.

    Returns:
        The file written.

    Raises:
        DataError: a folder is no run, or incomplete; nothing is written.
        StorageError: a file cannot be read, or the report not written.
    """
    if not runs:
        raise DataError("no runs to report", hint="name one run folder at least")
    read = {run.folder.resolve(): run for run in map(read_run, runs)}
    path = Path(output)
    if path.is_dir() or not path.suffix:
        path = path / "report.html"
    text = render(list(read.values()), title)
    with atomic_writer(path) as file:
        file.write(text.encode())
    return path


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """The page as text; see `write`."""
    ordered = sorted(runs, key=lambda run: _ORDER.index(run.kind))
    targets = {
        run.record.world: (f"the calibration run {shorten(run.folder.name)}", run.record.hourly.target)
        for run in ordered
        if run.kind == "calibration"
        and run.record.hourly is not None
        and run.record.hourly.target is not None
    }
    parts = [ab_part(run, targets) if run.kind == "ab" else _PARTS[run.kind](run) for run in ordered]
    title = plain(title) if title else _title(ordered)
    return "<!doctype html>\n" + el("html", _head(title), _body(title, ordered, parts), lang="en") + "\n"


def _title(runs: Sequence[Run]) -> str:
    """From the worlds or data that the runs are about."""
    records = [run.record for run in runs]
    about = [getattr(r, key, None) for r in records for key in ("world", "data", "name", "learner")]
    named = [shorten(text) for text in dict.fromkeys(a for a in about if isinstance(a, str))][:3]
    return f"Report: {', '.join(named)}" if named else "Report"


def _head(title: str) -> Markup:
    style = resources.files("plpm_ray.evaluation.report").joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="generator", content=f"plpm_ray {plpm_ray.__version__}"),
        el("title", title),
        el("link", rel="icon", href="data:,"),
        el("style", Markup(style)),
    )


def _body(title: str, runs: Sequence[Run], parts: Sequence[Part]) -> Markup:
    said = f"{len(runs)} run{'s' if len(runs) != 1 else ''} · written with plpm_ray {plpm_ray.__version__}"
    header = el(
        "header", el("h1", title), el("p", said, class_="note"), _contents(parts) if len(parts) > 1 else None
    )
    main = el(
        "main",
        [_run(f"run-{i}", run, part) for i, (run, part) in enumerate(zip(runs, parts, strict=True), start=1)],
    )
    return el("body", header, main)


def _contents(parts: Sequence[Part]) -> Markup:
    items = [
        el("li", el("a", el("strong", part.kind), ": ", part.title, href=f"#run-{i}"), _summary(part))
        for i, part in enumerate(parts, start=1)
    ]
    return el("nav", el("ol", items), aria_label="Runs")


def _summary(part: Part) -> Child:
    failed = el("span", "⚠ see the warning there. ", class_="bad") if part.alerts else None
    return el("p", failed, part.headline) if failed or part.headline else None


def _run(anchor: str, run: Run, part: Part) -> Markup:
    kept = [s for s in part.sections if s]
    return el(
        "article",
        el("p", part.kind, class_="kind"),
        el("h2", part.title),
        part.alerts,
        el("p", part.headline, class_="headline") if part.headline else None,
        facts([*part.facts, ("run", label(run.folder.name))]),
        kept,
        id=anchor,
    )
