import numpy as np
import pytest

from mumoe.data import same
from mumoe.data.same import same_files
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
        "label: no value in 1 of 13 rows (1 empty), left out (line 14)",
        "line 15: split is 'later', expected train, val or test, left out",
        "pictures/0.png: listed again; only the first is used",
        "pictures/1.png: listed again; only the first is used",
        "pictures/none.png: no such file",
    )


def test_labels_out_of_range_and_targets_beside_zero_and_one(table, load):
    data = load(table(rows("image,label", PATHS, [0, 1, 0, 1, 5, -1, 0, 1])), classes=["a", "b"])
    assert data.problems[:2] == (
        "line 6: label '5' is not one of the 2 classes, left out",
        "line 7: label '-1' is not one of the 2 classes, left out",
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
        ("", "expected column names in line 1 of"),
        ("image,label,label\n", "got 'label' twice"),
        ("image,label\n", "expected rows below the header of"),
        ("image,label\na\n", "got none that can be read (line 2: 1 fields for 2 columns, left out)"),
        ("name,label\nx,y\n", "expected a column called one of image, path, file"),
        (
            "image,colour\nx,red\n",
            "or columns of 0/1, got colour. Name it with label_column or target_columns.",
        ),
        ('image,label\nx,"y\n', "expected a table, got line 2: unexpected end of data. Repair that line."),
        (
            "image,label\nx,\n",
            "expected rows that can be read, got none: such as label: no value in 1 of 1 rows (1 empty)",
        ),
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


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "None", "NaT", "<NA>", "NA", "null", " "])
def test_missing_values_are_no_class_target_or_subgroup(table, load, missing):
    labels, studio = ["a", missing, "b", "a", "b", "a", "b", "a"], ["n", "n", missing, "o", "o", "o", "n", missing]
    data = load(table(rows("image,label,studio", PATHS, labels, studio)), group_columns="studio")
    written = repr(missing.strip()) if missing.strip() else "empty"
    assert data.classes == ("a", "b")
    assert data.problems == (f"label: no value in 1 of 8 rows (1 {written}), left out (line 3)",)
    assert data.attributes["studio"].values == ("n", "o")
    assert data.attributes["studio"].codes.tolist() == [0, -1, 1, 1, 1, 0, -1]
    smiles = [1, missing, 0, 1, 0, 1, 0, 1]
    data = load(table(rows("image,smiles", PATHS, smiles)), target_columns="smiles")
    assert data.labels[:, 0].tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert data.problems == (f"smiles: no value in 1 of 8 rows (1 {written}), left out (line 3)",)
    with pytest.raises(UserError, match="smiles: no value in 1 of 8 rows"):
        load(table(rows("image,smiles", PATHS, smiles)), target_columns="smiles", strict=True)


@pytest.mark.parametrize(("one", "zero", "minus"), [("1", "0", "-1"), ("1.0", "0.0", "-1.0"), ("yes", "no", "-1")])
def test_minus_one_beside_zero_and_one_is_unknown(table, load, one, zero, minus):
    odd = [one, zero, minus, one, zero, one, minus, zero]
    data = load(table(rows("image,edema,heart", PATHS, odd, [one, zero] * 4)))
    assert data.classes == ("edema", "heart")
    assert data.labels[:, 0].tolist() == [1, 0, 1, 0, 1, 0]
    assert data.problems == (f"edema: no value in 2 of 8 rows (2 '{minus}'), left out (line 4, line 8)",)
    group = load(table(rows("image,label,edema", PATHS, list("abababab"), odd)))
    assert group.attributes["edema"].values == ("no", "yes")
    assert group.attributes["edema"].codes.tolist() == [1, 0, -1, 1, 0, 1, -1, 0]


@pytest.mark.parametrize(("one", "minus"), [("1", "-1"), ("1.0", "-1.0"), ("1", "-1.0")])
def test_minus_one_and_one_alone_are_no_and_yes(table, load, one, minus):
    data = load(table(rows("image,male", PATHS, [one, minus] * 4)))
    assert data.classes == ("male",)
    assert data.labels[:, 0].tolist() == [1, 0] * 4
    assert data.problems == ()


def test_a_label_of_minus_one_beside_zero_and_one_is_unknown_unless_it_is_named(table, load):
    labels = [0, 1, -1, 0, 1, 0, 1, 0]
    data = load(table(rows("image,label", PATHS, labels)))
    assert data.classes == ("0", "1")
    assert data.problems == ("label: no value in 1 of 8 rows (1 '-1'), left out (line 4)",)
    named = load(table(rows("image,label", PATHS, labels)), classes="-1,0,1")
    assert named.labels.tolist() == [1, 2, 0, 1, 2, 1, 2, 1]


def test_numbers_are_one_class_and_sort_as_numbers(table, load):
    data = load(table(rows("image,label", PATHS, ["0.0", "10.0", "2.0", "1.0", "1", "2", "10", "-3.5"])))
    assert data.classes == ("-3.5", "0", "1", "2", "10")
    assert data.labels.tolist() == [1, 4, 3, 2, 2, 3, 4, 0]
    codes = load(table(rows("image,label", PATHS, ["007", "7", "010", "7", "007", "10", "10", "010"])))
    assert codes.classes == ("007", "7", "010", "10")
    assert load(table(rows("image,label", PATHS, ["0.0", "1.0"] * 4)), classes="a,b").labels.tolist() == [0, 1] * 4


def test_infinite_labels_are_left_out_and_named(table, load):
    data = load(table(rows("image,label", PATHS, ["1", "2", "inf", "1", "2", "1", "-inf", "1"])))
    assert data.classes == ("1", "2")
    assert data.problems == ("label: no value in 2 of 8 rows (1 'inf', 1 '-inf'), left out (line 4, line 8)",)


def test_one_file_under_several_paths_is_one_image(table, load, root):
    name = table(rows("image,label,split", PATHS[:4], list("abab"), ["train"] * 4))
    folder = root / "t"
    (folder / "link.png").symlink_to(folder / PATHS[2])
    (folder / "elsewhere").symlink_to(folder / "pictures")
    aliases = [str(folder / PATHS[0]), f"../t/{PATHS[1]}", "link.png", "elsewhere/3.png"]
    text = rows("image,label,split", [*PATHS[:4], *aliases], list("abab") * 2, ["train"] * 4 + ["test"] * 4)
    data = load(table(text), val_fraction=0.0, test_fraction=0.0)
    assert len(data) == 4
    assert set(data.split.tolist()) == {0}
    assert data.problems == tuple(
        f"{alias}: is the same file as {path}; only the first is used"
        for path, alias in zip(PATHS, [aliases[0], f"../t/{PATHS[1]}", *aliases[2:]], strict=False)
    )
    with pytest.raises(UserError, match="is the same file as pictures/0.png"):
        load(name, strict=True)


def test_case_counts_where_the_disk_says_so(tmp_path, monkeypatch):
    lower, upper = tmp_path / "a.png", tmp_path / "A.png"
    lower.write_bytes(b"1")
    upper.write_bytes(b"2")
    paths = [str(lower), str(upper)]
    assert same_files(paths) == {}
    monkeypatch.setattr(same.os.path, "samefile", lambda one, other: one.lower() == other.lower())
    assert same_files(paths) == {1: 0}
