"""Layers that a MuMoE layer is compared with, in the same constructor style."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor, nn

from mumoe.ablation import Ablation, ablated, ablations
from mumoe.calling import checked_methods
from mumoe.errors import UserError, check_size
from mumoe.specs import check_rows

__all__ = ["HighRankLinear", "SparseMoE"]


@checked_methods
class HighRankLinear(nn.Module):
    """The paper's parameter-matched linear baseline: y = W2 W1 x + b with `rank` rows in between.

    Shape:
        (..., in_features) -> (..., out_features); rank * (in + out) + out parameters.

    Source: Oldfield et al. 2024, section 4.3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_size(in_features, "in_features", "HighRankLinear")
        self.out_features = check_size(out_features, "out_features", "HighRankLinear")
        self.rank = check_size(rank, "rank", "HighRankLinear")
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw new values of both matrices, as `nn.Linear` does."""
        self.down.reset_parameters()
        self.up.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        check_rows(x, self.in_features, self.down.weight.dtype, "HighRankLinear")
        return self.up(self.down(x))


@checked_methods
class SparseMoE(nn.Module):
    """Sparsely-gated mixture of linear experts: the k best by a noisy gate are computed and mixed.

    H(x) = G x + noise * softplus(G_noise x) in training, G x in evaluation; coefficients are the softmax over
    the k largest of H(x). The load-balancing loss is returned on request and never added automatically.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: Number of experts.
        k: Number of experts computed for a row.
        bias: One bias per expert.
        noisy: Whether the gate is noisy in training.

    Shape:
        (..., in_features) -> (..., out_features).

    Raises:
        UserError: If k is not in 1..num_experts or the input has another width.

    Source: Shazeer et al. 2017, eq. 3 to 5 and appendix A.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int,
        k: int = 2,
        *,
        bias: bool = True,
        noisy: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size(in_features, "in_features", "SparseMoE")
        check_size(out_features, "out_features", "SparseMoE")
        check_size(num_experts, "num_experts", "SparseMoE")
        if not 1 <= k <= num_experts:
            raise UserError(f"SparseMoE: expected 1 <= k <= num_experts == {num_experts}, got {k}. Lower k.")
        self.in_features, self.out_features = in_features, out_features
        self.num_experts, self.k, self.noisy = (num_experts,), k, noisy

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.weight = empty(num_experts, out_features, in_features)
        self.bias = empty(num_experts, out_features) if bias else None
        self.gate_weight = empty(num_experts, in_features)
        self.noise_weight = empty(num_experts, in_features) if noisy else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Experts as `nn.Linear`; both gate matrices start at zero, as in the source."""
        bound = 1 / math.sqrt(self.in_features)
        self.weight.uniform_(-bound, bound)
        self.gate_weight.zero_()
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)
        if self.noise_weight is not None:
            self.noise_weight.zero_()

    @overload
    def forward(self, x: Tensor, return_loss: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, return_loss: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def forward(self, x: Tensor, return_loss: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """y, or (y, load-balancing loss): squared variation of importance plus that of the expected load."""
        rows = self._rows(x)
        clean, noisy, spread = self._scores(rows)
        values, index = noisy.topk(min(self.k + 1, noisy.shape[-1]), dim=-1)
        chosen = torch.softmax(values[:, : self.k], dim=-1)
        y = self._mix(rows, index[:, : self.k], chosen.to(rows.dtype)).reshape(*x.shape[:-1], self.out_features)
        if not return_loss:
            return y
        importance = torch.zeros_like(clean).scatter(-1, index[:, : self.k], chosen).sum(0)
        load = importance if spread is None else self._expected_load(clean, noisy, spread, values)
        return y, _squared_variation(importance) + _squared_variation(load)

    def _rows(self, x: Tensor) -> Tensor:
        return check_rows(x, self.in_features, self.weight.dtype, "SparseMoE")

    def _scores(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Clean and noisy scores (rows, num_experts) in float32 or better, and the noise's spread if there is any."""
        clean = _product(rows, self.gate_weight)
        if not (self.training and self.noise_weight is not None) or clean.shape[-1] == self.k:
            return clean, clean, None
        spread = nn.functional.softplus(_product(rows, self.noise_weight)) + 1e-2
        return clean, clean + torch.randn_like(clean) * spread, spread

    def _mix(self, rows: Tensor, index: Tensor, chosen: Tensor) -> Tensor:
        """Each expert computes the rows that chose it; ablated experts compute nothing."""
        y = rows.new_zeros(rows.shape[0], self.out_features)
        slots = index.reshape(-1)
        order = slots.argsort(stable=True)
        without = {expert for ablation in ablations(self) for expert in ablation.experts}
        counts = torch.bincount(slots, minlength=self.num_experts[0]).tolist()
        weights = self.weight.unbind()  # indexing would make a gradient of all experts for each of them
        biases = [None] * len(weights) if self.bias is None else self.bias.unbind()
        for expert, places in enumerate(order.split(counts)):
            if len(places) and expert not in without:
                row = places // index.shape[1]
                out = nn.functional.linear(rows[row], weights[expert], biases[expert])
                y = y.index_add(0, row, (out * chosen.reshape(-1)[places, None]).to(y.dtype))
        kind = rows.device.type
        return y.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else y

    def _expected_load(self, clean: Tensor, noisy: Tensor, spread: Tensor, values: Tensor) -> Tensor:
        """Expected number of rows per expert under new noise, differentiable (source: appendix A)."""
        kept, next_best = values[:, self.k - 1, None], values[:, self.k, None]
        threshold = torch.where(noisy >= kept, next_best, kept)
        return torch.special.ndtr((clean - threshold) / spread).sum(0)

    def coefficients(self, x: Tensor) -> tuple[Tensor]:
        """The gate's coefficients without noise, as one level: ((..., num_experts),)."""
        clean = _product(self._rows(x), self.gate_weight)
        values, index = clean.topk(self.k, dim=-1)
        a = torch.zeros_like(clean).scatter(-1, index, torch.softmax(values, dim=-1))
        return (a.reshape(*x.shape[:-1], -1),)

    def expert_weight(self, index: int) -> Tensor:
        """Weight (out, in) of one expert."""
        return self.weight[index]

    def expert_bias(self, index: int) -> Tensor | None:
        """Bias (out,) of one expert, or None."""
        return None if self.bias is None else self.bias[index]

    @contextlib.contextmanager
    def ablate(self, experts: Any) -> Iterator[Self]:
        """Within the context the weight and bias of these experts are zero, as in `MuMoE.ablate`."""
        with ablated(self, Ablation.parse(experts, None, self.num_experts, "SparseMoE")):
            yield self

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, experts={self.num_experts[0]}, k={self.k}"


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows @ weight' in float32 or better, also under autocast."""
    wide = torch.float64 if torch.float64 in (rows.dtype, weight.dtype) else torch.float32
    with torch.autocast(rows.device.type, enabled=False):
        return rows.to(wide) @ weight.to(wide).mT


def _squared_variation(amount: Tensor) -> Tensor:
    """Squared coefficient of variation: 0 when all experts get the same."""
    return amount.var(unbiased=False) / (amount.mean().square() + 1e-10)
