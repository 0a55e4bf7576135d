"""`mumoe.load`: one object for a trained run, and one for a job of several; the verbs use them too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.deploy.saved import is_converted, is_saved
from mumoe.devices import AUTO, resolve
from mumoe.errors import UserError, require
from mumoe.results import EvalResult
from mumoe.training.config import TrainConfig
from mumoe.training.opening import StoredRun
from mumoe.training.run import find_run, pick_run

if TYPE_CHECKING:
    from PIL import Image

    from mumoe.analysis.findings import TextStudy
    from mumoe.analysis.study import Study
    from mumoe.dashboard.session import Session
    from mumoe.deploy.formats import ExportReport
    from mumoe.deploy.model import HeadModel, ImageClassifier
    from mumoe.deploy.predictions import Prediction
    from mumoe.editing.runs import EditingRun
    from mumoe.models.heads import Head
    from mumoe.training.inputs import Inputs

__all__ = ["Job", "Run", "load", "load_runs", "open_run"]

Transform = Callable[["Image.Image"], Tensor]


class Run:
    """A trained run: settings and facts at once, data, model and features when they are first used.

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
            JobError: If the run has no whole checkpoint.
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
        """Whether each logit is an attribute of its own."""
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
            JobError: If the run has no whole checkpoint.
        """
        return self._stored.head

    @property
    def network(self) -> nn.Module:
        """The trained network as a plain module: images, or tokens, to logits.

        Raises:
            UserError: If the run does not know its backbone.
            JobError: If the run has no whole checkpoint.
        """
        return self._stored.model

    @functools.cached_property
    def classifier(self) -> ImageClassifier:
        """The network with its preprocessing and the names of its classes, to predict, save, export and push.

        Raises:
            UserError: If the run trained a whole network, or does not know its backbone.
            JobError: If the run has no whole checkpoint.
        """
        from mumoe.deploy.model import ImageClassifier

        return ImageClassifier.from_run(self._stored)

    @property
    def model(self) -> nn.Module:
        """The trained model in eval mode: an `ImageClassifier`; of a run that trained a whole network, that network;
        of one that does not know its backbone, the `Head`.

        Raises:
            JobError: If the run has no whole checkpoint.
        """
        if self._stored.trains_whole:
            return self.network
        return self.classifier if self._stored.knows_backbone else self.head

    @property
    def transform(self) -> Transform | None:
        """Preprocessing of one RGB PIL image to (3, H, W); None where the model does not start from images."""
        if self.config.mode == "scratch":
            from mumoe.training.whole import image_transform

            return image_transform(self.config, False)
        images = self.config.mode != "text" and self._stored.knows_backbone
        return self.classifier.transform if images else None

    def evaluate(self, split: str = "test") -> EvalResult:
        """Loss and accuracy on train, val or test, by class or by attribute.

        Raises:
            UserError: If the split is unknown or empty, or as `inputs`.
            JobError: If the run has no whole checkpoint.
        """
        return self._stored.evaluate(split)

    def predict(self, images: Sequence[str | Path | Image.Image], **options: Any) -> list[Prediction]:
        """Labels, probabilities and the experts behind them, one record per image, as a list of `predictions`."""
        return list(self.predictions(images, **options))

    def predictions(
        self,
        images: Sequence[str | Path | Image.Image],
        *,
        top: int = 3,
        experts: int = 3,
        threshold: float = 0.5,
        batch_size: int = 16,
    ) -> Iterator[Prediction]:
        """Predictions of image files or PIL images, in their order, a batch at a time.

        Args:
            images: Paths or images. One that cannot be read has `error` set and no label.
            top: Number of labels, where labels compete.
            experts: Number of experts of each label.
            threshold: Least probability of an attribute.
            batch_size: Images that go through the model at a time.

        Raises:
            UserError: If a number is out of range, or as `classifier`.
        """
        from mumoe.deploy.predictions import predict_files

        numbers = {"top": top, "experts": experts, "threshold": threshold, "batch_size": batch_size}
        return predict_files(self.classifier, images, **numbers)  # type: ignore[arg-type]

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
            JobError: If the run has no whole checkpoint, or the folder cannot be written.
        """
        from mumoe.analysis.analyzing import analyze_run

        return analyze_run(self._stored, **settings)

    def editing(self) -> EditingRun:
        """The run as the editing functions read it: head, labels, features and subgroups.

        Raises:
            UserError: As `inputs`.
        """
        from mumoe.editing.runs import open_run as open_editing

        return open_editing(self._stored)

    def session(self, report: Callable[[int, int, str], None] | None = None, *, split: str = "") -> Session:
        """The run as the dashboard shows it: coefficients and right answers of each split that is looked at.

        Args:
            report: Called with how many of how many steps are done, and what is being done.
            split: Split to open first; by default validation, where there is one.

        Raises:
            UserError: As `inputs`, or if the head has no experts.
        """
        from mumoe.dashboard.session import open_session, silent

        return open_session(self._stored, report or silent, split=split)

    def export(
        self,
        out: str | Path,
        *,
        to: str = "",
        images: Sequence[str | Path] = (),
        edits: str | Path = "",
        overwrite: bool = False,
    ) -> ExportReport:
        """Write the model for other runtimes, and check what was written against it.

        A run that does not know its backbone exports its head, features to logits.

        Args:
            out: The file, or the folder for safetensors.
            to: onnx, torch-export or safetensors; empty: by the ending of `out` (.onnx, .pt2, else safetensors).
            images: Images, or folders of them, to check the file on besides random ones.
            edits: A file of edits to fold into the head first.
            overwrite: Replace what exists.

        Raises:
            UserError: If the format is unknown, a package is missing, or the target exists.
            JobError: If the model cannot be traced, or what was written computes other logits.
        """
        from mumoe.deploy.export_files import check_ready
        from mumoe.deploy.formats import export

        kind = check_ready(to, Path(out), overwrite)
        exported: ImageClassifier | HeadModel = self.exportable()
        if edits:
            exported = exported.with_edits(edits)
        return export(exported, out, to=kind, images=images, overwrite=overwrite)

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


