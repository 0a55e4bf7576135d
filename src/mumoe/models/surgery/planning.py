"""A surgery: what it would change (`Plan`), the new modules, and how to undo it (`Surgery`)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mumoe.errors import UserError, reason_of
from mumoe.layers import MuMoE, MuMoEBlock, MuMoEGatedBlock
from mumoe.models.surgery.architectures import Watched
from mumoe.models.surgery.parts import Parts, as_linear, drop_hooks, quiet
from mumoe.models.surgery.targets import LayerOptions, Target

__all__ = ["INITS", "Plan", "Surgery", "call", "measure", "output_of"]


@dataclass(frozen=True)
class Plan:
    """What `replace_modules` would do; nothing is changed until `apply`.

    Attributes:
        model: The model.
        targets: The modules, in the model's order.
        init: ``random`` or ``upcycle``.
        sigma: Noise between upcycled experts.
        total: Parameters of the whole model, before.
        flops: Multiply-adds of the whole model on the example, before; None without one.
    """

    model: nn.Module
    targets: tuple[Target, ...]
    init: str = "random"
    sigma: float = 0.0
    total: int = 0
    flops: int | None = None

    def apply(self) -> Surgery:
        """Replace the modules. All new modules are built before the first one is put in place."""
        return Surgery(self)

    @property
    def parameters(self) -> tuple[int, int]:
        """Parameters of the whole model, before and after."""
        return self.total, self.total + sum(
            target.parameters_after - target.parameters_before for target in self.targets
        )

    def rows(self) -> list[dict[str, str]]:
        """The table as text: one row for each target, one for their sum, one for the whole model."""
        rows = [_row(target) for target in self.targets]
        before, after = self.parameters
        kinds = ("parameters_before", "parameters_after", "flops_before", "flops_after")
        sums = [sum(getattr(target, kind) for target in self.targets) for kind in kinds]
        whole = [before, after]
        if self.flops is not None:
            whole += [self.flops, self.flops + sums[3] - sums[2]]
        rows.append(_sum_row(f"these {len(self.targets)}", sums))
        rows.append(_sum_row("whole model", whole))
        return rows

    def table(self) -> str:
        """The table, aligned, with a line on how it counts."""
        lines = [dict(zip(COLUMNS, COLUMNS, strict=True)), *self.rows()]
        widths = {column: max(len(line[column]) for line in lines) for column in COLUMNS}
        text = [
            "  ".join(
                line[column].rjust(widths[column]) if column in NUMBERS else line[column].ljust(widths[column])
                for column in COLUMNS
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*text, self.legend])

    def show(self) -> None:
        """Draw the table on the terminal."""
        from rich.console import Console
        from rich.table import Table

        table = Table(caption=self.legend, caption_justify="left")
        for column in COLUMNS:
            table.add_column(column, justify="right" if column in NUMBERS else "left")
        rows = self.rows()
        for index, row in enumerate(rows):
            table.add_row(*row.values(), end_section=index == len(rows) - 3)
        Console().print(table)

    @property
    def legend(self) -> str:
        """How the table counts."""
        unit = "one row (token, patch or pixel)" if self.flops is None else "one forward of the example"
        return f"FLOPs: multiply-adds of {unit}; the gate is counted in parameters and FLOPs."


COLUMNS = ("module", "kind", "becomes", "parameters", "after", "FLOPs", "FLOPs after", "note")
NUMBERS = ("parameters", "after", "FLOPs", "FLOPs after")


def _row(target: Target) -> dict[str, str]:
    counts = (target.parameters_before, target.parameters_after, target.flops_before, target.flops_after)
    texts = (target.name, str(target.parts), target.layer, *(f"{count:,}" for count in counts))
    return dict(zip(COLUMNS, (*texts, "; ".join(target.notes)), strict=True))


def _sum_row(name: str, counts: Sequence[int]) -> dict[str, str]:
    shown = [f"{count:,}" for count in counts] + [""] * (4 - len(counts))
    return dict(zip(COLUMNS, (name, "", "", *shown, ""), strict=True))


# The handle -----------------------------------------------------------------------------------------------


class Surgery(AbstractContextManager["Surgery"]):
    """A handle on replaced modules that can undo the replacement. As a context manager it does so on exit.

    Attributes:
        model: The model.
        plan: What was changed, with the table.
        replaced: Name -> the new module.
        originals: Name -> the old one, kept alive as long as this handle.
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
        """Put the original modules back. A second call changes nothing.

        Changes in between, such as a move to another device or dtype, did not affect them; only their
        training mode is set to that of their replacements. Their hooks, which the replacements do not have, run again.

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
        """Record the number of classes of the new head in the model; `undo` restores the old number."""
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


# The new modules ------------------------------------------------------------------------------------------

INITS = ("random", "upcycle")


def build(target: Target, init: str = "random", sigma: float = 0.0) -> nn.Module:
    """The replacement, on the target's device, in its dtype and training mode; the target is left as it is.

    Warns, with the module's name, if the rank is too small to copy its layers exactly.
    """
    module = _random(target.parts, target.options)
    if init == "upcycle":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _copy_layers(module, target, sigma)
        for warning in caught:
            warnings.warn(f"{target.name}: {warning.message}", warning.category, stacklevel=4)
    return module.train(target.module.training)


def _random(parts: Parts, options: LayerOptions) -> MuMoE | MuMoEBlock:
    sizes: Any = parts.widths
    if options.out_features is not None:
        sizes = (*sizes[:-1], options.out_features)
    ranks = list(options.ranks)
    shared: dict[str, Any] = {
        "num_experts": options.num_experts,
        "factorization": options.factorization,
        "rank": ranks[0] if parts.kind == "linear" else ranks,
        "bias": options.bias,
        "gate": copy.deepcopy(options.gate),
        "norm": options.norm,
        "gate_options": options.gate_options,
        "gate_init": options.gate_init,
        "device": parts.like.device,
        "dtype": parts.like.dtype,
    }
    if parts.kind == "linear":
        return MuMoE(*sizes, **shared)
    shared |= {"act_layer": lambda: _joined([parts.act]), "channels_first": parts.channels_first}
    shared["drop"] = (_joined(parts.inner), _joined([parts.drop]))
    in_features, hidden_features, out_features = sizes
    block = MuMoEBlock if parts.kind == "mlp" else MuMoEGatedBlock
    return block(in_features, hidden_features, out_features, **shared)


def _joined(modules: Sequence[nn.Module]) -> nn.Module:
    """Copies of the modules as one, without their hooks; the identity for none."""
    copies = [drop_hooks(copy.deepcopy(module)) for module in modules]
    return nn.Sequential(*copies) if len(copies) > 1 else (copies or [nn.Identity()])[0]


def _copy_layers(module: MuMoE | MuMoEBlock, target: Target, sigma: float) -> None:
    """Put a copy of each linear layer into every expert of its factorization."""
    options = target.options
    layers = zip(module.LAYERS, target.parts.linears, options.ranks, strict=True)
    for name, linear, rank in layers:
        copied = MuMoE.from_linear(
            as_linear(linear), options.num_experts, options.factorization, rank, sigma=sigma, bias=options.bias
        )
        setattr(module, name, copied.factorization)


# Rows and FLOPs of an example -----------------------------------------------------------------------------


def call(model: nn.Module, arguments: Any) -> Any:
    """The model on a tensor, a tuple of arguments, or a mapping of them by name."""
    if isinstance(arguments, Mapping):
        return model(**arguments)
    return model(*arguments) if isinstance(arguments, tuple | list) else model(arguments)


def output_of(result: Any) -> Tensor | None:
    """A network's output as one tensor: itself, its logits or its last hidden state; None for anything else."""
    found = [result, getattr(result, "logits", None), getattr(result, "last_hidden_state", None)]
    return next((value for value in found if isinstance(value, Tensor)), None)


