"""From a recipe to its page on a stand-in of a dozen pictures: training, going on, drawing again, dry runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from mumoe.data import load_data
from mumoe.data.subset import subset
from mumoe.errors import UserError
from reproduction import accuracy_pages, bias_pages, exact_pages, expert_pages
from reproduction import make as module
from reproduction.cells import all_cells, replaced
from reproduction.committed import committed_records
from reproduction.dry import covering, dry_run
from reproduction.make import Places, make
from reproduction.recipe import ITEMS, load_recipe
from reproduction.standins import LAYOUTS, make_standin
from reproduction.workshop import Workshop

RESULTS = Path(__file__).parents[2] / "docs" / "results"
TINY = ("epochs=2", "batch_size=8", "pretrained=false")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    make_standin("caltech101", root)
    return root


def tiny(item, pictures, **changes):
    """A small recipe on the pictures, with features of a tiny random network."""
    recipe = load_recipe(item)
    settings = {"mode": "features", "lr": 0.01, "eval_every": 0, "keep": 1, "root": str(pictures)}
    data = {"pictures": {"data": "caltech101", "train_images": 9, "test_images": 2, "classes": 2}}
    return recipe.replace(settings=settings, data=data, backbones=("test_vit",), seeds=2, **changes)


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path / "cache"))
    return Places(tmp_path / "pages", tmp_path / "work", tmp_path / "nothing")


def test_a_table_goes_on_where_it_was_stopped(pictures, places, monkeypatch):
    recipe = tiny("table-6", pictures, heads=("linear", "CPMuMoE-r4-e4"), rank_titles={})
    trained = []
    real = Workshop._train

    def stops(self, cell):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(cell.key)
        real(self, cell)

    with monkeypatch.context() as patched:
        patched.setattr(Workshop, "_train", stops)
        with pytest.raises(KeyboardInterrupt):
            make(recipe, places, changes=TINY, progress=False)
    half = json.loads((places.output / "small/table-6.json").read_text())
    assert half["state"] == {"done": 2, "planned": 4}  # the first seed's page is there
    monkeypatch.setattr(Workshop, "_train", lambda self, cell: trained.append(cell.key) or real(self, cell))
    made = make(recipe, places, changes=TINY, progress=False)
    assert (made.done, made.planned) == (4, 4)
    assert len(trained) == len(set(trained)) == 4
    assert "| CPMuMoE-r4-e4 " not in made.text  # not a row of the paper's table
    assert "| linear " in made.text
    assert "56 printed parameter counts" in made.text
    again = make(recipe, places, changes=TINY, run=False, progress=False)
    assert again.text == made.text


def test_a_page_is_drawn_from_its_json_alone(pictures, places):
    recipe = tiny("figure-13", pictures, heads=("linear", "CPMuMoE-r4"), experts=(2, 4))
    made = make(recipe, places, changes=TINY, progress=False)
    assert (places.output / "small/figure-13.png").stat().st_size > 10_000
    alone = Places(places.output, places.work.with_name("empty"), places.results)
    assert make(recipe, alone, changes=TINY, run=False, progress=False).text == made.text
    with pytest.raises(UserError, match="figure-13: expected finished runs to draw from, got none"):
        make(recipe, Places(alone.work, alone.work, alone.work), changes=TINY, run=False, progress=False)


def test_load_images_and_effects(pictures, places):
    shared = {"heads": ("CPMuMoE-r4",), "experts": (2, 4), "threshold": 0.0}
    for item, what in (("figure-12", "of all, %"), ("figure-7", "share of the largest, %"), ("figure-5", "strong")):
        made = make(tiny(item, pictures, **shared), places, changes=TINY, progress=False)
        assert what in made.text
        assert made.done == made.planned == 4
        record = json.loads(made.page.with_suffix(".json").read_text())["records"][0]
        assert ("usage" in record["experts"]) == (item != "figure-5")
    assert (places.output / "small/figure-7-e4.png").is_file()
    work = [path.name for path in places.work.iterdir()]
    assert len(work) == 8  # figures 12 and 7 share theirs; figure 5 is penultimate


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their pictures, which take most of the time."""
    for pages in (accuracy_pages, bias_pages, exact_pages, expert_pages):
        monkeypatch.setattr(pages, "save_figure", lambda *arguments: None)
    for name in ("effects_figure", "trend_figure", "load_figure"):
        monkeypatch.setattr(expert_pages, name, lambda *arguments, **options: None)
    monkeypatch.setattr(bias_pages, "subgroup_figure", lambda *arguments, **options: None)
    monkeypatch.setattr(accuracy_pages.plots, "accuracy_curves", lambda *arguments, **options: None)


@pytest.mark.parametrize("item", ["table-2", "table-3", "table-5", "figure-3", "figure-6", "figure-9", "figure-16"])
def test_committed_studies_are_pages(item, places, undrawn):
    """What docs/results holds is drawn without running anything, and whole."""
    made = make(load_recipe(item), Places(places.output, places.work, RESULTS), run=False)
    assert made.done == made.planned
    committed = RESULTS / "paper/small" / f"{item}.md"
    assert made.text == committed.read_text()


