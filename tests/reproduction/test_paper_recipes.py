"""The recipes: every item has one at either scale, of one schema, with settings that `mumoe train` takes."""

import json

import pytest

from mumoe.errors import UserError
from reproduction.cells import all_cells, cells_of, planned_runs, shown
from reproduction.estimate import backbone_flops, estimate, head_flops
from reproduction.recipe import HERE, ITEMS, SCALES, load_recipe

TRAINED = [name for name, item in ITEMS.items() if item.study != "exact"]


def test_all_tables_and_figures_are_there():
    assert sorted(ITEMS) == sorted([*(f"table-{n}" for n in range(1, 9)), *(f"figure-{n}" for n in range(1, 17))])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("item", list(ITEMS))
def test_every_recipe_opens_with_its_command(item, scale):
    recipe = load_recipe(item, scale)
    text = (HERE / recipe.scale / f"{item}.toml").read_text()
    assert text.startswith("# ")
    assert f"reproduction run {item}" in text.splitlines()[0]
    assert recipe.minutes > 0
    assert recipe.expected


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("item", TRAINED)
def test_every_recipe_has_valid_runs(item, scale):
    recipe = load_recipe(item, scale)
    cells = all_cells(recipe)
    assert len({cell.key for cell in cells}) == len(cells)
    assert 0 < planned_runs(recipe) <= len(cells)
    assert {cell.config.seed for cell in cells} == set(range(max(cell.config.seed for cell in cells) + 1))


def test_seeds_of_the_paper():
    cells = all_cells(load_recipe("table-6", "full"))
    seeds = {cell.data: {c.config.seed for c in cells if c.data == cell.data} for cell in cells}
    assert {name: len(found) for name, found in seeds.items()} == {
        "CIFAR100": 10, "Caltech256": 10, "Caltech101": 10, "Food101": 10, "OxfordIIITPet": 10, "CelebA": 10,
        "ImageNET1k": 5,
    }  # fmt: skip
    small = [name for name in TRAINED if ITEMS[name].kind != "images"]
    assert all(max(c.config.seed for c in all_cells(load_recipe(name))) >= 2 for name in small)


def test_items_share_their_runs():
    def keys(item, scale="full"):
        return {cell.key for cell in all_cells(load_recipe(item, scale))}

    assert keys("table-3") < keys("table-6")
    both = keys("table-6") & keys("figure-13")
    assert len(both) == 65 * 5  # linear, high-rank, and the three ranks of Figure 13, at 128 experts
    assert not keys("table-6") & keys("table-7")
    assert keys("figure-6") < keys("figure-9")
    assert keys("figure-6", "small") < keys("figure-3", "small")


def test_where_a_run_is_done_is_not_part_of_it():
    recipe = load_recipe("table-7", "full")
    here, there = (all_cells(recipe, changes) for changes in ((), ('root="/data"', "workers=3")))
    assert [cell.key for cell in here] == [cell.key for cell in there]
    assert there[0].config.root == "/data"
    assert here[0].key != all_cells(recipe, ("lr=1e-5",))[0].key


RECORDED = ("figure-2", "figure-5", "figure-7", "figure-8", "figure-12", "figure-13", "figure-14", "table-6", "table-7")
"""Items whose committed records name their runs; those of Table 4 are of an earlier recipe."""


@pytest.mark.parametrize("item", RECORDED)
def test_new_defaults_of_training_change_no_recipe(item):
    """The committed runs are still the recipe's: a preset or a default that came later does not reach it."""
    content = json.loads((HERE.parents[1] / f"docs/results/paper/small/{item}.json").read_text())
    recorded = {record["key"] for record in content["records"]}
    assert recorded == {cell.key for cell in all_cells(load_recipe(item))}


def test_the_cited_number_of_steps():
    """About 2,000 steps on every data set but ImageNet (Ilharco et al. 2023), and more than the warm-up everywhere."""
    recipe = load_recipe("table-6", "full")
    for cell in all_cells(recipe)[:: len(recipe.heads)]:
        steps = recipe.data[cell.data]["train_images"] // cell.config.batch_size * cell.config.epochs
        assert 1700 <= steps <= 2600 or cell.data == "ImageNET1k"
        assert cell.config.warmup_steps < steps / 4


def test_settings_are_chosen_on_the_first_seed():
    recipe = load_recipe("table-3", "small")
    first = cells_of(recipe, {})
    assert len(first) == 18
    known = {c.key: {"accuracy": {"val": c.config.lr * c.config.weight_decay}} for c in first}
    ready = cells_of(recipe, known)
    later = [cell for cell in ready if cell.config.seed > 0]
    assert len(later) == 6
    assert {(cell.config.lr, cell.config.weight_decay) for cell in later} == {(3e-3, 1.0)}
    assert planned_runs(recipe) == 24
    kept = shown(all_cells(recipe), {**known, **{c.key: {"seed": c.config.seed} for c in later}})
    assert len(kept) == 9


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"got 'table-66'. Did you mean 'table-6'"):
        load_recipe("table-66")
    with pytest.raises(UserError, match="expected a scale out of full, small, got 'ful'. Did you mean 'full'"):
        load_recipe("table-6", "ful")
    with pytest.raises(UserError, match=r"small/table-6.toml: .*got 'epoch'. Did you mean 'epochs'"):
        all_cells(load_recipe("table-6"), ("epoch=3",))


def test_a_misspelt_key_of_a_recipe_is_named(tmp_path, monkeypatch):
    from reproduction import recipe as module

    (tmp_path / "exact").mkdir()
    (tmp_path / "exact/table-1.toml").write_text('hardwar = "any"\nminutes = 1\n')
    monkeypatch.setattr(module, "HERE", tmp_path)
    with pytest.raises(UserError, match="got 'hardwar'. Did you mean 'hardware'"):
        load_recipe("table-1")


def test_an_estimate_by_hand():
    recipe = load_recipe("figure-8", "full")
    one = backbone_flops("clip-b32") + head_flops("CPMuMoE-r512-e2048", 768, 1000)
    assert backbone_flops("clip-b32") == 8_816_836_608
    assert head_flops("CPMuMoE-r512-e2048", 768, 1000) == 2 * (512 * (768 + 1000 + 2048) + 768 * 2048)
    flops = one * (3 * 10 * 1_255_544 + 50_000 + 1_255_544)  # ten epochs, the test split, the load of the train split
    found = estimate(recipe)
    assert found.flops == pytest.approx(flops)
    assert found.hours == pytest.approx(flops / (4 * 312e12 * 0.3) / 3600)
    assert found.runs == 1
    assert "4 x A100 80GB" in found.text()


@pytest.mark.parametrize("item", TRAINED)
def test_times_of_full_recipes_are_their_estimates(item):
    recipe = load_recipe(item, "full")
    assert recipe.minutes == pytest.approx(60 * estimate(recipe).hours, rel=0.1, abs=1.0)
