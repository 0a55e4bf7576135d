"""The term that rewards experts for keeping to classes: its value, and what it does to a small mixture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mumoe import functional


def test_value_is_that_of_the_table_of_counts() -> None:
    torch.manual_seed(0)
    a = torch.rand(50, 6, dtype=torch.float64).softmax(-1)
    labels = torch.randint(0, 4, (50,))
    joint = np.zeros((4, 6))
    for row, label in zip(a.numpy(), labels.tolist(), strict=True):
        joint[label] += row / 50
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    expected = float((joint * np.log(joint / outer)).sum())
    assert float(functional.mutual_information(a, labels, 4)) == pytest.approx(expected, abs=1e-6)


def test_extremes() -> None:
    labels = torch.arange(5).repeat(20)
    own = torch.nn.functional.one_hot(labels, 5).float()
    assert float(functional.mutual_information(own, labels, 5)) == pytest.approx(math.log(5), abs=1e-5)
    even = torch.full((100, 5), 0.2)
    assert float(functional.mutual_information(even, labels, 5)) == pytest.approx(0, abs=1e-5)


def test_several_labels_a_row_are_the_mean_of_each_alone() -> None:
    torch.manual_seed(0)
    a = torch.rand(80, 7, dtype=torch.float64).softmax(-1)
    labels = (torch.rand(80, 3) > 0.6).long()
    alone = [float(functional.mutual_information(a, labels[:, k], 2)) for k in range(3)]
    assert float(functional.mutual_information(a, labels, 3)) == pytest.approx(sum(alone) / 3, abs=1e-6)


def test_tokens_count_as_rows_and_unknown_labels_are_left_out() -> None:
    torch.manual_seed(0)
    a, labels = torch.rand(4, 9, 5).softmax(-1), torch.randint(-1, 3, (4, 9))
    flat, known = a.reshape(36, 5), labels.reshape(36) >= 0
    expected = functional.mutual_information(flat[known], labels.reshape(36)[known], 3)
    assert torch.equal(functional.mutual_information(a, labels, 3), expected)


@pytest.mark.parametrize("several", [False, True])
def test_gradient_is_finite_and_right(several) -> None:
    torch.manual_seed(0)
    logits = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 2, (12, 3)) if several else torch.randint(0, 3, (12,))

    def value(z: torch.Tensor) -> torch.Tensor:
        return functional.mutual_information(z.softmax(-1), labels, 3)

    assert torch.autograd.gradcheck(value, (logits,), eps=1e-6, atol=1e-6)
    sparse = torch.eye(4).repeat(3, 1).requires_grad_()  # zeros in the table
    functional.mutual_information(sparse, labels, 3).backward()
    assert bool(sparse.grad.isfinite().all())


def test_16_bit_autocast_leaves_it_alone() -> None:
    torch.manual_seed(0)
    a, labels = torch.rand(64, 16).softmax(-1), (torch.rand(64, 4) > 0.5).long()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = functional.mutual_information(a, labels, 4)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, functional.mutual_information(a, labels, 4))
