"""What the demo found, in sentences and tables: the page and the terminal show the same.

A sentence is chosen by what was measured. Its control stands in the same table, and where the control is as good, the
sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from mumoe.analysis.hints import specialization_hint
from mumoe.demo.demo_settings import GROUP, STUDIO, DemoSettings
from mumoe.demo.strips import CONTROL, PUREST, Strip

__all__ = ["GROUPS", "Column", "DemoFindings", "Line", "Section", "describe", "strip_text", "strip_title"]

Values = Sequence[float | None]
Numbers = Mapping[str, Any]

GROUPS = {
    "target": f"{GROUP} by {STUDIO}",
    "same_label": f"{GROUP} by other studios",
    "same_studio": f"other emoji by {STUDIO}",
    "rest": "other emoji by other studios",
}
"""The four subgroups of the bias experiment; `target` is the one that is corrected."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        digits: Digits after the decimal point.
        sign: Whether to show a plus.
    """

    name: str
    digits: int = 3
    sign: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a table: for each column one value a seed.

    Attributes:
        name: What was measured.
        cells: (columns) of (seeds); None for a number that does not exist.
        control: Whether it is a control, which stands below what it belongs to.
    """

    name: str
    cells: tuple[Values, ...]
    control: bool = False


@dataclass(frozen=True)
class Section:
    """One claim of the demo with its numbers.

    Attributes:
        title: Heading.
        sentences: What was found.
        note: What the columns mean.
        columns: Of the table.
        lines: Of the table.
    """

    title: str
    sentences: tuple[str, ...]
    note: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class DemoFindings:
    """Everything that the demo says.

    Attributes:
        headline: The main result, in one sentence.
        about: What an expert is.
        method: What was trained and measured.
        choice: How the experts that are shown were chosen.
        bias: What the correction does, in one sentence.
        sections: Claims with their numbers.
    """

    headline: str
    about: str
    method: str
    choice: str
    bias: str
    sections: tuple[Section, ...]

    def sentences(self) -> list[str]:
        """All sentences, the headline first."""
        return [
            self.headline,
            self.about,
            self.method,
            self.bias,
            *(text for part in self.sections for text in part.sentences),
        ]


def describe(settings: DemoSettings, numbers: Numbers, strips: Sequence[Strip]) -> DemoFindings:
    """Words and tables for what was measured.

    Args:
        settings: What was trained.
        numbers: ``accuracy``, ``polysemanticity`` and ``rewriting``, one entry a seed; ``images`` and ``classes``.
        strips: The experts of the card.
    """
    sections = (_accuracy(settings, numbers), _experts(settings, numbers), _bias(numbers))
    about, method = _about(settings, numbers), _method(settings)
    return DemoFindings(
        _headline(settings, strips), about, method, _choice(numbers, strips), _bias_headline(numbers), sections
    )


def strip_title(strip: Strip) -> str:
    """Which unit a strip shows."""
    if strip.kind == CONTROL:
        return "Control: random parts of other experts"
    return f"Expert {strip.unit}" if strip.kind == PUREST else f"Expert {strip.unit}, a typical one"


def strip_text(strip: Strip) -> str:
    """What is lost without the unit of a strip."""
    if strip.lost <= 0:
        return "No class loses a right answer."
    others = "no other class loses any" if not strip.others else f"{strip.others} of all other classes"
    return f"{strip.top}: {strip.lost} of {strip.right} right answers lost; {others}."


# Headline ------------------------------------------------------------------------------------------------------


def _headline(settings: DemoSettings, strips: Sequence[Strip]) -> str:
    purest = next((strip for strip in strips if strip.kind == PUREST), None)
    if purest is None:
        return f"No single one of {settings.many} experts matters to any class here"
    return (
        f"Switch off 1 of {settings.many} experts, and {purest.lost} of {purest.right} right answers for "
        f"“{purest.top}” are lost"
    )


def _about(settings: DemoSettings, numbers: Numbers) -> str:
    return (
        f"A classifier of {numbers['images']:,} emoji in {numbers['classes']} classes. Its last layer is made of "
        f"{settings.many} small linear experts, and a gate chooses a few of them for each image. Every expert can be "
        "looked at, switched off and corrected."
    )


def _method(settings: DemoSettings) -> str:
    seeds = f"{settings.seeds} seed{'s' if settings.seeds != 1 else ''}"
    return (
        "Only the last layer was trained, on features of a fixed network. Numbers are of test images, means over "
        f"{seeds} ± their standard deviation. The split is random: a character of the test images may have been "
        "trained on as another studio drew it."
    )


