"""The Python API: `mumoe.train` and `mumoe.load` return runs and jobs; the command line uses them too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe import training
from mumoe.calling import checked, checked_methods
from mumoe.deploy.saved import is_converted, is_saved
from mumoe.devices import AUTO, resolve
from mumoe.errors import UserError, require
from mumoe.files import recovered
from mumoe.results import EvalResult, TrainResult
from mumoe.specs import read_spec
from mumoe.training.config import TrainConfig, from_mapping
from mumoe.training.jobs import job_result
from mumoe.training.metrics_log import job_curves
from mumoe.training.opening import StoredRun
from mumoe.training.run import find_run, pick_run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL import Image

    from mumoe.analysis.expert_notes import ExpertNotes
    from mumoe.analysis.findings import TextStudy
    from mumoe.analysis.shifting import Shift
    from mumoe.analysis.stability import Stability
    from mumoe.analysis.study import Study
    from mumoe.data.base import ImageData
    from mumoe.deploy.formats import ExportReport
    from mumoe.deploy.model import HeadModel, ImageClassifier
    from mumoe.deploy.predictions import Prediction
    from mumoe.editing.auditing import RunAudit
    from mumoe.editing.correcting import Edit
    from mumoe.editing.edit_files import Edits
    from mumoe.editing.edit_reports import FairnessComparison
    from mumoe.editing.expert_edits import ExpertEdit
    from mumoe.editing.rewriting import Strength
    from mumoe.editing.runs import EditingRun
    from mumoe.models.heads import Head
    from mumoe.reports.site import ReportPages
    from mumoe.training.inputs import Data, Inputs

__all__ = ["Job", "Run", "load", "load_runs", "open_job", "open_run", "resume", "train", "write_report"]

Transform = Callable[["Image.Image"], Tensor]


@checked_methods
class Run:
    """A trained run. Settings and facts are read at once; data, model and features on first use.

    Made by `mumoe.load`, `Job.runs` and `Job.best`.

    Attributes:
        path: Its folder.
        config: The settings it was trained with.
        facts: What run.json records: seed, versions, commit, data, results.
    """

    def __init__(self, stored: StoredRun) -> None:
        self._stored = stored

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, head={self.config.head!r}, seed={self.config.seed})"

    @property
    def path(self) -> Path:
        return self._stored.path

    @property
    def config(self) -> TrainConfig:
        return self._stored.config

    @property
    def facts(self) -> dict[str, Any]:
        return self._stored.facts

    @property
    def step(self) -> int:
        """Optimizer step of the checkpoint that is used.

        Raises:
            JobError: If the run has no intact checkpoint.
        """
        return self._stored.step

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._stored.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the logits, in order: classes, attributes, or the kinds of tokens of a text."""
        return self._stored.classes

    @property
    def multi_label(self) -> bool:
        """Whether every logit is an attribute that an image may have or not."""
        return bool(self.facts["multi_label"])

    @property
    def data(self) -> Any:
        """Images, labels and splits (`mumoe.data.base.ImageData`), or a text (`mumoe.data.text.TextData`).

        Raises:
            UserError: If they cannot be found, or are not those that the run was trained on.
        """
        return self._stored.data

    @property
    def inputs(self) -> Inputs:
        """The data with the features that the head sees.

        Raises:
            UserError: As `data`, or if the run does not know its backbone.
        """
        return self._stored.inputs

    @property
    def head(self) -> Head:
        """The head, features to logits.

        Raises:
            UserError: If the run trained a whole network.
            JobError: If the run has no intact checkpoint.
        """
        return self._stored.head

    @property
    def network(self) -> nn.Module:
        """The trained network as a plain module: images, or tokens, to logits.

        Raises:
            UserError: If the run does not know its backbone.
            JobError: If the run has no intact checkpoint.
        """
        return self._stored.model

    @functools.cached_property
    def classifier(self) -> ImageClassifier:
        """The network with its preprocessing and the names of its classes, to predict, save, export and push.

        Raises:
            UserError: If the run trained a whole network, or does not know its backbone.
            JobError: If the run has no intact checkpoint.
        """
        from mumoe.deploy.model import ImageClassifier

        return ImageClassifier.from_run(self._stored)

    @property
    def model(self) -> nn.Module:
        """The trained model in eval mode: an `ImageClassifier`; of a run that trained a whole network, that network;
        of one that does not know its backbone, the `Head`.

        Raises:
            JobError: If the run has no intact checkpoint.
        """
        if self._stored.trains_whole:
            return self.network
        return self.classifier if self._stored.knows_backbone else self.head

    @property
    def transform(self) -> Transform | None:
        """Preprocessing of one RGB PIL image to (3, H, W); None where the model does not start from images."""
        if self._stored.trains_whole:
            return self._stored.task.transform()
        return self.classifier.transform if self._stored.knows_backbone else None

    def evaluate(self, split: str = "test") -> EvalResult:
        """Loss and accuracy on train, val or test, by class or by attribute.

        Raises:
            UserError: If the split is unknown or empty, or as `inputs`.
            JobError: If the run has no intact checkpoint.
        """
        return self._stored.evaluate(split)

    def predict(self, images: Sequence[str | Path | Image.Image], **options: Any) -> list[Prediction]:
        """Labels, probabilities and the experts behind them, one record per image, as a list of `predictions`."""
        return list(self.predictions(images, **options))

    def predictions(
        self, images: Sequence[str | Path | Image.Image], *, batch_size: int = 16, **shown: Any
    ) -> Iterator[Prediction]:
        """Predictions of image files or PIL images, in their order, a batch at a time.

        Args:
            images: Paths or images. One that cannot be read has `error` set and no label.
            batch_size: Images that go through the model at a time.
            shown: `top` (labels, where they compete; 3), `experts` (of each label; 3) and `threshold` (the least
                probability of an attribute; 0.5).

        Raises:
            UserError: If a number is out of range, or as `classifier`.
        """
        from mumoe.deploy.predictions import predict_files

        return predict_files(self.classifier, images, batch_size=batch_size, **shown)

    def generate(self, prompt: str = "", tokens: int = 64, **settings: Any) -> str:
        """Text of a run of mode text after a prompt; settings as for `mumoe.analysis.generating.generate`.

        >>> run.generate("def ", temperature=0, scale={(0, 17): 3.0})  # expert 17 of layer 0, three times

        Raises:
            UserError: If the run is of another mode, or a setting is wrong.
        """
        from mumoe.analysis.generating import generate

        return generate(self._stored, prompt, tokens, **settings)

    def analyze(self, **settings: Any) -> Study | TextStudy:
        """Measure what each expert does, and write it to RUN/analysis; settings as for `mumoe.analysis.analyze_run`.

        >>> study = run.analyze(split="test", modes=("zero",), images=6, resamples=1000)
        >>> study.to_frame().sort_values("polysemanticity")
        >>> study.expert(49).show()

        Raises:
            UserError: If a setting is wrong, the run has no experts, or the split is empty.
            JobError: If the run has no intact checkpoint, or the folder cannot be written.
        """
        from mumoe.analysis.analyzing import analyze_run

        return analyze_run(self._stored, **settings)

    def shift(self, to: str | ImageData, *, against: Sequence[Run] = (), **settings: Any) -> Shift:
        """Measure the same experts on shifted data, before and after, and write it to RUN/shift-NAME.json.

        Args:
            to: A split, a corruption of the run's images (gaussian-noise, blur, low-contrast), or other data with the
                same classes.
            against: Further runs to measure, such as the linear partner's.
            settings: As for `mumoe.analysis.shifting.measure_shift`, and `out`.

        >>> run.shift("gaussian-noise").to_frame()

        Raises:
            UserError: If a setting is wrong, the data have no class in common, or there are no images to corrupt.
            JobError: If a run has no intact checkpoint, or the file cannot be written.
        """
        from mumoe.analysis.shifting import shift_runs

        return shift_runs([run._stored for run in (self, *against)], to, self.path, **settings)

    @property
    def notes(self) -> ExpertNotes:
        """Names and notes of its experts, as `name_expert` and the dashboard wrote them.

        Raises:
            UserError: If their file is damaged.
        """
        from mumoe.analysis.expert_notes import ExpertNotes

        return ExpertNotes.of_run(self._stored.folder.path)

    def name_expert(self, expert: int, name: str = "", *, note: str = "", level: int | str = 0) -> ExpertNotes:
        """Name an expert, and note something of it, in RUN/expert-notes.json; both empty removes its entry.

        Dashboard, report, `Study.to_frame`, predictions and exports show the name.

        Args:
            expert: Its position in the level.
            name: A short name.
            note: Anything else worth keeping.
            level: Its level in a hierarchy; of a language model the name of the layer, such as ``"h.0.mlp"``.

        Returns:
            All names and notes of the run.

        >>> run.name_expert(17, "cat faces", note="Also a few foxes.")

        Raises:
            UserError: If there is no such expert or level, a text is too long, or the file is damaged.
            JobError: If the file cannot be written.
        """
        from mumoe.analysis.expert_notes import change_note

        self._require_expert(expert, level)
        return change_note(self._stored.folder.path, expert, level, name=name, note=note)

    def _require_expert(self, expert: int, level: int | str) -> None:
        if isinstance(expert, bool):
            raise UserError(f"Run.name_expert: expected `expert` as int, got {expert}. Give its position.")
        if self._stored.trains_whole:  # its layers have names, and experts each
            return
        sizes = read_spec(self.config.head, "Run.name_expert").num_experts
        if not sizes:
            raise UserError(f"Run.name_expert: expected a run with experts, got the head {self.config.head!r}.")
        if not str(level).isdecimal() or not 0 <= int(level) < len(sizes):
            raise UserError(f"Run.name_expert: expected a level in 0..{len(sizes) - 1}, got {level}. Count from 0.")
        if not 0 <= expert < sizes[int(level)]:
            raise UserError(
                f"Run.name_expert: expected an expert in 0..{sizes[int(level)] - 1}, got {expert}. Count from 0."
            )

    # Fairness and edits -----------------------------------------------------------------------------------------

    def fairness(
        self, target: str, sensitive: str, *, edits: Edits | None = None, **settings: Any
    ) -> FairnessComparison:
        """Accuracy of each subgroup and fairness metrics of the model; given edits, also of these and a blind shift.

        Settings as for `mumoe.editing.correcting.measure_fairness`.

        >>> run.fairness(target="Blond_Hair", sensitive="Male").to_frame()

        Raises:
            UserError: If a name or a setting is wrong, the split is empty, or the edits belong to another model.
        """
        from mumoe.editing.correcting import measure_fairness

        return measure_fairness(self._stored, target, sensitive, edits=edits, **settings)

    def rewrite(
        self, target: str, sensitive: str, value: object, *, strength: Strength = "auto", **settings: Any
    ) -> Edit:
        """Rewrite the experts that treat a subgroup; validation images give the strength, test images the report.

        Settings as for `mumoe.editing.correcting.rewrite_subgroup`.

        >>> edit = run.rewrite(target="Blond_Hair", sensitive="Male", value=1)
        >>> edit.report.to_frame()
        >>> edit.save("blond.json")

        Raises:
            UserError: If a name or a setting is wrong, or the head has no experts that make the logits.
        """
        from mumoe.editing.correcting import rewrite_subgroup

        return rewrite_subgroup(self._stored, target, sensitive, value, strength=strength, **settings)

    def edit(self, *operations: ExpertEdit | str, **settings: Any) -> Edit:
        """Edit experts by hand, in the order given, and measure on validation images what that changes.

        Settings as for `mumoe.editing.correcting.edit_by_hand`.

        >>> run.edit(mumoe.Ablate(17), mumoe.Scale(3, 0.5)).report

        Raises:
            UserError: If a setting is wrong, or an edit does not fit the head.
        """
        from mumoe.editing.correcting import edit_by_hand

        return edit_by_hand(self._stored, operations, **settings)

    def audit(self, target: str = "", **settings: Any) -> RunAudit:
        """Rank groups of images, formed by experts and by named attributes, by their excess of errors over the rest.

        Settings as for `mumoe.editing.auditing.audit_opened`.

        >>> found = run.audit("Blond_Hair")
        >>> found.to_frame()  # by experts
        >>> found.by_attributes  # None where the data name no attributes

        Raises:
            UserError: If a setting is wrong, or the head has no experts that make the logits.
        """
        from mumoe.editing.auditing import audit_run

        return audit_run(self._stored, target, **settings)

    def with_edits(self, edits: Edits) -> Run:
        """The run with edits folded into its head, to evaluate, predict, analyze, save and export like any other.

        Args:
            edits: What `rewrite` or `edit` returned, a stack, or the path of a file of edits.

        Raises:
            UserError: If the head has no experts, or the edits belong to another model.
        """
        from mumoe.editing.edited_run import EditedRun

        return Run(EditedRun(self._stored, edits))

    def editing(self) -> EditingRun:
        """The run as the editing functions read it: head, labels, features and subgroups.

        Raises:
            UserError: As `inputs`.
        """
        from mumoe.editing.runs import editing_run

        return editing_run(self._stored)

    # Pages and files --------------------------------------------------------------------------------------------

    def dashboard(self, *, port: int = 0, split: str = "", browser: bool = True) -> None:
        """Serve the dashboard until interrupted: browse experts and images, edit experts, see what changes.

        Args:
            port: Port on 127.0.0.1; 0 uses a free one.
            split: Split to open first; by default validation, where there is one.
            browser: Whether to open the page; its address is printed in any case.

        Raises:
            UserError: If the run has no experts, a package is missing, or the port is taken.
            JobError: If the run has no intact checkpoint.
        """
        from mumoe.dashboard.server import show_run

        self._require_trained("Run.dashboard")
        show_run(self._stored, port=port, split=split, browser=browser)

    def report(self, out: str | Path, *, max_images: int = 20, local_paths: bool = False) -> ReportPages:
        """Write pages about the run, which open from disk: accuracy, costs, experts with their images, edits.

        Args:
            out: Folder of the pages; an earlier report there is replaced.
            max_images: Images shown per expert, drawn at random and with the largest coefficients; 0 for none.
            local_paths: Write paths of this machine in full; by default only their last part.

        Raises:
            UserError: If a file of the run is damaged, or `out` holds something other than a report.
            JobError: If the folder cannot be written.
        """
        self._require_trained("Run.report")
        return write_report({self.path: [self]}, out, max_images=max_images, local_paths=local_paths)

    def _require_trained(self, who: str) -> None:
        """Refuse a run with edits, which has no folder to read."""
        from mumoe.editing.edited_run import EditedRun

        if isinstance(self._stored, EditedRun):
            raise UserError(
                f"{who}: expected a run as it was trained, got one with edits. "
                f"Save the edits to {self._stored.original.path / 'edits'} and use that run."
            )

    def export(
        self,
        out: str | Path,
        *,
        to: str = "",
        images: Sequence[str | Path] = (),
        edits: Edits | None = None,
        overwrite: bool = False,
    ) -> ExportReport:
        """Write the model for other runtimes, and check what was written against it.

        A run that does not know its backbone exports its head, features to logits.

        Args:
            out: The file, or the folder for safetensors.
            to: onnx, torch-export or safetensors; empty: by the ending of `out` (.onnx, .pt2, else safetensors).
            images: Images, or folders of them, to check the file on, in addition to random ones.
            edits: Edits to fold into the head first, as `with_edits` takes them.
            overwrite: Replace what exists.

        Raises:
            UserError: If the format is unknown, a package is missing, or the target exists.
            JobError: If the model cannot be traced, or what was written computes other logits.
        """
        from mumoe.deploy.export_files import check_ready
        from mumoe.deploy.formats import export

        kind = check_ready(to, Path(out), overwrite)
        run = self.with_edits(edits) if edits else self
        return export(run.exportable(), out, to=kind, images=images, overwrite=overwrite)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model as a folder that `mumoe.load` opens: `export` as safetensors.

        Raises:
            UserError: If the folder exists and `overwrite` is not set, or as `classifier`.
            JobError: If the folder cannot be written.
        """
        return Path(self.export(folder, to="safetensors", overwrite=overwrite).path)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload what `save` writes to the Hugging Face hub, and return its address.

        Args:
            name: The model's name there, such as ``me/birds``.
            options: Those of huggingface-hub's mixin, such as ``private`` and ``model_card_kwargs``.

        Raises:
            UserError: As `classifier`.
        """
        return str(self.classifier.push_to_hub(name, **options))

    def exportable(self) -> ImageClassifier | HeadModel:
        """What `export` writes: the classifier, or the head alone where the backbone is unknown."""
        if self._stored.knows_backbone or self._stored.trains_whole:
            return self.classifier
        from mumoe.deploy.model import HeadModel

        return HeadModel.from_run(self._stored)


