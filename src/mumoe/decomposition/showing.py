"""Experts of a decomposition in a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from mumoe.decomposition.findings import Analysis, CombinationFinding, ExpertFinding, TokenInContext
from mumoe.printable import printable

__all__ = ["expert_lines", "quote"]


def expert_lines(found: Analysis, count: int, tokens: int = 4) -> Iterator[str]:
    """The experts whose ablation costs most, by estimate, with some of their tokens in context; of experts on several
    levels also the combinations that most tokens use."""
    for one in found.found[:count]:
        yield _headline(one, bool(found.levels))
        for hit in one.top[:tokens]:
            yield f"    {quote(hit)}"
    for pair in found.combinations.found[:count] if found.combinations else ():
        yield _combination(pair)
        for hit in pair.top[:tokens]:
            yield f"    {quote(hit)}"


def _headline(one: ExpertFinding, several: bool) -> str:
    name = f"level {one.level} expert {one.expert}" if several else f"expert {one.expert}"
    parts = [name, f"{100 * one.rate:.1f} % of tokens"]
    if one.tag_share is not None and one.tag_excess is not None:
        parts.append(f"tag {one.tag} {one.tag_share:.2f} (base {one.tag_share - one.tag_excess:.2f})")
    if one.loss is not None:
        parts.append(f"{one.loss:+.2f} nats per 1,000 tokens if ablated")
    elif one.estimate is not None:
        parts.append(f"about {one.estimate:+.2f} nats per 1,000 tokens if ablated")
    if one.raises:
        parts.append("raises " + " ".join(repr(piece) for piece in one.raises[:4]))
    return printable(", ".join(parts))


def _combination(one: CombinationFinding) -> str:
    alone = " and ".join(f"{100 * rate:.1f}" for rate in one.alone)
    parts = [f"combination {' x '.join(map(str, one.experts))}"]
    parts.append(f"{100 * one.rate:.1f} % of tokens (each alone {alone} %)")
    if one.tag_share is not None:
        shares = " and ".join("-" if share is None else f"{share:.2f}" for share in one.tag_alone)
        parts.append(f"tag {one.tag} {one.tag_share:.2f} (each alone {shares})")
    if one.loss is not None:
        parts.append(f"{one.loss:+.2f} nats per 1,000 tokens if ablated")
    return printable(", ".join(parts))


def quote(hit: TokenInContext) -> str:
    """A token in its context on one line."""
    return printable(" ".join(f"{hit.before}[{hit.token}]{hit.after}".split()))
