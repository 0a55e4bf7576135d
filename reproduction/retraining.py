"""Baselines of an edit: methods that train a head again and use the sensitive attribute.

All work on cached features of a frozen backbone and on a head with one logit per 0/1 attribute, of which the bias
concerns one. They share one interface, so that a table compares them on the same rows and seeds:

- ``oversample``: the target subgroup's rows drawn more often; at strength 1 as often as the others with its
  label (appendix G);
- ``adversarial``: a layer before the head learns features from which a second head cannot predict the sensitive
  attribute (Alvi et al. 2018), by gradient reversal (Ganin and Lempitsky 2015);
- ``group-dro``: the loss of the worst subgroup instead of the mean (Sagawa et al. 2020);
- ``dfr``: last-layer retraining on group-balanced rows (Kirichenko et al. 2023): the biased head's logit is
  replaced by a logistic regression on features, fitted to equally many rows of each subgroup and averaged
  over several draws.

Each needs sensitive values for training; an edit needs them for the mean coefficients only and trains nothing. With a
frozen backbone these methods change only what follows the features, which is weaker than fine-tuning everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.demo.bias_heads import BiasTask, HeadFactory, Settings, loss_of, make_head, minimize, train_plain
from mumoe.errors import unknown_name

__all__ = ["STRATEGIES", "fit", "oversampling_weights", "reverse_gradient"]


def fit(strategy: str, task: BiasTask, head_factory: HeadFactory, *, seed: int = 0, **options: Any) -> nn.Module:
    """Train a head by a strategy's name; the same seed gives the same head.

    Args:
        strategy: A name in `STRATEGIES`.
        task: Training rows.
        head_factory: Makes a fresh head; called under the seed.
        seed: Of initialization, shuffling and draws.
        **options: `settings` of the training loop, and the strategy's own, such as its strength.

    Raises:
        UserError: If the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("fit", "strategy", strategy, STRATEGIES)
    return STRATEGIES[strategy](task, head_factory, seed=seed, **options)


def oversample(
    task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings, strength: float = 1.0
) -> nn.Module:
    """Draw the target subgroup's rows more often.

    Args:
        task, head_factory, seed, settings: As in `fit`.
        strength: 0 draws every row alike, 1 draws the target subgroup as often as all other rows with its label.
    """
    head = make_head(head_factory, task, seed)
    weights = oversampling_weights(task, strength)
    return minimize(head, task, weights, loss_of(head, task, settings), seed, settings, "oversample")


def adversarial(
    task: BiasTask,
    head_factory: HeadFactory,
    *,
    seed: int,
    settings: Settings,
    strength: float = 1.0,
    adversary_steps: int = 5,
) -> nn.Module:
    """Hide the sensitive attribute from a second head by reversing its gradient.

    A square layer, initially the identity, stands between features and head, since cached features cannot change. The
    second head takes several steps on every batch, by an optimizer of its own: if it lags behind, the features
    oscillate instead of hiding anything.

    Args:
        task, head_factory, seed, settings: As in `fit`.
        strength: Weight of the reversed gradient; 0 leaves the features free.
        adversary_steps: Steps of the second head for each batch.
    """
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
        for _ in range(adversary_steps):
            chaser.zero_grad()
            F.cross_entropy(adversary(hidden.detach()), secret).backward()
            chaser.step()
        guess = adversary(reverse_gradient(hidden, strength))
        found_out = F.cross_entropy(guess, secret)
        return F.binary_cross_entropy_with_logits(inner(hidden), task.labels[rows].float()) + found_out

    head = nn.Sequential(adapter, inner)
    return minimize(head, task, torch.ones(len(task.features)), loss, seed, settings, "adversarial")


def group_dro(
    task: BiasTask, head_factory: HeadFactory, *, seed: int, settings: Settings, strength: float = 0.01
) -> nn.Module:
    """Weigh each subgroup's loss by its size, updated every batch by exponentiated gradient.

    Batches hold each subgroup equally often, as in the method's paper, so that the worst one occurs in each.

    Args:
        task, head_factory, seed, settings: As in `fit`.
        strength: Step size of the weights; 0 keeps the subgroups equal.
    """
    head = make_head(head_factory, task, seed)
    groups, shares = task.groups, torch.ones(task.num_groups) / task.num_groups

    def loss(rows: Tensor) -> Tensor:
        logits, labels = head(task.features[rows]), task.labels[rows].float()
        each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        members = F.one_hot(groups[rows], task.num_groups).to(each.dtype)
        by_group = (members.T @ each[:, task.head]) / members.sum(0).clamp(min=1)
        shares.mul_(torch.exp(strength * by_group.detach()))
        shares.div_(shares.sum())
        others = each.sum(1) - each[:, task.head]
        return ((shares * by_group).sum() + others.mean()) / each.shape[1]

    balance = 1 / torch.bincount(groups, minlength=task.num_groups).clamp(min=1)[groups]
    return minimize(head, task, balance, loss, seed, settings, "group-dro")


def retrain_last_layer(
    task: BiasTask,
    head_factory: HeadFactory,
    *,
    seed: int,
    settings: Settings,
    strength: float = 1.0,
    draws: int = 10,
    base: nn.Module | None = None,
) -> nn.Module:
    """Replace the biased head's logit by a logistic regression on group-balanced rows.

    Args:
        task, head_factory, seed, settings: As in `fit`.
        strength: Inverse of the L2 penalty; larger follows the balanced rows more closely.
        draws: Balanced subsets, over which weights are averaged.
        base: The biased model, if it is trained already.
    """
    base = base or train_plain(task, head_factory, seed=seed, settings=settings)
    generator = torch.Generator().manual_seed(seed)
    probe = nn.Linear(task.features.shape[1], 1)
    mean, deviation = task.features.mean(0), task.features.std(0).clamp(min=1e-6)
    fits = []
    for _ in range(draws):
        rows = balanced_rows(task.groups, generator)
        x = (task.features[rows] - mean) / deviation
        fits.append(logistic_regression(x, task.labels[rows, task.head].float(), strength))
    weight, bias = (torch.stack(parts).mean(0) for parts in zip(*fits, strict=True))
    with torch.no_grad():
        probe.weight.copy_((weight / deviation)[None])
        probe.bias.copy_(bias - (weight / deviation) @ mean)
    return ReplacedHead(base, probe, task.head).eval()


STRATEGIES: dict[str, Callable[..., nn.Module]] = {
    "plain": train_plain,
    "oversample": oversample,
    "adversarial": adversarial,
    "group-dro": group_dro,
    "dfr": retrain_last_layer,
}
"""Name -> how a head is trained: strategy(task, head_factory, seed=, settings=, **its options)."""


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
