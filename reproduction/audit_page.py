"""The page of `audit_planted`: the place of the planted subgroup by seed and audit, beside the controls."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mumoe.records import render_table

__all__ = ["FIRST", "page"]

FIRST = 9
"""Seeds of earlier measurements; the others were audited as a whole after everything was chosen."""

KINDS = {
    "experts": "experts",
    "attributes": "named attributes",
    "by gap": "experts, by gap, not merged",
    "significant first": "attributes, significant first, not merged",
    "untrained gate": "untrained gate",
    "k-means": "k-means",
    "shuffled": "shuffled coefficients",
}
"""The audits, and how the page names them."""

Found = Sequence[Mapping[str, Any]]


def page(about: Mapping[str, Any], planted: Found, full: Found) -> str:
    """The results in words and tables."""
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
    gap = statistics.fmean(item["accuracy_others"] - item["accuracy"] for item in planted)
    lines = [
        "# Audit of a planted bias",
        "",
        "Animals and plants drawn by OpenMoji are nearly absent from training. At which place do audits of the trained "
        "head rank them? A finding counts as the planted subgroup if most of its rows are in it. Ranked by excess / "
        f"(rows + {about['score_prior']}), groups that overlap by {about['merge']:g} of the smaller one merged. "
        f"The planted gap in accuracy is {gap:.3f} on average.",
        "",
        f"Settings: {settings}.",
        "",
        *_ranks(planted, "held_out", "Validation and test rows together"),
        *_ranks(planted, "test", "Test rows alone"),
        *_full(full),
        *_known(planted),
        *_validation(planted),
        "## The first finding of each planted run",
        "",
        *(
            f"- seed {item['seed']}: {_first(item, 'experts')}; by name: {_first(item, 'attributes')}"
            for item in planted
        ),
    ]
    return "\n".join(lines) + "\n"


def _first(item: Mapping[str, Any], kind: str) -> str:
    return str(item["held_out"][kind]["first"])


def _rank(found: Mapping[str, Any]) -> str:
    """A place, with a star if the finding is significant."""
    return "-" if found["rank"] is None else f"{found['rank']}{'*' if found['finding_significant'] else ''}"


def _ranks(planted: Found, split: str, title: str) -> list[str]:
    header = ["seed", "rows", "accuracy", "others of its label", *KINDS.values()]
    rows = [
        [
            str(item["seed"]),
            str(item["rows"]),
            f"{item['accuracy']:.3f}",
            f"{item['accuracy_others']:.3f}",
            *(_rank(item[split][kind]) for kind in KINDS),
        ]
        for item in planted
    ]
    return [
        f"## {title}",
        "",
        "Place of the planted subgroup (* significant; - no finding is mostly in it). Rows and accuracies are those of "
        "validation and test.",
        "",
        render_table(header, rows, "markdown"),
        *_summary(planted, split),
    ]


def _summary(planted: Found, split: str) -> list[str]:
    """Median, worst and top three by group of seeds; a place that does not exist counts as the last of all."""
    parts = {f"seeds 0 to {FIRST - 1}": planted[:FIRST], f"seeds from {FIRST}": planted[FIRST:]}
    if len(planted) > FIRST:
        parts[f"all {len(planted)} seeds"] = planted
    rows = []
    for name, items in parts.items():
        for kind, words in KINDS.items() if items else ():
            places = [item[split][kind]["rank"] or item[split][kind]["findings"] + 1 for item in items]
            significant = statistics.fmean(item[split][kind]["significant"] for item in items)
            top = sum(place <= 3 for place in places)
            row = [name, words, f"{statistics.median(places):g}", str(max(places)), f"{top} of {len(items)}"]
            rows.append([*row, f"{significant:.1f}"])
    header = ["", "groups by", "median place", "worst", "first three", "significant findings, mean"]
    return [render_table(header, rows, "markdown")]


def _full(full: Found) -> list[str]:
    header = ["seed", "accuracy", "others of its label", "experts", "named attributes"]
    rows = [
        [
            str(item["seed"]),
            f"{item['accuracy']:.3f}",
            f"{item['accuracy_others']:.3f}",
            *(_rank(item["held_out"][kind]) for kind in ("experts", "attributes")),
        ]
        for item in full
    ]
    title = "## Control: the same head, trained with the subgroup's full support"
    return [title, "", render_table(header, rows, "markdown")]


def _known(planted: Found) -> list[str]:
    rows = []
    for name in ("features", "coefficients"):
        values = [item["known"][name] for item in planted]
        rows.append([name, f"{min(values):.3f}", f"{statistics.median(values):.3f}", f"{max(values):.3f}"])
    return [
        "## What the gate hides",
        "",
        "Area under the ROC curve, on test rows, of a linear probe (logistic regression on the training rows) for "
        "drawings by OpenMoji, over the seeds:",
        "",
        render_table(["probe of", "least", "median", "most"], rows, "markdown"),
    ]


def _validation(planted: Found) -> list[str]:
    """The choice of order and overlap."""
    rows = []
    for kind in ("experts", "attributes"):
        for name in planted[0]["validation"][kind]:
            places = [item["validation"][kind][name] for item in planted]
            known = [place or 10_000 for place in places]
            words = {"0": "not merged", "significant first": "significant first, not merged"}
            row = [KINDS[kind], words.get(name, f"merged from {name}"), f"{statistics.median(known):g}"]
            rows.append([*row, str(sum(place <= 3 for place in known)), ", ".join(str(n or "-") for n in places)])
    return [
        "## How the order and the overlap were chosen",
        "",
        f"Audits of validation rows alone (groups of at least 5 rows), all {len(planted)} seeds:",
        "",
        render_table(["groups by", "order", "median place", "first three", "places by seed"], rows, "markdown"),
    ]
