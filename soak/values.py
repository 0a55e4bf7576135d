"""Values for generated calls, drawn by the annotation and the name of a parameter: usual ones, and odd ones."""

from __future__ import annotations

import collections.abc
import dataclasses
import random
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from mumoe.factorizations import FACTORIZATIONS
from mumoe.gating import GATES

__all__ = ["NAMED", "ODD_TEXTS", "Drawn", "draw"]

RUNS = ("runs/attributes", "runs/job", "runs/sparse", "runs/text", "runs/mixer", "landed/analyzed", "landed/saved")
FOLDERS = (*RUNS, "landed/converted", "runs/images", "runs", "nowhere", ".")
DATA = (
    "features:runs/attributes.safetensors",
    "features:runs/classes.safetensors",
    "folder:runs/images",
    "tokens:runs/tokens",
    "csv:runs/table.csv",
    "emoji",
    "cifar100",
    "stdlib",
    "hf:nobody/nothing",
)
HEADS = (
    *("CPMuMoE-r4-e3", "TRMuMoE-r2-e4x2", "TuckerMuMoE-r2x2x3-e4", "CPMuMoE-e4", "CPMuMoE", "DenseMuMoE-e3"),
    *(
        "linear",
        "mlp-8",
        "highrank-linear-r5",
        "sparse-moe-e4-k2",
        "MuMoE-r4",
        "CPMuMoE-r0-e0",
        "CPMuMoE-r4-e999999999",
    ),
)
CLASSES = ("ant", "bee", "cat", "kind", "left", "dog")

NAMED: Mapping[str, Sequence[Any]] = {
    **dict.fromkeys(("path", "run", "folder", "model", "resume", "runs", "other", "saved", "network", "name"), FOLDERS),
    **dict.fromkeys(("data", "text", "to", "corpus"), (*DATA, "val", "test", "blur", "gaussian-noise", "brown")),
    **dict.fromkeys(("head", "spec", "heads", "against", "kind"), HEADS),
    "split": ("train", "val", "test"),
    **dict.fromkeys(("target", "sensitive", "value", "label", "class_name", "by", "groups"), CLASSES),
    "factorization": tuple(FACTORIZATIONS),
    **dict.fromkeys(("gate", "gates"), tuple(GATES)),
    "norm": ("batch", "layer", "none", ""),
    "device": ("cpu", "auto", "cuda", "cuda:7", "meta", "mps"),
    "dtype": (torch.float32, torch.float64, torch.float16, torch.int64, "float32"),
    **dict.fromkeys(("out", "output", "save_directory"), ("out/a", "out/b", "out", "runs", "out/x.onnx")),
    "edits": ("landed/edits.json", "landed/hand.json", "runs/attributes/run.json"),
    **dict.fromkeys(
        ("do", "edit", "text_edit"), ("ablate:1", "scale:2=0.5", "swap:0=3", "set-output:0:cat=1.5", "x:y")
    ),
    **dict.fromkeys(("images", "files"), ("runs/images", "runs/images/ant/0.png", "runs/attributes/run.json")),
    "backbone": ("test_efficientnet", "mixer-s16", "gpt2", "efficientnet-lite0", "resnet"),
    "mode": ("features", "finetune", "scratch", "text"),
    "preset": ("plain", "specialized", "accurate"),
    **dict.fromkeys(("epochs", "steps", "seeds"), (1, 2)),
    "width": (8, 16, 0.5),
    "precision": ("fp32", "bf16", "float32", "auto"),
    "config": ("runs/attributes/config.toml", "sweep.toml"),
}
"""Usual values of parameters and options by their names."""

ODD_TEXTS = (
    *(
        "",
        " ",
        "x",
        "-1",
        "0",
        "nan",
        "inf",
        "1e400",
        "99999999999999999999",
        "None",
        "true",
        "a,b",
        "a=b",
        "=",
        ":",
        "\0",
    ),
    *("one\ntwo", "\x1b[31m", "\ud800", "../..", "/", "/nowhere/at/all", "~", "*", "{}", "[", "%s", "ä", "x" * 5000),
    *("features:", "folder:/", "tokens:runs", "csv:/etc/passwd", "CPMuMoE-r4-e3-q9", "--help", "-"),
)

_ODD: tuple[Callable[[], Any], ...] = (
    *(lambda value=value: value for value in ODD_TEXTS),
    *(
        lambda value=value: value
        for value in (None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, -0.0, 1e-300, 1e300, 1j, b"x", ..., int)
    ),
    *(lambda value=value: float(value) for value in ("nan", "inf", "-inf")),
    list,
    tuple,
    dict,
    set,
    object,
    lambda: {"a": 1},
    lambda: {1: None},
    lambda: [None],
    lambda: [[]],
    lambda: (1, "x", None),
    lambda: iter([1]),
    lambda: lambda: 0,
    lambda: Path("nowhere"),
    lambda: np.zeros((2, 3)),
    lambda: np.array(["a"]),
    lambda: np.float32(1.5),
    lambda: torch.zeros(2, 3),
    lambda: torch.tensor(1.0),
    lambda: torch.zeros(0),
    lambda: torch.device("meta"),
    lambda: nn.Linear(6, 3),
)

