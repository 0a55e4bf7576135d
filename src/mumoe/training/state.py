"""Collect and restore the tensors of a running job: of the network, its optimizer and the random generators."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mumoe.gating import Gate
from mumoe.training.checkpoint import Check, Specs, Stored, specs

__all__ = [
    "check_fit",
    "current_names",
    "fill_model",
    "fill_optimizer",
    "model_tensors",
    "optimizer_tensors",
    "random_tensors",
    "restore_model",
    "restore_optimizer",
    "restore_random",
]

Held = TypeVar("Held")

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Names of AdamW's state of each parameter."""


def model_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, where they are; sharded ones stay sharded."""
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments as ``PARAMETER/moment``, where they are; sharded ones stay sharded."""
    found: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        for moment, tensor in optimizer.state.get(parameter, {}).items():
            found[f"{name}/{moment}"] = tensor.detach()
    return found


def current_names(network: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names of tensors in a checkpoint -> their names in this version, where gates have renamed them.

    Gates rename the tensors of an older version in a hook of `load_state_dict`, which is run here on the names alone.
    """
    marks = {name: torch.empty(0) for name in names}
    before = {id(mark): name for name, mark in marks.items()}
    for path, module in network.named_modules():
        if isinstance(module, Gate):
            for hook in module._load_state_dict_pre_hooks.values():
                hook(marks, f"{path}." if path else "", {}, True, [], [], [])
    return {before[id(mark)]: name for name, mark in marks.items()}


def _renamed(network: nn.Module, entries: Mapping[str, Held], moments: bool = False) -> dict[str, Held]:
    """Entries by name under their current names; with `moments` the names are ``PARAMETER/moment``."""
    owners = {name: name.rpartition("/")[0] if moments else name for name in entries}
    now = current_names(network, dict.fromkeys(owners.values()))
    return {now[owner] + name.removeprefix(owner): entries[name] for name, owner in owners.items()}


def restore_model(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers into a network; names, shapes and types were checked before."""
    tensors = _renamed(network, tensors)
    with torch.no_grad():
        for name, target in network.state_dict().items():
            target.copy_(tensors[name])


def restore_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore AdamW's moments; a parameter without any (never updated) keeps none."""
    tensors = _renamed(network, tensors, moments=True)
    for name, parameter in network.named_parameters():
        if f"{name}/step" not in tensors:
            continue
        moments = {moment: tensors[f"{name}/{moment}"] for moment in _MOMENTS}
        optimizer.state[parameter] = {
            moment: value.clone() if moment == "step" else value.to(parameter.device).clone()
            for moment, value in moments.items()
        }


def fill_model(network: nn.Module, stored: Stored) -> None:
    """As `restore_model`, read from disk into a network that may be sharded: each process reads its own rows."""
    targets = network.state_dict()
    stored.fill("model", {old: targets[now] for old, now in current_names(network, stored.specs["model"]).items()})


def fill_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, stored: Stored) -> None:
    """As `restore_optimizer`, read from disk into moments that are sharded like the parameters."""
    if "optimizer" not in stored.specs:
        return
    old_names = _renamed(network, {name: name for name in stored.specs["optimizer"]}, moments=True)
    targets: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if f"{name}/step" not in old_names:
            continue
        held = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in _MOMENTS[1:]}
        optimizer.state[parameter] = {"step": torch.zeros(()), **held}
        targets |= {old_names[f"{name}/{moment}"]: tensor for moment, tensor in optimizer.state[parameter].items()}
    stored.fill("optimizer", targets)


def check_fit(network: nn.Module) -> Check:
    """A check that a checkpoint's tensors match this network and AdamW on it, and that its numbers are valid."""
    expected = specs(network.state_dict())
    trained = specs(dict(network.named_parameters()))

    def check(found: Mapping[str, Specs], numbers: Mapping[str, Any]) -> None:
        _check_numbers(numbers)
        if "model" not in found:
            raise ValueError("model.safetensors is missing")
        _compare("model.safetensors", expected, _renamed(network, found["model"]))
        if "optimizer" in found:
            _compare_moments(trained, _renamed(network, found["optimizer"], moments=True))
        for name, spec in found.get("random", {}).items():
            if len(spec[0]) != 1 or spec[1] not in (torch.uint8, torch.int64):
                raise ValueError(f"random.safetensors holds {name} of shape {spec[0]}")

    return check


