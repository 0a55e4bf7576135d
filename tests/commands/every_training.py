"""Another value for every setting of `mumoe train`, with a job of a second or less that shows it."""

from __future__ import annotations

from typing import Any

from commands.every_option import Change, to

TRAIN: dict[str, Any] = {
    "data": "features:single.safetensors",
    "head": "CPMuMoE-r4-e4",
    "epochs": 3,
    "batch_size": 32,
    "lr": 0.02,
    "out": "out",
    "quiet": True,
}
PICTURED: dict[str, Any] = {
    "data": "csv:pictures/table.csv",
    "data_options": ("label_column=studio",),
    "backbone": "test_efficientnet",
    "weights": "pictures/weights.safetensors",
    "image_size": 32,
    "epochs": 1,
    "batch_size": 12,
    "cache_dir": "cache",
}
SCRATCH: dict[str, Any] = {
    **PICTURED,
    "mode": "scratch",
    "backbone": "mixer-s16",
    "weights": "",
    "network_options": ("depth=1", "width=8", "token_hidden=16", "channel_hidden=32", "patch_size=4"),
    "head": "CPMuMoE-e4",
    "image_size": 16,
}

TRAINED: dict[str, Change] = {
    "data": to("features:other.safetensors"),
    "data_options": to(("label_column=round",), **PICTURED),
    "strict": to(True, **{**PICTURED, "data": "csv:damaged/table.csv"}),
    "split_seed": to(1, data="features:unsplit.safetensors"),
    "vary_split": to(True, data="features:unsplit.safetensors", seeds=2),
    "backbone": to("test_vit", **{**PICTURED, "weights": "", "pretrained": False}),
    "backbone_seed": to(1, **{**PICTURED, "weights": "", "pretrained": False}),
    "network_options": to((*SCRATCH["network_options"][1:], "depth=2"), **SCRATCH),
    "weights": to("pictures/others.safetensors", **PICTURED),
    "pretrained": to(False, **{**PICTURED, "backbone": "efficientnet-lite0", "weights": ""}),
    "image_size": to(48, **PICTURED),
    "mode": to("finetune", **PICTURED),
    "head": to("linear"),
    "position": to("penultimate"),
    "gate": to("softmax"),
    "norm": to("layer"),
    "zscore": to(False),
    "augment": to("rand-n2-m10", **SCRATCH),
    "crop_area": to(0.9, **SCRATCH),
    "lr": to(0.01),
    "weight_decay": to(0.5),
    "decay": to("matrices", weight_decay=0.5, position="penultimate"),
    "beta1": to(0.5),
    "beta2": to(0.9),
    "schedule": to("constant"),
    "warmup_steps": to(2),
    "lr_end": to(0.01, schedule="cosine"),
    "clip": to(0.01),
    "epochs": to(2),
    "steps": to(4),
    "batch_size": to(16),
    "accumulate": to(2),
    "label_smoothing": to(0.2),
    "mixup": to(0.5, **SCRATCH),
    "balance": to(1.0, head="sparse-moe-e4-k2"),
    "precision": to("bf16"),
    "seed": to(1),
    "seeds": to(2),
    "against": to(("linear",)),
    "select": to("best", lr=0.5, epochs=6),
    "log_every": to(1),
    "eval_every": to(2),
    "eval_steps": to(2),
    "checkpoint_every": to(2, keep=9),
    "keep": to(1, checkpoint_every=1),
    "cache_dir": Change("elsewhere", also=PICTURED, echo=True),
    "out": Change("elsewhere", echo=True),
}
