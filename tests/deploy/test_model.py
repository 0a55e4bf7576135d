"""A trained model as files: the same logits after a round trip, offline, without pickle, with a correct card."""

from __future__ import annotations

import json
import pickle
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import mumoe
from mumoe.analysis.expert_notes import FILE
from mumoe.deploy import formats
from mumoe.deploy.model import ImageClassifier
from mumoe.deploy.predictions import explain
from mumoe.editing.expert_edits import Rewrite, SetOutput
from mumoe.editing.stack import EditStack
from mumoe.errors import JobError, UserError
from mumoe.local_paths import public_name
from mumoe.training import StoredRun
from training.made_up_training import CLASSES, made_up_image

CONFIG: dict[str, Any] = {
    "backbone": "test_vit",
    "head": "TRMuMoE-r4-e3",
    "num_features": 64,
    "classes": ["ant", "bee"],
    "data_config": {
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.8,
        "crop_mode": "center",
    },
    "image_size": 32,
}


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def logits(model: torch.nn.Module, x: torch.Tensor | None = None) -> torch.Tensor:
    with torch.inference_mode():
        return model(images() if x is None else x)


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and no pickle."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("network or pickle")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)


@pytest.mark.parametrize("name", ["run", "attribute_run"])
def test_round_trip_is_exact_and_offline(name: str, request: pytest.FixtureRequest, tmp_path: Path, sealed) -> None:
    run = request.getfixturevalue(name)
    model = ImageClassifier.from_run(run)
    assert torch.equal(logits(model), logits(StoredRun(run, device="cpu").model))
    model.save_pretrained(tmp_path / "saved")
    again = ImageClassifier.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    assert not again.training
    assert again.classes == CLASSES
    assert again.multi_label == (name == "attribute_run")
    assert torch.equal(again.transform(made_up_image(0)), model.transform(made_up_image(0)))
    again.save_pretrained(tmp_path / "twice")
    for file in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()


def test_standardization_of_features_is_part_of_the_model(attribute_run: Path) -> None:
    model = ImageClassifier.from_run(attribute_run)
    assert float(model.head.mean.abs().max()) > 0
    assert float((model.head.scale - 1).abs().max()) > 1e-3


def test_every_setting_of_the_head_survives(tmp_path: Path) -> None:
    model = ImageClassifier(**CONFIG, position="penultimate", gate="sparsemax", norm="layer", multi_label=True)
    model.save_pretrained(tmp_path)
    again = mumoe.ImageClassifier.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert repr(again) == repr(model)
    assert again.position == "penultimate"


def test_recorded_preprocessing_wins_over_timms(tmp_path: Path) -> None:
    model = ImageClassifier(**CONFIG)
    model.save_pretrained(tmp_path)
    again = ImageClassifier.from_pretrained(tmp_path)
    assert again.backbone.data_config == CONFIG["data_config"]
    gray = made_up_image(0).point(lambda _: 128)
    expected = (128 / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.4, 0.5, 0.6])
    torch.testing.assert_close(again.transform(gray)[:, 3, 3], expected)
    assert again.input_size == (3, 32, 32)


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities(multi_label: bool) -> None:
    model = ImageClassifier(**CONFIG, multi_label=multi_label)
    found = model.probabilities(torch.tensor([[0.0, 1.0]]))
    expected = [0.5, 0.7310586] if multi_label else [0.2689414, 0.7310586]
    torch.testing.assert_close(found, torch.tensor([expected]))


# The card -------------------------------------------------------------------------------------------------


def test_card_is_filled_from_the_run(run: Path, tmp_path: Path) -> None:
    model = ImageClassifier.from_run(run)
    model.save_pretrained(tmp_path)
    accuracy = json.loads((run / "run.json").read_text())["result"]["evaluations"]["test"]["accuracy"]
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "mumoe"
    assert card.data.pipeline_tag == "image-classification"
    assert [result.metric_value for result in card.data.eval_results] == [accuracy]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for text in (
        "# CPMuMoE-r4-e3x2 on test_vit, trained on made-up",
        f"| test | {accuracy:.4f} |",
        f"Parameters: {parameters:,}, of which",
        f"mumoe {mumoe.__version__}",
        "4 classes: ant, bee, cat, dog.",
        "backbone and head; seed 0, 3 optimizer steps",
    ):
        assert text in card.text


