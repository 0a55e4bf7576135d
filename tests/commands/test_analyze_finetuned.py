"""`mumoe analyze` on a run that trained its backbone: the answers of the whole network."""

import numpy as np
import pytest
import torch

from mumoe.commands.analyze import Options, analyze_run
from mumoe.training import StoredRun
from training.made_up_training import make_data


def right_answers(model, data, rows) -> np.ndarray:
    """Right answers by class, image by image through backbone and head."""
    transform = model.backbone.transform(False)
    counts = np.zeros(len(data.classes), dtype=int)
    with torch.no_grad():
        for row in rows:
            answer = int(model(transform(data.open_image(row))[None]).argmax())
            counts[data.labels[row]] += answer == data.labels[row]
    return counts


def test_counts_are_those_of_the_whole_network(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path))
    data = make_data(60)
    rows = data.indices("train")
    options = Options(str(run), split="train", images=0, resamples=0, quiet=True)
    units = analyze_run(options, data=data).study.units
    found = next(unit for unit in units if unit.units == "level 0").modes["zero"]
    model = StoredRun(run, device="cpu").model
    before = right_answers(model, data, rows)
    assert found.accuracy == pytest.approx(before.sum() / len(rows))
    effects = {effect.unit: dict(effect.losses) for effect in found.effects}
    for expert in range(3):
        with model.head.layer.ablate([expert], level=0):
            after = right_answers(model, data, rows)
        lost = {c: (b - a) / b for c, (b, a) in enumerate(zip(before, after, strict=True)) if b and a != b}
        assert effects.get(expert, {}) == pytest.approx(lost)


def test_the_inputs_are_the_trained_backbones_features(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MUMOE_CACHE", str(tmp_path))
    data = make_data(60)
    inputs = StoredRun(run, data=data, progress=False, device="cpu").inputs
    backbone = StoredRun(run, device="cpu").model.backbone
    with torch.no_grad():
        first = backbone(backbone.transform(False)(data.open_image(0))[None])[0]
    assert inputs.features.shape == (60, backbone.num_features)
    np.testing.assert_allclose(inputs.features[0], first, rtol=1e-4, atol=1e-5)
