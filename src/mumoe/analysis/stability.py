"""Do experts generalize over seeds? The experts of runs that differ in their seed alone, matched by what they do.

Two runs with the same head number their experts in any order. So the experts of one are matched with those of the
other by their coefficients on the same images: the correlation of every pair of columns, then the one-to-one assignment
with the largest sum (the Hungarian method). A strong expert of one seed *reappears* in another if its match is strong
for the same class and correlates with it by at least `SIMILAR`.

The images are in neither run's training split; where both have the same split they are its test images. Which experts
are strong is measured for each run on its own images of that split name.

The control is a set of gates of the same shape, drawn at random as at initialization, with batch statistics estimated
again on the training images: the same matching of two of them shows how well random regions of the same features match.
Strong experts keep their positions and classes there, so that the control's share is the share that match by chance.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mumoe.analysis.analyzing import layer_batches
from mumoe.analysis.matching import MEASURES, Agreement, agreement, column_correlations, mean_agreement
from mumoe.analysis.purity import Measured, Purity, measure_purity
from mumoe.analysis.settings import LEAST_LOST
from mumoe.calling import check_argument
from mumoe.data.base import SPLITS, SplitName
from mumoe.errors import UserError, require, unknown_name
from mumoe.files import check_writable
from mumoe.layers import MuMoE
from mumoe.local_paths import public_name
from mumoe.modes import evaluating
from mumoe.plots.seed_agreement import agreement_figure
from mumoe.records import Record, record
from mumoe.results import Spread
from mumoe.training.compare import spread
from mumoe.training.opening import StoredRun
from mumoe.training.run import pick_run
from mumoe.training.sampler import derived_seed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = [
    "FILE",
    "SIMILAR",
    "Match",
    "SeedPair",
    "Stability",
    "job_stability",
    "measure_stability",
]

WHO = "Job.stability"

FILE = "stability.json"
"""Name of the file in the folder that holds a head's seeds."""

SIMILAR = 0.5
"""Correlation of coefficients from which a strong expert counts as reappearing; an r of .5 shares a quarter of the
variance. Random gates rarely reach it; see the control."""

