"""Files for other runtimes: ONNX, torch.export, and a folder of safetensors, each checked before it is kept.

A file is written beside its target under a temporary name, read back, compared with the model on several batch
sizes, and only then renamed: a file with the target's name is complete and reproduces the model's outputs.

- ONNX: one file. The batch is dynamic; the description of inputs and outputs (of an image classifier its
  `preprocessing`) is in its metadata under ``mumoe.preprocessing`` and in a JSON file beside it.
- torch.export: a ``.pt2`` archive of the graph (ATen operators alone, so that loading needs torch and not
  mumoe), the weights as raw bytes, and the description in ``extra/preprocessing.json``. Nothing in it is
  pickled. Even so, `torch.export.load` would unpickle the content of other ``.pt2`` files: load only those from
  sources that you trust.
- safetensors: the folder that `ImageClassifier.from_pretrained`, or of other networks `load_converted`, reads.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from mumoe import __version__
from mumoe.baselines import SparseMoE
from mumoe.calling import checked
from mumoe.data.decode import read_image
from mumoe.deploy.converted import load_converted, save_converted
from mumoe.deploy.export_files import check_ready, export_targets, new_export
from mumoe.deploy.model import HeadModel, ImageClassifier
from mumoe.deploy.predictions import find_images
from mumoe.errors import JobError, UserError, reason_of, require
from mumoe.models.surgery.planning import put_modules
from mumoe.modes import evaluating
from mumoe.records import Record, record

__all__ = ["TOLERANCE", "ExportReport", "export", "preprocessing"]

TOLERANCE = 1e-4
"""Largest difference of a logit that is accepted, relative to the largest logit where that is above 1."""

FORMAT = 1
"""Version of the description; increased when readers of an older version would misread it."""

_DEFAULT_CROP = 0.875
"""timm's default, for models that state none."""

_RESIZES = {"squash": "stretch", "border": "longer side, then pad with the mean"}

BATCHES = (1, 2, 5)
"""Batch sizes that a file is checked on; it was traced with 2."""

MOST_IMAGES = 32
"""Largest number of the user's images that a file is checked on."""

_SHAPES = ({0: torch.export.Dim("batch")},)

Forward = Callable[[Tensor], Tensor]


@record
class ExportReport(Record):
    """The files written, and how far their logits are from the model's.

    Attributes:
        path: The file or folder.
        files: All files written, with their sizes in bytes.
        max_difference: Largest absolute difference of a logit over all checks.
        max_logit: Largest absolute logit among them.
        checked: Number of images checked, random ones and given ones.
    """

    path: str
    files: Mapping[str, int]
    max_difference: float
    max_logit: float
    checked: int

    def headline(self) -> str:
        checked = f"Checked on {self.checked} images: logits differ by at most {self.max_difference:.2g}"
        return f"{checked}; the largest is {self.max_logit:.3g}."

    def rows(self) -> list[dict[str, Any]]:
        return [{"file": file, "bytes": size} for file, size in self.files.items()]


