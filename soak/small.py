"""Small made-up data, networks and runs: what the parts that kill, fill disks and repeat work on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from mumoe.training.config import TrainConfig

__all__ = [
    "DECOMPOSED",
    "demo_images",
    "finetune_job",
    "head_job",
    "language_model",
    "mixer_job",
    "picture_job",
    "pictures",
    "single_features",
    "text_files",
    "text_job",
    "tokens",
    "two_attributes",
]

WORDS = ("def", "return", "value", "Key", "if", "else", "17", "(x)", "old", "cat", "sees", "red", "one\n")

DECOMPOSED: dict[str, Any] = {
    "layer": 1,
    "k": 4,
    "width": 4,
    "tokens": 3000,
    "context": 17,
    "lr": (4e-3, 2e-3),
    "batch_size": 64,
    "val_contexts": 8,
    "precision": "float32",
    "device": "cpu",
}
"""Settings of a decomposition of `language_model` that takes a second or two."""


# Data ---------------------------------------------------------------------------------------------------------------


def single_features(path: Path, rows: int = 240) -> Path:
    """Features of four classes, hard to tell apart, with splits."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, rows)
    x = rng.normal(size=(4, 6))[labels] + 1.2 * rng.normal(size=(rows, 6)) + 3
    split = np.arange(rows) % 5 // 3 + (np.arange(rows) % 5 == 4)
    tensors: dict[str, Any] = {"features": x.astype(np.float32), "labels": labels, "split": split}
    save_file(tensors, path, metadata={"classes": json.dumps(["ant", "bee", "cat", "dog"])})
    return path


def two_attributes(path: Path, rows: int = 600) -> Path:
    """Features with two 0/1 targets; round ones are few among the striped in training, and look less striped."""
    rng = np.random.default_rng(0)
    split = rng.choice([0, 1, 2], rows, p=[0.6, 0.2, 0.2])
    striped, smiling = rng.integers(0, 2, (2, rows))
    round_ = (rng.random(rows) < np.where((striped == 1) & (split == 0), 0.05, 0.5)).astype(np.int64)
    x = rng.normal(size=(rows, 8))
    x[:, 0] += 2.5 * (2 * striped - 1) - 1.5 * striped * round_
    x[:, 1] += 4 * (2 * round_ - 1)
    x[:, 2] += 2 * (2 * smiling - 1)
    labels = np.stack([striped, smiling], 1).astype(np.int64)
    tensors: dict[str, Any] = {
        "features": x.astype(np.float32),
        "labels": labels,
        "split": split,
        "group_round": round_,
    }
    save_file(tensors, path, metadata={"classes": json.dumps(["striped", "smiling"])})
    return path


def pictures(folder: Path, count: int = 60) -> Path:
    """Pictures of 32 x 32 pixels in three classes, and a table of them; weights of two tiny backbones beside it."""
    import timm

    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for number in range(count):
        kind, shade = int(rng.integers(3)), int(rng.integers(90))
        pixels = rng.integers(0, 80, (32, 32, 3)) + shade
        pixels[:, :: kind + 2] += 80
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "pictures" / f"{number}.png")
        rows.append(
            [f"pictures/{number}.png", ("one", "two", "three")[kind], ("train", "val", "test")[number % 5 // 3]]
        )
        if number % 5 == 4:
            rows[-1][2] = "test"
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "kind", "split"], *rows])
    for name in ("test_efficientnet", "test_vit"):
        torch.manual_seed(3)
        save_tensors(timm.create_model(name, num_classes=0).state_dict(), folder / f"{name}.safetensors")
    return folder / "table.csv"


def text_files(folder: Path, count: int = 40, words: int = 60) -> Path:
    """Files of random words."""
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    for number in range(count):
        text = f"{number} " + " ".join(rng.choice(WORDS, words))
        (folder / f"{number:03}.txt").write_text(text, encoding="utf-8")
    return folder


def tokens(folder: Path, files: Path) -> Path:
    """The files as tokens of their bytes."""
    from mumoe.data.tokenizing import tokenize

    tokenize([files], folder, val=0.15, test=0.15)
    return folder


def language_model(folder: Path) -> Path:
    """A random Llama of three layers with a tokenizer of bytes, as a folder of transformers."""
    import tokenizers
    import transformers

    fast: Any = transformers.PreTrainedTokenizerFast
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{letter: place + 1 for place, letter in enumerate(letters)}}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    fast(tokenizer_object=made, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=259,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)  # so that MLPs matter
    model.eval().save_pretrained(folder)
    return folder


class Known:
    """Stands for the backbone that made features."""

    num_features, fingerprint = 20, "known weights"


