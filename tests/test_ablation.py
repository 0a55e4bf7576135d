"""Who is ablated, and by what: arguments, contexts, copies, threads and tasks."""

from __future__ import annotations

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import mumoe
from mumoe.ablation import ablations
from mumoe.errors import UserError


@pytest.fixture
def layer() -> mumoe.MuMoE:
    torch.manual_seed(0)
    return mumoe.MuMoE(7, 6, 5, rank=3, norm="none").eval()


X = torch.randn(9, 7)


def output(layer: mumoe.MuMoE) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = layer(X)
    return y


def without(layer: mumoe.MuMoE, *experts: int) -> torch.Tensor:
    (a,) = layer.coefficients(X)
    kept = torch.ones(5)
    kept[list(experts)] = 0
    return layer.contract(X, [a * kept]).detach()


CONTEXTS: dict[str, Any] = {
    "an int": (3, [3]),
    "a numpy int": (np.int64(3), [3]),
    "a tensor of no dimensions": (torch.tensor(3), [3]),
    "a list": ([1, 3], [1, 3]),
    "a range": (range(2), [0, 1]),
    "a tensor": (torch.tensor([1, 3]), [1, 3]),
    "an array": (np.array([1, 3]), [1, 3]),
    "nothing": ([], []),
    "a mask": ([False, True, False, True, False], [1, 3]),
    "a mask as a tensor": (torch.tensor([0, 1, 0, 1, 0]).bool(), [1, 3]),
    "a mask as an array": (np.array([0, 1, 0, 1, 0], bool), [1, 3]),
}


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("level", [None, 0])
def test_what_may_be_ablated(layer: mumoe.MuMoE, name: str, level: int | None) -> None:
    experts, expected = CONTEXTS[name]
    with layer.ablate(experts, level=level):
        torch.testing.assert_close(output(layer), without(layer, *expected))


WRONG: dict[str, Any] = {
    "a short mask": ([True, False], "expected indices, or a mask of 5 booleans, got 2 values with booleans among them"),
    "a bool": (True, "expected indices, or a mask of 5 booleans, got 1 values"),
    "a mixed list": ([1, True, 2, 3, 4], "expected indices, or a mask of 5 booleans, got 5 values"),
    "a float": (1.0, "expected an expert's index, got 1.0. Give a number in 0..4"),
    "a text": ("1", "expected an expert's index, got '1'"),
    "none": (None, "expected an expert's index, got None"),
    "too large": ([5], "expected an expert in 0..4, got 5. There are 5 experts"),
    "negative": (np.int64(-1), "expected an expert in 0..4, got -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_may_not(layer: mumoe.MuMoE, name: str) -> None:
    experts, message = WRONG[name]
    with pytest.raises(UserError) as caught, layer.ablate(experts):
        pass
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ablations(layer) == ()


@pytest.mark.parametrize("level", [True, 1, -1, 0.0, "0"])
def test_levels_that_do_not_exist(layer: mumoe.MuMoE, level: Any) -> None:
    with pytest.raises(UserError, match="expected level in 0..0, got"), layer.ablate(1, level=level):
        pass


def test_a_mask_of_a_level_in_a_hierarchy() -> None:
    layer = mumoe.MuMoE(7, 6, (5, 3), rank=3).eval()
    with layer.ablate([False, True, False], level=1):
        found = output(layer)
    with layer.ablate(1, level=1):
        assert torch.equal(found, output(layer))
    with layer.ablate(torch.tensor([[0, 1], [4, 2]])):
        found = output(layer)
    with layer.ablate([(0, 1), (4, 2)]):
        assert torch.equal(found, output(layer))


def test_contexts_may_end_in_any_order(layer: mumoe.MuMoE) -> None:
    whole, one, two = output(layer), layer.ablate(1), layer.ablate(2)
    one.__enter__()
    two.__enter__()
    torch.testing.assert_close(output(layer), without(layer, 1, 2))
    one.__exit__(None, None, None)
    torch.testing.assert_close(output(layer), without(layer, 2))
    two.__exit__(None, None, None)
    assert torch.equal(output(layer), whole)


def test_copies_and_saved_states_are_not_ablated(layer: mumoe.MuMoE) -> None:
    whole = output(layer)
    with layer.ablate(1):
        copied, pickled, state = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.state_dict()  # noqa: S301 - our own bytes
        assert torch.equal(output(copied), whole)
        assert torch.equal(output(pickled), whole)
    layer.load_state_dict(state)
    for other in (layer, copied, pickled):
        assert torch.equal(output(other), whole)


def test_another_thread_is_not_ablated(layer: mumoe.MuMoE) -> None:
    whole = output(layer)
    with ThreadPoolExecutor(1) as pool, layer.ablate(1):
        assert torch.equal(pool.submit(output, layer).result(), whole)
        assert not torch.equal(output(layer), whole)


def test_tasks_have_ablations_of_their_own(layer: mumoe.MuMoE) -> None:
    async def task(expert: int) -> bool:
        with layer.ablate(expert):
            await asyncio.sleep(0.01)
            same = torch.allclose(output(layer), without(layer, expert), atol=1e-6)
            await asyncio.sleep(0.01)
        return same

    async def both() -> list[bool]:
        return await asyncio.gather(task(1), task(2))

    assert asyncio.run(both()) == [True, True]


def test_a_compiled_layer_is_ablated_and_restored(layer: mumoe.MuMoE) -> None:
    torch.compiler.reset()
    whole, compiled = output(layer), torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), whole)
        with layer.ablate(1):
            torch.testing.assert_close(compiled(X), without(layer, 1))
        torch.testing.assert_close(compiled(X), whole)


@pytest.mark.parametrize("route", ["dense", "sparse"])
@pytest.mark.parametrize("gate", ["entmax15", "sparsemax", "topk", "relu_topk"])
def test_ablation_is_a_mask_on_the_support(route: str, gate: str) -> None:
    layer = mumoe.MuMoE(7, 6, (40, 4), rank=3, gate=gate).eval()
    layer.gate.route = route
    experts = [1, 5, 30]
    with layer.ablate(experts, level=0), layer.ablate([(2, 1), (2, 3), (7, 0)]):
        y, a = layer(X, return_coefficients=True)
    joint = a[0][:, :, None] * a[1][:, None]
    joint[:, experts] = 0
    for index in ((2, 1), (2, 3), (7, 0)):
        joint[:, index[0], index[1]] = 0
    z = torch.cat([X, torch.ones(9, 1)], 1)
    torch.testing.assert_close(y, torch.einsum("bnm,oinm,bi->bo", joint, layer.to_dense(), z), rtol=1e-4, atol=1e-5)
