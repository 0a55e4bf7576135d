"""Clipping by hand: AdamW's first moments after one step are 0.1 x the gradient, scaled to the largest norm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from made_up_training import make_data, make_features
from safetensors.torch import load_file

from mumoe.models.heads import build_head
from mumoe.training import StoredRun, TrainConfig, train


def gradients(out: Path, **settings: object) -> dict[str, torch.Tensor]:
    """The gradients that the first step took, by parameter."""
    data = make_data()
    config = TrainConfig(data="made-up", head="CPMuMoE-r3-e4", batch_size=24, steps=1, lr=1e-3, out=str(out))
    train(config.replace(**settings), data=data, features=make_features(data), progress=False)
    (path,) = out.glob("checkpoints/step-00000001/optimizer.safetensors")
    moments = load_file(path)
    found = {name.rpartition("/")[0]: value / 0.1 for name, value in moments.items() if name.endswith("/exp_avg")}
    assert len(found) >= 4
    return found


def norm(values: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([value.flatten().double() for value in values.values()]).norm())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_scaled_to_the_norm(tmp_path: Path, accumulate: int) -> None:
    whole = gradients(tmp_path / "whole", accumulate=accumulate)
    size = norm(whole)
    assert size > 0.2
    for share in (0.25, 0.9):
        clipped = gradients(tmp_path / str(share), accumulate=accumulate, clip=share * size)
        assert norm(clipped) == pytest.approx(share * size, rel=1e-4)
        for name, value in whole.items():
            torch.testing.assert_close(clipped[name], share * value, rtol=1e-3, atol=1e-6 * size)
    left = gradients(tmp_path / "left", accumulate=accumulate, clip=1.1 * size)
    assert all(torch.equal(left[name], value) for name, value in whole.items())


def test_the_gradient_is_that_of_the_mean_loss(tmp_path: Path) -> None:
    """By autograd on the head as it was drawn, over the whole first batch."""
    data = make_data()
    features = make_features(data)
    rows = data.indices("train")
    found = gradients(tmp_path / "run", batch_size=len(rows), lr=0.0, weight_decay=0.0)
    head = StoredRun(tmp_path / "run", device="cpu").head
    fresh = build_head("CPMuMoE-r3-e4", features.shape[1], 4)
    fresh.load_state_dict(head.state_dict())
    fresh.train()
    loss = F.cross_entropy(fresh(torch.from_numpy(features[rows])), torch.from_numpy(data.labels[rows]))
    names, values = zip(*fresh.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, values), strict=True))
    assert norm(expected) > 0.2
    for name, value in found.items():
        (own,) = [grad for other, grad in expected.items() if name.endswith(other)]
        torch.testing.assert_close(value, own, rtol=1e-3, atol=1e-5)


def test_the_balance_of_a_sparse_head_counts_once_however_many_parts(tmp_path: Path) -> None:
    sizes = [
        norm(gradients(tmp_path / str(parts), head="sparse-moe-e4-k2", accumulate=parts, balance=1e3, batch_size=64))
        for parts in (1, 2)
    ]
    plain = norm(gradients(tmp_path / "plain", head="sparse-moe-e4-k2", balance=0.0, batch_size=64))
    assert min(sizes) > 20 * plain, "the balance outweighs the rest"
    assert max(sizes) < 1.5 * min(sizes)
