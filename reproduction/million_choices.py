"""What the levels of a head choose on unseen images, together and alone, each beside its control.

A *combination* is one expert of each level; its coefficient for an image is the product of theirs. The choices of a
level are compared with those of the same level dealt to other images at random (*shuffled*: the same experts, equally
often, independent of the other levels), and with a gate that was never trained. The class purity of the images that a
combination handles is compared with random subsets of the same size of the images of one of its experts, since small
sets are pure by chance. The agreement of pairs of images (`agreement`) has no such bias.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mumoe.analysis import intervene
from mumoe.analysis.analyzing import layer_batches
from mumoe.models.heads import Head
from mumoe.training.inputs import Inputs

__all__ = [
    "Used",
    "agreement",
    "and_of_levels",
    "effective",
    "measure_choices",
    "measure_retrieved",
    "mutual_information",
    "used",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Entry = dict[str, Any]

LEAST = 5
"""Images that a combination, or a level's expert, must handle for its purity to be measured."""
SHUFFLES = 20
"""Draws of a control."""
MOST = 1000
"""Combinations whose purity is measured, drawn at random if there are more."""
MOST_PAIRS = 1_000_000
"""Pairs of images and combinations up to which combinations are ablated one by one."""


# Which combinations are used ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Used:
    """Coefficients other than zero of some experts or combinations.

    Attributes:
        image, unit: (pairs,) which image uses which.
        weight: (pairs,) the coefficient.
    """

    image: Ints
    unit: Ints
    weight: Floats

    def counts(self) -> Entry:
        """How many are used, how many effectively, by how many images each, and how many one image uses."""
        units, place = np.unique(self.unit, return_inverse=True)
        images = np.bincount(self.image)
        load = np.bincount(place)
        each = np.exp(
            -np.bincount(self.image, weights=self.weight * np.log(self.weight))
        )  # weights of an image sum to 1
        return {
            "distinct": len(units),
            "effective": effective(np.bincount(place, weights=self.weight)),
            "by_several": int((load >= LEAST).sum()),
            "per_image": float(images.mean()),
            "effective_per_image": float(np.mean(each)),
        }


def effective(weights: npt.ArrayLike) -> float:
    """exp of the entropy of weights that are normalized first: n for n equal ones."""
    given = np.asarray(weights, dtype=np.float64)
    share = given[given > 0] / given.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def used(levels: Sequence[Floats]) -> Used:
    """Every image with every combination of experts whose coefficients are all above 0, image after image.

    Args:
        levels: (images, experts) coefficients of each level; one level gives its experts.

    Returns:
        Units are numbered as an array of the levels' sizes is, the last level fastest.
    """
    images, units, weights = [], [], []
    for image in range(len(levels[0])):
        unit, weight = np.zeros(1, dtype=np.int64), np.ones(1)
        for level in levels:
            (experts,) = np.nonzero(level[image])
            unit = (unit[:, None] * level.shape[1] + experts).ravel()
            weight = (weight[:, None] * level[image, experts]).ravel()
        images.append(np.full(len(unit), image))
        units.append(unit)
        weights.append(weight)
    return Used(np.concatenate(images), np.concatenate(units), np.concatenate(weights))


