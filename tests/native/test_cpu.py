"""The compiled kernels: equal to the dense functions, also on inputs made to break them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

import mumoe
from mumoe import backends, functional, native
from mumoe.errors import UserError
from mumoe.native import cpu, lists
from native.reference import KINDS, dense, errors, inputs, matrix, values_of

SHAPES = [(3, 1, 3), (4, 2, 5), (5, 7, 4), (33, 1000, 20), (64, 5000, 32), (300, 130, 64)]


@pytest.fixture(autouse=True)
def never_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "DENSE", 2.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_equal_to_the_dense_functions(shape: tuple[int, int, int], kind: str, batch: bool) -> None:
    # a coefficient is twice as sensitive as its logit, which is exact to a few units of float32
    assert max(errors(native.kernels(), *shape, kind, batch).values()) < 4e-6


def found_and_dense(logits: Tensor, kind: str, k: int = 4) -> tuple[Tensor, Tensor]:
    """Coefficients of rows of logits by the kernels and densely; logits are passed through an identity."""
    eye = torch.eye(logits.shape[1])
    found = native.kernels().support(logits @ eye, eye, None, None, kind=kind, k=k, batch_statistics=False, eps=0.0)
    assert found is not None
    _, p = dense(logits, eye, None, None, kind, k, False)
    return matrix(values_of(found, kind), found, logits.shape[1]).double(), p


@pytest.mark.parametrize("kind", ["entmax15", "sparsemax"])
@pytest.mark.parametrize("rows", [1, 40])
def test_ties_and_supports_larger_than_any_list(kind: str, rows: int) -> None:
    logits = torch.zeros(rows, 2000)
    logits[:, 1990:] = -3
    p, expected = found_and_dense(logits, kind)
    assert (p > 0).sum(-1).tolist() == [1990] * rows
    assert (p - expected).abs().max() < 2e-6 * expected.max()


def test_duplicated_experts_share_equally() -> None:
    half = torch.randn(20, 400)
    p, expected = found_and_dense(torch.cat([half, half], 1), "entmax15")
    assert torch.equal(p[:, :400], p[:, 400:])
    assert (p - expected).abs().max() < 1e-6


def test_of_equal_logits_topk_takes_the_first() -> None:
    p, _ = found_and_dense(torch.ones(3, 300), "topk", k=5)
    assert p.nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4] * 3


def test_entries_of_minus_infinity_are_outside() -> None:
    weight = torch.randn(600, 8)
    mean = torch.zeros(600)
    mean[::2] = torch.inf
    x = torch.randn(40, 8)
    found = native.kernels().support(
        x, weight, mean, torch.ones(600), kind="entmax15", k=0, batch_statistics=False, eps=0.0
    )
    assert found is not None
    assert (found.indices % 2 == 1).all()
    _, p = dense(x, weight[1::2], None, None, "entmax15", 0, False)
    assert (matrix(found.slack.square(), found, 600)[:, 1::2] - p).abs().max() < 2e-6


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rows", [2, 50])
@pytest.mark.parametrize("place", [0, 899])
def test_declines_rows_that_are_not_finite(bad: float, rows: int, place: int) -> None:
    mean = torch.zeros(900)
    mean[place] = -bad
    x, weight, rstd = torch.randn(rows, 8), torch.randn(900, 8), torch.ones(900)
    found = native.kernels().support(x, weight, mean, rstd, kind="entmax15", k=0, batch_statistics=False, eps=0.0)
    assert found is None


@pytest.mark.parametrize("kind", KINDS)
def test_declines_dense_coefficients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for rows, batch in ((1, False), (40, False), (40, True)):
        found = native.kernels().support(
            torch.randn(rows, 8), torch.zeros(900, 8), None, None, kind=kind, k=400, batch_statistics=batch, eps=1e-5
        )
        assert found is None


@pytest.mark.parametrize("batch", [True, False])
def test_an_empty_batch(batch: bool) -> None:
    x, weight = torch.empty(0, 8), torch.randn(900, 8)
    found = native.kernels().support(x, weight, None, None, kind="entmax15", k=0, batch_statistics=batch, eps=1e-5)
    assert found is not None
    assert (found.offsets.tolist(), found.indices.numel()) == ([0], 0)
    assert native.kernels().bag(found.slack, found.indices, found.offsets, torch.randn(900, 3)).shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 400), kind=st.sampled_from(KINDS), scale=st.sampled_from([0.1, 1, 30, 1e4]))
def test_no_logits_make_the_thresholds_lose_an_entry(data: st.DataObject, size: int, kind: str, scale: float) -> None:
    numbers = arrays.arrays(
        np.float32, (20, size), elements=st.floats(-4, 4, width=32), fill=st.sampled_from([0.0, 1.5])
    )
    logits = torch.from_numpy(data.draw(numbers)) * scale
    cpu.DENSE = 2.0
    p, expected = found_and_dense(logits, kind)
    if kind == "topk":  # of equal logits either may be chosen
        p, expected = p.sort(-1).values, expected.sort(-1).values
    assert (p - expected).abs().max() < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_forward_small_is_support_and_bag(kind: str) -> None:
    x, weight, mean, rstd = inputs(2, 1000, 24, False)
    factor = torch.randn(1000, 7)
    small = native.kernels().forward_small(x, weight, mean, rstd, factor, kind=kind, k=3)
    assert small is not None
    _, p = dense(x, weight, mean, rstd, kind, 3, False)
    assert (small[1] - p @ factor.double()).abs().max() < 1e-5


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "WORTH_THREADS", 1)
    x, weight = torch.randint(-3, 4, (50, 16)).float(), torch.randint(-3, 4, (3000, 16)).float()
    factor, grad = torch.randn(3000, 24), torch.randn(50, 24)
    rstd = torch.full((3000,), 0.1)

    def everything() -> list[Tensor]:
        kernels = native.kernels()
        found = kernels.support(
            x, weight, torch.zeros(3000), rstd, kind="entmax15", k=0, batch_statistics=False, eps=0.0
        )
        assert found is not None
        entries = (found.slack, found.indices, found.offsets)
        back = kernels.gate_backward(x, weight, rstd, *entries[1:], found.slack, found.normalized, False)
        return [*entries, kernels.bag(*entries, factor), *kernels.bag_backward(grad, *entries, factor), *back]

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


BAD = [
    ([0, 900], [0, 2], "indices"),
    ([0, -1], [0, 2], "indices"),
    ([0, 1], [0, 1], "offsets"),
    ([0, 1], [0, 3, 2], "offsets"),
    ([0, 1], [1, 2], "offsets"),
]


@pytest.mark.parametrize(("indices", "offsets", "word"), BAD)
def test_refuses_what_would_read_outside(indices: list[int], offsets: list[int], word: str) -> None:
    arrays_ = torch.ones(2), torch.tensor(indices), torch.tensor(offsets)
    factor, rows = torch.randn(900, 4), len(offsets) - 1
    with pytest.raises(IndexError, match=word):
        native.kernels().bag(*arrays_, factor)
    with pytest.raises(IndexError, match=word):
        native.kernels().bag_backward(torch.ones(rows, 4), *arrays_, factor)
    with pytest.raises(IndexError, match=word):
        native.kernels().gate_backward(
            torch.ones(rows, 4), factor, None, *arrays_[1:], torch.ones(2), torch.ones(2), False
        )


def test_refuses_other_dtypes_and_shapes() -> None:
    kernels = native.kernels()
    options = {"kind": "entmax15", "k": 0, "batch_statistics": False, "eps": 0.0}
    with pytest.raises(ValueError, match=r"float32 \(rows, 8\) matrix on the cpu, got torch.float32 \(9, 7\)"):
        kernels.support(torch.ones(2, 8), torch.ones(9, 7), None, None, **options)
    with pytest.raises(ValueError, match="got torch.float64"):
        kernels.support(torch.ones(2, 8).double(), torch.ones(9, 8), None, None, **options)
    with pytest.raises(ValueError, match=r"mean as \(9,\) float32"):
        kernels.support(torch.ones(2, 8), torch.ones(9, 8), torch.ones(8), torch.ones(9), **options)


def test_when_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.of(torch.ones(1)) is native.kernels()
    assert isinstance(backends.of(torch.ones(1).double()), backends.Plain)
    monkeypatch.setenv("MUMOE_NATIVE", "0")
    assert isinstance(backends.of(torch.ones(1)), backends.Plain)
    with pytest.raises(UserError, match="expected the device 'cpu' or 'cuda', got 'mps'"):
        native.kernels("mps")


def test_a_training_step_equals_that_of_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = mumoe.MuMoE(24, 10, 2000, rank=8), torch.randn(64, 24) + 100

    def step() -> list[Tensor]:
        return list(torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))

    monkeypatch.undo()
    ours, again = step(), step()
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    monkeypatch.setenv("MUMOE_NATIVE", "0")
    for a, b in zip(ours, step(), strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_importing_mumoe_does_not_import_numba() -> None:
    probe = "import sys, mumoe, mumoe.native; mumoe.MuMoE(4, 2, 3, rank=2); print('numba' in sys.modules)"
    source = Path(__file__).parents[2] / "src"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=source)
    assert run.stdout.strip() == "False"


ROWS = {
    "random": lambda: torch.randn(300, 128) * 2,
    "ties": lambda: torch.zeros(20, 33),
    "a mean of 100": lambda: torch.randn(50, 64) * 0.01 + 100,
    "one far above": lambda: torch.randn(10, 16) + 50 * torch.eye(10, 16),
    "one expert": lambda: torch.randn(5, 1),
    "an entry of -inf": lambda: torch.tensor([[0.0, -torch.inf, 0.5], [1.0, 2.0, 3.0]]),
}
"""Logits of whole rows; -3.4e38 and the like are in `test_a_row_that_is_not_finite_is_nan`."""


@pytest.mark.parametrize("kind", ["entmax15", "sparsemax"])
@pytest.mark.parametrize("name", ROWS)
def test_whole_rows_and_their_gradient(name: str, kind: str) -> None:
    torch.manual_seed(0)
    logits, activation = ROWS[name](), getattr(functional, kind)
    wide = logits.double().requires_grad_()
    grad = torch.randn(logits.shape)
    expected = activation(wide)  # float64: never by the kernels
    expected.backward(grad.double())
    p = native.kernels().dense(logits, kind)
    assert (p - expected).abs().max() < 2e-7
    assert wide.grad is not None
    assert (native.kernels().dense_backward(p, grad, kind) - wide.grad).abs().max() < 2e-6


@pytest.mark.parametrize("kind", ["entmax15", "sparsemax"])
def test_a_row_that_is_not_finite_is_nan(kind: str) -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[0, nan, 1], [inf, 0, 1], [-inf, -inf, -inf], [3.4e38, 3.4e38, -3.4e38], [0, 1, 2]])
    p = native.kernels().dense(logits, kind)
    assert p.isnan().all(-1).tolist() == [True, True, True, False, False]
    assert p[3].tolist() == [0.5, 0.5, 0.0]


def test_the_activations_take_the_kernels_and_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 5, 40, requires_grad=True)
    grad = torch.randn(7, 5, 40)
    calls = []
    for name in ("dense", "dense_backward"):
        real = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *given, real=real, name=name: calls.append(name) or real(*given))
    results = []
    for setting in ("1", "0"):
        monkeypatch.setenv("MUMOE_NATIVE", setting)
        p = functional.entmax15(logits)
        results.append((p.detach(), *torch.autograd.grad(p, logits, grad)))
    assert calls == ["dense", "dense_backward"]
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=5e-7)


def test_whole_rows_are_seen_by_those_who_watch() -> None:
    logits = torch.randn(4, 6)
    p = functional.entmax15(logits)
    torch.testing.assert_close(torch.func.vmap(functional.entmax15)(logits), p)
    torch.testing.assert_close(torch.compile(functional.entmax15, backend="eager", fullgraph=True)(logits), p)
    grads = torch.func.vmap(torch.func.grad(lambda row: functional.entmax15(row).square().sum()))(logits)
    wide = logits.double().requires_grad_()
    functional.entmax15(wide).square().sum().backward()
    torch.testing.assert_close(grads.double(), wide.grad, rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradgradcheck(functional.entmax15, wide)


def test_whole_rows_refuse_other_types() -> None:
    with pytest.raises(ValueError, match="expected logits as a float32"):
        native.kernels().dense(torch.zeros(2, 3, dtype=torch.float64), "entmax15")
    with pytest.raises(ValueError, match="expected grad of 2 rows, got 3"):
        native.kernels().dense_backward(torch.zeros(2, 3), torch.zeros(3, 3), "entmax15")
