"""Every test starts from the same random state."""

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures become files without a picture: what they show is in the JSON beside them."""
    from matplotlib.figure import Figure

    def saved(self: Figure, target: Any, **options: Any) -> None:
        target.write(b"picture") if hasattr(target, "write") else Path(target).write_bytes(b"picture")

    monkeypatch.setattr(Figure, "savefig", saved)
