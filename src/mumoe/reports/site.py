"""The report: a folder of pages that opens from disk, with no network and no server, wherever it is copied to.

One run has its pages at the top; several have a folder each, below a page that compares them. Every link is
relative. Pages are split (one for each expert, images by the dozen experts) and images are loaded as they come into
view, so that thousands of experts open as quickly as a few. The numbers stand beside the pages as JSON and CSV.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mumoe import __version__
from mumoe.analysis.findings import Effect
from mumoe.analysis.matching import MEASURES
from mumoe.data.base import ImageData
from mumoe.editing.choose import Choice
from mumoe.errors import UserError
from mumoe.files import check_writable, holds_files, new_folder, write_json
from mumoe.local_paths import without_paths
from mumoe.plots.charts import Chart, csv_text
from mumoe.plots.loads import load_chart
from mumoe.plots.polysemanticity import polysemanticity_chart
from mumoe.plots.seed_agreement import agreement_chart
from mumoe.plots.shift_figure import shift_chart
from mumoe.plots.sprites import Sprites, Tile
from mumoe.plots.tradeoff import trade_off_chart
from mumoe.plots.training_curves import curves_chart
from mumoe.plots.trend import Point, trend_chart
from mumoe.progress import Progress
from mumoe.records import Record, record, to_plain
from mumoe.reports.gathering import gather, open_images, run_names
from mumoe.reports.rendering import asset, render, short
from mumoe.reports.views import EditView, ExpertView, LevelView, Missing, OccurringView, RunView
from mumoe.results import Comparison
from mumoe.training.compare import compare
from mumoe.training.opening import StoredRun

__all__ = ["MARK", "ReportPages", "check_out", "write_pages", "write_report"]

MARK = "report.json"
"""A file that marks the folder of a report."""

PER_PAGE = 48
"""Experts on one page of images."""

HIGHLIGHT_IMAGES = 6
"""Images of an expert on the page of its run."""

MOST_ROWS = 200
"""Rows of the table of experts that are shown at first."""

MODES = {
    "zero": "weight set to zero (the paper's)",
    "mean": "replaced by the mean expert",
    "resampled": "replaced by its answer to another image",
}
"""Interventions in words."""

PER_UNIT = ("effects", "load", "touched", "mean_coefficient")
"""Lists over the units of a level, which the JSON of a page holds once, expert by expert."""


@record
class ReportPages(Record):
    """A report on disk.

    Attributes:
        page: Its first page.
        missing: By run, what it lacks.
    """

    page: str
    missing: Mapping[str, tuple[Missing, ...]]

    def headline(self) -> str:
        return f"Written to {self.page}. Open it in a browser."

    def rows(self) -> list[dict[str, Any]]:
        """One row for each part that a command would add: the run, the reason and the command."""
        return [
            {"run": name, "reason": found.reason, "command": found.command}
            for name, missing in self.missing.items()
            for found in missing
            if found.command
        ]

    def sentences(self) -> list[str]:
        """What the runs lack, and where the report is."""
        lines = [f"{row['run']}: {row['reason']} Make it with: {row['command']}" for row in self.rows()]
        return [*lines, self.headline()]


def write_report(
    jobs: Mapping[Path, Sequence[StoredRun]], out: str | Path, *, max_images: int = 20, local_paths: bool = False
) -> ReportPages:
    """Gather what is known of runs and write it as pages.

    Args:
        jobs: Folder to the runs in it.
        out: The folder of the report; an earlier report there is replaced.
        max_images: Images shown per expert, drawn at random and with the largest coefficients; 0 for none.
        local_paths: Write paths of this machine in full; by default only their last part.

    Raises:
        UserError: If there is no run, a file of one is damaged, or `out` holds something else.
        JobError: If it cannot be written.
    """
    if max_images < 0:
        raise UserError(f"report: expected max_images >= 0, got {max_images}. 0 shows none.")
    check_out(out)
    views: list[RunView] = []
    images: dict[str, ImageData] = {}
    for (path, runs), name in zip(jobs.items(), run_names(list(jobs)), strict=True):
        found = open_images(runs[0]) if max_images else None
        data = None if isinstance(found, Missing) else found
        gathered = _gathered(runs, name=name, path=path, data=data, most_images=max_images)
        views += gathered
        if data is not None:
            images |= {view.name: data for view in gathered}
    missing = {view.name: view.missing for view in views}
    if not local_paths:
        known = _paths_of(jobs)
        views = [_without_paths(view, known) for view in views]
    page = write_pages(views, out, data=images, progress=any(run.progress for runs in jobs.values() for run in runs))
    return ReportPages(str(page), missing)


def _without_paths(view: RunView, known: Iterable[str]) -> RunView:
    """A view without paths; its levels have none but those of thumbnails, which are read."""
    found = without_paths(dataclasses.replace(view, levels=()), known)
    return dataclasses.replace(found, levels=view.levels)


def _paths_of(jobs: Mapping[Path, Sequence[StoredRun]]) -> set[str]:
    """Where runs, their data and what they were made from are."""
    found = {str(path.absolute()) for path in jobs}
    for run in (run for runs in jobs.values() for run in runs):
        config = run.folder.config()
        data = config.data.partition(":")[2]
        places = (str(run.path), data, config.root, config.weights, config.cache_dir)
        found |= {str(Path(place).absolute()) for place in places if place}
    return found


def _gathered(runs: Sequence[StoredRun], **given: Any) -> tuple[RunView, ...]:
    """What is known of the runs; gathered again if an analysis was replaced meanwhile: never a mixture of two."""
    while True:
        before = _analyses(runs)
        found = gather(runs, **given)
        if _analyses(runs) == before:
            return found


def _analyses(runs: Sequence[StoredRun]) -> list[tuple[int, int] | None]:
    """File and time of the analysis of each run."""
    found: list[tuple[int, int] | None] = []
    for run in runs:
        try:
            state = (run.path / "analysis" / "analysis.json").stat()
            found.append((state.st_ino, state.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return found


def check_out(out: str | Path) -> Path:
    """The folder of a report.

    Raises:
        UserError: If it holds something else than a report.
        JobError: If it cannot be written.
    """
    path = Path(out)
    if path.is_file() or (holds_files(path) and not (path / MARK).is_file()):
        raise UserError(f"report: expected a new folder or that of an earlier report, got {path}. Give another -o.")
    check_writable(path, who="report")
    return path


@dataclass
class _Site:
    """A report that is being written; `pages` are those written, relative to `out`."""

    out: Path
    progress: bool
    sprites: Sprites = field(default_factory=Sprites)
    pages: list[str] = field(default_factory=list)

    def page(self, path: str, template: str, **values: Any) -> None:
        """Write one page; `root` leads from it back to the top."""
        file = self.out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        given = {"root": "../" * path.count("/"), "version": __version__, "credits": (), "json": "", **values}
        file.write_text(render(template, given), encoding="utf-8")
        self.pages.append(path)


@dataclass(frozen=True)
class _Run:
    """One run of a report.

    Attributes:
        view: What is known of it.
        data: Its images; None where they are not shown.
        folder: Its pages, relative to the report; empty for the only run.
        others: Whether the report holds other runs.
        partner: Its accuracy beside that of the linear head of the report on the same images, if there is one.
    """

    view: RunView
    data: ImageData | None
    folder: str
    others: bool
    partner: Comparison | None = None

    def path(self, name: str) -> str:
        """A file of this run, relative to the report."""
        return f"{self.folder}{name}"


def write_pages(
    views: Sequence[RunView],
    out: str | Path,
    *,
    data: Mapping[str, ImageData] | None = None,
    progress: bool = False,
) -> Path:
    """Write the pages of what was gathered; an older report in their place is replaced in one step at the end.

    Args:
        views: The runs.
        out: The folder.
        data: Image sets by name of the view, for the images of experts.
        progress: Whether to show progress.

    Returns:
        The first page.

    Raises:
        UserError: If there is no run, or the folder holds something else.
    """
    if not views:
        raise UserError("report: expected at least one run, got none. Name the folder of a run.")
    path = check_out(out)
    several = len(views) > 1
    runs = [
        _Run(view, (data or {}).get(view.name), f"{slug}/" if several else "", several, _partner(view, views))
        for view, slug in zip(views, _slugs([view.name for view in views]), strict=True)
    ]
    with new_folder(path, who="report", durable=False) as scratch:
        site = _Site(scratch, progress)
        _assets(site)
        for run in runs:
            _write_run(site, run)
        if several:
            _write_comparison(site, runs)
        site.sprites.write(scratch, progress=progress)
        facts = {"made_by": "mumoe report", "mumoe": __version__, "runs": [view.path for view in views]}
        write_json(scratch / MARK, {**facts, "pages": site.pages})
    return path / "index.html"


def _summary(view: RunView) -> RunView:
    """A view without what has a file of its own."""
    return dataclasses.replace(view, levels=(), stability=None, shifts=())


def _json(view: Any) -> Any:
    """A view as JSON, without lists over units, and without the files that thumbnails were read from."""
    return _sent(to_plain(view))


def _sent(content: Any) -> Any:
    if isinstance(content, list):
        return [_sent(item) for item in content]
    if not isinstance(content, dict):
        return content
    kept = {name: value for name, value in content.items() if not (name in PER_UNIT and isinstance(value, list))}
    return {name: _sent(value) for name, value in kept.items() if name != "thumbnail"}


def _assets(site: _Site) -> None:
    folder = site.out / "assets"
    folder.mkdir()
    (folder / "report.css").write_text(asset("base.css") + asset("report.css"), encoding="utf-8")
    for script in ("table.js", "page.js"):
        (folder / script).write_text(asset(script), encoding="utf-8")


def _slugs(names: Sequence[str]) -> list[str]:
    """A folder name for each run: plain letters, and never one twice or one that the report uses itself."""
    taken = {"assets", "data", "figures", "images", "experts"}
    found = []
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "run"
        slug, number = base, 2
        while slug in taken:
            slug, number = f"{base}-{number}", number + 1
        taken.add(slug)
        found.append(slug)
    return found


# One run -------------------------------------------------------------------------------------------------------


def _write_run(site: _Site, run: _Run) -> None:
    view = run.view
    write_json(site.out / run.path("data/run.json"), _json(_summary(view)))
    figures = site.out / run.path("figures")
    per_class, split = _per_class(view)
    site.page(
        run.path("index.html"),
        "run.html",
        **_common(run, "run", "data/run.json"),
        curves=curves_chart(figures, [(seed.seed, seed.curves) for seed in view.seeds]),
        per_class=per_class,
        per_class_split=split,
        partner=run.partner,
        highlights=_highlights(site, run, view.levels[0]) if view.levels else None,
        shown_images=HIGHLIGHT_IMAGES,
    )
    for level in view.levels:
        _write_level(site, run, level)
    if view.combinations or len(view.levels) > 1:
        _write_hierarchy(site, run)
    if _generalizes(view):
        _write_generalization(site, run)
    if _has_edits(view):
        _write_edits(site, run)
    if _has_audits(view):
        site.page(run.path("audit.html"), "audit.html", **_common(run, "audit", "data/run.json"))


def _highlights(site: _Site, run: _Run, level: LevelView) -> dict[str, Any]:
    """The purest strong experts with images, a typical one, and what the control's purest unit costs."""
    found = level.highlights()
    picked = [*found.purest, *([] if found.typical is None else [found.typical])]
    shown = [
        {"e": level.experts[n], "typical": n == found.typical, "images": _tiles(site, run, level.experts[n], "top")}
        for n in picked
    ]
    control = found.control
    return {"experts": shown, "control": control, "control_class": _class_name(run.view, control)}


