"""Trains the heads of the bias experiments: heads with one logit per 0/1 attribute, on cached features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.errors import UserError
from mumoe.functional import mutual_information
from mumoe.layers import MuMoE
from mumoe.progress import Progress
from mumoe.training.config import TrainConfig, from_mapping
from mumoe.training.networks import make_head as head_of_config
from mumoe.training.optimizer import make_optimizer

__all__ = [
    "BiasTask",
    "HeadFactory",
    "Settings",
    "head_factory",
    "loss_of",
    "make_head",
    "minimize",
    "train_plain",
]

HeadFactory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Settings:
    """How heads are trained: AdamW, one-cycle, on shuffled batches.

    Attributes:
        epochs: Passes over the rows (of as many draws, where rows are drawn unevenly).
        batch_size: Rows of a batch; a last batch of fewer than 8 is left out, too few for batch statistics.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of AdamW.
        preset: Preset of `mumoe train` that decides the rest: dropout, which parameters decay, the gate's scale and the
            term for specialization.
        init: Initial weights of a mixture of experts; empty for the preset's.
        progress: Show a bar.
    """

    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    preset: str = "plain"
    init: str = ""
    progress: bool = False

    def config(self, head: str = "linear") -> TrainConfig:
        """These settings as those of `mumoe train` for one head; rate and decay are the same for every head.

        Raises:
            UserError: If a setting is out of range.
        """
        own = {"epochs": self.epochs, "batch_size": self.batch_size, "weight_decay": self.weight_decay}
        given = {"preset": self.preset, **own, "lr": self.learning_rate, **({"init": self.init} if self.init else {})}
        return from_mapping(given, "Settings").of_head(head)


@dataclass(frozen=True)
class BiasTask:
    """Training rows and the bias that is in them.

    Attributes:
        features: (rows, num_features) of a frozen backbone.
        labels: (rows, heads) of 0 and 1.
        sensitive: (rows,) codes of the sensitive value, from 0.
        head: Column of `labels` that the bias concerns.
        target: (label, code) of the subgroup with too little support.
        num_groups: Number of subgroups: 2 x sensitive values.
    """

    features: Tensor
    labels: Tensor
    sensitive: Tensor
    head: int
    target: tuple[int, int]
    num_groups: int = field(init=False)

    def __post_init__(self) -> None:
        sizes = {len(self.features), len(self.labels), len(self.sensitive)}
        if len(sizes) > 1 or self.labels.ndim != 2 or self.features.ndim != 2:
            raise UserError(
                "BiasTask: expected features (rows, width), labels (rows, heads) and sensitive (rows,), got "
                f"{tuple(self.features.shape)}, {tuple(self.labels.shape)}, {tuple(self.sensitive.shape)}. "
                "Labels of a single head need a second dimension: labels[:, None]."
            )
        if not 0 <= self.head < self.labels.shape[1]:
            raise UserError(
                f"BiasTask: expected a head in 0..{self.labels.shape[1] - 1}, got {self.head}. "
                "It is the column of labels that the bias concerns."
            )
        unknown = int((self.sensitive < 0).sum())
        if unknown:
            raise UserError(
                f"BiasTask: expected a sensitive code from 0 in every row, got {unknown} of {len(self.sensitive)} rows "
                "below 0, which are unknown. Leave these rows out."
            )
        object.__setattr__(self, "num_groups", 2 * (int(self.sensitive.max()) + 1))
        if not bool((self.groups == self.target_group).any()):
            raise UserError(
                f"BiasTask: expected rows of the target subgroup {self.target}, got none. "
                "Use a label and a sensitive code that occur together in training."
            )

    @property
    def groups(self) -> Tensor:
        """(rows,) subgroup: label x sensitive values + code."""
        return self.labels[:, self.head].long() * (self.num_groups // 2) + self.sensitive.long()

    @property
    def target_group(self) -> int:
        """The target's position among the subgroups."""
        return self.target[0] * (self.num_groups // 2) + self.target[1]


def start_at_log_odds(head: nn.Module, labels: Tensor) -> nn.Module:
    """Set a linear head's bias to the attributes' log-odds, without which it looks worse than it is.

    A head without a parameter ``bias`` of one number per attribute (a mixture has one per expert) is left alone.
    """
    share = labels.float().mean(0).clamp(1e-4, 1 - 1e-4)
    for name, parameter in head.named_parameters():
        if name.rpartition(".")[2] == "bias" and parameter.shape == share.shape:
            with torch.no_grad():
                parameter.copy_(torch.log(share / (1 - share)))
    return head


def train_plain(task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings) -> nn.Module:
    """A fresh head trained with the mean binary cross-entropy over all rows and attributes; in evaluation mode."""
    head = make_head(head_factory, task, seed)
    every = torch.ones(len(task.features))
    return minimize(head, task, every, loss_of(head, task, settings), seed, settings, "plain")


def head_factory(spec: str, sizes: tuple[int, int], settings: Settings) -> HeadFactory:
    """Makes fresh heads of a specification: the layer itself where it is a mixture of experts, else with its dropout.

    Args:
        spec: The specification.
        sizes: Width of the features and number of attributes.
        settings: Of training, whose preset decides how the head is made.
    """

    def made() -> nn.Module:
        head = head_of_config(settings.config(spec), *sizes)
        return head.layer if isinstance(head.layer, MuMoE) or not head.drop else head

    return made


def make_head(head_factory: HeadFactory, task: BiasTask, seed: int) -> nn.Module:
    """A fresh head, the same for the same seed; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return start_at_log_odds(head_factory(), task.labels)


def minimize(
    model: nn.Module,
    task: BiasTask,
    weights: Tensor,
    loss: Callable[[Tensor], Tensor],
    seed: int,
    settings: Settings,
    name: str,
) -> nn.Module:
    """Minimize `loss(rows)` over batches of rows drawn by their weights; the model is then in eval mode."""
    steps = settings.epochs * sum(1 for _ in _sizes(len(weights), settings.batch_size))
    optimizer = make_optimizer(model, settings.config())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with (
        torch.random.fork_rng(devices=[]),
        Progress(f"Training ({name})", steps, enabled=settings.progress) as progress,
    ):
        torch.manual_seed(seed)  # of dropout
        for _ in range(settings.epochs):
            for rows in _batches(weights, settings.batch_size, generator):
                value = loss(rows)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
                progress.advance()
    return model.eval()


def _sizes(rows: int, batch_size: int) -> Iterator[int]:
    """Sizes of an epoch's batches; one of fewer than 8 rows is left out unless it is the only one."""
    for start in range(0, rows, batch_size):
        size = min(batch_size, rows - start)
        if size >= 8 or rows < 8:
            yield size


def _batches(weights: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Each row once, shuffled, where weights are equal; else as many draws by weight as there are rows."""
    rows = len(weights)
    if bool((weights == weights[0]).all()):
        order = torch.randperm(rows, generator=generator)
    else:
        order = torch.multinomial(weights.double(), rows, replacement=True, generator=generator)
    start = 0
    for size in _sizes(rows, batch_size):
        yield order[start : start + size]
        start += size


def loss_of(head: nn.Module, task: BiasTask, settings: Settings) -> Callable[[Tensor], Tensor]:
    """The loss of some rows: mean binary cross-entropy, less the preset's term for specialization."""
    weight = settings.config().specialize if isinstance(head, MuMoE) else 0.0

    def loss(rows: Tensor) -> Tensor:
        labels = task.labels[rows]
        if not weight:
            return F.binary_cross_entropy_with_logits(head(task.features[rows]), labels.float())
        logits, coefficients = head(task.features[rows], return_coefficients=True)
        information = mutual_information(coefficients[0], labels, logits.shape[1])
        return F.binary_cross_entropy_with_logits(logits, labels.float()) - weight * information

    return loss