@checked
def export(
    model: nn.Module,
    path: str | Path,
    example: Tensor | None = None,
    *,
    to: str = "",
    images: Sequence[str | Path] | Tensor = (),
    labels: Sequence[str] = (),
    overwrite: bool = False,
) -> ExportReport:
    """Write a model for another runtime, and check the result against the model.

    Args:
        model: An `ImageClassifier`, or any network that maps one tensor to one tensor. It is traced on the CPU in
            evaluation mode; its device and mode are restored afterwards.
        path: The file, or the folder for safetensors.
        example: A batch of inputs, for a network that is not an `ImageClassifier`.
        to: onnx, torch-export or safetensors; if empty, by the extension of `path` (.onnx, .pt2, else
            safetensors). Networks other than an `ImageClassifier` are saved to safetensors as by `save_converted`.
        images: Images, or folders of them, to check an `ImageClassifier` on besides random ones (the first
            `MOST_IMAGES`); or a batch of inputs.
        labels: Names of the outputs, for the description of such a network.
        overwrite: Replace an earlier export.

    Raises:
        UserError: If the format is unknown, a package is missing, the target exists, or an example is needed.
        JobError: If the model cannot be traced, the result computes other logits, or the disk is full.

    >>> mumoe.export(model, "model.onnx", x[:2], labels=["cat", "dog"])  # doctest: +SKIP
    """
    target = Path(path)
    kind = check_ready(to, target, overwrite)
    subject = _subject(model, example, labels)
    if isinstance(model, HeadModel) and (len(images) or kind == "safetensors"):
        what = "images to check on" if len(images) else "safetensors"
        raise UserError(
            f"export: expected a run that knows its backbone for {what}, got one trained on features alone. "
            "Export its head: `to=onnx`, without `images`."
        )
    batches = [*subject.batches, *_preprocessed(model, images)]
    files = export_targets(kind, target)
    with new_export(target, folder=kind == "safetensors") as part:
        report = _check(subject, _WRITERS[kind](subject, part), batches, target)
        if kind == "onnx":
            with new_export(files[1]) as text:
                text.write_text(json.dumps(subject.about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written = sorted(target.iterdir()) if kind == "safetensors" else files
    sizes = {str(file): file.stat().st_size for file in written}
    return ExportReport(str(target), sizes, *report)


def _preprocessed(model: Any, images: Sequence[str | Path] | Tensor) -> list[Tensor]:
    """The images to check on, (B, 3, H, W), as one batch if there are any."""
    if not len(images):
        return []
    if isinstance(images, Tensor):
        return [images]
    transform = model.transform
    return [torch.stack([transform(read_image(path)) for path in find_images(images)[:MOST_IMAGES]])]


# What is exported -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """A model to export.

    Attributes:
        name: A description in words.
        input, output: Names of the graph's input and output.
        about: The description that is written with it.
        example: Two rows to trace it with.
        batches: Inputs to check a file on.
    """

    model: nn.Module
    name: str
    input: str
    output: str
    about: Mapping[str, Any]
    example: Tensor
    batches: Sequence[Tensor]


def _subject(model: nn.Module, example: Tensor | None, labels: Sequence[str]) -> _Subject:
    if isinstance(model, ImageClassifier | HeadModel):
        return _our_subject(model)
    if not isinstance(example, Tensor) or example.ndim < 2 or not len(example):
        raise UserError("export: expected a batch of inputs as example, got none. Give export(model, path, x[:2]).")
    with evaluating(model):
        output = model(example.to(_device(model)))
    if not isinstance(output, Tensor):
        raise UserError(f"export: expected a model that returns one tensor, got {type(output).__name__}. Wrap it.")
    rows = example.detach().cpu()
    batches = [rows[torch.arange(size) % len(rows)] for size in BATCHES]
    kind, dtype = type(model).__name__, str(example.dtype).removeprefix("torch.")
    about = {"input": "inputs", "output": "outputs", "model": kind, "shape": list(example.shape[1:]), "dtype": dtype}
    about |= {"classes": list(labels)} if labels else {}
    return _Subject(model, kind, "inputs", "outputs", about, batches[1], batches)


def _our_subject(model: ImageClassifier | HeadModel) -> _Subject:
    edits: dict[str, Any] = {name: model.about[name] for name in ("edits", "experts") if name in model.about}
    if isinstance(model, ImageClassifier):
        source, below = "images", model.backbone.name
        described = preprocessing(model.backbone.data_config, model.classes, multi_label=model.multi_label)
        described = {"backbone": below, **described}
    else:
        source, width = "features", model.input_size[0]
        below = f"{width} features"
        described = {"num_features": width, "dtype": "float32", **_meaning(model.classes, model.multi_label)}
    about = {"input": source, "output": "logits", "head": model.spec, **edits, **described}
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, *model.input_size, generator=generator) for size in BATCHES]
    example = torch.zeros(2, *model.input_size)
    return _Subject(model, f"{model.spec} on {below}", source, "logits", about, example, batches)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _meaning(classes: Sequence[str], multi_label: bool) -> dict[str, Any]:
    kind = "sigmoid" if multi_label else "softmax"
    return {"classes": list(classes), "multi_label": multi_label, "probabilities": kind}


def preprocessing(data_config: Mapping[str, Any], classes: Sequence[str], *, multi_label: bool) -> dict[str, Any]:
    """The preprocessing of an image before the model, and the meaning of its logits, as plain JSON.

    In order: decode to RGB (upright, transparency on white), `resize`, centre `crop`, multiply by `scale`,
    subtract `mean` and divide by `std` for each channel, lay out as `layout`.

    Args:
        data_config: timm's: input_size, interpolation, mean, std, crop_pct, crop_mode.
        classes: Names of the logits, in order.
        multi_label: Whether each logit is a separate decision (sigmoid), or the classes are exclusive (softmax).
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
        **_meaning(classes, multi_label),
    }


# Writing --------------------------------------------------------------------------------------------------


class _AllExperts(nn.Module):
    """A sparse-moe layer as a sum over all experts, most of them times zero, without data-dependent loops."""

    def __init__(self, layer: SparseMoE) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        y = (x @ weight.flatten(0, 1).mT).unflatten(-1, weight.shape[:2])
        each = y if bias is None else y + bias
        return (each * self.layer.coefficients(x)[0].to(x.dtype).unsqueeze(-1)).sum(-2)


def _traced(subject: _Subject) -> torch.export.ExportedProgram:
    """The graph of a model, with a dynamic batch, on the CPU."""
    model, device = subject.model, _device(subject.model)
    sparse = {name: layer for name, layer in model.named_modules() if name and isinstance(layer, SparseMoE)}
    try:
        put_modules(model, {name: _AllExperts(layer) for name, layer in sparse.items()})
        with evaluating(model):
            return torch.export.export(model.cpu(), (subject.example,), dynamic_shapes=_SHAPES, strict=False)
    except Exception as error:
        raise _untraceable(subject, error) from error
    finally:
        put_modules(model, sparse)
        model.to(device)


def _untraceable(subject: _Subject, error: Exception) -> JobError:
    return JobError(
        f"export: expected a model that torch.export can trace, got {subject.name}: {reason_of(error, 240)}. "
        "Use `to=safetensors`, which needs no trace."
    )


def _onnx_proto(subject: _Subject) -> Any:
    """The model as an ONNX ModelProto, weights inside."""
    program = _traced(subject)
    names: dict[str, Any] = {"input_names": [subject.input], "output_names": [subject.output]}
    try:
        found = torch.onnx.export(program, dynamo=True, dynamic_shapes=_SHAPES, verbose=False, **names)
    except Exception as error:
        raise _untraceable(subject, error) from error
    assert found is not None
    return found.model_proto


def _write_onnx(subject: _Subject, path: Path) -> Forward:
    import onnx

    proto, about = _onnx_proto(subject), subject.about
    proto.producer_name, proto.producer_version = "mumoe", __version__
    proto.doc_string = f"{about.get('head', subject.name)} on {about.get('backbone', subject.input)}"
    properties = {"mumoe.preprocessing": json.dumps(about)}
    properties |= {"mumoe.classes": json.dumps(about["classes"])} if "classes" in about else {}
    onnx.helper.set_model_props(proto, properties)
    if proto.ByteSize() >= 1 << 31:
        raise JobError("export: expected a model below 2 GiB for one ONNX file. Use `to=torch-export`.")
    path.write_bytes(proto.SerializeToString())
    onnxruntime: Any = require("onnxruntime", "export", "export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


class _Sink(io.RawIOBase):
    """A file whose errors are raised by `check`, after everything was written.

    A full disk in the midst of it would end the process: torch writes the end of an archive in a destructor, where
    C++ allows no errors. Given the path instead, torch would also name the folder in the archive after the temporary
    file, and two exports of one model would differ.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True  # torch goes back to the beginning when all is written

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return offset

    def write(self, data: Any, /) -> int:
        try:
            if self._error is None:
                self._file.write(data)
        except OSError as error:
            self._error = error
        return len(data)

    def check(self) -> None:
        """Raise the first error."""
        if self._error is not None:
            raise self._error


def _write_torch(subject: _Subject, path: Path) -> Forward:
    program = _traced(subject)
    program.example_inputs = None
    described = {"preprocessing.json": json.dumps(subject.about, indent=1)}
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.export.save(program, sink, extra_files=described)  # type: ignore[arg-type]
    sink.check()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size and entry.filename.endswith((".pt", ".pkl")):
                raise JobError(f"export: expected an archive without pickles, got {entry.filename}. Use `to=onnx`.")
    return torch.export.load(path).module()


def _write_safetensors(subject: _Subject, path: Path) -> Forward:
    if isinstance(subject.model, ImageClassifier):
        subject.model.save_pretrained(path)
        return type(subject.model).from_pretrained(path)
    return load_converted(save_converted(subject.model, path))


_WRITERS: Mapping[str, Callable[[_Subject, Path], Forward]] = {
    "onnx": _write_onnx,
    "torch-export": _write_torch,
    "safetensors": _write_safetensors,
}
"""Each writes a file or folder and returns the function that it computes."""


# Checking -------------------------------------------------------------------------------------------------


def _check(subject: _Subject, other: Forward, batches: Sequence[Tensor], target: Path) -> tuple[float, float, int]:
    """Largest difference of a logit, largest logit, and number of rows.

    Raises:
        JobError: If logits differ by more than `TOLERANCE`.
    """
    device = _device(subject.model)
    difference = largest = 0.0
    with evaluating(subject.model):
        for batch in batches:
            expected, got = subject.model(batch.to(device)).cpu(), other(batch)
            if expected.shape != got.shape or not bool(got.isfinite().all()):
                raise JobError(
                    f"export: expected finite logits {tuple(expected.shape)} from {target.name}, "
                    f"got {tuple(got.shape)}."
                )
            difference = max(difference, float((expected - got).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    if not difference <= TOLERANCE * max(1.0, largest):
        raise JobError(
            f"export: expected the model's logits from {target.name} within {TOLERANCE:g}, got a difference of "
            f"{difference:.3g} (largest logit {largest:.3g}). Nothing was written."
        )
    return difference, largest, sum(map(len, batches))
