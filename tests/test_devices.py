"""Devices by name, and floats that a device has."""

from __future__ import annotations

import pytest
import torch

from mumoe import devices
from mumoe.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """A machine with these CUDA devices and perhaps an MPS one."""

    def make(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: cuda > 0 or mps)
        kind = torch.device("cuda" if cuda else "mps")
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind)

    return make


@pytest.mark.parametrize(
    ("there", "name", "expected"),
    [
        ({}, "auto", "cpu"),
        ({}, "cpu", "cpu"),
        ({"cuda": 2}, "auto", "cuda"),
        ({"cuda": 2}, "cuda", "cuda"),
        ({"cuda": 2}, "cuda:1", "cuda:1"),
        ({"cuda": 2}, "cpu", "cpu"),
        ({"mps": True}, "auto", "mps"),
        ({"mps": True}, "mps", "mps"),
    ],
)
def test_a_name_is_a_device(machine, there, name, expected):
    machine(**there)
    assert devices.resolve(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("there", "name", "got"),
    [
        ({}, "cuda", r"\(auto, cpu\), got 'cuda'\. Use auto or cpu\."),
        ({}, "mps", r"\(auto, cpu\), got 'mps'"),
        ({"cuda": 2}, "cuda:2", r"\(auto, cpu, cuda:0, cuda:1\), got 'cuda:2'\. Did you mean 'cuda'\?"),
        ({"cuda": 1}, "mps", r"\(auto, cpu, cuda:0\), got 'mps'"),
        ({"cuda": 1}, "cuda:x", r"got 'cuda:x'"),
        ({}, "", r"got ''"),
        ({}, "gpu", r"got 'gpu'\. Use auto or cpu"),
        ({}, "cup", r"got 'cup'"),
        ({}, "meta", r"got 'meta'"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(machine, there, name, got):
    machine(**there)
    with pytest.raises(UserError, match=f"^mumoe train: expected a device of this machine .*{got}") as error:
        devices.resolve(name, who="mumoe train")
    assert "\n" not in str(error.value)


def test_floats_are_as_wide_as_the_device_has(monkeypatch):
    x = torch.ones(2)
    assert devices.wide(x).dtype == torch.float64
    assert devices.widest("mps") == torch.float32
    assert devices.widest("cuda:1") == torch.float64
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {"cpu"})
    assert devices.wide(x).dtype == torch.float32
    assert devices.host(x).dtype == torch.float64