def _class_name(view: RunView, control: Effect | None) -> str:
    return "" if control is None else view.facts.classes[control.top_class]


def _generalizes(view: RunView) -> bool:
    """Whether there is something to say of other seeds and data: it was measured, or could be."""
    return bool(view.stability or view.shifts or view.lacks("stability"))


def _has_edits(view: RunView) -> bool:
    """Whether there can be edits to speak of: there are some, or the head has experts to edit."""
    return bool(view.edits or view.fairness or view.head.experts)


def _has_audits(view: RunView) -> bool:
    """Whether there is an audit, or experts to audit."""
    return bool(view.audits or view.head.experts)


def _common(run: _Run, current: str, json: str, depth: int = 0) -> dict[str, Any]:
    """What every page of a run needs."""
    view, up = run.view, "../" * depth
    menu = [("run", "index.html", view.name if run.others else "Run")]
    for level in view.levels:
        what = "Neurons" if level.name == "neurons" else "Experts"
        more = f", level {level.level}" if len(view.levels) > 1 else ""
        menu.append((f"experts{level.level}", f"experts{_suffix(level)}.html", what + more))
        if _pictured(level):
            menu.append((f"images{level.level}", _gallery_name(level, 0), "Images" + more))
    if len(view.levels) > 1:
        menu.append(("hierarchy", "hierarchy.html", "Hierarchy"))
    if _generalizes(view):
        menu.append(("generalization", "generalization.html", "Other seeds and data"))
    if _has_edits(view):
        menu.append(("edits", "edits.html", "Edits and fairness"))
    if _has_audits(view):
        menu.append(("audit", "audit.html", "Audit"))
    entries = [{"href": up + href, "text": text, "current": key == current} for key, href, text in menu]
    if run.others:
        entries.insert(0, {"href": f"{up}../index.html", "text": "All runs", "current": False})
    return {"view": view, "menu": entries, "json": up + json, "credits": view.facts.credits, "levels": len(view.levels)}


