"""The same experts on shifted data: other splits, other sets, corrupted images."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import mumoe
from analysis.planted_experts import plant
from mumoe.analysis.purity import measure_purity
from mumoe.analysis.shifting import Shift
from mumoe.cli import main
from mumoe.data.base import ImageData
from mumoe.errors import UserError

CLASSES = ("red", "green", "blue", "grey", "black")
COLOURS = ((210, 50, 50), (50, 160, 50), (50, 50, 210), (150, 150, 150), (15, 15, 15))
SIDE = 12


class Pictures:
    """Images of a class's colour with some noise of their own; picklable."""

    fingerprint = "pictures"

    def __call__(self, index):
        rng = np.random.default_rng(index)
        pixels = np.array(COLOURS[index % 5]) + rng.normal(0, 25, (SIDE, SIDE, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_data(images=300):
    rng = np.random.default_rng(0)
    return ImageData(
        name="pictures",
        classes=CLASSES,
        multi_label=False,
        labels=np.arange(images) % 5,
        split=rng.choice(3, size=images, p=(0.5, 0.2, 0.3)).astype(np.int8),
        ids=tuple(f"{index}.png" for index in range(images)),
        open_image=Pictures(),
        fingerprint=f"pictures-{images}",
    )


class Means(torch.nn.Module):
    """A backbone without weights: the mean colour, the deviation from it, and products of both."""

    name, num_features, fingerprint = "means", 9, "means"

    def forward(self, images):
        mean, spread = images.mean((2, 3)), images.std((2, 3))
        return torch.cat([mean, spread, mean[:, [0, 1, 2]] * mean[:, [1, 2, 0]]], dim=1)

    def transform(self, train=False):
        return plain


def plain(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUMOE_CACHE", str(folder / "cache"))
        job = mumoe.train(
            data=make_data(),
            backbone=Means(),
            head="CPMuMoE-r6-e12",
            against=["linear"],
            seeds=2,
            epochs=20,
            batch_size=30,
            lr=0.02,
            out=str(folder / "job"),
            progress=False,
        )
        for run in job.runs:
            if run.config.head != "linear":
                plant(run)
        yield job


def of(found, head):
    return [run for run in found.runs if run.head == head]


def test_the_same_images_are_no_shift(job):
    data = make_data()
    same = dataclasses.replace(data, name="the same under another name")
    for run in job.shift(same, least_lost=2, out=job.path / "same.json").runs:
        (after,) = run.after
        assert (after.purity, after.left_out) == (run.before, 0)
        assert after.kept == run.before.strong == after.could_keep
    experts = of(job.shift(same, least_lost=2, out=job.path / "same.json"), "CPMuMoE-r6-e12")
    assert sum(run.before.strong for run in experts) > 0


def test_classes_are_known_by_name_and_others_are_left_out(job):
    data = make_data()
    names = ("black", "purple", "grey", "blue", "green", "red")
    labels = np.array([names.index(CLASSES[label]) for label in data.labels])
    labels[data.indices("test")[:7]] = names.index("purple")
    other = dataclasses.replace(data, name="renamed", classes=names, labels=labels)
    run = job.runs[0]
    (found,) = run.shift(other, least_lost=2).runs
    (after,) = found.after
    kept = data.indices("test")[7:]
    measured = measure_purity(run.head, run.inputs, kept, least_lost=2).purity
    assert (after.left_out, after.purity) == (7, measured)
    shown = run.shift(other, least_lost=2)
    assert "Left out: 7 images" in shown.sentences()[-2]
    assert shown.to_frame()["left_out"].tolist() == [0, 7]
    with pytest.raises(UserError, match="expected data with the classes of"):
        run.shift(dataclasses.replace(data, classes=tuple("vwxyz"), name="letters"))


def test_images_that_the_run_was_trained_on_are_left_out(job):
    data = make_data()
    turned = dataclasses.replace(data, split=np.full(len(data), 2, np.int8), fingerprint="turned")
    (found,) = job.runs[0].shift(turned).runs
    trained = len(data.indices("train"))
    assert found.after[0].left_out == trained
    assert found.after[0].purity.images == len(data) - trained
    only = dataclasses.replace(turned, split=np.where(data.split == 0, 2, 0).astype(np.int8))
    with pytest.raises(UserError, match=r"whose class .* knows and that it was not trained on, got none of"):
        job.runs[0].shift(only)


def test_a_split_is_compared_with_another(job):
    found = job.shift("test")
    assert found.before == "val"
    data = make_data()
    for run, opened in zip(found.runs, job.runs, strict=True):
        assert run.before.images == len(data.indices("val"))
        assert run.before.accuracy == pytest.approx(opened.evaluate("val").accuracy)
        assert run.after[0].purity.accuracy == pytest.approx(opened.evaluate("test").accuracy)
    assert {run.head for run in found.runs} == {"CPMuMoE-r6-e12", "linear"}


@pytest.mark.parametrize("name", ["gaussian-noise", "blur", "low-contrast"])
def test_corruptions_are_measured_at_three_severities_beside_the_partner(job, name):
    found = job.shift(name, least_lost=2, images=60)
    for run in found.runs:
        assert [after.name for after in run.after] == [f"{name} {severity}" for severity in (1, 2, 3)]
        assert {after.purity.images for after in run.after} == {60} == {run.before.images}
        assert (run.before.strong is None) == (run.head == "linear") == (run.after[0].kept is None)
        for after in run.after:
            if after.kept is not None:
                assert after.kept <= min(after.purity.strong, run.before.strong, after.could_keep)
    assert Shift.load(job.path / f"shift-{name}.json") == found
    assert f"{name} 3" in found.headline()


def test_low_contrast_makes_colours_alike(job):
    found = job.shift("low-contrast", least_lost=2)
    for run in found.runs:
        accuracy = [run.before.accuracy, *(after.purity.accuracy for after in run.after)]
        assert accuracy[0] > 0.9 > accuracy[3]
        changes = [row["change"] for row in found.rows() if (row["head"], row["seed"]) == (run.head, run.seed)]
        assert changes == pytest.approx([value - accuracy[0] for value in accuracy])


def test_the_record_is_shown(job):
    found = job.shift("blur", images=40)
    frame = found.to_frame()
    assert len(frame) == 4 * 4
    means = found.means()
    chosen = frame[(frame["head"] == "linear") & (frame["severity"] == 2)]
    row = next(row for row in means if row["head"] == "linear" and row["severity"] == 2)
    assert row["accuracy"].mean == pytest.approx(chosen["accuracy"].mean())
    assert row["accuracy"].sd == pytest.approx(chosen["accuracy"].std())
    assert row["strong"] is None
    assert found.plot()._repr_png_().startswith(b"\x89PNG")
    assert sum("linear" in line for line in found.sentences()[1:]) == 4


def test_wrong_calls_are_told_in_one_line(job):
    run = job.runs[0]
    for call, text in (
        (lambda: run.shift("gaussian-nose"), "Did you mean 'gaussian-noise'"),
        (lambda: run.shift("blur", before="tset"), "`before`"),
        (lambda: run.shift("blur", images=-1), "expected `images` >= 0, got -1"),
        (lambda: run.shift("blur", least_lost=0), "expected `least_lost` >= 1"),
    ):
        with pytest.raises(UserError, match=text):
            call()


def feature_run(folder, **settings):
    data, rng = make_data(), np.random.default_rng(1)
    x = (rng.normal(size=(5, 8))[data.labels] + 0.6 * rng.normal(size=(len(data), 8))).astype(np.float32)
    folder.mkdir(exist_ok=True)
    np.save(folder / "x.npy", x)
    np.save(folder / "labels.npy", np.array(CLASSES)[data.labels])
    np.save(folder / "split.npy", data.split)
    mumoe.train(
        data=f"features:{folder / 'x.npy'}",
        head="CPMuMoE-r6-e12",
        against=["linear"],
        epochs=10,
        batch_size=30,
        lr=0.02,
        out=str(folder / "run"),
        progress=False,
    )
    return x, data


def test_features_cannot_be_corrupted_but_shifted_by_another_file(tmp_path):
    x, data = feature_run(tmp_path)
    job = mumoe.load(tmp_path / "run", progress=False)
    with pytest.raises(UserError, match=r"expected a run on images for blur, got one on features computed elsewhere"):
        job.shift("blur")
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "x.npy", x[::-1] + np.float32(0.5))
    np.save(other / "labels.npy", np.array(CLASSES)[data.labels[::-1]])
    np.save(other / "split.npy", data.split[::-1])
    found = job.shift(f"features:{other / 'x.npy'}")
    for run, opened in zip(found.runs, job.runs, strict=True):
        rows = data.indices("test")
        with torch.no_grad():
            answers = opened.head(torch.from_numpy(x[rows] + np.float32(0.5))).argmax(1).numpy()
        right = np.array(opened.classes)[answers] == np.array(CLASSES)[data.labels[rows]]
        assert run.after[0].purity.accuracy == pytest.approx(right.mean())
        assert run.after[0].purity.images == len(rows)
    wide = tmp_path / "wide"
    wide.mkdir()
    np.save(wide / "x.npy", np.concatenate([x, x], axis=1))
    np.save(wide / "labels.npy", np.array(CLASSES)[data.labels])
    with pytest.raises(UserError, match="expected 8 features as in .*, got 16"):
        job.shift(f"features:{wide / 'x.npy'}")


def test_the_command_prints_what_the_record_says(tmp_path, capsys):
    feature_run(tmp_path)
    assert main(["shift", str(tmp_path / "run"), "test", "--least-lost", "2", "--quiet"]) == 0
    found = Shift.load(tmp_path / "run" / "shift-test.json")
    assert capsys.readouterr().out == "\n".join(found.sentences()) + "\n"
    one, linear = (next((tmp_path / "run").glob(f"{name}*/seed-0")) for name in ("CP", "linear"))
    assert main(["shift", str(one), "test", "--against", str(linear), "--json", "--quiet"]) == 0
    assert [run["head"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["CPMuMoE-r6-e12", "linear"]
    assert main(["shift", str(one), "blur", "--quiet"]) == 2
    assert "mumoe shift: expected a run on images for blur" in capsys.readouterr().err
    assert main(["shift", str(one), "test", "--images", "-3", "--quiet"]) == 2
    assert "expected --images >= 0" in capsys.readouterr().err