def _check_numbers(numbers: Mapping[str, Any]) -> None:
    for name, kind in (("losses", "float"), ("unlogged", "int"), ("seconds", "float"), ("log_bytes", "int")):
        value: Any = numbers.get(name)
        if type(value).__name__ != kind or not (math.isfinite(value) or name == "losses"):
            raise ValueError(f"state.json has {name} = {value!r}")
    best = numbers.get("best")
    if best is not None and not (type(best["step"]) is int and type(best["accuracy"]) is float):
        raise ValueError(f"state.json has best = {best!r}")


def _compare_moments(trained: Specs, found: Specs) -> None:
    names = {name.rpartition("/")[0] for name in found}
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name in names & set(trained):
        wanted |= {f"{name}/{moment}": trained[name] for moment in _MOMENTS[1:]}
        wanted[f"{name}/step"] = ((), torch.float32)
    _compare("optimizer.safetensors", wanted, found)


def _compare(file: str, expected: Specs, found: Specs) -> None:
    odd = sorted(set(expected) ^ set(found))
    if odd:
        where = "lacks" if odd[0] in expected else "has the unknown"
        raise ValueError(f"{file} {where} tensor {odd[0]!r}" + (f" and {len(odd) - 1} more" * (len(odd) > 1)))
    for name, spec in expected.items():
        if found[name] != spec:
            raise ValueError(f"{file} has {name!r} as {_spell(found[name])} instead of {_spell(spec)}")


def _spell(spec: tuple[tuple[int, ...], torch.dtype]) -> str:
    return f"{str(spec[1]).removeprefix('torch.')}{list(spec[0])}"


def random_tensors(rank: int) -> dict[str, Tensor]:
    """States of the generators of python, numpy and torch in this process, by ``rank/generator``."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (the generator that libraries use)
    mersenne = numpy_state["state"]
    states = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": _float_bits(gauss),
        "numpy": torch.tensor([*mersenne["key"].tolist(), int(mersenne["pos"])], dtype=torch.int64),
        "numpy_gauss": _float_bits(numpy_state["gauss"] if numpy_state["has_gauss"] else None),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {f"{rank}/{name}": state for name, state in states.items()}


def _float_bits(value: float | None) -> Tensor:
    """A float as its bits; None as an empty tensor."""
    bits = [] if value is None else [np.float64(value).view(np.int64).item()]
    return torch.tensor(bits, dtype=torch.int64)


def _bits_float(bits: Tensor) -> float | None:
    return None if bits.numel() == 0 else float(np.int64(bits.item()).view(np.float64))


def restore_random(rank: int, tensors: Mapping[str, Tensor]) -> bool:
    """Restore the generators; False if the checkpoint has none for this process (there are more processes now).

    Raises:
        ValueError: If a state does not fit its generator.
    """
    if f"{rank}/torch" not in tensors:
        return False
    try:
        python = tensors[f"{rank}/python"].tolist()
        random.setstate((python[0], tuple(python[1:]), _bits_float(tensors[f"{rank}/python_gauss"])))
        _restore_numpy(tensors[f"{rank}/numpy"].tolist(), _bits_float(tensors[f"{rank}/numpy_gauss"]))
        torch.set_rng_state(tensors[f"{rank}/torch"])
        if f"{rank}/cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[f"{rank}/cuda"])
    except (RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"random.safetensors holds no generator state ({error})") from None
    return True


def _restore_numpy(words: list[int], gauss: float | None) -> None:
    if len(words) != 625 or not 0 <= words[-1] <= 624:
        raise ValueError("random.safetensors holds no state of numpy's generator")
    state = {"key": np.array(words[:-1], dtype=np.uint32), "pos": words[-1]}
    has_gauss = int(gauss is not None)
    np.random.set_state(  # noqa: NPY002
        {"bit_generator": "MT19937", "state": state, "has_gauss": has_gauss, "gauss": gauss or 0.0}
    )
