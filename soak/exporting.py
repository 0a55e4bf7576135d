"""Everything that people send to others, made in the current folder: run by `soak.privacy` in a process of its own.

    python -m soak.exporting [--quick]

Data and runs lie under ``mine/``, which may know where they are; what is meant to leave the machine lies under
``sent/``. Paths are given as absolute ones, the hardest case.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import mumoe
from mumoe.cli import main
from mumoe.dashboard.server import serving
from mumoe.dashboard.session import open_session
from mumoe.data.base import Attribute, ImageData
from mumoe.demo import demo_job
from mumoe.demo.demo_settings import DemoSettings
from mumoe.files import write_tensors, write_text
from mumoe.models.backbones import create_backbone
from mumoe.training.opening import StoredRun

TARGETS = ("round", "striped")
EDITS = ("ablate:1", "scale:2=0.5")


def pictures(folder: Path, count: int = 180) -> Path:
    """Images of 16 x 16 pixels and a table of them: two 0/1 targets, an attribute and a split."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for n in range(count):
        shape, striped, inked = rng.integers(0, 2, 3).tolist()
        pixels = np.full((16, 16, 3), (200, 60)[inked], np.uint8)
        pixels[4:12, 4:12, shape] = 255
        pixels[:: 4 if striped else 99, :, 2] = 0
        Image.fromarray(pixels).save(folder / "pictures" / f"{n}.png")
        rows.append([f"pictures/{n}.png", shape, striped, ("plain", "inked")[inked], ("train", "val", "test")[n % 3]])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", *TARGETS, "studio", "split"], *rows])
    return folder / "table.csv"


def classes(folder: Path) -> Path:
    """A folder of images by class."""
    rng = np.random.default_rng(1)
    for n, name in enumerate(("cat", "dog", "owl")):
        (folder / name).mkdir(parents=True)
        for k in range(16):
            pixels = rng.integers(0, 80, (16, 16, 3)).astype(np.uint8)
            pixels[..., n] += 120
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def weights(path: Path) -> Path:
    """Random weights of timm's smallest network."""
    torch.manual_seed(0)
    write_tensors(path, timm.create_model("test_efficientnet", num_classes=0).state_dict())
    return path


def settings(mine: Path, name: str) -> dict[str, Any]:
    """How runs are trained."""
    return {
        "out": str(mine / "runs" / name),
        "backbone": "test_efficientnet",
        "weights": str(mine / "weights.safetensors"),
        "image_size": 32,
        "preset": "plain",
        "epochs": 4,
        "batch_size": 30,
        "lr": 0.02,
        "cache_dir": str(mine / "cache"),
        "device": "cpu",
        "progress": False,
    }


