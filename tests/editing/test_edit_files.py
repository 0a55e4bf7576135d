"""Edit files: the same edits back, bit for bit, and one clear error for every file that is not one."""

from __future__ import annotations

import json
import random

import pytest
import torch

import mumoe
from mumoe.editing.edit_files import load_edits, read_edit_file, save_edits
from mumoe.editing.expert_edits import Ablate, Correct, Scale, SetOutput, Swap
from mumoe.editing.rewriting import mean_coefficients, rewriting
from mumoe.editing.stack import EditStack
from mumoe.errors import JobError, UserError

PROVENANCE = {"data": "emoji", "subgroup": "animal / openmoji", "lambda": 12.0, "before": {"accuracy": 0.9}}


def make(experts=(4, 3), seed=0):
    torch.manual_seed(seed)
    return mumoe.MuMoE(6, 4, experts, "cp", 3, norm="layer", sigma=(1.0,) * len(experts)).eval()


def stack_of(layer):
    stack = EditStack(layer)
    stack.add(rewriting(layer, 1, mean_coefficients(layer, torch.randn(9, 6))), "bias")
    for edit in (Ablate(0), Scale(1, -1.5, level=1, strength=0.3), Swap(0, 2, level=1)):
        stack.add(edit)
    stack.add(SetOutput((1, 2), 0, 0.1))
    stack.add(Correct.of(2, {(0, 0): 1 / 3, (3, 2): -2.0}))
    return stack


@pytest.fixture
def saved(tmp_path):
    layer = make()
    path = tmp_path / "edits.json"
    save_edits(path, stack_of(layer), PROVENANCE)
    return layer, path


def test_round_trip_is_exact(saved):
    layer, path = saved
    loaded = load_edits(path, make())
    expected = stack_of(make())
    torch.manual_seed(0)
    assert list(loaded.edits) == ["bias", "ablate-1", "scale-1", "swap-1", "set-output-1", "correct-1"]
    assert {name: edit for name, edit in loaded.edits.items() if name != "bias"} == {
        name: edit for name, edit in expected.edits.items() if name != "bias"
    }
    again = path.with_name("again.json")
    save_edits(again, loaded, PROVENANCE)
    first, second = (json.loads(file.read_text()) for file in (path, again))
    assert {**first, "created": ""} == {**second, "created": ""}
    x = torch.randn(5, 6)
    reloaded = load_edits(again, layer)
    assert torch.equal(reloaded.preview(x)[1], load_edits(path, layer).preview(x)[1])
    assert not loaded.applied


def test_content_explains_itself(saved):
    path = saved[1]
    content = read_edit_file(path)
    assert content.provenance == PROVENANCE
    assert content.layer["spec"] == "CPMuMoE-r3-e4x3"
    assert content.created.endswith("+00:00")
    assert content.edits["bias"].strength == 12


def test_saving_an_applied_stack_keeps_it_applied(tmp_path):
    stack = stack_of(make())
    stack.apply()
    save_edits(tmp_path / "a.json", stack)
    assert stack.applied
    assert read_edit_file(tmp_path / "a.json").layer["spec"] == "CPMuMoE-r3-e4x3"


def test_another_model_is_refused(saved):
    _, path = saved
    other = make(seed=1)
    with pytest.raises(UserError) as error:
        load_edits(path, other)
    assert "expected edits of this model (CPMuMoE-r3-e4x3, " in str(error.value)
    assert "got edits of another (CPMuMoE-r3-e4x3, " in str(error.value)
    assert str(error.value).endswith("in edits.json. Use the run that they were made on.")


def test_nothing_is_half_written(tmp_path, saved, monkeypatch):
    layer, path = saved
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"expected plain JSON values, got .*\. Leave NaN and objects out"):
        save_edits(path, stack_of(layer), {"accuracy": float("nan")})
    with pytest.raises(JobError, match="expected an existing folder"):
        save_edits(tmp_path / "no" / "edits.json", stack_of(layer))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(JobError, match="save_edits: .*the disk is full"):
        save_edits(path, stack_of(layer))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["edits.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="other"), "expected a file written by `mumoe edit`, got edits.json"),
        (lambda data: data.update(version=9), "expected version 1 in edits.json, got 9. Update mumoe."),
        (lambda data: data["edits"][1].update(kind="ablat"), "got 'ablat'. Did you mean 'ablate'?"),
        (lambda data: data["edits"][1].update(expret=1), "got 'expret'. Did you mean 'expert'?"),
        (
            lambda data: data["edits"][1].pop("expert"),
            "expected Ablate, got values that do not fit: Object missing required field expert",
        ),
        (lambda data: data["edits"][1].update(expert="1"), "Expected int, got str - at .expert."),
        (lambda data: data["edits"][1].update(expert=1.5), "Expected int, got float - at .expert."),
        (lambda data: data["edits"][1].update(expert=True), "Expected int, got bool - at .expert."),
        (lambda data: data["edits"][1].update(expert=99), "expected an expert in 0..3, got 99"),
        (lambda data: data["edits"][0].update(factors=[[["x"]]]), "Expected float, got str - at .factors[0][0][0]."),
        (lambda data: data["edits"][0].update(factors=3), "Expected array, got int - at .factors."),
        (lambda data: data["edits"][0].update(factors=[[[1.0], [1.0, 2.0]], [[1.0]]]), "expected factors as matrices"),
        (lambda data: data["edits"].append(data["edits"][1]), "got ValueError a name twice"),
        (lambda data: data["edits"][5].update(terms=[[1, 2, 3]]), "Expected array of length 2, got 3 - at .terms[0]."),
        (lambda data: data["edits"][5].update(terms=[[[1, 2], [3.0]]]), "got array - at .terms[0][1]."),
        (lambda data: data.pop("edits"), "expected complete edits in edits.json, got KeyError 'edits'"),
    ],
)
def test_changed_files_are_refused(saved, change, message):
    layer, path = saved
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        load_edits(path, layer)
    assert message in str(error.value)


def test_damaged_files_are_refused(saved):
    layer, path = saved
    good, rng = path.read_bytes(), random.Random(0)
    for _ in range(200):
        cut = good[: rng.randrange(len(good) - 2)]
        path.write_bytes(cut)
        with pytest.raises(UserError):
            load_edits(path, layer)
    for text in (b"[" * 100_000, b"\xff\xfe", b"NaN", b"", b"[]", b"3"):
        path.write_bytes(text)
        with pytest.raises(UserError, match="load_edits: expected"):
            load_edits(path, layer)
    path.write_bytes(good.replace(b'"strength": 12.0', b'"strength": Infinity'))
    with pytest.raises(UserError, match="the number Infinity"):
        load_edits(path, layer)
    with pytest.raises(UserError, match="expected a readable file, got No such file"):
        load_edits(path.with_name("none.json"), layer)
