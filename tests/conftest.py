"""Every test starts from the same random state, where torch is installed (`make pythons` runs some tests without)."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("torch"):
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
