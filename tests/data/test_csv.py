import numpy as np
import pytest

from mumoe.errors import UserError


@pytest.fixture
def table(root, draw):
    """Write a table and the images that it names; gives its name for `load`."""

    def write(text, images=8, encoding="utf-8"):
        for image in range(images):
            draw(root / "t/pictures" / f"{image}.png", image)
        (root / "t").mkdir(exist_ok=True)
        (root / "t/list.csv").write_bytes(text.encode(encoding))
        return f"csv:{root / 't/list.csv'}"

    return write


def rows(header, *columns):
    lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join([header, *lines]) + "\n"


PATHS = [f"pictures/{image}.png" for image in range(8)]


def test_labels_groups_and_split(table, load):
    split = ["train", "training", "val", "valid", "dev", "test", "Test", "train"]
    labels = ["cat", "dog"] * 4
    text = rows("image,label,studio,split", PATHS, labels, ["noto"] * 3 + [""] + ["openmoji"] * 4, split)
    data = load(table(text))
    assert data.ids == tuple(PATHS)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 1] * 4
    assert data.split.tolist() == [0, 0, 1, 1, 1, 2, 2, 0]
    assert set(data.attributes) == {"studio"}
    assert data.attributes["studio"].values == ("noto", "openmoji")
    assert data.attributes["studio"].codes.tolist() == [0, 0, 0, -1, 1, 1, 1, 1]
    assert data.problems == ()
    assert data.open_image(2).size == (9, 7)


def test_zero_one_columns_are_targets_and_subgroups(table, load):
    smiling, male = [1, 0, 1, 0, 1, 0, 1, 0], [-1, -1, 1, 1, -1, -1, 1, 1]
    data = load(table(rows("path,Smiling,Male,partition", PATHS, smiling, male, [0, 0, 0, 0, 1, 1, 2, 2])))
    assert data.multi_label
    assert data.classes == ("Smiling", "Male")
    assert data.labels.dtype == np.uint8
    assert data.labels[:, 0].tolist() == smiling
    assert data.labels[:, 1].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert data.attributes["Male"].values == ("no", "yes")
    assert data.attributes["Male"].codes.tolist() == data.labels[:, 1].tolist()
    assert data.split.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


def test_columns_can_be_named(table, load):
    names, when = [f"{image}.png" for image in range(8)], [0] * 6 + [1, 2]
    text = rows("where,a,b,c,when", names, [0, 1] * 4, "stuvstuv", [1, 0] * 4, when)
    places = {"image_column": "where", "image_folder": "pictures", "split_column": "when"}
    name = table(text)
    data = load(name, label_column="b", group_columns="c,a", **places)
    assert data.classes == ("s", "t", "u", "v")
    assert set(data.attributes) == {"a", "c"}
    assert data.attributes["c"].values == ("no", "yes")
    assert data.split.tolist() == [0] * 6 + [1, 2]
    both = load(name, target_columns=["c"], group_columns=[], **places)
    assert both.classes == ("c",)
    assert set(both.attributes) == {"c"}


def test_numbers_sort_as_numbers_and_classes_can_be_given(table, load):
    data = load(table(rows("file,label", PATHS, [10, 2, 9, 2, 9, 10, 2, 9])))
    assert data.classes == ("2", "9", "10")
    named = load(table(rows("file,label", PATHS, [0, 1, "c", "b", "a", 2, 1, 0])), classes="a,b,c")
    assert named.classes == ("a", "b", "c")
    assert named.labels.tolist() == [0, 1, 2, 1, 0, 2, 1, 0]


def test_semicolons_tabs_quotes_and_a_byte_order_mark(table, load):
    for delimiter in ";\t":
        text = rows("image,label", PATHS, ['"a, b"', "c"] * 4).replace(",pic", "@").replace(",", delimiter)
        text = text.replace(f'"a{delimiter} b"', '"a, b"')
        assert load(table(text, encoding="utf-8-sig")).classes == ("a, b", "c")