@checked_methods
class Job:
    """One or several trained heads and seeds.

    Made by `mumoe.train`, `mumoe.resume` and `mumoe.load`.

    Attributes:
        path: Its folder.
    """

    def __init__(self, path: str | Path, given: Mapping[str, Any], result: TrainResult | None = None) -> None:
        self.path, self._given = Path(path), given
        if result is not None:
            self.result = result

    def __repr__(self) -> str:
        return f"Job({str(self.path)!r}, {len(self.runs)} runs)"

    def report(self, out: str | Path, *, max_images: int = 20, local_paths: bool = False) -> ReportPages:
        """Write pages about each head and a comparison of them; arguments as for `Run.report`.

        >>> job.report("report").page  # doctest: +SKIP
        'report/index.html'
        """
        return write_report({self.path: self.runs}, out, max_images=max_images, local_paths=local_paths)

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """Its runs, by head and seed."""
        return tuple(load_runs(self.path, **self._given))

    @functools.cached_property
    def result(self) -> TrainResult:
        """The results of its finished runs: accuracies, spreads over seeds, comparisons with the partners.

        Raises:
            JobError: If no run is finished.
        """
        return job_result(self.path)

    @property
    def best(self) -> Run:
        """The first seed of the head with the highest mean validation accuracy over seeds (see `pick_run`)."""
        chosen = pick_run(self.path).path
        return next(run for run in self.runs if run.path == chosen)

    def stability(self, **settings: Any) -> Stability:
        """Match the experts of every two seeds of a head by what they do, and write it beside the seeds.

        Settings as for `mumoe.analysis.stability.measure_stability`, and `head` (where the job has several) and `out`.

        >>> job.stability().to_frame()

        Raises:
            UserError: If a setting is wrong, there are fewer than two finished seeds, or the head has no gate.
            JobError: If a run has no intact checkpoint, or the file cannot be written.
        """
        from mumoe.analysis.stability import job_stability

        return job_stability(self.path, [run._stored for run in self.runs], **settings)

    def shift(self, to: str | ImageData, *, against: Sequence[Run] = (), **settings: Any) -> Shift:
        """Measure all runs before and after a shift, and write it to JOB/shift-NAME.json; see `Run.shift`."""
        from mumoe.analysis.shifting import shift_runs

        return shift_runs([run._stored for run in (*self.runs, *against)], to, self.path, **settings)

    def to_frame(self) -> pd.DataFrame:
        """One row for each finished run: head, seed, accuracies, losses, parameters, steps, seconds, folder.

        Raises:
            JobError: If no run is finished.
            UserError: If pandas is not installed.
        """
        return self.result.to_frame()

    def plot(self) -> Figure:
        """Validation accuracy by step (the loss if there is no accuracy): a line for each run and a thick one for the
        mean of each head.

        Raises:
            JobError: If no run is finished.
            UserError: If matplotlib is not installed.
        """
        from mumoe.plots.training_curves import curves_figure

        name, curves = job_curves(self.result)
        return curves_figure(curves, title=self.path.name, value=name)


