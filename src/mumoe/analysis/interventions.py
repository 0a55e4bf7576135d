"""What would be lost without each expert: all interventions in one pass over the data."""

from __future__ import annotations

import itertools

from torch import nn

from mumoe.analysis.capturing import find_layer
from mumoe.analysis.contributions import ABLATABLE, parts_of
from mumoe.analysis.final_layer import ablate_fast, ablate_plainly
from mumoe.analysis.inside import Again, one_level, run_again, watched
from mumoe.analysis.outcomes import Batches, Interventions, Record, Rest
from mumoe.analysis.settings import Mode
from mumoe.errors import UserError
from mumoe.layers import MuMoE
from mumoe.modes import evaluating

__all__ = ["intervene", "makes_logits"]


def intervene(
    model: nn.Module,
    batches: Batches,
    *,
    layer: str | None = None,
    level: int | None = None,
    mode: Mode = "zero",
    rest: Rest | None = None,
    seed: int = 0,
    block: int = 256,
    plainly: bool = False,
) -> Interventions:
    """Ablate every unit of a layer in isolation, in one pass over the data.

    A layer whose output is the model's, or goes through `rest`, is taken apart (see `final_layer`). For any other,
    only the images that use an expert are run again without it, many experts in one batch (see `inside`).

    Args:
        model: A MuMoE, SparseMoE or HighRankLinear layer, or any model with MuMoE layers or blocks in it.
        batches: (inputs of the model, labels): labels (rows,) classes or (rows, targets) 0/1.
        layer: Name of the layer in the model; None uses the only one.
        level: Level whose experts are ablated, each with all of its combinations; None uses the only level, or in a
            final layer with a hierarchy every combination.
        mode: What replaces an ablated expert, see `settings.MODES`; ``resampled`` needs a final layer or `rest`.
        rest: The network after the layer: from its output to the logits, for any number of rows; None for a final
            layer, or to run the model again from its inputs.
        seed: Seed of the ``resampled`` mode.
        block: Images run again at a time.
        plainly: Evaluate once per unit instead: the definition, slow and simple, with the same result.

    Raises:
        UserError: If there is no image, no such layer, level or mode, or a label does not exist.

    Cost: one evaluation, plus width * out_features for each (row, unit) pair that could change an answer; inside a
    network one evaluation more for each image and expert that it uses.
    """
    with evaluating(model):
        if layer is None and isinstance(model, ABLATABLE):
            return _final(model, batches, level, mode, rest, seed, plainly)
        name, part = find_layer(model, layer, "intervene")
        stream = watched(model, part, batches)
        seen = next(stream, None)
        if seen is None:
            raise UserError("intervene: expected at least one image, got none. Choose a split with images.")
        whole = itertools.chain([seen], stream)
        if isinstance(part, MuMoE) and seen.x.ndim == 2 and (seen.final or rest is not None):
            inner = ((each.x, each.labels) for each in whole)
            return _final(part, inner, level, mode, None if seen.final else rest, seed, plainly)
        again = Again(model, part, one_level(part, name, level, mode), mode, rest)
        record = Record(again.num_units)
        for each in whole:
            run_again(again, each, record, block, plainly)
        return record.result()


def _final(
    layer: nn.Module, batches: Batches, level: int | None, mode: Mode, rest: Rest | None, seed: int, plainly: bool
) -> Interventions:
    parts = parts_of(layer, level=level, mode=mode, seed=seed)
    record = Record(parts.num_units)
    pieces = (piece for x, labels in batches for piece in parts.pieces(x, labels))
    (ablate_plainly if plainly else ablate_fast)(parts, pieces, rest, record)
    return record.result()


def makes_logits(model: nn.Module, layer: str | None, batches: Batches) -> bool:
    """Whether the output of a layer is that of the model, so that combinations of levels can be ablated."""
    with evaluating(model):
        part = find_layer(model, layer, "intervene")[1]
        seen = next(watched(model, part, batches), None)
    return seen is not None and seen.final and isinstance(part, MuMoE) and seen.x.ndim == 2