def _suffix(level: LevelView) -> str:
    return f"-{level.level}" if level.level else ""


def _per_class(view: RunView) -> tuple[list[dict[str, Any]], str]:
    for split in ("test", "val"):
        if found := view.seed.evaluations.get(split):
            names = found.per_class
            rows = [{"name": name, "count": found.class_counts.get(name), "accuracy": names[name]} for name in names]
            return rows, split
    return [], ""


def _write_level(site: _Site, run: _Run, level: LevelView) -> None:
    data, figures = f"data/level-{level.level}.json", site.out / run.path("figures")
    write_json(site.out / run.path(data), _json(level))
    table = site.out / run.path(f"data/experts-{level.level}.csv")
    table.write_text(csv_text([expert.row() for expert in level.by_interest]), encoding="utf-8")
    site.page(
        run.path(f"experts{_suffix(level)}.html"),
        "experts.html",
        **_common(run, f"experts{level.level}", data),
        level=level,
        modes=MODES,
        most_rows=MOST_ROWS,
        load=None if level.usage is None else load_chart(figures, level.level, level.usage, run.view.split),
        polysemanticity=_polysemanticity(figures, level),
    )
    _write_experts(site, run, level, data)
    _write_gallery(site, run, level, data)


def _polysemanticity(folder: Path, level: LevelView) -> Chart | None:
    """The experts whose ablation changes an answer, beside the means of their level and of its control."""
    shown = [expert.dot() for expert in level.experts if expert.polysemanticity is not None and expert.losses]
    means = {"mean": level.modes["zero"].mean_polysemanticity, "control": level.control.mean_polysemanticity}
    return polysemanticity_chart(folder, level.level, shown, **means)