def test_bad_rows_are_left_out_and_named(table, load):
    text = rows("image,label,split", PATHS, ["a", "b"] * 4, ["train"] * 4 + ["test"] * 4)
    text += "pictures/0.png,b,train\n./pictures/1.png,a,train\npictures/none.png,a,train\n"
    text += "pictures/2.png,a\npictures/3.png,,train\npictures/4.png,a,later\n\n"
    data = load(table(text), val_fraction=0.0)
    assert len(data) == 8
    assert data.labels.tolist() == [0, 1] * 4
    assert data.problems == (
        "line 13: 2 fields for 3 columns, left out",
        "line 14: the label is empty, left out",
        "line 15: split is 'later', expected train, val or test, left out",
        "pictures/0.png: listed again, only the first time counts",
        "pictures/1.png: listed again, only the first time counts",
        "pictures/none.png: no such file",
    )


def test_labels_out_of_range_and_targets_beside_zero_and_one(table, load):
    data = load(table(rows("image,label", PATHS, [0, 1, 0, 1, 5, -1, 0, 1])), classes=["a", "b"])
    assert data.problems[:2] == (
        "line 6: label '5' is none of the 2 classes, left out",
        "line 7: label '-1' is none of the 2 classes, left out",
    )
    assert len(data) == 6
    named = load(
        table(rows("image,smiles,x", PATHS, [0, 1, 0, 1, 2, "maybe", 0, 1], [0] * 7 + [1])),
        target_columns="smiles",
    )
    assert named.problems[:2] == (
        "line 6: smiles is '2', expected 0 or 1, left out",
        "line 7: smiles is 'maybe', expected 0 or 1, left out",
    )


def test_a_typing_error_does_not_turn_a_target_into_a_group(table, load):
    paths = [f"pictures/{image}.png" for image in range(20)]
    data = load(table(rows("image,smiles", paths, [0, 1] * 9 + [0, "l"]), images=20))
    assert data.classes == ("smiles",)
    assert data.problems == ("line 21: smiles is 'l', expected 0 or 1, left out",)


def test_labels_and_groups_are_part_of_the_fingerprint(table, load):
    split, studio = ["train"] * 4 + ["val"] * 2 + ["test"] * 2, list("nnoonnoo")
    prints = set()
    for labels, studios, parts in (
        (["a", "b"] * 4, studio, split),
        (["b", "a"] * 4, studio, split),
        (["a", "b"] * 4, studio[::-1], split),
        (["a", "b"] * 4, studio, split[::-1]),
    ):
        prints.add(load(table(rows("image,label,studio,split", PATHS, labels, studios, parts))).fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected names of columns in line 1 of"),
        ("image,label,label\n", "got 'label' twice"),
        ("image,label\n", "expected rows below the header of"),
        ("image,label\na\n", "got none that can be read (line 2: 1 fields for 2 columns, left out)"),
        ("name,label\nx,y\n", "expected a column called one of image, path, file"),
        (
            "image,colour\nx,red\n",
            "or columns of 0/1, got colour. Name it with label_column or target_columns.",
        ),
        ('image,label\nx,"y\n', "expected a table, got line 2: unexpected end of data. Repair that line."),
        ("image,label\nx,\n", "expected rows that can be read, got none: such as line 2: the label is empty"),
        ("image,label\nx,a\ny,b\n", "expected images that can be read, got none."),
    ],
)
def test_a_table_that_is_none_is_one_line(table, load, text, words):
    name = table(text)
    with pytest.raises(UserError) as error:
        load(name)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{name}: ")
    assert "\n" not in str(error.value)


def test_other_mistakes(table, load, root):
    name = table(rows("image,label", PATHS, list("abababab")))
    with pytest.raises(UserError, match=r"expected a column out of label, got 'lable'\. Did you mean 'label'\?"):
        load(name, label_column="lable")
    with pytest.raises(UserError, match=r"got 'label_colum'\. Did you mean 'label_column'\?"):
        load(name, label_colum="label")
    with pytest.raises(UserError, match="a label column or target columns, got both"):
        load(name, label_column="label", target_columns="label")
    with pytest.raises(UserError, match=r"Did you mean '.*list\.csv'"):
        load(f"csv:{root / 't/lists.csv'}")
    (root / "t/list.csv").write_bytes("image,label\né,a\n".encode("latin1"))
    with pytest.raises(UserError, match=r"expected text in UTF-8 in .* got byte 0xe9"):
        load(name)
