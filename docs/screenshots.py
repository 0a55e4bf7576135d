"""Every screenshot of docs/images, made from runs on the embedded images: `make screenshots`.

The runs are trained once, into runs/screenshots, and kept: called again, only pictures are taken. A part is a
function that takes the browser and the runs and writes its pictures; `PARTS` lists them, and the command line
chooses (``python -m docs.screenshots report``). Each picture is taken wide and light (NAME.png), and narrow and dark
as on a phone at night (NAME-phone.png). A page that logs an error or asks another host for anything fails.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from browsing import launched, opened  # noqa: E402
from mumoe import load  # noqa: E402
from mumoe.cli import main as mumoe  # noqa: E402

IMAGES = ROOT / "docs" / "images"
RUNS = Path("runs/screenshots")
SHARED = ("--data", "emoji", "--data-options", "split_by=image", "size=96", "--image-size", "96",
          "--preset", "specialized", "--keep", "1", "--eval-every", "2")  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """Runs to show.

    Attributes:
        many, few: 128 and 8 experts on three seeds, analyzed.
        hierarchy: 64 x 2 experts, analyzed.
        linear: A linear head on three seeds.
        bias: 0/1 attributes of features with a planted bias, corrected.
        text: A small language model, analyzed.
        decomposed: An MLP of SmolLM2 as experts, analyzed.
    """

    many: Path
    few: Path
    hierarchy: Path
    linear: Path
    bias: Path
    text: Path
    decomposed: Path


def call(*arguments: object) -> None:
    """One `mumoe` command; stops if it fails."""
    said = [str(argument) for argument in arguments]
    print("mumoe", *said, flush=True)
    if mumoe([*said, "--quiet"]):
        raise SystemExit(f"screenshots: expected mumoe {said[0]} to work, got an error (above).")


def make_runs() -> Runs:
    """The runs, trained and analyzed if they are not there yet."""
    runs = Runs(*(RUNS / name for name in ("many", "few", "hierarchy", "linear", "bias", "text", "decomposed")))
    heads = {runs.many: ("CPMuMoE-r256-e128", 3), runs.few: ("CPMuMoE-r256-e8", 3), runs.linear: ("linear", 3)}
    for path, (head, seeds) in {**heads, runs.hierarchy: ("CPMuMoE-r256-e64x2", 1)}.items():
        if not (path / "summary.json").is_file():
            call("train", *SHARED, "--spec", head, "--seeds", seeds, "--out", path)
        for run in sorted(path.glob("seed-*")) or [path]:
            if head != "linear" and not (run / "analysis" / "analysis.json").is_file():
                call("analyze", run)
    _make_bias(runs.bias)
    if not (runs.text / "summary.json").is_file():
        config = ROOT / "reproduction" / "gpt2-small.toml"
        call("train", "--config", config.relative_to(ROOT), "--against", "--seeds", 1, "--out", runs.text)
    if not (runs.text / "analysis" / "experts.json").is_file():
        call("analyze", runs.text)
    if not (runs.decomposed / "analysis" / "experts.json").is_file():
        call("decompose", "--contexts", 64, "--out", runs.decomposed)
    return runs


def _make_bias(path: Path) -> None:
    """Animals drawn by one studio are nearly absent from training; their experts are rewritten."""
    head, sensitive = "Animals & Nature", "studio"
    features = path.with_suffix(".safetensors")
    if not features.is_file():
        _write_features(features)
    if not (path / "summary.json").is_file():
        call("train", "--data", f"features:{features}", "--spec", "CPMuMoE-r256-e128", "--preset", "specialized",
             "--keep", 1, "--out", path)  # fmt: skip
    if not (path / "analysis").is_dir():
        call("analyze", path, "--images", 0)
    if not (path / "edits").is_dir():
        target = ("--target", head, "--sensitive", sensitive, "--value", "openmoji")
        call("edit", path, *target, "--objective", "match")
    if not (path / "fairness.json").is_file():
        with (path / "fairness.json").open("w") as file, contextlib.redirect_stdout(file):
            call_quietly("fairness", path, "--target", head, "--sensitive", sensitive, "--json")


def call_quietly(*arguments: object) -> None:
    """A command whose output is kept."""
    if mumoe([*map(str, arguments), "--quiet"]):
        raise SystemExit("screenshots: expected mumoe fairness to work, got an error (above).")


def _write_features(path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from mumoe.data import load_data
    from mumoe.demo.planted_bias import planted_style
    from mumoe.models.backbones import create_backbone
    from mumoe.models.features import extract_features

    data = load_data("emoji", split_by="character", size=96)
    x = extract_features(data, create_backbone("efficientnet-lite0", image_size=96)).x
    bias = planted_style(data, x)
    parts = [bias.training_rows(0), bias.splits.val, bias.splits.test]
    rows = np.concatenate(parts)
    studio = (bias.sensitive[rows] == "openmoji").astype(np.int64)
    tensors = {
        "features": bias.features[rows],
        "labels": bias.labels[rows],
        "split": np.repeat(np.arange(3), [len(part) for part in parts]),
        "group_studio": studio,
    }
    names = {"classes": json.dumps(bias.heads), "group_studio": json.dumps(["other studios", "openmoji"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=names)


WIDE, PHONE, DARK = ("", 1280, False), ("-phone", 390, True), ("-dark", 1280, True)
ALL = (WIDE, PHONE, DARK, ("-phone-light", 390, False))
"""Ending of the file's name, width in pixels, and whether it is dark."""


