"""The gate: router -> normalization -> activation -> the coefficients of every expert level.

    a_e = activation(normalize(router_e(z))),  e = 1 .. E

By default a router is a linear layer without bias and the normalization has nothing to learn (paper, section 4). All of
it is computed in float32 or better, regardless of the input's dtype and of autocast, so that each row of coefficients
sums to 1.

`takes_sparse` is the one place that chooses between the dense gate and the sparse one (`mumoe.sparse_gate`), which
gives the same coefficients without a (rows, num_experts) matrix.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from mumoe import functional, kernels, sparse_gate
from mumoe.calling import checked, checked_methods
from mumoe.coefficients import Coefficients, DenseCoefficients, full_precision
from mumoe.errors import UserError, check_levels, nearest, unknown_name
from mumoe.sparse_gate import Plan

__all__ = [
    "GATES",
    "NORMS",
    "ROUTES",
    "BatchNorm",
    "Entmax",
    "Entmax15",
    "Gate",
    "LayerNorm",
    "ReLUTopK",
    "Router",
    "SoftRank",
    "Softmax",
    "Sparsemax",
    "TopK",
    "make_gate",
    "register_gate",
    "takes_sparse",
]

GATES: dict[str, type[nn.Module]] = {}
"""Activations by name: modules made with keyword options, (rows, num_experts) -> the same."""

NORMS = ("batch", "layer", "none")

ROUTES = ("auto", "dense", "sparse")
"""How a gate computes: ``dense`` forms every logit of the batch, ``sparse`` keeps the support alone."""


@checked
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
        self.logit = nn.Parameter(torch.empty(())) if learnable else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reset a learned alpha to its initial value."""
        if self.logit is not None:
            self.logit.fill_(math.log((self.fixed - 1) / (2 - self.fixed)))

    @property
    def alpha(self) -> float | Tensor:
        """The current alpha."""
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
    """Softmax over the k largest logits; a level of fewer experts uses them all.

    With ``normalize=False`` the softmax runs over all logits first. See `functional.topk_softmax`.
    """

    def __init__(self, k: int = 2, normalize: bool = True) -> None:
        super().__init__()
        self.k, self.normalize = _at_least_one(k, "TopK"), normalize

    def forward(self, logits: Tensor) -> Tensor:
        return functional.topk_softmax(logits, self.k, self.normalize)

    def extra_repr(self) -> str:
        return f"k={self.k}, normalize={self.normalize}"


