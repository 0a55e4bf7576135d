"""Analyze a trained run, or any model with MuMoE layers: numbers, figures and images in one folder."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import mumoe.analysis.controls  # noqa: F401 (registers the frozen gates, which runs of a sweep may have)
from mumoe.analysis.capturing import capture, find_layer
from mumoe.analysis.chosen_images import choose_images
from mumoe.analysis.coefficient_store import CoefficientStore
from mumoe.analysis.findings import LayerStudy, TextStudy
from mumoe.analysis.layer_study import count_passes, study_layer, write_coefficients
from mumoe.analysis.neighbours import neighbours
from mumoe.analysis.settings import LEAST_LOST, WHO, Mode, check_settings
from mumoe.analysis.study import Source, Study
from mumoe.analysis.text_pages import write_text_view
from mumoe.analysis.text_study import study_text
from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.calling import checked
from mumoe.data.base import NoImages
from mumoe.errors import UserError, require
from mumoe.files import check_writable, new_entries, write_json
from mumoe.layers import MuMoE
from mumoe.local_paths import public_name
from mumoe.models.heads import Head
from mumoe.plots.effects import EffectRow, effects_figure
from mumoe.plots.expert_sheet import write_grid
from mumoe.plots.loads import load_figure
from mumoe.plots.style import save_figure
from mumoe.progress import DELAY, Progress
from mumoe.training.inputs import Inputs
from mumoe.training.opening import StoredRun
from mumoe.training.sources import FeatureSource

__all__ = ["analyze", "analyze_run", "layer_batches", "study_head"]

COEFFICIENTS = "coefficients"
RESULTS = (COEFFICIENTS, "images", "neighbours.json", "effects.*", "load.*", "analysis.json")
"""What an analysis writes, replaced together; the last file marks a complete one."""

TEXT_RESULTS = ("experts.html", "experts.png", "experts.json")
"""The same of a language model."""

Rows = npt.NDArray[np.int64]


def analyze_run(
    run: StoredRun,
    *,
    split: str = "test",
    modes: Sequence[Mode] = ("zero",),
    experts: Sequence[int] = (),
    images: int = 6,
    threshold: float = 0.5,
    least_lost: int = LEAST_LOST,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 500,
    windows: int = 256,
    ablated_windows: int = 64,
    out: str | Path | None = None,
) -> Study | TextStudy:
    """Measure what each expert of a run does, and write it to RUN/analysis.

    Args:
        run: The run.
        split: train, val or test.
        modes: What replaces an ablated expert: ``zero`` (always measured, the paper's), ``mean``, ``resampled``.
        experts: Experts whose images are drawn; by default the first ten that process any.
        images: Images drawn per expert, once at random and once the largest coefficients; 0 for none.
        threshold: Coefficient from which an image counts as processed by an expert.
        least_lost: An expert is strong if a class loses at least this many right answers, and at least half of them.
        resamples: Bootstrap resamples for the confidence intervals; 0 for none.
        seed: Seed of bootstrap, control and the images drawn at random.
        batch_size: Images at a time.
        windows: Windows of text to read, of a language model.
        ablated_windows: Windows on which each expert of a language model is ablated.
        out: Folder for the results instead of RUN/analysis.

    Returns:
        A `Study`; of a language model a `TextStudy`.

    Raises:
        UserError: If a setting is wrong, the run has no experts, or the split is empty.
        JobError: If the run has no intact checkpoint, or the folder cannot be written.
    """
    counts = {"images": images, "least_lost": least_lost, "resamples": resamples, "batch_size": batch_size}
    counts |= {"windows": windows, "ablated_windows": ablated_windows, "seed": seed}
    check_settings(split=split, modes=modes, threshold=threshold, **counts)
    require("matplotlib", "reports", WHO)
    folder = Path(out) if out else run.path / "analysis"
    if run.config.mode == "text":
        return _analyze_text(run, folder, split, windows, ablated_windows)
    _check_head(run.head, run.config.head, experts)
    check_writable(folder / "analysis.json", who=WHO)
    head, inputs = run.head, run.inputs
    rows = inputs.data.indices(split)
    if not len(rows):
        raise UserError(f"{WHO}: expected images in the {split} split, got none. Choose another.")
    with new_entries(folder, RESULTS, who=WHO) as part:
        found, source = study_head(
            head,
            inputs,
            rows,
            part / COEFFICIENTS,
            batch_size=batch_size,
            progress=run.progress,
            modes=modes,
            resamples=resamples,
            seed=seed,
            least_lost=least_lost,
            threshold=threshold,
        )
        data, drawn = inputs.data, source.store is not None and images > 0
        reason = f"{public_name(data.name)} is a set of features without images"
        no_images = reason if drawn and isinstance(data.open_image, NoImages) else ""
        skipped = None
        if drawn and not no_images:
            grid = {"experts": experts or None, "each": images, "threshold": threshold, "seed": seed}
            skipped = _write_images(source, part / "images", split, grid)
        study = Study(data.classes, run.config.seed, str(folder), split, run.config.head, found, skipped, no_images)
        _write(study.bound(source), part)
    return study.bound(_in_place(source, folder))


def _in_place(source: Source, folder: Path) -> Source:
    """The sources with the coefficients where they are now."""
    return source if source.store is None else replace(source, store=CoefficientStore(folder / COEFFICIENTS))


def _analyze_text(run: StoredRun, folder: Path, split: str, windows: int, ablated_windows: int) -> TextStudy:
    check_writable(folder / "analysis.json", who=WHO)
    study = study_text(
        run.model,
        run.data,
        split=split,
        windows=windows,
        ablated_windows=ablated_windows,
        run=run.path.name,
        step=run.step,
    )
    with new_entries(folder, TEXT_RESULTS, who=WHO) as part:
        write_text_view(study, part, run.data.credits)
    return study.written_to(folder)


def _check_head(head: Head, spec: str, experts: Sequence[int]) -> None:
    if not isinstance(head.layer, MuMoE | SparseMoE | HighRankLinear):
        raise UserError(
            f"{WHO}: expected a run with experts, got the head {spec!r}, which has none. "
            "Train one with the head CPMuMoE-r256-e128."
        )
    known = 0 if isinstance(head.layer, HighRankLinear) else head.layer.num_experts[0]
    for expert in experts:
        if not 0 <= expert < known:
            raise UserError(f"{WHO}: expected `experts` in 0..{known - 1}, got {expert}. {spec} has {known} experts.")


# A head on features ------------------------------------------------------------------------------------------------


def layer_batches(head: Head, inputs: Inputs, rows: Rows, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of the head's layer, with the labels, batch by batch.

    Args:
        head: A head on features.
        inputs: Its data, with features.
        rows: Positions of the images.
        size: Images of a batch.

    Shape:
        yields (batch, in_features), on the device of the head, and labels (batch,) or (batch, targets).
    """
    assert inputs.features is not None
    source = FeatureSource(inputs.features, inputs.data.labels, head.mean.device)
    batches = [np.ascontiguousarray(rows[start : start + size]) for start in range(0, len(rows), size)]
    for features, labels in source.stream(batches, None):
        with torch.no_grad():
            x = head.prepare(features)
        yield x, labels  # outside: a generator that is not read to its end would leave gradients off


def study_head(
    head: Head,
    inputs: Inputs,
    rows: Rows,
    coefficients: Path | None = None,
    *,
    batch_size: int = 500,
    progress: bool = False,
    **settings: Any,
) -> tuple[LayerStudy, Source]:
    """Measure the layer of a head on cached features.

    Args:
        head: The head.
        inputs: Its data, with features.
        rows: Positions of the images.
        coefficients: Folder for the coefficients of its experts; None to omit them and the usage of the experts.
        batch_size: Images at a time.
        progress: Whether to show progress on stderr.
        settings: As for `study_layer`.

    Raises:
        UserError: As `study_layer`.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return layer_batches(head, inputs, rows, batch_size)

    def forward(x: Tensor) -> Tensor:
        return head.finish(head.layer(x))

    layer, store = head.layer, None
    stored = coefficients is not None and isinstance(layer, MuMoE | SparseMoE)
    total = len(rows) * count_passes(layer, settings.get("modes", ()), stored)
    with Progress("Ablating every expert", total, enabled=progress, delay=DELAY) as bar:

        def counted() -> Iterator[tuple[Tensor, Tensor]]:
            for x, labels in batches():
                yield x, labels
                bar.advance(len(labels))

        if coefficients is not None and isinstance(layer, MuMoE | SparseMoE):
            store = write_coefficients(layer, counted, coefficients, images=rows)
        rest = None if head.classifier is None else head.finish
        found = study_layer(layer, counted, rest=rest, store=store, progress=progress, **settings)
    return found, Source(store, rows, inputs.data, layer, forward, batches)


def _write_images(source: Source, folder: Path, split: str, settings: dict[str, Any]) -> int:
    """Image grids of the first level's experts; returns how many experts were skipped."""
    assert source.store is not None
    assert source.data is not None
    assert source.rows is not None
    level, data = source.store.level(), source.data
    title = f"Images that each expert processes ({public_name(data.name)}, {split} split)"
    write_grid(folder, level, data, source.rows, **settings, title=title)
    found, _ = choose_images(level, each=1, threshold=settings["threshold"])
    return level.num_experts - len(found)


def _write(study: Study, folder: Path) -> None:
    """analysis.json, neighbours.json, and Figures 5 or 6 and 12 with their numbers."""
    source, first = study.source, study.units()
    if source.store is not None and isinstance(source.layer, MuMoE | SparseMoE):
        write_json(folder / "neighbours.json", {"levels": neighbours(source.layer, source.store)})
    row = EffectRow(study.head, first.modes["zero"].effects)
    figure = effects_figure([row], study.classes, title=study.title(first))
    save_figure(figure, folder / "effects", {"classes": study.classes, "effects": row})
    if usage := study.study.usage:
        names = [study.head] if len(usage) == 1 else [f"{study.head}, level {level}" for level in range(len(usage))]
        named = list(zip(names, usage, strict=True))
        on = f" on {public_name(source.data.name)} ({study.split} split)" if source.data else ""
        save_figure(load_figure(named, title=f"Expert load{on}"), folder / "load", dict(named))
    replace(study, folder="").save(folder / "analysis.json")


# Any model ---------------------------------------------------------------------------------------------------------


@checked
def analyze(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    labels: Sequence[str] | None = None,
    *,
    layer: str | None = None,
    rest: Callable[[Tensor], Tensor] | None = None,
    modes: Sequence[Mode] = ("zero",),
    threshold: float = 0.5,
    least_lost: int = LEAST_LOST,
    resamples: int = 1000,
    seed: int = 0,
    out: str | Path | None = None,
) -> Study:
    """Measure what each expert of a MuMoE layer does, in any model and on any data.

    Args:
        model: A module with MuMoE layers or blocks in it, from inputs to logits.
        loader: Batches (inputs, labels) in an order that repeats: a list, or a DataLoader that does not shuffle.
            Labels are (batch,) classes, or (batch, targets) 0/1.
        labels: Names of the classes or targets; by default their numbers.
        layer: Name of the layer in the model; None uses the only one.
        rest: The network from the layer's output to the logits. Without it the whole model is run again for the
            images that use an expert, unless the layer makes the logits.
        modes: What replaces an ablated expert: ``zero`` (always measured), ``mean``, ``resampled`` (final layers).
        threshold: Coefficient from which an image, or a token of one, counts as processed by an expert.
        least_lost: An expert is strong if a class loses at least this many right answers, and at least half of them.
        resamples: Bootstrap resamples for the confidence intervals; 0 for none.
        seed: Seed of bootstrap and control.
        out: Folder for analysis.json, the coefficients and the figures; None writes nothing.

    Raises:
        UserError: If the model has no MuMoE layer, there is no image, or a setting is wrong.

    >>> study = mumoe.analyze(model, loader, labels=["cat", "dog"])  # doctest: +SKIP
    >>> study.to_frame().sort_values("polysemanticity")              # doctest: +SKIP
    """
    check_settings(modes=modes, threshold=threshold, least_lost=least_lost, resamples=resamples, seed=seed)
    if iter(loader) is loader:
        raise UserError("analyze: expected batches that can be read several times, got an iterator. Give a list.")
    name, part = find_layer(model, layer, "analyze")
    device = next(model.parameters()).device

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.to(device), y.to(device)) for x, y in loader)

    if out is not None:
        require("matplotlib", "reports", "analyze")
    place = contextlib.nullcontext() if out is None else new_entries(out, RESULTS, who="analyze")
    with place as scratch:
        store = _captured(model, (x for x, _ in batches()), name, scratch)
        settings: dict[str, Any] = {"modes": modes, "resamples": resamples, "seed": seed, "least_lost": least_lost}
        found = study_layer(model, batches, layer=name, rest=rest, store=store, threshold=threshold, **settings)
        classes = _names(labels, found.units[0].modes["zero"].classes)
        study = Study(classes, seed, str(out or ""), "", name or type(model).__name__, found)
        source = Source(store, None, None, part, model, batches)
        study.bound(source)
        if scratch is not None:
            _write(study, scratch)
    return study if out is None else study.bound(_in_place(source, Path(out)))


def _captured(model: nn.Module, inputs: Iterable[Tensor], layer: str, out: Path | None) -> CoefficientStore:
    """The coefficients in `out`, or in a temporary folder that is deleted with the store."""
    if out is not None:
        return capture(model, inputs, out / COEFFICIENTS, layers=[layer])
    folder = tempfile.TemporaryDirectory(prefix="mumoe-", ignore_cleanup_errors=True)
    try:
        store = capture(model, inputs, Path(folder.name) / COEFFICIENTS, layers=[layer])
    except BaseException:
        folder.cleanup()
        raise
    weakref.finalize(store, folder.cleanup)
    return store


def _names(labels: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    if labels is not None and len(labels) != classes:
        raise UserError(f"analyze: expected {classes} labels, one per logit, got {len(labels)}.")
    return tuple(map(str, range(classes))) if labels is None else tuple(labels)