def one_colour(index: int) -> Image.Image:
    """A picture that is a function of its position."""
    return Image.new("RGB", (96, 96), (index % 256, 90, 120))


def demo_images(size: int = 1500, width: int = 20, backbone: Any = None) -> Any:
    """What `mumoe demo` reads, made up: nine classes in three groups, drawn by three studios, with features that say
    which class and, weakly, which studio."""
    from mumoe.data.base import Attribute, ImageData
    from mumoe.demo.demo_job import _Set

    rng = np.random.default_rng(0)
    labels, studio = rng.integers(0, 9, size), rng.integers(0, 3, size)
    centres, styles = rng.normal(size=(9, width)), rng.normal(size=(3, width))
    noise = 0.8 * (width / 20) ** 0.5 * rng.normal(size=(size, width))
    features = (centres[labels] + 0.5 * styles[studio] + noise).astype(np.float32)
    names = tuple(f"class-{number}" for number in range(9))
    groups, studios = ("Animals & Nature", "Objects", "Food & Drink"), ("noto", "openmoji", "twemoji")
    attributes = {
        "group": Attribute(labels // 3, groups),
        "studio": Attribute(studio, studios),
        "subgroup": Attribute(labels, names),
    }
    data = ImageData(
        name="emoji",
        classes=names,
        multi_label=False,
        labels=labels,
        split=np.array([0, 0, 0, 1, 2], dtype=np.int8)[np.arange(size) % 5],
        ids=tuple(map(str, range(size))),
        open_image=one_colour,
        fingerprint="made-up",
        attributes=attributes,
        credits=("Images & more <made up>, CC0",),
    )
    return _Set(data, data, features, backbone or Known())


# Jobs ---------------------------------------------------------------------------------------------------------------


def head_job(features: Path, **changes: Any) -> TrainConfig:
    """A head on features, 4 epochs of 9 steps."""
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 16, "log_every": 3, "lr": 0.02, "checkpoint_every": 3}
    return TrainConfig(**{**settings, "data": f"features:{features}", "head": "CPMuMoE-r4-e3", **changes})


def picture_job(table: Path, **changes: Any) -> TrainConfig:
    """A head on a frozen backbone of random weights."""
    settings: dict[str, Any] = {
        "data": f"csv:{table}",
        "data_options": ("label_column=kind",),
        "backbone": "test_efficientnet",
        "weights": str(table.with_name("test_efficientnet.safetensors")),
        "image_size": 32,
        "head": "CPMuMoE-r4-e6",
        "epochs": 6,
        "batch_size": 12,
        "lr": 0.02,
        "cache_dir": str(table.parent / "cache"),
    }
    return TrainConfig(**{**settings, **changes})


def finetune_job(table: Path, backbone: str, **changes: Any) -> TrainConfig:
    """A tiny backbone trained with its head, 3 epochs of 3 steps."""
    weights = str(table.with_name(f"{backbone}.safetensors"))
    own: dict[str, Any] = {"mode": "finetune", "backbone": backbone, "weights": weights, "epochs": 3, "lr": 1e-3}
    return picture_job(table, **{**own, "checkpoint_every": 1, "log_every": 1, "dropout": 0.1, **changes})


def mixer_job(table: Path, **changes: Any) -> TrainConfig:
    """A tiny MLP-Mixer from random weights, with augmentation, mixup and drop path, which draw at random."""
    sizes = ("depth=1", "width=8", "token_hidden=16", "channel_hidden=32", "patch_size=4", "drop_path=0.1")
    own: dict[str, Any] = {
        "mode": "scratch",
        "backbone": "mixer-s16",
        "weights": "",
        "network_options": sizes,
        "head": "CPMuMoE-e4",
        "image_size": 16,
        "augment": "rand-n2-m10",
        "mixup": 0.2,
        "epochs": 3,
        "checkpoint_every": 1,
        "log_every": 1,
    }
    return picture_job(table, **{**own, **changes})


def text_job(tokens: Path, **changes: Any) -> TrainConfig:
    """A tiny GPT-2 on tokens, 12 steps."""
    own: dict[str, Any] = {
        "mode": "text",
        "backbone": "gpt2",
        "head": "CPMuMoE-e4",
        "norm": "layer",
        "batch_size": 24,
        "steps": 12,
        "lr": 0.01,
        "checkpoint_every": 2,
        "log_every": 1,
        "network_options": ("depth=1", "heads=2", "width=16", "context=24", "dropout=0.1"),
        "data": f"tokens:{tokens}",
    }
    return TrainConfig(**{**own, **changes})