def _write_experts(site: _Site, run: _Run, level: LevelView, data: str) -> None:
    common = _common(run, "", data, depth=1)
    with Progress("Writing experts", len(level.experts), enabled=site.progress) as bar:
        for expert in level.experts:
            site.page(
                run.path(f"experts/{level.level}-{expert.expert}.html"),
                "expert.html",
                **common,
                level=level,
                e=expert,
                suffix=_suffix(level),
                top=_tiles(site, run, expert, "top"),
                random=[] if _shows_all(expert) else _tiles(site, run, expert, "random"),
                all=_shows_all(expert),
            )
            bar.advance()


def _shows_all(expert: ExpertView) -> bool:
    """Whether the images with the largest coefficients are all that the expert processes."""
    return expert.load is not None and expert.load <= len(expert.top)


def _tiles(site: _Site, run: _Run, expert: ExpertView, kind: str) -> list[Tile]:
    images = expert.top if kind == "top" else expert.random
    if not images:
        return []
    return site.sprites.tiles(run.path(f"images/{expert.level}-{expert.expert}-{kind}.webp"), run.data, images)


def _pictured(level: LevelView) -> list[ExpertView]:
    return [expert for expert in level.by_interest if expert.random]


def _gallery_name(level: LevelView, page: int) -> str:
    return f"images{_suffix(level)}-{page + 1}.html" if page else f"images{_suffix(level)}.html"


