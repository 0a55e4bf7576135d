"""The icons: which concept each drawing shows, and its pixels, drawn once into the cache.

The drawings come from npm packages in Iconify's format, one for each family of icons. A family names the variants of
an icon by affixes, such as ``heart-fill`` or ``outline-heart``; the rest of the name gives the concept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mumoe.data.cache import sealed_folder
from mumoe.data.drawn_set import digest
from mumoe.data.icon_concepts import CONCEPTS, OTHER_MEANING
from mumoe.data.iconify import Source, read_json, svg_document
from mumoe.data.npm import Package, fetch_packages
from mumoe.data.rasterize import draw_all
from mumoe.errors import require

__all__ = ["FAMILIES", "STYLES", "Family", "Row", "drawings", "read_rows"]

FORMAT = 1
"""Increase it when the drawing or the rows change, so that caches are rebuilt."""

STYLES = ("outline", "filled", "other")
"""``other``: two tones, or broken lines."""


@dataclass(frozen=True)
class Family(Source):
    """One family of icons.

    Attributes:
        plain: Style of a name without any affix.
        marks: Affixes of names and their styles; the first match is used. Its hyphen shows whether it is a prefix or a
            suffix.
        numbered: Whether a digit at the end of a name distinguishes variants of one icon.
    """

    plain: str = "outline"
    marks: tuple[tuple[str, str], ...] = ()
    numbered: bool = False

    def read_name(self, name: str) -> tuple[str, str, str]:
        """The concept, the icon without its variant, and the style; the concept is empty if there is none."""
        icon, style = self._unmarked(name)
        base = re.sub(r"-?\d$", "", icon) if self.numbered else icon
        usual = MEANING.get(icon) or MEANING.get(base, "")
        return OTHER_MEANING.get(f"{self.name}/{icon}", usual), icon, style

    def _unmarked(self, name: str) -> tuple[str, str]:
        for mark, style in self.marks:
            if mark.startswith("-") and name.endswith(mark):
                return name.removesuffix(mark), style
            if mark.endswith("-") and name.startswith(mark):
                return name.removeprefix(mark), style
        return name, self.plain


MEANING = {name: concept for concept, names in CONCEPTS.items() for name in names}
"""Name of an icon -> its concept."""

FAMILIES = (
    Family(
        "tabler",
        Package(
            "@iconify-json/tabler",
            "1.2.41",
            "sha512-GHg+H/cnr0anaCoV383JONiOMxZQOdojWYNLgL3x0fRE07YW7c+AHiYmIhXet//oq26T830qitdP7l43ojiCXw==",
        ),
        "Tabler Icons, Paweł Kuna, https://github.com/tabler/tabler-icons, MIT",
        marks=(("-filled", "filled"),),
        numbered=True,
    ),
    Family(
        "lucide",
        Package(
            "@iconify-json/lucide",
            "1.2.137",
            "sha512-uKz1+tFbv1RFX/mJQNksdnyKJijNfRGSNnxfiyKtr+dLNfA3ERph+IgpXClKGOlV/5GsZwLv2jgJXQ/bjF/JAg==",
        ),
        "Lucide, Lucide Contributors, https://github.com/lucide-icons/lucide, ISC",
    ),
    Family(
        "mdi",
        Package(
            "@iconify-json/mdi",
            "1.2.3",
            "sha512-O3cLwbDOK7NNDf2ihaQOH5F9JglnulNDFV7WprU2dSoZu3h3cWH//h74uQAB87brHmvFVxIOkuBX2sZSzYhScg==",
        ),
        "Material Design Icons, Pictogrammers, https://github.com/Templarian/MaterialDesign, Apache-2.0",
        plain="filled",
        marks=(("-outline", "outline"),),
    ),
    Family(
        "ph",
        Package(
            "@iconify-json/ph",
            "1.2.2",
            "sha512-PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
        ),
        "Phosphor, Phosphor Icons, https://github.com/phosphor-icons/core, MIT",
        marks=(
            ("-fill", "filled"),
            ("-duotone", "other"),
            ("-thin", "outline"),
            ("-light", "outline"),
            ("-bold", "outline"),
        ),
    ),
    Family(
        "bi",
        Package(
            "@iconify-json/bi",
            "1.2.7",
            "sha512-IPz8WNxmLkH1I9msl+0Q4OnmjjvP4uU0Z61a4i4sqonB6vKSbMGUWuGn8/YuuszlReVj8rf+3gNv5JU8Xoljyg==",
        ),
        "Bootstrap Icons, The Bootstrap Authors, https://github.com/twbs/icons, MIT",
        marks=(("-fill", "filled"),),
        numbered=True,
    ),
    Family(
        "ri",
        Package(
            "@iconify-json/ri",
            "1.2.10",
            "sha512-WWMhoncVVM+Xmu9T5fgu2lhYRrKTEWhKk3Com0KiM111EeEsRLiASjpsFKnC/SrB6covhUp95r2mH8tGxhgd5Q==",
        ),
        "Remix Icon, Remix Design, https://github.com/cyberalien/RemixIcon, Apache-2.0",
        marks=(
            ("-fill", "filled"),
            ("-line", "outline"),
        ),
        numbered=True,
    ),
    Family(
        "carbon",
        Package(
            "@iconify-json/carbon",
            "1.2.29",
            "sha512-whk3BOU2jXFtweigCrrrYXT7NzWXGUT1q268vEnySzhfdnwZhQhVlFjhkgZH86JRRx21/CziTmzpAJMe5V2yKQ==",
        ),
        "Carbon, IBM, https://github.com/carbon-design-system/carbon/tree/main/packages/icons, Apache-2.0",
        marks=(("-filled", "filled"),),
    ),
    Family(
        "ion",
        Package(
            "@iconify-json/ion",
            "1.2.7",
            "sha512-ZJNG5kLCbTPr68mdP0jx6Q3lB9AMEQKO2+VvIjuJ2llGFICBLD+cvESn/qGDRIqSfk2D3PrFMf/Qg8WKIUV7cg==",
        ),
        "Ionicons, Ben Sperry, https://github.com/ionic-team/ionicons, MIT",
        plain="filled",
        marks=(
            ("-outline", "outline"),
            ("-sharp", "filled"),
        ),
    ),
    Family(
        "iconoir",
        Package(
            "@iconify-json/iconoir",
            "1.2.11",
            "sha512-clBrCsZPkmdksYOkufVp7aoAU1j1hFQPrLUooWWmoYIMvKskUHQ+IDnwV7agTR+tGYHbud7OP2SRfYEpnqFDNw==",
        ),
        "Iconoir, Luca Burgio, https://github.com/iconoir-icons/iconoir, MIT",
        marks=(("-solid", "filled"),),
    ),
    Family(
        "solar",
        Package(
            "@iconify-json/solar",
            "1.2.13",
            "sha512-/ZWb6xRib6pzxD/qTkKWYhuzSU2yu0bY+EN0spgtz1NM3d5f4eYueQZpL3PfCdsg5uVfm4Ldtt3cAyQL+YI8/Q==",
        ),
        "Solar, 480 Design, https://www.figma.com/community/file/1166831539721848736, CC-BY-4.0",
        marks=(
            ("-bold-duotone", "other"),
            ("-line-duotone", "other"),
            ("-broken", "other"),
            ("-linear", "outline"),
            ("-outline", "outline"),
            ("-bold", "filled"),
        ),
        numbered=True,
    ),
    Family(
        "mingcute",
        Package(
            "@iconify-json/mingcute",
            "1.2.8",
            "sha512-J8VXpRwTpx5yzOzyhx3T4IXnfXIKTWFl3rZ9okcW4c+NMMuwkLvdmM4rkjB83tnYIhg5+kkeMpmw8tvSnxd4rQ==",
        ),
        "MingCute Icon, MingCute Design, https://github.com/Richard9394/MingCute, Apache-2.0",
        marks=(
            ("-fill", "filled"),
            ("-line", "outline"),
        ),
        numbered=True,
    ),
    Family(
        "ic",
        Package(
            "@iconify-json/ic",
            "1.2.4",
            "sha512-pzPMmrZrBQuwT7nmtrYdkttun8KalRGgZPIL1Ny9KpF2zjRGIUPN+npTfuD3lrgO/OnSwAoJWuekQwBpt/Cqrw==",
        ),
        "Google Material Icons, Material Design Authors, https://github.com/material-icons/material-icons, Apache-2.0",
        plain="filled",
        marks=(
            ("outline-", "outline"),
            ("twotone-", "other"),
            ("baseline-", "filled"),
            ("round-", "filled"),
            ("sharp-", "filled"),
        ),
    ),
    Family(
        "heroicons",
        Package(
            "@iconify-json/heroicons",
            "1.2.3",
            "sha512-n+vmCEgTesRsOpp5AB5ILB6srsgsYK+bieoQBNlafvoEhjVXLq8nIGN4B0v/s4DUfa0dOrjwE/cKJgIKdJXOEg==",
        ),
        "Heroicons, Refactoring UI Inc, https://github.com/tailwindlabs/heroicons, MIT",
        marks=(
            ("-16-solid", "filled"),
            ("-20-solid", "filled"),
            ("-solid", "filled"),
        ),
    ),
    Family(
        "fa6-solid",
        Package(
            "@iconify-json/fa6-solid",
            "1.2.4",
            "sha512-LmDNNdJVyvF5mPm1yxWvL8KjCc/E8LzoqnF1LNTVpyY2ZJRUlGOWuPIThdbuFBF2IovgttkIyumhyqfmlHdwKg==",
        ),
        "Font Awesome 6 Solid, Dave Gandy, https://github.com/FortAwesome/Font-Awesome, CC-BY-4.0",
        plain="filled",
    ),
)
"""The families in the order of the set, each pinned to one package by version and hash."""


@dataclass(frozen=True)
class Row:
    """Metadata of one drawing.

    Attributes:
        family: Name of the family.
        name: Name in the family's package.
        concept: What it shows.
        style: One of `STYLES`.
        icon: The name without variant: drawings of one icon in several styles or weights share it.
        place: Row of ``images.npy``.
    """

    family: str
    name: str
    concept: str
    style: str
    icon: str
    place: int


def drawings(root: Path, size: int, progress: bool) -> Path:
    """The folder with ``images.npy``, (n, size, size, 3) uint8, and ``rows.json``; made on first use."""
    require("resvg_py", "demo", "icons")
    concepts = json.dumps([CONCEPTS, OTHER_MEANING])
    versions = [version("resvg-py"), concepts, *(f"{one.package.integrity}{one.marks}" for one in FAMILIES)]
    key = digest(FORMAT, size, *versions)[:16]

    def write(folder: Path) -> None:
        _write(folder, root / "npm", size, progress)

    return sealed_folder(root / "icons" / f"{size}px-{key}", write, who="icons")[0]


def read_rows(folder: Path) -> list[Row]:
    """Metadata of each distinct drawing in the folder, in order."""
    return [Row(*row) for row in json.loads((folder / "rows.json").read_text(encoding="utf-8"))]


def _write(folder: Path, packages: Path, size: int, progress: bool) -> None:
    tarballs = fetch_packages([one.package for one in FAMILIES], packages, who="icons", progress=progress)
    drawn = list(_all_drawings(tarballs))
    draw_all([svg for _, svg in drawn], size, folder / "images.npy", who="icons", progress=progress)
    rows = [row for row, _ in drawn]
    kept = _different(rows, np.load(folder / "images.npy", mmap_mode="r"))
    (folder / "rows.json").write_text(json.dumps([astuple(row) for row in kept]), encoding="utf-8")


def _all_drawings(tarballs: Sequence[Path]) -> Iterator[tuple[Row, str]]:
    """Every family's drawings of the concepts, in the order of its package."""
    place = 0
    for family, tarball in zip(FAMILIES, tarballs, strict=True):
        icons = read_json(tarball, "icons.json", "icons")
        for name in _current(icons):
            concept, icon, style = family.read_name(name)
            svg = svg_document(icons, name) if concept else None
            if svg is not None:
                yield Row(family.name, name, concept, style, icon, place), svg
                place += 1


def _current(icons: Mapping[str, Any]) -> list[str]:
    """Names of the icons that are still part of a package's family, without aliases."""
    return sorted(name for name, icon in icons["icons"].items() if not icon.get("hidden"))


def _different(rows: Sequence[Row], pixels: Any) -> list[Row]:
    """The first of each group of equal images; none of a group that shows several concepts."""
    equal: dict[bytes, list[Row]] = {}
    for row in rows:
        equal.setdefault(hashlib.sha256(pixels[row.place].tobytes()).digest(), []).append(row)
    return [same[0] for same in equal.values() if len({row.concept for row in same}) == 1]
