"""The result of an analysis: what every expert of a layer does, as tables, figures and the facts of one expert."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from mumoe.analysis.chosen_images import choose_combination_images, choose_images, image_label
from mumoe.analysis.coefficient_store import CoefficientStore
from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.analysis.findings import COMBINATIONS, Effect, Interval, LayerStudy, Specialization, UnitStudy
from mumoe.analysis.hints import layer_hint
from mumoe.errors import UserError, require, unknown_name
from mumoe.local_paths import public_name
from mumoe.plots.effects import EffectRow, effects_figure
from mumoe.plots.expert_figure import Picture, expert_figure
from mumoe.records import Record, record

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL import Image
    from torch import Tensor

    from mumoe.data.base import ImageData

__all__ = ["ExpertFacts", "Source", "Study"]

TOP = 5
"""Classes named for each expert in tables."""


@dataclass(frozen=True)
class Source:
    """The sources of a study; `Study.expert` reads images and logits from them.

    Attributes:
        store: Coefficients, or None for neurons.
        rows: (images,) position of each image in `data`.
        data: Images and labels, or None where there are none.
        layer: The layer, whose experts `ablate` can take out.
        forward: From the inputs in `batches` to the logits.
        batches: Reads inputs and labels from the beginning.
    """

    store: CoefficientStore | None = None
    rows: npt.NDArray[np.int64] | None = None
    data: ImageData | None = None
    layer: Any = None
    forward: Callable[[Tensor], Tensor] | None = None
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None = None


@record
class ExpertFacts(Record):
    """The facts of one expert; made by `Study.expert`.

    Attributes:
        expert: Position of the expert; in the combinations of a hierarchy the flat position.
        level: Kind of unit, as `Study.to_frame` names it.
        used_by: Images to which it contributes.
        processed: Images with a coefficient at or above the threshold; None for neurons and combinations.
        mean_coefficient: Its mean coefficient over all images, or None as `processed`.
        effect: What its ablation changes, or None if nothing.
        classes_lost: (class, share of its right answers that it loses), the largest loss first.
        images: (image, label, coefficient) of the images with the largest coefficients, of a combination products.
        logits: (class, mean change of its logit when the expert is ablated, over the images that use it), the largest
            change first; empty for a study that was read from disk.
        control: What the ablation of its control changes: as many random contributions as the expert has; None if
            nothing.
        name: What it was named; empty if nothing.
        note: What was noted of it.
    """

    expert: int
    level: str
    used_by: int
    processed: int | None
    mean_coefficient: float | None
    effect: Effect | None
    classes_lost: tuple[tuple[str, float], ...]
    images: tuple[tuple[int, str, float], ...] = ()
    logits: tuple[tuple[str, float], ...] = ()
    control: Effect | None = None
    name: str = ""
    note: str = ""

    _study: ClassVar[Any] = None

    def headline(self) -> str:
        named = f" ({self.name})" if self.name else ""
        about = f"{self.level}, number {self.expert}{named}: contributes to {self.used_by:,} images"
        if self.effect is None:
            return f"{about}; its ablation changes no class's accuracy"
        strong = f"strong by {_images(self.effect.images)}" if self.effect.strong else "not strong"
        control = "no effect" if self.control is None else f"{self.control.polysemanticity:.3f}"
        return f"{about}, polysemanticity {self.effect.polysemanticity:.3f} (control: {control}), {strong}"

    def rows(self) -> list[dict[str, Any]]:
        """One row per class that changes: the share of right answers that it loses, and the change of its logit."""
        logits = dict(self.logits)
        return [{"class": name, "lost": lost, "logit": logits.get(name)} for name, lost in self.classes_lost]

    def show(self) -> Figure:
        """Draw the expert: its images with their coefficients, the classes it loses, and its effects on the logits.

        The figure has no window; notebooks display it.

        Raises:
            UserError: If matplotlib is not installed.
        """
        opened = [self._study.open_image(image) if self._study else None for image, _, _ in self.images]
        pictures = [Picture(item[1], item[2], image) for item, image in zip(self.images, opened, strict=True)]
        return expert_figure(self.headline(), pictures, self.classes_lost, self.logits)


@record
class Study(Record):
    """What the experts of a layer do on a data set; `analysis.json` holds the same.

    Made by `Run.analyze` and `mumoe.analyze`, read back by `Study.load`.

    Attributes:
        classes: Names of the classes, or of the 0/1 targets.
        seed: Seed of the run.
        folder: Where the results are; empty if they were not written.
        split: Split whose images were used.
        head: Specification of the head, or the name of the layer.
        study: The numbers.
        experts_skipped: Experts that process no image, or None where no images are shown.
        no_images: Why the requested images are not shown; empty if they are.
    """

    classes: tuple[str, ...]
    seed: int = 0
    folder: str = ""
    split: str = ""
    head: str = ""
    study: LayerStudy = LayerStudy((), (), ())
    experts_skipped: int | None = None
    no_images: str = ""

    _source: ClassVar[Source] = Source()
    _run: ClassVar[Path | None] = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an analysis.json, or that of a run or of its analysis folder.

        Raises:
            UserError: If there is none, or it is damaged or of a later version.
        """
        places = [Path(path), Path(path) / "analysis.json", Path(path) / "analysis" / "analysis.json"]
        file = next((place for place in places if place.is_file()), places[1])
        found = replace(super().load(file), folder=str(file.parent))
        store = file.parent / "coefficients"
        found._require_sound(file)
        vars(found)["_run"] = file.parent.parent
        return found.bound(Source(CoefficientStore(store))) if (store / "index.json").is_file() else found

    def _require_sound(self, file: Path) -> None:
        """Raise unless all positions in the numbers are those of classes and units."""
        for units in self.study.units:
            if units.occurring is not None and not _ascend(units):
                raise _unsound(file, f"{units.units} that occur out of order")
            for found in (*units.modes.values(), units.load_control):
                for effect in found.effects if found is not None else ():
                    places = (effect.top_class, *(place for place, _ in effect.losses))
                    if not all(0 <= place < len(self.classes) for place in places):
                        raise _unsound(file, f"a class outside the {len(self.classes)} of unit {effect.unit}")
                    if not 0 <= effect.unit < found.units:
                        raise _unsound(file, f"the unit {effect.unit} of {found.units}")

    def bound(self, source: Source) -> Self:
        """The study with its sources."""
        vars(self)["_source"] = source
        return self

    @property
    def source(self) -> Source:
        """Its sources; for a study that was read from disk the coefficients alone."""
        return self._source

    @property
    def notes(self) -> ExpertNotes:
        """Names and notes of the run's experts as they are now; none if the results were not written to a run.

        Raises:
            UserError: If their file is damaged.
        """
        run = self._run or (Path(self.folder).parent if self.folder else None)
        return ExpertNotes() if run is None else ExpertNotes.of_run(run)

    def save_coefficients(self, path: str | Path) -> int:
        """Write the coefficients of every image as parquet, one row for each above 0; returns the number of rows.

        Columns as for `CoefficientStore.write_parquet`.

        >>> study.save_coefficients("coefficients.parquet")  # doctest: +SKIP

        Raises:
            UserError: If the study has no coefficients, or pyarrow is not installed.
            JobError: If the file cannot be written.
        """
        if self._source.store is None:
            raise UserError("Study.save_coefficients: expected a study of experts with their coefficients, got none.")
        return self._source.store.write_parquet(path)

    # Tables and figures -----------------------------------------------------------------------------------------

    def units(self, level: int | str = 0) -> UnitStudy:
        """The units of a level, by its number or its name in the column `level` of `to_frame`.

        Raises:
            UserError: If there is no such level.
        """
        names = [units.units for units in self.study.units]
        position = level if isinstance(level, int) else names.index(level) if level in names else len(names)
        if not 0 <= position < len(names):
            raise unknown_name("Study", "level", str(level), names)
        return self.study.units[position]

    def headline(self) -> str:
        return f"{self._accuracy()}. {self.hint()}".removesuffix(". ")

    def _accuracy(self) -> str:
        first = self.units().modes["zero"]
        split = f" of the {self.split} split" if self.split else ""
        return f"{self.head}: accuracy {first.accuracy:.4f} on {first.images:,} images{split}"

    def hint(self) -> str:
        """What to try where no level of experts is more specialized than its control; empty where one is."""
        return layer_hint(self.study)

    def rows(self, mode: str = "zero", control: bool = False) -> list[dict[str, Any]]:
        """One row per expert, those without effect included, and per combination that occurs; see `to_frame`."""
        levels, notes = range(len(self.study.units)), self.notes
        return [row for position in levels for row in self._rows(position, mode, control, notes)]

    def to_frame(self, mode: str = "zero", *, control: bool = False) -> pd.DataFrame:
        """One row per expert, in order of level and position; of a hierarchy also one per combination that occurs.

        A combination of one expert per level occurs if it contributes to an image; `study.units` has the number of all.

        Args:
            mode: What replaced an ablated expert, one of the modes that were measured.
            control: Whether to give the control instead: units of the same load made up of random contributions.

        Returns:
            A frame with the columns level (the kind of unit, ``experts``, ``level 0``, .., ``combinations`` or
            ``neurons``), expert, experts (its position in each level, for combinations), name (what it was named, or
            empty), load (images it contributes to), mean_coefficient, effect (whether its ablation changes the accuracy
            of any class), polysemanticity with the ends of its 95% interval low and high, strong, images (those whose
            lost right answers make it strong), top_classes (names, the largest loss first), losses (the share of its
            right answers that each of these loses), control_polysemanticity and control_strong (the same of as many
            random contributions as the expert has). Numbers that do not exist are missing.

        Raises:
            UserError: If the mode was not measured, or pandas is not installed.
        """
        pandas = require("pandas", "reports", "Study.to_frame")
        frame: pd.DataFrame = pandas.DataFrame(self.rows(mode, control))
        return frame

    def _rows(self, position: int, mode: str, control: bool, notes: ExpertNotes) -> Iterable[dict[str, Any]]:
        units = self.study.units[position]
        effects = {effect.unit: effect for effect in _part(units, mode, control).effects}
        usage = self.study.usage[position] if position < len(self.study.usage) else None
        controls = {effect.unit: effect for effect in units.load_control.effects}
        nothing = self._columns(None)
        for unit, load in units.listed():
            effect, random = effects.get(unit), controls.get(unit)
            yield {
                "level": units.units,
                "expert": unit,
                "experts": self.study.experts_of(units, unit),
                "name": notes.name(unit, position),
                "load": load,
                "mean_coefficient": None if usage is None or control else usage.mean_coefficient[unit],
                "effect": effect is not None,
                **(nothing if effect is None else self._columns(effect)),
                "control_polysemanticity": random and random.polysemanticity,
                "control_strong": random is not None and random.strong,
            }

    def _columns(self, effect: Effect | None) -> dict[str, Any]:
        low, high = (effect and effect.interval) or (None, None)
        lost = () if effect is None else self._lost(effect)[:TOP]
        return {
            "polysemanticity": effect and effect.polysemanticity,
            "low": low,
            "high": high,
            "strong": effect is not None and effect.strong,
            "images": effect.images if effect else 0,
            "top_classes": tuple(name for name, _ in lost),
            "losses": tuple(d for _, d in lost),
        }

    def _lost(self, effect: Effect) -> tuple[tuple[str, float], ...]:
        return tuple((self.classes[c], d) for c, d in effect.losses)

    def plot(self, *, level: int | str = 0, mode: str = "zero") -> Figure:
        """The classes that depend on the first strong experts, as Figures 5 and 6 of the paper.

        Raises:
            UserError: If the level or mode does not exist, or matplotlib is not installed.
        """
        units = self.units(level)
        row = EffectRow(self.head, _part(units, mode, False).effects)
        return effects_figure([row], self.classes, title=self.title(units))

    def title(self, units: UnitStudy) -> str:
        """Title of the effects figure."""
        unit = "neuron" if units.units == "neurons" else "expert"
        where = f" ({self.split} split)" if self.split else ""
        data = self._source.data
        return f"{self.head}{f' on {public_name(data.name)}' if data else ''}{where}: one {unit} ablated at a time"

    def sentences(self) -> list[str]:
        """The main numbers: for each kind of unit its specialization and control, and the use of the experts."""
        first, lines = self.units().modes["zero"], [self._accuracy()]
        for units in self.study.units:
            lines += [_sentence(units.units, f"{mode} ablation", part) for mode, part in units.modes.items()]
            lines.append(_sentence(units.units, "control of the same load", units.load_control))
            if units.occurring is not None:
                lines.append(_occurrence(units))
        if self.study.usage:
            usage = self.study.usage[0]
            lines.append(
                f"experts: {usage.support_mean:.1f} per image, {usage.dead} dead, "
                f"{usage.experts_above_threshold} with an image at or above {usage.threshold:g}"
            )
        if first.classes_never_right or first.classes_without_images:
            lines.append(
                f"left out: {first.classes_never_right} classes that were never right, "
                f"{first.classes_without_images} without images"
            )
        if self.no_images:
            lines.append(f"No sheets of images: {self.no_images}.")
        if hint := self.hint():
            lines.append(hint)
        return [*lines, f"Written to {self.folder}"] if self.folder else lines

    # One expert -------------------------------------------------------------------------------------------------

    def expert(self, expert: int, *, level: int | str = 0, images: int = 6) -> ExpertFacts:
        """The facts of one expert: the classes it loses, the images it processes, and its effect on the logits.

        Args:
            expert: Its position in the level.
            level: The level, by number or name.
            images: Images with the largest coefficients to list.

        Raises:
            UserError: If there is no such level or expert.
        """
        units = self.units(level)
        if not 0 <= expert < units.total:
            raise UserError(f"Study.expert: expected an expert in 0..{units.total - 1}, got {expert}.")
        position = self.study.units.index(units)
        usage = self.study.usage[position] if position < len(self.study.usage) else None
        effect, control = (_effect_of(part, expert) for part in (units.modes["zero"], units.load_control))
        entry = self.notes.of(expert, position)
        facts = ExpertFacts(
            expert=expert,
            level=units.units,
            used_by=units.load_of(expert),
            processed=usage.load[expert] if usage else None,
            mean_coefficient=usage.mean_coefficient[expert] if usage else None,
            effect=effect,
            classes_lost=() if effect is None else self._lost(effect),
            images=self._images(expert, position, images),
            logits=self._logits(expert, position, units.load_of(expert)) if usage else (),
            control=control,
            name=entry.name,
            note=entry.note,
        )
        vars(facts)["_study"] = self
        return facts

    def _images(self, expert: int, position: int, most: int) -> tuple[tuple[int, str, float], ...]:
        source = self._source
        if source.store is None or not most:
            return ()
        if (units := self.study.units[position]).units == COMBINATIONS:
            levels = [source.store.level(level=number) for number in range(source.store.num_levels())]
            (best,) = choose_combination_images(levels, [self.study.experts_of(units, expert)], each=most)
        else:
            level = source.store.level(level=position)
            found, _ = choose_images(level, each=most, threshold=0.0, experts=[expert])
            if expert not in found:
                return ()
            best = found[expert][1]
        rows = source.store.images if source.rows is None else source.rows
        pairs = [(int(row), float(value)) for row, value in zip(best.image, best.value, strict=True)]
        named = [(row if rows is None else int(rows[row]), value) for row, value in pairs]
        return tuple((image, self._label(image), value) for image, value in named)

    def _label(self, image: int) -> str:
        return f"image {image}" if self._source.data is None else image_label(self._source.data, image)

    def open_image(self, image: int) -> Image.Image | None:
        """The picture at a position of the data, or the thumbnail that the analysis kept; None without either."""
        if self._source.data is not None and not self.no_images:
            picture: Image.Image = self._source.data.open_image(image)
            return picture
        kept = Path(self.folder) / "images" / "thumbnails" / f"{image}.png"
        if not self.folder or not kept.is_file():
            return None
        thumbnail: Image.Image = require("mumoe.data.decode", "vision", "ExpertFacts.show").read_image(kept)
        return thumbnail

    def _logits(self, expert: int, level: int, load: int) -> tuple[tuple[str, float], ...]:
        source = self._source
        if source.forward is None or source.batches is None or not load:
            return ()
        change = _mean_change(source, expert, level, load)
        order = sorted(range(len(change)), key=lambda c: (-abs(change[c]), c))
        return tuple((self.classes[c], change[c]) for c in order)