def test_card_states_whose_weights_and_images() -> None:
    about = {"data": "emoji", "images": 7, "weights": "pretrained", "credits": ["Drawn by A_B (CC BY 4.0)"]}
    model = ImageClassifier(**CONFIG | {"classes": ["a|b\nc", "<d>"]}, about=about)
    model._hub_mixin_config["backbone"] = "efficientnet-lite0"
    card = model.generate_model_card(license="mit")
    assert "licence file is Apache-2.0. Who trained them, and on which images, has not been verified" in card.text
    assert "- Drawn by A\\_B (CC BY 4.0)" in card.text
    assert "2 classes: a\\|b c, \\<d\\>." in card.text
    assert card.data.license == "mit"
    assert "Not evaluated." in card.text


def test_names_of_experts_go_with_the_model(run: Path, tmp_path: Path) -> None:
    opened = mumoe.load(run, progress=False, device="cpu")
    try:
        opened.name_expert(1, "cat *faces*", note="Foxes too.")
        opened.name_expert(0, "drawn", level=1)
        named = opened.name_expert(1, "taken", level=1)
        model = ImageClassifier.from_run(run)
    finally:
        (run / FILE).unlink()
    model.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "- Expert 1, cat \\*faces\\*: Foxes too." in card
    assert "- Expert 0 of level 1, drawn" in card
    assert formats._our_subject(model).about["experts"] == model.about["experts"] == list(named.rows())
    again = ImageClassifier.from_pretrained(tmp_path / "saved")
    assert again.expert_name((1, 0)) == "cat *faces*, drawn"
    assert (again.expert_name((0, 0)), again.expert_name((2,))) == ("drawn", "")
    shares = [share for found in explain(again, images(6), experts=6) for share in found.labels[0].experts]
    assert [share.name for share in shares] == [again.expert_name(share.index) for share in shares]
    assert all(share.name for share in shares)
    assert "experts" not in ImageClassifier.from_run(run).about


@pytest.mark.parametrize("rows", [3, [3], [{"level": "x"}], [{"level": 0, "expert": [1], "name": {}}]])
def test_names_of_experts_in_a_strange_config_are_left_out(rows: Any) -> None:
    assert ImageClassifier(**CONFIG, about={"experts": rows}).expert_name((1,)) == ""


