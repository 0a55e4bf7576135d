"""MathJax as a file of the site: fetched once from npm at a pinned version, so that no other host is contacted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mumoe.data.npm import Package, fetch_packages, read_members
from mumoe.files import cache_root, new_file

WHO = "docs"
PACKAGE = Package(
    "mathjax",
    "3.2.2",
    "sha512-Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
)
SCRIPT, LICENSE = "package/es5/tex-svg.js", "package/LICENSE"
"""One file with the TeX reader and its glyphs: it loads nothing else."""


def unpacked() -> Path:
    """The folder that holds ``mathjax/tex-svg.js`` and MathJax's licence, made on the first call."""
    folder = cache_root() / "docs" / f"mathjax-{PACKAGE.version}"
    target = folder / "mathjax" / Path(SCRIPT).name
    if not target.is_file():
        (tarball,) = fetch_packages([PACKAGE], cache_root() / "npm", who=WHO)
        content = read_members(tarball, [SCRIPT, LICENSE], WHO)
        for name in (LICENSE, SCRIPT):
            with new_file(target.with_name(Path(name).name), who=WHO) as part:
                part.write_bytes(content[name])
    return folder


def add_folder(app: Any, config: Any) -> None:
    """Copy the folder with the other static files."""
    config.html_static_path = [*config.html_static_path, str(unpacked())]
    config.mathjax_path = f"mathjax/{Path(SCRIPT).name}"


def setup(app: Any) -> dict[str, bool]:
    """Connect before Sphinx's own extension reads the settings."""
    app.connect("config-inited", add_folder)
    return {"parallel_read_safe": True}
