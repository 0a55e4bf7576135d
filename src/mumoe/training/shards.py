"""Parts of a checkpoint in shards: each process writes its own rows of each tensor, and reads those that it needs.

A part, such as the model, is a folder with one safetensors file for each process, written and read by
`torch.distributed.checkpoint`. Its files carry the place of their rows in their metadata, so no pickled index is
written. Any number of processes can read a part, also one that a single process wrote as one file.

torch does not notice missing rows and leaves memory as it was; `survey` checks that every row is there exactly once.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mumoe.errors import reason_of

if TYPE_CHECKING:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

__all__ = ["fill", "read_whole", "shards_of_this_process", "survey", "write_shards"]

FILE_BYTES = 2**26
"""Largest file of a process, unless one tensor is larger."""

Spec = tuple[tuple[int, ...], torch.dtype]


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's shards of a part (collective); a tensor that is whole on all processes is written by one.

    They go to files of `FILE_BYTES`, since torch holds the content of a file twice while it writes it.

    Raises:
        OSError: On all processes, if one cannot write.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _own_errors():
        writer = HuggingFaceStorageWriter(str(folder), _files_of(tensors), save_distributed=True)
        save(_apart(tensors), storage_writer=writer)


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the file of each tensor, from 1, the same on all processes."""
    files: dict[str, int] = {}
    number, held = 1, 0.0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() / torch.distributed.get_world_size()
        if held and held + size > FILE_BYTES:
            number, held = number + 1, 0.0
        files[name], held = number, held + size
    return files


def shards_of_this_process(folder: Path) -> list[Path]:
    """The files that `write_shards` has written for this process, in all parts of a folder."""
    return sorted(folder.glob(f"*/shard-{torch.distributed.get_rank() + 1:05d}-*.safetensors"))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors requires: tied weights are copied."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach()
        local: Any = plain.to_local() if hasattr(plain, "to_local") else plain
        place = local.untyped_storage().data_ptr()
        apart[name] = plain.clone() if place in seen and local.numel() else plain
        seen.add(place)
    return apart


def survey(part: Path) -> dict[str, Spec]:
    """Shape and type of each tensor of a part, a file or a folder of shards.

    Raises:
        ValueError: If rows are missing, or stored twice.
    """
    found: dict[str, Spec] = {}
    for name, stored in _reader(part).read_metadata().state_dict_metadata.items():
        size = tuple(stored.size)  # type: ignore[union-attr]
        _check_rows(name, size, [(tuple(c.offsets), tuple(c.sizes)) for c in stored.chunks])  # type: ignore[union-attr]
        found[name] = (size, stored.properties.dtype)  # type: ignore[union-attr]
    return found


def _check_rows(name: str, size: tuple[int, ...], chunks: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Raise unless chunks are all rows of a tensor, one after another."""
    end = 0
    held = [chunk for chunk in chunks if not size or 0 not in chunk[1]]
    for offsets, sizes in sorted(held):
        if len(offsets) != len(size) or (size and (offsets[0] != end or any(offsets[1:]) or sizes[1:] != size[1:])):
            raise ValueError(f"the rows of {name!r} in its shards do not fit together")
        end += sizes[0] if size else 1
    if end != (size[0] if size else 1) and 0 not in size:
        raise ValueError(f"the shards do not hold every row of {name!r} once")


def read_whole(part: Path) -> dict[str, Tensor]:
    """All tensors of a part, whole and on the CPU.

    Raises:
        ValueError: As `survey`.
    """
    tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in survey(part).items()}
    fill(part, tensors)
    return tensors


def fill(part: Path, targets: Mapping[str, Tensor]) -> None:
    """Read a part into tensors, of which a sharded one is given this process's rows; each process reads for itself.

    Names, shapes and types of the targets must be among those that `survey` finds.

    Raises:
        ValueError: If the files do not hold what they say.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    plain = {name: tensor.detach() for name, tensor in targets.items()}
    with _own_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            load(plain, storage_reader=_reader(part), no_dist=True)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"the shards of {part.name} do not fit together ({reason_of(error, 120)})") from None


def _reader(part: Path) -> HuggingFaceStorageReader:
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    class OneFile(FileSystem):
        """The files of a part that is a single file."""

        def ls(self, path: Any) -> list[str]:
            return [str(path)]

    reader = HuggingFaceStorageReader(str(part))
    if part.is_file():
        reader.fs = OneFile()
    return reader


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the error behind torch's own, whose text is a traceback of every process, and log nothing."""
    from torch.distributed.checkpoint.api import CheckpointException

    log = logging.getLogger("torch.distributed.checkpoint")
    before, log.disabled = log.disabled, True
    try:
        yield
    except CheckpointException as error:
        found = next(iter(error.failures.values()))[0]
        raise ValueError(reason_of(found)) if isinstance(found, AssertionError) else found from None
    finally:
        log.disabled = before
