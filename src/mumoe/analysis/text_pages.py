"""The text view of a language model's experts: one HTML page, and the heat map that `mumoe.plots` draws.

Both show tokens on a background that is darker where the expert's coefficient is larger. The page opens from disk
without a server or other files.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.analysis.findings import ExpertText, LayerText, TextStudy, TopToken
from mumoe.files import to_plain, write_bytes
from mumoe.plots.token_sheet import heat_map, one_line

__all__ = ["text_page", "write_study", "write_text_view"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
.soft { color: #55606a; font-size: .9rem; } h3 .soft { font-weight: normal; } a { color: inherit; }
.quote { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .15rem 0; }
.quote b { outline: 2px solid #b3261e; outline-offset: -1px; font-weight: inherit; }
.quote i { font-style: inherit; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem .15rem 0; text-align: right; border-bottom: 1px solid #dfe3e6; }
th:first-child, td:first-child { text-align: left; }
"""

_DARK = """
body { color: #e6e8ea; background: #16191c; } .soft { color: #a3adb6; } .quote b { outline-color: #f2938c; }
th, td { border-color: #343b41; }
"""


def _grounds(color: str) -> str:
    """Ten shades of a ground, by the size of a coefficient."""
    return "".join(f".g{n} {{ background: rgb({color} / {n * 0.075:.3f}); }}\n" for n in range(1, 11))


_STYLE += _grounds("11 110 153") + f"@media (prefers-color-scheme: dark) {{{_DARK}{_grounds('38 118 155')}}}\n"

QUOTED = 300
"""Experts of a layer that a page quotes; its table has all of them."""


def write_text_view(study: TextStudy, folder: Path, credits: Sequence[str] = ()) -> tuple[Path, Path]:
    """Write FOLDER/experts.html and experts.png, and experts.json with what they show; returns the first two."""
    page, picture = folder / "experts.html", folder / "experts.png"
    write_study(study, folder)
    write_bytes(page, text_page(study, credits).encode("utf-8"))
    write_bytes(picture, heat_map(study))
    return page, picture


def write_study(study: TextStudy, folder: Path) -> Path:
    """Write FOLDER/experts.json, which `TextStudy.load` reads."""
    numbers = json.dumps(to_plain(study), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    write_bytes(folder / "experts.json", (numbers + "\n").encode("utf-8"))
    return folder / "experts.json"


# The page


def text_page(study: TextStudy, credits: Sequence[str] = (), notes: ExpertNotes | None = None) -> str:
    """The whole page, with the names and notes of experts."""
    title = f"Experts of {Path(study.run).name or 'a language model'} on the {study.split} split"
    called = notes or ExpertNotes()
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in study.remarks),
        f"<p>{study.tokens:,} tokens in {study.windows} windows, {study.bits_per_byte:.3f} bits per byte. "
        f"{_reading(study)}</p>",
    ]
    for layer in study.layers:
        parts.append(f"<h2>{html.escape(layer.layer)}</h2>")
        parts.append(f'<p class="soft">{layer.num_experts:,} experts, {layer.unlisted()}.</p>')
        parts.append(_table(layer, study, called) if _estimated(layer) else _effects(layer, study))
        parts += [_expert(expert, layer.layer, study, called) for expert in layer.by_effect()[:QUOTED]]
        if (rest := len(layer.by_effect()) - QUOTED) > 0:
            parts.append(f'<p class="soft">{rest} more are in the table alone.</p>')
    if credits:
        parts.append(f'<p class="soft">Text: {html.escape("; ".join(credits))}.</p>')
    size = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{size}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}</head><body>{body}</body></html>\n'


def _estimated(layer: LayerText) -> bool:
    return any(expert.estimate is not None for expert in layer.experts)


def _reading(study: TextStudy) -> str:
    """How to read quotes and table."""
    ground = "Each line quotes a token (framed) with one of the expert's largest coefficients"
    if any(_estimated(layer) for layer in study.layers):
        return (
            f"{ground}; the darker the ground, the larger the coefficient, up to the expert's largest. The table says "
            f"by how much the loss rises, in nats per {study.per:,} tokens, when the expert is ablated: estimated for "
            f"all, measured for some (on {study.layers[0].ablated_windows} windows). Purity is the share of the most "
            "frequent label among its top tokens, beside the share of that label among all tokens (base)."
        )
    return (
        f"{ground}, at most one for each window; the darker the ground, the larger the coefficient. The table says by "
        "how much the loss of the tokens of a kind rises, in nats, when the expert is ablated "
        f"(on {study.layers[0].ablated_windows} windows)."
    )