def _write_gallery(site: _Site, run: _Run, level: LevelView, data: str) -> None:
    experts = _pictured(level)
    parts = [experts[start : start + PER_PAGE] for start in range(0, len(experts), PER_PAGE)]
    names = [_gallery_name(level, page) for page in range(len(parts))]
    texts = [f"{page * PER_PAGE + 1}–{page * PER_PAGE + len(part)}" for page, part in enumerate(parts)]
    for page, part in enumerate(parts):
        links = [
            {"href": name, "text": text, "current": n == page}
            for n, (name, text) in enumerate(zip(names, texts, strict=True))
        ]
        site.page(
            run.path(names[page]),
            "gallery.html",
            **_common(run, f"images{level.level}", data),
            level=level,
            rows=[_gallery_row(site, run, expert) for expert in part],
            pages=links,
            total=len(experts),
        )


def _gallery_row(site: _Site, run: _Run, expert: ExpertView) -> dict[str, Any]:
    top = expert.worst
    return {
        "e": expert,
        "load": expert.load or len(expert.random),
        "top": top,
        "images": _tiles(site, run, expert, "top" if _shows_all(expert) else "random"),
    }


def _write_hierarchy(site: _Site, run: _Run) -> None:
    known = [c.agreement for c in run.view.combinations if c.agreement is not None]
    values = {"agreement": sum(known) / len(known) if known else None, "agreeing": len(known)}
    data = "data/hierarchy.json"
    summary = {"levels": [dataclasses.replace(level, experts=()) for level in run.view.levels]}
    found = {"combinations": run.view.combinations, "occurrence": run.view.occurrence}
    write_json(site.out / run.path(data), _json({**summary, **found, **values}))
    shown = run.view.occurrence.shown if run.view.occurrence else ()
    rows = [{"c": c, "images": _combination_tiles(site, run, c)} for c in shown]
    page = {"rows": rows, "most_rows": MOST_ROWS, "modes": MODES, **values}
    site.page(run.path("hierarchy.html"), "hierarchy.html", **_common(run, "hierarchy", data), **page)


def _combination_tiles(site: _Site, run: _Run, found: OccurringView) -> list[Tile]:
    if not found.top:
        return []
    name = "-".join(map(str, found.experts))
    return site.sprites.tiles(run.path(f"images/combination-{name}.webp"), run.data, found.top)


def _write_generalization(site: _Site, run: _Run) -> None:
    view, data, figures = run.view, "data/generalization.json", site.out / run.path("figures")
    write_json(site.out / run.path(data), _json({"stability": view.stability, "shifts": view.shifts}))
    names = _slugs([shift.to for shift in view.shifts])
    site.page(
        run.path("generalization.html"),
        "generalization.html",
        **_common(run, "generalization", data),
        measures=MEASURES,
        spreads=view.stability.spreads() if view.stability else {},
        agreement=agreement_chart(figures, view.stability) if view.stability else None,
        shift_charts=[shift_chart(figures, *pair) for pair in zip(names, (s.rows() for s in view.shifts), strict=True)],
    )


def _write_edits(site: _Site, run: _Run) -> None:
    figures = site.out / run.path("figures")
    charts = {
        edit.name: trade_off_chart(figures, slug, _choices(edit))
        for edit, slug in zip(run.view.edits, _slugs([edit.name for edit in run.view.edits]), strict=True)
        if edit.choice
    }
    site.page(run.path("edits.html"), "edits.html", **_common(run, "edits", "data/run.json"), charts=charts)


