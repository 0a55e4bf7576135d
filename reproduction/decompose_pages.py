"""The page, figures and numbers of `decompose_study`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mumoe.decomposition.findings import Analysis, Evaluation, Measure, paired
from mumoe.decomposition.measuring import CONSTANT, MEAN, SHUFFLED, ZERO
from mumoe.decomposition.showing import quote
from mumoe.files import to_plain, write_json, write_text
from mumoe.plots.style import COLOURS, GREY, MARKERS, bare_axes, new_figure, save_figure
from mumoe.records import Record, render_table

if TYPE_CHECKING:
    from reproduction.decompose_study import Study

__all__ = ["write_pages"]

Entry = Mapping[str, Any]
PAIRS = (
    ("cp-linear-weights", "skip-transcoder"),
    ("cp-linear-weights", "skip-transcoder-weights"),
    ("cp-linear-weights", "transcoder"),
    ("cp-linear", "transcoder"),
    ("cp-linear", "skip-transcoder"),
    ("cp-linear-pairs", "cp-linear"),
    ("cp-linear-pairs", "skip-transcoder"),
    ("hadamard", "transcoder"),
)
"""Variants whose increases are compared: first minus second."""


def write_pages(entries: Sequence[Entry], study: Study, out: Path) -> None:
    """Write README.md, figures and results.json."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", [_plain(entry) for entry in entries])
    places = list(dict.fromkeys((entry["cell"].layer, entry["cell"].width) for entry in entries))
    parts = [_introduction(entries, study)]
    for layer, width in places:
        chosen = [one for one in entries if (one["cell"].layer, one["cell"].width) == (layer, width)]
        parts.append(_place(chosen, study, layer, width))
    if len({entry["cell"].k for entry in entries}) > 1:
        _pareto(entries, study, places, out)
        parts.append(PARETO)
    parts.append(_levels(entries))
    parts.append(_purity(entries))
    parts.append(_shown(entries, study))
    parts.append(_credits(entries))
    write_text(out / "README.md", "\n".join(part for part in parts if part))


def _plain(entry: Entry) -> dict[str, Any]:
    """An entry as JSON; records as they write themselves, so that one level has no fields of several."""
    records = {name: value.to_dict() for name, value in entry.items() if isinstance(value, Record)}
    for values in records.values():
        values.pop("schema_version")
    return {name: records.get(name, to_plain(value)) for name, value in entry.items()}


def _introduction(entries: Sequence[Entry], study: Study) -> str:
    one: Evaluation = entries[0]["evaluation"]
    minutes = sum(entry["seconds"] for entry in entries) / 60
    tokens = study.settings["tokens"]
    return f"""# One MLP of a real language model as sparse experts

```sh
python -m reproduction.decompose_study --quick --jobs 2    # layer 10, K = 32, one budget
python -m reproduction.decompose_study --jobs 2            # all
```

In SmolLM2-135M-Instruct, the MLP of one layer is replaced by each kind in the table; the rest of the model is
unchanged. Replacements are trained on {tokens:,} tokens of the Brown corpus to reproduce the MLP's output. They are
measured on {one.contexts} contexts of {study.settings["context"]} tokens out of {one.documents} documents, which were
used neither for training nor for any choice. The runs of this page took {minutes:.0f} minutes of one core, measuring
included; capturing the activations is not counted. The language model's matrix products are in
{entries[0]["precision"]}. `results.json` holds the numbers.

*Increase* is the cross-entropy with the replacement minus that of the unchanged model, in nats per token, with a 95 %
interval over documents (means over seeds). *Error* is the squared error over the variance of the MLP's outputs. Two
controls stand beside every kind with experts: a gate that is constant at the training mean, and coefficients taken
from other tokens. The *expert share* is the gate's part of the regained cross-entropy, (increase with a
constant gate - increase) / (increase under zero ablation - increase): a copy of the original MLP behind a gate that
does nothing would have an increase of 0 and a share of 0. *By one expert* is the largest share of tokens that use the
same expert: near 100 % the gate makes no choice there. Learning rates are chosen on validation documents from one
grid for all kinds, with an upper bound on the share of dead experts ({study.settings["most_dead"]:.0%}).
Variants that end in *-weights* start at the weights of the MLP instead of random ones, *hadamard-copy* at a copy of
it: the control that is faithful without experts.
"""


# One layer and budget ---------------------------------------------------------------------------------------


