"""Jobs from one call: train over seeds and heads, go on after a stop, evaluate, load what came out."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mumoe.data.base import SPLITS
from mumoe.errors import JobError, UserError, unknown_name
from mumoe.files import write_text
from mumoe.models.heads import Head
from mumoe.results import EvalResult, RunResult, TrainResult, to_json
from mumoe.training import state
from mumoe.training.checkpoint import CheckpointError, Snapshot, newest, read
from mumoe.training.compare import partner_spec, summarize
from mumoe.training.config import TrainConfig, read_config
from mumoe.training.distributed import make_accelerator
from mumoe.training.engine import Engine
from mumoe.training.evaluation import evaluate_split, evaluation_batch
from mumoe.training.inputs import (
    FEATURES,
    Data,
    Inputs,
    cached_features,
    load_backbone,
    load_images,
    load_inputs,
    make_network,
    make_source,
    settled,
    with_seed,
)
from mumoe.training.network import Network, make_head, parameter_count
from mumoe.training.run import RunFolder, check_free, write_group_config
from mumoe.training.sampler import batches_per_epoch, least_rows
from mumoe.training.whole import WHOLE, WholeNetwork, make_whole, partner_block

__all__ = ["evaluate", "load_head", "load_run", "load_run_inputs", "resume", "train"]

_tell = logging.getLogger("mumoe.training").warning

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class _Member:
    """One run of a job: a head on a seed, in its own folder."""

    path: Path
    config: TrainConfig


def train(
    config: TrainConfig,
    *,
    data: Data | None = None,
    backbone: nn.Module | None = None,
    features: npt.NDArray[np.float32] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train what a config asks for: one head or several, on one seed or several.

    Args:
        config: The settings. One run goes to ``config.out`` itself, several seeds to ``OUT/seed-K``, several
            heads to ``OUT/HEAD/seed-K``, with ``OUT/summary.json`` beside them.
        data: An image set to take instead of loading ``config.data``.
        backbone: A backbone to take instead of building ``config.backbone``.
        features: (num_images, num_features) features to take instead of extracting them.
        progress: Whether to show progress on stderr.

    Raises:
        UserError: If a setting is wrong; nothing was written.
        JobError: If the job fails; finished runs and checkpoints are kept.
        Interrupted: After Ctrl-C, with a checkpoint written.
    """
    config = config.check()
    if data is None and backbone is None and features is None:
        config = settled(config)
    out = Path(config.out or default_out(config))
    check_free(out)
    return _run_job(config, out, {"data": data, "backbone": backbone, "features": features}, progress)


def default_out(config: TrainConfig) -> str:
    """Where a run goes that was given no folder: runs/DATA-HEAD."""
    return f"runs/{_file_name(Path(config.data).name)}-{_file_name(config.head)}"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


