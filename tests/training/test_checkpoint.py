"""Checkpoints are whole or absent; damage of every kind is reported instead of loaded."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import struct

import pytest
import torch
from torch import nn

from mumoe.errors import JobError
from mumoe.files import clean_folder
from mumoe.training import state
from mumoe.training.checkpoint import CheckpointError, Snapshot, checkpoint_steps, newest, prune, read, write

NUMBERS = {"losses": 0.5, "unlogged": 1, "seconds": 1.0, "log_bytes": 10, "best": None, "scaler": None}


def make(step: int = 5) -> tuple[nn.Module, torch.optim.Optimizer, Snapshot]:
    """A tiny network after some steps of AdamW, and its snapshot."""
    torch.manual_seed(step)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    tensors = {
        "model": state.model_tensors(network),
        "optimizer": state.optimizer_tensors(network, optimizer),
        "random": state.random_tensors(0),
    }
    return network, optimizer, Snapshot(step, tensors, dict(NUMBERS))


def equal(left: Snapshot, right: Snapshot) -> bool:
    return (
        left.step == right.step
        and left.state == right.state
        and {p: set(t) for p, t in left.tensors.items()} == {p: set(t) for p, t in right.tensors.items()}
        and all(torch.equal(t, right.tensors[p][n]) for p, part in left.tensors.items() for n, t in part.items())
    )


def test_what_is_written_is_read(tmp_path):
    network, _, snapshot = make()
    path = write(tmp_path, snapshot)
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]
    assert equal(read(path, state.check_fit(network)), snapshot)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


def test_restoring_gives_the_same_next_step(tmp_path):
    network, optimizer, snapshot = make()
    write(tmp_path, snapshot)
    other, other_optimizer, _ = make(6)
    found = newest(tmp_path, state.check_fit(other), pytest.fail)
    state.restore_model(other, found.tensors["model"])
    state.restore_optimizer(other, other_optimizer, found.tensors["optimizer"])
    x = torch.randn(4, 3)
    for net, opt in ((network, optimizer), (other, other_optimizer)):
        opt.zero_grad()
        net(x).square().sum().backward()
        opt.step()
    pairs = zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_generators_go_on_where_they_were():
    import numpy as np

    random.gauss(0, 1), np.random.standard_normal()  # noqa: NPY002 (leaves a second value waiting in both)
    before = state.random_tensors(0)
    draw = lambda: (random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist())  # noqa: E731, NPY002
    first = draw()
    assert draw() != first
    assert state.restore_random(0, before)
    assert draw() == first
    assert not state.restore_random(1, before)


@pytest.mark.parametrize("position", [-1, 625, 1 << 40])
def test_a_generator_position_out_of_range_is_refused(position):
    states = state.random_tensors(0)
    states["0/numpy"][-1] = position
    with pytest.raises(ValueError, match="numpy"):
        state.restore_random(0, states)


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    for step in (1, 2, 3, 10, 11):
        write(tmp_path, make(step)[2])
    prune(tmp_path, keep=2, also=2)
    assert checkpoint_steps(tmp_path) == [2, 10, 11]


def test_leftovers_of_a_killed_process_go(tmp_path):
    write(tmp_path, make()[2])
    (tmp_path / ".mumoe-part-000000-1-01234567-step-00000006").mkdir()
    (tmp_path / ".mumoe-part-000000-1-01234567-other").touch()
    clean_folder(tmp_path, locked=True)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


def test_no_checkpoint_is_none_and_only_damaged_ones_an_error(tmp_path):
    network, _, snapshot = make()
    assert newest(tmp_path / "none", state.check_fit(network), pytest.fail) is None
    write(tmp_path, snapshot)
    (tmp_path / "step-00000005" / "model.safetensors").unlink()
    told = []
    with pytest.raises(CheckpointError, match="got 1 damaged"):
        newest(tmp_path, state.check_fit(network), told.append)
    assert "model.safetensors" in told[0]


def test_a_damaged_one_can_be_written_again(tmp_path):
    network, _, snapshot = make()
    path = write(tmp_path, snapshot)
    (path / "state.json").write_text("{")
    write(tmp_path, snapshot)
    assert equal(read(path, state.check_fit(network)), snapshot)
    assert len(list(tmp_path.iterdir())) == 1


# Damage


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def grow(path, rng):
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 99)))


def noise(path, rng):
    path.write_bytes(rng.randbytes(rng.randint(0, 400)))


def header(path, rng):
    """A safetensors header length far beyond the file (or any JSON file's first bytes)."""
    content = bytearray(path.read_bytes())
    content[:8] = struct.pack("<Q", rng.choice([1 << 63, (1 << 64) - 1, 100_000_001, 1 << 20, 0]))
    path.write_bytes(content)


def missing(path, rng):
    path.unlink()


def folder(path, rng):
    path.unlink()
    path.mkdir()


def pipe(path, rng):
    path.unlink()
    os.mkfifo(path)


def link(path, rng):
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def extra(path, rng):
    path.with_name("extra.safetensors").write_bytes(path.read_bytes())


def reshape(path, rng):
    """Other shapes, types or names in a well-formed file."""
    from safetensors.torch import load, save_file

    if path.suffix != ".safetensors":
        return flip(path, rng)
    tensors = load(path.read_bytes())
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    kind = rng.randrange(4)
    if kind == 0:
        tensors[name] = torch.zeros(*tensor.shape, 2)
    elif kind == 1:
        tensors[name] = torch.zeros(tensor.shape, dtype=torch.float16)
    elif kind == 2:
        tensors[name + "x"] = tensor
    save_file(tensors, path)
    return None


def words(path, rng):
    """JSON that parses but has other content."""
    junk = ["[]", "null", '{"step": 5}', "[" * 5000, "1" * 5000, "{}", '{"format": 1, "step": 5, "files": {}}', "NaN"]
    junk.append('{"format": 1, "step": 5, "files": {"state.json": {"size": 1}, "../x": 3}}')
    path.with_name(rng.choice(["state.json", "manifest.json"])).write_text(rng.choice(junk))


DAMAGE = [flip, truncate, grow, noise, header, missing, folder, pipe, link, extra, reshape, words]


def sign(path):
    """Make the manifest agree with the files, as deliberate damage would."""
    files = {
        p.name: {"size": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in path.iterdir()
        if p.name != "manifest.json" and p.is_file()
    }
    (path / "manifest.json").write_text(json.dumps({"format": 1, "step": 5, "files": files}))


@pytest.mark.slow
def test_a_thousand_damaged_checkpoints_are_told_and_the_one_before_is_taken(tmp_path):
    network, _, snapshot = make()
    older = make(4)[2]
    pristine, work = write(tmp_path / "pristine", snapshot), tmp_path / "work"
    write(work, older)
    rng = random.Random(7)
    for case in range(1000):
        newer = work / "step-00000005"
        shutil.copytree(pristine, newer)
        files = sorted(newer.iterdir())
        damage = DAMAGE[case % len(DAMAGE)]
        damage(rng.choice(files), rng)
        told = []
        found = newest(work, state.check_fit(network), told.append)
        assert len(told) == 1, damage.__name__
        assert "step-00000005" in told[0]
        assert "\n" not in told[0]
        assert equal(found, older), damage.__name__
        shutil.rmtree(newer)


def test_files_swapped_between_checkpoints_are_told(tmp_path):
    network, _, snapshot = make()
    older, newer = write(tmp_path, make(4)[2]), write(tmp_path, snapshot)
    for name in ("model.safetensors", "state.json", "optimizer.safetensors", "manifest.json"):
        shutil.copy(newer / name, tmp_path / "kept")
        shutil.copy(older / name, newer / name)
        with pytest.raises(CheckpointError, match=r"differs|another step|bytes instead"):
            read(newer, state.check_fit(network))
        shutil.copy(tmp_path / "kept", newer / name)
    assert equal(read(newer, state.check_fit(network)), snapshot)


@pytest.mark.parametrize("damage", [flip, truncate, grow, noise, header, reshape], ids=lambda f: f.__name__)
def test_damage_with_a_matching_manifest_is_told_or_a_valid_checkpoint(tmp_path, damage):
    """Beyond digests: a file that was changed on purpose loads with the content it declares, or not at all."""
    network, _, snapshot = make()
    pristine = tmp_path / "pristine"
    write(pristine, snapshot)
    rng, refused = random.Random(damage.__name__), 0
    for _ in range(60):
        work = tmp_path / "work"
        shutil.copytree(pristine, work)
        path = work / "step-00000005"
        damage(rng.choice(sorted(path.glob("*.safetensors"))), rng)
        sign(path)
        try:
            found = read(path, state.check_fit(network))
            state.restore_model(network, found.tensors["model"])
        except CheckpointError as error:
            refused += "\n" not in str(error)
        shutil.rmtree(work)
    assert refused == 60 or damage in (flip, reshape)
    assert refused > 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"losses": "x"}, "losses"),
        ({"unlogged": 1.5}, "unlogged"),
        ({"log_bytes": None}, "log_bytes"),
        ({"seconds": float("inf")}, "seconds"),
        ({"best": {"step": "x", "accuracy": 1.0}}, "best"),
        ({"best": []}, "checkpoint"),
    ],
)
def test_numbers_of_the_wrong_kind_are_told(tmp_path, change, said):
    network, _, snapshot = make()
    path = write(tmp_path, Snapshot(5, snapshot.tensors, {**NUMBERS, **change}))
    with pytest.raises(CheckpointError, match=said):
        read(path, state.check_fit(network))


