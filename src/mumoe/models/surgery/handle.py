"""Modules that were replaced, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from mumoe.errors import UserError
from mumoe.models.surgery.build import build

if TYPE_CHECKING:
    from mumoe.models.surgery.plan import Plan

__all__ = ["Surgery", "put_modules"]


class Surgery(AbstractContextManager["Surgery"]):
    """Modules that were replaced, and the way back. As a context manager it undoes at the end.

    Attributes:
        model: The model.
        plan: What was changed, with the table.
        replaced: Name -> the new module.
        originals: Name -> the old one, kept alive until this handle goes.
        active: Whether the new modules are in place.
    """

    def __init__(self, planned: Plan) -> None:
        self.model, self.plan = planned.model, planned
        built = [(target, build(target, planned.init, planned.sigma)) for target in planned.targets]
        self.replaced = {name: module for target, module in built for name in target.names}
        self.originals = {name: target.module for target in planned.targets for name in target.names}
        self._training = {id(target.module): target.module.training for target in planned.targets}
        self._attributes: list[tuple[Any, str, Any]] = []
        put_modules(self.model, self.replaced)
        self.active = True

    def undo(self) -> None:
        """Put the very same old modules back, to the bit. Doing it twice is doing it once.

        They did not take part in what happened in between, as a move to another device or dtype; only their
        training mode follows that of their replacements. Their hooks, which the replacements do not have, run again.

        Raises:
            UserError: If another surgery replaced something here since; undo that one first.
        """
        if not self.active:
            return
        for name, module in self.replaced.items():
            if _find(self.model, name) is not module:
                raise UserError(
                    f"undo: expected {name!r} to be as this surgery left it, got another module. "
                    "Undo the later surgery first."
                )
        for name, original in self.originals.items():
            if self.replaced[name].training != self._training[id(original)]:
                original.train(self.replaced[name].training)
        put_modules(self.model, self.originals)
        for owner, attribute, value in reversed(self._attributes):
            setattr(owner, attribute, value)
        self.active = False

    def table(self) -> str:
        """What was changed: parameters and FLOPs of every module before and after."""
        return self.plan.table()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The new modules' parameters, for training them alone."""
        modules = nn.ModuleList({id(module): module for module in self.replaced.values()}.values())
        return modules.parameters()

    @contextmanager
    def suspended(self) -> Iterator[nn.Module]:
        """Within the context the model is the old one; the new modules come back afterwards."""
        if not self.active:
            yield self.model
            return
        put_modules(self.model, self.originals)
        try:
            yield self.model
        finally:
            put_modules(self.model, self.replaced)

    def set_classes(self, num_classes: int) -> None:
        """Tell the model how many classes its new head has; `undo` takes it back."""
        config = getattr(self.model, "config", None)
        owners: list[tuple[Any, str]] = [(self.model, "num_classes"), (self.model, "num_labels")]
        if hasattr(config, "id2label"):
            owners += [(config, "id2label"), (config, "label2id")]
        known = [(owner, name) for owner, name in owners if hasattr(owner, name)]
        self._attributes += [(owner, name, getattr(owner, name)) for owner, name in known]
        for owner, name in known:
            if name in ("num_classes", "num_labels"):
                setattr(owner, name, num_classes)
        if hasattr(config, "id2label"):
            config.num_labels = num_classes  # type: ignore[union-attr]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __enter__(self) -> Self:
        return self


def put_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = module


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
