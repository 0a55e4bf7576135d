"""Icon sets in Iconify's format, from pinned npm packages: their drawings as SVG documents, and their credits.

A package holds ``icons.json``: SVG bodies by name, and aliases that may be turned or mirrored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mumoe.data.npm import Package, read_members
from mumoe.errors import JobError

__all__ = ["Source", "credit_lines", "read_json", "svg_document"]


@dataclass(frozen=True)
class Source:
    """One designer's set of drawings.

    Attributes:
        name: Its name, a value of the attribute for designers, such as ``studio`` or ``family``.
        package: The npm package with the drawings.
        credit: Attribution and licence.
    """

    name: str
    package: Package
    credit: str


def credit_lines(sources: Sequence[Source]) -> tuple[str, ...]:
    """The attribution of each set, with the package that it comes from."""
    return tuple(f"{one.credit} (through npm {one.package.name} {one.package.version})" for one in sources)


def read_json(tarball: Path, name: str, who: str) -> dict[str, Any]:
    """The content of one JSON file of a package.

    Raises:
        JobError: If the tarball cannot be read, lacks the file, or the file is not JSON.
    """
    member = f"package/{name}"
    data = read_members(tarball, [member], who)[member]
    try:
        content: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise JobError(f"{who}: expected JSON in {member} of {tarball}, got {error}.") from error
    return content


def svg_document(icons: Mapping[str, Any], name: str) -> str | None:
    """A whole square SVG document, or None if the package has only a mirrored or turned alias."""
    alias = icons.get("aliases", {}).get(name)
    if alias is not None and {"rotate", "hFlip", "vFlip"} & alias.keys():
        return None
    icon = icons["icons"].get(alias["parent"] if alias is not None else name)
    if icon is None:
        return None
    box = {"left": 0, "top": 0, "width": 16, "height": 16, **icons, **icon}
    side = max(box["width"], box["height"])
    left, top = box["left"] - (side - box["width"]) / 2, box["top"] - (side - box["height"]) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {side:g} {side:g}" width="{side:g}" height="{side:g}">'
        f"{icon['body']}</svg>"
    )
