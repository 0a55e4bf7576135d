"""Stacks of edits on one layer: list, name, scale, preview, apply, undo, fold.

Nothing is written into the factors: applying puts a wrapper around them and undoing removes it, so undoing is exact.
Folding makes a new layer that has the edits in its own factors.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mumoe.calling import checked_values, tensor_methods
from mumoe.editing.expert_edits import ExpertEdit, with_strength
from mumoe.editing.fold import fold_layer
from mumoe.editing.operations import EditedFactorization, Operation, original
from mumoe.errors import UserError, unknown_name
from mumoe.layers import MuMoE

__all__ = ["EditStack", "find_layer", "fingerprint"]


@tensor_methods
@dataclass
class EditStack:
    """Edits of one layer, by name, in order; nothing happens to the layer until `apply`.

    >>> from mumoe.editing.expert_edits import Ablate
    >>> layer = MuMoE(4, 2, num_experts=3, factorization="cp", rank=2).eval()
    >>> stack = EditStack(layer)
    >>> stack.add(Ablate(1), "without 1")
    'without 1'
    >>> with stack:
    ...     edited = layer(torch.ones(1, 4))

    Attributes:
        layer: The layer.
        edits: Name to edit, in the order of making.
    """

    layer: MuMoE
    edits: dict[str, ExpertEdit] = field(default_factory=dict)
    _wrapper: EditedFactorization | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        checked_values(self)

    def add(self, edit: ExpertEdit, name: str | None = None) -> str:
        """Put an edit on top, under a name that is free (made from its kind by default); returns the name.

        Raises:
            UserError: If the name is taken, or the edit does not fit the layer. Nothing is changed then.
        """
        if name is None:
            numbers = (f"{edit.kind}-{i}" for i in range(1, len(self.edits) + 2))
            name = next(free for free in numbers if free not in self.edits)
        self.extend({name: edit})
        return name

    def extend(self, edits: Mapping[str, ExpertEdit]) -> None:
        """Put several edits on top, all of them or none.

        Raises:
            UserError: As `add`.
        """
        for name in edits:
            if name in self.edits:
                raise UserError(f"EditStack: expected a new name, got {name!r}, which is taken. Remove it first.")
        self._set({**self.edits, **edits})

    def remove(self, name: str) -> ExpertEdit:
        """Remove an edit, wherever it is in the stack."""
        edit = self[name]
        self._set({key: value for key, value in self.edits.items() if key != name})
        return edit

    def scale(self, name: str, strength: float) -> None:
        """Give an edit another strength."""
        self._set({**self.edits, name: with_strength(self[name], strength)})

    def __getitem__(self, name: str) -> ExpertEdit:
        if name not in self.edits:
            raise unknown_name("EditStack", "edit", name, self.edits)
        return self.edits[name]

    def __len__(self) -> int:
        return len(self.edits)

    def operations(self) -> list[Operation]:
        """What the edits that have a strength do to the weight tensor, in order."""
        base = self.layer.factorization if self._wrapper is None else self._wrapper.base
        return self._operations(base, self.edits)

    def describe(self) -> list[str]:
        """One line per edit, in order."""
        return [f"{name}: {edit.describe()}" for name, edit in self.edits.items()]

    @property
    def applied(self) -> bool:
        """Whether the layer computes with these edits now."""
        return self._wrapper is not None

    def apply(self) -> None:
        """Let the layer compute with the edits until `undo`. Applying twice changes nothing."""
        if self._wrapper is None:
            part: nn.Module = self.layer.factorization
            wrapper = EditedFactorization(part, self._operations(part, self.edits))
            self.layer.factorization = wrapper  # type: ignore[assignment]
            self._wrapper = wrapper.train(part.training)

    def undo(self) -> None:
        """Remove the edits: the layer has its own, untouched factors again. Undoing twice changes nothing.

        Raises:
            UserError: If another stack was applied on top and is still there.
        """
        if self._wrapper is None:
            return
        self._require_on_top()
        self.layer.factorization = self._wrapper.base  # type: ignore[assignment]
        self._wrapper = None

    def __enter__(self) -> EditStack:
        self.apply()
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    @torch.no_grad()
    def preview(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (..., out) without and with the edits, in evaluation mode; the layer stays as it is."""
        training = self.layer.training
        self.layer.eval()
        try:
            with self.being(applied=False):
                before = self.layer(x)
            with self.being(applied=True):
                return before, self.layer(x)
        finally:
            self.layer.train(training)

    def fold(self) -> MuMoE:
        """A new, ordinary layer that computes what the edited one computes; see `mumoe.editing.fold`."""
        with self.being(applied=True):
            return fold_layer(self.layer)

    @contextlib.contextmanager
    def being(self, applied: bool) -> Iterator[None]:
        """Applied, or not, within the context."""
        was = self.applied
        (self.apply if applied else self.undo)()
        try:
            yield
        finally:
            (self.apply if was else self.undo)()

    def _set(self, edits: dict[str, ExpertEdit]) -> None:
        """Replace the edits if the new ones all fit; an applied stack computes with them at once."""
        base = self.layer.factorization if self._wrapper is None else self._wrapper.base
        operations = self._operations(base, edits)
        if self._wrapper is not None:
            self._require_on_top()
            wrapper = EditedFactorization(base, operations).train(base.training)
            self.layer.factorization, self._wrapper = wrapper, wrapper  # type: ignore[assignment]
        self.edits = edits

    def _require_on_top(self) -> None:
        top: nn.Module = self.layer.factorization
        if top is not self._wrapper:
            raise UserError("EditStack: expected the edits applied last, got others on top. Undo those first.")

    @staticmethod
    def _operations(base: nn.Module, edits: Mapping[str, ExpertEdit]) -> list[Operation]:
        """Operations of the edits with a strength, each found on the result of those before it."""
        found: list[Operation] = []
        edited: EditedFactorization | None = None
        for edit in edits.values():
            operation = edit.operation(base if edited is None else edited)
            if edit.strength == 0:
                continue
            found.append(operation)
            if edited is None:
                edited = EditedFactorization(base, [operation])
            else:
                edited.append(operation)
        return found


def find_layer(model: nn.Module, name: str | None = None) -> MuMoE:
    """The MuMoE layer of a model; its name among the modules is needed where there are several.

    Raises:
        UserError: If there is none, several, or none of that name.
    """
    layers = {key: module for key, module in model.named_modules() if isinstance(module, MuMoE)}
    if not layers:
        raise UserError(
            f"find_layer: expected a model with a MuMoE layer, got a {type(model).__name__} without. "
            "Only mixtures of experts can be edited."
        )
    if name is None:
        if len(layers) > 1:
            raise UserError(f"find_layer: expected one MuMoE layer, got {', '.join(layers)}. Name one of them.")
        return next(iter(layers.values()))
    if name not in layers:
        raise unknown_name("find_layer", "layer", name, layers)
    return layers[name]


def fingerprint(layer: MuMoE) -> str:
    """Hex digest of a layer's gate and own factors (not of edits applied to it)."""
    digest = hashlib.sha256(repr((layer.in_features, layer.out_features, layer.num_experts)).encode())
    for prefix, module in (("gate", layer.gate), ("factorization", original(layer.factorization))):
        for name, value in sorted(module.state_dict().items()):
            value = value.detach().cpu().contiguous()
            digest.update(f"{prefix}.{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
