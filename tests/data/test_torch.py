from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import PILToTensor

from mumoe.data.decode import ImageError
from mumoe.data.torch import ImageDataset
from mumoe.errors import JobError

to_tensor = PILToTensor()


def fail(image):
    raise RuntimeError("a transform\nthat fails")


def test_items_are_image_target_and_position_in_the_set(class_tree, load):
    data = load(f"folder:{class_tree}")
    test = ImageDataset(data, "test", to_tensor)
    assert len(test) == 4
    for position, index in enumerate(data.indices("test")):
        image, target, where = test[position]
        assert where == index
        assert target.dtype == torch.int64
        assert target.item() == data.labels[index]
        assert torch.equal(image, to_tensor(data.open_image(index)))
    assert [item[2] for item in ImageDataset(data, np.array([5, 2]))] == [5, 2]
    assert ImageDataset(data, [3])[0][0].size == (9, 7)


def test_workers_give_what_no_worker_gives(class_tree, load):
    data = ImageDataset(load(f"folder:{class_tree}"), "train", to_tensor)
    alone, shared = (list(DataLoader(data, batch_size=4, num_workers=workers)) for workers in (0, 1))
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_it_reaches_spawned_workers(class_tree, load):
    """They get it by this pickler."""
    data = ImageDataset(load(f"folder:{class_tree}"), "val", to_tensor)
    again = ForkingPickler.loads(ForkingPickler.dumps(data))
    for one, other in zip((data[0], data[1]), (again[0], again[1]), strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1:] == other[1:]


def test_multi_label_targets_are_floats(class_tree, load):
    table = "image,a,b\n" + "\n".join(f"cat/{i}.png,{i % 2},{i // 5}" for i in range(10))
    (class_tree / "t.csv").write_text(table)
    data = load(f"csv:{class_tree / 't.csv'}")
    target = ImageDataset(data, [3, 7])[1][1]
    assert target.dtype == torch.float32
    assert target.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_later_is_one_line(class_tree, load, workers):
    data = load(f"folder:{class_tree}")
    (class_tree / "cat/0.png").write_bytes(b"")
    path = str(class_tree / "cat/0.png")
    with pytest.raises(ImageError) as error:
        list(DataLoader(ImageDataset(data, [0], to_tensor), num_workers=workers))
    assert str(error.value) == (
        f"folder:{class_tree}: expected to read the image 'cat/0.png', got: read_image: expected an image in "
        f"{path!r}, got: the file is empty. Replace or remove it. "
        "It was readable, or not looked into, when the set was loaded (verify='full' does)."
    )
    assert isinstance(error.value, JobError)


def test_a_transform_that_fails_names_the_image(class_tree, load):
    data = ImageDataset(load(f"folder:{class_tree}"), [1], fail)
    with pytest.raises(JobError, match=r"the image 'cat/1\.png', got: a transform that fails"):
        data[0]
