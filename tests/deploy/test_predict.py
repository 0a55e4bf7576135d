"""Predictions: the experts' terms are exact and add up; any image file is read, or named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mumoe.commands.predict import _expert_lines
from mumoe.deploy.model import ImageClassifier
from mumoe.deploy.predictions import Prediction, explain, find_images, note, predict_files
from mumoe.errors import UserError
from tests_support import mix, randomize, weight_by_formula
from training.made_up_training import made_up_image

HEADS = (
    "CPMuMoE-r4-e5",
    "CPMuMoE-r4-e3x2",
    "TuckerMuMoE-r3-e4",
    "TTMuMoE-r4-e3x2",
    "TRMuMoE-r4-e2x2x2",
    "DenseMuMoE-e3",
)


def classifier(head: str, **options: Any) -> ImageClassifier:
    torch.manual_seed(1)
    config = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = ImageClassifier("test_vit", head, 64, ["ant", "bee", "cat", "dog"], config, image_size=32, **options)
    randomize(model.head)
    model.head.standardize(torch.randn(64) * 0.1, torch.rand(64) + 0.5)
    return model.eval()


def some_images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def prepared(model: ImageClassifier, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.head.prepare(model.backbone(images))


def test_a_prediction_is_a_record_with_a_row_for_each_expert_of_a_label() -> None:
    for head in ("TRMuMoE-r4-e2x2x2", "DenseMuMoE-e3", "linear"):
        found = explain(classifier(head), some_images(1), ["a.png"], top=2, experts=2)[0]
        frame = found.to_frame()
        assert len(frame) == sum(max(len(label.experts), 1) for label in found.labels) >= 2
        assert frame["label"][0] == found.labels[0].label
        assert found.headline().startswith(f"a.png: {found.labels[0].label} (")
        assert Prediction.from_json(found.to_json()) == found


@pytest.mark.parametrize("head", HEADS)
def test_contributions_are_the_terms_of_the_definition(head: str) -> None:
    model, images = classifier(head), some_images()
    layer, z = model.head.layer, prepared(model, some_images())
    weight = weight_by_formula(layer)
    levels = [a.detach() for a in layer.coefficients(z)]
    combinations = list(itertools.product(*(range(size) for size in layer.num_experts)))
    for row, found in enumerate(explain(model, images, experts=len(combinations), top=4)):
        for label in found.labels:
            assert label.experts
            position = model.classes.index(label.label)
            assert sum(share.contribution for share in label.experts) == pytest.approx(label.logit, rel=1e-4, abs=1e-3)
            for share in label.experts:
                index = share.index if isinstance(share.index, tuple) else (share.index,)
                alone = [torch.zeros(1, size).double() for size in layer.num_experts]
                for level, n in enumerate(index):
                    alone[level][0, n] = float(levels[level][row, n])
                expected = float(mix(weight, z[row : row + 1], alone)[0, position])
                assert share.contribution == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("head", ["CPMuMoE-r4-e5", "CPMuMoE-r4-e4x3", "TRMuMoE-r4-e3x2x2"])
@pytest.mark.parametrize("experts", [1, 3, 7])
def test_the_experts_shown_have_the_largest_coefficients(head: str, experts: int) -> None:
    model, images = classifier(head), some_images()
    levels = [a.detach().double() for a in model.head.layer.coefficients(prepared(model, images))]
    for row, found in enumerate(explain(model, images, experts=experts)):
        products = {
            index: float(np.prod([float(a[row, n]) for a, n in zip(levels, index, strict=True)]))
            for index in itertools.product(*(range(a.shape[1]) for a in levels))
        }
        expected = [value for value in sorted(products.values(), reverse=True)[:experts] if value > 0]
        shares = found.labels[0].experts
        assert [share.coefficient for share in shares] == pytest.approx(expected)
        for share in shares:
            index = share.index if isinstance(share.index, tuple) else (share.index,)
            assert products[index] == pytest.approx(share.coefficient)


def test_labels_and_probabilities() -> None:
    model, images = classifier("linear"), some_images()
    with torch.no_grad():
        expected = model(images).softmax(-1)
    for row, found in enumerate(explain(model, images, ["a", "b", "c", "d"], top=2)):
        values, order = expected[row].topk(2)
        assert found.image == "abcd"[row]
        assert [label.label for label in found.labels] == [model.classes[n] for n in order]
        assert [label.probability for label in found.labels] == pytest.approx(values.tolist(), abs=1e-6)
        assert all(label.experts == () for label in found.labels)
    assert note(model) == "The head linear has no experts."


def test_sparse_moe_terms_add_up() -> None:
    model = classifier("sparse-moe-e4-k2")
    for found in explain(model, some_images(), experts=4):
        best = found.labels[0]
        assert len(best.experts) == 2
        assert sum(share.contribution for share in best.experts) == pytest.approx(best.logit, rel=1e-4, abs=1e-4)


def test_penultimate_has_coefficients_alone() -> None:
    model = classifier("CPMuMoE-r4-e5", position="penultimate")
    shares = explain(model, some_images(1))[0].labels[0].experts
    assert shares
    assert all(share.contribution is None and share.coefficient > 0 for share in shares)
    assert "no share of a logit" in note(model)


def test_attributes_are_those_above_the_threshold() -> None:
    model, images = classifier("CPMuMoE-r4-e5", multi_label=True), some_images(8)
    with torch.no_grad():
        probabilities = model(images).sigmoid()
    some = False
    for row, found in enumerate(explain(model, images, experts=5)):
        expected = {model.classes[n] for n in range(4) if probabilities[row, n] >= 0.5}
        assert {label.label for label in found.labels} == expected
        assert found.likeliest.probability == pytest.approx(float(probabilities[row].max()))
        for label in found.labels:
            total = sum(share.contribution for share in label.experts)
            assert total == pytest.approx(label.logit, rel=1e-4, abs=1e-3)
        some |= 0 < len(expected) < 4
    assert some
    assert explain(model, images[:1], threshold=1.0)[0].labels == ()


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"top": 0}, "top >= 1, got 0"), ({"experts": -1}, "experts >= 0"), ({"threshold": 1.5}, "threshold in 0..1")],
)
def test_numbers_out_of_range(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        explain(classifier("linear"), some_images(1), **options)


def test_predictions_name_experts_that_have_a_name() -> None:
    model = classifier("CPMuMoE-r4-e2")
    model.about["experts"] = [{"level": "0", "expert": n, "name": ("cats", "dogs")[n], "note": ""} for n in range(2)]
    label = explain(model, some_images(1), experts=2)[0].labels[0]
    assert {share.index: share.name for share in label.experts}.items() <= {0: "cats", 1: "dogs"}.items()
    lines = _expert_lines(label, 3)
    first = label.experts[0]
    assert lines[0].startswith(f"    expert {first.index} ({first.name}): coefficient {first.coefficient:.4f}")


# Files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Odd formats that can be read, and files that cannot."""
    place = tmp_path / "images"
    (place / "deep").mkdir(parents=True)
    image = made_up_image(0)
    image.convert("CMYK").save(place / "cmyk.jpg")
    Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16)) * 257).save(place / "sixteen.png")
    image.convert("P").save(place / "deep" / "palette.gif")
    image.save(place / "whole.png")
    (place / "cut.png").write_bytes((place / "whole.png").read_bytes()[:300])
    (place / "empty.jpg").touch()
    (place / "notes.txt").write_text("no image")
    return place


