"""The jobs that are killed: how each is started or continued, opened, and compared.

Each works in a folder of its own, which is the working directory, so that all names in it are relative and equal.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mumoe.training.config import TrainConfig
from soak import small
from soak.steady import contents

__all__ = ["KillJob", "World", "jobs"]

Call = Callable[[], object]

TRAINED = (
    "**/metrics.jsonl",
    "**/run.json",
    "**/checkpoints/step-*/*.safetensors",
    "**/summary.json",
)


def nothing() -> None:
    """No preparation."""


@dataclass(frozen=True)
class KillJob:
    """A job that is killed and continued.

    Attributes:
        go_on: Starts it, or continues what is there, as a user would.
        opens: Opens what is there; it may raise the errors that users see.
        bits: Files that do not depend on where it was killed.
        prepare: What is there before; with `earlier` an earlier result too.
        whole: Files that are always those before it or those after it, never a mixture.
        hint: What the error of `opens` says, if something is missing.
        epochs: Passes, for two kills within one.
        weight: How often it is killed, beside the others.
    """

    name: str
    go_on: Call
    opens: Call
    bits: tuple[str, ...]
    prepare: Call = nothing
    earlier: Call | None = None
    whole: tuple[str, ...] = ()
    hint: str = "mumoe train|does not exist"
    epochs: int = 4
    weight: int = 1

    def kept(self, folder: Path) -> dict[str, str]:
        """What must be the same bits in the end."""
        return contents(folder, *self.bits)


@dataclass(frozen=True)
class World:
    """Data, and finished runs to work on; each is made on first use."""

    folder: Path

    @cached_property
    def features(self) -> Path:
        return small.single_features(self.folder / "single.safetensors")

    @cached_property
    def attributes(self) -> Path:
        return small.two_attributes(self.folder / "attributes.safetensors")

    @cached_property
    def table(self) -> Path:
        return small.pictures(self.folder / "pictures")

    @cached_property
    def files(self) -> Path:
        return small.text_files(self.folder / "texts")

    @cached_property
    def tokens(self) -> Path:
        return small.tokens(self.folder / "tokens", self.files)

    @cached_property
    def llama(self) -> Path:
        return small.language_model(self.folder / "llama")

    @cached_property
    def pictured_run(self) -> Path:
        return self._run("pictured", small.picture_job(self.table))

    @cached_property
    def attributes_run(self) -> Path:
        return self._run("attributes", small.head_job(self.attributes, head="CPMuMoE-r8-e8", checkpoint_every=0))

    def _run(self, name: str, config: TrainConfig) -> Path:
        from mumoe.training import train

        train(config.replace(out=str(self.folder / name)), progress=False)
        return self.folder / name


def jobs(world: World) -> dict[str, KillJob]:
    """All of them by name. Nothing of the world is made before a job needs it."""
    found = [*_training(world), _sweep(world), _analyze(world), _edit(world), _report(world), *_exports(world)]
    return {job.name: job for job in [*found, *_decompositions(world)]}


# Training -----------------------------------------------------------------------------------------------------------


def _training(world: World) -> list[KillJob]:
    both: dict[str, Any] = {"seeds": 2, "against": ("linear",), "epochs": 2}
    made: Mapping[str, tuple[Callable[[], TrainConfig], int, int]] = {
        "train-head": (lambda: small.head_job(world.features), 4, 4),
        "train-seeds": (lambda: small.head_job(world.features, **both), 8, 2),
        "train-frozen": (lambda: small.picture_job(world.table, checkpoint_every=2, cache_dir="cache"), 6, 1),
        "finetune-vit": (lambda: small.finetune_job(world.table, "test_vit"), 3, 1),
        "finetune-cnn": (lambda: small.finetune_job(world.table, "test_efficientnet"), 3, 1),
        "train-mixer": (lambda: small.mixer_job(world.table), 3, 2),
        "train-text": (lambda: small.text_job(world.tokens), 3, 2),
    }
    return [_trained(name, config, epochs, weight) for name, (config, epochs, weight) in made.items()]


def _trained(name: str, config: Callable[[], TrainConfig], epochs: int, weight: int) -> KillJob:
    def go_on() -> None:
        from mumoe.training import resume, train

        if Path("run/config.toml").is_file():
            resume("run", progress=False)
        else:
            train(config().replace(out="run"), progress=False)

    return KillJob(name, go_on, lambda: open_runs("run"), TRAINED, epochs=epochs, weight=weight)


def open_runs(path: str) -> None:
    """Open the runs in a folder, gather what a report shows, and read their newest checkpoints."""
    import mumoe
    from mumoe.reports.gathering import gather

    found: Any = mumoe.load(path, device="cpu", progress=False)
    runs = found.runs if isinstance(found, mumoe.Job) else [found]
    gather([run._stored for run in runs], name="run", path=path)
    for run in runs:
        assert run.step > 0


def _sweep(world: World) -> KillJob:
    def go_on() -> None:
        import mumoe

        settings: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 0.02, "checkpoint_every": 3}
        grid: dict[str, Any] = {"heads": ["CPMuMoE-r4"], "experts": (3, 6), "gates": ("entmax15",), "seeds": 2}
        data = f"features:{world.features}"
        mumoe.sweep(data=data, out="sweep", device="cpu", progress=False, **grid, **settings)

    def opens() -> None:
        for cell in sorted(Path("sweep/cells").glob("*-seed*")):
            if any(not entry.name.startswith(".") for entry in cell.iterdir()):
                open_runs(str(cell))

    bits = tuple(f"sweep/cells/{pattern}" for pattern in (*TRAINED, "**/cell.json"))
    return KillJob("sweep", go_on, opens, (*bits, "sweep/*.json", "sweep/*.png", "sweep/*.svg"), epochs=12, weight=2)


# Looking and editing ------------------------------------------------------------------------------------------------


def _copied(run: Callable[[], Path]) -> Call:
    def prepare() -> None:
        if not Path("run").exists():
            shutil.copytree(run(), "run")

    return prepare


def _analyze(world: World) -> KillJob:
    def analyze(split: str) -> None:
        import mumoe

        mumoe.load("run", device="cpu", progress=False).analyze(split=split, resamples=20, images=2, threshold=0.2)

    def opens() -> None:
        from mumoe.analysis.study import Study

        study = Study.load("run")
        assert study.to_frame() is not None
        open_runs("run")

    return KillJob(
        "analyze",
        lambda: analyze("test"),
        opens,
        ("run/analysis/**/*",),
        _copied(lambda: world.pictured_run),
        lambda: analyze("val"),
        ("run/analysis/**/*",),
        "mumoe analyze|Check the path|analysis",
        weight=2,
    )


def _edit(world: World) -> KillJob:
    def edit(strength: float) -> None:
        import mumoe

        run = mumoe.load("run", device="cpu", progress=False)
        made = run.rewrite("striped", "round", 1, strength=strength, resamples=20)
        Path("run/edits").mkdir(exist_ok=True)
        made.save("run/edits/one.json")
        run.name_expert(1, f"stripes {strength:g}", note="a note")

    def opens() -> None:
        import mumoe

        run = mumoe.load("run", device="cpu", progress=False)
        assert run.notes is not None
        assert run.with_edits("run/edits/one.json").head is not None

    return KillJob(
        "edit",
        lambda: edit(2.0),
        opens,
        ("run/edits/*.json", "run/expert-notes.json"),
        _copied(lambda: world.attributes_run),
        lambda: edit(1.0),
        ("run/edits/*.json",),
        "expected a readable file",
        weight=2,
    )


def _report(world: World) -> KillJob:
    def report(images: int) -> None:
        import mumoe

        mumoe.load("run", device="cpu", progress=False).report("report", max_images=images)

    def opens() -> None:
        from mumoe.files import read_json, recovered

        folder = recovered(Path("report"))
        pages = read_json(folder / "report.json", "report")["pages"]
        assert all((folder / page).is_file() for page in pages)

    def prepare() -> None:
        import mumoe

        _copied(lambda: world.pictured_run)()
        if not Path("run/analysis").exists():
            mumoe.load("run", device="cpu", progress=False).analyze(resamples=20, images=2, threshold=0.2)

    whole = ("report/**/*",)
    return KillJob("report", lambda: report(4), opens, whole, prepare, lambda: report(1), whole, "report", weight=2)


def _exports(world: World) -> list[KillJob]:
    def job(name: str, path: str, weight: int) -> KillJob:
        def export() -> None:
            import mumoe

            mumoe.load("run", device="cpu", progress=False).export(path, overwrite=True)

        def earlier() -> None:
            import mumoe

            run = mumoe.load("run", device="cpu", progress=False)
            run.export(path, edits=run.edit("ablate:1", resamples=0), overwrite=True)

        def opens() -> None:
            import onnx

            import mumoe

            if name == "export-safetensors":
                assert mumoe.load("saved", device="cpu")[0] is not None
            elif path.endswith(".pt2") and Path(path).is_file():
                assert zipfile.ZipFile(path).testzip() is None
            elif Path(path).is_file():
                onnx.load(path)

        files = ("saved/*",) if name == "export-safetensors" else (f"{path.partition('.')[0]}.*",)
        first = earlier if weight > 1 else None  # two exports of a trace take long
        source = _copied(lambda: world.pictured_run)
        return KillJob(name, export, opens, files, source, first, files, "does not exist|no run.json", weight=weight)

    return [job("export-safetensors", "saved", 2), job("export-torch", "model.pt2", 1), job("export-onnx", "m.onnx", 1)]


# Decomposition ------------------------------------------------------------------------------------------------------


def _decompositions(world: World) -> list[KillJob]:
    def decompose() -> None:
        import mumoe
        from mumoe.decomposition import fitting

        fitting.CHECKPOINT_SECONDS = 0.01
        given: dict[str, Any] = {"text": f"folder:{world.files}", "out": "dec", "cache_dir": "cache", "progress": False}
        dec = mumoe.decompose(str(world.llama), **given, **small.DECOMPOSED)
        dec.evaluate(8, jacobians=8)
        dec.analyze(8, ablations=4, least=5)

    def opens() -> None:
        import mumoe

        dec: Any = mumoe.load("dec", device="cpu", progress=False)
        assert dec.replacement is not None
        dec.study()

    def capture() -> None:
        import torch

        from mumoe.decomposition.activations import capture_rows
        from mumoe.decomposition.texts import open_contexts
        from mumoe.models.language import open_language

        language = open_language(str(world.llama), device=torch.device("cpu"))
        contexts = open_contexts(f"folder:{world.files}", language, 9, cache_dir="cache", progress=False)
        rows = capture_rows(
            language, 1, contexts, "train", 1024, precision="float32", cache_dir="cache", progress=False
        )
        assert len(rows)

    cached = ("cache/activations/**/*.bin", "cache/contexts/**/*.npy")
    fitted = (*cached, "dec/*.safetensors", "dec/*.json", "dec/analysis/*.json", "dec/rates/*/*")
    hint = "mumoe decompose|no run.json|does not exist|analyze"
    return [
        KillJob("decompose", decompose, opens, fitted, hint=hint, epochs=3, weight=4),
        KillJob("capture", capture, capture, cached, hint="", weight=2),
    ]
