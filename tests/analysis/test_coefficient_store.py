"""The store: what is written is what is read, memory stays bounded, damage is named."""

import json
import tracemalloc

import numpy as np
import pytest
import torch

from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter, sparse_rows
from mumoe.coefficients import DenseCoefficients, SparseCoefficients
from mumoe.errors import UserError

BY_HAND = np.array(
    [
        [0.5, 0.5, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
        [0.25, 0.25, 0.5, 0.0],
        [0.0, 0.6, 0.4, 0.0],
    ],
    dtype=np.float32,
)


def sparse_block(rng, rows, experts, support):
    block = np.zeros((rows, experts), dtype=np.float32)
    for row in block:
        row[rng.choice(experts, support, replace=False)] = rng.dirichlet(np.ones(support))
    return block


def write(folder, *blocks, name="head", **options):
    with CoefficientWriter(folder, {name: (blocks[0].shape[-1],)}, **options) as writer:
        for block in blocks:
            writer.append(name, [block])
    return CoefficientStore(folder)


def test_what_is_written_is_what_is_read(tmp_path):
    rng = np.random.default_rng(0)
    blocks = [sparse_block(rng, rows, 32, 3) for rows in (5, 1, 7)]
    level = write(tmp_path / "store", *blocks).level("head")
    assert level.rows == 13
    assert np.array_equal(level.dense(0, 13), np.concatenate(blocks))
    assert np.array_equal(level.dense(4, 7), np.concatenate(blocks)[4:7])
    for pairs in (1, 4, 1000):
        rows = np.concatenate([block.row for block in level.blocks(pairs)])
        values = np.concatenate([block.value for block in level.blocks(pairs)])
        assert np.array_equal(rows, np.repeat(np.arange(13), 3))
        assert np.array_equal(values, level.values)


def test_levels_layers_tokens_and_image_positions(tmp_path):
    rng = np.random.default_rng(1)
    first, second = sparse_block(rng, 6, 8, 2), sparse_block(rng, 6, 4, 1)
    tokens = sparse_block(rng, 12, 5, 2)
    layers = {"head": (8, 4), "blocks.0.mlp": (5,)}
    with CoefficientWriter(tmp_path / "s", layers, images=np.arange(100, 106)) as writer:
        writer.set_rows_per_image("blocks.0.mlp", 2)
        writer.append("head", [first, second])
        writer.append("blocks.0.mlp", [tokens.reshape(6, 2, 5)])
    store = CoefficientStore(tmp_path / "s")
    assert store.layers == ("head", "blocks.0.mlp")
    assert np.array_equal(store.level("head", 1).dense(0, 6), second)
    assert np.array_equal(store.level("blocks.0.mlp").dense(0, 12), tokens)
    assert store.level("blocks.0.mlp").rows_per_image == 2
    assert store.images.tolist() == list(range(100, 106))


def test_usage_by_hand(tmp_path):
    usage = write(tmp_path / "s", BY_HAND[:3], BY_HAND[3:]).level().usage()
    assert usage.load == (2, 2, 1, 0)
    assert usage.touched == (3, 3, 2, 0)
    assert usage.mean_coefficient == pytest.approx((1.75 / 4, 1.35 / 4, 0.9 / 4, 0))
    assert (usage.dead, usage.experts_above_threshold) == (1, 3)
    assert usage.support_mean == pytest.approx((2 + 1 + 3 + 2) / 4)
    assert usage.support_quantiles == (1, 1, 2, 2, 3)
    entropies = [np.log(2), 0, 0.5 * np.log(4) + 0.5 * np.log(2), -0.6 * np.log(0.6) - 0.4 * np.log(0.4)]
    assert usage.entropy_mean == pytest.approx(np.mean(entropies))
    assert usage.largest_mean == pytest.approx((0.5 + 1 + 0.5 + 0.6) / 4)


def test_usage_does_not_depend_on_the_blocks(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    level = write(tmp_path / "s", sparse_block(rng, 200, 16, 4)).level()
    whole = level.usage()
    in_pieces = type(level).blocks
    monkeypatch.setattr(type(level), "blocks", lambda self: in_pieces(self, 7))
    pieces = level.usage()
    assert pieces.load == whole.load
    assert pieces.entropy_mean == pytest.approx(whole.entropy_mean)
    assert pieces.support_quantiles == whole.support_quantiles


def test_rows_without_any_expert_are_counted(tmp_path):
    block = np.zeros((3, 4), dtype=np.float32)
    block[1, 2] = 1.0
    level = write(tmp_path / "s", block).level()
    assert level.usage().support_quantiles == (0, 0, 0, 0, 1)
    assert level.usage().support_mean == pytest.approx(1 / 3)


def test_memory_is_flat_from_1000_to_60000_images(tmp_path):
    rng = np.random.default_rng(0)
    block = sparse_block(rng, 250, 1024, 7)

    def peak(images):
        tracemalloc.start()
        store = write(tmp_path / str(images), *([block] * (images // 250)))
        store.level().usage()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, medium, large = peak(1_000), peak(20_000), peak(60_000)
    assert large < 1.1 * medium
    assert large < small + 20_000_000  # one block of 100,000 pairs under way


def test_an_interrupted_capture_leaves_the_old_store(tmp_path):
    write(tmp_path / "s", BY_HAND)

    def interrupted():
        with CoefficientWriter(tmp_path / "s", {"head": (4,)}) as writer:
            writer.append("head", [BY_HAND[:1]])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert CoefficientStore(tmp_path / "s").level().rows == 4
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_second_capture_replaces_the_first(tmp_path):
    write(tmp_path / "s", BY_HAND)
    assert write(tmp_path / "s", BY_HAND[:2]).level().rows == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_empty_store_reads_and_its_usage_says_why(tmp_path):
    level = write(tmp_path / "s", np.zeros((0, 4), dtype=np.float32)).level()
    assert level.rows == 0
    with pytest.raises(UserError, match=r"usage: expected at least one image, got none\."):
        level.usage()


def test_unknown_layers_and_levels_are_named(tmp_path):
    store = write(tmp_path / "s", BY_HAND)
    with pytest.raises(UserError, match=r"got 'haed'\. Did you mean 'head'\?"):
        store.level("haed")
    with pytest.raises(UserError, match=r"expected a level from 0 to 0 of 'head', got 1\."):
        store.level("head", 1)


def test_wrong_widths_and_levels_are_refused(tmp_path):
    with (
        pytest.raises(UserError, match=r"expected 5 experts in level 0 of 'head', got shape \(4, 4\)"),
        CoefficientWriter(tmp_path / "s", {"head": (5,)}) as writer,
    ):
        writer.append("head", [BY_HAND])
    with (
        pytest.raises(UserError, match=r"expected 1 levels for 'head', got 2"),
        CoefficientWriter(tmp_path / "s", {"head": (4,)}) as writer,
    ):
        writer.append("head", [BY_HAND, BY_HAND])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["experts", "values", "offsets"])
def test_truncated_files_are_named(tmp_path, part):
    write(tmp_path / "s", BY_HAND)
    path = tmp_path / "s" / f"layer0-level0-{part}.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"CoefficientStore: expected complete files"):
        CoefficientStore(tmp_path / "s").level()


def test_experts_out_of_range_are_named(tmp_path):
    write(tmp_path / "s", BY_HAND)
    path = tmp_path / "s" / "layer0-level0-experts.npy"
    wrong = np.load(path)
    wrong[3] = 4
    np.save(path, wrong)
    with pytest.raises(UserError, match=r"got an expert outside 0 to 3"):
        CoefficientStore(tmp_path / "s").level().usage()


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(UserError, match=r"CoefficientStore: expected readable JSON in .*index\.json"):
        CoefficientStore(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match=r"expected format 1 in .*, got 99"):
        CoefficientStore(tmp_path)


def test_sparse_rows_drop_only_exact_zeros():
    experts, values, counts = sparse_rows(np.array([[0.0, 1e-30, 0.5], [0, 0, 0]], dtype=np.float32))
    assert experts.tolist() == [1, 2]
    assert values.tolist() == pytest.approx([1e-30, 0.5])
    assert counts.tolist() == [2, 0]


def supports(blocks):
    return [DenseCoefficients(torch.from_numpy(block)).at_least() for block in blocks]


def test_coefficients_by_their_support_are_written_like_blocks(tmp_path):
    rng = np.random.default_rng(4)
    blocks = [sparse_block(rng, rows, 32, 3) for rows in (5, 1, 7)]
    with CoefficientWriter(tmp_path / "sparse", {"head": (32,)}) as writer:
        for block in supports(blocks):
            writer.append("head", [block])
    write(tmp_path / "dense", *blocks)
    for part in ("experts", "values", "offsets"):
        name = f"layer0-level0-{part}.npy"
        assert (tmp_path / "sparse" / name).read_bytes() == (tmp_path / "dense" / name).read_bytes()
    with (
        pytest.raises(UserError, match=r"expected 31 experts in level 0 of 'head', got shape \(5, 32\)"),
        CoefficientWriter(tmp_path / "s", {"head": (31,)}) as writer,
    ):
        writer.append("head", supports(blocks)[:1])


def test_two_hundred_million_experts_take_no_more_than_their_support(tmp_path):
    """A row of a matrix would have 800 MB."""
    pairs = SparseCoefficients(torch.ones(6), torch.arange(6) * 10**7, torch.arange(4) * 2, 2 * 10**8, torch.float32)
    with CoefficientWriter(tmp_path / "s", {"head": (2 * 10**8,)}) as writer:
        writer.append("head", [pairs])
    assert CoefficientStore(tmp_path / "s").level().experts.tolist() == [n * 10**7 for n in range(6)]


def test_parquet_holds_a_row_for_each_coefficient(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    store = write(tmp_path / "s", BY_HAND, images=np.array([7, 3, 9, 4]))
    assert store.write_parquet(tmp_path / "a.parquet") == 8
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    expected = [
        (image, n, BY_HAND[row, n]) for row, image in enumerate([7, 3, 9, 4]) for n in BY_HAND[row].nonzero()[0]
    ]
    assert [(row["image"], row["expert"], row["coefficient"]) for row in rows] == expected
    assert {row["level"] for row in rows} == {0}


def test_parquet_of_levels_and_tokens(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(5)
    levels = [sparse_block(rng, 6, 4, 2), sparse_block(rng, 6, 3, 1)]
    with CoefficientWriter(tmp_path / "s", {"mlp": (4, 3)}, rows_per_image={"mlp": 3}) as writer:
        writer.append("mlp", levels)
    assert CoefficientStore(tmp_path / "s").write_parquet(tmp_path / "a.parquet") == 18
    table = np.zeros((2, 6, 4), np.float32)
    for row in parquet.read_table(tmp_path / "a.parquet").to_pylist():
        table[row["level"], 3 * row["image"] + row["row"], row["expert"]] = row["coefficient"]
    assert np.array_equal(table[0], levels[0])
    assert np.array_equal(table[1, :, :3], levels[1])
