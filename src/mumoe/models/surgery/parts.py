"""The parts of a module: the linear layers, the nonlinearity and the dropout of an MLP.

An MLP is recognized by the names of its children, and then verified: the parts and the module itself are computed
on four generated rows, and both outputs must agree. A module that only looks like an MLP is rejected.

Hooks of the user are disabled while modules are tried, counted for the table, and left out of copies. A hook that
computes a layer's weight before each forward (`torch.nn.utils.weight_norm`, `spectral_norm`, `prune`) is part of what
the layer computes and always runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mumoe.errors import UserError
from mumoe.layers import MuMoE, MuMoEBlock
from mumoe.modes import evaluating

__all__ = [
    "Parts",
    "as_linear",
    "computes",
    "count_hooks",
    "drop_hooks",
    "quiet",
    "read_parts",
    "refusal",
    "sizes",
]

SUPPORTED = (
    "nn.Linear, Hugging Face's Conv1D, two-layer MLPs (timm's Mlp, also with 1 x 1 convolutions; those of Hugging "
    "Face's ViT, CLIP, GPT-2 and GPT-NeoX; nn.Sequential of linear, activation, linear) and gated MLPs (Llama's, "
    "timm's SwiGLU)"
)


@dataclass(frozen=True)
class Layout:
    """Names of an MLP's children: of the linear layers in order (a gated MLP has three: gate, up, down)."""

    linears: tuple[str, ...]
    act: str
    inner: tuple[str, ...] = ()
    """Between the layers, after the nonlinearity (and the gated product)."""
    drop: str = ""
    """After the last layer."""

    @property
    def names(self) -> set[str]:
        return {*self.linears, self.act, *self.inner, self.drop} - {""}


LAYOUTS = (
    Layout(("fc1", "fc2"), "act", ("drop1", "norm"), "drop2"),  # timm Mlp
    Layout(("fc1", "fc2"), "activation_fn"),  # Hugging Face: ViT, CLIP, SigLIP, DINOv2
    Layout(("c_fc", "c_proj"), "act", (), "dropout"),  # GPT-2
    Layout(("dense_h_to_4h", "dense_4h_to_h"), "act"),  # GPT-NeoX
    Layout(("gate_proj", "up_proj", "down_proj"), "act_fn"),  # Llama and its relatives
    Layout(("fc1_g", "fc1_x", "fc2"), "act", ("drop1", "norm"), "drop2"),  # timm SwiGLU
)


