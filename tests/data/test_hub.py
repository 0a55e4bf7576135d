"""``hf:`` with a stand-in for `datasets`, and with the real one, which `make test` installs."""

import importlib
import io
import sys
import types
from multiprocessing.reduction import ForkingPickler

import pyarrow
import pytest
from PIL import Image

from mumoe.data import load_data
from mumoe.errors import JobError, UserError

COLOURS = [(10 * index, 5, 200 - 10 * index) for index in range(12)]


class Value:
    names = None


class ClassLabel:
    def __init__(self, names):
        self.names = names


class ImageFeature:
    def __init__(self, decode=True):
        self.decode = decode


ImageFeature.__name__ = "Image"


class Table:
    """As much of `datasets.Dataset` as the loader uses."""

    def __init__(self, columns, features):
        self.columns, self.features = columns, features

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        return {name: values[key] for name, values in self.columns.items()}

    def cast_column(self, name, feature):
        assert not feature.decode
        return Table(self.columns, {**self.features, name: feature})

    def with_format(self, kind):
        assert kind == "arrow"
        return Table({name: pyarrow.array(values) for name, values in self.columns.items()}, self.features)

    def select_columns(self, names):
        return Table({name: self.columns[name] for name in names}, {name: self.features[name] for name in names})


class StandIn(types.ModuleType):
    """As much of the module, over sets kept by name."""

    Image, Value, ClassLabel = ImageFeature, Value, ClassLabel

    def __init__(self):
        super().__init__("datasets")
        nowhere = "/nonexistent/cache"
        self.config = types.SimpleNamespace(
            HF_HUB_OFFLINE=False, HF_DATASETS_CACHE=nowhere, DOWNLOADED_DATASETS_PATH=nowhere
        )
        self.sets, self.hub, self.asked = {}, {}, []

    def load_from_disk(self, path):
        return self.sets[path]

    def load_dataset(self, name, config=None, *, cache_dir=None, revision=None):
        self.asked.append((name, config, revision, self.config.HF_HUB_OFFLINE))
        if self.config.HF_HUB_OFFLINE:
            raise ConnectionError(f"Couldn't reach {name}")
        return self.hub[name]

    def save(self, tables, path):
        path.mkdir(parents=True)
        (path / ("dataset_dict.json" if isinstance(tables, dict) else "state.json")).write_text("{}")
        self.sets[str(path)] = tables

    def table(self, columns, features):
        return Table(columns, features)


class Real:
    """The same two verbs over the installed package."""

    def __init__(self, module):
        self.module = module
        self.Image, self.ClassLabel = module.Image, module.ClassLabel

    def Value(self):
        return self.module.Value("string")

    def table(self, columns, features):
        return self.module.Dataset.from_dict(columns, features=self.module.Features(features))

    def save(self, tables, path):
        saved = self.module.DatasetDict(tables) if isinstance(tables, dict) else tables
        saved.save_to_disk(str(path))


@pytest.fixture
def standin(monkeypatch):
    module = StandIn()
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.fixture(params=["stand-in", "installed"])
def library(request):
    if request.param == "stand-in":
        return request.getfixturevalue("standin")
    return Real(importlib.import_module("datasets"))


def encoded(colour):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(library, rows):
    labels = {
        "label": [row % 3 for row in rows],
        "studio": ["noto" if row < 6 else "openmoji" for row in rows],
    }
    features = {
        "picture": library.Image(),
        "label": library.ClassLabel(names=["a", "b", "c"]),
        "studio": library.Value(),
    }
    return library.table({"picture": [encoded(COLOURS[row]) for row in rows], **labels}, features)


def test_a_saved_table(library, root, load):
    library.save(table(library, range(12)), root / "saved")
    data = load(f"hf:{root / 'saved'}")
    assert data.classes == ("a", "b", "c")
    assert data.labels.tolist() == [row % 3 for row in range(12)]
    assert [data.open_image(row).getpixel((2, 2)) for row in range(12)] == COLOURS
    assert data.attributes["studio"].values == ("noto", "openmoji")
    assert data.attributes["studio"].codes.tolist() == [0] * 6 + [1] * 6
    assert data.ids[0] == "all/0"
    assert [len(data.indices(part)) > 0 for part in ("train", "val", "test")] == [True] * 3
    assert data.fingerprint == load(f"hf:{root / 'saved'}").fingerprint
    assert data.problems == ()


def test_its_splits_are_kept(library, root, load):
    tables = {
        "train": table(library, range(8)),
        "validation": table(library, [8, 9]),
        "test": table(library, [10, 11]),
        "extra": table(library, [0]),
    }
    library.save(tables, root / "saved")
    data = load(f"hf:{root / 'saved'}")
    assert data.split.tolist() == [0] * 8 + [1] * 2 + [2] * 2
    assert data.ids[8] == "validation/0"
    assert data.open_image(11).getpixel((0, 0)) == COLOURS[11]
    assert data.problems == ("split 'extra' was left out",)


