"""`mumoe export`: a trained run as files for other runtimes, checked against the model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from mumoe.commands.open_run import place, require_run
from mumoe.parsing import Argument

__all__ = ["Options", "run"]

_NAMES = {"onnx": "model.onnx", "safetensors": "safetensors", "torch-export": "model.pt2"}


@dataclass(frozen=True)
class Options:
    """Write a trained model for other runtimes, with its preprocessing, and check what was written."""

    COMMON: ClassVar = {"to": "onnx", "out": "model.onnx", "edits": "blond.json"}

    run: Annotated[str, Argument(positional=True, metavar="RUN")]
    """folder of a run, of the job that holds it, or of a saved model"""
    to: Literal["onnx", "safetensors", "torch-export"]
    """onnx: one file and its preprocessing as JSON; safetensors: a folder with weights, config and model card;
    torch-export: a .pt2 archive"""
    out: Annotated[str, Argument(("-o", "--out"))] = ""
    """file or folder to write (empty: RUN/export/model.onnx and so on)"""
    images: tuple[str, ...] = ()
    """images, or folders of them, to check the file on, in addition to random ones (the first 32)"""
    edits: str = ""
    """file of edits to fold in first; then the empty --out is RUN/export/edited/model.onnx and so on"""
    device: str = "auto"
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    overwrite: bool = False
    """replace what exists"""


def run(options: Options) -> None:
    """Export, and print what was written and how close it is."""
    require_run(options.run)
    from mumoe.deploy.export_files import check_ready

    folder, opened = place(options, "mumoe export", options.edits)
    folder = folder / "export" / ("edited" if options.edits else "")
    target = Path(options.out) if options.out else folder / _NAMES[options.to]
    check_ready(options.to, target, options.overwrite)
    from mumoe.deploy.formats import export

    model = opened()
    if options.to != "safetensors":
        sys.stderr.write(f"Tracing {model.spec}; this may take a minute or two.\n")
    report = export(model, target, to=options.to, images=options.images, overwrite=options.overwrite)
    lines = [f"{path}  {size:,} bytes" for path, size in report.files.items()]
    sys.stdout.write("\n".join([*lines, report.headline()]) + "\n")
