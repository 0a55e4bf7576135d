"""Screening in 8 bits: its bound holds, nothing is lost, and its copies are never stale."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from mumoe.backends import Support
from mumoe.native import cpu, screening
from native.reference import KINDS


def exact_products(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """As torch._int_mm must be; processors without such instructions may saturate."""
    return out.copy_(a.int() @ b.int())


@pytest.fixture(autouse=True, scope="module")
def everywhere():  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_int_mm", exact_products)
        patch.setattr(screening, "pays", lambda *sizes: True)
        patch.setattr(cpu, "SMALL", 0)
        patch.setattr(cpu, "DENSE", 2.0)
        yield
    screening.forget()


def both(x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, kind: str, k: int = 3) -> tuple[Support, Support, bool]:
    """Support with and without screening, and whether screening did not give up."""
    code = {"entmax15": 0, "sparsemax": 1, "topk": 2}[kind]
    done = screening.screened(x, weight, mean, rstd, code, min(k, len(weight))) is not None
    ours = cpu.support(x, weight, mean, rstd, kind, k, False, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "pays", lambda *sizes: False)
        plain = cpu.support(x, weight, mean, rstd, kind, k, False, 0.0)
    assert ours is not None
    assert plain is not None
    return ours, plain, done


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_support_and_values(kind: str) -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(40, 96), torch.randn(6000, 96)
    ours, plain, done = both(x, weight, torch.randn(6000), torch.full((6000,), 0.1), kind, k=5)
    assert done
    assert torch.equal(ours.indices, plain.indices)
    assert torch.equal(ours.offsets, plain.offsets)
    assert (ours.slack - plain.slack).abs().max() < 2e-6


numbers = st.floats(-8, 8, width=32) | st.sampled_from([0.0, 1e-20, 1e4, -1e4, 127.5 / 127])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.integers(1, 24), spread=st.sampled_from([0.01, 1.0, 100.0]))
def test_no_input_leaves_its_interval(data: st.DataObject, width: int, spread: float) -> None:
    x = torch.from_numpy(data.draw(arrays.arrays(np.float32, (3, width), elements=numbers)))
    weight = torch.from_numpy(data.draw(arrays.arrays(np.float32, (5, width), elements=numbers)))
    mean = torch.linspace(-3, 3, 5)
    rstd = torch.full((5,), spread)
    p, q = screening.quantize(x), screening.quantize(weight)
    at = screening._Columns.of(q, mean, rstd)
    norm, rest = screening._bounds_of(p)
    estimate = (p.codes.float() @ q.codes.float().t()) * p.scale[:, None] * at.scale + at.shift
    error = norm[:, None] * at.spread + rest[:, None] * at.code_norm + 1e-6 * at.shift.abs()
    true = ((x @ weight.t()) - mean) * rstd
    assert p.usable()
    assert at.usable()
    assert ((true.double() - estimate.double()).abs() <= error.double() + 1e-20).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), seed=st.integers(0, 1000))
def test_no_weights_make_it_lose_an_entry(data: st.DataObject, kind: str, seed: int) -> None:
    base = torch.from_numpy(data.draw(arrays.arrays(np.float32, (40, 6), elements=numbers)))
    generator = torch.Generator().manual_seed(seed)
    weight = base.repeat(20, 1) * (1 + 1e-3 * torch.randn(800, 6, generator=generator))
    x = torch.randn(4, 6, generator=generator)
    ours, plain, _ = both(x, weight, torch.zeros(800), torch.ones(800), kind)
    scale = float(x.norm(dim=1).max() * weight.norm(dim=1).max())
    tolerance = 2e-6 * max(1.0, scale)  # logits differ in their last bits, and so do the thresholds
    a, b = (torch.zeros(4, 800) for _ in range(2))
    for out, found in ((a, ours), (b, plain)):
        out[torch.repeat_interleave(found.offsets.diff()), found.indices] = found.slack
    if kind == "topk":
        a, b = a.sort(-1).values, b.sort(-1).values
    assert (a - b).abs().max() < 10 * tolerance


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_inputs_out_of_range_are_left_to_float32(bad: float) -> None:
    weight = torch.randn(600, 8)
    weight[3, 3] = bad
    assert screening.screened(torch.randn(4, 8), weight, None, None, 0, 0) is None


def support_of(weight: Tensor, x: Tensor) -> list[int]:
    found = cpu.support(x, weight, None, None, "topk", 1, False, 0.0)
    assert found is not None
    return found.indices.tolist()


@pytest.mark.parametrize("way", ["in place", "data", "numpy", "swap"])
def test_copies_follow_the_weight(way: str) -> None:
    weight = torch.nn.Parameter(torch.randn(600, 8))
    x = torch.randn(5, 8)
    before = support_of(weight, x)
    with torch.no_grad():
        if way == "in place":
            weight[17] = 100 * x[0]
        elif way == "data":
            weight.data[17] = 100 * x[0]
        elif way == "numpy":
            weight.detach().numpy()[17] = 100 * x[0].numpy()
        else:
            weight.data = weight.data.flip(0).contiguous()
    expected = (x @ weight.t()).argmax(1).tolist()
    assert expected != before
    assert support_of(weight, x) == expected


def test_copies_are_counted_and_end_with_the_weight() -> None:
    screening.forget()
    weight = torch.nn.Parameter(torch.randn(600, 8))
    support_of(weight.detach(), torch.randn(5, 8))
    assert 600 * 8 < screening.cached_bytes() < 600 * 8 + 600 * 48
    twin = copy.deepcopy(weight)
    del weight
    assert screening.cached_bytes() == 0
    assert twin.shape == (600, 8)
