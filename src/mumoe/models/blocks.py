"""MuMoE blocks that stand where a network had an MLP: its dropout and layout kept, and the gated form of Llama."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mumoe.coefficients import Coefficients
from mumoe.errors import UserError
from mumoe.factorizations import Rank, get_factorization
from mumoe.layers import Asked, MuMoEBlock

__all__ = ["MLPBlock", "MuMoEGatedBlock"]


class MLPBlock(MuMoEBlock):
    """A `MuMoEBlock` with what networks put behind an MLP.

    Args:
        sizes: Positional arguments of `MuMoEBlock`.
        drop: Applied to the output, dropout say.
        channels_first: Take and return (B, features, height, width), as the 1 x 1 convolutions of some ConvNeXts.
        options: Options of `MuMoEBlock`.

    Shape:
        (..., in_features) -> (..., out_features), or (B, in_features, H, W) -> (B, out_features, H, W).
    """

    def __init__(
        self, *sizes: Any, drop: nn.Module | None = None, channels_first: bool = False, **options: Any
    ) -> None:
        super().__init__(*sizes, **options)
        self.drop = nn.Identity() if drop is None else drop
        self.channels_first = channels_first

    def forward(self, x: Tensor, return_coefficients: Asked = False, *, gate_input: Tensor | None = None) -> Any:
        """y, or (y, coefficients), these with the experts last. An ablated expert is zero in every layer."""
        if self.channels_first:
            x, gate_input = x.movedim(1, -1), None if gate_input is None else gate_input.movedim(1, -1)
        rows = self._rows(x)
        a = self.gate(rows if gate_input is None else self._gate_rows(x, gate_input))
        y = self.drop(self._mix(rows, a).reshape(*x.shape[:-1], self.out_features))
        answer = self._answer(y, x, a, return_coefficients)
        if not self.channels_first:
            return answer
        return answer.movedim(-1, 1) if return_coefficients is False else (answer[0].movedim(-1, 1), answer[1])

    def _mix(self, rows: Tensor, a: Sequence[Coefficients]) -> Tensor:
        return self._contract(self.fc2, self.act(self._contract(self.fc1, rows, a)), a)


class MuMoEGatedBlock(MLPBlock):
    """A gated MLP, as in Llama, whose three layers are mixtures of experts under one gate.

    a = gate(x);  h = act(Wg x a) * (W1 x a);  y = W2 h a

    Two gates meet here: `gate` chooses experts; `fc_gate` (Wg) is the gated MLP's own factor of the hidden features.

    Args:
        in_features: Width of the input.
        hidden_features: Width between the layers.
        out_features: Width of the output.
        num_experts: As in `MuMoE`.
        factorization: As in `MuMoE`, for all three layers.
        rank: As in `MuMoE`; a list of three gives each layer its own, in the order Wg, W1, W2.
        act_layer: Makes the nonlinearity on Wg's side.
        inner: Applied to the product h, dropout say.
        options: Options of `MLPBlock`.

    Shape:
        (..., in_features) -> (..., out_features).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        num_experts: int | Sequence[int],
        factorization: str = "cp",
        rank: Rank | list[Rank] | None = None,
        *,
        bias: bool = False,
        act_layer: Callable[[], nn.Module] = nn.SiLU,
        inner: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        ranks: list[Any] = rank if isinstance(rank, list) else [rank] * 3
        if len(ranks) != 3:
            raise UserError(f"MuMoEGatedBlock: expected rank as one, or a list of three, got {rank!r}. Give three.")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = (in_features, hidden_features, out_features, num_experts, factorization, ranks[1:])
        super().__init__(*sizes, bias=bias, act_layer=act_layer, **where, **options)
        kind = get_factorization(factorization, "MuMoEGatedBlock")
        self.fc_gate = kind(in_features, hidden_features, self.num_experts, ranks[0], bias=bias, **where)
        self.fc_gate.reset_parameters(self.init, self.sigma)
        self.inner = nn.Identity() if inner is None else inner

    def reset_parameters(self) -> None:
        """Draw gate and factors anew."""
        super().reset_parameters()
        self.fc_gate.reset_parameters(self.init, self.sigma)

    def _mix(self, rows: Tensor, a: Sequence[Coefficients]) -> Tensor:
        factor = self.act(self._contract(self.fc_gate, rows, a))
        hidden = self.inner(factor * self._contract(self.fc1, rows, a))
        return self._contract(self.fc2, hidden, a)
