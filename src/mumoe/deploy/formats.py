"""Files for other runtimes: ONNX, torch.export, and a folder of safetensors, each checked before it is kept.

A file is written beside its target under a temporary name, read back, compared with the model on several batch
sizes, and only then renamed: what has the target's name is whole and gives the model's numbers.

- ONNX: one file. The batch is dynamic; `preprocessing` is in its metadata under ``mumoe.preprocessing`` and in
  a JSON file beside it.
- torch.export: a ``.pt2`` archive of the graph (ATen operators alone, so that loading needs torch and not
  mumoe), the weights as raw bytes, and the preprocessing in ``extra/preprocessing.json``. Nothing in it is
  pickled. All the same, `torch.export.load` would unpickle what another ``.pt2`` holds: load only those of
  people you trust.
- safetensors: the folder that `ImageClassifier.from_pretrained` reads.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from mumoe.baselines import SparseMoE
from mumoe.errors import JobError, UserError, require, unknown_name
from mumoe.files import OUT, check_writable, new_file, new_folder
from mumoe.models.heads import Head

if TYPE_CHECKING:
    from mumoe.deploy.model import HeadModel, ImageClassifier

__all__ = [
    "TOLERANCE",
    "ExportReport",
    "check_ready",
    "export_model",
    "export_onnx",
    "export_safetensors",
    "export_torch",
    "format_of",
    "preprocessing",
]

TOLERANCE = 1e-4
"""Largest difference of a logit that is accepted, relative to the largest logit where that is above 1."""

_ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ""}
_SAVED = {"model.safetensors", "config.json", "README.md"}

FORMAT = 1
"""Version of the description; raised when a reader of an older one would go wrong."""

_DEFAULT_CROP = 0.875
"""timm's, where a model states none."""

_RESIZES = {"squash": "stretch", "border": "longer side, then pad with the mean"}

BATCHES = (1, 2, 5)
"""Batch sizes of random images that a file is checked on; it was traced with 2."""

MOST_IMAGES = 32
"""Most images of the user's that a file is checked on."""

_SHAPES = ({0: torch.export.Dim("batch")},)

Forward = Callable[[Tensor], Tensor]

Exportable: TypeAlias = "ImageClassifier | HeadModel"


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far its logits are from the model's.

    Attributes:
        path: The file or folder.
        files: All files written, with their bytes.
        max_difference: Largest absolute difference of a logit over all checks.
        max_logit: Largest absolute logit among them.
        checked: Number of images checked, random ones and given ones.
    """

    path: Path
    files: Mapping[str, int]
    max_difference: float
    max_logit: float
    checked: int


def format_of(path: str | Path) -> str:
    """The format that a path's ending names: onnx, torch-export, else safetensors."""
    return next((kind for kind, ending in _ENDINGS.items() if ending and Path(path).suffix == ending), "safetensors")


def export_model(
    model: Exportable,
    kind: str,
    path: str | Path,
    *,
    images: Sequence[str | Path] = (),
    overwrite: bool = False,
) -> ExportReport:
    """Write a model in the format `kind` (onnx, torch-export, safetensors) and check what was written.

    Args:
        model: The model.
        kind: The format.
        path: The file or folder.
        images: Images, or folders of them, to check on besides random ones (the first `MOST_IMAGES`).
        overwrite: Replace what exists.

    Raises:
        UserError: As `check_ready`; for a head without its backbone, if it is to be safetensors or to see images.
        JobError: If the model cannot be traced, what was written computes other logits, or the disk is full.
    """
    write: dict[str, Callable[..., ExportReport]] = {
        "onnx": export_onnx,
        "torch-export": export_torch,
        "safetensors": export_safetensors,
    }
    if kind not in write:
        raise unknown_name("export", "format", kind, write)
    if not hasattr(model, "backbone") and (images or kind == "safetensors"):
        what = "images to check on" if images else "safetensors"
        raise UserError(
            f"export: expected a run that knows its backbone for {what}, got one trained on features alone. "
            "Export its head: --to onnx, without --images."
        )
    return write[kind](model, path, images=_preprocessed(model, images), overwrite=overwrite)


