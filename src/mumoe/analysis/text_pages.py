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

from mumoe.analysis.findings import ExpertText, LayerText, TextStudy, TopToken
from mumoe.files import to_plain, write_bytes
from mumoe.plots.token_sheet import heat_map, one_line

__all__ = ["text_page", "write_text_view"]

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
.soft { color: #55606a; font-size: .9rem; }
.quote { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .15rem 0; }
.quote b { outline: 2px solid #b3261e; outline-offset: -1px; font-weight: inherit; }
.quote i { font-style: inherit; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem .15rem 0; text-align: right; border-bottom: 1px solid #dfe3e6; }
th:first-child, td:first-child { text-align: left; }
"""

_STYLE += "".join(f".g{n} {{ background: rgba(11,110,153,{n * 0.075:.3f}); }}\n" for n in range(1, 11))


def write_text_view(study: TextStudy, folder: Path, credits: Sequence[str] = ()) -> tuple[Path, Path]:
    """Write FOLDER/experts.html and experts.png, and experts.json with what they show; returns the first two."""
    page, picture = folder / "experts.html", folder / "experts.png"
    numbers = json.dumps(to_plain(study), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    write_bytes(folder / "experts.json", (numbers + "\n").encode("utf-8"))
    write_bytes(page, text_page(study, credits).encode("utf-8"))
    write_bytes(picture, heat_map(study))
    return page, picture


# The page


def text_page(study: TextStudy, credits: Sequence[str] = ()) -> str:
    """The whole page."""
    title = f"Experts of {Path(study.run).name or 'a language model'} on the {study.split} split"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{study.tokens:,} tokens in {study.windows} windows, {study.bits_per_byte:.3f} bits per byte. Each line "
        "quotes a token (framed) with one of the expert's largest coefficients, at most one for each window; the "
        "darker the ground, the larger the coefficient. The table says by how much the loss of the tokens of a kind "
        f"rises, in nats, when the expert is ablated (on {study.layers[0].ablated_windows} windows).</p>",
    ]
    for layer in study.layers:
        dead = sum(not expert.top for expert in layer.experts)
        parts.append(f"<h2>{html.escape(layer.layer)}</h2>")
        parts.append(f'<p class="soft">{layer.num_experts} experts, {dead} of which read nothing.</p>')
        parts.append(_effects(layer, study))
        parts += [_expert(expert) for expert in layer.by_effect()]
    if credits:
        parts.append(f'<p class="soft">Text: {html.escape("; ".join(credits))}.</p>')
    head = f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}</head><body>{body}</body></html>\n'


def _effects(layer: LayerText, study: TextStudy) -> str:
    kinds = [kind for kind in study.classes if study.by_class[kind]["tokens"]]
    rows = [_row("th", ["expert", "all", *kinds, "read by", "mean"])]
    for expert in layer.by_effect():
        if expert.effect is None:
            continue
        changes = [expert.effect.all, *(expert.effect.by_class[kind] for kind in kinds)]
        cells = ["" if change is None else f"{change:+.3f}" for change in changes]
        rows.append(_row("td", [str(expert.expert), *cells, f"{expert.used:.0%}", f"{expert.mean:.3f}"]))
    return f'<div class="wide"><table>{"".join(rows)}</table></div>' if len(rows) > 1 else ""


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _expert(expert: ExpertText) -> str:
    strongest = max((v, k) for k, v in expert.by_class.items() if v is not None)
    said = f"mean coefficient {expert.mean:.3f}, most on {strongest[1]} ({strongest[0]:.3f})"
    quotes = "".join(f'<div class="quote">{_quote(token)}</div>' for token in expert.top)
    return f'<h3>Expert {expert.expert} <span class="soft">{html.escape(said)}</span></h3>{quotes}'


def _quote(token: TopToken) -> str:
    spans = []
    for place, (piece, value) in enumerate(zip(token.pieces, token.coefficients, strict=True)):
        grade = math.ceil(10 * min(value, 1.0))
        ground = f" class=g{grade}" if grade else ""
        text, tag = html.escape(one_line(piece)), "b" if place == token.center else "i"
        spans.append(f"<{tag}{ground}>{text}</{tag}>" if ground or tag == "b" else text)
    return "".join(spans)
