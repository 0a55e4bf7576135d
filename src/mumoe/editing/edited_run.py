"""A trained run with edits folded into its head: opened, evaluated, analyzed and exported like any other."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from mumoe.editing.edit_files import Edits, stack_on
from mumoe.editing.runs import edited_head
from mumoe.errors import UserError
from mumoe.layers import MuMoE
from mumoe.training.networks import Network
from mumoe.training.opening import StoredRun

__all__ = ["EditedRun"]


class EditedRun(StoredRun):
    """A run whose head has edits in its factors; nothing is written into the folder of the original.

    Args:
        original: The run.
        edits: A file of edits, a stack, or an object that holds one.

    Attributes:
        original: The run.
        stack: The edits, on the layer of the original.

    Raises:
        UserError: If the head has no experts that make the logits, or the edits belong to another model.
    """

    def __init__(self, original: StoredRun, edits: Edits) -> None:
        layer = original.head.layer
        if not isinstance(layer, MuMoE):
            raise UserError(
                f"Run.with_edits: expected a head with experts, got {original.config.head!r} in {original.path}. "
                "Use the run that the edits were made on."
            )
        vars(self).update({name: value for name, value in vars(original).items() if name != "_restored"})
        self.original, self.stack = original, stack_on(layer, edits)
        self._name = Path(edits).stem if isinstance(edits, str | Path) else "-".join(self.stack.edits) or "none"
        self._head = edited_head(original.head, self.stack)
        self.config = original.config.replace(head=self._head.layer.spec)
        kept = {name: value for name, value in original.facts.items() if name not in ("result", "parameters")}
        self.facts: dict[str, Any] = {**kept, "edits": self.stack.describe()}

    @property
    def path(self) -> Path:
        """Where results of the edited run go: RUN/edited/NAME, by the name of the file or those of the edits."""
        return self.folder.path / "edited" / self._name

    @functools.cached_property
    def _restored(self) -> tuple[Network, int]:
        network, step = self.original._restored
        assert isinstance(network, Network)
        return Network(self._head, network.backbone).eval().to(self.device), step
