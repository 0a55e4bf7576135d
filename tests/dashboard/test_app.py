"""What the addresses answer, and what they say to requests that make no sense."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import mumoe
from dashboard.made_up_run import CLASSES, EVIL, draw
from dashboard.talking import get, post, refused, request
from mumoe.dashboard import app, audit_panel, image_panel
from mumoe.deploy.model import ImageClassifier
from mumoe.deploy.predictions import explain
from mumoe.editing.group_audit import Audit


def test_the_state_names_everything_and_the_secret_of_the_page(running):
    found = get(running, "/api/state")
    assert found["page"] == running.keys.page
    run = found["run"]
    assert run["classes"] == list(CLASSES)
    assert run["num_experts"] == [12]
    assert run["splits"] == {"train": 180, "val": 120, "test": 60}
    assert run["split"] == "val"
    assert run["attributes"]["studio"] == ["<i>inked</i>", "plain"]
    assert sorted(run["sensitive"]) == sorted([*CLASSES, "studio"])
    assert run["analyzed"] == "test"


def test_columns_of_all_experts_equal_the_coefficients(running, session):
    found = get(running, "/api/experts", split="test", level=0, gap="studio")
    rows = session.split("test").images
    a = session.run.coefficients(rows, "test")[0].to_dense().numpy()
    np.testing.assert_array_equal(found["load"], (a >= 0.5).sum(0))
    np.testing.assert_array_equal(found["touched"], (a > 0).sum(0))
    np.testing.assert_allclose(found["mean"], a.mean(0), atol=1e-6)
    inked = session.run.data.attributes["studio"].codes[rows] == 0
    np.testing.assert_allclose(found["gap"], abs(a[inked].mean(0) - a[~inked].mean(0)), atol=1e-6)
    analysis = json.loads((session.folder / "analysis" / "analysis.json").read_text())
    effects = {item["unit"]: item for item in analysis["study"]["units"][0]["modes"]["zero"]["effects"]}
    assert found["polysemanticity"] == [effects[n]["polysemanticity"] if n in effects else None for n in range(12)]
    assert found["loss"] == [
        effects[n]["top_loss"] if n in effects and effects[n]["top_loss"] > 0 else None for n in range(12)
    ]
    control = analysis["study"]["units"][0]["load_control"]
    random = {item["unit"]: item["polysemanticity"] for item in control["effects"]}
    assert found["control_polysemanticity"] == [random.get(n) for n in range(12)]
    assert found["images"] == [effects[n]["images"] if found["strong"][n] else None for n in range(12)]
    assert found["summary"]["control"]["strong"] == control["strong"] == sum(found["control_strong"])
    assert found["summary"]["experts"]["mean_polysemanticity"] != found["summary"]["control"]["mean_polysemanticity"]


def test_columns_of_a_subgroup_count_its_images_alone(running, session):
    found = get(running, "/api/experts", split="val", level=0, label="round", attribute="studio", value="plain")
    rows = session.split("val").images
    mine = rows[(session.run.data.labels[rows, 0] == 1) & (session.run.data.attributes["studio"].codes[rows] == 1)]
    a = session.run.coefficients(mine, "test")[0].to_dense().numpy()
    assert found["rows"] == len(mine) > 0
    np.testing.assert_array_equal(found["touched"], (a > 0).sum(0))


def test_one_expert_with_what_its_classes_lose(running, session):
    found = get(running, "/api/expert", split="test", level=0, expert=3)
    expected = session.analyzed.levels[0].experts[3]
    assert found["analysis"]["polysemanticity"] == expected.polysemanticity
    assert [item["loss"] for item in found["analysis"]["losses"]] == [item.loss for item in expected.losses]
    assert all(len(item["interval"]) == 2 for item in found["analysis"]["losses"])
    assert found["touched"] == expected.touched


def test_an_audit_is_that_of_the_run_by_experts_and_by_named_attributes(running, session, run):
    found = get(running, "/api/audit", split="val", target=CLASSES[1])
    made = mumoe.load(run, progress=False).audit(CLASSES[1], split="val")
    assert (found["labels"], found["images"]) == (list(made.labels), 120)
    for name, audit in (("experts", made), ("attributes", made.by_attributes)):
        assert found[name]["headline"] == Audit.headline(audit)
        assert found[name]["total"] == len(audit.findings)
        shown = [(row["group"], row["label"], row["score"], row["p_corrected"]) for row in found[name]["findings"]]
        expected = [(f.group_in_words(), f.label, f.score, f.p_corrected) for f in audit.findings]
        assert shown == expected[: audit_panel.SHOWN]
    assert any("studio = <i>inked</i>" in row["group"] for row in found["attributes"]["findings"])
    status, _, content = request(running, "GET", "/api/audit?split=val&target=nope")
    assert (status, b"expected target out of" in content.replace(b"`", b"")) == (400, True)


def test_images_of_an_expert_come_with_the_largest_coefficient_first(running, session):
    found = post(running, "/api/images", split="val", level=0, expert=3, offset=0, limit=500)
    a = session.run.coefficients(session.split("val").images, "test")[0].to_dense().numpy()[:, 3]
    assert found["total"] == (a > 0).sum()
    values = [item["coefficient"] for item in found["items"]]
    np.testing.assert_allclose(values, np.sort(a[a > 0])[::-1], atol=1e-6)


def test_lists_of_images_by_filter_and_answer(running, session):
    split = session.split("val")
    right = split.scores.right.all(1)
    found = post(running, "/api/images", split="val", kind="wrong", offset=0, limit=500)
    assert [item["image"] for item in found["items"]] == split.images[~right].tolist()
    assert all(not item["right"] for item in found["items"])
    page = post(running, "/api/images", split="val", offset=7, limit=3)
    assert [item["image"] for item in page["items"]] == split.images[7:10].tolist()
    assert page["total"] == 120


def test_an_image_is_the_sum_of_its_experts(running, session):
    image = int(session.split("val").images[5])
    found = post(running, "/api/image", image=image)
    logits = session.run.outputs(np.array([image]))[0]
    terms = np.array([expert["terms"] for expert in found["experts"]])
    order = found["classes"]
    np.testing.assert_allclose(terms.sum(0), logits[order], atol=1e-4)
    np.testing.assert_allclose(found["logits"], logits[order], atol=1e-5)
    assert found["truth"] == np.flatnonzero(session.run.data.labels[image]).tolist()
    layer, expert = session.run.layer, found["experts"][0]
    with layer.ablate(expert["index"]):
        without = session.run.outputs(np.array([image]))[0]
    np.testing.assert_allclose(expert["without"]["logits"], without[order], atol=1e-5)
    assert expert["without"]["decided"] == np.flatnonzero(without > 0).tolist()


def test_an_image_with_edits_gives_both_answers(running, session):
    image = int(session.split("val").images[5])
    ablation = {"name": "a", "kind": "ablate", "expert": 3, "level": 0, "strength": 1}
    found = post(running, "/api/image", image=image, edits=[ablation])
    with session.run.layer.ablate(3):
        expected = session.run.outputs(np.array([image]))[0]
    np.testing.assert_allclose(found["edited"]["logits"], expected[found["classes"]], atol=1e-5)
    assert "edited" not in post(running, "/api/image", image=image)


def test_an_own_picture_gets_what_predict_says(running, session, run):
    picture = draw(True, False, True, 99)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    status, _, content = request(running, "POST", "/api/upload", buffer.getvalue())
    assert status == 200
    found = json.loads(content)
    assert (found["width"], found["height"]) == (32, 32)
    assert found["picture"].startswith("data:image/webp;base64,")
    apart = post(running, "/api/image", upload=found["upload"])
    model = ImageClassifier.from_run(run)
    told = explain(model, model.transform(picture)[None], top=2, experts=12, threshold=0.0)[0]
    expected = {label.label: label for label in told.labels}
    for position, logit in zip(apart["classes"], apart["logits"], strict=True):
        assert logit == pytest.approx(expected[CLASSES[position]].logit, abs=1e-5)
    shares = {share.index: share.contribution for share in expected[CLASSES[apart["classes"][0]]].experts}
    assert {item["index"][0]: item["terms"][0] for item in apart["experts"]} == pytest.approx(shares, abs=1e-5)
    for _ in range(image_panel.MOST_UPLOADS):
        request(running, "POST", "/api/upload", buffer.getvalue())
    assert "Drop it in again" in refused(running, "/api/image", upload=found["upload"])


def malformed(kind: int) -> bytes:
    """Files that are no pictures: cut short, garbled, mislabelled, or nothing at all."""
    rng = np.random.default_rng(kind)
    buffer = io.BytesIO()
    form = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")[kind % 7]
    draw(True, True, False, kind).save(buffer, form)
    content = bytearray(buffer.getvalue())
    if kind % 4 == 0:
        return bytes(content[: rng.integers(0, len(content) // 3)])
    if kind % 4 == 1:
        return rng.bytes(int(rng.integers(1, 3000)))
    if kind % 4 == 2:
        content[: 8 + kind % 30] = rng.bytes(8 + kind % 30)
        return bytes(content)
    return b"<svg onload='alert(1)'>" * (kind % 9) + b"%PDF-1.7 GIF8"


def test_two_hundred_malformed_pictures_get_a_clear_message(running):
    for kind in range(200):
        status, _, content = request(running, "POST", "/api/upload", malformed(kind))
        said = json.loads(content)["error"]
        assert status == 400, said
        assert said.startswith("dashboard: expected a picture, got a file that cannot be read: "), said
        assert said.endswith(". Try another file.")
        assert "\n" not in said


def bomb() -> bytes:
    """A PNG of a few kilobytes that promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_by_its_header(running):
    status, _, content = request(running, "POST", "/api/upload", bomb())
    assert status == 400
    assert "more than 89478485 pixels" in json.loads(content)["error"]


