"""Small runs that were really trained and analyzed, with names that a page could trip over."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from commands.made_up_analysis import make_data, make_features
from mumoe.commands.analyze import Options, analyze_run
from mumoe.data.base import Attribute
from mumoe.editing.attribute_audit import audit_attributes
from mumoe.editing.auditing import RunAudit
from mumoe.editing.edit_files import save_edits
from mumoe.editing.edit_texts import parse_edit
from mumoe.editing.expert_audit import audit
from mumoe.editing.stack import EditStack
from mumoe.editing.subgroup_fairness import Bootstrap, fairness_report
from mumoe.training import StoredRun, TrainConfig, train

NAMES = ("red", "<b>green</b>", "blue & 'teal'", 'grey "x"', "=black", "never </script><script>alert(1)</script> seen")


def named_data():
    return dataclasses.replace(make_data(), classes=NAMES, credits=("Made by <i>nobody</i>, CC0.",))


def trained(folder, head="CPMuMoE-r6-e12x2", **settings):
    """A run of these images; returns their data."""
    data = named_data()
    config = TrainConfig(
        data="made-up", head=head, epochs=4, batch_size=30, lr=0.02, eval_every=1, out=str(folder), **settings
    )
    train(config, data=data, features=make_features(data), progress=False)
    return data


def analyzed(folder, **options):
    """Analyze one run of them."""
    settings = {"resamples": 20, "images": 2, "quiet": True, **options}
    data = named_data()
    return analyze_run(Options(str(folder), **settings), data=data, features=make_features(data))


def edited(run):
    """Two files of edits beside a run: one for a subgroup, with how its strength was chosen, one by hand."""
    layer = StoredRun(run, device="cpu").head.layer
    (run / "edits").mkdir()
    stack = EditStack(layer)
    stack.add(parse_edit("ablate:1/0", NAMES))
    before, blind, after = reports()
    points = [{"strength": s, "metrics": {"accuracy": 0.9 - s / 50, "target_accuracy": 0.5 + s / 5}} for s in (0, 1, 2)]
    choice = {"objective": "match", "max_loss": 0.01, "reached": True, "strength": 1, "curve": points}
    subgroup = {"head": "old <u>", "label": 1, "sensitive": "sex", "value": "b", "training_images": 17}
    provenance = {
        "subgroup": subgroup,
        "lambda": 1,
        "choice": choice,
        "metrics_before": before,
        "metrics_after": after,
        "blind": {"choice": {**choice, "strength": 2}, "metrics": blind},
    }
    save_edits(run / "edits" / "old-sex-b.json", stack, provenance)
    plain = {"images": 90, "accuracy": 0.5, "classes": {"red": 0.5, "<b>green</b>": 0.5}}
    changed = {"images": 90, "accuracy": 0.75, "classes": {"red": 0.5, "<b>green</b>": 1.0}}
    by_hand = {"split": "val", "metrics_before": plain, "metrics_after": changed}
    save_edits(run / "edits" / "by-hand.json", stack, by_hand)


def audited(run):
    """An audit beside a run: 300 made-up images, of which those of expert 2 and one studio are wrong more often."""
    rng = np.random.default_rng(3)
    labels, studio = rng.integers(0, len(NAMES), 300), rng.integers(0, 2, 300)
    a = torch.nn.functional.one_hot(torch.from_numpy(rng.integers(0, 6, 300)), 6).float()
    right = torch.from_numpy(rng.random(300) > np.where((studio == 1) | (a[:, 2] > 0).numpy(), 0.7, 0.05))
    columns = {"studio <i>": Attribute(studio, ("a & b", "<script>c</script>"))}
    settings = {"min_rows": 5, "merge": 0.5}
    found = audit([a], right, torch.from_numpy(labels), **settings)
    named = audit_attributes(columns, right, torch.from_numpy(labels), **settings)
    about = {"run": str(run), "split": "test", "images": 300, "labels": NAMES}
    path = run / "audit" / "test" / "audit.json"
    path.parent.mkdir(parents=True)
    RunAudit(**vars(found), **about, by_attributes=named).save(path)


def reports():
    """Fairness of 80 made-up predictions as trained, shifted blindly and edited, the target best at the end."""
    rng = np.random.default_rng(0)
    truth, groups = rng.integers(0, 2, 80), np.where(rng.random(80) < 0.4, "b", "a")
    old = np.where((truth == 1) & (groups == "b"), rng.random(80) < 0.4, truth).astype(np.int64)
    blind = np.where(rng.random(80) < 0.3, 1, old)
    common = {"sensitive_features": groups, "target": (1, "b"), "bootstrap": Bootstrap(50)}
    return [fairness_report(truth, guess, y_pred_before=old, **common).to_dict() for guess in (old, blind, truth)]