def test_committed_numbers_are_those_of_the_studies():
    heads = json.loads((RESULTS / "heads/image.json").read_text())["heads"]
    found = committed_records(load_recipe("table-3"), RESULTS)
    assert {(r["head"], r["seed"]): r["accuracy"]["test"] for r in found} == {
        (head, seed): value
        for head in ("linear", "highrank-linear-r402", "CPMuMoE-r256-e128")
        for seed, value in enumerate(heads[head]["test"])
    }
    assert committed_records(load_recipe("table-3", "full"), RESULTS) == []


def test_every_committed_page_is_what_its_json_gives(tmp_path, undrawn):
    """No page is written by hand: drawing it again from the JSON beside it gives the same bytes."""
    pages = sorted((RESULTS / "paper/small").glob("*.json"))
    items = [path.stem for path in pages if path.stem in ITEMS and "records" in json.loads(path.read_text())]
    assert items
    for item in items:
        folder = tmp_path / "small"
        folder.mkdir(exist_ok=True)
        for picture in (RESULTS / "paper/small").glob(f"{item}-e*.png"):
            (folder / picture.name).write_bytes(picture.read_bytes())
        records = json.loads((RESULTS / f"paper/small/{item}.json").read_text())["records"]
        made = module.draw(load_recipe(item), records, folder)
        assert made.text == (RESULTS / f"paper/small/{item}.md").read_text(), item


@pytest.mark.parametrize("item", [name for name, item in ITEMS.items() if item.study == "exact"])
def test_every_committed_page_without_training_is_made_again(item, places, undrawn):
    """The current code gives the same words and numbers, floats to six digits."""
    made = make(load_recipe(item), places)
    committed = RESULTS / "paper/exact" / f"{item}.md"
    assert made.text == committed.read_text()
    texts = [page.with_suffix(".json").read_text() for page in (made.page, committed)]
    ours, theirs = (json.loads(text, parse_float=lambda digits: round(float(digits), 6)) for text in texts)
    assert ours["numbers"] == theirs["numbers"]


def test_a_subset_repeats_and_keeps_attributes(pictures):
    data = load_data("caltech101", root=str(pictures), progress=False)
    part = subset(data, np.array([3, 3, 0]))
    assert part.ids == (data.ids[3], f"{data.ids[3]}#2", data.ids[0])
    assert part.open_image(1).tobytes() == data.open_image(3).tobytes()
    assert part.fingerprint not in (data.fingerprint, subset(data, np.array([3, 0, 3])).fingerprint)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_standins_are_read_by_the_real_loaders(name, tmp_path):
    make_standin(name, tmp_path)
    make_standin(name, tmp_path)  # is left alone
    data = load_data(name, root=str(tmp_path), progress=False)
    assert not data.problems
    assert 10 <= len(data) <= 24
    assert len(data.indices("train")) > 1
    assert len(data.indices("test")) > 0


def test_few_cells_cover_every_part():
    cells = all_cells(load_recipe("table-6", "full"))
    chosen = covering(cells)
    assert len(chosen) == 7
    assert {cell.data for cell in chosen} == {cell.data for cell in cells}
    kinds = {cell.config.head.partition("-r")[0] for cell in cells}
    assert {cell.config.head.partition("-r")[0] for cell in chosen} == kinds


def test_a_dry_run_trains_ablates_and_estimates(monkeypatch, tmp_path):
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path))
    recipe = load_recipe("figure-5", "full")
    lines = dry_run(recipe, backbone="test_vit")
    assert lines[0] == "20 runs planned; 4 different heads built at their real size"
    assert "ImageNET1k, test_vit, CPMuMoE-r512-e32, entmax15: one step, analysis (experts, test)" in lines[1]
    assert "about 4.9 h on 4 x A100 80GB" in lines[2]


def test_a_dry_run_finds_a_head_that_does_not_exist():
    recipe = load_recipe("table-4", "full").replace(heads=("CPMuMoE-r512-e128", "CPMoE-r512-e128x2"))
    with pytest.raises(UserError, match="CPMoE"):
        dry_run(recipe, backbone="test_vit")


def test_a_dry_run_of_the_bias_study(monkeypatch, tmp_path):
    """Everything of Table 2: linear heads, oversampled images, an adversary, both edits, the metrics."""
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path))
    recipe = load_recipe("table-2", "full").replace(experiments=("blond-males-hair",))
    lines = dry_run(recipe, backbone="test_vit")
    assert "blond-males-hair, CPMuMoE-r512-e128: trained, edited, 4 subgroups measured" in lines[1]


def test_replaced_seeds_reach_every_data_set():
    cells = all_cells(replaced(load_recipe("table-6", "full"), seeds=2, backbones=("dino-s16",)))
    assert len(cells) == 7 * 8 * 2
    assert {cell.config.backbone for cell in cells} == {"dino-s16"}