@dataclass(frozen=True)
class Parts:
    """A module read as one linear layer, a two-layer MLP, or a gated MLP of three.

    Attributes:
        linears: The layers: one; or first and second; or gate, up and down.
        act: The nonlinearity of an MLP.
        inner: Modules between the layers, after the nonlinearity.
        drop: After the last layer.
        channels_first: The features are the second dimension, as for convolutions.
    """

    linears: tuple[nn.Module, ...]
    act: nn.Module = field(default_factory=nn.Identity)
    inner: tuple[nn.Module, ...] = ()
    drop: nn.Module = field(default_factory=nn.Identity)
    channels_first: bool = False

    @property
    def kind(self) -> str:
        """``linear``, ``mlp`` or ``gated mlp``."""
        return ("linear", "mlp", "gated mlp")[len(self.linears) - 1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the input, between the layers, and of the output."""
        first, last = sizes(self.linears[0]), sizes(self.linears[-1])
        return (first[0], last[1]) if len(self.linears) == 1 else (first[0], first[1], last[1])

    @property
    def bias(self) -> bool:
        """Whether any of the layers has one."""
        return any(sizes(linear)[2] for linear in self.linears)

    @property
    def like(self) -> Tensor:
        """A tensor of the first layer, for its device and dtype; not a computed weight, which reading would compute."""
        return next(self.linears[0].parameters())

    def compute(self, x: Tensor) -> Tensor:
        """The module's output, computed from its parts; x (rows, in) -> (rows, out)."""
        first = _linear(self.linears[0], x)
        if len(self.linears) == 1:
            return first
        hidden = self.act(first)
        if len(self.linears) == 3:
            hidden = hidden * _linear(self.linears[1], x)
        for module in self.inner:
            hidden = module(hidden)
        y: Tensor = self.drop(_linear(self.linears[-1], hidden))
        return y

    def __str__(self) -> str:
        return f"{self.kind} {' -> '.join(map(str, self.widths))}"


def read_parts(module: nn.Module) -> Parts | None:
    """The parts of a supported module, None for any other. Nothing is computed here; `refusal` verifies the parts."""
    if _is_linear(module):
        return Parts((module,))
    if isinstance(module, MuMoE | MuMoEBlock):
        return None
    children = dict(module.named_children())
    for layout in LAYOUTS:
        if children.keys() == layout.names and (parts := _read_layout(children, layout)):
            return parts
    return _read_sequential(list(children.values())) if type(module) is nn.Sequential else None


def _read_layout(children: dict[str, nn.Module], layout: Layout) -> Parts | None:
    linears = tuple(children[name] for name in layout.linears)
    convolutions = all(_is_pointwise(linear) for linear in linears)
    if not convolutions and not all(_is_linear(linear) for linear in linears):
        return None
    inner = tuple(children[name] for name in layout.inner if type(children[name]) is not nn.Identity)
    drop = children[layout.drop] if layout.drop else nn.Identity()
    return _fitting(Parts(linears, children[layout.act], inner, drop, channels_first=convolutions))


def _read_sequential(children: list[nn.Module]) -> Parts | None:
    """Linear, activation, any others, linear, optional dropout."""
    where = [index for index, child in enumerate(children) if _is_linear(child)]
    if len(where) != 2 or where[0] != 0 or where[1] < 2:
        return None
    between, after = children[1 : where[1]], children[where[1] + 1 :]
    if any(not isinstance(child, nn.Dropout | nn.Identity) for child in after):
        return None
    drop = nn.Sequential(*after) if len(after) > 1 else (after or [nn.Identity()])[0]
    return _fitting(Parts((children[0], children[where[1]]), between[0], tuple(between[1:]), drop))


def _fitting(parts: Parts) -> Parts | None:
    """The parts; None if the widths of the layers do not match, as when one layer holds two halves."""
    *first, last = [sizes(linear) for linear in parts.linears]
    fits = all(size[:2] == first[0][:2] for size in first) and first[0][1] == last[0]
    return parts if fits else None


def refusal(module: nn.Module, parent: nn.Module | None = None) -> str:
    """Why a module cannot be replaced, as the end of "it is ..."; empty if it can."""
    if isinstance(module, MuMoE | MuMoEBlock):
        return "a MuMoE already: undo the surgery that made it first"
    if isinstance(parent, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer | nn.MultiheadAttention):
        return f"within nn.{type(parent).__name__}, which reads its weights without calling it"
    parts = read_parts(module)
    if parts is None:
        return f"{type(module).__name__}, which is not one of the supported modules: {SUPPORTED}"
    if not computes(parts, module):
        return f"{type(module).__name__}, which looks like {parts} but computes something else"
    return ""


def computes(parts: Parts, module: nn.Module) -> bool:
    """Whether the parts give the module's output on four generated rows, in evaluation mode and without hooks.

    Afterwards the weights that torch's own hooks compute are those of this forward.
    """
    like = parts.like
    if like.is_meta:
        return True
    rows = torch.linspace(-1, 1, 4 * parts.widths[0], dtype=torch.float64).sin().reshape(4, -1)
    rows = (3 * rows).to(like.device, like.dtype)
    x = rows.T.reshape(1, -1, 2, 2) if parts.channels_first else rows[None]
    with quiet(module):
        try:
            y = module(x)
            y = y[0].reshape(y.shape[1], 4).T if parts.channels_first else y[0]
            read = parts.compute(rows)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            return False
    tolerance = 1e-3 if like.dtype in (torch.float32, torch.float64) else 5e-2
    return bool(y.shape == read.shape and float((y - read).norm()) <= tolerance * float(read.norm() + 1e-12))


# Linear layers of several makes ---------------------------------------------------------------------------


def _is_linear(module: nn.Module) -> bool:
    return _plain_type(module) is nn.Linear or _is_transposed(module)


def _plain_type(module: nn.Module) -> type:
    """The class before `torch.nn.utils.parametrize` derived another one from it."""
    kind = type(module)
    return kind.__mro__[1] if is_parametrized(module) else kind


def _is_transposed(module: nn.Module) -> bool:
    """Hugging Face's Conv1D of GPT-2: a linear layer whose weight is (in, out)."""
    kind = _plain_type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _is_pointwise(module: nn.Module) -> bool:
    return (
        _plain_type(module) is nn.Conv2d
        and isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
    )


def sizes(linear: nn.Module) -> tuple[int, int, bool]:
    """Width of the input, of the output, and whether there is a bias; without reading a weight."""
    names = ("nx", "nf") if _is_transposed(linear) else ("in_features", "out_features")
    if isinstance(linear, nn.Conv2d):
        names = ("in_channels", "out_channels")
    into, out = (int(getattr(linear, name)) for name in names)
    return into, out, linear.bias is not None


def _matrix(linear: nn.Module) -> Tensor:
    """The weight as (out, in), a view."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    if _is_transposed(linear):
        return weight.T
    return weight.flatten(1)


def _linear(linear: nn.Module, x: Tensor) -> Tensor:
    bias: Any = linear.bias
    return F.linear(x, _matrix(linear), bias)


def as_linear(linear: nn.Module) -> nn.Linear:
    """A layer's effective weight and bias as an nn.Linear, including those made by a hook or a parametrization.

    Raises:
        UserError: If it does not compute x @ weight.T + bias.
    """
    own = {"weight", "bias"} <= linear._parameters.keys()
    if type(linear) is nn.Linear and own:
        return linear
    known = own or is_parametrized(linear) or has_computing_hook(linear)
    if not known or not computes(Parts((linear,), channels_first=_is_pointwise(linear)), linear):
        raise UserError(
            f"replace_modules: expected a layer that computes with its own weight, got {type(linear).__name__} "
            "whose weight a hook of another kind makes. Use init='random'."
        )
    in_features, out_features, bias = sizes(linear)
    view = nn.Linear(in_features, out_features, bias, device="meta")
    with quiet(linear):
        view.weight = nn.Parameter(_matrix(linear).detach(), requires_grad=False)
        if bias:
            numbers: Any = linear.bias
            view.bias = nn.Parameter(numbers.detach(), requires_grad=False)
    return view


# Hooks ----------------------------------------------------------------------------------------------------

_COMPUTING = (prune.BasePruningMethod, SpectralNorm, WeightNorm)
_KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = tuple(f"_global{kind}" for kind in _KINDS)


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """`evaluating` without hooks, which are restored afterwards."""
    kept = [(child, kind, child.__dict__[kind]) for child in module.modules() for kind in _KINDS]
    everywhere = [(kind, dict(getattr(torch_module, kind))) for kind in _GLOBAL]
    try:
        for child, kind, hooks in kept:
            child.__dict__[kind] = _computing(hooks)
        for kind, _ in everywhere:
            getattr(torch_module, kind).clear()
        with evaluating(module):
            yield
    finally:
        for child, kind, hooks in kept:
            child.__dict__[kind] = hooks
        for kind, shared in everywhere:
            getattr(torch_module, kind).update(shared)


def count_hooks(module: nn.Module) -> int:
    """Hooks on a module and everything inside, without those that compute weights."""
    tables = [child.__dict__[kind] for child in module.modules() for kind in _KINDS]
    return sum(len(hooks) - len(_computing(hooks)) for hooks in tables)


def has_computing_hook(module: nn.Module) -> bool:
    """Whether a hook of torch computes a weight of this module before each forward."""
    return bool(_computing(module._forward_pre_hooks))


def drop_hooks(module: nn.Module) -> nn.Module:
    """Remove the hooks of a copy, except those that compute weights; returns the module."""
    for child in module.modules():
        for kind in _KINDS:
            child.__dict__[kind] = _computing(child.__dict__[kind])
    return module


def _computing(hooks: dict[int, Any]) -> OrderedDict[int, Any]:
    return OrderedDict((key, hook) for key, hook in hooks.items() if isinstance(hook, _COMPUTING))