def measure(plan: Plan, example: Any) -> Plan:
    """The plan with the rows of every target and the FLOPs of the model on an example; unchanged without one.

    Raises:
        UserError: If the model does not take the example, or reads more of a target than its replacement has.
    """
    if example is None:
        return plan
    watched = {target.name: Watched(target.module, target.parts.channels_first) for target in plan.targets}
    stands = {name: watched[target.name] for target in plan.targets for name in target.names}
    originals = {name: target.module for target in plan.targets for name in target.names}
    try:
        with quiet(plan.model), FlopCounterMode(display=False) as counter:
            put_modules(plan.model, stands)
            call(plan.model, example)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError) as error:
        for name, stand in watched.items():
            if stand.reads and isinstance(error, AttributeError):
                raise UserError(
                    f"plan: expected modules that are only called, got {name!r}, whose {stand.reads[-1]!r} the model "
                    "reads. Leave it out."
                ) from error
        raise UserError(
            f"plan: expected an example that {type(plan.model).__name__} takes, got: {reason_of(error, 160)}. "
            "Give one batch, a tuple of arguments, or a dict of them."
        ) from error
    finally:
        put_modules(plan.model, originals)
    targets = tuple(replace(target, rows=watched[target.name].rows) for target in plan.targets)
    return replace(plan, targets=targets, flops=counter.get_total_flops() // 2)