@checked
def train(
    data: Data | str = TrainConfig.data,
    head: str = TrainConfig.head,
    *,
    against: Sequence[str] = (),
    seeds: int = 1,
    backbone: nn.Module | str = TrainConfig.backbone,
    features: npt.NDArray[np.float32] | None = None,
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
    **settings: Any,
) -> Job:
    """Train a head on a backbone, over seeds and against partners.

    Args:
        data: A name (``folder:birds``, ``csv:labels.csv``, ``cifar100``, ...) or an `ImageData`.
        head: Specification of the layer, such as ``CPMuMoE-r256-e128``.
        against: Heads to compare with on the same data and seeds; a rank left out is matched by parameters.
        seeds: Number of seeds.
        backbone: A preset or a timm name, or a module with `num_features`, `transform` and `fingerprint`.
        features: (num_images, num_features), used instead of extracting them.
        progress: Whether to show progress on stderr.
        announce: Called with one line on the data before anything is computed.
        settings: Further fields of `mumoe.training.TrainConfig`, such as ``epochs``, ``lr``, ``mode`` and ``out``.

    Raises:
        UserError: If a setting is wrong; nothing was written.
        JobError: If the training fails; finished runs and checkpoints are kept.
        Interrupted: After Ctrl-C, with a checkpoint written.

    >>> job = mumoe.train(data="folder:birds", head="CPMuMoE-r256-e128", against=["linear"], seeds=3)
    >>> job.to_frame()
    """
    named: dict[str, Any] = {"data": data if isinstance(data, str) else data.name}
    if isinstance(backbone, str):
        named["backbone"] = backbone
    objects: dict[str, Any] = {
        "data": None if isinstance(data, str) else data,
        "backbone": None if isinstance(backbone, str) else backbone,
        "features": features,
    }
    config = from_mapping({**named, "head": head, "against": against, "seeds": seeds, **settings}, "train")
    result = training.train(config, progress=progress, announce=announce, **objects)
    return Job(result.out, {**objects, "device": config.device, "progress": progress}, result)


