"""The order of images and the course of the learning rate, as functions of the step."""

import numpy as np
import pytest

from mumoe.errors import UserError
from mumoe.training import TrainConfig
from mumoe.training.sampler import batches_per_epoch, derived_seed, epoch_batches, shares
from mumoe.training.schedule import learning_rate


@pytest.mark.parametrize(("count", "size"), [(100, 16), (97, 16), (17, 16), (16, 16), (5, 16), (1000, 999)])
def test_an_epoch_has_each_image_once_in_batches_of_equal_size(count, size):
    rows = np.arange(count) * 3
    batches = epoch_batches(rows, size, seed=0, epoch=0)
    sizes = [len(batch) for batch in batches]
    assert sorted(np.concatenate(batches)) == sorted(rows)
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == batches_per_epoch(count, size)


def test_the_order_depends_on_seed_and_epoch_alone():
    rows = np.arange(50)
    order = lambda seed, epoch: np.concatenate(epoch_batches(rows, 8, seed, epoch)).tolist()  # noqa: E731
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*pair)) for pair in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


def test_shares_add_up_to_the_batch():
    batch = np.arange(23)
    parts = [shares(batch, 3, 2, rank) for rank in range(2)]
    assert [len(p) for p in parts] == [3, 3]
    assert sorted(np.concatenate([*parts[0], *parts[1]])) == batch.tolist()
    whole = np.array_split(batch, 3)
    for part in range(3):
        assert np.concatenate([parts[0][part], parts[1][part]]).tolist() == whole[part].tolist()


def test_a_batch_of_one_row_per_part_is_refused():
    with pytest.raises(UserError, match="at least 4 images in a batch, got 3 images"):
        batches_per_epoch(3, 16, least=4)
    with pytest.raises(UserError, match="at least 1 images"):
        batches_per_epoch(0, 16)


def test_seeds_do_not_collide():
    seeds = {derived_seed(*parts) for parts in np.ndindex(10, 10, 10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_learning_rate_by_hand():
    cosine = TrainConfig(lr=1.0, schedule="cosine", warmup_steps=4)
    assert [learning_rate(cosine, s, 12) for s in (0, 1, 3, 4, 8)] == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.5])
    assert learning_rate(cosine, 12, 12) == pytest.approx(0.0)
    constant = TrainConfig(lr=2.0, schedule="constant", warmup_steps=2)
    assert [learning_rate(constant, s, 9) for s in range(4)] == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(("total", "warmup"), [(40, 4), (10, 1)])
def test_one_cycle_is_torchs(total, warmup):
    import torch

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    # torch places the peak at pct_start * total - 1
    share = (warmup + 1) / total
    other = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total, pct_start=share)
    config = TrainConfig(lr=0.1, schedule="one-cycle", warmup_steps=warmup)
    for step in range(total):
        assert learning_rate(config, step, total) == pytest.approx(other.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < total - 1:
            other.step()


@pytest.mark.parametrize(("rows", "processes"), [(23, 2), (14, 3), (7, 3), (6, 3), (40, 7), (3, 5)])
def test_neighbours_that_mixup_mixes_are_on_one_process(rows, processes):
    batch = np.arange(rows)
    parts = [shares(batch, 1, processes, rank)[0] for rank in range(processes)]
    assert np.concatenate(parts).tolist() == batch.tolist()
    assert all(len(part) % 2 == 0 for part in parts[:-1])
    if rows >= 2 * processes:
        assert min(map(len, parts)) >= 2
        assert max(map(len, parts)) - min(map(len, parts)) <= 3
