"""Features of a frozen backbone, extracted once and kept on disk.

Training a head on cached features takes seconds, while running the backbone takes minutes. The cache is keyed
by everything that the numbers depend on: the images, the backbone's weights, its preprocessing and input
size, and the number format of the computation. When one of them changes, features are extracted again, into
another folder. Labels and splits are not part of the key for sets whose `open_image` has a `fingerprint`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mumoe.data.base import ImageData
from mumoe.data.cache import damage, sealed_folder
from mumoe.devices import widest
from mumoe.errors import JobError, UserError, unknown_name
from mumoe.files import cache_root, new_array, read_array, recovered
from mumoe.models.shares import Shares, process_count
from mumoe.modes import keeping_modes
from mumoe.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.models.backbones import Backbone

__all__ = ["DTYPES", "Features", "extract_features", "feature_key", "find_features"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMAT = 1
"""Increase it when the same inputs give other numbers, so that older caches are not used."""

FILE = "features.npy"


@dataclass(frozen=True)
class Features:
    """One feature vector per image of a set, in the order of the set.

    Attributes:
        x: (num_images, num_features), read-only, memory-mapped if the file allows it; float32, or the floats of a
            file that was computed elsewhere.
        key: Hex digest of all that the numbers depend on.
        path: The file they are in.
        extracted: How many images this call ran through the backbone.
        reused: How many were in the cache already.
    """

    x: npt.NDArray[Any]
    key: str
    path: Path
    extracted: int = 0
    reused: int = 0


def extract_features(
    data: ImageData,
    backbone: Backbone,
    *,
    cache_dir: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    together: bool = False,
    progress: bool = True,
) -> Features:
    """The backbone's features of every image of a set, from the cache or extracted into it.

    Images are streamed: memory holds a few batches for a set of any size. Two processes that need
    the same features at the same time extract them once. A damaged cache is extracted again, with a warning. The
    mode, device and memory format of the backbone are restored.

    Args:
        data: The images.
        backbone: Its evaluation preprocessing is applied.
        cache_dir: Where features are kept; see `mumoe.files.cache_root`.
        batch_size: Images at a time.
        workers: Processes that open and preprocess images; 0 uses this one.
        device: Where the backbone runs.
        dtype: Number format of the backbone's products. bfloat16 is faster on processors that have it,
            with a precision of two to three digits; the features are stored as float32 either way.
        together: All processes of a distributed job make this call, and share the work; see `mumoe.models.shares`.
        progress: Whether to show progress on stderr.

    Raises:
        UserError: For an unknown dtype or a count out of range.
        JobError: If an image cannot be opened, or the backbone's output is not finite or has another shape.
    """
    _check(batch_size, workers, dtype)
    key = feature_key(data, backbone, dtype)
    folder = cache_root(cache_dir) / "features" / key[:32]
    shape = (len(data), backbone.num_features)
    batches = [list(range(start, min(start + batch_size, len(data)))) for start in range(0, len(data), batch_size)]
    about = {"data": data.name, "images": len(data), "backbone": backbone.name, "dtype": dtype, "key": key}

    def compute(mine: list[list[int]]) -> Generator[Tensor, None, None]:
        opened = _batches(data, backbone.transform(), mine, workers)
        with _running(backbone, torch.device(device), DTYPES[dtype]) as run:
            for rows, images in zip(mine, opened, strict=True):
                yield _checked(run(images), backbone, rows[0])

    def write(outputs: Iterator[Tensor]) -> bool:
        def fill(part: Path) -> None:
            (part / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            _fill(part / FILE, shape, outputs, progress)

        return sealed_folder(folder, fill, who="features")[1]

    if together and process_count() > 1:
        shares = Shares((batch_size, shape[1]), torch.device(device))
        made = _share(shares, folder, compute, write, batches)
    else:
        with contextlib.closing(compute(batches)) as outputs:
            made = write(outputs)
    x: npt.NDArray[np.float32] = read_array(folder / FILE, mapped=True)
    count = len(data)
    return Features(x, key, folder / FILE, extracted=count if made else 0, reused=0 if made else count)


def find_features(key: str, cache_dir: str | Path | None = None) -> npt.NDArray[np.float32] | None:
    """The features that a cache holds under a key, memory-mapped; None if they are missing or damaged."""
    folder = recovered(cache_root(cache_dir) / "features" / key[:32])
    if damage(folder) is not None:
        return None
    try:
        found: npt.NDArray[np.float32] = read_array(folder / FILE, mapped=True)
    except ValueError:
        return None
    return found if found.ndim == 2 and found.dtype == np.float32 else None


def _share(
    shares: Shares,
    folder: Path,
    compute: Callable[[list[list[int]]], Generator[Tensor, None, None]],
    write: Callable[[Iterator[Tensor]], bool],
    batches: list[list[int]],
) -> bool:
    """Extract with all processes if one of them lacks the features; return whether this was needed."""
    here = damage(folder) is None
    if not shares.any(not here):
        return False
    writes = shares.is_first_here(folder.parent) and not here
    with shares.working(), contextlib.closing(compute(shares.mine(batches))) as mine:
        outputs = shares.in_turn(mine, len(batches))
        if writes:
            write(outputs)
        for _ in outputs:
            pass
    return True


def feature_key(data: ImageData, backbone: Backbone, dtype: str = "float32") -> str:
    """Hex digest of everything that the features depend on."""
    images = getattr(data.open_image, "fingerprint", data.fingerprint)
    parts = [FORMAT, images, len(data), backbone.fingerprint, repr(backbone.transform()), dtype]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check(batch_size: int, workers: int, dtype: str) -> None:
    if dtype not in DTYPES:
        raise unknown_name("features", "dtype", dtype, DTYPES)
    if batch_size < 1:
        raise UserError(f"features: expected batch_size of at least 1, got {batch_size}. The default is 64.")
    if workers < 0:
        raise UserError(f"features: expected workers of at least 0, got {workers}. The default is 0.")


class _Opened(Dataset[Tensor | str]):
    """The preprocessed image at an index, or what went wrong with it."""

    def __init__(self, data: ImageData, transform: Callable[[Image.Image], Tensor]) -> None:
        self.open_image, self.ids, self.transform = data.open_image, data.ids, transform

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.transform(self.open_image(index))
        except JobError as error:
            return str(error)
        except Exception as error:
            return (
                f"features: expected an image at {self.ids[index]!r}, got {type(error).__name__}: {error}. "
                "Leave it out of the set or replace it."
            )


def _stack(items: Sequence[Tensor | str]) -> Tensor | str:
    for item in items:
        if isinstance(item, str):
            return item
    return torch.stack([item for item in items if isinstance(item, Tensor)])


def _batches(
    data: ImageData, transform: Callable[[Image.Image], Tensor], batches: list[list[int]], workers: int
) -> Iterator[Tensor]:
    """Preprocessed batches of these images; a JobError names an image that does not open."""
    images = _Opened(data, transform)
    loader: DataLoader[Any] = DataLoader(images, batch_sampler=batches, num_workers=workers, collate_fn=_stack)
    for batch in loader:
        if isinstance(batch, str):
            raise JobError(batch)
        yield batch


@contextlib.contextmanager
def _running(backbone: Backbone, device: torch.device, dtype: torch.dtype) -> Iterator[Callable[[Tensor], Tensor]]:
    """The backbone as a function from a batch to float32 features on the CPU; its state is restored afterwards."""
    tensors = [*backbone.parameters(), *backbone.buffers()]
    before = [(tensor, tensor.data) for tensor in tensors]
    amp = torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode(), amp:
            output: Tensor = backbone(images.to(device, memory_format=torch.channels_last))
        return output.float().cpu()

    try:
        for tensor in tensors:
            layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
            kind = widest(device) if tensor.dtype == torch.float64 else tensor.dtype
            tensor.data = tensor.data.to(device, kind, memory_format=layout)
        with keeping_modes(backbone):
            backbone.eval()
            yield run
    finally:
        for tensor, values in before:
            tensor.data = values


def _checked(output: Tensor, backbone: Backbone, start: int) -> Tensor:
    """A batch of features; an error if it is none, or not finite."""
    if output.shape[1:] != (backbone.num_features,):
        raise JobError(
            f"features: expected {backbone.num_features} features per image from {backbone.name!r}, got an output of "
            f"shape {tuple(output.shape)}. Use a backbone that pools its output."
        )
    if not torch.isfinite(output).all():
        raise JobError(
            f"features: expected finite features from {backbone.name!r}, got nan or inf after image {start}. "
            "Use dtype='float32', or other weights."
        )
    return output


def _fill(path: Path, shape: tuple[int, int], outputs: Iterator[Tensor], progress: bool) -> None:
    """Write the outputs one after the other into a new .npy file of this shape."""
    x = new_array(path, np.float32, shape)
    done = 0
    with Progress("Extracting features", shape[0], enabled=progress) as bar:
        for output in outputs:
            x[done : done + len(output)] = output.numpy()
            done += len(output)
            bar.advance(len(output))
    x.flush()