class Job:
    """A job of several heads or seeds.

    Attributes:
        path: Its folder.
        runs: Its runs, by head and seed.
    """

    def __init__(self, path: Path, runs: Sequence[Run]) -> None:
        self.path, self.runs = path, tuple(runs)

    def __repr__(self) -> str:
        return f"Job({str(self.path)!r}, {len(self.runs)} runs)"

    @property
    def best(self) -> Run:
        """The first seed of the head with the highest mean validation accuracy over seeds (see `pick_run`)."""
        chosen = pick_run(self.path).path
        return next(run for run in self.runs if run.path == chosen)


def load(
    path: str | Path,
    *,
    data: Any = None,
    backbone: nn.Module | None = None,
    features: npt.NDArray[np.float32] | None = None,
    device: str | torch.device = AUTO,
    progress: bool = True,
) -> Any:
    """Open what was trained.

    Args:
        path: The folder of a run or of a job; or one that `save_pretrained` or `save_converted` wrote.
        data: The data where it is now, as a name (``folder:/new/place``) or an object, instead of what the run names.
        backbone: A backbone to use instead of building the one that the run names.
        features: (num_images, num_features), used instead of extracting them.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        progress: Whether to show progress on stderr.

    Returns:
        A `Run`; a `Job` for a folder of several runs. For a folder of `save_pretrained` an `ImageClassifier` and its
        transform, for one of `save_converted` the network and None.

    Raises:
        UserError: If there is nothing of these, the device is not there, or a run was written by a later version.
        JobError: If the files are damaged.

    >>> run = mumoe.load("runs/demo/many/seed-0")
    >>> run.model(run.transform(image)[None]).softmax(-1)
    """
    folder = Path(path)
    if is_saved(folder):
        return _load_saved(folder, resolve(device))
    given = {"backbone": backbone, "features": features, "device": device, "progress": progress}
    runs = load_runs(folder, data=data, **given)
    return runs[0] if len(runs) == 1 else Job(folder, runs)


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


def open_run(path: str | Path, *, experts: bool = False, **given: Any) -> Run:
    """The run at a path, or the one of a job that `pick_run` picks; `given` as for `load`.

    Raises:
        UserError: As `load`; also for the folder of a saved model.
    """
    if is_saved(Path(path)):
        what = "a converted network" if is_converted(Path(path)) else "a saved model"
        raise UserError(f"{path}: expected the folder of a run or a job, got {what}. Give the folder of its run.")
    return Run(StoredRun(pick_run(path, experts=experts).path, **given))
