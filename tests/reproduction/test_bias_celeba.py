"""The paper's two CelebA experiments, from a folder in the official layout to the rows that are compared."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from reproduction.bias_report import Options, celeba_sets

NAMES = ("Blond_Hair", "Male", "Young")


@pytest.fixture
def root(tmp_path):
    """Twenty-four photographs: every combination of the three attributes, in all three official splits."""
    folder = tmp_path / "data" / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    rows, parts = [], []
    for i in range(24):
        name = f"{i + 1:06d}.jpg"
        Image.new("RGB", (32, 32), (10 * i, 90, 120)).save(folder / "img_align_celeba" / name)
        rows.append(f"{name}  {' '.join('1' if i >> bit & 1 else '-1' for bit in range(3))}")
        parts.append(f"{name} {i // 8}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(["24", " ".join(NAMES), *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("experiment", "head", "target"),
    [("old-females-age", "Young", (0, "Male=0")), ("blond-males-hair", "Blond_Hair", (1, "Male=1"))],
)
def test_experiments_read_the_official_layout(root, tmp_path, experiment, head, target):
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    options = Options(
        experiment=experiment,
        root=str(root),
        backbone="test_vit",
        weights=str(weights),
        cache_dir=str(tmp_path / "cache"),
    )
    bias = celeba_sets(options)(0)
    assert bias.heads[bias.head] == head
    assert bias.target == target
    assert bias.features.shape == (24, 64)
    assert [len(rows) for rows in (bias.splits.train, bias.splits.val, bias.splits.test)] == [8, 8, 8]
    np.testing.assert_array_equal(bias.labels[:, 0], np.arange(24) & 1)
    np.testing.assert_array_equal(bias.sensitive == "Male=1", np.arange(24) >> 1 & 1)
