"""`mumoe predict`: what it prints, and its exit status when images cannot be read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mumoe import cli
from training.made_up_training import CLASSES, made_up_image


def call(capsys: pytest.CaptureFixture[str], *arguments: str | int | Path) -> tuple[int, str, str]:
    status = cli.main(["predict", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index in range(3):
        made_up_image(index).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("experts", [1, 2])
def test_text_names_label_probability_and_experts(run: Path, images: Path, capsys, experts: int) -> None:
    status, out, err = call(capsys, run, images / "0.png", "--top", "2", "--experts", experts)
    assert (status, err) == (0, "")
    first = re.search(r"0\.png: (0\.\d{4})  (\w+)  \(logit ([+-]\d+\.\d{3})\)\n", out)
    then = re.search(r"\n    then (0\.\d{4}) (\w+)\n", out)
    assert float(first[1]) >= float(then[1])
    assert {first[2], then[2]} < set(CLASSES)
    shares = re.findall(r"    expert \(\d, \d\): coefficient 0\.\d{4}, contributes ([+-]\d+\.\d{3})", out)
    assert len(shares) == experts
    rest = re.search(r"all other experts: ([+-]\d+\.\d{3})", out)
    assert sum(map(float, shares)) + float(rest[1]) == pytest.approx(float(first[3]), abs=0.005)
    assert out.splitlines()[-1].startswith("An expert's contribution is its term of the logit")


def test_json_is_one_object_per_image(run: Path, images: Path, capsys) -> None:
    (images / "bad.png").write_bytes(b"no")
    status, out, err = call(capsys, run, images, "--json")
    found = {Path(item["image"]).name: item for item in map(json.loads, out.splitlines())}
    assert status == 1
    assert sorted(found) == ["0.png", "1.png", "2.png", "bad.png"]
    assert found["bad.png"]["error"] == "not an image that Pillow can read"
    assert found["bad.png"]["labels"] == []
    best = found["0.png"]["labels"][0]
    assert set(best) == {"label", "probability", "logit", "experts"}
    assert set(best["experts"][0]) == {"index", "coefficient", "contribution", "name"}
    assert sum(label["probability"] for label in found["0.png"]["labels"]) <= 1 + 1e-6
    assert err.count("\n") == 1


def test_unreadable_images_are_named_once_and_the_others_predicted(run: Path, images: Path, capsys) -> None:
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:200])
    status, out, err = call(capsys, run, images / "0.png", images / "1.png", images / "gone.png", images / "2.png")
    assert status == 1
    assert out.count("0.png: ") == out.count("2.png: ") == 1
    assert "1.png" not in out
    assert err.startswith("mumoe predict: expected image files, got 2 of 4 that cannot be read: ")
    assert f"{images / '1.png'} (the image is truncated), {images / 'gone.png'} (no such file)" in err
    assert err.endswith("The others were predicted.\n")
    assert err.count("\n") == 1


def test_attributes(attribute_run: Path, images: Path, capsys) -> None:
    status, out, _ = call(capsys, attribute_run, images / "0.png", "--threshold", "0", "--experts", "1")
    assert status == 0
    assert [name for name in CLASSES if f"  {name}  (logit" in out] == list(CLASSES)
    assert out.count("all other experts") == len(CLASSES)
    status, out, _ = call(capsys, attribute_run, images / "0.png", "--threshold", "1")
    assert status == 0
    assert re.search(r"0\.png: none of 4 attributes reaches 1; \w+ has 0\.\d{4}\n", out)


def test_a_name_that_is_no_text_does_not_stop_it(run: Path, tmp_path: Path, capsys) -> None:
    odd = tmp_path / b"caf\xe9\n.png".decode("utf-8", "surrogateescape")
    Image.new("RGB", (8, 8)).save(odd, "PNG")
    status, out, _ = call(capsys, run, odd, "--top", "1", "--experts", "0")
    assert status == 0
    assert "caf\\udce9?.png: " in out
    odd.write_bytes(b"no")
    status, _, err = call(capsys, run, odd)
    assert status == 1
    assert err.count("\n") == 1


def test_wrong_calls(run: Path, features_run: Path, images: Path, capsys) -> None:
    for arguments, expected in (
        ((run.parent / "finetund", images), "Did you mean"),
        ((features_run, images), "got one trained on features that were passed in"),
        ((run,), "expected IMAGE (image files, or folders of images), got nothing"),
        ((run, images, "--top", "0"), "expected top >= 1"),
        ((run, images, "--batch-size", "0"), "expected --batch-size >= 1"),
    ):
        status, out, err = call(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert expected in err


def test_a_job_predicts_with_its_first_seed(run: Path, images: Path, tmp_path: Path, capsys) -> None:
    for seed in (0, 1):
        shutil.copytree(run, tmp_path / "job" / f"seed-{seed}")
    status, out, err = call(capsys, tmp_path / "job", images / "0.png", "--device", "cpu")
    assert status == 0
    assert out == call(capsys, run, images / "0.png", "--device", "cpu")[1]
    assert err == f"mumoe predict: using {tmp_path}/job/seed-0, the first seed. Runs of this job: seed-0, seed-1.\n"


def test_a_picture_that_is_not_there_is_counted_as_one(run: Path, tmp_path: Path, capsys) -> None:
    status, _, err = call(capsys, run, tmp_path / "nope.png")
    assert status == 1
    assert f"expected image files, got 1 of 1 that cannot be read: {tmp_path}/nope.png (no such file)" in err
