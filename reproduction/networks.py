"""Shared by the recipes of whole networks: train from TOML or resume, a table, curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import mumoe
from mumoe import UserError
from mumoe.files import write_text
from mumoe.plots.style import save_figure
from mumoe.plots.training_curves import Steps, curves_figure
from mumoe.results import RunResult, TrainResult
from mumoe.training import read_config

__all__ = ["RECIPES", "curve_of", "entries", "spread_text", "train_recipe", "write_results"]

RECIPES = Path(__file__).parent
"""Folder of the TOML files."""


def train_recipe(config: str | Path, work: str | Path, *, progress: bool = True) -> TrainResult:
    """Train the settings of a TOML file in a folder, or resume its runs; finished runs are only read.

    Raises:
        UserError: If the file is wrong, or the folder holds runs of other settings.
    """
    wanted, folder = read_config(config), Path(work)
    if not (folder / "config.toml").is_file():
        return mumoe.train(**{**asdict(wanted), "out": str(folder)}, progress=progress).result
    if read_config(folder / "config.toml") != wanted:
        raise UserError(
            f"{folder}: expected runs with the settings of {config}, got others. Give another --work, or delete it."
        )
    return mumoe.resume(folder, progress=progress).result


def curve_of(run: str | Path, key: str = "loss") -> Steps:
    """(step, value) of a run's log."""
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = (json.loads(line) for line in lines)
    return [(int(row["step"]), float(row[key])) for row in rows if key in row]


def entries(result: TrainResult) -> dict[str, dict[str, Any]]:
    """Per network its parameters, seeds, seconds and, by split, what was measured on every seed."""
    found: dict[str, dict[str, Any]] = {}
    for run in sorted(result.runs, key=lambda run: run.seed):
        entry = found.setdefault(run.head, {"parameters": run.parameters, "seeds": [], "seconds": []})
        entry["seeds"].append(run.seed)
        entry["seconds"].append(run.seconds)
        for split in run.evaluations:
            _add(entry.setdefault(split, {}), run, split)
    return found


def _add(entry: dict[str, list[float]], run: RunResult, split: str) -> None:
    values = run.evaluations[split]
    for name in ("loss", "accuracy", "bits_per_byte"):
        value = getattr(values, name)
        if value is not None:
            entry.setdefault(name, []).append(value)


def spread_text(values: Sequence[float], style: str) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):{style}} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):{style}}"


def table(found: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, str]], base: str) -> str:
    """A markdown table of networks; the last column is the first measure minus that of `base`, paired by seed.

    Args:
        found: What `entries` gives.
        columns: Title -> (split, measure).
        base: The network to compare with.
    """
    first = next(iter(columns.values()))
    titles = ["MLPs", "parameters", *columns, f"minus {base}"]
    rows = [f"| {' | '.join(titles)} |", "|---|" + "--:|" * (len(titles) - 1)]
    for name, entry in found.items():
        cells = [name, f"{entry['parameters']:,}"]
        cells += [spread_text(entry[split][measure], ".3f") for split, measure in columns.values()]
        gaps = [a - b for a, b in zip(entry[first[0]][first[1]], found[base][first[0]][first[1]], strict=True)]
        cells.append("" if name == base else spread_text(gaps, "+.3f"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def write_results(
    out: Path, result: TrainResult, columns: Mapping[str, tuple[str, str]], *, title: str, value: str, config: Path
) -> dict[str, Any]:
    """Write results.json, table.md and the curves' figure; returns what results.json holds."""
    out.mkdir(parents=True, exist_ok=True)
    facts = mumoe.load(result.runs[0].run, progress=False).facts
    made = {name: facts[name] for name in ("versions", "commit")}
    found: dict[str, Any] = {"recipe": config.name, **made, "networks": entries(result)}
    write_text(out / "results.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "table.md", table(found["networks"], columns, "mlp"))
    curves = {head: [curve_of(run.run) for run in result.runs if run.head == head] for head in found["networks"]}
    save_figure(curves_figure(curves, title=title, value=value), out / "curves", curves)
    return found