@checked
def resume(
    path: str | Path,
    *,
    data: Data | str | None = None,
    device: str = "",
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
    **objects: Any,
) -> Job:
    """Resume a stopped run, or the unfinished runs of a job; bit-exact on a CPU.

    Args:
        path: The folder of the run or the job.
        data: The same data at another place, as a name or an object.
        device: Another device.
        progress: Whether to show progress on stderr.
        announce: Called with one line on the data before anything is computed.
        objects: `backbone` and `features`, as they were given to `train`.

    Raises:
        UserError: If there is no run, or its images or backbone are not those that it was started with.
        JobError: If the training fails.
        Interrupted: After Ctrl-C, with a checkpoint written.
    """
    result = training.resume(path, data=data, device=device, progress=progress, announce=announce, **objects)
    return Job(result.out, {**objects, "data": data, "device": device or AUTO, "progress": progress}, result)


@checked
def load(
    path: str | Path,
    *,
    data: Any = None,
    backbone: Any = None,
    features: npt.NDArray[np.float32] | None = None,
    device: str | torch.device = AUTO,
    progress: bool = True,
) -> Any:
    """Open what was trained.

    Args:
        path: The folder of a run or of a job; of `decompose`; or one that `save_pretrained` or `save_converted` wrote.
        data: The data where it is now, as a name (``folder:/new/place``) or an object, instead of what the run names;
            of a decomposition its text.
        backbone: A backbone to use instead of building the one that the run names; of a decomposition the language
            model, as a name or a `mumoe.models.language.LanguageModel`.
        features: (num_images, num_features), used instead of extracting them.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        progress: Whether to show progress on stderr.

    Returns:
        A `Run`; a `Job` for a folder that holds runs; a `Decomposition`. For a folder of `save_pretrained` an
        `ImageClassifier` and its transform, for one of `save_converted` the network and None.

    Raises:
        UserError: If the path holds none of these, the device does not exist, or a run was written by a later version.
        JobError: If the files are damaged.

    >>> run = mumoe.load("runs/demo/many/seed-0")
    >>> run.model(run.transform(image)[None]).softmax(-1)
    """
    folder = recovered(Path(path))
    if (folder / "decomposition.json").is_file():
        from mumoe.decomposition.opened import open_decomposition

        return open_decomposition(folder, language=backbone, text=data, device=device, progress=progress)
    if is_saved(folder):
        return _load_saved(folder, resolve(device))
    given = {"data": data, "backbone": backbone, "features": features, "device": device, "progress": progress}
    job = Job(folder, given)
    first = job.runs[0]
    return first if first.path == folder else job


