"""The counts of the last full run as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mumoe.files import read_json, write_text
from mumoe.records import render_table

__all__ = ["write_page"]


def write_page(out: Path, names: Sequence[str]) -> None:
    """Write README.md from the parts' JSON files, those of earlier runs included."""
    found = [read_json(out / f"{name}.json", "soak") for name in names if (out / f"{name}.json").is_file()]
    rows = [[one["part"], one["about"], str(len(one["faults"])), f"{one['seconds'] / 60:.1f}"] for one in found]
    parts = [
        "# Counts of the last full run\n",
        "`make soak` (or `python -m soak --parts NAME`) makes this page again.\n",
        render_table(["part", "promise", "broken", "minutes"], rows, "markdown"),
        *(_part(one) for one in found),
    ]
    write_text(out / "README.md", "\n".join(parts) + "\n")


def _part(one: Any) -> str:
    lines = [f"\n## {one['part']}\n", f"{one['about']} Seed {one['seed']}.\n"]
    rows = [[label, f"{number:,}"] for label, number in one["counts"].items()]
    rows += [[label, f"{value:.4g}"] for label, value in one["measured"].items()]
    lines.append(render_table(["", ""], rows, "markdown"))
    lines += [f"- Broken: {line}" for line in one["faults"]]
    lines += [f"- Not tried: {line}" for line in one["skipped"]]
    return "\n".join(lines)