def call(*arguments: object) -> str:
    """What a verb prints; it must succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as said:
        status = main([str(argument) for argument in arguments])
    if status:
        raise RuntimeError(f"{arguments[0]}: exit status {status}: {said.getvalue()[-300:]}")
    return out.getvalue()


def of_attributes(mine: Path, sent: Path, quick: bool) -> None:
    """A job on 0/1 attributes, with everything that is measured of it and written about it."""
    options = [f"target_columns={','.join(TARGETS)}", "group_columns=studio"]
    data = f"csv:{pictures(mine / 'data', 60 if quick else 180)}"
    more: dict[str, Any] = {} if quick else {"against": ["linear"], "seeds": 2}
    job = mumoe.train(data, "CPMuMoE-r8-e6", data_options=options, **settings(mine, "job"), **more)
    run = next(run for run in job.runs if run.config.head != "linear")
    run.analyze(resamples=2 if quick else 20)
    run.name_expert(1, "round ones", note="seen on a few images")
    hand = run.edit(*EDITS)
    hand.save(sent / "hand.json")
    if not quick:
        measured(job, run, sent)
    job.report(sent / "report")
    run.save(sent / "saved")
    if quick:
        return
    run.report(sent / "report-of-one")
    run.report(mine / "asked", local_paths=True)
    run.with_edits(hand).save(sent / "saved-edited")
    run.export(sent / "model.onnx")
    run.export(sent / "model.pt2")
    call("convert", "vit_tiny_patch16_224", "--experts", 2, "--preset", "auto", "--out", sent / "converted")
    (mine / "data").rename(mine / "moved")
    mumoe.load(run.path, progress=False).report(sent / "report-without-images")


def measured(job: mumoe.Job, run: mumoe.Run, sent: Path) -> None:
    """What is measured of a run and its job, beside and before its report."""
    run.rewrite(target="round", sensitive="studio", value="inked").save(sent / "rewriting.json")
    run.audit("round").save(sent / "audit.json")
    who = ("--target", "round", "--sensitive", "studio")
    write_text(sent / "fairness.json", call("fairness", run.path, *who, "--json", "--resamples", 20, "--quiet"))
    write_text(run.path / "fairness.json", (sent / "fairness.json").read_text())
    call("audit", run.path, "--target", "round", "--propose", sent / "proposed", "--alpha", 0.9, "--quiet")
    saved_by_the_dashboard(run.path)
    shutil.copytree(run.path / "edits", sent / "edits")
    shutil.copytree(run.path / "audit", sent / "audit")
    shutil.copytree(run.path / "analysis", sent / "analysis")
    job.stability().save(job.path / "CPMuMoE-r8-e6" / "stability.json")
    run.shift("gaussian-noise")


def saved_by_the_dashboard(run: Path) -> None:
    """A file of edits that a page saves, into the run's folder."""
    session = open_session(StoredRun(run, device="cpu", progress=False))
    with serving(lambda report: session) as running:
        entry = {"name": "a", "kind": "ablate", "expert": 1, "level": 0, "strength": 1}
        body = json.dumps({"name": "from-the-page", "edits": [entry], "split": "val"})
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        cookie = f"mumoe_{running.port}={running.keys.token}"
        connection.request("POST", "/api/save", body, {"Cookie": cookie, "X-Mumoe-Page": running.keys.page})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())


def of_classes(mine: Path, sent: Path) -> None:
    """Runs that were not analyzed, whose pages name the commands that would; by relative paths, as in a notebook.

    What a notebook shows may hold no more than what was typed into it.
    """
    classes(mine / "birds")
    birds, given = f"folder:{os.path.relpath(mine / 'birds')}", settings(Path(os.path.relpath(mine)), "birds")
    run = mumoe.train(birds, "CPMuMoE-r4-e4", **given)
    run.report(sent / "report-unanalyzed")
    linear = mumoe.train(birds, "linear", **{**given, "out": os.path.relpath(mine / "runs" / "linear")})
    linear.report(sent / "report-linear")
    first = run.runs[0]
    shown = [run, first, run.result, linear.result, first.evaluate(), first.edit(*EDITS).report]
    html = [one._repr_html_() for one in shown if hasattr(one, "_repr_html_")]
    write_text(sent / "shown.txt", "\n".join([*map(repr, shown), *html, *run.report(sent / "again").sentences()[:-1]]))


