"""No float64 on a device that has none: every verb on runs, with a CPU that is declared to have none.

`mumoe.devices.host` is the one way to float64: it goes to the CPU first. On the CPU itself that shows only in who
casts, so a cast from a narrower float to float64 outside of it is an error here.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mumoe import cli, devices

OLD = Path(__file__).parent / "fixtures" / "runs"


class NoFloat64(TorchDispatchMode):
    """Raises where a narrower float becomes float64 outside of `devices.host`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        narrow = any(x.is_floating_point() and x.dtype != torch.float64 for x in given)
        if narrow and any(x.dtype == torch.float64 for x in made) and not _on_host():
            raise AssertionError(f"{func} makes float64 of {[x.dtype for x in given]}")
        return result


def _on_host() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is devices.host.__code__:
            return True
        frame = frame.f_back
    return False


@pytest.fixture
def without_float64(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {"cpu"})
    with NoFloat64():
        yield


def test_the_check_finds_a_cast(without_float64) -> None:
    x = torch.ones(3)
    assert devices.host(x).dtype == torch.float64
    assert devices.wide(x).dtype == torch.float32
    with pytest.raises(AssertionError, match="makes float64"):
        x.double()
    with pytest.raises(AssertionError, match="makes float64"):
        torch.zeros((), dtype=torch.float64).add_(x.sum())


ATTRIBUTES = ("--data", f"features:{OLD / 'attributes.safetensors'}")
CLASSES = ("--data", f"features:{OLD / 'classes.safetensors'}")
TEXT = ("--data", f"tokens:{OLD / 'tokens'}")
SUBGROUP = ("--target", "ant", "--sensitive", "kind")
CALLS = {
    "evaluate": ("evaluate", "{}/attributes", *ATTRIBUTES),
    "evaluate a text": ("evaluate", "{}/text", *TEXT),
    "analyze": ("analyze", "{}/job/CPMuMoE-r4-e3x2/seed-0", "--images", "0", "--resamples", "20", *CLASSES),
    "analyze penultimate": ("analyze", "{}/trmumoe", "--images", "0", "--resamples", "20", *CLASSES),
    "analyze sparse": ("analyze", "{}/sparse", "--images", "0", "--resamples", "20", *CLASSES),
    "analyze neurons": ("analyze", "{}/highrank", "--images", "0", "--resamples", "20", *CLASSES),
    "analyze a text": ("analyze", "{}/text", *TEXT),
    "audit": ("audit", "{}/attributes", "--target", "ant", "--images", "0", "--min-rows", "2", *ATTRIBUTES),
    "fairness": ("fairness", "{}/attributes", *SUBGROUP, *ATTRIBUTES),
    "edit": ("edit", "{}/attributes", *SUBGROUP, "--value", "left", *ATTRIBUTES),
    "edit by hand": ("edit", "{}/attributes", "--do", "ablate:1", "set-output:0:bee=2.0", *ATTRIBUTES),
    "generate": ("generate", "{}/text", "--tokens", "4", *TEXT),
    "train": ("train", "--data", ATTRIBUTES[1], "--spec", "CPMuMoE-r4-e3", "--epochs", "2", "--out", "{}/new"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_verb_needs_no_float64_on_its_device(name, tmp_path, without_float64, capsys) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    arguments = [part.format(tmp_path / "old") for part in CALLS[name]]
    assert cli.main(["--debug", *arguments, "--device", "cpu"]) == 0
    assert capsys.readouterr().out
