import os

import numpy as np
import pytest
import torchvision
from PIL import Image

from mumoe.data import SPLITS, problem_summary
from mumoe.errors import UserError


def test_labels_are_those_of_torchvision(class_tree, load):
    data = load(f"folder:{class_tree}")
    theirs = torchvision.datasets.ImageFolder(class_tree)
    assert data.classes == tuple(theirs.classes)
    assert dict(zip(data.ids, data.labels.tolist(), strict=True)) == {
        os.path.relpath(path, class_tree): label for path, label in theirs.samples
    }
    assert data.labels.dtype == np.int64
    assert not data.multi_label
    assert data.problems == ()


def test_the_right_picture_is_opened(root, draw, load):
    colours = {
        f"{name}/{i}.png": draw(root / "x" / name / f"{i}.png", hash((name, i)) % 2**20)
        for name in "ab"
        for i in range(4)
    }
    data = load(f"folder:{root / 'x'}")
    assert {data.ids[i]: data.open_image(i).getpixel((3, 3)) for i in range(len(data))} == colours


def test_a_random_split_is_seeded_and_stratified(class_tree, load):
    data = load(f"folder:{class_tree}")
    for label in (0, 1):
        assert [((data.split == part) & (data.labels == label)).sum() for part in range(3)] == [7, 1, 2]
    again, other = load(f"folder:{class_tree}"), load(f"folder:{class_tree}", split_seed=1)
    assert np.array_equal(again.split, data.split)
    assert again.fingerprint == data.fingerprint
    assert not np.array_equal(other.split, data.split)
    assert other.fingerprint != data.fingerprint
    none = load(f"folder:{class_tree}", val_fraction=0.0, test_fraction=0.5)
    assert [(none.split == part).sum() for part in range(3)] == [10, 0, 10]


def test_split_folders_are_kept(root, draw, load):
    for part in ("train", "Validation", "test"):
        for name in "ab":
            for image in range(3):
                draw(root / "s" / part / name / f"{image}.png", image)
    data = load(f"folder:{root / 's'}")
    expected = [{"train": 0, "Validation": 1, "test": 2}[name.split("/")[0]] for name in data.ids]
    assert data.split.tolist() == expected
    assert len(data) == 18


def test_missing_splits_are_taken_from_train(root, draw, load):
    for name in "ab":
        for image in range(10):
            draw(root / "s/train" / name / f"{image}.png", image)
            draw(root / "s/test" / name / f"{image}.png", image)
    data = load(f"folder:{root / 's'}", val_fraction=0.2)
    in_test = [name.startswith("test/") for name in data.ids]
    assert (data.split[in_test] == SPLITS.index("test")).all()
    assert [(data.split == part).sum() for part in range(3)] == [16, 4, 20]


def test_a_class_may_be_called_train(root, draw, load):
    for name in ("bus", "train"):
        for image in range(4):
            draw(root / "v" / name / f"{image}.png", image)
    assert load(f"folder:{root / 'v'}").classes == ("bus", "train")


def test_nested_linked_and_hidden_files(root, draw, load):
    for name in "ab":
        for image in range(4):
            draw(root / "n" / name / "deep" / f"{image}.PNG", image)
    draw(root / "n/.hidden/x.png")
    draw(root / "n/a/.thumb.png")
    os.symlink(root / "n/a", root / "n/a/again")
    data = load(f"folder:{root / 'n'}")
    assert data.classes == ("a", "b")
    assert len(data) == 8
    assert data.problems == ()


def test_bad_files_are_left_out_counted_and_named(class_tree, load):
    (class_tree / "cat/empty.png").write_bytes(b"")
    (class_tree / "cat/page.jpg").write_bytes(b"<html>")
    Image.effect_noise((60, 60), 80).save(class_tree / "dog/cut.png")
    (class_tree / "dog/cut.png").write_bytes((class_tree / "dog/cut.png").read_bytes()[:2000])
    os.symlink(class_tree / "nowhere.png", class_tree / "dog/gone.png")
    (class_tree / "dog/notes.txt").write_text("notes")
    (class_tree / "bird").mkdir()
    data = load(f"folder:{class_tree}")
    assert len(data) == 20
    assert data.classes == ("bird", "cat", "dog")
    assert [data.classes[label] for label in data.labels] == [name[:3] for name in data.ids]
    for index, name in enumerate(data.ids):
        with Image.open(class_tree / name) as image:
            assert data.open_image(index).tobytes() == image.tobytes()
    assert data.problems == (
        "files left out because they lack an image extension: 1 (dog/notes.txt)",
        "cat/empty.png: the file is empty",
        "cat/page.jpg: not an image that Pillow can read",
        "dog/cut.png: the image is truncated",
        "dog/gone.png: no such file",
        "class 'bird' has no image",
    )
    assert problem_summary(data) == (
        f"folder:{class_tree}: 6 problems while loading, 20 images are used: {'; '.join(data.problems[:5])}; "
        "and 1 more."
    )
    assert problem_summary(load(f"folder:{class_tree}"), most=9).count(";") == 5
    with pytest.raises(UserError) as error:
        load(f"folder:{class_tree}", strict=True)
    assert str(error.value).startswith(f"folder:{class_tree}: expected no problems, got 6: files left")
    assert str(error.value).endswith("Repair or remove these, or load without strict.")


def test_a_broken_file_moves_no_other_to_another_split(class_tree, load):
    before = load(f"folder:{class_tree}")
    (class_tree / "cat/4.png").write_bytes(b"broken")
    after = load(f"folder:{class_tree}")
    split = dict(zip(before.ids, before.split.tolist(), strict=True))
    assert len(after) == 19
    assert all(split[name] == part for name, part in zip(after.ids, after.split.tolist(), strict=True))


