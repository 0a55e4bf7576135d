"""The gate: projection -> normalization -> sparse activation -> one vector of expert coefficients per level.

    a_e = activation(normalize(G_e z)),  e = 1 .. E

The projection has no bias and the normalization nothing to learn (paper, section 4). Everything is computed
in float32 or better, whatever the input's dtype or autocast, so that each row of coefficients sums to 1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe import functional
from mumoe.errors import UserError, nearest, unknown_name

__all__ = [
    "GATES",
    "NORMS",
    "BatchNorm",
    "Entmax",
    "Entmax15",
    "Gate",
    "LayerNorm",
    "SoftRank",
    "Softmax",
    "Sparsemax",
    "TopK",
    "register_gate",
]

GATES: dict[str, type[nn.Module]] = {}
"""Activations by name: modules made with keyword options, (rows, num_experts) -> the same, rows sum to 1."""

NORMS = ("batch", "layer", "none")


def register_gate(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator that makes an activation available as ``gate=name``; a taken name is refused."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        if name in GATES:
            raise UserError(f"register_gate: expected a new name, got {name!r}. Choose another.")
        GATES[name] = cls
        return cls

    return register


@register_gate("entmax15")
class Entmax15(nn.Module):
    """Exact entmax with alpha = 1.5, the paper's gate. See `functional.entmax15`."""

    def forward(self, logits: Tensor) -> Tensor:
        return functional.entmax15(logits)


@register_gate("entmax")
class Entmax(nn.Module):
    """Entmax with any alpha in (1, 2]; `learnable` makes alpha a parameter in (1, 2) that starts there."""

    def __init__(self, alpha: float = 1.5, learnable: bool = False) -> None:
        super().__init__()
        limit = "1 < alpha < 2" if learnable else "1 < alpha <= 2"
        if not 1 < alpha <= 2 or (learnable and alpha == 2):
            raise UserError(f"Entmax: expected {limit}, got {alpha}. Use gate='softmax' for alpha = 1.")
        self.fixed = float(alpha)
        start = math.log((alpha - 1) / (2 - alpha)) if learnable else 0.0
        self.logit = nn.Parameter(torch.tensor(start)) if learnable else None

    @property
    def alpha(self) -> float | Tensor:
        """Alpha as it is now."""
        return self.fixed if self.logit is None else 1 + torch.sigmoid(self.logit.float())

    def forward(self, logits: Tensor) -> Tensor:
        return functional.entmax(logits, self.alpha)

    def extra_repr(self) -> str:
        alpha = self.alpha.item() if isinstance(self.alpha, Tensor) else self.alpha
        return f"alpha={alpha:.4g}, learnable={self.logit is not None}"


@register_gate("sparsemax")
class Sparsemax(nn.Module):
    """Projection onto the simplex. See `functional.sparsemax`."""

    def forward(self, logits: Tensor) -> Tensor:
        return functional.sparsemax(logits)


@register_gate("softmax")
class Softmax(nn.Module):
    """Softmax: dense coefficients, the ablation of Figure 9."""

    def forward(self, logits: Tensor) -> Tensor:
        dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
        return torch.softmax(logits, dim=-1, dtype=dtype)


