"""What a surgery would change: the modules, the layers that take their place, parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mumoe.models.surgery.handle import Surgery
from mumoe.models.surgery.targets import Target

__all__ = ["Plan"]


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
        """Do it. All the new modules are built before the first one takes its place."""
        return Surgery(self)

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the whole model, before and after."""
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