_SHAPES = ((2, 6), (4, 6), (3, 4, 6), (6,), (2, 5), (0, 6), (2, 3), (4, 3), (1,), (), (6, 4), (3, 4), (2, 0))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What values are drawn from.

    Attributes:
        rng: Source of randomness.
        odd: Share of odd values.
        objects: Maker of an object of a class, if one is known.
    """

    rng: random.Random
    odd: float
    objects: Callable[[type], Any]


def draw(source: Drawn, name: str, hint: Any) -> Any:
    """A value for a parameter."""
    rng = source.rng
    if rng.random() < source.odd:
        return rng.choice(_ODD)()
    known = NAMED.get(name) or NAMED.get(name.removesuffix("s"))
    if known and rng.random() < 0.9:
        found = rng.choice(known)
        return [found] if _wants_many(hint) and not isinstance(found, list) else found
    return _of_type(source, name, hint)


def _wants_many(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, collections.abc.Sequence)


def _of_type(source: Drawn, name: str, hint: Any, depth: int = 0) -> Any:
    rng = source.rng
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if depth > 4:
        return 1
    if origin is typing.Annotated:
        return _of_type(source, name, inner[0], depth)
    if origin in (typing.Union, types.UnionType):
        return _of_type(source, name, rng.choice(inner), depth + 1)
    if origin is Literal:
        return rng.choice(inner)
    if hint is None or hint is type(None):
        return None
    if hint is bool:
        return rng.random() < 0.5
    if hint is int:
        return rng.choice((0, 1, 2, 3, 3, 4, 5, 6, 6, 8, -1, 100))
    if hint is float:
        return rng.choice((0.0, 0.5, 1.0, 1.5, 0.01, 2.0, -1.0, 100.0))
    if hint is str:
        return rng.choice((*CLASSES, *HEADS[:3], *DATA[:3], "cp", "entmax15", "0", "blocks.*.mlp"))
    if hint is Any or hint is object or isinstance(hint, TypeVar | str):
        return rng.choice((0, 1, 0.5, "ant", None, "CPMuMoE-r4-e3"))
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return rng.choice((lambda *values: values[0] if values else None, print, len))
    base = origin or hint
    if not isinstance(base, type):
        return None
    return _of_class(source, name, base, inner, depth)


def _of_class(source: Drawn, name: str, base: type, inner: tuple[Any, ...], depth: int) -> Any:
    rng = source.rng
    if issubclass(base, torch.Tensor):
        return tensor(rng)
    if issubclass(base, np.ndarray):
        made = tensor(rng).detach()
        return np.zeros(made.shape) if made.is_meta else made.numpy()
    if issubclass(base, tuple) and inner and inner[-1] is not Ellipsis:
        return tuple(_of_type(source, name, one, depth + 1) for one in inner)
    if base in (list, tuple, set, frozenset) or (
        issubclass(base, collections.abc.Sequence | collections.abc.Iterable)
        and (not issubclass(base, str | collections.abc.Mapping))
        and base.__module__ in ("builtins", "collections.abc")
    ):
        items = [
            _of_type(source, name, inner[0] if inner else int, depth + 1) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))
        ]
        return tuple(items) if base is tuple or rng.random() < 0.5 else items
    if issubclass(base, collections.abc.Mapping) and base.__module__ in ("builtins", "collections.abc"):
        key, value = inner if len(inner) == 2 else (str, Any)
        return {
            _hashable(_of_type(source, name, key, depth + 1)): _of_type(source, name, value, depth + 1)
            for _ in range(rng.choice((0, 1, 2)))
        }
    if base is Path:
        return Path(rng.choice(FOLDERS))
    if base is torch.device:
        return torch.device(rng.choice(("cpu", "meta")))
    if base is torch.dtype:
        return rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.int64))
    return source.objects(base)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return str(value)
    return value


def tensor(rng: random.Random) -> torch.Tensor:
    """A small tensor, usually of numbers that a layer takes."""
    shape = rng.choice(_SHAPES)
    made = torch.rand(shape)
    if rng.random() < 0.6:
        return made
    kind = rng.choice(("nan", "int", "double", "half", "bool", "grad", "inf", "meta", "complex"))
    if kind == "nan":
        return made * float("nan")
    if kind == "inf":
        return made / 0
    if kind == "grad":
        return made.requires_grad_()
    if kind == "meta":
        return made.to("meta")
    dtypes = {"int": torch.int64, "double": torch.float64, "half": torch.float16, "bool": torch.bool}
    return made.to(dtypes.get(kind, torch.complex64))
