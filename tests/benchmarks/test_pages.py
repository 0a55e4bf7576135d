"""The pages of measurements say what the records say."""

import copy
import re

import pytest

from benchmarks import complexity_page, pages
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


def test_the_summary_by_hand():
    rows = []
    for kind, plain, torch, native, peaks in (
        ("forward", 0.002, 0.0019, 0.001, {}),
        ("both", 0.03, 0.01, 0.02, {"plain": 240e6, "torch": 10e6, "native": 12e6}),
    ):
        seconds = {name: {"median": value} for name, value in (("plain", plain), ("torch", torch), ("native", native))}
        rows.append({"part": "sizes", "batch": 256, "experts": 128, "kind": kind, "threads": 1, "seconds": seconds})
        rows[-1]["peak_bytes"] = peaks
    rows.append({**rows[0], "threads": 2})
    rows.append({**rows[0], "batch": 1})
    text = pages.summary({"layer": {"rows": rows}})
    assert text.splitlines()[2:] == [
        "| 256 | 128 | 2.00 | 1.00 | 2.00x | 30.0 | 10.0 | 3.00x | 240 | 10.0 |",
        "| 1 | 128 | 2.00 | 1.00 | 2.00x |  |  |  |  |  |",
    ]


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