CALIBRATION = 4096
"""Training images on which the batch statistics of a random gate are estimated."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """An expert of the first seed and its match in the second.

    Attributes:
        expert, other: Their positions.
        similarity: Correlation of their coefficients in [-1, 1]; 0 where one does not vary.
        lost, other_lost: Class for which each is strong; empty where it is not.
        reappears: Whether both are strong for the same class, and similar.
    """

    expert: int
    other: int
    similarity: float
    lost: str = ""
    other_lost: str = ""
    reappears: bool = False


@dataclass(frozen=True)
class SeedPair:
    """Two seeds of a head.

    Attributes:
        seeds: The seeds.
        images: Images on which their coefficients were compared.
        agreement: Of the trained gates.
        control: Means over pairs of random gates.
        matches: One for each expert of the first seed.
    """

    seeds: tuple[int, int]
    images: int
    agreement: Agreement
    control: Agreement
    matches: tuple[Match, ...]

    def row(self) -> dict[str, Any]:
        """Its row of a table, each measure beside its control."""
        found: dict[str, Any] = {"seed": self.seeds[0], "other": self.seeds[1], "images": self.images}
        for name in MEASURES:
            found |= {name: getattr(self.agreement, name), f"control_{name}": getattr(self.control, name)}
        return found


@record
class Stability(Record):
    """Whether the experts of a head reappear in other seeds; made by `Job.stability`.

    Attributes:
        head: Specification of the head.
        data: Name of the data.
        split: Split on which each run's strong experts were measured.
        compared: Images on which coefficients were compared, in words.
        level: Level of a hierarchy.
        threshold: Correlation from which experts are similar.
        least_lost: An expert is strong if a class loses at least this many right answers, and at least half of them.
        draws: Random gates of each run.
        seeds: The seeds.
        purity: Accuracy and specialization of each seed on its own images of the split.
        pairs: Every pair of seeds.
    """

    head: str
    data: str
    split: str
    compared: str
    level: int
    threshold: float
    least_lost: int
    draws: int
    seeds: tuple[int, ...]
    purity: tuple[Purity, ...]
    pairs: tuple[SeedPair, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each pair of seeds: images compared, and each measure beside that of random gates."""
        return [pair.row() for pair in self.pairs]

    def spreads(self) -> dict[str, tuple[Spread | None, Spread | None]]:
        """Measure -> mean and standard deviation over pairs of seeds, of the trained and of the random gates.

        None where no pair has the measure. Pairs share seeds, so they are not independent.
        """
        parts = ("agreement", "control")
        return {name: cast(Any, tuple(self._spread(part, name) for part in parts)) for name in MEASURES}

    def _spread(self, part: str, name: str) -> Spread | None:
        values = [getattr(getattr(pair, part), name) for pair in self.pairs]
        known = [value for value in values if value is not None]
        return spread(known) if known else None

    def experts(self) -> list[dict[str, Any]]:
        """One row for each expert of the first seed of each pair: its match, their similarity and their classes."""
        return [
            {"seed": pair.seeds[0], "other_seed": pair.seeds[1], **vars(match)}
            for pair in self.pairs
            for match in pair.matches
        ]

    def to_frame(self, *, experts: bool = False) -> pd.DataFrame:
        """One row for each pair of seeds, or with `experts` for each matched expert.

        Raises:
            UserError: If pandas is not installed.
        """
        pandas = require("pandas", "reports", "Stability.to_frame")
        frame: pd.DataFrame = pandas.DataFrame(self.experts() if experts else self.rows())
        return frame

    def headline(self) -> str:
        found = self.spreads()
        (share, random_share), (similarity, random_similarity) = found["share"], found["similarity_all"]
        over = f"over {len(self.pairs)} pairs of {len(self.seeds)} seeds on {self.data}"
        alike = f"matched experts correlate by {_text(similarity)} (random gates {_text(random_similarity)})"
        if share is None:
            return f"{self.head}: no seed has a strong expert; {alike}, {over}"
        strong = f"{_text(share)} of the strong experts of a seed reappear in another"
        return f"{self.head}: {strong} (random gates {_text(random_share)}); {alike}, {over}"

    def sentences(self) -> list[str]:
        """What `mumoe stability` prints: the headline, each seed beside its control, and each measure."""
        lines = [self.headline(), f"Compared on {self.compared}."]
        for seed, part in zip(self.seeds, self.purity, strict=True):
            lines.append(
                f"seed {seed}: accuracy {part.accuracy:.4f}, mean p {_p(part.polysemanticity)} (control "
                f"{_p(part.control_polysemanticity)}), {part.strong} strong by {part.strong_images} images (control "
                f"{part.control_strong})"
            )
        width = max(map(len, MEASURES.values()))
        lines.append(f"{'':<{width}}  {'trained':>16}  {'random gates':>16}")
        for name, pair in self.spreads().items():
            lines.append(f"{MEASURES[name]:<{width}}  " + "  ".join(f"{_text(value):>16}" for value in pair))
        return lines

    def plot(self) -> Figure:
        """Every measure of each pair of seeds beside random gates, and the similarity of all matched experts.

        Raises:
            UserError: If matplotlib is not installed.
        """
        return agreement_figure(self, title=f"{self.head} on {self.data}: do experts reappear in other seeds?")


def _text(value: Spread | None) -> str:
    if value is None:
        return "none"
    return f"{value.mean:.3f}" if value.sd is None else f"{value.mean:.3f} ± {value.sd:.3f}"


