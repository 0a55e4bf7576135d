"""Nearest experts: inner products equal those of the weights written out, and of the coefficients."""

import numpy as np
import pytest
import torch

from mumoe import HighRankLinear, MuMoE, SparseMoE
from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter
from mumoe.analysis.neighbours import coefficient_gram, nearest_experts, neighbours, weight_gram
from mumoe.errors import UserError
from tests_support import KINDS, LEVELS, randomize, rank_of, weight_by_formula


def store(folder, experts, rows=40, density=0.3, seed=0):
    rng = np.random.default_rng(seed)
    table = (rng.random((rows, experts)) * (rng.random((rows, experts)) < density)).astype(np.float32)
    with CoefficientWriter(folder, {"layer": (experts,)}) as writer:
        writer.append("layer", [table])
    return table.astype(np.float64), CoefficientStore(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_weights_multiply_as_if_written_out(kind, levels):
    layer = randomize(MuMoE(5, 4, LEVELS[levels], rank=rank_of(kind), factorization=kind))
    dense = weight_by_formula(layer)
    for level in range(levels):
        rows = dense.movedim(2 + level, 0).flatten(1)
        expected = (rows @ rows.mT).numpy()
        assert weight_gram(layer, level) == pytest.approx(expected, rel=1e-5, abs=1e-5 * abs(expected).max())


def test_weights_of_a_sparse_mixture_count_their_biases():
    layer = SparseMoE(5, 4, 3)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(12.0).view(3, 4))
    assert weight_gram(layer)[0].tolist() == [14, 38, 62]


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_coefficients_multiply_as_a_dense_table(tmp_path, density):
    table, found = store(tmp_path / "store", 90, density=density)
    assert coefficient_gram(found.level()) == pytest.approx(table.T @ table)


def test_nearest_come_first_and_never_the_expert_itself():
    vectors = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    found = nearest_experts(vectors @ vectors.T, 2)
    assert [expert for expert, _ in found[0]] == [1, 2]
    assert found[0][0][1] == pytest.approx(2 / np.hypot(2, 0.1))
    assert found[4] == ()
    assert all(n not in dict(row) for n, row in enumerate(found))
    assert all(value > 0 for row in nearest_experts(vectors @ vectors.T, 4, least=0.0) for _, value in row)


def test_the_mean_expert_is_taken_away(tmp_path):
    """Experts 0 and 1 leave the mean in one direction, 2 and 3 in the opposite one."""
    layer = MuMoE(2, 2, 4, factorization="dense", bias=False)
    with torch.no_grad():
        layer.factorization.weight.fill_(100.0)
        layer.factorization.weight[:, 0, 0] += torch.tensor([1.0, 2.0, -1.0, -2.0])
    (near,) = neighbours(layer, store(tmp_path / "store", 4)[1], most=1)
    assert [row[0][0] for row in near.by_weight] == [1, 0, 3, 2]


def test_a_layer_without_experts_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"expected a MuMoE or SparseMoE layer, got HighRankLinear\."):
        neighbours(HighRankLinear(4, 3, 2), store(tmp_path / "store", 4)[1])