def test_no_path_of_the_machine_gets_out(attribute_run: Path, tmp_path: Path) -> None:
    ImageClassifier.from_run(attribute_run).save_pretrained(tmp_path)
    for name in ("README.md", "config.json"):
        assert str(attribute_run.parent) not in (tmp_path / name).read_text()
    assert "from a local file" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("data", "public"),
    [
        ("emoji", "emoji"),
        ("folder:/home/ann/birds/", "folder:birds"),
        (r"csv:C:\ann\table.csv", "csv:table.csv"),
        ("hf:org/set", "hf:org/set"),
    ],
)
def test_public_name(data: str, public: str) -> None:
    assert public_name(data) == public


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files uploaded to a stand-in for the hub, by name."""
    files: dict[str, bytes] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=f"ann/{repo_id}")

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            files.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    return files


def test_push_to_hub_uploads_the_three_files(uploaded: dict[str, bytes]) -> None:
    address = ImageClassifier(**CONFIG).push_to_hub("birds", model_card_kwargs={"license": "mit"})
    assert address == "https://hub/ann/birds"
    assert sorted(uploaded) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads(uploaded["config.json"])["head"] == "TRMuMoE-r4-e3"
    assert b"license: mit" in uploaded["README.md"]


def test_a_run_is_saved_and_pushed_as_the_same_files(run: Path, tmp_path: Path, uploaded: dict[str, bytes]) -> None:
    opened = mumoe.load(run, device="cpu")
    saved = opened.save(tmp_path / "saved")
    model, transform = mumoe.load(saved, device="cpu")
    assert torch.equal(logits(model), logits(opened.model))
    assert torch.equal(transform(made_up_image(0)), opened.transform(made_up_image(0)))
    assert opened.push_to_hub("birds") == "https://hub/ann/birds"
    assert uploaded == {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(UserError, match="expected a new file or folder"):
        opened.save(saved)
    assert opened.save(saved, overwrite=True) == saved


def test_from_the_hub_reads_safetensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ImageClassifier(**CONFIG)
    model.save_pretrained(tmp_path)
    asked = []

    def config(repo_id: str, filename: str, **_: Any) -> str:
        asked.append(filename)
        return str(tmp_path / filename)

    def weights(repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.extend([*allow_patterns, options["revision"]])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", config)
    monkeypatch.setattr("mumoe.deploy.saved_model.snapshot_download", weights)
    assert torch.equal(logits(ImageClassifier.from_pretrained("ann/birds", revision="v1")), logits(model))
    assert asked == ["config.json", "*.safetensors", "*.json", "v1"]


# Damage ---------------------------------------------------------------------------------------------------


def damage_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def rename_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["other"] = tensors.pop("head.mean")
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "kind", "expected"),
    [
        (lambda f: (f / "config.json").unlink(), UserError, "expected config.json in"),
        (lambda f: (f / "model.safetensors").unlink(), UserError, "expected model.safetensors in"),
        (lambda f: (f / "config.json").write_text("{"), JobError, "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), JobError, "a config.json that is not a table"),
        (lambda f: damage_config(f, head=None), JobError, "a config.json without head"),
        (lambda f: damage_config(f, classes=7), JobError, "a config.json that builds none"),
        (lambda f: damage_config(f, data_config=7), JobError, "a config.json that builds none"),
        (lambda f: damage_config(f, head="TRMuMoE-r99999999-e3"), JobError, "instead of ["),
        (lambda f: damage_config(f, backbone="test_vot"), UserError, "Did you mean 'test_vit"),
        (lambda f: damage_config(f, num_features=65), JobError, "expected the weights of its config.json"),
        (lambda f: damage_config(f, head="CPMuMoE-r9-e3"), JobError, "expected the weights of its config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), JobError, "expected an intact safetensors file"),
        (rename_tensor, JobError, "head.mean"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(tmp_path: Path, damage: Any, kind: type, expected: str) -> None:
    ImageClassifier(**CONFIG).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(kind) as caught:
        ImageClassifier.from_pretrained(tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_width_than_the_backbones() -> None:
    with pytest.raises(UserError, match=r"expected num_features == 64 of 'test_vit', got 65"):
        ImageClassifier(**CONFIG | {"num_features": 65})


def test_no_such_model() -> None:
    with pytest.raises(UserError, match="which is not a folder and cannot be loaded from the hub"):
        ImageClassifier.from_pretrained("no/such/folder")


@pytest.mark.parametrize(
    "head", ["CPMuMoE-r4-e3x2", "TuckerMuMoE-r2-e3", "TTMuMoE-r3-e3x2", "TRMuMoE-r2-e3x2", "DenseMuMoE-e3"]
)
def test_an_edited_head_of_any_kind_is_rebuilt_from_its_config(head: str, tmp_path: Path) -> None:
    about = {"data": "made-up", "images": 9, "evaluations": [{"split": "test", "accuracy": 0.5, "loss": 1, "count": 2}]}
    model = ImageClassifier(**CONFIG | {"head": head, "about": about})
    layer: Any = model.head.layer
    torch.nn.init.normal_(next(iter(layer.factorization.parameters())))
    stack = EditStack(layer)
    stack.add(Rewrite.of(1, torch.rand(layer.num_experts), 3.0))
    stack.add(SetOutput((0,) * len(layer.num_experts), 0, 2.0))
    with stack:
        expected = logits(model)
    edited = model.with_edits(stack)
    edited.save_pretrained(tmp_path)
    again = ImageClassifier.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, logits(model), atol=1e-2)
    assert again.spec == again.head.layer.spec
    assert (again.about["data"], "evaluations" in again.about, len(again.about["edits"])) == ("made-up", False, 2)
    assert model.about == about


def test_a_head_without_experts_takes_no_edits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a head with experts to edit, got linear"):
        ImageClassifier(**CONFIG | {"head": "linear"}).with_edits(tmp_path / "edits.json")


def test_a_model_saved_before_gates_had_routers_loads(run: Path, tmp_path: Path) -> None:
    """Then the weights of a gate were called gate.weights.N."""
    import re

    model = ImageClassifier.from_run(run)
    model.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    old = {re.sub(r"gate\.routers\.(\d+)\.weight$", r"gate.weights.\1", key): x for key, x in load_file(path).items()}
    assert any("gate.weights.0" in key for key in old)
    save_file(old, path)
    images = torch.randn(2, *model.input_size)
    with torch.inference_mode():
        assert torch.equal(ImageClassifier.from_pretrained(tmp_path / "saved")(images), model(images))
