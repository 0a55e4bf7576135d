"""A replacement in its model: put in the MLP's place, with experts scaled, and removed bit-exactly.

Start and other special tokens keep the original MLP, as in training and evaluation: their activations are outliers that
no replacement is trained on. Which positions these are is a function of the tokens alone, so generation with a
cache of keys and values gives the same result as without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.decomposition.looking import Expert, changed, check_combination, scaled_by
from mumoe.decomposition.replacements import Replacement
from mumoe.models.language import LanguageModel, Mlp
from mumoe.models.surgery.planning import put_modules

__all__ = ["Placed", "ReplacedMlp"]


class ReplacedMlp(nn.Module):
    """The module in the model: the replacement, with the original beside it for special tokens.

    Attributes:
        replacement: The replacement.
        factors: (experts,) factor of each expert's coefficient, of all levels; None for all 1.
        removed: Combinations of one expert per level whose weight is 0.
    """

    def __init__(self, replacement: Replacement, original: nn.Module) -> None:
        super().__init__()
        self.replacement = replacement
        self.__dict__["original"] = original  # not a child: its parameters are not this module's
        self.factors: Tensor | None = None
        self.removed: tuple[tuple[int, ...], ...] = ()
        self._special: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.factors is None and not self.removed:
            y = self.replacement(rows)
        else:
            a = self.replacement.coefficients(rows)
            y = changed(self.replacement, rows, a, self.factors, self.removed)
        y = y.reshape(*x.shape[:-1], -1).to(x.dtype)
        special = self._special[-1] if self._special else None
        if special is None or special.shape != x.shape[:-1] or not bool(special.any()):
            return y
        kept: Tensor = self.__dict__["original"](x)
        return torch.where(special[..., None], kept, y)

    def enter(self, special: Tensor) -> None:
        """From here to `leave`, these positions (B, T) keep the original."""
        self._special.append(special)

    def leave(self) -> None:
        """End what `enter` began."""
        if self._special:
            self._special.pop()


class Placed:
    """A replacement in a model, which can be undone.

    Args:
        language: The model.
        mlp: The MLP that is replaced.
        replacement: What takes its place.
    """

    def __init__(self, language: LanguageModel, mlp: Mlp, replacement: Replacement) -> None:
        self.language, self.mlp = language, mlp
        self.module = ReplacedMlp(replacement, mlp.module).eval()
        self._special = torch.tensor(sorted(language.tokenizer.special))
        put_modules(language.model, {mlp.name: self.module})
        self._handles = [
            language.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            language.model.register_forward_hook(self._end, always_call=True),
        ]
        self.active = True

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        special = torch.zeros(0, dtype=torch.bool)
        if isinstance(tokens, Tensor):
            special = torch.isin(tokens, self._special.to(tokens.device))
        self.module.enter(special)

    def _end(self, *_: Any) -> None:
        self.module.leave()

    @contextlib.contextmanager
    def scaled(self, experts: Mapping[Expert, float]) -> Iterator[nn.Module]:
        """Within the context, the coefficients of these experts are multiplied; 0 ablates one.

        Raises:
            UserError: If there is no such expert.
        """
        before = self.module.factors
        factors = scaled_by(self.module.replacement, experts).to(self.language.device)
        self.module.factors = factors if before is None else before * factors
        try:
            yield self.language.model
        finally:
            self.module.factors = before

    @contextlib.contextmanager
    def without(self, combinations: Sequence[tuple[int, ...]]) -> Iterator[nn.Module]:
        """Within the context, the weights of combinations of one expert per level are 0.

        Raises:
            UserError: If there is no such combination, or the kind's experts do not add up.
        """
        before = self.module.removed
        added = [check_combination(self.module.replacement, one) for one in combinations]
        self.module.removed = tuple(dict.fromkeys((*before, *added)))
        try:
            yield self.language.model
        finally:
            self.module.removed = before

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Within the context the original MLP is in its place."""
        put_modules(self.language.model, {self.mlp.name: self.mlp.module})
        try:
            yield
        finally:
            put_modules(self.language.model, {self.mlp.name: self.module})

    def undo(self) -> None:
        """Put the original MLP back; a second call changes nothing."""
        if not self.active:
            return
        put_modules(self.language.model, {self.mlp.name: self.mlp.module})
        for handle in self._handles:
            handle.remove()
        self.active = False
