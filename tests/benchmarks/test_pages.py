"""The pages of measurements say what the records say."""

import copy
import re

import pytest

from benchmarks import complexity_page, pages, targets
from benchmarks.complexity import AXES


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_page_is_what_the_records_give(name):
    text = (pages.DOCS / name).read_text(encoding="utf-8")
    assert text == pages.fill(text, pages.load()), "run: python -m benchmarks.pages"
    assert set(re.findall(r"<!-- table ([\w-]+)", text)) <= set(pages.TABLES)


def test_every_table_is_on_a_page():
    texts = "".join((pages.DOCS / name).read_text(encoding="utf-8") for name in pages.PAGES)
    assert set(re.findall(r"<!-- table ([\w-]+)", texts)) == set(pages.TABLES)


def test_a_changed_record_changes_the_page():
    records = copy.deepcopy(pages.load())
    text = (pages.DOCS / "benchmarks.md").read_text(encoding="utf-8")
    records["layer"]["rows"][0]["seconds"]["plain"]["median"] = 123.456
    assert "| 123,456 |" in pages.fill(text, records)


def row(part, batch, experts, kind="forward", peak=None, **seconds):
    taken = {name: {"median": value} for name, value in seconds.items()}
    found = {"part": part, "batch": batch, "experts": experts, "kind": kind, "threads": 1, "seconds": taken}
    return {**found, "factorization": "tr", **({"peak_bytes": peak} if peak else {})}


def test_targets_by_hand():
    rows = [
        row("sizes", 256, 128, plain=2.0, torch=1.8, native=1.0),
        row("sizes", 256, 8192, "both", {"plain": 240, "torch": 10}, plain=2.0, torch=1.0),
        row("factorizations", 256, 128, floor=1.0, torch=1.2),
        row("zero", 256, 128, plain=1.0, torch=1.04),
        row("block", 1576, 1024, mlp=1.0, dense=1.5, torch=1.2),
        row("block", 1576, 8192, "both", dense=4.0, native=2.0),
    ]
    found = [
        (target.bound, round(target.measured, 3), target.met) for target in targets.targets({"layer": {"rows": rows}})
    ]
    assert found == [
        (1.2, 1.111, False),
        (1.25, 2.0, True),
        (2.7, 2.0, False),
        (17.0, 24.0, True),
        (1.15, 1.2, False),
        (1.05, 1.04, True),
        (1.1, 1.25, True),
        (1.5, 1.2, True),
        (3.5, 2.0, False),
    ]
    text = targets.render({"layer": {"rows": rows}})
    assert text.count("**missed**") == 4
    assert "| 256 x 8,192, forward + backward, PyTorch: times as fast as plain | >= 2.7 | 2.00 | **missed** |" in text


def complexity_record(ours, mlp, sparse):
    rows = []
    for experts in (4, 16):
        setting = {"experts": experts, "width": 8, "depth": 1, "tokens": 32}
        taken = {"cp": ours * experts, "tr": 0.1, "tucker": 0.1, "mlp": mlp, "sparse-moe": sparse}
        rows.append({**setting, "seconds": taken, "bytes": {"cp": 1}})
    return {"base": {"experts": 4, "width": 8, "depth": 1, "tokens": 32}, "rows": rows}


def test_losses_are_said():
    text = complexity_page.losses({"complexity": complexity_record(1.0, 5.0, 1e9)})
    assert text == "- Experts, time, against dense MLP: CP loses at 16 (most at 16: 3.20x)."
    everywhere = complexity_page.losses({"complexity": complexity_record(1.0, 1.0, 1e9)})
    assert "CP loses at all 2 values (most at 16: 16.00x)" in everywhere
    assert complexity_page.losses({"complexity": complexity_record(1e-3, 1.0, 1e9)}).startswith("Nowhere")


def test_the_figure_shows_every_sweep(tmp_path):
    complexity_page.draw(pages.load()["complexity"], tmp_path)
    svg = (tmp_path / "scaling.svg").read_text(encoding="utf-8")
    for word in (*AXES, *complexity_page.NAMES.values()):
        assert word in svg
    shown = (tmp_path / "scaling.json").read_text(encoding="utf-8")
    assert shown == (pages.DOCS / pages.FIGURES / "scaling.json").read_text(encoding="utf-8")


def test_numbers():
    assert [pages.digits(value) for value in (0.01234, 0.5, 12.34, 1234.5)] == ["0.012", "0.50", "12.3", "1,234"]
    assert pages.megabytes(-5) == "0.000"
    assert pages.times(None) == pages.ms(None) == ""