def test_rows_that_are_left_out_move_no_split(standin, root, load):
    tables = {"train": table(standin, range(8)), "test": table(standin, range(8, 12))}
    tables["train"].columns["label"][2] = -1
    standin.save(tables, root / "saved")
    data = load(f"hf:{root / 'saved'}", val_fraction=0.0)
    assert data.split.tolist() == [0] * 7 + [2] * 4
    assert data.labels.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2]


def test_bad_images_and_labels_are_left_out_and_named(library, root, load):
    made = table(library, range(12))
    cells = [encoded(colour) for colour in COLOURS]
    cells[1] = {"bytes": b"", "path": None}
    cells[2] = {"bytes": cells[2]["bytes"][:40], "path": None}
    labels = [row % 3 for row in range(12)]
    labels[5] = -1
    columns = {"picture": cells, "label": labels, "studio": ["x"] * 12}
    library.save(library.table(columns, dict(made.features)), root / "saved")
    data = load(f"hf:{root / 'saved'}")
    assert len(data) == 9
    assert data.problems == (
        "label: no value in 1 of 12 rows (1 empty), left out (all/5)",
        "all/1: the file is empty",
        "all/2: not an image that Pillow can read",
    )
    assert data.open_image(data.ids.index("all/4")).getpixel((0, 0)) == COLOURS[4]


def test_images_kept_beside_the_table(standin, root, load):
    made = table(standin, range(12))
    made.columns["picture"] = [{"bytes": None, "path": str(root / f"{row}.png")} for row in range(12)]
    for row in range(11):
        Image.new("RGB", (3, 3), COLOURS[row]).save(root / f"{row}.png")
    standin.save(made, root / "saved")
    place = f"hf:{root / 'saved'}"
    with pytest.raises(UserError, match=r"images inside .*saved', got 12 files elsewhere, .* allow_outside=true"):
        load(place)
    data = load(place, allow_outside=True)
    assert data.problems == ("all/11: no such file",)
    assert data.open_image(10).getpixel((0, 0)) == COLOURS[10]


def test_it_reaches_spawned_workers(library, root, load):
    """They get the images by this pickler."""
    library.save(table(library, range(12)), root / "saved")
    data = load(f"hf:{root / 'saved'}")
    again = ForkingPickler.loads(ForkingPickler.dumps(data.open_image))
    assert again(7).getpixel((0, 0)) == COLOURS[7]
    assert data.labels[7] == 1


def test_columns_by_option_and_mistakes(library, root, load):
    library.save(table(library, range(12)), root / "saved")
    name = f"hf:{root / 'saved'}"
    assert load(name, label_column="studio").classes == ("noto", "openmoji")
    with pytest.raises(UserError, match=r"expected a column of images, got picture, label, studio"):
        load(name, image_column="label")
    with pytest.raises(UserError, match=r"Did you mean 'label'\?"):
        load(name, label_column="lable")


def test_a_changed_image_changes_the_fingerprint(library, root, load):
    library.save(table(library, range(12)), root / "one")
    library.save(table(library, [0, 4, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]), root / "two")
    assert load(f"hf:{root / 'one'}").fingerprint != load(f"hf:{root / 'two'}").fingerprint


def test_the_hub_is_asked_only_when_allowed(standin, load):
    standin.hub["someone/pets"] = table(standin, range(12))
    with pytest.raises(UserError) as error:
        load("hf:someone/pets")
    assert str(error.value) == (
        "hf:someone/pets: expected a folder or a set that was downloaded before, got: "
        "Couldn't reach someone/pets. Check the name, or allow the download with `download`."
    )
    assert standin.config.HF_HUB_OFFLINE is False
    assert len(load("hf:someone/pets", download=True, config="small", revision="v1")) == 12
    assert standin.asked == [("someone/pets", None, None, True), ("someone/pets", "small", "v1", False)]
    with pytest.raises(JobError, match="hf:someone/none: expected to load the set"):
        load("hf:someone/none", download=True)


def test_a_set_that_was_never_fetched_is_one_line():
    with pytest.raises(UserError, match="expected a folder or a set that was downloaded before") as error:
        load_data("hf:someone/never-fetched")
    assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'mumoe\[data\]'"):
        load_data("hf:someone/pets")


def test_a_folder_of_parquet(root, load):
    datasets = importlib.import_module("datasets")
    (root / "files").mkdir()
    table(Real(datasets), range(9)).to_parquet(str(root / "files/train.parquet"))
    table(Real(datasets), [9, 10, 11]).to_parquet(str(root / "files/test.parquet"))
    data = load(f"hf:{root / 'files'}")
    assert data.classes == ("a", "b", "c")
    assert data.split[-3:].tolist() == [2, 2, 2]
    assert data.open_image(11).getpixel((0, 0)) == COLOURS[11]


