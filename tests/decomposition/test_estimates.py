"""Estimates of what ablations cost: the formula by hand, and draws that repeat."""

import pytest
import torch

from mumoe.decomposition import looking


@torch.no_grad()
def test_the_estimate_is_half_of_the_curvature_minus_the_slope(analyzed):
    replacement = analyzed.replacement
    x = torch.randn(50, replacement.shape.in_features)
    gradients = [torch.randn(50, replacement.shape.out_features) for _ in range(3)]
    found = looking._estimate(replacement, x, gradients)
    entries = looking.coefficient_entries(replacement, x)
    parts = looking.expert_parts(replacement, x[entries.row], entries.expert, entries.value).double()
    slope, one, two = ((gradient[entries.row].double() * parts).sum(1) for gradient in gradients)
    by_hand = torch.zeros_like(found).index_add_(0, entries.expert, (one.square() + two.square()) / 4 - slope)
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)
    assert found.count_nonzero() > 10


def test_targets_are_drawn_from_the_predictions():
    logits = torch.tensor([2.0, 0.0, 1.0]).expand(4, 5000, 3)
    drawn = looking._drawn(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(shares, logits[0, 0].softmax(0), rtol=0, atol=0.01)
    assert torch.equal(drawn, looking._drawn(logits, torch.Generator().manual_seed(0)))


def test_estimates_agree_with_measured_ablations(analyzed):
    measured = [one for one in analyzed.found.found if one.loss is not None]
    assert len(measured) == 4
    assert analyzed.found.ablation_correlation == pytest.approx(1, abs=0.3)