def _choice(numbers: Numbers, strips: Sequence[Strip]) -> str:
    purest = sum(strip.kind == PUREST for strip in strips)
    strong = numbers["polysemanticity"]["many"][0]["strong"]
    shown = f"the {purest} purest of {strong} experts that matter" if purest else "no expert that matters"
    return (
        f"Images shown are read correctly only with the expert. Chosen: {shown} (seed 0), and for comparison the "
        "expert in the middle of the others and the purest unit of the control."
    )


def _bias_headline(numbers: Numbers) -> str:
    before, after = _over(numbers, "before", "target"), _over(numbers, "experts", "target")
    text = (
        f"Rewriting experts takes {GROUPS['target']} from {mean(before):.2f} to {mean(after):.2f} accuracy without "
        f"training. {_who_paid(numbers)}"
    )
    if min(_gains(numbers)) <= 0:
        return f"{text} Shifting all images alike, the control, does about as well."
    target, overall = (mean(_over(numbers, "blind", key)) for key in ("target", "accuracy"))
    return f"{text} Shifting all images alike, the control, reaches {target:.2f}, at {overall:.3f} of all images."


# Sections ------------------------------------------------------------------------------------------------------


def _accuracy(settings: DemoSettings, numbers: Numbers) -> Section:
    accuracy = numbers["accuracy"]
    names = {
        "linear": "linear layer",
        "accurate": f"{settings.many} experts",
        "many": f"{settings.many} experts, specialized",
        "few": f"{settings.few} experts, specialized",
    }
    lines = [
        Line(text, (accuracy[name], _difference(accuracy, name)), control=name == "linear")
        for name, text in names.items()
    ]
    gap, cost = (
        _minus(accuracy[name], accuracy[other]) for name, other in (("accurate", "linear"), ("many", "accurate"))
    )
    return Section(
        "Is it as accurate as a linear layer?",
        (
            f"{settings.many} experts are {_verdict(gap)} a linear layer: {_spread(accuracy['accurate'])} of the test "
            f"images are right, against {_spread(accuracy['linear'])} ({mean(gap):+.3f}).",
            f"The preset specialized, which makes single experts matter more, reaches {_spread(accuracy['many'])} "
            f"({mean(cost):+.3f}). The experts below are trained with it.",
        ),
        "Difference: from the linear layer of the same seed.",
        (Column("accuracy"), Column("difference", 3, sign=True)),
        tuple(lines),
    )


def _difference(accuracy: Mapping[str, Sequence[float]], name: str) -> Values:
    return [None] * len(accuracy[name]) if name == "linear" else _minus(accuracy[name], accuracy["linear"])


def _verdict(gap: Sequence[float]) -> str:
    clear = len(gap) > 1 and abs(mean(gap)) > 2 * stdev(gap)
    return ("more accurate than" if mean(gap) > 0 else "less accurate than") if clear else "as accurate as"


def _experts(settings: DemoSettings, numbers: Numbers) -> Section:
    few, many = numbers["polysemanticity"]["few"], numbers["polysemanticity"]["many"]
    names = ("strong", "strong_images", "mean_polysemanticity", "mean_polysemanticity_strong")

    def line(name: str, entries: Sequence[Numbers], control: bool) -> Line:
        return Line(name, tuple([entry[key] for entry in entries] for key in names), control)

    lines = []
    for count, entries in ((settings.many, many), (settings.few, few)):
        lines.append(line(f"{count} experts", entries, False))
        lines.append(line("control: random parts, same size", [entry["control"] for entry in entries], True))
    return Section(
        "Do experts stand for something?",
        tuple(
            text for text in (_about_strong(settings, many), _about_purity(settings, few, many), _hint(many)) if text
        ),
        f"Matter: without the expert some class loses at least half of its right answers, and at least "
        f"{settings.least_lost}. Images: those behind these losses. Polysemanticity: 0 if an expert answers for one "
        "class alone. Control: as many parts of experts, dealt to units at random.",
        (
            Column("experts that matter", 1),
            Column("images", 1),
            Column("polysemanticity"),
            Column("polysemanticity of those that matter"),
        ),
        tuple(lines),
    )


def _about_strong(settings: DemoSettings, many: Sequence[Numbers]) -> str:
    own, control = [e["strong"] for e in many], [e["control"]["strong"] for e in many]
    text = f"{_spread(own, 1)} of {settings.many} experts matter on their own"
    if min(own) > max(control):
        return f"{text}; of as many units made of random parts of experts, {_spread(control, 1)} do."
    return f"{text}, but the control is as good: {_spread(control, 1)} of its units do."


