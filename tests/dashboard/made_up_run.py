"""Drawn pictures with two 0/1 attributes and a group that training sees unevenly, and runs trained on them.

A class, a group's value and a file's name hold HTML, which pages must show as it is.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from mumoe.training import TrainConfig, train

CLASSES = ("round", "<b>striped</b>")
STUDIOS = ("plain", "<i>inked</i>")
EVIL = '<img src=x onerror="document.title=1">'


def draw(round_: bool, striped: bool, inked: bool, seed: int) -> Image.Image:
    """One picture of 32 x 32 pixels."""
    rng = np.random.default_rng(seed)
    ground = (20, 24, 40) if inked else (236, 240, 228)
    colour = tuple(int(c) for c in rng.integers(70, 200, 3))
    picture = Image.new("RGB", (32, 32), ground)
    pen = ImageDraw.Draw(picture)
    left, top = rng.integers(2, 8, 2).tolist()
    box = (left, top, left + 20, top + 20)
    (pen.ellipse if round_ else pen.rectangle)(box, fill=colour)
    if striped:
        for x in range(0, 32, 6):
            pen.line((x, 0, x, 31), fill=(250, 250, 90), width=2)
    return picture


def make_pictures(folder: Path, count: int = 360) -> Path:
    """Pictures and a table of them; of striped ones hardly any is inked in training."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for n in range(count):
        split = ("train", "val", "test")[(n % 6 > 2) + (n % 6 > 4)]
        shape, striped = rng.integers(0, 2, 2).tolist()
        inked = int(rng.random() < (0.1 if split == "train" and striped else 0.5))
        name = f"pictures/{EVIL if n == 3 else n}.png"
        draw(bool(shape), bool(striped), bool(inked), n).save(folder / name)
        rows.append([name, shape, striped, STUDIOS[inked], split])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", *CLASSES, "studio", "split"], *rows])
    return folder / "table.csv"


def make_run(folder: Path, head: str = "CPMuMoE-r8-e12", **settings: object) -> Path:
    """A run on the pictures with a small frozen backbone of random weights."""
    table = make_pictures(folder)
    torch.manual_seed(3)
    weights = folder / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), weights)
    config = TrainConfig(
        data=f"csv:{table}",
        data_options=(f"target_columns={','.join(CLASSES)}", "group_columns=studio"),
        backbone="test_efficientnet",
        weights=str(weights),
        image_size=32,
        head=head,
        epochs=12,
        batch_size=30,
        lr=0.02,
        cache_dir=str(folder / "cache"),
        out=str(folder / "run"),
        **settings,
    )
    train(config, progress=False)
    return folder / "run"