def test_odd_images_are_read_and_not_problems(class_tree, load):
    Image.new("CMYK", (5, 5)).save(class_tree / "cat/cmyk.jpg")
    Image.fromarray(np.full((5, 5), 40_000, np.uint16)).save(class_tree / "cat/deep.png")
    frames = [Image.new("P", (5, 5), colour) for colour in (0, 1)]
    frames[0].save(class_tree / "dog/moving.gif", save_all=True, append_images=frames[1:])
    data = load(f"folder:{class_tree}", strict=True)
    assert len(data) == 23
    assert all(data.open_image(index).mode == "RGB" for index in range(len(data)))
    deep = data.open_image(data.ids.index("cat/deep.png"))
    assert deep.getpixel((0, 0)) == (156, 156, 156)


def test_images_beside_class_folders_and_folders_beside_splits_are_named(root, draw, load):
    for name in "ab":
        for image in range(4):
            draw(root / "s/train" / name / f"{image}.png", image)
    for name in "ab":
        draw(root / "s/test" / name / "0.png")
    draw(root / "s/test/loose.png")
    draw(root / "s/extra/a/0.png")
    data = load(f"folder:{root / 's'}", val_fraction=0.0)
    assert data.problems == (
        "folder 'extra' is not a split, left out",
        "images left out because they have no class folder: 1 (loose.png ...)",
    )


def test_wrong_places_are_one_line(root, draw, load, class_tree):
    with pytest.raises(UserError) as error:
        load(f"folder:{root / 'pest'}")
    assert str(error.value) == (
        f"folder:{root / 'pest'}: expected a folder at {str(root / 'pest')!r}, got nothing there. "
        f"Did you mean {str(root / 'pets')!r}?"
    )
    with pytest.raises(UserError, match=r"a folder for each of two or more classes in .* got 'pets'"):
        load(f"folder:{root}")
    draw(root / "file.png")
    with pytest.raises(UserError, match="got something else"):
        load(f"folder:{root / 'file.png'}")
    for name in "ab":
        (root / "none" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="expected images that can be read, got none"):
        load(f"folder:{root / 'none'}")


def test_two_folders_for_one_split_are_refused(root, draw, load):
    for part in ("train", "val", "valid"):
        for name in "ab":
            draw(root / "s" / part / name / "0.png")
    with pytest.raises(UserError, match=r"expected one folder for val, got \['val', 'valid'\]"):
        load(f"folder:{root / 's'}")


def test_a_set_whose_training_images_are_all_broken_is_refused(root, draw, load):
    for name in "ab":
        draw(root / "s/train" / name / "0.png")
        draw(root / "s/test" / name / "0.png")
        (root / "s/train" / name / "0.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        load(f"folder:{root / 's'}")
    assert str(error.value) == (
        f"folder:{root / 's'}: expected images in the split 'train', got none. "
        "Left out: train/a/0.png: the file is empty; train/b/0.png: the file is empty."
    )


def test_fractions_that_leave_nothing_to_train_on_are_refused(class_tree, load):
    with pytest.raises(UserError, match="val_fraction and test_fraction >= 0 that leave images to train"):
        load(f"folder:{class_tree}", val_fraction=0.5, test_fraction=0.5)


def test_a_folder_that_cannot_be_listed_is_named_and_strict_stops(class_tree, draw, load, forbid):
    for image in range(3):
        draw(class_tree / "cat/deep" / f"{image}.png", 500 + image)
    assert len(load(f"folder:{class_tree}")) == 23
    forbid(class_tree / "cat/deep")
    data = load(f"folder:{class_tree}")
    assert len(data) == 20
    line = f"folders left out because they cannot be listed: 1 ({class_tree}/cat/deep: Permission denied)"
    assert data.problems == (line,)
    with pytest.raises(UserError, match="folders left out because they cannot be listed: 1"):
        load(f"folder:{class_tree}", strict=True)
    forbid(class_tree / "cat")
    data = load(f"folder:{class_tree}")
    assert data.problems == (line.replace("/deep", ""), "class 'cat' has no image")


def test_folders_and_files_without_permission_are_one_line(class_tree, root, load, forbid):
    (root / "list.csv").write_text("image,label\nx,a\n")
    forbid(class_tree, root / "list.csv")
    with pytest.raises(UserError, match=r"expected a folder that can be read, got '.*pets' without permission"):
        load(f"folder:{class_tree}")
    with pytest.raises(UserError, match=r"expected a file that can be read, got '.*list.csv' without permission"):
        load(f"csv:{root / 'list.csv'}")
    for part in ("train", "test"):
        (root / "split" / part / "a").mkdir(parents=True)
        (root / "split" / part / "b").mkdir()
    forbid(root / "split/test")
    with pytest.raises(UserError, match=r"expected a folder that can be listed, got '.*split/test'"):
        load(f"folder:{root / 'split'}")


def test_one_file_in_train_and_in_test_through_a_link_is_one_image(root, draw, load):
    for part, images in (("train", 6), ("test", 2)):
        for label in "ab":
            for image in range(images):
                draw(root / "s" / part / label / f"{image}.png", image + 10 * images)
    (root / "s/test/a/again.png").symlink_to(root / "s/train/a/3.png")
    data = load(f"folder:{root / 's'}", val_fraction=0.0)
    assert len(data) == 16
    assert data.problems == ("train/a/3.png: is the same file as test/a/again.png; only the first is used",)
    assert "train/a/3.png" not in data.ids
