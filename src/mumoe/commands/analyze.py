"""`mumoe analyze`: what each expert of a trained run does, as JSON, figures and image grids, or tokens of text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mumoe.commands.opening import opened as open_verb
from mumoe.commands.opening import require_run
from mumoe.data.base import SPLITS
from mumoe.errors import UserError, require, unknown_name
from mumoe.files import check_writable, write_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from mumoe.analysis.coefficients import CoefficientStore
    from mumoe.analysis.studies import LayerStudy, UnitStudy
    from mumoe.analysis.text import TextStudy
    from mumoe.api import Run
    from mumoe.models.heads import Head
    from mumoe.training.config import TrainConfig
    from mumoe.training.inputs import Inputs

__all__ = ["Analysis", "Options", "analyze_head", "analyze_run", "analyze_text_run", "run"]


WHO = "mumoe analyze"
_MODES = ("zero", "mean", "resampled")  # those of analysis.contributions, which needs torch


@dataclass(frozen=True)
class Options:
    """Measure what each expert of a run does; the results go to RUN/analysis."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of a run with a MuMoE, sparse-moe or highrank-linear head, or of a language model with MuMoE blocks; or of
    the job that holds it"""
    split: str = "test"
    """train, val or test"""
    modes: tuple[str, ...] = ("zero",)
    """what takes an ablated expert's place: zero (the paper's), mean, resampled"""
    experts: tuple[int, ...] = ()
    """experts whose images are shown (default: the first ten that process any)"""
    images: int = 6
    """images shown per expert, once at random and once the largest coefficients (0: none)"""
    threshold: float = 0.5
    """coefficient from which an image counts as processed by an expert"""
    least_lost: int = 5
    """right answers that a class must lose, besides half of its own, for an expert to count as strong"""
    resamples: int = 1000
    """bootstrap resamples for the confidence intervals (0: none)"""
    seed: int = 0
    """seed of bootstrap, controls and the images drawn at random"""
    batch_size: int = 500
    """images at a time"""
    windows: int = 256
    """windows of text that are read, of a language model"""
    ablated_windows: int = 64
    """windows on which each expert of a language model is ablated"""
    data: str = ""
    """the data where they are now, e.g. folder:/new/place (empty: where the run found them)"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """folder for the results (default: RUN/analysis)"""
    quiet: bool = False
    """show no progress"""

    def folder(self, run: Path) -> Path:
        """Where the results go, checked to be writable before anything is computed.

        Raises:
            JobError: If it is read-only or full.
        """
        folder = Path(self.out) if self.out else run / "analysis"
        check_writable(folder / "analysis.json", who=WHO)
        return folder


@dataclass(frozen=True)
class Analysis:
    """What `analyze_run` found and where it is.

    Attributes:
        folder: RUN/analysis.
        split: Split whose images were used.
        head: Specification of the head.
        study: The numbers.
        experts_skipped: Experts that process no image, or None where no images are shown.
        no_images: Why images that were asked for are not shown; empty where they are.
    """

    folder: str
    split: str
    head: str
    study: LayerStudy
    experts_skipped: int | None
    no_images: str = ""


def run(options: Options) -> None:
    """Analyze and print the main numbers."""
    _check(options)
    require_run(options.run)
    require("matplotlib", "reports", "mumoe analyze")
    opened = open_verb(options, WHO, experts=True)
    if opened.config.mode == "text":
        lines = _text_lines(analyze_text(opened, options), options.folder(opened.path))
    else:
        lines = _lines(analyze(opened, options))
    sys.stdout.write("\n".join(lines) + "\n")


def analyze_text_run(options: Options, **given: Any) -> TextStudy:
    """`analyze_text` of the run that the options name; `given` as for `mumoe.load`."""
    return analyze_text(open_verb(options, WHO, experts=True, **given), options)


def analyze_text(run: Run, options: Options) -> TextStudy:
    """Analyze a language model and write RUN/analysis/experts.json, .html and .png.

    Raises:
        UserError: If a setting is wrong, the model has no experts, or the split has no text.
        JobError: If the run has no whole checkpoint.
    """
    from mumoe.analysis.text import study_text
    from mumoe.analysis.text_pages import write_text_view

    _check(options)
    folder = options.folder(run.path)
    study = study_text(
        run.network,
        run.data,
        split=options.split,
        windows=options.windows,
        ablated_windows=options.ablated_windows,
        run=run.path.name,
        step=run.step,
    )
    write_text_view(study, folder, run.data.credits)
    return study


def _text_lines(study: TextStudy, folder: Path) -> list[str]:
    from mumoe.analysis.text_pages import by_effect

    lines = [f"{study.bits_per_byte:.3f} bits per byte on {study.tokens:,} tokens of the {study.split} split"]
    for layer in study.layers:
        used = by_effect(layer)
        lines.append(f"{layer.layer}: {layer.num_experts} experts, {layer.num_experts - len(used)} read nothing")
        for expert in used[:5]:
            reads = max((value, kind) for kind, value in expert.by_class.items() if value is not None)[1]
            cost = "" if expert.effect is None else f", worth {expert.effect.all:+.3f} nats per token"
            lines.append(f"  expert {expert.expert}: most on {reads}, {expert.used:.0%} of the tokens{cost}")
    return [*lines, f"Written to {folder}. Open experts.html."]


def analyze_run(options: Options, **given: Any) -> Analysis:
    """`analyze` of the run that the options name; `given` as for `mumoe.load`."""
    return analyze(open_verb(options, WHO, experts=True, **given), options)


def analyze(run: Run, options: Options) -> Analysis:
    """Analyze a run and write RUN/analysis.

    Raises:
        UserError: If a setting is wrong, the run has no experts, or the split has no images.
        JobError: If the run has no whole checkpoint.
    """
    import mumoe.analysis.controls  # noqa: F401 (the gates that runs of a sweep may have)

    _check(options)
    _check_head(run.head, run.config, options)
    return analyze_head(run.head, run.config, run.inputs, options, options.folder(run.path))


def _check(options: Options) -> None:
    if options.split not in SPLITS:
        raise unknown_name("mumoe analyze", "split", options.split, SPLITS)
    for mode in options.modes:
        if mode not in _MODES:
            raise unknown_name("mumoe analyze", "mode", mode, _MODES)
    for name, least in (
        ("images", 0),
        ("resamples", 0),
        ("least_lost", 1),
        ("batch_size", 1),
        ("windows", 1),
        ("ablated_windows", 0),
    ):
        if getattr(options, name) < least:
            raise UserError(f"mumoe analyze: expected {name} >= {least}, got {getattr(options, name)}.")
    if not 0 < options.threshold <= 1:
        raise UserError(
            f"mumoe analyze: expected a threshold above 0 and at most 1, got {options.threshold}. 0.5 is the default."
        )


def _check_head(head: Head, config: TrainConfig, options: Options) -> None:
    from mumoe.baselines import HighRankLinear, SparseMoE
    from mumoe.layers import MuMoE

    if not isinstance(head.layer, MuMoE | SparseMoE | HighRankLinear):
        raise UserError(
            f"mumoe analyze: expected a run with experts, got the head {config.head!r}, which has none. "
            "Train one with --head CPMuMoE-r256-e128."
        )
    known = 0 if isinstance(head.layer, HighRankLinear) else head.layer.num_experts[0]
    for expert in options.experts:
        if not 0 <= expert < known:
            raise UserError(
                f"mumoe analyze: expected --experts in 0..{known - 1}, got {expert}. {config.head} has {known} experts."
            )


def analyze_head(head: Head, config: TrainConfig, inputs: Inputs, options: Options, folder: Path) -> Analysis:
    """The analysis of a head in memory: numbers, figures and images in `folder`."""
    from mumoe.analysis.batches import layer_batches
    from mumoe.analysis.neighbours import neighbours
    from mumoe.analysis.studies import study, write_coefficients
    from mumoe.baselines import HighRankLinear
    from mumoe.models.feature_files import NoImages

    rows = inputs.data.indices(options.split)
    if not len(rows):
        raise UserError(f"mumoe analyze: expected images in the {options.split} split, got none. Choose another.")

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return layer_batches(head, inputs, rows, options.batch_size)

    store = None
    if not isinstance(head.layer, HighRankLinear):
        store = write_coefficients(head.layer, batches, folder / "coefficients", images=rows)  # type: ignore[arg-type]
    found = study(
        head.layer,
        batches,
        rest=None if head.classifier is None else head.finish,
        store=store,
        modes=options.modes,  # type: ignore[arg-type]
        resamples=options.resamples,
        seed=options.seed,
        least_lost=options.least_lost,
        threshold=options.threshold,
    )
    wanted, none = store is not None and options.images > 0, isinstance(inputs.data.open_image, NoImages)
    reason = f"{inputs.data.name} is a set of features without images" if wanted and none else ""
    skipped = _images(store, inputs, rows, options, folder) if store and wanted and not none else None
    analysis = Analysis(str(folder), options.split, config.head, found, skipped, reason)
    if store is not None:
        write_json(folder / "neighbours.json", {"levels": neighbours(head.layer, store)})
    _write(analysis, inputs, config, folder)
    return analysis


def _images(
    store: CoefficientStore, inputs: Inputs, rows: npt.NDArray[np.int64], options: Options, folder: Path
) -> int:
    """Image grids of the first level's experts; returns how many experts were skipped."""
    from mumoe.analysis.grids import choose_images, write_grid

    level = store.level()
    write_grid(
        folder / "images",
        level,
        inputs.data,
        rows,
        experts=options.experts or None,
        each=options.images,
        threshold=options.threshold,
        seed=options.seed,
        title=f"Images that each expert processes ({inputs.data.name}, {options.split} split)",
    )
    found, _ = choose_images(level, each=1, threshold=options.threshold)
    return level.num_experts - len(found)


