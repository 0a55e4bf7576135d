"""The folders that the verbs of `test_every_option` work in: small runs, trained once for each session."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import timm
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from commands.every_option import inside
from commands.test_editing import write_features
from dashboard.made_up_run import CLASSES, make_pictures
from models.tiny_networks import VIT_ARGUMENTS, network
from mumoe.commands.analyze import Options, analyze_run
from mumoe.deploy.converted import save_converted
from mumoe.deploy.formats import export
from mumoe.deploy.model import ImageClassifier
from mumoe.editing.edit_files import save_edits
from mumoe.editing.edit_texts import parse_edit
from mumoe.editing.stack import EditStack
from mumoe.training import StoredRun, TrainConfig, train
from tiny_llama import sentences, tiny_llama, tiny_tokenizer
from training.made_up_training import make_text

SWEEP = 'data = "features:single.safetensors"\nepochs = 2\nbatch_size = 30\nlr = 0.02\n'


def attributes_world(folder: Path) -> None:
    """Runs on 0/1 attributes, one with a hierarchy, a file of edits, and features with and without splits."""
    with inside(folder):
        write_features(folder / "features.safetensors")
        common = {"data": "features:features.safetensors", "epochs": 8, "batch_size": 64, "lr": 0.02}
        for out, changes in (
            ("run", {"head": "CPMuMoE-r8-e8"}),
            ("other", {"head": "CPMuMoE-r8-e8", "seed": 1, "epochs": 5}),
            ("hierarchy", {"head": "CPMuMoE-r8-e4x2"}),
        ):
            train(TrainConfig(**{**common, **changes}, out=out), progress=False)
        stack = EditStack(StoredRun("run", device="cpu").head.layer)
        for text in ("ablate:3", "scale:2=0.3"):
            stack.add(parse_edit(text, ("blond", "male", "smiling")))
        save_edits(folder / "edits.json", stack, {})
        (folder / "sweep.toml").write_text(SWEEP)
        (folder / "other.toml").write_text(SWEEP.replace("lr = 0.02", "lr = 0.2"))
        single_features(folder / "single.safetensors")


def single_features(path: Path, *, seed: int = 0, split: bool = True) -> None:
    """Features of 160 images of four classes, hard to tell apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 160)
    x = rng.normal(size=(4, 6))[labels] + 1.2 * rng.normal(size=(160, 6)) + 3
    tensors = {"features": x.astype(np.float32), "labels": labels}
    if split:
        tensors["split"] = rng.choice(3, 160, p=(0.6, 0.2, 0.2))
    save_file(tensors, path, metadata={"classes": json.dumps(["ant", "bee", "cat", "dog"])})


def training_world(folder: Path) -> None:
    """Features with and without splits, a few pictures, and a table that names one which cannot be read."""
    single_features(folder / "single.safetensors")
    single_features(folder / "other.safetensors", seed=1)
    single_features(folder / "unsplit.safetensors", split=False)
    table = make_pictures(folder / "pictures", 48)
    for name, seed in (("weights", 3), ("others", 4)):
        torch.manual_seed(seed)
        model = timm.create_model("test_efficientnet", num_classes=0)
        save_tensors(model.state_dict(), folder / "pictures" / f"{name}.safetensors")
    copytree(table.parent, folder / "damaged")
    (folder / "damaged" / "pictures" / "7.png").write_bytes(b"no picture")
    (folder / "settings.toml").write_text("[optimization]\nlr = 0.5\n")