def _choices(edit: EditView) -> dict[str, Choice]:
    """How the strength of edits was chosen, and that of the blind shift."""
    blind = edit.fairness.blind if edit.fairness else None
    named = {"experts": edit.choice, "blind threshold": blind}
    return {name: choice for name, choice in named.items() if choice is not None}


# Several runs --------------------------------------------------------------------------------------------------


def _write_comparison(site: _Site, runs: Sequence[_Run]) -> None:
    views = [run.view for run in runs]
    differences, reference = _differences(views)
    content = {"runs": [_summary(view) for view in views], "differences": differences}
    write_json(site.out / "data/comparison.json", _json(content))
    menu = [{"href": "index.html", "text": "All runs", "current": True}]
    menu += [{"href": run.path("index.html"), "text": run.view.name, "current": False} for run in runs]
    site.page(
        "index.html",
        "compare.html",
        menu=menu,
        json="data/comparison.json",
        views=views,
        rows=[_comparison_row(run) for run in runs],
        sets=list(dict.fromkeys(_set_name(view) for view in views)),
        differences=differences,
        reference=reference,
        trend=_trend(site.out / "figures", views),
    )


def _trend(folder: Path, views: Sequence[RunView]) -> Chart | None:
    """Specialization against the number of experts, over all analyzed seeds."""
    classes = {len(view.facts.classes) for view in views}
    points = [point for view in views for point in _points(view)]
    return trend_chart(folder, points, classes.pop() if len(classes) == 1 else None)


def _points(view: RunView) -> list[Point]:
    title, mixture, _ = view.head.spec.partition("MuMoE")
    kind = title if mixture else view.head.kind
    series = f"{kind}, {view.head.gate}" if view.head.gate else kind
    series += f", {len(view.head.experts)} levels" if len(view.head.experts) > 1 else ""
    found = []
    for seed in view.seeds:
        for part, name, control in ((seed.specialized, series, False), (seed.control, f"{series}: same load", True)):
            if part is not None:
                numbers = (part.accuracy, part.mean_polysemanticity, part.strong, part.mean_polysemanticity_strong)
                rest = (part.with_effect, control, part.least_lost)
                found.append(Point(name, part.units, seed.seed, *numbers, *rest))
    return found


def _set_name(view: RunView) -> str:
    """Name of its images; the fingerprint distinguishes sets of one name."""
    return f"{short(view.facts.data)} ({view.facts.fingerprint[:6]})"


def _comparison_row(run: _Run) -> dict[str, Any]:
    split = "test" if "test" in run.view.accuracy else "val"
    accuracy, href = run.view.accuracy.get(split), run.path("index.html")
    return {"view": run.view, "href": href, "data": _set_name(run.view), "split": split, "accuracy": accuracy}


def _differences(views: Sequence[RunView]) -> tuple[list[Comparison], str]:
    """Every run against the first linear one (or the first), paired by seeds on the same images."""
    reference = next((view for view in views if view.head.kind == "linear"), views[0])
    found = []
    for view in views:
        if view is not reference and view.facts.fingerprint == reference.facts.fingerprint:
            found += [pair for pair in [_paired(view, reference)] if pair is not None]
    return found, reference.name


def _partner(view: RunView, views: Sequence[RunView]) -> Comparison | None:
    """A run beside the linear head of the report on the same images; None for that head itself."""
    for other in views:
        alike = other.facts.fingerprint == view.facts.fingerprint
        if other is not view and alike and other.head.kind == "linear" and view.head.kind != "linear":
            return _paired(view, other)
    return None


def _paired(view: RunView, reference: RunView) -> Comparison | None:
    split = "test" if "test" in view.accuracy and "test" in reference.accuracy else "val"
    ours, theirs = _by_seed(view, split), _by_seed(reference, split)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    pairs = ([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return compare(view.name, reference.name, split, *pairs)


def _by_seed(view: RunView, split: str) -> dict[int, float]:
    return {seed.seed: seed.evaluations[split].accuracy for seed in view.seeds if split in seed.evaluations}