def shoot(
    browser: Any,
    url: str,
    name: str,
    *,
    height: int = 1500,
    phone: int = 0,
    prepare: Callable[[Any], None] | None = None,
    looks: Sequence[tuple[str, int, bool]] = (WIDE, PHONE),
) -> None:
    """A page in every look; `prepare` may click first, `phone` is the height there if it is another."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for ending, width, dark in looks:
        tall = phone or height if ending == PHONE[0] else height
        with opened(browser, url, width=width, height=tall, dark=dark) as watched:
            watched.page.set_default_timeout(120_000)
            if prepare:
                prepare(watched.page)
            watched.still()
            watched.page.wait_for_load_state("networkidle")
            _save(watched.page.screenshot(), IMAGES / f"{name}{ending}.png")
            print(f"docs/images/{name}{ending}.png", flush=True)


def _save(picture: bytes, path: Path) -> None:
    """A screenshot with 256 colours: a third of the bytes, without a visible difference."""
    with Image.open(io.BytesIO(picture)) as shot:
        shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def shoot_report(browser: Any, runs: Runs) -> None:
    """The pages of the report."""
    every, bias = RUNS / "report", RUNS / "report-bias"
    call("report", runs.many, runs.few, runs.hierarchy, runs.linear, "-o", every)
    call("report", runs.bias, "-o", bias)
    shoot(browser, (every / "index.html").resolve().as_uri(), "report-comparison", height=2000)
    pages = {"report-run": "index", "report-images": "images", "report-experts": "experts"}
    for name, page in pages.items():
        shoot(browser, (every / "many" / f"{page}.html").resolve().as_uri(), name)
    strong = (every / "many" / "experts" / f"0-{_strongest(every / 'many')}.html").resolve()
    shoot(browser, strong.as_uri(), "report-expert")
    shoot(browser, (every / "hierarchy" / "hierarchy.html").resolve().as_uri(), "report-hierarchy", height=1100)
    shoot(browser, (bias / "edits.html").resolve().as_uri(), "report-edits")


EXPERTS_END = 645
"""Row of pixels of the demo's card where its experts end."""


def shoot_demo(browser: Any, _: Runs) -> None:
    """The demo's page and its card."""
    demo = RUNS / "demo"
    if not (demo / "metrics.json").is_file():
        call("demo", "-o", demo)
    shoot(browser, (demo / "report.html").resolve().as_uri(), "demo", height=1600, phone=2000)
    _save((demo / "demo-card.png").read_bytes(), IMAGES / "demo-card.png")
    _save(_experts_of(demo / "demo-card.png"), IMAGES / "experts.png")