def _preprocessed(model: Any, paths: Sequence[str | Path]) -> Tensor | None:
    """The images to check on, (B, 3, H, W)."""
    if not paths:
        return None
    from mumoe.data.decode import read_image
    from mumoe.deploy.predictions import find_images

    transform = model.transform
    return torch.stack([transform(read_image(path)) for path in find_images(paths)[:MOST_IMAGES]])


def export_onnx(
    model: Exportable, path: str | Path, *, images: Tensor | None = None, overwrite: bool = False
) -> ExportReport:
    """Write one ONNX file and its preprocessing beside it (``model.onnx``, ``model.json``).

    Args:
        model: The model. It is traced on the CPU, and put back on its device.
        path: The file.
        images: (B, 3, H, W) from the model's transform, to check besides random ones.
        overwrite: Replace files that exist.

    Raises:
        UserError: If a package of the export extra is missing, or the target exists.
        JobError: If the model cannot be traced, onnxruntime gives other logits, or the disk is full.
    """
    target = Path(path)
    check_ready("onnx", target, overwrite)
    described = _described(model)
    proto = _onnx_proto(model)
    _describe_onnx(proto, described)
    with _new(target) as part:
        part.write_bytes(_serialized(proto))
        report = _check(model, _onnx_forward(part), images, target)
        beside = target.with_suffix(".json")
        with _new(beside) as text:
            text.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return _sized(report, [target, beside])


def export_torch(
    model: Exportable, path: str | Path, *, images: Tensor | None = None, overwrite: bool = False
) -> ExportReport:
    """Write a ``.pt2`` archive of `torch.export`, loadable without mumoe; arguments as for `export_onnx`.

    Raises:
        UserError: If the target exists.
        JobError: If the model cannot be traced, the file gives other logits, or the disk is full.
    """
    target = Path(path)
    check_ready("torch-export", target, overwrite)
    program = _traced(model)
    program.example_inputs = None
    extra = {"preprocessing.json": json.dumps(_described(model), indent=1)}
    with _new(target) as part:
        torch.export.save(program, part, extra_files=extra)
        _refuse_pickles(part)
        report = _check(model, _torch_forward(part), images, target)
    return _sized(report, [target])


def export_safetensors(
    model: ImageClassifier, path: str | Path, *, images: Tensor | None = None, overwrite: bool = False
) -> ExportReport:
    """Write the folder of `save_pretrained`: model.safetensors, config.json, README.md. As `export_onnx`.

    Raises:
        UserError: If the folder exists.
        JobError: If it gives other logits, or the disk is full.
    """
    target = Path(path)
    check_ready("safetensors", target, overwrite)
    with _new(target, folder=True) as part:
        model.save_pretrained(part)
        report = _check(model, _forward(type(model).from_pretrained(part)), images, target)
    return _sized(report, sorted(target.iterdir()))


# Tracing --------------------------------------------------------------------------------------------------


class _Traceable(nn.Module):
    """A model whose sparse-moe layer, if it has one, is computed over all experts, without loops over data."""

    def __init__(self, model: Exportable) -> None:
        super().__init__()
        self.backbone: nn.Module = getattr(model, "backbone", nn.Identity())
        self.head = model.head
        layer = model.head.layer
        if isinstance(layer, SparseMoE):
            head: Head = model.head
            self.head = Head(_AllExperts(layer), len(head.mean), head.classifier, head.activation)
            self.head.mean, self.head.scale = head.mean, head.scale
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(inputs))
        return logits


class _AllExperts(nn.Module):
    """A sparse-moe layer as a sum over all experts, most of them times zero."""

    def __init__(self, layer: SparseMoE) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        y = (x @ weight.flatten(0, 1).mT).unflatten(-1, weight.shape[:2])
        each = y if bias is None else y + bias
        return (each * self.layer.coefficients(x)[0].to(x.dtype).unsqueeze(-1)).sum(-2)