def of_features(mine: Path, sent: Path) -> None:
    """A run on features that were computed elsewhere, its pages and its head."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    x = (rng.normal(size=(3, 6))[labels] + 0.3 * rng.normal(size=(120, 6))).astype(np.float32)
    (mine / "features").mkdir()
    for name, array in (("features", x), ("labels", labels), ("split", np.arange(120) % 3)):
        np.save(mine / "features" / f"{name}.npy", array)
    plain = settings(mine, "features")
    for key in ("backbone", "weights", "image_size"):
        del plain[key]
    job = mumoe.train(f"features:{mine / 'features' / 'features.npy'}", "CPMuMoE-r4-e4", **plain)
    job.runs[0].analyze(resamples=20)
    job.report(sent / "report-features")
    job.runs[0].export(sent / "head.onnx")


def of_text(mine: Path, sent: Path) -> None:
    """A tokenized text, a small language model on it and its pages, and a decomposition of another model."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    (mine / "text").mkdir()
    words = ("the", "cat", "sees", "a", "red", "dog", "and", "old", "trees")
    rng = np.random.default_rng(0)
    for n in range(40):
        write_text(mine / "text" / f"{n}.txt", " ".join(rng.choice(words, 60)))
    call("tokenize", mine / "text", "--out", sent / "tokens", "--val", 0.2, "--test", 0.2)
    job = mumoe.train(
        f"tokens:{sent / 'tokens'}",
        "CPMuMoE-e4",
        mode="text",
        backbone="gpt2",
        norm="layer",
        network_options=["depth=1", "heads=2", "width=16", "context=24"],
        steps=4,
        batch_size=16,
        out=str(mine / "runs" / "text"),
        device="cpu",
        progress=False,
    )
    job.runs[0].analyze()
    job.report(sent / "report-text")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={"<s>": 0, **{one: n + 1 for n, one in enumerate(letters)}}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=made, bos_token="<s>", eos_token="<s>").save_pretrained(mine / "llama")
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(mine / "llama")
    for kind in ("cp-linear", "transcoder"):
        found = mumoe.decompose(
            str(mine / "llama"),
            layer=1,
            kind=kind,
            text=f"folder:{mine / 'text'}",
            out=sent / f"decomposition-{kind}",
            k=4,
            width=4,
            tokens=1000,
            context=17,
            lr=(4e-3,),
            batch_size=64,
            val_contexts=8,
            precision="float32",
            device="cpu",
            cache_dir=mine / "cache",
            progress=False,
        )
        found.analyze(8, ablations=4, least=5)
        found.report(sent / f"report-{kind}")
        found.save_coefficients(sent / f"{kind}.parquet", 8)
        write_text(sent / f"shown-{kind}.txt", repr(found.evaluate(8, jacobians=4, twin=False)))
    found.save_transcoder(sent / "transcoder")


def of_the_demo(sent: Path) -> None:
    """The page and card of the demo, on images that are made up."""
    rng = np.random.default_rng(0)
    labels, studio = rng.integers(0, 9, 1500), rng.integers(0, 3, 1500)
    x = rng.normal(size=(9, 1280))[labels] + 6 * rng.normal(size=(1500, 1280))
    data = ImageData(
        name="emoji",
        classes=tuple(f"class-{n}" for n in range(9)),
        multi_label=False,
        labels=labels,
        split=np.array([0, 0, 0, 1, 2], np.int8)[np.arange(1500) % 5],
        ids=tuple(map(str, range(1500))),
        open_image=lambda n: Image.new("RGB", (96, 96), (n % 256, 90, 120)),
        fingerprint="made-up",
        attributes={
            "group": Attribute(labels // 3, ("Animals & Nature", "Objects", "Food & Drink")),
            "studio": Attribute(studio, ("noto", "openmoji", "twemoji")),
            "subgroup": Attribute(labels, tuple(f"class-{n}" for n in range(9))),
        },
    )
    backbone = create_backbone("test_efficientnet", pretrained=False)
    given = demo_job._Set(data, data, x.astype(np.float32), backbone)
    demo_job._load = lambda settings, progress: given
    small = DemoSettings(few=2, many=12, rank=8, seeds=1, epochs=2)
    demo_job.run_demo(sent / "demo", settings=small, progress=False)


def everything(here: Path, quick: bool) -> None:
    """All of it; quick: a run, its pages and its weights."""
    mine, sent = here / "mine", here / "sent"
    sent.mkdir()
    mine.mkdir()
    weights(mine / "weights.safetensors")
    of_attributes(mine, sent, quick)
    if not quick:
        of_classes(mine, sent)
        of_features(mine, sent)
        of_text(mine, sent)
        of_the_demo(sent)


def _run(arguments: Sequence[str]) -> int:
    everything(Path.cwd(), "--quick" in arguments)
    return 0


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