def columns_of(library, rows, **columns):
    """A table of pictures and these columns, each (values, feature)."""
    cells = {"picture": [encoded(COLOURS[row]) for row in rows]}
    features = {"picture": library.Image()}
    for name, (values, feature) in columns.items():
        cells[name], features[name] = values, feature
    return library.table(cells, features)


def test_missing_values_of_every_type_are_unknown(root, load):
    datasets = importlib.import_module("datasets")
    library, nan = Real(datasets), float("nan")
    made = columns_of(
        library,
        range(12),
        label=([0.0, 1.0, 2.0, nan, 10.0, None, 1.0, 2.0, 0.0, 10.0, 1.0, 2.0], datasets.Value("float32")),
        sex=(["f", "m", None, "f", "m", "", "f", "m", "f", "m", "f", "m"], datasets.Value("string")),
        tone=([0, 1, -1, 0, 1, 0, 1, 0, 1, 0, 1, 0], datasets.ClassLabel(names=["light", "dark"])),
        old=([True, False, None, True] * 3, datasets.Value("bool")),
        score=([1.0, nan, 0.0] * 4, datasets.Value("float64")),
    )
    library.save(made, root / "saved")
    data = load(f"hf:{root / 'saved'}")
    assert data.classes == ("0", "1", "2", "10")
    assert data.problems == ("label: no value in 2 of 12 rows (1 'nan', 1 'None'), left out (all/3, all/5)",)
    expected = {"sex": ("f", "m"), "tone": ("dark", "light"), "old": ("no", "yes"), "score": ("no", "yes")}
    assert {name: column.values for name, column in data.attributes.items()} == expected
    assert data.attributes["sex"].codes.tolist() == [0, 1, -1, 1, 0, 1, 0, 1, 0, 1]
    assert data.attributes["tone"].codes[2] == data.attributes["old"].codes[2] == -1
    assert data.attributes["score"].codes.tolist()[:4] == [1, -1, 0, -1]


def test_splits_with_different_columns(library, root, load):
    label, text = library.ClassLabel(names=["a", "b", "c"]), library.Value()
    other = library.ClassLabel(names=["c", "a", "b", "d"])
    tables = {
        "train": columns_of(library, range(6), label=([0, 1, 2, 0, 1, 2], label), studio=(["n", "o"] * 3, text)),
        "validation": columns_of(library, [6, 7], studio=(["n", "o"], text), label=([0, 1], label)),
        "test": columns_of(library, range(8, 12), label=([0, 1, 2, 3], other), camera=(["x", "x", "y", "y"], text)),
    }
    library.save(tables, root / "saved")
    data = load(f"hf:{root / 'saved'}", group_columns="studio,camera")
    assert data.classes == ("a", "b", "c", "d")
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 3]
    assert data.attributes["studio"].codes.tolist() == [0, 1] * 4 + [-1] * 4
    assert data.attributes["camera"].codes.tolist() == [-1] * 8 + [0, 0, 1, 1]
    assert data.problems == (
        "split 'test' has no column 'studio'",
        "split 'train' has no column 'camera'",
        "split 'validation' has no column 'camera'",
        "class 'd' has no image in train",
    )
    with pytest.raises(UserError, match="split 'test' has no column 'studio'"):
        load(f"hf:{root / 'saved'}", group_columns="studio", strict=True)


def test_a_split_without_labels_or_images_is_left_out_and_named(library, root, load):
    label = library.ClassLabel(names=["a", "b"])
    tables = {
        "train": columns_of(library, range(6), label=([0, 1] * 3, label)),
        "test": columns_of(library, [6, 7], studio=(["n", "o"], library.Value())),
        "val": library.table({"label": [0, 1]}, {"label": label}),
    }
    library.save(tables, root / "saved")
    data = load(f"hf:{root / 'saved'}", val_fraction=0.0, test_fraction=0.0, group_columns=[])
    assert data.ids == tuple(f"train/{row}" for row in range(6))
    assert data.problems == (
        "split 'val' has no images in 'picture', left out",
        "split 'test' has no column 'label'",
        "label: no value in 2 of 8 rows (2 empty), left out (test/0, test/1)",
    )


def test_a_file_named_by_two_rows_is_one_image(standin, root, load):
    cells = [{"bytes": None, "path": str(root / f"{row}.png")} for row in range(11)]
    for row in range(11):
        Image.new("RGB", (3, 3), COLOURS[row]).save(root / f"{row}.png")
    made = table(standin, range(12))
    made.columns["picture"] = [*cells, {"bytes": None, "path": str(root / "x" / ".." / "4.png")}]
    (root / "x").mkdir()
    standin.save(made, root / "saved")
    data = load(f"hf:{root / 'saved'}", allow_outside=True)
    assert data.problems == ("all/11: is the same file as all/4; only the first is used",)