def resume(
    run: str | Path,
    *,
    data: Data | None = None,
    backbone: nn.Module | None = None,
    features: npt.NDArray[np.float32] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Go on with a run, or with every unfinished run of a job over several seeds or heads.

    On a CPU the result has the same bits as that of a job never stopped. Objects are taken as in `train`.

    Raises:
        UserError: If there is no run, or its images or backbone are not those it was started with.
        JobError: If the job fails.
        Interrupted: After Ctrl-C, with a checkpoint written.
    """
    out = Path(run)
    if not (out / "config.toml").is_file():
        RunFolder.open(out)
    config = read_config(out / "config.toml")
    given = {"data": data, "backbone": backbone, "features": features}
    return _run_job(config, out, given, progress)


def _run_job(config: TrainConfig, out: Path, given: Mapping[str, Any], progress: bool) -> TrainResult:
    accelerator = make_accelerator(config)
    members: list[_Member] = []

    def plan(found: Any, num_features: int) -> None:
        least = least_rows(config, accelerator.num_processes)
        batches_per_epoch(len(found.indices("train")), config.batch_size, least)
        members.extend(_plan(config, out, num_features, len(found.classes)))

    inputs = load_inputs(
        config,
        **given,
        before_features=plan,
        device=accelerator.device,
        processes=accelerator,
        progress=progress and accelerator.is_main_process,
    )
    if len(members) > 1 and accelerator.is_main_process:
        write_group_config(out, config)
    runs = [_run_member(member, with_seed(inputs, member.config), accelerator, progress) for member in members]
    result = summarize(str(out), config.head, runs)
    if accelerator.is_main_process:
        write_text(out / "summary.json", json.dumps(to_json(result), indent=1) + "\n")
    return result


def _plan(config: TrainConfig, out: Path, num_features: int, num_classes: int) -> list[_Member]:
    """All runs of a job; every head is built once on paper, so that a wrong one is told before any work."""

    heads = list(dict.fromkeys([config.head, *_partners(config, num_features, num_classes)]))
    for head in heads:
        with torch.device("meta"):
            if config.mode in WHOLE:
                make_whole(config.replace(head=head), num_classes=num_classes, vocabulary=num_classes)
            else:
                make_head(config.replace(head=head), num_features, num_classes)
    seeds = range(config.seed, config.seed + config.seeds)
    members = []
    for seed in seeds:
        for head in heads:
            path = out / _file_name(head) if len(heads) > 1 else out
            path = path / f"seed-{seed}" if len(heads) > 1 or len(seeds) > 1 else path
            single = config.replace(head=head, seed=seed, seeds=1, against=(), out="")
            members.append(_Member(path, single))
    return members


def _partners(config: TrainConfig, num_features: int, num_classes: int) -> list[str]:
    if config.mode in WHOLE:
        return [partner_block(config, partner) for partner in config.against]
    return [partner_spec(config, partner, num_features, num_classes) for partner in config.against]


def _run_member(member: _Member, inputs: Inputs, accelerator: Any, progress: bool) -> RunResult:
    """One run from wherever it stands to its end; a finished one is only read."""
    run = RunFolder(member.path)
    if (member.path / "run.json").is_file() and run.facts().get("state") == "finished":
        return read_result(run)
    network = make_network(member.config, inputs)
    parameters = parameter_count(network)
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(_claim(run, member.config, inputs, parameters))
        accelerator.wait_for_everyone()
        source = make_source(member.config, inputs, accelerator.device)
        engine = Engine(member.config, network, source, inputs.data, run, accelerator, progress=progress)
        with _recorded(run, accelerator.is_main_process):
            engine.restore(_tell)
            engine.fit()
            return _finish(engine, parameters)


def _claim(run: RunFolder, config: TrainConfig, inputs: Inputs, parameters: int) -> RunFolder:
    """Make the run's folder, or take the lock of one that was started before."""
    facts = {"seed": config.seed, "head": config.head, "parameters": parameters, **inputs.facts}
    facts["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if not (run.path / "run.json").is_file():
        return RunFolder.create(run.path, config, facts)
    run.acquire()
    try:
        _check_same(run, inputs)
        run.update(state="running")
    except BaseException:
        run.release()
        raise
    return run


def _check_same(run: RunFolder, inputs: Inputs) -> None:
    """Refuse to go on with other images or another backbone than the run was started with."""
    facts, now = run.facts(), inputs.facts
    if facts.get("data") != now["data"]:
        raise UserError(
            f"{run.path}: expected the images that the run was started with ({facts.get('data')}), "
            f"got {now['data']}. Restore them, or train anew."
        )
    if facts.get("backbone") != now["backbone"] and inputs.features is not None:
        raise UserError(
            f"{run.path}: expected the backbone weights that the run was started with, got others. "
            "Restore them, or train anew."
        )


@contextlib.contextmanager
def _recorded(run: RunFolder, main: bool) -> Any:
    """Write how the run ended into run.json, whatever happens."""
    try:
        yield
    except BaseException as error:
        if main:
            stopped = isinstance(error, KeyboardInterrupt)
            with contextlib.suppress(JobError):
                run.update(state="interrupted" if stopped else "failed", error=str(error))
        raise


def _finish(engine: Engine, parameters: int) -> RunResult:
    """Evaluate the checkpoint that is the result, and write it down."""
    if engine.config.select == "best" and engine.best is not None and engine.best["step"] != engine.step:
        _take_best(engine)
    splits: list[Split] = [name for name in ("val", "test") if len(engine.data.indices(name))]
    result = RunResult(
        run=str(engine.run.path),
        head=engine.config.head,
        seed=engine.config.seed,
        parameters=parameters,
        step=engine.step,
        seconds=round(engine.seconds, 3),
        evaluations={split: engine.evaluate(split) for split in splits},
    )
    if engine.accelerator.is_main_process:
        engine.run.update(state="finished", error=None, result=to_json(result))
    return result


def _take_best(engine: Engine) -> None:
    assert engine.best is not None
    step = int(engine.best["step"])
    try:
        found = read(engine.run.checkpoints / f"step-{step:08d}", state.check_fit(engine.network))
    except CheckpointError as error:
        _tell(f"{error} The last checkpoint is taken instead of the best.")
        return
    state.restore_model(engine.network, found.tensors["model"])
    engine.step = step


def read_result(run: RunFolder) -> RunResult:
    """The result that a finished run wrote down.

    Raises:
        JobError: If run.json holds none.
    """
    try:
        found = run.facts()["result"]
        evaluations = {split: EvalResult(**values) for split, values in found["evaluations"].items()}
        return RunResult(**{**found, "evaluations": evaluations, "run": str(run.path)})
    except (KeyError, TypeError, AttributeError):
        raise JobError(f"{run.path}: expected a finished run, got a run.json without result.") from None


def load_head(run: str | Path) -> tuple[Head, TrainConfig, dict[str, Any]]:
    """The trained head of a run (features -> logits), in eval mode.

    Returns the head, the run's config and run.json's facts, with ``step`` of the checkpoint taken.

    Raises:
        UserError: If the path is no run.
        JobError: If it has no whole checkpoint; damaged ones are named in a warning and the next is taken.
    """
    mode = RunFolder.open(run).config().mode
    if mode in WHOLE:
        raise UserError(
            f"{run}: expected a run that trained a head, got one of mode {mode}, which trained a whole network. "
            "Take load_run."
        )
    if mode == "finetune":
        model, config, facts = load_run(run)
        assert isinstance(model.head, Head)
        return model.head, config, facts
    network, config, facts = _load_network(run, None)
    assert isinstance(network, Network)
    return network.head, config, facts


def load_run(run: str | Path, *, backbone: nn.Module | None = None) -> tuple[nn.Module, TrainConfig, dict[str, Any]]:
    """The trained model of a run (images -> logits), in eval mode, with its config and facts.

    A whole network comes as it is: an MLP-Mixer, or a GPT-2 of Hugging Face's kind.

    Raises:
        UserError: If the path is no run, the run was trained on features whose backbone is not known, or the
            backbone's weights are not those it was trained on.
        JobError: If it has no whole checkpoint.
    """
    from mumoe.models.classifier import Classifier

    opened = RunFolder.open(run)
    config = opened.config()
    if config.mode in WHOLE:
        whole, config, facts = _load_network(run, None)
        assert isinstance(whole, WholeNetwork)
        return whole.model, config, facts
    if config.data.startswith(FEATURES):
        raise UserError(f"{run}: expected a run on images, got one on {config.data!r}. Take load_head.")
    if backbone is None:
        frozen = config.mode == "features"
        backbone = load_backbone(config if frozen else config.replace(pretrained=False, weights=""))
    network, config, facts = _load_network(run, backbone)
    assert isinstance(network, Network)
    if config.mode == "features" and facts["backbone"] != str(getattr(backbone, "fingerprint", "")):
        raise UserError(
            f"{run}: expected the backbone weights that the head was trained on, got others. "
            "Restore them, or pass the right backbone."
        )
    return Classifier(backbone, network.head).eval(), config, facts


def load_run_inputs(
    run: str | Path,
    *,
    data: Data | None = None,
    backbone: nn.Module | None = None,
    features: npt.NDArray[np.float32] | None = None,
    progress: bool = True,
) -> Inputs:
    """The images of a run and what its head sees of them: features of the backbone, frozen or trained in the run.

    Objects are taken as in `train`; a backbone, where it was trained, gets the run's weights.

    Raises:
        UserError: If the path is no run, or its images are not those it was started with.
        JobError: If it has no whole checkpoint.
    """
    opened = RunFolder.open(run)
    config = opened.config()
    if config.mode in ("features", *WHOLE):
        inputs = load_inputs(config, data=data, backbone=backbone, features=features, progress=progress)
    else:
        found: Any = load_images(config, progress) if data is None else data
        trained: Any = load_run(run, backbone=backbone)[0].backbone
        seen = cached_features(config, found, trained, "cpu", progress) if features is None else features
        inputs = Inputs(found, trained, seen, int(seen.shape[1]))
    if opened.facts()["data"]["fingerprint"] != inputs.data.fingerprint:
        raise UserError(f"{run}: expected the images that it was trained on, got others. Restore them.")
    return inputs


def _load_network(
    run: str | Path, backbone: nn.Module | None
) -> tuple[Network | WholeNetwork, TrainConfig, dict[str, Any]]:
    opened = RunFolder.open(run)
    config, facts = opened.config(), opened.facts()
    network: Network | WholeNetwork
    if config.mode in WHOLE:
        network = make_whole(config, num_classes=len(facts["classes"]), vocabulary=int(facts.get("vocabulary", 0)))
    else:
        head = make_head(config, int(facts["num_features"]), len(facts["classes"]))
        network = Network(head, None if config.mode == "features" else backbone)
    found = _chosen(opened, config, network)
    state.restore_model(network, found.tensors["model"])
    return network.eval(), config, {**facts, "step": found.step}


def _chosen(run: RunFolder, config: TrainConfig, network: nn.Module) -> Snapshot:
    """The checkpoint that is a run's result so far: the best if the run selects it, else the newest."""
    check = state.check_fit(network)
    found = newest(run.checkpoints, check, _tell)
    if found is None:
        raise JobError(
            f"{run.path}: expected a checkpoint, got none yet. Train on with: mumoe train --resume {run.path}"
        )
    best = found.state.get("best")
    if config.select == "best" and best and best["step"] != found.step:
        try:
            return read(run.checkpoints / f"step-{int(best['step']):08d}", check)
        except CheckpointError as error:
            _tell(f"{error} The last checkpoint is taken instead of the best.")
    return found


def evaluate(
    run: str | Path,
    split: str = "test",
    *,
    data: Data | None = None,
    backbone: nn.Module | None = None,
    features: npt.NDArray[np.float32] | None = None,
    progress: bool = True,
) -> EvalResult:
    """Loss and accuracy of a run's model on one split, by class or by attribute.

    Raises:
        UserError: If the path is no run, or the split is unknown or has no image.
        JobError: If the run has no whole checkpoint.
    """
    if split not in SPLITS:
        raise unknown_name("evaluate", "split", split, SPLITS)
    opened = RunFolder.open(run)
    config = opened.config()
    accelerator = make_accelerator(config.replace(precision="fp32") if config.precision == "fp16" else config)
    given: dict[str, Any] = {"data": data, "backbone": backbone, "features": features}
    inputs = load_inputs(config, **given, device=accelerator.device, processes=accelerator, progress=progress)
    _check_same(opened, inputs)
    if len(inputs.data.indices(split)) == 0:
        raise UserError(f"evaluate: expected images in the {split} split of {config.data}, got none.")
    network, config, facts = _load_network(run, inputs.backbone)
    source = make_source(config, inputs, accelerator.device)
    network = network.to(accelerator.device)
    facts = {"run": str(run), "step": facts["step"]}
    size = evaluation_batch(config, network)
    return evaluate_split(network, source, inputs.data, split, accelerator, size, **facts)