@register_gate("topk")
class TopK(nn.Module):
    """Softmax over the k largest logits; a level of fewer experts takes them all."""

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"TopK: expected k >= 1, got {k}. Give the number of experts to keep.")
        self.k = k

    def forward(self, logits: Tensor) -> Tensor:
        return functional.topk_softmax(logits, self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"


@register_gate("softrank")
class SoftRank(nn.Module):
    """Scaled soft ranks, to compare how experts specialize. O(N^2) a row. See `functional.softrank`."""

    def __init__(self, regularization: float = 1.0) -> None:
        super().__init__()
        if not regularization > 0:
            raise UserError(f"SoftRank: expected regularization > 0, got {regularization}. Smaller is closer to ranks.")
        self.regularization = regularization

    def forward(self, logits: Tensor) -> Tensor:
        return functional.softrank(logits, self.regularization)

    def extra_repr(self) -> str:
        return f"regularization={self.regularization}"


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization of gate logits, without scale or shift, its statistics in float32 or better.

    In training a batch needs at least two rows; an empty batch passes through and leaves the statistics.
    """

    def __init__(self, num_features: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        super().__init__(num_features, affine=False, device=device, dtype=wide)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BatchNorm:
        """Move with the module; a cast to 16 bits leaves the statistics in 32."""
        before = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype in (torch.float16, torch.bfloat16):
                wide = new.float() if new.is_meta or old.is_meta else old.to(new.device, torch.float32)
                setattr(self, name, wide)
        return self

    def forward(self, input: Tensor, shift: Tensor | None = None) -> Tensor:
        """Normalize (rows, num_features); `shift` (num_features,) was taken off the input and belongs to its mean."""
        if self.training and input.shape[0] == 1:
            raise UserError(
                "MuMoE: expected at least 2 rows to train a batch-normalized gate, got 1. "
                "Use a larger batch, norm='layer', or layer.eval()."
            )
        if self.training and input.shape[0] == 0:
            return input
        if shift is None or not self.training or self.running_mean is None:
            return super().forward(input)
        weight = self._next_weight()
        mean = self.running_mean.clone()  # torch keeps it for the backward, so it is not changed afterwards
        y = F.batch_norm(input, mean, self.running_var, None, None, True, weight, self.eps)
        with torch.no_grad():
            self.running_mean.copy_(mean + weight * shift)
        return y

    def _next_weight(self) -> float:
        """Share of the batch at hand in the running statistics; counts it."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)

    @torch.no_grad()
    def remember(self, mean: Tensor, var: Tensor, rows: int) -> None:
        """Update the running statistics by a batch's mean and biased variance, each (num_features,)."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        weight = self._next_weight()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_((var * (rows / (rows - 1))).to(self.running_var.dtype), weight)


class LayerNorm(nn.Module):
    """Layer normalization of gate logits over the experts, without scale or shift."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps

    def forward(self, logits: Tensor) -> Tensor:
        return F.layer_norm(logits, (self.num_features,), eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


def _make_norm(norm: str, size: int, device: Any, dtype: torch.dtype | None) -> nn.Module:
    if norm not in NORMS:
        raise unknown_name("MuMoE", "norm", norm, NORMS)
    if norm == "batch":
        return BatchNorm(size, device=device, dtype=dtype)
    return LayerNorm(size) if norm == "layer" else nn.Identity()


def _make_activation(gate: str | nn.Module, options: Mapping[str, Any]) -> nn.Module:
    if isinstance(gate, nn.Module):
        if options:
            raise UserError(f"MuMoE: expected no gate_options beside a gate module, got {dict(options)}. Drop them.")
        return gate
    if gate not in GATES:
        raise unknown_name("MuMoE", "gate", gate, GATES)
    accepted = list(inspect.signature(GATES[gate]).parameters)
    for name in options:
        if name not in accepted:
            close = nearest(name, accepted)
            remedy = f"Did you mean {close!r}?" if close else f"It takes {', '.join(accepted) or 'none'}."
            raise UserError(f"MuMoE: expected gate_options of gate={gate!r}, got {name!r}. {remedy}")
    return GATES[gate](**options)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the tensor's device."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class Gate(nn.Module):
    """Expert coefficients of every level from one input.

    Args:
        in_features: Width of the input.
        num_experts: Number of experts per level.
        gate: Name of an activation in `GATES`, or a module (shared by the levels).
        norm: ``batch`` (running statistics, in training those of the batch), ``layer`` or ``none``.
        options: Keyword options of the activation, such as ``{"alpha": 1.3}`` or ``{"k": 4}``.
        init: ``normal`` (standard deviation 1 / sqrt(in_features)) or ``zeros`` (uniform coefficients).

    Attributes:
        weights: One (num_experts[e], in_features) parameter per level.

    Shape:
        (rows, in_features) -> one (rows, num_experts[e]) per level, float32 or float64.
    """

    def __init__(
        self,
        in_features: int,
        num_experts: Sequence[int],
        gate: str | nn.Module = "entmax15",
        norm: str = "batch",
        *,
        options: Mapping[str, Any] | None = None,
        init: str = "normal",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if init not in ("normal", "zeros"):
            raise unknown_name("MuMoE", "gate_init", init, ("normal", "zeros"))
        self.in_features, self.num_experts = in_features, tuple(num_experts)
        self.name = gate if isinstance(gate, str) else type(gate).__name__
        self.norm, self.options, self.init = norm, dict(options or {}), init
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(size, in_features, device=device, dtype=dtype)) for size in num_experts
        )
        self.norms = nn.ModuleList(_make_norm(norm, size, device, dtype) for size in num_experts)
        self.activations = nn.ModuleList(_make_activation(gate, self.options) for _ in num_experts)
        if device is not None:
            self.activations.to(device)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new projections and forget the running statistics."""
        for weight, norm in zip(self.weights, self.norms, strict=True):
            weight.zero_() if self.init == "zeros" else weight.normal_(std=self.in_features**-0.5)
            if isinstance(norm, BatchNorm):
                norm.reset_running_stats()

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalized logits of every level, before the activation."""
        return tuple(self._logits(level, x) for level in range(len(self.num_experts)))

    def _logits(self, level: int, x: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        norm, weight = self.norms[level], self.weights[level].to(wide)
        with full_precision(x):
            if type(norm) is BatchNorm and norm.training and len(x) > 1:  # a large mean would cost digits
                centre = x.detach().to(wide).mean(0)
                return norm(F.linear(x.to(wide) - centre, weight), weight.detach() @ centre)
            y: Tensor = norm(F.linear(x.to(wide), weight))
            return y

    def level(self, level: int, x: Tensor) -> Tensor:
        """Coefficients of one level: (rows, in_features) -> (rows, num_experts[level])."""
        with full_precision(x):
            a: Tensor = self.activations[level](self._logits(level, x))
        return a

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.level(level, x) for level in range(len(self.num_experts)))

    def extra_repr(self) -> str:
        return f"in={self.in_features}, experts={self.num_experts}, gate={self.name!r}, norm={self.norm!r}"