def _traced(model: Exportable) -> torch.export.ExportedProgram:
    """The graph of a model, with a dynamic batch, on the CPU."""
    example = (torch.zeros(2, *model.input_size),)
    device = _device(model)
    try:
        with torch.no_grad():
            return torch.export.export(_Traceable(model.cpu()), example, dynamic_shapes=_SHAPES, strict=False)
    except Exception as error:
        raise _untraceable(model, error) from error
    finally:
        model.to(device)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _onnx_proto(model: Exportable) -> Any:
    """The model as an ONNX ModelProto, weights inside."""
    program = _traced(model)
    try:
        found = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[_input_name(model)],
            output_names=["logits"],
            dynamic_shapes=_SHAPES,
            verbose=False,
        )
    except Exception as error:
        raise _untraceable(model, error) from error
    assert found is not None
    return found.model_proto


def _untraceable(model: Exportable, error: Exception) -> JobError:
    reason = " ".join(str(error).split())[:240] or type(error).__name__
    return JobError(
        f"export: expected a model that torch.export can trace, got {model.spec} on {_below(model)}: {reason}. "
        "Use --to safetensors, which needs no trace."
    )


def _input_name(model: Exportable) -> str:
    return "images" if hasattr(model, "backbone") else "features"


def _below(model: Any) -> str:
    """What is below the head, in words."""
    return str(model.backbone.name) if hasattr(model, "backbone") else f"{model.input_size[0]} features"


def _described(model: Any) -> dict[str, Any]:
    edits = {"edits": model.about["edits"]} if "edits" in model.about else {}
    names = {"input": _input_name(model), "output": "logits", "head": model.spec, **edits}
    if hasattr(model, "backbone"):
        found = preprocessing(model.backbone.data_config, model.classes, multi_label=model.multi_label)
        return {**names, "backbone": model.backbone.name, **found}
    return {
        **names,
        "num_features": model.input_size[0],
        "dtype": "float32",
        "classes": list(model.classes),
        "multi_label": model.multi_label,
        "probabilities": "sigmoid" if model.multi_label else "softmax",
    }


# Preprocessing in words ------------------------------------------------------------------------------------


def preprocessing(data_config: Mapping[str, Any], classes: Sequence[str], *, multi_label: bool) -> dict[str, Any]:
    """What an image goes through before the model, and what its logits mean, as plain JSON.

    In order: decode to RGB (upright, transparency on white), `resize`, centre `crop`, multiply by `scale`,
    subtract `mean` and divide by `std` for each channel, lay out as `layout`.

    Args:
        data_config: timm's: input_size, interpolation, mean, std, crop_pct, crop_mode.
        classes: Names of the logits, in order.
        multi_label: Whether each logit stands for itself (sigmoid) or they compete (softmax).
    """
    height, width = (int(side) for side in data_config["input_size"][-2:])
    share = data_config.get("crop_pct") or _DEFAULT_CROP
    return {
        "format": FORMAT,
        "color": "RGB",
        "resize": {
            "to": _RESIZES.get(data_config.get("crop_mode") or "center", "shorter side"),
            "height": math.floor(height / share),
            "width": math.floor(width / share),
            "interpolation": data_config["interpolation"],
            "antialias": True,
        },
        "crop": {"from": "center", "height": height, "width": width},
        "scale": 1 / 255,
        "mean": [float(value) for value in data_config["mean"]],
        "std": [float(value) for value in data_config["std"]],
        "layout": "NCHW",
        "dtype": "float32",
        "classes": list(classes),
        "multi_label": multi_label,
        "probabilities": "sigmoid" if multi_label else "softmax",
    }


def _serialized(proto: Any) -> bytes:
    """The bytes of an ONNX file; the format ends at 2 GiB."""
    if proto.ByteSize() >= 1 << 31:
        raise JobError("export: expected a model below 2 GiB for one ONNX file. Take --to torch-export.")
    content: bytes = proto.SerializeToString()
    return content


def _describe_onnx(proto: Any, described: Mapping[str, Any]) -> None:
    """Put the preprocessing into a ModelProto's metadata, and say who made it."""
    import onnx

    from mumoe import __version__

    proto.producer_name, proto.producer_version = "mumoe", __version__
    proto.doc_string = f"{described['head']} on {described.get('backbone', 'features')}"
    found = {"mumoe.preprocessing": json.dumps(described), "mumoe.classes": json.dumps(described["classes"])}
    onnx.helper.set_model_props(proto, found)