def _about_purity(settings: DemoSettings, few: Sequence[Numbers], many: Sequence[Numbers]) -> str:
    p_few, p_many = (_known(entries, "mean_polysemanticity") for entries in (few, many))
    c_few, c_many = (_known([e["control"] for e in part], "mean_polysemanticity") for part in (few, many))
    if not p_few or not p_many:
        return "Whether more experts are purer is not known: too few change any answer."
    falls = max(p_many) < min(p_few)
    text = (
        f"More experts are {'purer' if falls else 'not clearly purer'}: mean polysemanticity {mean(p_few):.2f} with "
        f"{settings.few} and {mean(p_many):.2f} with {settings.many}"
    )
    if c_few and c_many:
        alike = falls and mean(c_many) < mean(c_few)
        text += f"{', but so is the control' if alike else '; the control'}: {mean(c_few):.2f} and {mean(c_many):.2f}"
    return f"{text}."


def _hint(many: Sequence[Numbers]) -> str:
    controls = [entry["control"] for entry in many]
    p, control_p = (_known(entries, "mean_polysemanticity") for entries in (many, controls))
    strong, control_strong = (mean(entry["strong"] for entry in entries) for entries in (many, controls))
    return specialization_hint(mean(p) if p else None, mean(control_p) if control_p else None, strong, control_strong)


def _bias(numbers: Numbers) -> Section:
    names = {"before": "before", "experts": "experts rewritten", "blind": "control: all images shifted alike"}
    keys = (*GROUPS, "accuracy", "score")
    lines = [
        Line(text, tuple(_over(numbers, name, key) for key in keys), control=name == "blind")
        for name, text in names.items()
    ]
    entries = numbers["rewriting"]
    before, after, blind = (_spread(_over(numbers, name, "target")) for name in names)
    return Section(
        "Can a bias be corrected?",
        (
            f"{GROUPS['target']}, of which training saw {entries[0]['support']} images, are recognized with accuracy "
            f"{before}. Rewriting experts, without training, raises that to {after}. {_who_paid(numbers)}",
            f"Shifting the answer of every image alike, the control, raises it to {blind}. {_precision(numbers)}",
        ),
        "Accuracy of the yes/no question whether an image shows an animal or plant, by subgroup. The strength of each "
        "correction was chosen on validation images. Score: what the first group gains less what the others move.",
        (*(Column(name) for name in GROUPS.values()), Column("all images"), Column("score", 3, sign=True)),
        tuple(lines),
    )


def _precision(numbers: Numbers) -> str:
    gains = _gains(numbers)
    text = f"score {_spread(_over(numbers, 'experts', 'score'))} against {_spread(_over(numbers, 'blind', 'score'))}"
    if min(gains) > 0:
        return f"Experts move others less in every seed: {text}."
    better = sum(gain > 0 for gain in gains)
    return f"Experts are no clear gain over it (better in {better} of {len(gains)} seeds): {text}."


def _gains(numbers: Numbers) -> list[float]:
    """How much better the score of the experts is than that of the control, by seed."""
    return _minus(_over(numbers, "experts", "score"), _over(numbers, "blind", "score"))


def _who_paid(numbers: Numbers) -> str:
    """The other subgroup that loses most, and all images."""
    ends = {key: [mean(_over(numbers, name, key)) for name in ("before", "experts")] for key in (*GROUPS, "accuracy")}
    worst = min((key for key in GROUPS if key != "target"), key=lambda key: ends[key][1] - ends[key][0])
    overall = "all images {:.3f} to {:.3f}".format(*ends["accuracy"])
    if ends[worst][1] >= ends[worst][0]:
        return f"No other group pays; {overall}."
    before, after = ends[worst]
    return f"Who pays: {GROUPS[worst]} {before:.3f} to {after:.3f}; {overall}."


# Numbers -------------------------------------------------------------------------------------------------------


def _over(numbers: Numbers, method: str, key: str) -> list[Any]:
    return [entry[method].get(key) for entry in numbers["rewriting"]]


def _known(entries: Sequence[Numbers], name: str) -> list[float]:
    return [entry[name] for entry in entries if entry[name] is not None]


def _minus(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ours, theirs, strict=True)]


def _spread(values: Sequence[float | None], digits: int = 3) -> str:
    known = [value for value in values if value is not None]
    text = f"{mean(known):.{digits}f}"
    return f"{text} ± {stdev(known):.{digits}f}" if len(known) > 1 else text
