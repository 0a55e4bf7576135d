"""Jobs in one call: train over seeds and heads, or resume after a stop."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mumoe.data.base import SplitName
from mumoe.errors import JobError, UserError
from mumoe.results import RunResult, TrainResult
from mumoe.training.compare import summarize
from mumoe.training.config import PLAIN, TrainConfig, read_config
from mumoe.training.distributed import from_main, lost_process, main_first, make_accelerator, together
from mumoe.training.engine import Engine
from mumoe.training.inputs import Data, Inputs
from mumoe.training.networks import parameter_count
from mumoe.training.run import (
    RunFolder,
    check_free,
    check_same_data,
    find_run,
    started_head,
    unknown_backbone,
    write_group_config,
)
from mumoe.training.sampler import batches_per_epoch, least_rows
from mumoe.training.tasks import settled, task_of

__all__ = ["job_result", "resume", "train"]

_tell = logging.getLogger("mumoe.training").warning


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
    announce: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train one or several heads on one or several seeds, as configured.

    Args:
        config: The settings. One run goes to ``config.out`` itself, several seeds to ``OUT/seed-K``, several
            heads to ``OUT/HEAD/seed-K``, with ``OUT/summary.json`` beside them.
        data: An image set to use instead of loading ``config.data``.
        backbone: A backbone to use instead of building ``config.backbone``.
        features: (num_images, num_features) features to use instead of extracting them. Pass the backbone that
            computed them too, so that the run can classify images later.
        progress: Whether to show progress on stderr.
        announce: Called with one line on the data, before anything is computed.

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
    given = {"data": data, "backbone": backbone, "features": features}
    return _run_job(config, out, given, progress, announce, new=True)


def default_out(config: TrainConfig) -> str:
    """Default folder of a run: runs/DATA-HEAD."""
    return f"runs/{_file_name(Path(config.data).name)}-{_file_name(config.head)}"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


def resume(
    run: str | Path,
    *,
    data: Data | str | None = None,
    backbone: nn.Module | None = None,
    features: npt.NDArray[np.float32] | None = None,
    device: str = "",
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
) -> TrainResult:
    """Resume a run, or every unfinished run of a job over several seeds or heads.

    On a CPU the result is bit-identical to that of an uninterrupted job. Objects are used as in `train`. `data` may
    also be the name of the same data at another place, and `device` may be another device.

    Raises:
        UserError: If there is no run, or its images or backbone are not those it was started with.
        JobError: If the job fails.
        Interrupted: After Ctrl-C, with a checkpoint written.
    """
    out = Path(run)
    if (out / "run.json").is_file() or not (out / "config.toml").is_file():
        config = RunFolder.open(out).config()
    else:
        config = read_config(out / "config.toml", PLAIN, unknown=_ignored(out))
    config = config.replace(device=device or config.device, out="")
    if isinstance(data, str):
        config, data = config.replace(data=data or config.data), None
    given = {"data": data, "backbone": backbone, "features": features}
    return _run_job(config, out, given, progress, announce)


def _ignored(out: Path) -> Callable[[list[str]], None]:
    return lambda names: _tell(f"{out}: ignored the unknown settings {', '.join(names)} of config.toml.")


def _run_job(
    config: TrainConfig,
    out: Path,
    given: Mapping[str, Any],
    progress: bool,
    announce: Callable[[str], None] | None,
    *,
    new: bool = False,
) -> TrainResult:
    accelerator = make_accelerator(config)
    with lost_process("train", f"Resume with: mumoe train --resume {out}"):
        return _run_members(config, out, given, progress, announce, accelerator, new=new)


def _run_members(
    config: TrainConfig,
    out: Path,
    given: Mapping[str, Any],
    progress: bool,
    announce: Callable[[str], None] | None,
    accelerator: Any,
    *,
    new: bool,
) -> TrainResult:
    main, task = bool(accelerator.is_main_process), task_of(config)
    inputs = main_first(lambda: task.find(**given, progress=progress and main))
    if announce is not None and main:
        size = task.image_size(inputs)
        announce(inputs.data.describe() + (f"; the network reads {size} px" if size else ""))
    least = least_rows(config, accelerator.num_processes)
    batches_per_epoch(len(inputs.data.indices("train")), config.batch_size, least)
    members = _plan(config, out, inputs)
    inputs = task.extract(inputs, accelerator.device, progress and main, together=True)
    with contextlib.ExitStack() as stack:

        def claim() -> RunFolder | None:
            if not main:
                return None
            folder = stack.enter_context(RunFolder(out))
            if new:
                check_free(out)  # another job may have begun there meanwhile
            if len(members) > 1:
                write_group_config(out, config)
            return folder

        folder = together(claim)
        runs = [_run_member(member, inputs, accelerator, progress, folder) for member in members]
        result = summarize(str(out), config.head, runs)
        together(lambda: result.save(out / "summary.json") if main else None)
    return result


def _plan(config: TrainConfig, out: Path, inputs: Inputs) -> list[_Member]:
    """All runs of a job; every head is built once on the meta device, so that a wrong one raises early."""
    task = task_of(config)
    heads = list(dict.fromkeys([config.head, *(task.partner(name, inputs) for name in config.against)]))
    vocabulary = int(inputs.facts.get("vocabulary", 0))
    for head in heads:
        with torch.device("meta"):
            task_of(config.of_head(head)).empty(inputs.num_features, len(inputs.data.classes), vocabulary)
    seeds = range(config.seed, config.seed + config.seeds)
    members = []
    for seed in seeds:
        for head in heads:
            path = out / _file_name(head) if len(heads) > 1 else out
            path = path / f"seed-{seed}" if len(heads) > 1 or len(seeds) > 1 else path
            name = f"{config.run_name}-{head}-seed-{seed}" if config.run_name and path != out else config.run_name
            single = config.of_head(head).replace(seed=seed, seeds=1, against=(), out="", run_name=name)
            members.append(_Member(path, single))
    return members


def _run_member(member: _Member, inputs: Inputs, accelerator: Any, progress: bool, job: RunFolder | None) -> RunResult:
    """Train one run to its end, from its newest checkpoint if there is one; a finished run is only read.

    `job` is the job's folder, which is locked; it may be that of the run.
    """
    run = job if job is not None and job.path == member.path else RunFolder(member.path)
    if (found := from_main(lambda: _finished(run))) is not None:
        return found
    task = task_of(member.config)
    inputs = task.with_seed(inputs)
    network = task.network(inputs)
    parameters = parameter_count(network)
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            if accelerator.is_main_process:
                stack.enter_context(contextlib.nullcontext() if run is job else run)
                _claim(run, member.config, inputs, parameters)

        together(claim)
        source = task.source(inputs, accelerator.device)
        engine = Engine(member.config, network, source, inputs.data, run, accelerator, progress=progress)
        with _recorded(run, accelerator.is_main_process):
            engine.restore(_tell)
            engine.fit()
            return _finish(engine, parameters)


def _finished(run: RunFolder) -> RunResult | None:
    """The result of a run that is finished, else None."""
    begun = (run.path / "run.json").is_file()
    return read_result(run) if begun and run.facts().get("state") == "finished" else None


def _claim(run: RunFolder, config: TrainConfig, inputs: Inputs, parameters: int) -> None:
    """Make a locked folder the run's, or check that it is the run that was started before."""
    facts = {"seed": config.seed, "head": config.head, "parameters": parameters, **inputs.facts}
    facts["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if not (run.path / "run.json").is_file():
        return run.make(config, facts)
    _check_same(run, config, inputs)
    return run.update(state="running")


def _check_same(run: RunFolder, config: TrainConfig, inputs: Inputs) -> None:
    """Refuse to resume with other images or another backbone than the run was started with."""
    facts, now = run.facts(), inputs.facts
    check_same_data(run, inputs.data)
    if facts.get("backbone") == now["backbone"] or inputs.features is None:
        return
    if facts.get("backbone") is None:
        raise unknown_backbone(run, config)
    raise UserError(
        f"{run.path}: expected the backbone weights that the run was started with, got others. "
        "Restore them, or train a new run."
    )


@contextlib.contextmanager
def _recorded(run: RunFolder, main: bool) -> Any:
    """Record in run.json how the run ended, also after an error."""
    try:
        yield
    except BaseException as error:
        if main:
            stopped = isinstance(error, KeyboardInterrupt)
            with contextlib.suppress(JobError):
                run.update(state="interrupted" if stopped else "failed", error=str(error))
        raise


def _finish(engine: Engine, parameters: int) -> RunResult:
    """Evaluate the selected checkpoint, and record the result."""
    if engine.config.select == "best":
        engine.restore_best(_tell)
    splits: list[SplitName] = [name for name in ("val", "test") if len(engine.data.indices(name))]
    result = RunResult(
        run=str(engine.run.path),
        head=engine.config.head,
        seed=engine.config.seed,
        parameters=parameters,
        step=engine.step,
        seconds=round(engine.seconds, 3),
        evaluations={split: engine.evaluate(split) for split in splits},
    )

    def record() -> None:
        if engine.accelerator.is_main_process:
            engine.run.update(state="finished", error=None, result=asdict(result))

    together(record)
    return result


def read_result(run: RunFolder) -> RunResult:
    """The result that a finished run recorded.

    Raises:
        JobError: If run.json holds none.
    """
    try:
        return RunResult.from_dict({**run.facts()["result"], "run": str(run.path)})
    except (KeyError, TypeError, UserError):
        raise JobError(f"{run.path}: expected a finished run, got a run.json without a result.") from None


def job_result(path: str | Path) -> TrainResult:
    """The results of the finished runs at a path, read from their folders.

    Raises:
        UserError: If there is no run.
        JobError: If none is finished.
    """
    runs = [read_result(run) for run in find_run(path) if run.facts().get("state") == "finished"]
    if not runs:
        raise JobError(f"{path}: expected a finished run, got none. Resume with: mumoe train --resume {path}")
    started = started_head(Path(path))
    return summarize(str(path), next((run.head for run in runs if run.head == started), runs[0].head), runs)