def test_another_models_checkpoint_is_refused_by_name(tmp_path):
    path = write(tmp_path, make()[2])
    with pytest.raises(CheckpointError, match=r"'0.weight' as float32\[2, 3\] instead of float32\[2, 4\]"):
        read(path, state.check_fit(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, affine=False))))


# Disk full


def test_a_full_disk_leaves_the_earlier_checkpoints_and_no_part(tmp_path):
    """The system itself refuses to write beyond a size, as a full disk does."""
    network, _, snapshot = make(4)
    write(tmp_path, snapshot)
    large = Snapshot(5, {"model": {"x": torch.zeros(200_000)}}, dict(NUMBERS))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(JobError, match=r"the disk is full\..* Earlier checkpoints are untouched\. Resume"):
            write(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]
    assert equal(newest(tmp_path, state.check_fit(network), pytest.fail), snapshot)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("nth", range(1, 7))
def test_a_disk_that_fails_at_any_call_leaves_the_earlier_checkpoints(tmp_path, monkeypatch, call, nth):
    import errno

    network, _, snapshot = make(4)
    write(tmp_path, snapshot)
    real, calls = getattr(os, call), []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(JobError, match="disk is full"):
        write(tmp_path, make(5)[2])
    monkeypatch.undo()
    assert checkpoint_steps(tmp_path) == [4]
    assert not list(tmp_path.glob(".mumoe-*"))
    assert newest(tmp_path, state.check_fit(network), pytest.fail).step == 4