def _place(entries: Sequence[Entry], study: Study, layer: int, width: float) -> str:
    budget = next((one for one in entries if one["cell"].variant == "transcoder"), entries[0])["fitted"][0][
        "parameters"
    ]
    evaluation: Evaluation = entries[0]["evaluation"]
    zero, mean = evaluation.measure(ZERO), evaluation.measure(MEAN)
    lines = [
        f"## Layer {layer}, {budget:,} parameters (a transcoder with {width:g} features per input of the MLP)",
        "",
        f"Base {evaluation.base:.3f} nats per token; zero ablation {_signed(zero)}, mean ablation {_signed(mean)}.",
        "",
    ]
    for k in sorted({one["cell"].k for one in entries if study.variants[one["cell"].variant].sparse}):
        some = [one for one in entries if one["cell"].k == k and study.variants[one["cell"].variant].sparse]
        lines += [f"K = {k}:", "", _table(some), ""]
        lines += [_pairs(some), ""]
    others = [one for one in entries if not study.variants[one["cell"].variant].sparse]
    if others:
        lines += ["Without K:", "", _table(others), ""]
    lines += ["Learning rates tried (first seed, validation):", "", _rates(entries), ""]
    return "\n".join(lines)


def _signed(measure: Measure) -> str:
    low, high = measure.interval or (0.0, 0.0)
    return f"{measure.increase:+.4f} ({low:+.4f} to {high:+.4f})"


def _by_variant(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry["cell"].variant, []).append(entry)
    return found


def _table(entries: Sequence[Entry]) -> str:
    header = ["kind", "seeds", "increase", "constant gate", "shuffled", "expert share", "error", "Jacobian cosine"]
    header += ["twin error", "L0", "used", "by one expert", "parameters", "lr"]
    rows = []
    for name, some in _by_variant(entries).items():
        found: list[Evaluation] = [one["evaluation"] for one in some]
        fitted = some[0]["fitted"][0]
        live = [one.live / one.experts for one in found if one.live is not None]
        most = [one.most for one in found if one.most is not None]
        rows.append(
            [
                name,
                str(len(some)),
                _signed(averaged(found, 0)),
                _control(found, CONSTANT),
                _control(found, SHUFFLED),
                _mean([one.expert_share for one in found], 2),
                _mean([one.measures[0].error for one in found], 4),
                _mean([one.jacobian_cosine for one in found], 2),
                _mean([one.twin_error for one in found], 3),
                _active(found),
                f"{100 * np.mean(live):.0f} % of {_experts(found[0])}" if live else "",
                f"{100 * np.mean(most):.0f} %" if most else "",
                f"{fitted['parameters']:,}",
                f"{fitted['lr']:g}",
            ]
        )
    return render_table(header, rows, "markdown")


def _active(found: Sequence[Evaluation]) -> str:
    """Experts that a token uses, and the combinations of several levels."""
    text = _mean([one.active for one in found], 1)
    pairs = [one.combinations.active for one in found if one.combinations]
    return f"{text}; {np.mean(pairs):.0f} combinations" if pairs else text


def _experts(one: Evaluation) -> str:
    return " + ".join(f"{level.experts:,}" for level in one.levels) or f"{one.experts:,}"


def averaged(found: Sequence[Evaluation], which: int | str) -> Measure:
    """A measure averaged over seeds, its interval over documents."""
    chosen = [one.measures[which] if isinstance(which, int) else one.measure(which) for one in found]
    sums = np.mean([one.sums for one in chosen], axis=0)
    empty = Measure("", None, None, None, tuple(np.zeros_like(sums)))
    value, spread = paired(Measure("", None, None, None, tuple(sums)), empty, found[0].document_tokens)
    return Measure(chosen[0].name, value, spread, None, tuple(sums))


def _control(found: Sequence[Evaluation], name: str) -> str:
    if not any(one.name == name for one in found[0].measures):
        return ""
    return f"{averaged(found, name).increase:+.4f}"


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    text = f"{np.mean(known):.{digits}f}"
    return text if len(known) < 2 else f"{text} ± {np.std(known, ddof=1):.{digits}f}"


def _pairs(entries: Sequence[Entry]) -> str:
    """Paired differences over the same documents."""
    by = _by_variant(entries)
    lines = []
    for first, second in PAIRS:
        if first not in by or second not in by:
            continue
        one, other = (averaged([e["evaluation"] for e in by[name]], 0) for name in (first, second))
        tokens = by[first][0]["evaluation"].document_tokens
        value, (low, high) = paired(one, other, tokens)
        assert one.increase is not None
        assert other.increase is not None
        line = f"- {first} minus {second}: {value:+.4f} ({low:+.4f} to {high:+.4f}, paired by document)"
        if one.increase > 0 and other.increase > 0:
            line += f"; ratio {one.increase / other.increase:.2f}"
        lines.append(f"{line}.")
    return "\n".join(lines)