def pictures_world(folder: Path) -> None:
    """Runs on pictures with a small frozen backbone: of two attributes (`run`, `other`) and of shapes (`single`)."""
    beside = folder.parent / "pictures"
    table = make_pictures(beside, 120)
    torch.manual_seed(3)
    save_tensors(timm.create_model("test_efficientnet", num_classes=0).state_dict(), beside / "weights.safetensors")
    common = {
        "data": f"csv:{table}",
        "backbone": "test_efficientnet",
        "weights": str(beside / "weights.safetensors"),
        "image_size": 32,
        "batch_size": 30,
        "lr": 0.02,
        "cache_dir": str(beside / "cache"),
    }
    both = (f"target_columns={','.join(CLASSES)}", "group_columns=studio")
    with inside(folder):
        for out, head, seed in (("run", "CPMuMoE-r8-e12", 0), ("other", "CPMuMoE-r8-e6", 1)):
            train(TrainConfig(**common, head=head, seed=seed, epochs=8, data_options=both, out=out), progress=False)
        one = ("label_column=studio",)
        train(TrainConfig(**common, head="CPMuMoE-r8-e6", epochs=8, data_options=one, out="single"), progress=False)
        stack = EditStack(StoredRun("run", device="cpu").head.layer)
        stack.add(parse_edit("swap:1=2", CLASSES))
        save_edits(folder / "edits.json", stack, {})
        analyze_run(Options("run", resamples=20, images=2, quiet=True))
        export(ImageClassifier.from_run("run"), Path("saved"))
    for number in range(3):
        (folder / f"{number}.png").write_bytes((beside / "pictures" / f"{number + 10}.png").read_bytes())


def text_world(folder: Path) -> None:
    """Two small language models and the sentences they were trained on."""
    tokens = make_text(folder.parent / "text")
    sizes = ("depth=1", "heads=2", "width=16", "context=24")
    with inside(folder):
        for out, seed in (("run", 0), ("other", 1)):
            config = TrainConfig(
                mode="text",
                backbone="gpt2",
                head="CPMuMoE-e4",
                norm="layer",
                batch_size=48,
                steps=8,
                lr=0.01,
                network_options=sizes,
                data=f"tokens:{tokens}",
                seed=seed,
                out=out,
            )
            train(config, progress=False)
    (folder / "files").mkdir()
    for path in sorted((folder.parent / "text" / "source").iterdir())[:20]:
        (folder / "files" / path.name).write_bytes(path.read_bytes())
    rows = [{"text": f"a text {n}", "body": f"a body of some words {n}"} for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def network_world(folder: Path) -> None:
    """Two small networks as folders, and one folder that is taken."""
    model, _ = network("vit")
    save_converted(model, folder / "vit", arguments=VIT_ARGUMENTS | {"num_classes": 5})
    small = VIT_ARGUMENTS | {"depth": 1}
    torch.manual_seed(1)
    other = timm.create_model("vit_tiny_patch16_224", num_classes=5, **small)
    save_converted(other, folder / "other", arguments=small | {"num_classes": 5})
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("years of work")


def seeds_world(folder: Path) -> None:
    """Jobs of two seeds, one with two heads, a linear run, and features of the same classes from elsewhere."""
    single_features(folder / "single.safetensors")
    single_features(folder / "shifted.safetensors", seed=1)
    single_features(folder / "unsplit.safetensors", seed=1, split=False)
    common = {"data": "features:single.safetensors", "epochs": 12, "batch_size": 30, "lr": 0.02, "seeds": 2}
    with inside(folder):
        for out, changes in (
            ("run", {"head": "CPMuMoE-r6-e4x2", "against": ("CPMuMoE-r6-e8",)}),
            ("other", {"head": "CPMuMoE-r6-e4x2", "seed": 5}),
            ("linear", {"head": "linear", "seeds": 1}),
        ):
            train(TrainConfig(**{**common, **changes}, out=out), progress=False)


def language_world(folder: Path) -> None:
    """Two tiny language models and two folders of text."""
    for seed, name in enumerate(("model", "other")):
        tiny_llama(seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for name, words in (("text", 40), ("more", 60)):
        (folder / name).mkdir()
        for seed in range(40):
            (folder / name / f"{seed:02}.txt").write_text(sentences(seed, words).text)


WORLDS = {
    "language": language_world,
    "attributes": attributes_world,
    "training": training_world,
    "pictures": pictures_world,
    "seeds": seeds_world,
    "text": text_world,
    "networks": network_world,
    "nothing": lambda folder: None,
}
