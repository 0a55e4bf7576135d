"""Check where an export may be written, before any work and without torch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from mumoe.errors import UserError, require, unknown_name
from mumoe.files import OUT, check_writable, new_file, new_folder

__all__ = ["FORMATS", "check_ready", "export_targets", "new_export"]

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ""}
"""Format -> extension of its file; a folder has none."""

_SAVED = {"model.safetensors", "config.json", "README.md"}


def check_ready(to: str, path: Path, overwrite: bool) -> str:
    """Reject, before any work, an export that cannot succeed: a missing package, a wrong extension, an existing target.

    Args:
        to: ``onnx``, ``torch-export`` or ``safetensors``; if empty, by the extension of the path.
        path: The file or folder to write.
        overwrite: Whether an earlier export may be replaced; nothing else is ever replaced.

    Returns:
        The format.

    Raises:
        UserError: In these cases.
        JobError: If the target cannot be written.
    """
    kind = to or next((name for name, ending in FORMATS.items() if ending and path.suffix == ending), "safetensors")
    if kind not in FORMATS:
        raise unknown_name("export", "format", kind, FORMATS)
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        require(package, "export", "export")
    ending = FORMATS[kind]
    if ending and path.suffix != ending:
        raise UserError(f"export: expected a file that ends in {ending}, got {str(path)!r}. Add {ending}.")
    for target in export_targets(kind, path):
        if target.exists() and not overwrite:
            raise UserError(
                f"export: expected a new file or folder, got {str(target)!r}, which exists. "
                "Pass `overwrite=True`, or give another path."
            )
        _check_replaceable(target, folder=not ending)
    check_writable(path, who="export")
    return kind


def export_targets(kind: str, path: Path) -> list[Path]:
    """The files, or the folder, that an export writes."""
    return [path, path.with_suffix(".json")] if kind == "onnx" else [path]


def _check_replaceable(target: Path, *, folder: bool) -> None:
    """Refuse to replace a folder by a file, and any folder that is not a saved model and nothing else."""
    if folder and target.is_dir() and {entry.name for entry in target.iterdir()} <= _SAVED:
        return
    if target.is_dir() or (folder and target.exists()):
        what = "a saved model to replace" if folder else "a file"
        raise UserError(f"export: expected {what}, got {str(target)!r}, which is something else. Give another path.")


def new_export(target: Path, *, folder: bool = False) -> AbstractContextManager[Path]:
    """A temporary path beside the target, which replaces it on success and is removed on failure."""
    return (new_folder if folder else new_file)(target, who="export", remedy="Existing files are kept. " + OUT)