def _p(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


# Runs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """One seed: its run, what its experts are strong for, the trained gate followed by random ones."""

    run: StoredRun
    measured: Measured
    gates: tuple[nn.Module, ...]

    @property
    def seed(self) -> int:
        return int(self.run.facts["seed"])


def job_stability(
    path: Path, runs: Sequence[StoredRun], *, head: str = "", out: str | Path | None = None, **settings: Any
) -> Stability:
    """The stability of one head of a job, written to the folder that holds its seeds.

    Args:
        path: Folder of the job.
        runs: Its runs.
        head: Specification of the head; empty: the one with experts that is best on validation.
        out: File to write instead of stability.json there.
        settings: As for `measure_stability`.

    Raises:
        UserError: If the job has no such head, or as `measure_stability`.
        JobError: If the file cannot be written.
    """
    heads = list(dict.fromkeys(run.config.head for run in runs))
    chosen = head or pick_run(path, experts=True).config().head
    if chosen not in heads:
        raise unknown_name(WHO, "head of this job", chosen, heads)
    members = [run for run in runs if run.config.head == chosen]
    file = Path(out) if out else members[0].path.parent / FILE
    check_writable(file, who=WHO)
    found = measure_stability(members, **settings)
    found.save(file)
    return found


def measure_stability(
    runs: Sequence[StoredRun],
    *,
    split: SplitName = "test",
    level: int = 0,
    threshold: float = SIMILAR,
    least_lost: int = LEAST_LOST,
    draws: int = 5,
    seed: int = 0,
) -> Stability:
    """Match the experts of every pair of runs of one head, beside random gates.

    Args:
        runs: Runs of one head on the same images that differ in their seeds; unfinished ones are left out.
        split: Split on whose images each run's strong experts are measured, and, if all runs have the same split,
            coefficients are compared.
        level: Level of a hierarchy whose experts are matched.
        threshold: Correlation from which matched experts are similar.
        least_lost: An expert is strong if a class loses at least this many right answers, and at least half of them.
        draws: Random gates drawn for each run, for the control.
        seed: Seed of these and of the controls of each run.

    Raises:
        UserError: If there are fewer than two finished seeds, the head has no gate, or every image was trained on.
        JobError: If a run has no intact checkpoint.
    """
    _check(split, threshold, least_lost=least_lost, draws=draws, level=level, seed=seed)
    finished = [run for run in runs if run.facts.get("state") == "finished"]
    if len(finished) < 2:
        raise UserError(
            f"{WHO}: expected at least two finished seeds of one head, got {len(finished)}. Train with `seeds=3`."
        )
    settings = {"level": level, "least_lost": least_lost, "seed": seed}
    members = [_member(run, split, draws, settings) for run in finished]
    pairs = tuple(_pair(*two, split, level, threshold) for two in itertools.combinations(members, 2))
    same = all(_same_split(*two) for two in itertools.combinations(finished, 2))
    return Stability(
        head=finished[0].config.head,
        data=public_name(str(finished[0].facts["data"]["name"])),
        split=split,
        compared=f"the images of the {split} split" if same else "the images outside both training splits of each pair",
        level=level,
        threshold=threshold,
        least_lost=least_lost,
        draws=draws,
        seeds=tuple(member.seed for member in members),
        purity=tuple(member.measured.purity for member in members),
        pairs=pairs,
    )


def _check(split: str, threshold: float, **counts: int) -> None:
    if split not in SPLITS:
        raise unknown_name(WHO, "`split`", split, SPLITS)
    check_argument(WHO, "threshold", threshold, float)
    if not 0 < threshold <= 1:
        raise UserError(
            f"{WHO}: expected `threshold` above 0 and at most 1, got {threshold}. {SIMILAR} is the default."
        )
    for name, value in counts.items():
        check_argument(WHO, name, value, int)
        least = 0 if name in ("level", "seed") else 1
        if value < least:
            raise UserError(f"{WHO}: expected `{name}` >= {least}, got {value}.")


def _member(run: StoredRun, split: SplitName, draws: int, settings: Mapping[str, int]) -> _Member:
    layer, rows = run.head.layer, run.inputs.data.indices(split)
    if not isinstance(layer, MuMoE):
        raise UserError(
            f"{WHO}: expected a head with a gate, got {run.config.head!r}. Train one with the head CPMuMoE-r256-e128."
        )
    if not 0 <= settings["level"] < len(layer.num_experts):
        raise UserError(
            f"{WHO}: expected `level` in 0..{len(layer.num_experts) - 1}, got {settings['level']}. "
            f"{run.config.head} has {len(layer.num_experts)}."
        )
    if not len(rows):
        raise UserError(f"{WHO}: expected images in the {split} split of {run.path}, got none. Choose another `split`.")
    measured = measure_purity(run.head, run.inputs, rows, **settings)
    numbers = (derived_seed(settings["seed"], int(run.facts["seed"]), draw) for draw in range(draws))
    return _Member(run, measured, (layer.gate, *(_random_gate(run, number) for number in numbers)))


def _random_gate(run: StoredRun, seed: int) -> nn.Module:
    """A gate like that of a run as it would be drawn for a new training, with batch statistics of training images."""
    layer = cast(MuMoE, run.head.layer)
    device = run.head.mean.device
    gate = copy.deepcopy(layer.gate).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        gate.reset_parameters()
    gate = gate.to(device).eval()
    norms = [norm for norm in gate.norms if isinstance(norm, nn.BatchNorm1d)]
    if norms:
        x, _ = next(layer_batches(run.head, run.inputs, run.inputs.data.indices("train")[:CALIBRATION], CALIBRATION))
        for norm in norms:
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            gate.logits(x)
    return gate.eval()


def _same_split(one: StoredRun, other: StoredRun) -> bool:
    first, second = one.inputs.data, other.inputs.data
    return first.ids == second.ids and bool((first.split == second.split).all())


def _shared_rows(one: StoredRun, other: StoredRun, split: SplitName) -> tuple[Ints, Ints]:
    """Positions in both runs' data of the same images, known by id, that neither was trained on."""
    first, second = one.inputs.data, other.inputs.data
    if _same_split(one, other):
        return first.indices(split), second.indices(split)
    place = {name: row for row, name in enumerate(second.ids)}
    rows = [
        (row, place[name])
        for row, name in enumerate(first.ids)
        if name in place and first.split[row] != 0 and second.split[place[name]] != 0
    ]
    if len(rows) < 2:
        raise UserError(
            f"{WHO}: expected images in neither training split of {one.path} and {other.path}, got {len(rows)}."
        )
    table = np.array(rows, dtype=np.int64)
    return table[:, 0].copy(), table[:, 1].copy()


def _pair(one: _Member, other: _Member, split: SplitName, level: int, threshold: float) -> SeedPair:
    rows = _shared_rows(one.run, other.run, split)
    strong = (one.measured.strong, other.measured.strong)
    trained, *random = [
        _similarity(one.run, other.run, rows, gates, level) for gates in zip(one.gates, other.gates, strict=True)
    ]
    found, matched = agreement(trained, strong, threshold)
    controls = [agreement(similarity, strong, threshold)[0] for similarity in random]
    classes = one.run.classes
    matches = tuple(
        _match(n, int(m), float(trained[n, m]), strong, classes, threshold) for n, m in enumerate(matched.tolist())
    )
    return SeedPair((one.seed, other.seed), len(rows[0]), found, mean_agreement(controls), matches)


def _similarity(
    one: StoredRun, other: StoredRun, rows: tuple[Ints, Ints], gates: tuple[nn.Module, nn.Module], level: int
) -> Floats:
    streams = [_coefficients(*each, level) for each in zip((one, other), rows, gates, strict=True)]
    return column_correlations(zip(*streams, strict=True))


def _coefficients(run: StoredRun, rows: Ints, gate: nn.Module, level: int) -> Iterator[npt.NDArray[np.float32]]:
    """(batch, experts) coefficients of a gate, batch by batch."""
    for x, _ in layer_batches(run.head, run.inputs, rows, 1024):
        with evaluating(gate):
            a = gate(x)[level].to_dense().float().cpu().numpy()
        yield a


def _match(n: int, m: int, value: float, strong: tuple[Ints, Ints], classes: Sequence[str], threshold: float) -> Match:
    def name(label: int) -> str:
        return classes[label] if label >= 0 else ""

    lost, other_lost = int(strong[0][n]), int(strong[1][m])
    return Match(n, m, value, name(lost), name(other_lost), lost >= 0 and lost == other_lost and value >= threshold)