def _refuse_pickles(path: Path) -> None:
    """Our own promise: an archive that we write holds no pickle."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size and entry.filename.endswith((".pt", ".pkl")):
                raise JobError(f"export: expected an archive without pickles, got {entry.filename}. Take --to onnx.")


# Checking -------------------------------------------------------------------------------------------------


def _forward(model: nn.Module) -> Forward:
    def forward(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(images)
        return logits

    return forward


def _torch_forward(path: Path) -> Forward:
    module = torch.export.load(path).module()

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return forward


def _onnx_forward(path: Path) -> Forward:
    onnxruntime: Any = require("onnxruntime", "export", "export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {session.get_inputs()[0].name: images.numpy()})[0])

    return forward


def _check(model: Exportable, other: Forward, images: Tensor | None, target: Path) -> ExportReport:
    """Compare logits on random batches, and on given images.

    Raises:
        JobError: If they differ by more than `TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, *model.input_size, generator=generator) for size in BATCHES]
    if images is not None and len(images):
        batches.append(images)
    ours, device = _forward(model), _device(model)
    difference = largest = 0.0
    for batch in batches:
        expected, got = ours(batch.to(device)).cpu(), other(batch)
        if expected.shape != got.shape or not bool(got.isfinite().all()):
            raise JobError(
                f"export: expected finite logits {tuple(expected.shape)} from {target.name}, got {tuple(got.shape)}."
            )
        difference = max(difference, float((expected - got).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    if not difference <= TOLERANCE * max(1.0, largest):
        raise JobError(
            f"export: expected the model's logits from {target.name} within {TOLERANCE:g}, got a difference of "
            f"{difference:.3g} (largest logit {largest:.3g}). Nothing was written."
        )
    return ExportReport(target, {}, difference, largest, sum(map(len, batches)))


def _sized(report: ExportReport, files: Sequence[Path]) -> ExportReport:
    sizes = {str(file): file.stat().st_size for file in files}
    return ExportReport(report.path, sizes, report.max_difference, report.max_logit, report.checked)


# Files ----------------------------------------------------------------------------------------------------


def check_ready(kind: str, path: Path, overwrite: bool) -> None:
    """Refuse, before any work, what cannot end well: a missing package, a wrong ending, a target that exists.

    Args:
        kind: ``onnx``, ``torch-export`` or ``safetensors``.
        path: The file or folder to write.
        overwrite: Whether an earlier export may be replaced; nothing else ever is.

    Raises:
        UserError: If so.
        JobError: If the target cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        require(package, "export", "export")
    ending = _ENDINGS[kind]
    if ending and path.suffix != ending:
        raise UserError(f"export: expected a file that ends in {ending}, got {str(path)!r}. Add {ending}.")
    for target in _targets(kind, path):
        if target.exists() and not overwrite:
            raise UserError(
                f"export: expected a new file or folder, got {str(target)!r}, which exists. "
                "Add --overwrite, or give another --out."
            )
        _check_replaceable(target, folder=not ending)
    check_writable(path, who="export")


def _targets(kind: str, path: Path) -> list[Path]:
    return [path, path.with_suffix(".json")] if kind == "onnx" else [path]


def _check_replaceable(target: Path, *, folder: bool) -> None:
    """Refuse to replace a folder by a file, and any folder that is not a saved model and nothing else."""
    if folder and target.is_dir() and {entry.name for entry in target.iterdir()} <= _SAVED:
        return
    if target.is_dir() or (folder and target.exists()):
        what = "a saved model to replace" if folder else "a file"
        raise UserError(f"export: expected {what}, got {str(target)!r}, which is another. Give another --out.")


def _new(target: Path, *, folder: bool = False) -> AbstractContextManager[Path]:
    """A temporary path beside the target, which takes its place when all went well and vanishes when not."""
    return (new_folder if folder else new_file)(target, who="export", remedy="What was there is kept. " + OUT)
