"""The study of heads: the linear partner is tuned on validation, differences are paired, controls stand beside."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from reproduction.recipe_study import Options, compare, main, table, titled

HEAD = "CPMuMoE-r4-e4"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Two seeds on a small file of features, whose splits depend on the seed."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    np.save(
        folder / "features.npy", (np.eye(3)[labels] @ rng.normal(size=(3, 8)) + rng.normal(size=(300, 8))).astype("f4")
    )
    np.save(folder / "labels.npy", labels)
    small = {"lr": (0.003, 0.03), "dropout": (0.0,), "seeds": 2, "curve_seeds": 1, "heads": (HEAD,)}
    return Options(data=f"features:{folder}/features.npy", out=str(folder / "out"), work=str(folder / "work"), **small)


@pytest.fixture(scope="module")
def results(options: Options) -> dict:
    return compare(options, progress=False)


@pytest.mark.parametrize("name", ["emoji", "icons"])
def test_committed_tables_are_those_of_the_numbers(name: str) -> None:
    folder = Path(__file__).parents[2] / "docs/results/heads"
    numbers = json.loads((folder / f"recipe-{name}.json").read_text())
    assert (folder / f"recipe-{name}.md").read_text(encoding="utf-8") == titled(name, numbers)
    assert table(numbers) in (folder / "README.md").read_text(encoding="utf-8")


def test_the_linear_head_is_the_best_of_its_grid_on_validation(results) -> None:
    grid = results["linear"]["grid"]
    assert set(grid) == {"linear-lr0.003-d0", "linear-lr0.03-d0"}
    assert results["linear"]["chosen"] == max(grid, key=lambda name: grid[name]["val"])


def test_differences_are_paired_and_controls_are_there(results) -> None:
    linear = results["heads"][results["linear"]["chosen"]]["test"]
    entry = results["heads"][f"{HEAD}-accurate"]
    assert entry["minus_linear"] == pytest.approx([a - b for a, b in zip(entry["test"], linear, strict=True)])
    assert set(results["heads"]) == {
        results["linear"]["chosen"],
        *(f"{HEAD}-{name}" for name in ("accurate", "specialized", "accurate-frozen", "specialized-frozen")),
    }
    assert len(entry["p_control"]) == len(entry["strong_control"]) == 2


def test_each_seed_has_its_own_split_and_settings_are_those_of_the_preset(options, results) -> None:
    from mumoe.training import PRESETS, StoredRun

    work = Path(options.work) / options.name
    configs = [StoredRun(work / f"{HEAD}-specialized" / f"seed-{seed}").config for seed in (0, 1)]
    assert [config.split_seed for config in configs] == [1000, 1001]
    for name, value in PRESETS["specialized"].items():
        assert getattr(configs[0], name) == value
    assert StoredRun(work / "linear-lr0.03-d0" / "seed-0").config.lr == 0.03


def test_the_table_and_the_files_say_the_same(options, results, capsys) -> None:
    main(options)  # trains nothing twice
    assert capsys.readouterr().out == table(results)
    (file,) = Path(options.out).glob("recipe-*.json")
    assert json.loads(file.read_text())["heads"] == json.loads(json.dumps(results["heads"]))
    assert (Path(options.out) / "trade-off.png").is_file()
    gap = mean(results["heads"][f"{HEAD}-accurate"]["minus_linear"])
    assert f"{gap:+.3f}" in table(results)
