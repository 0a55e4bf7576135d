"""Images per expert: the right ones, drawn with a seed, labelled, credited, and never half written."""

import json

import numpy as np
import pytest
from PIL import Image

from mumoe.analysis.chosen_images import choose_images
from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter
from mumoe.data.base import ImageData
from mumoe.errors import UserError
from mumoe.plots.expert_sheet import write_grid

COLOURS = ["#ff0000", "#00ff00", "#0000ff"]


def store(folder, block, rows_per_image=1):
    with CoefficientWriter(folder, {"head": (block.shape[-1],)}, rows_per_image={"head": rows_per_image}) as w:
        w.append("head", [block])
    return CoefficientStore(folder).level()


def data(images=40, multi_label=False):
    labels = np.arange(images) % 3
    if multi_label:
        labels = np.eye(3, dtype=np.uint8)[labels] | np.array([[0, 0, 1]], dtype=np.uint8)
    return ImageData(
        name="colours",
        classes=("red", "green", "blue"),
        multi_label=multi_label,
        labels=labels,
        split=np.full(images, 2, dtype=np.int8),
        ids=tuple(f"{i}.png" for i in range(images)),
        open_image=lambda i: Image.new("RGB", (60, 30), COLOURS[i % 3]),
        fingerprint="0",
        credits=("Colours by nobody, CC0.",),
    )


def by_colour(images=40):
    """Expert k processes class k with coefficients 0.5 to 1; expert 3 gets the rest, expert 4 nothing."""
    block = np.zeros((images, 5), dtype=np.float32)
    value = np.linspace(0.5, 1, images, dtype=np.float32)
    block[np.arange(images), np.arange(images) % 3] = value
    block[:, 3] = 1 - value
    return block


def opened(path):
    with Image.open(path) as picture:
        return picture.copy()


def test_random_images_are_at_or_above_the_threshold_and_top_ones_lead(tmp_path):
    level = store(tmp_path / "s", by_colour())
    found, count = choose_images(level, each=4, threshold=0.5)
    assert count.tolist() == [14, 13, 13, 1, 0]
    assert sorted(found) == [0, 1, 2, 3]
    random, top = found[1]
    assert top.image.tolist() == [37, 34, 31, 28]
    assert len(set(random.image.tolist())) == 4
    assert all(i % 3 == 1 for i in random.image)
    assert (random.value >= 0.5).all()


def test_the_draw_repeats_with_its_seed_and_ignores_the_blocks(tmp_path, monkeypatch):
    level = store(tmp_path / "s", by_colour())

    def drawn(seed):
        return [random.image.tolist() for random, _ in choose_images(level, each=4, seed=seed)[0].values()]

    whole = drawn(0)
    assert drawn(1) != whole
    pieces = type(level).blocks
    monkeypatch.setattr(type(level), "blocks", lambda self: pieces(self, 3))
    assert drawn(0) == whole


def test_every_image_is_drawn_about_equally_often(tmp_path):
    level = store(tmp_path / "s", np.ones((20, 1), dtype=np.float32))
    seen = np.zeros(20)
    for seed in range(400):
        seen[choose_images(level, each=5, seed=seed)[0][0][0].image] += 1
    assert seen.sum() == 2000
    assert 65 < seen.min() < seen.max() < 135  # 100 expected, standard deviation 8.7


def test_tokens_of_one_image_count_once(tmp_path):
    tokens = np.zeros((6, 2), dtype=np.float32)
    tokens[[0, 1, 2], 0] = [0.6, 0.9, 0.7]  # image 0 owns rows 0 and 1, image 1 rows 2 and 3
    level = store(tmp_path / "s", tokens, rows_per_image=2)
    found, count = choose_images(level)
    assert count.tolist() == [2, 0]
    assert found[0][1].image.tolist() == [0, 1]
    assert found[0][1].value.tolist() == pytest.approx([0.9, 0.7])


def test_grid_files_labels_credits_and_skipped_experts(tmp_path):
    level = store(tmp_path / "s", by_colour())
    images = np.arange(40)
    shown = write_grid(tmp_path / "grid", level, data(), images, each=3, size=48)
    described = json.loads((tmp_path / "grid" / "grid.json").read_text())
    assert [expert.expert for expert in shown] == [0, 1, 2, 3]
    assert described["experts_skipped"] == 1
    assert described["credits"] == ["Colours by nobody, CC0."]
    for expert in described["shown"]:
        for item in expert["random"] + expert["top"]:
            picture = opened(tmp_path / "grid" / item["thumbnail"])
            assert picture.size == (48, 48)
            assert picture.getpixel((24, 24)) == Image.new("RGB", (1, 1), COLOURS[item["image"] % 3]).getpixel((0, 0))
            assert item["label"] == ("red", "green", "blue")[item["image"] % 3]
    assert opened(tmp_path / "grid" / "grid.png").height > 4 * 48


def test_rows_are_translated_to_positions_in_the_data_set(tmp_path):
    level = store(tmp_path / "s", by_colour(12))
    images = np.arange(39, 27, -1)
    shown = write_grid(tmp_path / "grid", level, data(), images, each=2, size=16)
    top = shown[2].top[0]
    assert top.image == images[11]
    assert top.label == data().classes[images[11] % 3]


def test_multi_label_images_carry_all_their_targets(tmp_path):
    level = store(tmp_path / "s", by_colour(6))
    shown = write_grid(tmp_path / "g", level, data(6, multi_label=True), np.arange(6), each=1, size=16)
    assert {expert.random[0].label for expert in shown[:2]} == {"red, blue", "green, blue"}


def test_a_failure_leaves_the_old_grid(tmp_path):
    level = store(tmp_path / "s", by_colour())
    write_grid(tmp_path / "grid", level, data(), np.arange(40), size=16)
    before = sorted(path.name for path in (tmp_path / "grid" / "thumbnails").iterdir())

    def broken(index):
        raise OSError("disk on fire")

    import dataclasses

    damaged = dataclasses.replace(data(), open_image=broken)
    with pytest.raises(OSError, match="disk on fire"):
        write_grid(tmp_path / "grid", level, damaged, np.arange(40), size=16, seed=9)
    assert sorted(path.name for path in (tmp_path / "grid" / "thumbnails").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid", "s"]


def test_wrong_experts_and_images_are_named(tmp_path):
    level = store(tmp_path / "s", by_colour())
    with pytest.raises(UserError, match=r"choose_images: expected an expert from 0 to 4, got 5\."):
        choose_images(level, experts=[5])
    with pytest.raises(UserError, match=r"write_grid: expected 40 images for these coefficients, got 39\."):
        write_grid(tmp_path / "g", level, data(), np.arange(39))
