"""What an edit has to beat: methods that train a head again, with the sensitive attribute at hand.

All work on cached features of a frozen backbone and on a head with one logit per 0/1 attribute, of which the
bias concerns one. They share one interface, so that a table compares them on the same rows and seeds:

- ``plain``: binary cross-entropy over all attributes, every row alike. What gets corrected, and the linear
  baselines when the head is linear;
- ``oversample``: the target subgroup's rows drawn more often; at strength 1 as often as the others with its
  label (appendix G);
- ``adversarial``: a layer before the head learns features from which a second head cannot tell the sensitive
  attribute (Alvi et al. 2018), by gradient reversal (Ganin and Lempitsky 2015);
- ``group-dro``: the loss of the worst subgroup instead of the mean (Sagawa et al. 2020);
- ``dfr``: last-layer retraining on group-balanced rows (Kirichenko et al. 2023): the biased head's logit is
  replaced by a logistic regression on features, fitted to equally many rows of each subgroup and averaged
  over several draws.

Each needs sensitive values for training; an edit needs them for the mean coefficients only, and nothing is
trained. With a frozen backbone they can only change what follows the features: weaker than fine-tuning
everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.errors import UserError, unknown_name
from mumoe.progress import Progress

__all__ = [
    "STRATEGIES",
    "BiasTask",
    "Settings",
    "Strategy",
    "fit",
    "reverse_gradient",
    "start_at_log_odds",
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
        progress: Show a bar.
    """

    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    progress: bool = False


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
                "Take a label and a sensitive code that occur together in training."
            )

    @property
    def groups(self) -> Tensor:
        """(rows,) subgroup: label x sensitive values + code."""
        return self.labels[:, self.head].long() * (self.num_groups // 2) + self.sensitive.long()

    @property
    def target_group(self) -> int:
        """The target's position among the subgroups."""
        return self.target[0] * (self.num_groups // 2) + self.target[1]


class Strategy(Protocol):
    """One way to train a head; its fields are its strength and other settings."""

    def fit(self, task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings) -> nn.Module:
        """Train a head from (rows, num_features) to (rows, heads); returned in evaluation mode."""
        ...


STRATEGIES: dict[str, Callable[..., Strategy]] = {}
"""Name -> strategy; open for others by `register`."""


def register(name: str) -> Callable[[type], type]:
    """Class decorator that adds a strategy under a name.

    Raises:
        ValueError: If the name is taken.
    """

    def add(strategy: type) -> type:
        if name in STRATEGIES:
            raise ValueError(f"register: expected a new strategy name, got {name!r} twice. Choose another.")
        STRATEGIES[name] = strategy
        return strategy

    return add


def fit(
    strategy: str,
    task: BiasTask,
    head_factory: HeadFactory,
    *,
    seed: int = 0,
    settings: Settings | None = None,
    **options: Any,
) -> nn.Module:
    """Train a head by a strategy's name; the same seed gives the same head.

    Args:
        strategy: A name in `STRATEGIES`.
        task: Training rows.
        head_factory: Makes a fresh head; called under the seed.
        seed: Of initialization, shuffling and draws.
        settings: Of the training loop.
        **options: Fields of the strategy, such as its strength.

    Raises:
        UserError: If the strategy or an option is unknown.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("fit", "strategy", strategy, STRATEGIES)
    kind = STRATEGIES[strategy]
    known = getattr(kind, "__dataclass_fields__", {})
    for option in options:
        if option not in known:
            raise unknown_name(f"fit {strategy}", "option", option, known)
    return kind(**options).fit(task, head_factory, seed=seed, settings=settings or Settings())


@register("plain")
@dataclass(frozen=True)
class Plain:
    """Mean binary cross-entropy over rows and heads."""

    def fit(self, task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings) -> nn.Module:
        head = make_head(head_factory, task, seed)
        every = torch.ones(len(task.features))
        return train(head, task, every, lambda rows: _loss(head, task, rows), seed, settings, "plain")


@register("oversample")
@dataclass(frozen=True)
class Oversample:
    """Draw the target subgroup's rows more often.

    Attributes:
        strength: 0 draws every row alike, 1 draws the target subgroup as often as all other rows with its
            label.
    """

    strength: float = 1.0

    def fit(self, task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings) -> nn.Module:
        head = make_head(head_factory, task, seed)
        weights = oversampling_weights(task, self.strength)
        return train(head, task, weights, lambda rows: _loss(head, task, rows), seed, settings, "oversample")


@register("adversarial")
@dataclass(frozen=True)
class Adversarial:
    """Hide the sensitive attribute from a second head by reversing its gradient.

    A square layer, the identity at first, stands between features and head, since cached features cannot
    change.

    The second head is trained several steps ahead on every batch, by an optimizer of its own: against one that lags
    behind, the features run in circles instead of hiding anything.

    Attributes:
        strength: Weight of the reversed gradient; 0 leaves the features free.
        adversary_steps: Steps of the second head for each batch.
    """

    strength: float = 1.0
    adversary_steps: int = 5

    def fit(self, task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings) -> nn.Module:
        inner = make_head(head_factory, task, seed)
        width, codes = task.features.shape[1], task.num_groups // 2
        adapter, adversary = nn.Linear(width, width), nn.Linear(width, codes)
        with torch.no_grad():
            adapter.weight.copy_(torch.eye(width))
            for parameter in (adapter.bias, *adversary.parameters()):
                parameter.zero_()
        chaser = torch.optim.Adam(adversary.parameters(), lr=10 * settings.learning_rate, weight_decay=1e-2)

        def loss(rows: Tensor) -> Tensor:
            hidden, secret = adapter(task.features[rows]), task.sensitive[rows].long()
            for _ in range(int(self.adversary_steps)):
                chaser.zero_grad()
                F.cross_entropy(adversary(hidden.detach()), secret).backward()
                chaser.step()
            guess = adversary(reverse_gradient(hidden, self.strength))
            found_out = F.cross_entropy(guess, secret)
            return F.binary_cross_entropy_with_logits(inner(hidden), task.labels[rows].float()) + found_out

        head = nn.Sequential(adapter, inner)
        return train(head, task, torch.ones(len(task.features)), loss, seed, settings, "adversarial")


@register("group-dro")
@dataclass(frozen=True)
class GroupDRO:
    """Weigh each subgroup's loss by how badly it does, updated every batch by exponentiated gradient.

    Batches hold each subgroup equally often, as in the method's paper, so that the worst one is seen at all.

    Attributes:
        strength: Step size of the weights; 0 keeps the subgroups equal.
    """

    strength: float = 0.01

    def fit(self, task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings) -> nn.Module:
        head = make_head(head_factory, task, seed)
        groups, shares = task.groups, torch.ones(task.num_groups) / task.num_groups

        def loss(rows: Tensor) -> Tensor:
            logits, labels = head(task.features[rows]), task.labels[rows].float()
            each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            members = F.one_hot(groups[rows], task.num_groups).to(each.dtype)
            by_group = (members.T @ each[:, task.head]) / members.sum(0).clamp(min=1)
            shares.mul_(torch.exp(self.strength * by_group.detach()))
            shares.div_(shares.sum())
            others = each.sum(1) - each[:, task.head]
            return ((shares * by_group).sum() + others.mean()) / each.shape[1]

        balance = 1 / torch.bincount(groups, minlength=task.num_groups).clamp(min=1)[groups]
        return train(head, task, balance, loss, seed, settings, "group-dro")


@register("dfr")
@dataclass(frozen=True)
class LastLayerRetraining:
    """Replace the biased head by a logistic regression on group-balanced rows.

    Attributes:
        strength: Inverse of the L2 penalty; larger follows the balanced rows more closely.
        draws: Balanced subsets, over which weights are averaged.
        base: The biased model, if it is there already; ``plain`` trains it else.
    """

    strength: float = 1.0
    draws: int = 10
    base: nn.Module | None = None

    def fit(self, task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings) -> nn.Module:
        base = self.base or Plain().fit(task, head_factory, seed=seed, settings=settings)
        generator = torch.Generator().manual_seed(seed)
        probe = nn.Linear(task.features.shape[1], 1)
        mean, deviation = task.features.mean(0), task.features.std(0).clamp(min=1e-6)
        fits = []
        for _ in range(int(self.draws)):
            rows = balanced_rows(task.groups, generator)
            x = (task.features[rows] - mean) / deviation
            fits.append(logistic_regression(x, task.labels[rows, task.head].float(), self.strength))
        weight, bias = (torch.stack(parts).mean(0) for parts in zip(*fits, strict=True))
        with torch.no_grad():
            probe.weight.copy_((weight / deviation)[None])
            probe.bias.copy_(bias - (weight / deviation) @ mean)
        return ReplacedHead(base, probe, task.head).eval()


class ReplacedHead(nn.Module):
    """A model whose logit of one head comes from another layer; the other heads keep every bit."""

    def __init__(self, base: nn.Module, probe: nn.Module, head: int) -> None:
        super().__init__()
        self.base, self.probe, self.head = base, probe, head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x)
        return torch.cat([logits[:, : self.head], self.probe(x), logits[:, self.head + 1 :]], dim=1)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None  # type: ignore[attr-defined]


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """The identity going forward, times -strength going backward."""
    return cast(Tensor, _Reverse.apply(x, strength))


def oversampling_weights(task: BiasTask, strength: float) -> Tensor:
    """(rows,) relative frequency of each row: 1, or that of the target subgroup's rows.

    With t target rows and m other rows of its label, a target row is drawn (m / t) ** strength times as
    often.
    """
    inside = task.groups == task.target_group
    others = (task.labels[:, task.head] == task.target[0]) & ~inside
    ratio = (int(others.sum()) / int(inside.sum())) ** strength
    return torch.where(inside, ratio, 1.0)


def balanced_rows(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of equally many rows of every subgroup that occurs: as many as the smallest has."""
    parts = [(groups == group).nonzero()[:, 0] for group in torch.unique(groups)]
    size = min(len(part) for part in parts)
    return torch.cat([part[torch.randperm(len(part), generator=generator)[:size]] for part in parts])


def logistic_regression(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weight (width,) and bias () that minimize sum of log-losses + |weight|^2 / (2 strength), by L-BFGS."""
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x, y = x.double(), y.double()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fitted = F.binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="sum")
        loss = fitted + weight.square().sum() / (2 * strength)
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach().float(), bias.detach().float()


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


def make_head(head_factory: HeadFactory, task: BiasTask, seed: int) -> nn.Module:
    """A fresh head, the same for the same seed; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return start_at_log_odds(head_factory(), task.labels)


def train(
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with Progress(f"Training ({name})", steps, enabled=settings.progress) as progress:
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


def _loss(head: nn.Module, task: BiasTask, rows: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(head(task.features[rows]), task.labels[rows].float())
