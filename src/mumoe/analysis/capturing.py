"""Find the layers of a model that have experts, and capture their coefficients while the model runs.

The hooks live as long as the capture, keep no graph and leave no tensor on any module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter
from mumoe.errors import UserError, unknown_name
from mumoe.layers import MuMoE, MuMoEBlock
from mumoe.modes import evaluating

__all__ = ["capture", "expert_layers", "find_layer", "watching_coefficients"]

Gated = MuMoE | MuMoEBlock


def expert_layers(model: nn.Module) -> dict[str, Gated]:
    """All MuMoE layers and blocks of a model by name; the model itself, if it is one, has the name ``""``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MuMoE | MuMoEBlock)}


def find_layer(model: nn.Module, layer: str | None, who: str) -> tuple[str, Gated]:
    """A layer by name, or the only one there is.

    Raises:
        UserError: If the model has no MuMoE layer, does not have this one, or has several and none is named.
    """
    layers = expert_layers(model)
    if not layers:
        raise UserError(
            f"{who}: expected a model with a MuMoE layer, got {type(model).__name__} without one. "
            "Train one with a head such as CPMuMoE-r256-e128."
        )
    if layer is None:
        if len(layers) > 1:
            raise UserError(
                f"{who}: expected the name of one layer out of {', '.join(layers)}, got none. Name it with layer=."
            )
        return next(iter(layers.items()))
    if layer not in layers:
        raise unknown_name(who, "MuMoE layer", layer, layers)
    return layer, layers[layer]


@contextlib.contextmanager
def watching_coefficients(layers: dict[str, Gated], see: Callable[[str, Sequence[Tensor]], None]) -> Iterator[None]:
    """Within the context, `see(name, coefficients)` is called at every forward of these layers' gates."""

    def hook(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, args: Any, output: Any) -> None:
            see(name, [a.to_dense().detach() for a in output])

        return seen

    handles = [layer.gate.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def capture(
    model: nn.Module,
    batches: Iterable[Tensor],
    folder: str | Path,
    *,
    layers: Sequence[str] | None = None,
    images: npt.NDArray[np.int64] | None = None,
) -> CoefficientStore:
    """Run a model and write the expert coefficients of its layers to a folder, batch by batch.

    Args:
        model: Any model with MuMoE layers or blocks in it.
        batches: Inputs of the model.
        folder: Where the store goes; it appears when all batches are done.
        layers: Names of the layers; None uses all.
        images: Position of each image in its data set, in the order of the batches.

    Raises:
        UserError: If the model has no MuMoE layer, a name is unknown, or there is no batch.
    """
    names = [find_layer(model, name, "capture")[0] for name in layers] if layers else list(expert_layers(model))
    if not names:
        find_layer(model, None, "capture")
    chosen = {name: find_layer(model, name, "capture")[1] for name in names}
    experts = {name: layer.num_experts for name, layer in chosen.items()}
    seen = 0
    with evaluating(model), CoefficientWriter(folder, experts, images=images) as writer:
        size = 0

        def see(name: str, coefficients: Sequence[Tensor]) -> None:
            rows = coefficients[0].shape[0]
            if size and rows % size == 0:
                writer.set_rows_per_image(name, rows // size)
            writer.append(name, [a.float().cpu().numpy() for a in coefficients])

        with watching_coefficients(chosen, see):
            for batch in batches:
                size = len(batch)
                seen += size
                model(batch)
        if not seen:
            raise UserError("capture: expected at least one image, got none. Choose a split that has images.")
    return CoefficientStore(folder)