def _experts_of(card: Path) -> bytes:
    """The upper part of the demo's card: the experts, without the correction of a bias."""
    picture, file = Image.open(card), io.BytesIO()
    picture.crop((0, 0, picture.width, EXPERTS_END)).save(file, "PNG", optimize=True)
    return file.getvalue()


def _strongest(folder: Path) -> int:
    """The purest strong expert: the one to look at first."""
    experts = json.loads((folder / "data" / "level-0.json").read_text())["experts"]
    return int(min((e for e in experts if e["strong"]), key=lambda e: e["polysemanticity"])["expert"])


def shoot_dashboard(browser: Any, runs: Runs) -> None:
    """The dashboard: the first expert, two side by side, the list, an image taken apart, a subgroup that is rewritten,
    and tokens."""
    from mumoe.dashboard.server import serving
    from mumoe.dashboard.session import open_session
    from mumoe.dashboard.token_view import open_tokens
    from mumoe.training.opening import StoredRun

    run = runs.many / "seed-0"
    with serving(lambda report: open_session(StoredRun(run, progress=False), report)) as server:
        _name_first(server, run)
        first, second, *_ = server.dashboard.state({})["run"]["start"]["purest"]
        pair = f"#/pair/0/{first}/0/{second}?pins=0/{first},0/{second}"
        shoot(browser, server.url, "dashboard-expert", height=900, looks=(WIDE, DARK), prepare=_ablate)
        shoot(browser, server.url, "dashboard-expert", phone=1900, looks=(PHONE,))
        shoot(browser, server.url + "#/experts", "dashboard-experts", height=860, prepare=_list)
        shoot(browser, server.url + pair, "dashboard-pair", height=1100, phone=2000)
        shoot(browser, server.url + "#/images", "dashboard-image", height=900, phone=1100, prepare=_take_apart)
    with serving(lambda report: open_session(StoredRun(runs.bias, progress=False), report)) as server:
        shoot(browser, server.url, "dashboard-edits", height=1000, prepare=_rewrite, looks=(WIDE,))
        shoot(browser, server.url + "#/edits", "dashboard-edits", phone=1500, prepare=_rewrite, looks=(PHONE,))
    with serving(lambda report: open_tokens(runs.text)) as server:
        shoot(browser, server.url, "dashboard-tokens", height=1000, phone=1700, prepare=_read)


def shoot_decomposition(browser: Any, runs: Runs) -> None:
    """The expert of a decomposition whose ablation costs most, and a prompt continued with it scaled."""
    from mumoe.dashboard.server import serving
    from mumoe.dashboard.token_view import open_decomposed

    decomposed = load(runs.decomposed, progress=False)
    with serving(lambda report: open_decomposed(decomposed)) as server:
        shoot(browser, server.url, "dashboard-decomposition", height=1460, phone=2500, prepare=_steer)


def _name_first(server: Any, run: Path) -> None:
    """Give the first experts the names that the page suggests."""
    from mumoe.dashboard.expert_panel import expert_detail

    session = server.dashboard.session
    opened = load(run, progress=False)
    for expert in server.dashboard.state({})["run"]["start"]["purest"]:
        opened.name_expert(expert, expert_detail(session, session.split("val"), 0, expert)["suggestion"])


def _list(page: Any) -> None:
    page.wait_for_selector(".experts .row:not(.head)")
    if page.viewport_size["width"] > 700:
        page.get_by_text("Sort and filter").click()
        page.get_by_text("What the columns mean").click()


def _ablate(page: Any) -> None:
    page.get_by_role("button", name="Ablate it").click()
    page.get_by_text("Ablate expert").wait_for()


def _take_apart(page: Any) -> None:
    page.get_by_label("Show", exact=True).select_option("wrong")
    page.locator("button.tile.wrong").nth(2).click()
    page.wait_for_selector("table.apart")