def _ascend(units: UnitStudy) -> bool:
    """Whether the units that occur are as many as their loads, ascending, and within the number of units."""
    bounds = (-1, *(units.occurring or ()), units.total)
    return len(bounds) == len(units.load) + 2 and all(one < other for one, other in itertools.pairwise(bounds))


def _unsound(file: Path, what: str) -> UserError:
    return UserError(f"{file}: expected the numbers of an analysis, got {what}. Run mumoe analyze again.")


def _mean_change(source: Source, expert: int, level: int, load: int) -> list[float]:
    """Mean change of every logit when an expert is ablated, over the images that use it."""
    torch = require("torch", "vision", "Study.expert")
    assert source.forward is not None
    assert source.batches is not None
    using = _using(source, expert, level)
    total: Any = 0.0
    first = 0
    with torch.no_grad():
        for x, _ in source.batches():
            if using is not None:
                begin, first = first, first + len(x)
                mine = using[np.searchsorted(using, begin) : np.searchsorted(using, first)] - begin
                if not len(mine):
                    continue
                x = x[torch.from_numpy(mine)]
            before = source.forward(x)
            with source.layer.ablate([expert], level=level):
                total = total + (source.forward(x) - before).double().sum(0)
    return [float(change) for change in total / load]


def _using(source: Source, expert: int, level: int) -> npt.NDArray[np.int64] | None:
    """Rows that use an expert, ascending, from the coefficients of a head; None where rows are no images."""
    if source.store is None or source.rows is None:
        return None
    blocks = source.store.level(level=level).blocks()
    return np.concatenate([block.row[(block.expert == expert) & (block.value != 0)] for block in blocks])