def test_a_folder_is_searched_for_images(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in find_images([folder])]
    assert names == ["cmyk.jpg", "cut.png", "deep/palette.gif", "empty.jpg", "sixteen.png", "whole.png"]
    assert find_images([folder / "notes.txt"]) == [folder / "notes.txt"]
    (folder.parent / "none").mkdir()
    with pytest.raises(UserError, match="expected images in the folder"):
        find_images([folder.parent / "none"])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_files_in_order_with_the_unreadable_named(folder: Path, batch_size: int) -> None:
    model = classifier("CPMuMoE-r4-e5")
    paths = [*find_images([folder]), folder / "missing.png", folder / "notes.txt"]
    found = list(predict_files(model, paths, batch_size=batch_size))
    assert [item.image for item in found] == [str(path) for path in paths]
    errors = {Path(item.image).name: item.error for item in found if item.error}
    assert errors == {
        "cut.png": "the image is truncated",
        "empty.jpg": "the file is empty",
        "missing.png": "no such file",
        "notes.txt": "not an image that Pillow can read",
    }
    whole = next(item for item in found if item.image.endswith("whole.png"))
    with torch.no_grad():
        expected = model(model.transform(made_up_image(0))[None]).softmax(-1)
    assert whole.labels[0].probability == pytest.approx(float(expected.max()), abs=1e-5)
