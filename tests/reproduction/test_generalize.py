"""The study of seeds and shifts: what the page shows is what was measured, and nothing is trained twice."""

import json

import numpy as np
import pytest

from mumoe.analysis.shifting import Shift
from mumoe.analysis.stability import Stability
from mumoe.errors import UserError
from reproduction import generalize_study
from reproduction.generalize_study import Options, main, read_study

SETTINGS = """
seeds = 2
draws = 1
drawn = "experts"

[settings]
epochs = 3
eval_every = 0
keep = 1

[variants]
linear = { head = "linear" }
experts = { head = "CPMuMoE-r8-e6" }
frozen = { head = "CPMuMoE-r8-e6", gate = "entmax15-frozen" }

[sets.digits]
title = "Digits"
table = "digits"
head = "CPMuMoE-r8-e8"
shifts = [{ noise = 0.5 }, { to = "val" }]
settings = { batch_size = 64 }
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generalize")
    (folder / "small.toml").write_text(SETTINGS)
    options = Options(out=str(folder / "out"), work=str(folder / "work"), config=str(folder / "small.toml"), quiet=True)
    main(options)
    return folder, options, json.loads((folder / "out" / "digits.json").read_text())


def test_every_variant_is_measured_on_seeds_and_shifts_beside_linear(done):
    _, _, found = done
    assert list(found["variants"]) == ["linear", "experts", "frozen"]
    linear, experts, frozen = found["variants"].values()
    assert linear["stability"] is None
    for part in (experts, frozen):
        record = Stability.from_dict(part["stability"])
        assert (record.head, record.seeds) == ("CPMuMoE-r8-e8", (0, 1))
        shifts = [Shift.from_dict(entry) for entry in part["shifts"]]
        assert [shift.to for shift in shifts] == ["noise-0.5", "val"]
        for shift in shifts:
            before = [run.before.accuracy for run in shift.runs if run.head == "linear"]
            assert before == pytest.approx(linear["accuracy"])
    assert frozen["accuracy"] != experts["accuracy"]


def test_no_path_of_a_machine_is_written(done):
    folder, _, _ = done
    for file in (folder / "out").iterdir():
        if file.suffix in (".json", ".md", ".svg"):
            assert str(folder) not in file.read_text(), file


def test_the_page_shows_the_numbers_and_its_figures(done):
    folder, _, found = done
    page = (folder / "out" / "README.md").read_text()
    for variant in found["variants"].values():
        accuracy = variant["accuracy"]
        assert f"{np.mean(accuracy):.3f} ± {np.std(accuracy, ddof=1):.3f}" in page
    record = Stability.from_dict(found["variants"]["experts"]["stability"])
    own, control = record.spreads()["similarity_all"]
    assert f"{own.mean:.3f} ({control.mean:.3f})" in page
    for name in ("digits-stability.svg", "digits-noise-0.5.svg", "digits-val.svg"):
        assert f"]({name})" in page
        assert (folder / "out" / name).is_file()


def test_a_second_call_trains_nothing(done, monkeypatch):
    folder, options, found = done

    def refuse(*given, **named):
        raise AssertionError("trained twice")

    monkeypatch.setattr(generalize_study.mumoe, "train", refuse)
    monkeypatch.setattr(generalize_study.mumoe, "resume", refuse)
    main(options)
    assert json.loads((folder / "out" / "digits.json").read_text()) == found


def test_runs_of_other_settings_are_not_mixed_in(done, tmp_path):
    folder, _, _ = done
    (tmp_path / "other.toml").write_text(SETTINGS.replace("epochs = 3", "epochs = 4"))
    options = Options(
        out=str(tmp_path / "out"), work=str(folder / "work"), config=str(tmp_path / "other.toml"), quiet=True
    )
    with pytest.raises(UserError, match="expected runs with these settings, got others"):
        main(options)


def test_the_committed_settings_are_read_and_unknown_sets_named():
    study = read_study(Options())
    assert "linear" in study.variants
    assert study.drawn in study.variants
    assert all({"title", "shifts", "settings"} <= set(about) for about in study.sets.values())
    with pytest.raises(UserError, match="data set .*emoji"):
        read_study(Options(sets=("emojis",)))