def _rates(entries: Sequence[Entry]) -> str:
    tuned = [one for one in entries if len(one["fitted"]) > 1]
    rates = sorted({one["lr"] for entry in tuned for one in entry["fitted"]})
    rows = []
    for entry in tuned:
        cells = {one["lr"]: one for one in entry["fitted"]}
        chosen = entry["fitted"][0]["lr"]
        row = [f"{entry['cell'].variant}, K = {entry['cell'].k}"]
        row += [_tried(cells[rate], rate == chosen) if rate in cells else "" for rate in rates]
        rows.append(row)
    return render_table(["kind", *(f"{rate:g}" for rate in rates)], rows, "markdown")


def _tried(one: Mapping[str, Any], chosen: bool) -> str:
    dead = "" if one["never"] is None else f", {100 * one['never']:.0f} % never used"
    text = f"{one['error']:.4f}{dead}"
    return f"**{text}**" if chosen else text


# Over K -----------------------------------------------------------------------------------------------------

PARETO = """## Increase against K

![Increase of the cross-entropy and expert share against K](pareto.svg)

Means over seeds; bars are 95 % intervals over documents. The lower row is the expert share of the same runs.
"""


def _pareto(entries: Sequence[Entry], study: Study, places: Sequence[tuple[int, float]], out: Path) -> None:
    figure = new_figure(4.2 * len(places), 6.4)
    grid = figure.subplots(2, len(places), squeeze=False, sharex=True)
    numbers: list[dict[str, Any]] = []
    names = [name for name, variant in study.variants.items() if variant.sparse]
    for column, (layer, width) in enumerate(places):
        for number, name in enumerate(names):
            points = []
            for k in study.k:
                found = [
                    one["evaluation"]
                    for one in entries
                    if (one["cell"].layer, one["cell"].width, one["cell"].variant, one["cell"].k)
                    == (layer, width, name, k)
                ]
                if not found:
                    continue
                measure = averaged(found, 0)
                assert measure.interval is not None
                share = float(np.mean([one.expert_share for one in found]))
                points.append((k, measure.increase, *measure.interval, share))
                numbers.append(
                    dict(zip(("k", "increase", "low", "high", "share"), points[-1], strict=True))
                    | {"layer": layer, "width": width, "variant": name}
                )
            _line(grid[:, column], np.array(points), name, number)
        grid[0, column].set_title(f"layer {layer}, {width:g}x", fontsize=10)
        grid[1, column].set_xlabel("K")
        for axes in grid[:, column]:
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(study.k), [str(k) for k in study.k])
            axes.minorticks_off()
    grid[0, 0].set_ylabel("increase, nats per token")
    grid[1, 0].set_ylabel("expert share")
    grid[0, 0].legend(frameon=False, fontsize=9)
    save_figure(figure, out / "pareto", numbers)


def _line(axes: Any, points: Any, name: str, number: int) -> None:
    for one in axes:
        bare_axes(one)
    if not len(points):
        return
    colour = COLOURS[number % len(COLOURS)]
    marker = MARKERS[number % len(MARKERS)]
    errors = np.abs(points[:, 2:4].T - points[:, 1])
    k = points[:, 0] * 1.04**number  # side by side, so that every bar is seen
    axes[0].errorbar(k, points[:, 1], yerr=errors, color=colour, marker=marker, label=name, capsize=2)
    axes[1].plot(k, points[:, 4], color=colour, marker=marker)
    axes[0].axhline(0, color=GREY, linewidth=0.8)
    axes[1].set_ylim(-0.05, 1.05)


# Experts ----------------------------------------------------------------------------------------------------


def _levels(entries: Sequence[Entry]) -> str:
    """What each of several levels adds, and which combinations occur."""
    some = [one for one in entries if one["evaluation"].levels]
    if not some:
        return ""
    lines = [
        "## Experts on two levels",
        "",
        "A token uses every combination of one used expert per level. The share of a level is the expert share with "
        "its gate",
        "constant and the other as it is; where it is as large as the expert share, nothing is left without that "
        "level.",
        "",
    ]
    header = ["run", "expert share", "share of level 0", "share of level 1", "live, level 0", "live, level 1"]
    header += ["combinations a token", "that occur", "in tokens", "most used by"]
    rows = []
    for entry in some:
        found: Evaluation = entry["evaluation"]
        pairs = found.combinations
        assert pairs is not None
        row = [str(entry["cell"]), _mean([found.expert_share], 2)]
        row += [_mean([level.share], 2) for level in found.levels]
        row += [f"{level.live:,} of {level.experts:,}" for level in found.levels]
        row += [f"{pairs.active:.0f}", f"{pairs.occurring:,} of {pairs.possible:,}", f"{pairs.rows:,}"]
        rows.append([*row, f"{100 * pairs.most:.0f} %"])
    lines.append(render_table(header, rows, "markdown"))
    lines += [_combined(one) for one in some if "analysis" in one]
    return "\n".join(lines)


