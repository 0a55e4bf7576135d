"""`mumoe.sweep`: the grid, going on where it stopped, and figures of what is there."""

import json

import pytest
import torch

import mumoe
from commands.made_up_analysis import make_data, make_features
from mumoe.analysis import sweeping
from mumoe.analysis.sweeping import Cell, Sweep, grid
from mumoe.commands.sweep import _table
from mumoe.errors import UserError
from mumoe.gating import GATES
from mumoe.training import TrainConfig

BASE = TrainConfig(data="made-up", epochs=2, batch_size=30, lr=0.02)
SMALL = {"heads": ("CPMuMoE-r4",), "experts": (4,), "gates": ("entmax15", "entmax15-frozen"), "seeds": 2}


def do(folder, **changes):
    data = make_data()
    given = {"data": data, "features": make_features(data)}
    return mumoe.sweep(BASE, out=folder, progress=False, **given, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A sweep of four cells, stopped after one, then called again: its folder, results, and what was trained."""
    folder, trained = tmp_path_factory.mktemp("sweeps") / "s", []
    train = sweeping.train
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweeping, "train", lambda config, **given: trained.append(config.out) or train(config, **given))
        first = do(folder, limit=1)
        return folder, first, do(folder), trained


def test_the_grid_goes_seed_after_seed():
    cells = grid(**{**SMALL, "experts": (4, 8)})
    assert len(cells) == 8
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert cells[0] == Cell("CPMuMoE-r4", 4, "entmax15", 0)
    assert cells[0].spec == "CPMuMoE-r4-e4"
    assert "control" in Cell("CPMuMoE-r4", 4, "entmax15-frozen", 0).series


def test_it_goes_on_where_it_stopped_and_trains_no_finished_cell_again(done):
    folder, first, whole, trained = done
    points = whole.points
    assert len(first.points) == 1
    assert len(points) == 4
    assert len(trained) == len(set(trained)) == 4
    assert do(folder) == whole
    for name in ("figure-3", "figure-6", "figure-9"):
        assert {path.suffix for path in folder.glob(f"{name}.*")} == {".png", ".svg", ".json"}
    assert {point.control for point in points} == {True, False}
    assert _table(whole)[1].startswith("CP, entmax15")


def test_the_result_is_a_record_of_every_model_and_their_means(done):
    whole = done[2]
    frame = whole.to_frame()
    assert list(frame["seed"]) == [0, 1, 0, 1]
    assert Sweep.from_json(whole.to_json()) == whole
    assert whole.plot().axes
    first = whole.means()[0]
    assert first["series"] == "CP, entmax15"
    assert first["accuracy"] == pytest.approx(frame["accuracy"][:2].mean())
    assert first["strong"] == pytest.approx(frame["strong"][:2].mean())


def test_a_cell_stopped_before_its_analysis_is_not_trained_again(tmp_path, monkeypatch):
    from mumoe.analysis import analyzing

    def fails(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(analyzing, "study_layer", fails)
        with pytest.raises(KeyboardInterrupt):
            do(tmp_path / "s", limit=1)
    cell = next((tmp_path / "s" / "cells").iterdir())
    before = (cell / "run.json").read_text()
    assert len(do(tmp_path / "s", limit=1).points) == 1
    assert (cell / "run.json").read_text() == before


def test_a_cell_killed_before_its_first_facts_is_trained_by_the_next_call(tmp_path, monkeypatch):
    from mumoe.training.run import RunFolder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_facts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            do(tmp_path, seeds=1, gates=("entmax15",))
    assert len(do(tmp_path, seeds=1, gates=("entmax15",)).points) == 1


def test_seeds_differ_and_a_frozen_gate_stays_as_drawn(done):
    from mumoe.training import StoredRun
    from mumoe.training.inputs import Inputs
    from mumoe.training.tasks import task_of

    def weights(gate, seed):
        head = StoredRun(done[0] / "cells" / f"CPMuMoE-r4-e4-{gate}-seed{seed}", device="cpu").head
        return head.layer.gate.weights[0]

    data = make_data()
    config = BASE.replace(head="CPMuMoE-r4-e4", gate="entmax15-frozen")
    drawn = task_of(config).network(Inputs(data, None, make_features(data), 10)).head.layer.gate.weights[0]
    assert torch.equal(weights("entmax15-frozen", 0), drawn)
    assert not torch.equal(weights("entmax15", 0), drawn)
    assert not torch.equal(weights("entmax15", 0), weights("entmax15", 1))


def test_frozen_gates_answer_like_their_originals():
    logits = torch.randn(5, 9, requires_grad=True)
    for name in ("entmax15", "softmax"):
        frozen = GATES[f"{name}-frozen"]()(logits)
        assert torch.allclose(frozen, GATES[name]()(logits))
        assert not frozen.requires_grad


def test_the_record_of_a_cell_holds_what_the_figures_need(done):
    path = next((done[0] / "cells").glob("*/cell.json"))
    record = json.loads(path.read_text())
    assert record["study"]["units"] == 4
    assert set(record["accuracy"]) == {"val", "test"}
    assert record["load_control"]["units"] == 4


def test_other_settings_in_the_same_folder_are_refused(done):
    with pytest.raises(UserError, match=r"expected the settings that .* was started with \(lr=0\.02\), got lr=0\.5"):
        do(done[0], lr=0.5)


def test_the_minimum_of_a_strong_expert_is_recorded_and_kept(done, tmp_path):
    record = json.loads(next((done[0] / "cells").glob("*/cell.json")).read_text())
    assert record["study"]["least_lost"] == record["load_control"]["least_lost"] == 5
    assert {point.least_lost for point in done[2].points} == {5}
    with pytest.raises(UserError, match=r"was started with \(least_lost=5\), got least_lost=2"):
        do(done[0], least_lost=2)
    older = json.loads((done[0] / "sweep.json").read_text())
    del older["least_lost"]
    (tmp_path / "sweep.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"\(least_lost=1\), got least_lost=5"):
        do(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"heads": ()}, r"mumoe\.sweep: expected at least one of heads, got none\."),
        ({"experts": (0,)}, r"expected experts and seeds >= 1"),
        ({"least_lost": 0}, r"expected least_lost >= 1, got 0"),
        ({"gates": ("entmx15",)}, r"got 'entmx15'\. Did you mean 'entmax15'\?"),
    ],
)
def test_mistakes_are_one_clear_error(tmp_path, changes, text):
    with pytest.raises(UserError, match=text):
        do(tmp_path / "s", **changes)