def write_report(
    jobs: Mapping[Path, Sequence[Run]], out: str | Path, *, max_images: int = 20, local_paths: bool = False
) -> ReportPages:
    """Write pages about the runs of several folders, and a comparison of them; see `Run.report`."""
    from mumoe.reports.site import write_report as write

    stored = {path: [run._stored for run in runs] for path, runs in jobs.items()}
    return write(stored, out, max_images=max_images, local_paths=local_paths)


def _load_saved(folder: Path, device: torch.device) -> tuple[nn.Module, Transform | None]:
    if is_converted(folder):
        from mumoe.deploy.converted import load_converted

        return load_converted(folder).to(device), None
    require("timm", "vision", "mumoe.load")
    from mumoe.deploy.model import ImageClassifier

    model = ImageClassifier.from_pretrained(folder).to(device)
    return model, model.transform


def load_runs(path: str | Path, **given: Any) -> list[Run]:
    """The run at a path, or those of a job, by head and seed; `given` as for `load`."""
    return [Run(StoredRun(found.path, **given)) for found in find_run(path)]


def open_job(path: str | Path, **given: Any) -> Job:
    """The job at a path, or the run there as a job of one; `given` as for `load`.

    Raises:
        UserError: If there is no run.
    """
    find_run(path)
    return Job(path, given)


def open_run(path: str | Path, *, experts: bool = False, **given: Any) -> Run:
    """The run at a path, or the one of a job that `pick_run` picks; `given` as for `load`.

    Raises:
        UserError: As `load`; also for the folder of a saved model.
    """
    if is_saved(Path(path)):
        what = "a converted network" if is_converted(Path(path)) else "a saved model"
        raise UserError(f"{path}: expected the folder of a run or a job, got {what}. Give the folder of its run.")
    return Run(StoredRun(pick_run(path, experts=experts).path, **given))
