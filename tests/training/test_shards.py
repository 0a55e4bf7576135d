"""A part in shards: read by any process, and refused unless every row is there once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint import make

from mumoe.training import state
from mumoe.training.checkpoint import CheckpointError, open_stored, read, write
from mumoe.training.shards import fill, read_whole, survey


def shard(path: Path, tensors: dict[str, torch.Tensor], begin: dict[str, int]) -> None:
    """A file as `HuggingFaceStorageWriter` writes it; `begin` is the first row of each tensor."""
    offsets = {
        name: {"saved_offsets": [begin.get(name, 0), *[0] * (t.ndim - 1)][: t.ndim]} for name, t in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"})


def split(part: Path, tensors: dict[str, torch.Tensor], skip: int = 0) -> None:
    """A part in two files: most rows, and, `skip` rows later, the rest; scalars in the second."""
    cut = {name: -(-len(t) * 2 // 3) if t.ndim else 0 for name, t in tensors.items()}
    first = {name: t[: cut[name]].clone() for name, t in tensors.items() if t.ndim}
    rest = {name: t[cut[name] + skip :].clone() if t.ndim else t for name, t in tensors.items()}
    begin = {name: start + skip for name, start in cut.items()}
    shard(part / "shard-00001-model-00001-of-00001.safetensors", first, {})
    shard(part / "shard-00002-model-00001-of-00001.safetensors", rest, begin)


TENSORS = {"w": torch.arange(12.0).reshape(4, 3), "b": torch.arange(2), "s": torch.tensor(3.0), "one": torch.ones(1)}


def test_a_part_is_read_whole_or_into_tensors(tmp_path):
    split(tmp_path / "model", TENSORS)
    assert survey(tmp_path / "model") == {name: (tuple(t.shape), t.dtype) for name, t in TENSORS.items()}
    found = read_whole(tmp_path / "model")
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    save_file(TENSORS, tmp_path / "model.safetensors")
    target = {"w": torch.zeros(4, 3), "s": torch.zeros(())}
    fill(tmp_path / "model.safetensors", target)
    assert torch.equal(target["w"], TENSORS["w"])
    assert target["s"] == 3


def test_a_shard_that_holds_less_than_is_asked_for_is_refused(tmp_path):
    split(tmp_path / "model", {"w": torch.ones(4, 3)})
    with pytest.raises(ValueError, match=r"Size mismatch|do not fit together"):
        fill(tmp_path / "model", {"w": torch.zeros(5, 3)})


def test_rows_that_are_missing_or_there_twice_are_refused(tmp_path):
    split(tmp_path / "gap", {"w": torch.ones(4, 3)}, skip=1)  # the last row is in no file, and none is beyond
    with pytest.raises(ValueError, match="'w'"):
        survey(tmp_path / "gap")
    split(tmp_path / "twice", {"w": torch.ones(4, 3)}, skip=-1)
    with pytest.raises(ValueError, match="'w' in its shards do not fit"):
        survey(tmp_path / "twice")


def sharded(folder: Path) -> Path:
    """A checkpoint whose model and optimizer are in shards."""
    _, _, snapshot = make()
    path = write(folder, snapshot)
    for part in ("model", "optimizer"):
        (path / f"{part}.safetensors").unlink()
        split(path / part, dict(snapshot.tensors[part]))
    reseal(path)
    return path


def reseal(path: Path) -> None:
    """Write the manifest of the files that are there."""
    files = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != "manifest.json":
            content = file.read_bytes()
            facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            files[file.relative_to(path).as_posix()] = facts
    (path / "manifest.json").write_text(json.dumps({"format": 2, "step": 5, "files": files}))


def test_a_sharded_checkpoint_is_read_by_one_process_and_by_several(tmp_path):
    network, _, snapshot = make()
    path = sharded(tmp_path)
    found = read(path, state.check_fit(network))
    assert all(
        torch.equal(found.tensors[p][n], t) for p in ("model", "optimizer") for n, t in snapshot.tensors[p].items()
    )
    other, other_optimizer, _ = make(6)
    stored = open_stored(path, state.check_fit(other), 1, 2)
    state.fill_model(other, stored)
    state.fill_optimizer(other, other_optimizer, stored)
    for name, tensor in {**other.state_dict(), **state.optimizer_tensors(other, other_optimizer)}.items():
        assert torch.equal(tensor, {**snapshot.tensors["model"], **snapshot.tensors["optimizer"]}[name])
    assert set(stored.whole("random")) == set(snapshot.tensors["random"])
    assert stored.whole("none") == {}


SHARD = "model/shard-00002-model-00001-of-00001.safetensors"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: (path / SHARD).unlink(), "are missing or not in manifest"),
        (lambda path: (path / "model" / "more.safetensors").write_bytes(b""), "are missing or not in manifest"),
        (lambda path: (path / SHARD).write_bytes((path / SHARD).read_bytes()[:-1] + b"?"), "was changed after"),
        (lambda path: ((path / SHARD).unlink(), reseal(path)), "lacks tensor"),
        (lambda path: (shard(path / SHARD, {"0.weight": torch.ones(9, 3)}, {}), reseal(path)), "do not fit together"),
        (lambda path: (save_file({"0.weight": torch.ones(1)}, path / SHARD), reseal(path)), "got: "),
        (lambda path: ((path / SHARD).write_bytes(b"\0" * 64), reseal(path)), "got: "),
    ],
)
def test_damage_of_a_shard_is_reported(tmp_path, damage, text):
    network, _, _ = make()
    path = sharded(tmp_path)
    damage(path)
    check = state.check_fit(network)
    for reading in (lambda: read(path, check), lambda: open_stored(path, check, 0, 1)):
        with pytest.raises(CheckpointError, match=text) as error:
            reading()
        assert "\n" not in str(error.value)


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    network, _, _ = make()
    path = sharded(tmp_path)
    (path / "model").rename(tmp_path / "elsewhere")
    (path / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="are missing or not in manifest"):
        read(path, state.check_fit(network))