def shuffled(levels: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """The levels with the choices of all but the first dealt to other images: the same experts, equally often."""
    return [levels[0], *(level[rng.permutation(len(level))] for level in levels[1:])]


def _usage(levels: Sequence[Floats], rng: np.random.Generator) -> Entry:
    """Combinations and experts that are used; the combinations also if the levels were independent."""
    draws = [used(shuffled(levels, rng)).counts() for _ in range(SHUFFLES // 4)]
    return {
        "combinations": used(levels).counts(),
        "combinations_shuffled": {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]},
        "levels": [used([level]).counts() for level in levels],
        "images": len(levels[0]),
        "possible": int(np.prod([level.shape[1] for level in levels])),
    }


# What the "and" selects ---------------------------------------------------------------------------------------------


def and_of_levels(levels: Sequence[Floats], labels: Ints, rng: np.random.Generator, draws: int = 5) -> Entry:
    """Class purity of the images of combinations, beside their experts alone and random subsets of the experts' images.

    Args:
        levels: (images, experts) coefficients of each level.
        labels: (images,) class of each image.
        rng: Draws the subsets.
        draws: Random subsets for each combination.

    Returns:
        Means over combinations with at least `LEAST` images, and strictly fewer than each of its experts, at most
        `MOST` drawn at random: their number, images, purity (share of the commonest class), for each level the purity
        of the expert's images and of random subsets of them of the combination's size, how many are purer than the
        subsets of every level, and how often two combinations of one expert of the first level have different
        commonest classes, beside random subsets. None where there is no such combination.
    """
    sizes = [level.shape[1] for level in levels]
    members = [_members(used([level])) for level in levels]
    rows: list[list[float]] = []
    tops: dict[int, list[tuple[int, int]]] = {}
    for unit, images in _drawn(_members(used(levels), LEAST), rng):
        experts = np.unravel_index(unit, sizes)
        own = [level[int(expert)] for level, expert in zip(members, experts, strict=True)]
        if any(len(part) <= len(images) for part in own):
            continue
        subsets = [[rng.choice(part, len(images), replace=False) for _ in range(draws)] for part in own]
        random = [float(np.mean([_purity(labels[subset]) for subset in part])) for part in subsets]
        alone = [_purity(labels[part]) for part in own]
        rows.append([len(images), _purity(labels[images]), *alone, *random])
        tops.setdefault(int(experts[0]), []).append((_top(labels[images]), _top(labels[subsets[0][0]])))
    mean = np.mean(rows, axis=0) if rows else np.full(2 + 2 * len(levels), np.nan)
    values = [None if np.isnan(value) else float(value) for value in mean]
    split = [_differing(tops, place) for place in (0, 1)]
    return {
        "combinations": len(rows),
        "images_each": values[0],
        "purity": values[1],
        "alone": values[2 : 2 + len(levels)],
        "random_subset": values[2 + len(levels) :],
        "better": float(np.mean([row[1] > max(row[2 + len(levels) :]) for row in rows])) if rows else None,
        "different_class": split[0],
        "different_class_random": split[1],
    }


def _members(found: Used, least: int = 0) -> dict[int, Ints]:
    """Images of every unit that at least some use."""
    order = np.argsort(found.unit, kind="stable")
    units, starts, counts = np.unique(found.unit[order], return_index=True, return_counts=True)
    kept = np.flatnonzero(counts >= least)
    images = found.image[order]
    return {int(units[n]): images[starts[n] : starts[n] + counts[n]] for n in kept}


def _drawn(members: Mapping[int, Ints], rng: np.random.Generator) -> list[tuple[int, Ints]]:
    """At most `MOST` units with their images."""
    units = list(members)
    chosen = sorted(rng.permutation(len(units))[:MOST])
    return [(units[place], members[units[place]]) for place in chosen]


def _purity(labels: Ints) -> float:
    return float(np.bincount(labels).max() / len(labels))


def _top(labels: Ints) -> int:
    return int(np.bincount(labels).argmax())


def _differing(tops: Mapping[int, Sequence[tuple[int, int]]], place: int) -> float | None:
    """Share of pairs of combinations of the same first expert whose commonest classes differ, mean over experts."""
    shares = []
    for found in tops.values():
        pairs = list(itertools.combinations([top[place] for top in found], 2))
        if pairs:
            shares.append(np.mean([one != other for one, other in pairs]))
    return float(np.mean(shares)) if shares else None


# The choice with the largest coefficient ----------------------------------------------------------------------------


def agreement(choices: Ints, labels: Ints) -> tuple[float | None, float]:
    """Of pairs of images with the same choice, the share of the same class, None without such a pair; and of pairs of
    the same class, the share with the same choice. The number of choices does not bias either.
    """
    both = _pairs(np.unique(np.stack([choices, labels]), axis=1, return_counts=True)[1])
    alike, same = (_pairs(np.unique(part, return_counts=True)[1]) for part in (choices, labels))
    return (both / alike if alike else None), both / same


def _pairs(counts: Ints) -> float:
    return float((counts * (counts - 1) // 2).sum())


def mutual_information(choices: Ints, labels: Ints) -> float:
    """Of choice and class in nats, by the counts; too large by chance, the more choices there are."""

    def entropy(counts: Ints) -> float:
        share = counts / counts.sum()
        return float(-(share * np.log(share)).sum())

    one, other = (np.unique(part, return_counts=True)[1] for part in (choices, labels))
    both = np.unique(np.stack([choices, labels]), axis=1, return_counts=True)[1]
    return entropy(one) + entropy(other) - entropy(both)


def _joined(choices: Sequence[Ints]) -> Ints:
    """One number for each combination of choices."""
    return np.asarray(np.unique(np.stack(choices), axis=1, return_inverse=True)[1]).ravel().astype(np.int64)


def _informed(choices: Ints, labels: Ints, rng: np.random.Generator) -> Entry:
    """Information about the class, by chance, and the agreement of pairs."""
    chance = [mutual_information(choices, rng.permutation(labels)) for _ in range(SHUFFLES)]
    precision, recall = agreement(choices, labels)
    return {
        "information": mutual_information(choices, labels),
        "chance": float(np.mean(chance)),
        "same_class_if_chosen_alike": precision,
        "chosen_alike_if_same_class": recall,
        "distinct": len(np.unique(choices)),
    }


def _tops(levels: Sequence[Floats], labels: Ints, rng: np.random.Generator) -> Entry:
    """Choices with the largest coefficient: of each level, of all, and of all with the later levels shuffled."""
    choices = [level.argmax(1).astype(np.int64) for level in levels]
    dealt = [_joined(shuffled(choices, rng)) for _ in range(SHUFFLES)]
    return {
        "levels": [_informed(part, labels, rng) for part in choices],
        "all": _informed(_joined(choices), labels, rng),
        "all_shuffled": {
            "information": float(np.mean([mutual_information(part, labels) for part in dealt])),
            "distinct": float(np.mean([len(np.unique(part)) for part in dealt])),
        },
        "class_entropy": mutual_information(labels, labels),
        "same_class": agreement(np.zeros_like(labels), labels)[0],
    }


# What is lost without them ------------------------------------------------------------------------------------------


def _ablated(head: Head, inputs: Inputs, rows: Ints, level: int | None, seed: int) -> Entry:
    """Strong units of a level, or of all combinations, beside random contributions of the same load."""
    found = intervene(head.layer, layer_batches(head, inputs, rows, 256), level=level)
    own, control = found.specialization(), found.load_control(seed=seed)
    return {
        "units": int((found.load > 0).sum()),
        "by_several": int((found.load >= LEAST).sum()),
        "with_effect": own.with_effect,
        "strong": own.strong,
        "strong_control": control.strong,
        "polysemanticity": own.mean_polysemanticity,
        "polysemanticity_control": control.mean_polysemanticity,
        "strong_images": own.strong_images,
    }


# A head ---------------------------------------------------------------------------------------------------------------


def measure_choices(head: Head, inputs: Inputs, rows: Ints, *, seed: int = 0) -> Entry:
    """Everything above for one head on some images, as a JSON-able dict.

    Args:
        head: A trained head with a `MuMoE` layer.
        inputs: Its data, with features.
        rows: Positions of images that it was not trained on.
        seed: Seed of the controls.
    """
    levels, rng = coefficients(head, inputs, rows), np.random.default_rng(seed)
    labels = inputs.data.labels[rows].astype(np.int64)
    hierarchy = len(levels) > 1
    found: Entry = {"usage": _usage(levels, rng), "tops": _tops(levels, labels, rng)}
    found["attributes"] = {}
    for name, column in inputs.data.attributes.items():
        codes = np.asarray(column.codes)[rows].astype(np.int64)
        found["attributes"][name] = _attribute([level.argmax(1) for level in levels], codes)
    if hierarchy:
        found["and"] = and_of_levels(levels, labels, rng)
    found["ablated"] = [
        _ablated(head, inputs, rows, level if hierarchy else None, seed) for level in range(len(levels))
    ]
    if hierarchy and found["usage"]["combinations"]["per_image"] * len(rows) <= MOST_PAIRS:
        found["ablated_combinations"] = _ablated(head, inputs, rows, None, seed)
    return found


def _attribute(choices: Sequence[Ints], codes: Ints) -> Entry:
    """Of pairs of images that are chosen alike, the share with the same value of an attribute, where it is known."""
    known = codes >= 0
    codes, parts = codes[known], [part[known].astype(np.int64) for part in choices]
    return {
        "levels": [agreement(part, codes)[0] for part in parts],
        "all": agreement(_joined(parts), codes)[0],
        "any": agreement(np.zeros_like(codes), codes)[0],
    }


@torch.no_grad()
def coefficients(head: Head, inputs: Inputs, rows: Ints) -> list[Floats]:
    """(images, experts) coefficients of each level."""
    layer: Any = head.layer
    parts = [layer.coefficients(x) for x, _ in layer_batches(head, inputs, rows, 256)]
    return [
        np.concatenate([part[level].numpy() for part in parts]).astype(np.float64) for level in range(len(parts[0]))
    ]


def measure_retrieved(head: Head, inputs: Inputs, rows: Ints) -> Entry:
    """Experts that a PEER layer retrieves on some images: how many, and by how many images."""
    layer: Any = head.layer
    experts = torch.cat([layer.retrieved(x) for x, _ in layer_batches(head, inputs, rows, 256)]).numpy()
    units, counts = np.unique(experts, return_counts=True)
    each = [len(np.unique(row)) for row in experts]
    by = np.bincount(np.searchsorted(units, np.concatenate([np.unique(row) for row in experts])))
    return {
        "distinct": len(units),
        "effective": effective(counts),
        "by_several": int((by >= LEAST).sum()),
        "per_image": float(np.mean(each)),
        "possible": int(layer.peer.num_experts),
        "images": len(experts),
    }