def _effects(layer: LayerText, study: TextStudy) -> str:
    """What ablations cost by kind of token."""
    kinds = [kind for kind in study.classes if study.by_class[kind]["tokens"]]
    rows = [_row("th", ["expert", "all", *kinds, "read by", "mean"])]
    for expert in layer.by_effect():
        if expert.effect is None:
            continue
        changes = [expert.effect.all, *(expert.effect.by_class[kind] for kind in kinds)]
        cells = ["" if change is None else f"{change:+.3f}" for change in changes]
        rows.append(_row("td", [str(expert.expert), *cells, f"{expert.used:.0%}", f"{expert.mean:.3f}"]))
    return f'<div class="wide"><table>{"".join(rows)}</table></div>' if len(rows) > 1 else ""


def _table(layer: LayerText, study: TextStudy, notes: ExpertNotes) -> str:
    """What ablations cost, and purity beside base rates."""
    labels = list(dict.fromkeys(one.of for expert in layer.experts for one in expert.purity))
    heads = ["expert", "estimated", "measured", "used by"]
    heads += [head for of in labels for head in (of, "purity", "base")]
    rows = [_row("th", [*heads, "name"])]
    for place, expert in enumerate(layer.by_effect()):
        purity = {one.of: (one.label, f"{one.share:.2f}", f"{one.base:.2f}") for one in expert.purity}
        cells = [
            _nats(expert.estimate, study),
            _nats(expert.effect.all if expert.effect else None, study),
            f"{expert.used:.1%}",
        ]
        cells += [cell for of in labels for cell in purity.get(of, ("", "", ""))]
        link = (
            f'<td><a href="#{_anchor(expert, layer.layer, study)}">{expert.expert}</a></td>' if place < QUOTED else ""
        )
        number = [] if link else [str(expert.expert)]
        row = _row("td", [*number, *cells, notes.name(expert.expert, layer.layer)])
        rows.append(row.replace("<tr>", f"<tr>{link}", 1))
    return f'<div class="wide" tabindex="0" role="region" aria-label="Experts"><table>{"".join(rows)}</table></div>'


def _anchor(expert: ExpertText, layer: str, study: TextStudy) -> str:
    """What the table links to: ``e17``, or ``e17-1`` of the second of several layers."""
    names = [one.layer for one in study.layers]
    return f"e{expert.expert}" if len(names) == 1 else f"e{expert.expert}-{names.index(layer)}"


def _nats(change: float | None, study: TextStudy) -> str:
    return "" if change is None else f"{change * study.per:+.3f}"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _expert(expert: ExpertText, layer: str, study: TextStudy, notes: ExpertNotes) -> str:
    strongest = max((v, k) for k, v in expert.by_class.items() if v is not None)
    facts = [f"mean coefficient {expert.mean:.3f}, most on {strongest[1]} ({strongest[0]:.3f})"]
    facts += [f"{one.of} {one.label} {one.share:.2f} (base {one.base:.2f})" for one in expert.purity]
    if expert.estimate is not None:
        facts.append(f"about {_nats(expert.estimate, study)} nats per {study.per:,} tokens if ablated")
    entry = notes.of(expert.expert, layer)
    name = f" {html.escape(entry.name)}" if entry.name else ""
    note = f'<p class="soft">{html.escape(entry.note)}</p>' if entry.note else ""
    quotes = "".join(f'<div class="quote">{_quote(token, expert.largest)}</div>' for token in expert.top)
    head = f'Expert {expert.expert}{name} <span class="soft">{html.escape("; ".join(facts))}</span>'
    mark = "" if expert.estimate is None else f' id="{_anchor(expert, layer, study)}"'  # the table links to it
    return f"<h3{mark}>{head}</h3>{note}{quotes}{_logits(expert)}"


def _logits(expert: ExpertText) -> str:
    """The tokens that it raises and lowers."""
    shown = {"Raises": expert.raises, "lowers": expert.lowers}
    words = [
        "{} {}".format(what, " ".join(f"“{one_line(one)}”" for one in ones)) for what, ones in shown.items() if ones
    ]
    return f'<p class="soft">{html.escape("; ".join(words))}</p>' if words else ""


def _quote(token: TopToken, largest: float) -> str:
    spans = []
    for place, (piece, value) in enumerate(zip(token.pieces, token.coefficients, strict=True)):
        grade = math.ceil(10 * min(value / largest, 1.0))
        ground = f" class=g{grade}" if grade else ""
        text, tag = html.escape(one_line(piece)), "b" if place == token.center else "i"
        spans.append(f"<{tag}{ground}>{text}</{tag}>" if ground or tag == "b" else text)
    return "".join(spans)
