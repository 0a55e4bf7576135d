"""Every test starts from the same random state, where torch is installed (`make pythons` runs some tests without)."""

import importlib.util

import pytest

if importlib.util.find_spec("torch"):
    import torch

    @pytest.fixture(autouse=True)
    def _seed() -> None:
        torch.manual_seed(0)