def _part(units: UnitStudy, mode: str, control: bool) -> Specialization:
    if mode not in units.modes:
        raise unknown_name("Study", "mode that was measured", mode, units.modes)
    return units.load_control if control else units.modes[mode]


def _effect_of(part: Specialization, unit: int) -> Effect | None:
    return next((effect for effect in part.effects if effect.unit == unit), None)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _occurrence(units: UnitStudy) -> str:
    """How many combinations occur, and how many images each of them contributes to."""
    least, middle, most = map(int, np.quantile(units.load or (0,), (0, 0.5, 1), method="lower"))
    return (
        f"{units.units}: {len(units.load):,} of {units.total:,} occur, each in between {least:,} and {_images(most)} "
        f"(median {middle:,})"
    )


def _sentence(units: str, what: str, part: Specialization) -> str:
    mean = "none" if part.mean_polysemanticity is None else f"{part.mean_polysemanticity:.3f}"
    interval: Interval | None = part.mean_interval
    spread = "" if interval is None else " ({:.3f} to {:.3f})".format(*interval)
    strong = part.mean_polysemanticity_strong
    pure = "" if strong is None else f", mean p {strong:.3f}"
    behind = f" (by {_images(part.strong_images)})" if part.strong else ""
    return (
        f"{units}, {what}: {part.with_effect} of {part.units:,} change the accuracy of a class, mean p {mean}{spread}; "
        f"{part.strong} strong{behind}{pure}"
    )