def _write(analysis: Analysis, inputs: Inputs, config: TrainConfig, folder: Path) -> None:
    """analysis.json, and Figures 5 or 6 and 12 with their numbers."""
    from mumoe.reports.figures import EffectRow, effects_figure, load_figure, save_figure

    data, first = inputs.data, analysis.study.units[0]
    title = f"{config.head} on {data.name} ({analysis.split} split): one {_singular(first)} ablated at a time"
    row = EffectRow(config.head, first.modes["zero"].effects)
    figure = effects_figure([row], data.classes, title=title)
    save_figure(figure, folder / "effects", {"classes": data.classes, "effects": row})
    if analysis.study.usage:
        usage = [(_level_name(analysis, n), level) for n, level in enumerate(analysis.study.usage)]
        figure = load_figure(usage, title=f"Expert load on {data.name} ({analysis.split} split)")
        save_figure(figure, folder / "load", dict(usage))
    write_json(folder / "analysis.json", {"classes": data.classes, "seed": config.seed, **vars(analysis)})


def _singular(units: UnitStudy) -> str:
    return "neuron" if units.units == "neurons" else "expert"


def _level_name(analysis: Analysis, level: int) -> str:
    return analysis.head if len(analysis.study.usage) == 1 else f"{analysis.head}, level {level}"