@register_gate("relu_topk")
class ReLUTopK(nn.Module):
    """The k largest logits where they are positive, not normalized. See `functional.relu_topk`."""

    router_bias: ClassVar[bool] = True
    """Rows that do not sum to 1 need a level of their own: the gate's routers get a bias."""

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.k = _at_least_one(k, "ReLUTopK")

    def forward(self, logits: Tensor) -> Tensor:
        return functional.relu_topk(logits, self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"


def _at_least_one(k: Any, who: str) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UserError(f"{who}: expected k >= 1, got {k!r}. Give the number of experts to keep.")
    return k


@register_gate("softrank")
class SoftRank(nn.Module):
    """Scaled soft ranks, to compare how experts specialize; ``normalize=False`` gives the soft ranks themselves.

    O(N^2) a row. See `functional.softrank`.
    """

    def __init__(self, regularization: float = 1.0, normalize: bool = True) -> None:
        super().__init__()
        if not regularization > 0:
            raise UserError(f"SoftRank: expected regularization > 0, got {regularization}. Smaller is closer to ranks.")
        self.regularization, self.normalize = regularization, normalize

    def forward(self, logits: Tensor) -> Tensor:
        return functional.softrank(logits, self.regularization, self.normalize)

    def extra_repr(self) -> str:
        return f"regularization={self.regularization}, normalize={self.normalize}"


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
        """Normalize (rows, num_features); `shift` (num_features,), subtracted from the input, is part of its mean."""
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
        """Weight of the current batch in the running statistics; counts the batch."""
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
        return copy.deepcopy(gate)
    if gate not in GATES:
        raise unknown_name("MuMoE", "gate", gate, GATES)
    accepted = [*inspect.signature(GATES[gate]).parameters, *OWN_OPTIONS]
    for name in options:
        if name not in accepted:
            close = nearest(name, accepted)
            remedy = f"Did you mean {close!r}?" if close else f"It takes {', '.join(accepted) or 'none'}."
            raise UserError(f"MuMoE: expected gate_options of gate={gate!r}, got {name!r}. {remedy}")
    return GATES[gate](**options)


def _make_routers(
    router: nn.Module | Sequence[nn.Module] | None,
    in_features: int,
    num_experts: Sequence[int],
    bias: bool,
    where: Mapping[str, Any],
) -> list[nn.Module]:
    if router is None:
        return [Router(in_features, size, bias=bias, **where) for size in num_experts]
    routers = [router] if isinstance(router, nn.Module) else list(router)
    if len(routers) != len(num_experts):
        raise UserError(
            f"Gate: expected one router for each of {len(num_experts)} levels, got {len(routers)}. "
            "Give a list with one module per level."
        )
    return routers


class Router(nn.Linear):
    """The default router: a linear layer that computes in float32 or better, regardless of the dtype of its weight."""

    def reset_parameters(self) -> None:
        """Draw a weight of standard deviation 1 / sqrt(in_features); a bias starts at zero."""
        with torch.no_grad():
            self.weight.normal_(std=self.in_features**-0.5)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        wide = _wide(input)
        with full_precision(input):
            return F.linear(input.to(wide), self.weight.to(wide), None if self.bias is None else self.bias.to(wide))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _reset(module: nn.Module) -> None:
    """Call the module's `reset_parameters`, if it has one; a batch norm resets its running statistics."""
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


@checked_methods
class Gate(nn.Module):
    """Expert coefficients of every level from one input.

    Args:
        in_features: Width of the input.
        num_experts: Number of experts, or one per level.
        gate: Name of an activation in `GATES`, or a module, of which every level gets a copy.
        norm: ``batch`` (running statistics, in training those of the batch), ``layer`` or ``none``.
        options: Keyword options of the activation, such as ``{"alpha": 1.3}`` or ``{"k": 4}``; and two of the gate:
            ``scale``, by which the normalized logits are multiplied (below 1 more experts share a row), and
            ``dropout``, the probability with which an input of the gate is zeroed in training.
        init: ``normal`` (standard deviation 1 / sqrt(in_features)) or ``zeros`` (uniform coefficients).
        router: Module (rows, in_features) -> (rows, num_experts[0]) logits, or a list of one per level. None makes
            linear layers, with a bias only for an activation that asks for it (`ReLUTopK`).
        route: ``dense`` forms the logits of the whole batch, ``sparse`` keeps the support alone wherever both give the
            same values, ``auto`` chooses the faster of the two (`takes_sparse`).

    Attributes:
        routers: One module per level; so are `norms` and `activations`.

    Shape:
        (rows, in_features) -> one (rows, num_experts[e]) `Coefficients` per level, float32 or float64.

    Raises:
        UserError: For an unknown name or option, or another number of routers than levels.
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int | Sequence[int],
        gate: str | nn.Module = "entmax15",
        norm: str = "batch",
        *,
        options: Mapping[str, Any] | None = None,
        init: str = "normal",
        router: nn.Module | Sequence[nn.Module] | None = None,
        route: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("gate_init", init, ("normal", "zeros")), ("route", route, ROUTES)):
            if value not in known:
                raise unknown_name("MuMoE", name, value, known)
        self.in_features, self.num_experts = in_features, check_levels(num_experts, "Gate")
        self.name = gate if isinstance(gate, str) else type(gate).__name__
        self.norm, self.options, self.init, self.route = norm, dict(options or {}), init, route
        own = {**OWN_OPTIONS, **{key: value for key, value in self.options.items() if key in OWN_OPTIONS}}
        self.scale, self.dropout = _in_range("scale", own["scale"], math.inf), _in_range("dropout", own["dropout"], 1)
        where = {"device": device, "dtype": dtype}
        others = {key: value for key, value in self.options.items() if key not in OWN_OPTIONS}
        activations = [_make_activation(gate, others) for _ in self.num_experts]
        bias = bool(getattr(activations[0], "router_bias", False))
        self.routers = nn.ModuleList(_make_routers(router, in_features, self.num_experts, bias, where))
        self.norms = nn.ModuleList(_make_norm(norm, size, device, dtype) for size in self.num_experts)
        self.activations = nn.ModuleList(activations)
        if device is not None:
            self.activations.to(device)
        self.register_load_state_dict_pre_hook(_rename_old_weights)  # type: ignore[no-untyped-call]
        if router is None and init == "zeros":
            self._zero_routers()

    @property
    def weights(self) -> list[Tensor]:
        """The weight (num_experts[e], in_features) of every level's router, where these are linear."""
        return [router.weight for router in self.routers]  # type: ignore[misc]

    def reset_parameters(self) -> None:
        """Draw new routers, reset learned activations and the running statistics."""
        for module in (*self.routers, *self.norms, *self.activations):
            _reset(module)
        if self.init == "zeros":
            self._zero_routers()

    @torch.no_grad()
    def _zero_routers(self) -> None:
        for router in self.routers:
            if isinstance(router, Router):
                router.weight.zero_()

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalized logits of every level, before the activation."""
        return tuple([self._logits(level, x) for level in range(len(self.num_experts))])

    def _logits(self, level: int, x: Tensor) -> Tensor:
        y = self._normalized(level, x)
        return y if self.scale == 1 else y * self.scale

    def _normalized(self, level: int, x: Tensor) -> Tensor:
        router, norm, wide = self.routers[level], self.norms[level], _wide(x)
        with full_precision(x):
            if type(norm) is BatchNorm and norm.training and len(x) > 1 and is_plain(router):
                centre = x.detach().to(wide).mean(0)  # a large mean would cost precision
                shift = F.linear(centre, router.weight.detach().to(wide))  # type: ignore[operator]
                return norm(router(x.to(wide) - centre), shift)
            own = x if isinstance(router, Router) else x.to(_dtype_of(router, wide))
            y: Tensor = norm(router(own).to(wide))
            return y

    def forward(self, x: Tensor) -> tuple[Coefficients, ...]:
        levels: list[Coefficients] = []
        dropping = self.training and self.dropout > 0
        for level, norm in enumerate(self.norms):
            rows = F.dropout(x, self.dropout) if dropping else x
            with _forgetting(norm) if dropping else contextlib.nullcontext():
                found = self._sparse_level(level, rows) if takes_sparse(self, level, rows) else None
                levels.append(self._dense_level(level, rows) if found is None else found)
            if dropping and isinstance(norm, BatchNorm):
                with torch.no_grad():  # evaluation has no dropout, so its statistics are those without
                    self._normalized(level, x)
        return tuple(levels)

    def _dense_level(self, level: int, x: Tensor) -> Coefficients:
        with full_precision(x):
            return DenseCoefficients(self.activations[level](self._logits(level, x)))

    def _sparse_level(self, level: int, x: Tensor) -> Coefficients | None:
        """The coefficients by their support; None where they are dense or not finite."""
        router: Any = self.routers[level]
        norm: Any = self.norms[level]
        activation: Any = self.activations[level]
        kind, k, mean, rstd, eps = SPARSE_KINDS[type(activation)], getattr(activation, "k", 0), None, None, None
        x = x if x.dtype == torch.float64 else x.float()
        if type(norm) is BatchNorm and norm.training:
            eps = norm.eps
        elif not isinstance(norm, nn.Identity):
            mean, rstd = norm.running_mean.to(x.dtype), torch.rsqrt(norm.running_var.to(x.dtype) + norm.eps)
        if self.scale != 1:
            ones = x.new_ones(self.num_experts[level])
            mean, rstd = (0 * ones if mean is None else mean), self.scale * (ones if rstd is None else rstd)
        weight, bias = router.weight.to(x.dtype), None if router.bias is None else router.bias.to(x.dtype)
        share = 1.0 if self.route == "sparse" else DENSE_SHARE
        found = sparse_gate.sparse_coefficients(x, weight, bias, Plan(kind, k, mean, rstd, eps), share)
        if found is None:
            return None
        coefficients, support = found
        if support.mean is not None:
            shift = F.linear(x.detach().mean(0), weight.detach(), None if bias is None else bias.detach())
            norm.remember(support.mean + shift, support.var, len(x))
        return coefficients

    def extra_repr(self) -> str:
        return f"in={self.in_features}, experts={self.num_experts}, gate={self.name!r}, norm={self.norm!r}"


def make_gate(
    in_features: int,
    num_experts: Sequence[int],
    gate: str | nn.Module,
    norm: str,
    *,
    options: Mapping[str, Any] | None,
    init: str,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Gate:
    """The gate of a layer: one made from these settings, or the whole `Gate` that was given instead of an activation.

    Raises:
        UserError: As `Gate`, or if a given gate has other experts, or options beside it.
    """
    if not isinstance(gate, Gate):
        return Gate(in_features, num_experts, gate, norm, options=options, init=init, device=device, dtype=dtype)
    if gate.num_experts != tuple(num_experts) or options:
        raise UserError(
            f"MuMoE: expected a Gate of experts {tuple(num_experts)} and no gate_options beside it, got one of "
            f"{gate.num_experts} and options {dict(options or {})}. Make it with Gate(width, num_experts, ...)."
        )
    return gate.to(device=device, dtype=dtype) if device is not None or dtype is not None else gate


OWN_OPTIONS = {"scale": 1.0, "dropout": 0.0}
"""Options of the gate itself, beside those of its activation."""


def _in_range(name: str, value: Any, end: float) -> float:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < end
    if not ok or (name == "scale" and value == 0):
        wanted = "above 0" if name == "scale" else "from 0 to below 1"
        raise UserError(
            f"MuMoE: expected gate_options[{name!r}] {wanted}, got {value!r}. Leave it out for the default."
        )
    return float(value)


@contextlib.contextmanager
def _forgetting(norm: nn.Module) -> Iterator[None]:
    """Within the context, a batch norm leaves its running statistics as they are."""
    if not isinstance(norm, BatchNorm):
        yield
        return
    momentum, norm.momentum = norm.momentum, 0.0
    try:
        yield
    finally:
        norm.momentum = momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.sub_(1)


def _dtype_of(router: nn.Module, default: torch.dtype) -> torch.dtype:
    return next((p.dtype for p in router.parameters() if p.is_floating_point()), default)


def _rename_old_weights(gate: Gate, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Checkpoints from before the routers have ``weights.N`` for ``routers.N.weight``."""
    for level in range(len(gate.num_experts)):
        if (old := f"{prefix}weights.{level}") in state:
            state[f"{prefix}routers.{level}.weight"] = state.pop(old)


# Dense or sparse ------------------------------------------------------------------------------------------

SPARSE_KINDS: dict[type[nn.Module], str] = {
    Entmax15: "entmax15",
    Sparsemax: "sparsemax",
    TopK: "topk",
    ReLUTopK: "relu_topk",
}
"""Activations whose support `mumoe.sparse_gate` finds."""

DENSE_SHARE = 0.1
"""Share of the experts in the support of a row from which the dense gate computes. Measured for 256 rows, 2,048
experts, 768 -> 1000, rank 512, one thread, dense / sparse time in inference and in a training step: compiled 1.02 and
1.44 at a share of 0.07, 0.70 and 0.85 at 0.30; PyTorch 0.78 and 1.15, 0.25 and 0.39."""


class Limit(NamedTuple):
    """Sizes from which the sparse gate is faster: at least both numbers, or at least `many` experts."""

    experts: int
    logits: int
    many: int = 8192


LIMITS = {
    ("compiled", "inference"): Limit(experts=256, logits=0),
    ("compiled", "training"): Limit(experts=512, logits=2**15),
    ("cpu", "inference"): Limit(experts=512, logits=2**17),
    ("cpu", "training"): Limit(experts=512, logits=2**17),
    ("other", "inference"): Limit(experts=512, logits=2**24, many=2**24),
    ("other", "training"): Limit(experts=512, logits=2**24, many=2**24),
}
"""By implementation (compiled kernels; PyTorch on the CPU; PyTorch on other devices), without and with gradients.

Measured as `DENSE_SHARE`, dense / sparse time of the layer:

    experts x rows         256 x 1  256 x 256  512 x 1  512 x 64  1,024 x 32  1,024 x 256  8,192 x 2  8,192 x 64
    compiled, inference       1.18       1.02     1.46      1.15        1.27         1.18       1.53        1.53
    compiled, training                   1.01               1.04        1.03         1.28       1.17        1.77
    PyTorch, inference        0.54       0.90     0.69      0.91        0.96         1.09       1.32        1.43
    PyTorch, training                    0.94               0.91        0.89         1.17       1.00        1.69

On other devices the speed has not been measured: the sparse gate is chosen for its memory, from 64 MB for each matrix
of logits in float32 on."""


def takes_sparse(gate: Gate, level: int, x: Tensor) -> bool:
    """Whether a level of the gate is computed by its support: because it is faster, or because the route asks for it.

    Only where the values are the same as those of the dense gate and the difference cannot be observed: not under
    tracing, transforms and dispatch modes, not for tensor subclasses, and not where the router, norm or activation has
    hooks, is patched, or is of a class that the sparse gate does not support.
    """
    experts, rows = gate.num_experts[level], x.shape[0]
    if gate.route == "dense" or rows == 0 or functional.is_traced(x):
        return False
    if gate.route == "auto":
        passes = "training" if torch.is_grad_enabled() else "inference"
        limit = LIMITS["cpu" if x.device.type == "cpu" else "other", passes]
        compiled = LIMITS["compiled", passes]
        if experts >= compiled.experts and kernels.of(x):  # which imports them only where they might compute
            limit = compiled
        if experts < limit.many and (experts < limit.experts or experts * rows < limit.logits):
            return False
    router, norm, activation = gate.routers[level], gate.norms[level], gate.activations[level]
    if type(x) not in (Tensor, nn.Parameter) or torch.autograd.forward_ad._current_level >= 0:
        return False
    if type(activation) not in SPARSE_KINDS or not getattr(activation, "normalize", True):
        return False
    if type(norm) is BatchNorm and (norm.running_mean is None or (norm.training and rows < 2)):
        return False
    if type(norm) not in (BatchNorm, nn.Identity) or type(router) is not Router:
        return False
    return type(router.weight) is nn.Parameter and is_plain(router, norm, activation)


_KNOWN: tuple[Any, ...] = (Router, BatchNorm, nn.Identity, *SPARSE_KINDS)
_FORWARDS = {kind: kind.forward for kind in _KNOWN}
_SHARED = (nn.Module.__call__, nn.Module._call_impl, nn.BatchNorm1d.forward)


def is_plain(*modules: nn.Module) -> bool:
    """Whether calling the modules runs the code of their classes and nothing else: no hooks and no patches."""
    if (nn.Module.__call__, nn.Module._call_impl, nn.BatchNorm1d.forward) != _SHARED:
        return False
    if nn_module._has_any_global_hook():
        return False
    for module in modules:
        kind: Any = type(module)
        own = vars(module)
        if kind not in _FORWARDS or kind.forward is not _FORWARDS[kind] or kind.__call__ is not _SHARED[0]:
            return False
        if "forward" in own or own.get("_compiled_call_impl") is not None:
            return False
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return False
    return True