def test_uploads_are_limited_whatever_they_say_of_their_length(running, monkeypatch):
    monkeypatch.setattr(image_panel, "MOST_BYTES", 2**20)
    large = bytes(2**20 + 1)
    status, _, content = request(running, "POST", "/api/upload", large)
    assert (status, "at most 1 MB" in json.loads(content)["error"]) == (413, True)
    chunks = b"".join(b"%x\r\n%s\r\n" % (2**18, bytes(2**18)) for _ in range(5)) + b"0\r\n\r\n"
    sent = {"Transfer-Encoding": "chunked", "Content-Length": None}
    assert request(running, "POST", "/api/upload", chunks, headers=sent)[0] == 413
    assert request(running, "POST", "/api/compare", b"{", headers={"Content-Length": str(app.MOST_JSON + 1)})[0] == 413


def test_names_with_html_are_told_as_they_are(running, session):
    image = next(n for n, name in enumerate(session.run.data.ids) if EVIL in name)
    status, headers, content = request(running, "POST", "/api/image", json.dumps({"image": image}).encode())
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert json.loads(content)["name"].endswith(f"{EVIL}.png")


def test_thumbnails_are_pictures_of_the_asked_size(running, session):
    status, headers, content = request(running, "GET", "/api/picture?image=3&size=192")
    assert (status, headers["content-type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(content)).size == (192, 192)


@pytest.mark.parametrize(
    ("path", "given", "said"),
    [
        ("/api/images", {"split": "vall"}, "Did you mean 'val'?"),
        ("/api/images", {"label": "rond"}, "Did you mean 'round'?"),
        ("/api/images", {"attribute": "studi", "value": "x"}, "Did you mean 'studio'?"),
        ("/api/images", {"attribute": "studio", "value": "plan"}, "Did you mean 'plain'?"),
        ("/api/images", {"kind": "wrog"}, "Did you mean 'wrong'?"),
        ("/api/images", {"expert": 12, "level": 0}, "expected an expert in 0..11, got 12"),
        ("/api/images", {"expert": 1, "level": 1}, "expected a level in 0..0, got 1"),
        ("/api/image", {"image": 360}, "expected an image in 0..359, got 360"),
        ("/api/image", {"image": "x"}, "expected a whole number for image, got 'x'"),
        ("/api/image", {"image": 1.5}, "expected a whole number for image, got 1.5"),
        ("/api/image", {"image": 0, "labels": 3}, "expected a list of labels, got int"),
        ("/api/compare", {"edits": {}}, "expected a list of edits, got dict"),
        ("/api/compare", {"edits": [{"kind": "ablate"}]}, "expected an edit, got KeyError 'name'"),
        ("/api/compare", {"edits": [{"name": "a", "kind": "ablat"}]}, "Did you mean 'ablate'?"),
        (
            "/api/compare",
            {"edits": [{"name": "a", "kind": "ablate", "expert": 99}]},
            "expected an expert in 0..11, got 99",
        ),
        (
            "/api/compare",
            {"edits": [{"name": "a", "kind": "rewrite", "head": 0, "mean": "x"}]},
            "Make the rewriting again",
        ),
        ("/api/compare", {"edits": [{}] * 201}, "expected at most 200 edits, got 201"),
        ("/api/compare", {"subgroup": 3}, "expected a subgroup as an object, got int"),
        ("/api/parse", {"text": "swop:1=2"}, "Did you mean 'swap'?"),
        ("/api/split", {"split": ""}, None),
    ],
)
def test_what_makes_no_sense_is_answered_in_one_line(running, path, given, said):
    if said is None:
        number = post(running, path, **given)["job"]
        while (job := get(running, "/api/job", number=number))["state"] == "running":
            pass
        assert "expected a split with images" in job["error"]
    else:
        assert said in refused(running, path, **given)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b'{"image": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_bodies_that_are_no_json_object_are_refused(running, body):
    status, _, content = request(running, "POST", "/api/image", body)
    assert status == 400
    assert "expected JSON" in json.loads(content)["error"] or "expected a JSON object" in json.loads(content)["error"]
