"""What a recipe costs on the hardware that it names, before anything is trained.

FLOPs of a backbone are counted by torch on the meta device, those of a head by `mumoe.costs`; a training step is three
forwards, an evaluation one. Hours = FLOPs / (peak of the device x assumed utilization x devices). Reading and
augmenting images is not included. With networks as small as these it may be the bottleneck, so the estimate also gives
the rate of images that each device has to receive.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from mumoe.costs import spec_costs
from reproduction.bias import RETRAINING
from reproduction.cells import Cell, all_cells
from reproduction.recipe import Recipe

__all__ = ["Estimate", "backbone_flops", "estimate", "head_flops"]


@dataclass(frozen=True)
class Estimate:
    """The cost of a recipe.

    Attributes:
        runs: Number of trainings.
        images: Images through the network forward and backward, over all runs.
        flops: FLOPs of everything (two per multiply-add).
        hours: On the recipe's devices together.
        images_per_second: That every device has to receive.
        device: In words.
    """

    runs: int
    images: int
    flops: float
    hours: float
    images_per_second: float
    device: str

    def text(self) -> str:
        """In one line, with how it is made."""
        return (
            f"{self.runs:,} runs, {self.images:,} images, {self.flops:.2e} FLOPs: about {self.hours:,.1f} h on "
            f"{self.device} at {self.images_per_second:,.0f} images/s each (FLOPs / assumed throughput; a step counts "
            "as three forwards; loading images is not in it)"
        )


@functools.cache
def backbone_flops(name: str, image_size: int = 0) -> int:
    """FLOPs of one image's forward through a backbone, two per multiply-add, counted on the meta device."""
    from mumoe.models import create_backbone

    with torch.device("meta"):
        network = create_backbone(name, pretrained=False, image_size=image_size or None)
    side = network.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops())


def head_flops(spec: str, in_features: int, classes: int) -> int:
    """FLOPs of one row's forward through a head, gate included, two per multiply-add."""
    return 2 * spec_costs(spec, in_features, classes, gate=True).flops


def run_flops(recipe: Recipe, data: str, backbone: str, head: str) -> int:
    """FLOPs of one image's forward through backbone and head, or through a network that is trained from scratch."""
    classes = int(recipe.data[data]["classes"])
    if recipe.settings.get("mode") == "scratch":
        return _scratch_flops(backbone, head, classes, tuple(recipe.settings.get("network_options", ())))
    width = WIDTHS[backbone]
    return backbone_flops(backbone) + head_flops(head, width, width if recipe.position == "penultimate" else classes)


@functools.cache
def _scratch_flops(backbone: str, head: str, classes: int, options: tuple[str, ...]) -> int:
    from mumoe.training.config import from_mapping
    from mumoe.training.networks import make_mixer

    settings = {"mode": "scratch", "backbone": backbone, "head": head, "network_options": options}
    with torch.device("meta"):
        network = make_mixer(from_mapping(settings), classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, 224, 224, device="meta"))
    return int(counter.get_total_flops())


WIDTHS = {"clip-b32": 768, "dino-s16": 384, "efficientnet-lite0": 1280}


def estimate(recipe: Recipe, cells: list[Cell] | None = None) -> Estimate:
    """Add up all runs of a recipe that has a device."""
    device = recipe.device
    assert device is not None
    images, flops, runs = 0, 0.0, 0
    for (data, backbone, head, epochs), count in _kinds(recipe, cells or all_cells(recipe)).items():
        table = recipe.data[data]
        train, test = int(table["train_images"]), int(table["test_images"])
        count *= _trainings(recipe)
        one = run_flops(recipe, data, backbone, head)
        analyzed = {"none": 0, "load": train if recipe.split == "train" else test, "experts": 2 * test}
        flops += count * one * (3.0 * train * epochs + test + analyzed[recipe.analysis])
        images += count * train * epochs
        runs += count
    speed = device.tflops * 1e12 * device.utilization * device.count
    seconds = flops / speed
    name = f"{device.count} x {device.name} ({device.tflops:g} TFLOP/s peak, {device.utilization:.0%} of it assumed)"
    return Estimate(runs, images, flops, seconds / 3600, images / seconds / device.count, name)


def _trainings(recipe: Recipe) -> int:
    """Trainings of a head and seed: one, and in the bias study those of the baselines."""
    linear = 2 if recipe.options.get("linear") else 0
    strengths = {method.strategy: len(method.strengths) for method in RETRAINING}
    again = strengths["oversample"] if "oversample" in recipe.options.get("retraining", ()) else 0
    return 1 + linear + again * len(recipe.experiments)


def _kinds(recipe: Recipe, cells: list[Cell]) -> Counter[tuple[str, str, str, int]]:
    """How often each (data, backbone, head, epochs) is trained."""
    return Counter((cell.data, cell.config.backbone, cell.config.head, cell.config.epochs) for cell in cells)