def _rewrite(page: Any) -> None:
    page.get_by_label("Attribute predicted").last.select_option("Animals & Nature")
    page.get_by_text("Rewrite for a subgroup").click()
    page.get_by_label("Its value").first.select_option("openmoji")
    page.get_by_role("button", name="Choose lambda on validation").click()
    page.get_by_text("Rewrite Animals").wait_for()
    page.get_by_text("Rewrite for a subgroup").click()
    page.get_by_text(re.compile(r"\d+ to \d+%")).first.wait_for()


def _steer(page: Any) -> None:
    _read(page)
    page.get_by_role("slider", name="Factor").press("End")
    page.get_by_role("button", name="Write 40 tokens").click()
    page.get_by_role("heading", name=re.compile("Steered")).wait_for(timeout=120_000)


def _read(page: Any) -> None:
    page.wait_for_selector(".quotes .token.center")


README_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>README</title>
<meta name="viewport" content="width=device-width"><base href="{base}/"><style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 860px; margin: 0 auto; padding: 24px; font: 16px/1.5 system-ui, sans-serif; }}
img {{ max-width: 100%; }} table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
td, th {{ border: 1px solid #8886; padding: 6px 13px; }} pre {{ overflow-x: auto; padding: 16px; background: #8882; }}
</style><body><main>{body}</main></body></html>"""
"""The frame in which README.md is shown, much as a code host shows it."""


def shoot_readme(browser: Any, _: Runs) -> None:
    """README.md; its badges are images of another host, which are left out."""
    from markdown_it import MarkdownIt

    text = re.sub(r"(?m)^\[?!\[[^\]]*\]\(https://img[^\n]*\n", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    page = RUNS / "readme.html"
    page.write_text(README_PAGE.format(base=ROOT.resolve().as_uri(), body=body), encoding="utf-8")
    shoot(browser, page.resolve().as_uri(), "readme", height=1500, phone=1800, looks=ALL)


def shoot_docs(browser: Any, _: Runs) -> None:
    """The landing page of the site, which `make docs` builds first."""
    page = ROOT / "docs" / "_build" / "html" / "index.html"
    if not page.is_file():
        raise SystemExit(f"screenshots: expected the site in {page.parent}, found none. Run make docs first.")
    shoot(browser, page.resolve().as_uri(), "docs", height=1500, phone=1800, looks=ALL)


PARTS: dict[str, Callable[[Any, Runs], None]] = {
    "readme": shoot_readme,
    "docs": shoot_docs,
    "demo": shoot_demo,
    "report": shoot_report,
    "dashboard": shoot_dashboard,
    "decomposition": shoot_decomposition,
}
"""Name -> what takes its pictures."""


def draw_icons(columns: int = 12, rows: int = 6, side: int = 64, gap: int = 12) -> None:
    """A sheet of icons for the card about data: a row for each concept, drawings of different families."""
    from mumoe.data import load_data

    icons = load_data("icons", size=96, progress=False)
    sheet = Image.new("L", (columns * (side + gap) + gap, rows * (side + gap) + gap), 255)
    for down, name in enumerate(("home", "bell", "chat", "pencil", "trash", "cloud")[:rows]):
        places = [row for row, label in enumerate(icons.labels) if icons.classes[label] == name]
        for across, row in enumerate(places[:: len(places) // columns][:columns]):
            drawing = icons.open_image(row).convert("L").resize((side, side))
            sheet.paste(drawing, (gap + across * (side + gap), gap + down * (side + gap)))
    sheet.save(IMAGES / "data-icons.png", optimize=True)


def main() -> None:
    """Take the pictures of the parts named on the command line, or of all."""
    chosen = sys.argv[1:] or [*PARTS, "icons"]
    if unknown := sorted(set(chosen) - {*PARTS, "icons"}):
        raise SystemExit(f"screenshots: expected parts out of {', '.join([*PARTS, 'icons'])}, got {unknown[0]!r}.")
    if "icons" in chosen:
        draw_icons()
    if parts := [name for name in chosen if name in PARTS]:
        runs = make_runs()
        with launched() as browser:
            for name in parts:
                PARTS[name](browser, runs)


if __name__ == "__main__":
    main()