def _lines(found: Analysis) -> list[str]:
    first = found.study.units[0].modes["zero"]
    lines = [f"{found.head}: accuracy {first.accuracy:.4f} on {first.images:,} images of the {found.split} split"]
    for units in found.study.units:
        lines += [_sentence(units.units, mode, part) for mode, part in units.modes.items()]
        lines.append(_sentence(units.units, "control of the same load", units.load_control))
    if found.study.usage:
        usage = found.study.usage[0]
        lines.append(
            f"experts: {usage.support_mean:.1f} per image, {usage.dead} dead, "
            f"{usage.experts_above_threshold} with an image at or above {usage.threshold:g}"
        )
    if first.classes_never_right or first.classes_without_images:
        lines.append(
            f"left out: {first.classes_never_right} classes that were never right, "
            f"{first.classes_without_images} without images"
        )
    if found.no_images:
        lines.append(f"No sheets of images: {found.no_images}.")
    return [*lines, f"Written to {found.folder}"]


def _sentence(units: str, mode: str, part: Any) -> str:
    mean = "none" if part.mean_polysemanticity is None else f"{part.mean_polysemanticity:.3f}"
    spread = "" if part.mean_interval is None else " ({:.3f} to {:.3f})".format(*part.mean_interval)
    strong = part.mean_polysemanticity_strong
    pure = "" if strong is None else f", mean p {strong:.3f}"
    behind = f" (by {part.strong_images:,} images)" if part.strong else ""
    return (
        f"{units}, {mode}: {part.with_effect} of {part.units:,} change anything, mean p {mean}{spread}; "
        f"{part.strong} strong{behind}{pure}"
    )
