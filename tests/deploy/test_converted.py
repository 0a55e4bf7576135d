"""Networks with MuMoE layers as files: the same output to the bit, and one line for what is damaged."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mumoe
from models.tiny_networks import CONVNEXT_ARGUMENTS, VIT_ARGUMENTS, network, output
from mumoe.deploy.converted import ConvertedModel, load_converted, save_converted
from mumoe.errors import JobError, UserError
from mumoe.files import digest_files
from mumoe.models.surgery import replace_head, replace_modules

ARGUMENTS = {
    "vit": VIT_ARGUMENTS | {"num_classes": 5},
    "convnext": CONVNEXT_ARGUMENTS | {"num_classes": 5},
    "convnext-conv": CONVNEXT_ARGUMENTS | {"num_classes": 5},
}


@pytest.mark.parametrize("size", ["5GB", 30_000])
@pytest.mark.parametrize("name", [*ARGUMENTS, "gpt2", "hf-vit", "clip-vision", "llama"])
def test_the_same_output_whole_and_in_shards(name: str, size: int | str, tmp_path: Path) -> None:
    model, x = network(name)
    replace_modules(model, num_experts=(3, 2), factorization="tr", rank=3)
    model.train()
    model(x)  # statistics of the gates
    expected = output(model, x)
    save_converted(model, tmp_path, arguments=ARGUMENTS.get(name), max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size != "5GB")
    assert len(list(tmp_path.glob("*.safetensors"))) > (1 if size != "5GB" else 0)
    loaded = load_converted(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(output(loaded, x), expected)
    if name == "vit":
        found, transform = mumoe.load(tmp_path)
        assert transform is None
        assert torch.equal(output(found, x), expected)


def test_tied_weights_other_dtypes_and_a_replaced_head(tmp_path: Path) -> None:
    model, x = network("gpt2")
    replace_modules(model, "transformer.h.1.mlp", num_experts=2, factorization="tucker", rank=2)
    model.bfloat16()
    save_converted(model, tmp_path / "tied")
    loaded = load_converted(tmp_path / "tied")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(output(loaded, x), output(model, x))
    replace_head(model, num_experts=2, rank=2)
    save_converted(model, tmp_path / "head")
    assert torch.equal(output(load_converted(tmp_path / "head"), x), output(model, x))
    loaded = load_converted(tmp_path / "head")
    tokens = loaded.generate(x[:, :3], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert tokens.shape[1] > 3

    other, x = network("vit")
    replace_head(other, num_experts=2, rank=2, num_classes=7)
    save_converted(other, tmp_path / "classes", arguments=ARGUMENTS["vit"])
    assert torch.equal(output(load_converted(tmp_path / "classes"), x), output(other, x))


def test_hub_mixin_card_and_saving_again(tmp_path: Path) -> None:
    model, x = network("vit")
    replace_modules(model, num_experts=2, rank=3, gate="topk", gate_options={"k": 1}, norm="layer")
    wrapped = ConvertedModel.from_model(model, arguments=ARGUMENTS["vit"])
    assert wrapped.model is model
    wrapped.max_shard_size = 30_000
    wrapped.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: mumoe" in card
    assert "| `blocks.0.mlp` | cp | 2 | topk |" in card
    loaded = ConvertedModel.from_pretrained(tmp_path)
    assert torch.equal(output(loaded, x), output(model, x))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
    save_converted(loaded.model, tmp_path, arguments=ARGUMENTS["vit"])  # fewer files than there were
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert torch.equal(output(load_converted(tmp_path), x), output(model, x))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    model, _ = network("vit")
    with pytest.raises(UserError, match=r"expected a model that timm.create_model\('vit_tiny_patch16_224', num_clas"):
        save_converted(model, tmp_path / "a")
    with pytest.raises(UserError, match="expected a model that timm.create_model made or a model class of transform"):
        save_converted(nn.Linear(2, 2), tmp_path / "a")
    with pytest.raises(UserError, match="expected arguments of plain values, got: Object of type"):
        save_converted(model, tmp_path / "a", arguments={"act_layer": nn.GELU})
    replace_modules(model, "head", num_experts=2, rank=2, gate=nn.Softmax(-1))
    with pytest.raises(UserError, match="expected a registered gate in 'head', got Softmax"):
        save_converted(model, tmp_path / "a", arguments=ARGUMENTS["vit"])
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder, got the file"):
        save_converted(model, tmp_path / "file")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    model, _ = network("vit")
    replace_modules(model, num_experts=2, rank=3)
    return save_converted(model, folder, arguments=ARGUMENTS["vit"], max_shard_size=60_000)


def _config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def _first(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


def _cut(folder: Path) -> None:
    path = _first(folder)
    path.write_bytes(path.read_bytes()[:100])


def _nan(folder: Path) -> None:
    for path in folder.glob("model-*.safetensors"):
        state = load_file(path)
        for name, value in state.items():
            if "out_factor" in name:
                value.fill_(float("nan"))
        save_file(state, path)


def _escape(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))


DAMAGE = {
    "no config": (lambda folder: (folder / "config.json").unlink(), UserError, "expected config.json in"),
    "no json": (lambda folder: (folder / "config.json").write_text("{"), JobError, "config.json is not JSON"),
    "no table": (lambda folder: (folder / "config.json").write_text("[]"), JobError, "config.json that is not a table"),
    "no layers": (lambda f: _config(f, lambda c: c.pop("layers")), JobError, "a config.json without layers"),
    "no shard": (lambda folder: _first(folder).unlink(), JobError, "expected weights in model-00001-of-"),
    "cut": (_cut, JobError, "expected an intact safetensors file, got"),
    "nan": (_nan, JobError, "expected finite weights, got"),
    "escape": (_escape, JobError, "expected names of files in the same folder"),
    "other rank": (
        lambda f: _config(f, lambda c: c["layers"]["blocks.0.mlp"].update(ranks=[{"rank": 10**9}, 3])),
        JobError,
        "expected the weights of its config.json, got blocks.0.mlp.fc1.out_factor of shape [128, 3] instead of",
    ),
    "other module": (
        lambda f: _config(f, lambda c: c["layers"].update({"blocks.9.mlp": c["layers"].pop("blocks.0.mlp")})),
        UserError,
        "expected a linear layer or an MLP named 'blocks.9.mlp' in VisionTransformer",
    ),
    "no option": (
        lambda f: _config(f, lambda c: c["layers"]["blocks.0.mlp"].pop("ranks")),
        JobError,
        "a config.json that builds none (KeyError: 'ranks')",
    ),
    "library": (
        lambda f: _config(f, lambda c: c["source"].update(library="tim")),
        UserError,
        "expected a library out of timm, transformers, got 'tim'. Did you mean 'timm'?",
    ),
    "unpickling": (
        lambda f: _config(f, lambda c: c["source"]["arguments"].update(checkpoint_path="x.pth")),
        UserError,
        "expected arguments that shape a timm model, got 'checkpoint_path'",
    ),
    "remote timm": (
        lambda f: _config(f, lambda c: c["source"].update(name="hf-hub:some/body")),
        UserError,
        "expected the name of a timm model, got 'hf-hub:some/body'",
    ),
    "class": (
        lambda f: _config(f, lambda c: c.update(source={"library": "transformers", "class": "Trainer", "config": {}})),
        UserError,
        "expected a class of transformers out of ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_give_one_line(case: str, saved: Path, tmp_path: Path) -> None:
    damage, kind, message = DAMAGE[case]
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(kind) as caught:
        load_converted(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is not a folder and cannot be loaded from the hub"):
        load_converted("no/such/model", local_files_only=True)


def test_a_save_replaces_an_earlier_one_as_a_whole(tmp_path, monkeypatch):
    model, _ = network("hf-vit")
    replace_modules(model, "vit.layers.0.mlp", num_experts=2, rank=2)
    folder = save_converted(model, tmp_path / "saved", max_shard_size=30_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    (folder / "tokenizer.json").write_text("{}")
    before = digest_files(folder)
    monkeypatch.setattr(ConvertedModel, "_save_pretrained", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(JobError, match="save_converted: expected room on the disk"):
        save_converted(model, folder)
    monkeypatch.undo()
    assert digest_files(folder) == before
    save_converted(model, folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "README.md", "model.safetensors", "tokenizer.json"}
    usual = os.umask(0)
    os.umask(usual)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666 & ~usual}