def _combined(entry: Entry) -> str:
    """Purity of combinations beside that of their experts."""
    found: Analysis = entry["analysis"]
    if found.combinations is None or found.combinations.purity is None:
        return ""
    one = found.combinations.purity
    rows = [
        ["largest coefficients", f"{one.top:.3f}", *(f"{value:.3f}" for value in one.top_alone)],
        ["random", f"{one.any:.3f}", *(f"{value:.3f}" for value in one.any_alone)],
    ]
    table = render_table(["tokens", "combination", "level 0 alone", "level 1 alone"], rows, "markdown")
    live = found.combinations.live
    return (
        f"Tag purity of {one.count:,} combinations of {entry['cell']}, drawn at random from {live:,} that at least "
        f"{found.least} tokens use, and of their experts alone, over equally many tokens:\n\n{table}"
    )


def _purity(entries: Sequence[Entry]) -> str:
    looked = [one for one in entries if "analysis" in one]
    if not looked:
        return ""
    header = ["run", "live", "tag purity", "of random tokens", "genre purity", "of random tokens"]
    rows = []
    for entry in looked:
        found: Analysis = entry["analysis"]
        cells = [found.tag_purity, found.tag_random, found.genre_purity, found.genre_random]
        row = [f"{entry['cell'].variant}, layer {entry['cell'].layer}", f"{found.live:,} of {found.experts:,}"]
        rows.append(row + ["" if value is None else f"{value:.3f}" for value in cells])
    first: Analysis = looked[0]["analysis"]
    return f"""## Purity

Of the 50 tokens with the largest coefficients of an expert, the share with the most frequent part of speech (or genre),
averaged over experts used by at least {first.least} of {first.tokens:,} held-out tokens; beside it the same for equally
many random tokens, the value for an expert without any preference.

{render_table(header, rows, "markdown")}"""


def _shown(entries: Sequence[Entry], study: Study) -> str:
    found = next(
        (
            one
            for one in entries
            if one["cell"].variant == study.shown_variant and "analysis" in one and one["analysis"].found
        ),
        None,
    )
    if found is None:
        return ""
    analysis: Analysis = found["analysis"]
    correlation = analysis.ablation_correlation
    agree = (
        ""
        if correlation is None
        else f" Over the experts that were ablated, measured and estimated changes correlate by {correlation:.2f}."
    )
    lines = [
        f"## {len(analysis.found)} experts drawn at random",
        "",
        f"Of {study.shown_variant} in layer {analysis.layer}, first seed, out of {analysis.live:,} live ones; none was "
        "picked by hand. "
        "Tokens in brackets have the expert's largest coefficients. *Loss* is the change of the cross-entropy if the "
        f"expert is ablated, estimated from gradients, in nats per 1,000 tokens.{agree}",
        "",
    ]
    for one in analysis.found:
        facts = [f"{100 * one.rate:.2f} % of tokens"]
        if one.tag_share is not None and one.tag_excess is not None:
            facts.append(f"tag {one.tag} {one.tag_share:.2f} (base {one.tag_share - one.tag_excess:.2f})")
        if one.genre_share is not None and one.genre_excess is not None:
            facts.append(f"genre {one.genre} {one.genre_share:.2f} (base {one.genre_share - one.genre_excess:.2f})")
        facts.append(f"loss {one.estimate:+.2f}")
        facts.append("raises " + " ".join(f"`{_code(piece)}`" for piece in one.raises[:4]))
        lines += [f"**Expert {one.expert}**: {'; '.join(facts)}", ""]
        lines += [f"> {_escaped(quote(hit))}  " for hit in one.top[:4]]
        lines.append("")
    return "\n".join(lines)


def _code(piece: str) -> str:
    """A token as inline code: what cannot be printed is escaped, a space alone is shown."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in piece.replace("`", "'"))
    return text if text.strip() else "\u2423"


def _escaped(text: str) -> str:
    for mark in "\\`*_<>[]|#$~":
        text = text.replace(mark, f"\\{mark}")
    return text


def _credits(entries: Sequence[Entry]) -> str:
    return "## Sources\n\n" + "\n".join(f"- {line}" for line in entries[0]["credits"]) + "\n"
