"""The compiled kernels against the dense functions, also on inputs made to break them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.reference import KINDS, errors, matrix
from mumoe import kernels
from mumoe.kernels import cpu
from mumoe.sparse_gate import Plan

SHAPES = [(3, 1, 3), (4, 2, 5), (5, 7, 4), (33, 1000, 20), (64, 5000, 32), (300, 130, 64)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_equal_to_the_dense_functions(shape: tuple[int, int, int], kind: str, batch: bool) -> None:
    # a coefficient is twice as sensitive as its logit, which is exact to a few units of float32
    assert max(errors(cpu, *shape, kind, batch).values()) < 4e-6


def found_and_dense(logits: Tensor, kind: str, k: int = 4) -> tuple[Tensor, Tensor]:
    """Coefficients of rows of logits by the kernels and densely; logits are passed through an identity."""
    eye = torch.eye(logits.shape[1])
    found = cpu.support(logits @ eye, eye, None, None, kind, k, None, 2.0)
    assert found is not None
    values = found[0].square() if kind == "entmax15" else found[0]
    return matrix(values, found[1], found[2], logits.shape[1]).double(), Plan(kind, k).dense(logits.double())


@pytest.mark.parametrize("kind", ["entmax15", "sparsemax"])
@pytest.mark.parametrize("rows", [1, 40])
def test_ties_and_supports_larger_than_any_list(kind: str, rows: int) -> None:
    logits = torch.zeros(rows, 2000)
    logits[:, 1990:] = -3
    p, expected = found_and_dense(logits, kind)
    assert (p > 0).sum(-1).tolist() == [1990] * rows
    assert (p - expected).abs().max() < 2e-6 * expected.max()


@pytest.mark.parametrize("kind", ["topk", "relu_topk"])
def test_of_equal_logits_the_first_are_kept(kind: str) -> None:
    p, _ = found_and_dense(torch.ones(3, 300), kind, k=5)
    assert p.nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4] * 3


def test_negative_logits_are_outside_of_relu_topk() -> None:
    logits = torch.randn(50, 300) - 2
    p, expected = found_and_dense(logits, "relu_topk", k=40)
    assert ((p > 0).sum(-1) < 40).any()
    assert (p - expected).abs().max() < 2e-6
    none, _ = found_and_dense(-torch.rand(4, 300), "relu_topk", k=3)
    assert not none.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rows", [2, 50])
@pytest.mark.parametrize("place", [0, 899])
def test_declines_rows_that_are_not_finite(kind: str, bad: float, rows: int, place: int) -> None:
    mean = torch.zeros(900)
    mean[place] = -bad
    x, weight, rstd = torch.randn(rows, 8), torch.randn(900, 8), torch.ones(900)
    assert cpu.support(x, weight, mean, rstd, kind, 3, None, 2.0) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts", [90, 900, 9000])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_declines_dense_coefficients(kind: str, experts: int, eps: float | None) -> None:
    x, weight = torch.randn(40, 8), torch.zeros(experts, 8)
    assert cpu.support(x, weight, None, None, kind, experts // 2, eps, 0.25) is None


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WORTH_THREADS", 1)
    x, weight = torch.randint(-3, 4, (50, 16)).float(), torch.randint(-3, 4, (3000, 16)).float()
    factor, grad = torch.randn(3000, 24), torch.randn(50, 24)
    rstd = torch.full((3000,), 0.1)

    def everything() -> list[Tensor]:
        entries = cpu.support(x, weight, torch.zeros(3000), rstd, "entmax15", 0, None, 2.0)[:3]
        back = cpu.support_backward(*entries, x, weight, True, True)
        return [*entries, cpu.bag(*entries, factor), *cpu.bag_backward(grad, *entries, factor, True, True), *back]

    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


BAD = [([0, 900], [0, 2]), ([0, -1], [0, 2]), ([0, 1], [0, 1]), ([0, 1], [0, 3, 2]), ([0, 1], [1, 2])]


@pytest.mark.parametrize(("indices", "offsets"), BAD)
def test_refuses_what_would_read_outside(indices: list[int], offsets: list[int]) -> None:
    entries = torch.ones(2), torch.tensor(indices), torch.tensor(offsets)
    with pytest.raises(IndexError, match="expected offsets that rise to 2 and indices of 900 experts"):
        cpu.bag_backward(torch.ones(len(offsets) - 1, 4), *entries, torch.randn(900, 4), True, True)


def test_when_they_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.of(torch.ones(1)) is cpu
    assert kernels.of(torch.ones(1).double()) is None
    assert kernels.of(torch.ones(1, device="meta")) is None
    monkeypatch.setenv("MUMOE_NATIVE", "0")
    assert kernels.of(torch.ones(1)) is None


def test_triton_is_opt_in(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        dtype, device = torch.float32, torch.device("cuda")

    monkeypatch.delenv("MUMOE_TRITON", raising=False)
    assert kernels.of(Cuda()) is None  # type: ignore[arg-type]


def test_importing_mumoe_does_not_import_numba() -> None:
    probe = "import sys, mumoe, mumoe.kernels; mumoe.MuMoE(4, 2, 3, rank=2); print('numba' in sys.modules)"
    source = Path(__file__).parents[2] / "src"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=source)
    assert run.stdout.strip() == "False"
