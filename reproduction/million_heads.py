"""Heads of the study of a million experts, of equal parameters, and the one way in which all of them are trained.

PEER is the layer of the package ``peer-pytorch`` (Mixture of a Million Experts, arXiv 2407.04153): experts of one
neuron, of which product keys retrieve a few for each image. Here it is added to a linear path, as in a transformer to
the residual stream.
"""

from __future__ import annotations

import importlib
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mumoe.analysis.controls  # noqa: F401 (registers the frozen gates)
from mumoe.costs import count_parameters
from mumoe.errors import UserError
from mumoe.models.heads import Head, matched_spec
from mumoe.specs import read_spec
from mumoe.training.config import TrainConfig
from mumoe.training.inputs import Inputs
from mumoe.training.networks import Network, column_statistics
from mumoe.training.optimizer import make_optimizer
from mumoe.training.sampler import derived_seed, epoch_batches
from mumoe.training.schedule import learning_rate
from mumoe.training.sources import FeatureSource
from mumoe.training.tasks import task_of

__all__ = ["PEERHead", "Sizes", "check_peer", "fit", "make_network", "of_equal_parameters", "parameters_of"]

WHO = "million_study"
PACKAGE = "PEER_pytorch"
RETRIEVALS, RETRIEVED = 4, 16
"""Heads of a PEER layer, and the experts that each retrieves."""
FORMS = {"mlp": re.compile(r"mlp-h(\d+)"), "peer": re.compile(r"PEER-e(\d+)-w(\d+)")}
"""Heads that the package has no specification for: hidden units of an MLP; experts and width of a PEER layer."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the heads that are compared.

    Attributes:
        base: The head whose parameters the others match; its levels are those of the study.
        few: Experts of each level of a hierarchy with far fewer combinations, for CP alone.
        deep: Experts of each level of a hierarchy of more levels.
        flat: Experts of the heads with one level.
        peer: Whether PEER is compared; it needs the package ``peer-pytorch``.
        million: Experts of the PEER layer that is not of equal parameters, a square number.
        million_width: Its width.
        peer_widths: Widths of the PEER layers of equal parameters: the narrower, the more experts.
    """

    base: str = "CPMuMoE-r256-e1024x1024"
    few: tuple[int, ...] = (32, 32)
    deep: tuple[int, ...] = (32, 32, 1024)
    flat: int = 1024
    peer: bool = True
    million: int = 1 << 20
    million_width: int = 16
    peer_widths: tuple[int, ...] = (128,)


def check_peer() -> Any:
    """The package of the PEER layer.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise UserError(
            f"{WHO}: expected the package peer-pytorch, got: {error}. Run `pip install peer-pytorch`, or set --no-peer."
        ) from None


def of_equal_parameters(sizes: Sizes, in_features: int, classes: int) -> list[str]:
    """Names of the heads: linear, then all with as many parameters as `sizes.base`, then PEER with a million experts.

    Args:
        sizes: What is compared.
        in_features: Width of the features.
        classes: Number of classes.
    """
    base = read_spec(sizes.base)
    budget = count_parameters(base.kind, in_features, classes, base.num_experts, base.rank)
    hidden = round((budget - classes) / (in_features + classes + 1))
    found = ["linear", f"mlp-h{hidden}"]
    found.append(_matched("CPMuMoE", (sizes.flat,), budget, in_features, classes))
    found.append(_matched("TRMuMoE", (sizes.flat,), budget, in_features, classes))
    found.append(_matched("CPMuMoE", sizes.few, budget, in_features, classes))
    for experts in (base.num_experts, sizes.deep):
        found += [_matched(title, experts, budget, in_features, classes) for title in ("CPMuMoE", "TRMuMoE")]
    if sizes.peer:
        found += [_matched_peer(width, budget, in_features, classes) for width in sizes.peer_widths]
        found.append(f"PEER-e{sizes.million}-w{sizes.million_width}")
    return found


def _matched(title: str, experts: tuple[int, ...], budget: int, in_features: int, classes: int) -> str:
    """The head of these experts whose rank makes its parameters, gate included, closest to a budget."""
    shape = "x".join(map(str, experts))
    each = sum(experts) + in_features + 1 + classes
    rank = max(1, round((budget - sum(experts) * in_features) / each))
    spec = f"CPMuMoE-r{rank}-e{shape}"
    return spec if title == "CPMuMoE" else matched_spec(title, spec, in_features, classes)


def _matched_peer(width: int, budget: int, in_features: int, classes: int) -> str:
    """The PEER head of a width with as many experts, a square number, as a budget allows."""
    side = 2
    while _peer_parameters((side + 1) ** 2, width, in_features, classes) <= budget:
        side += 1
    return f"PEER-e{side**2}-w{width}"


def _key_width(width: int) -> int:
    return max(1, min(64, width // 2))


def _peer_parameters(experts: int, width: int, in_features: int, classes: int) -> int:
    key = _key_width(width)
    queries, keys = width * key * RETRIEVALS * 2, RETRIEVALS * math.isqrt(experts) * 2 * key
    around = 0 if width == in_features else in_features * width + width * classes
    return 2 * experts * width + queries + keys + around + (in_features + 1) * classes


def parameters_of(network: nn.Module) -> int:
    """Parameters, those of a gate that is not trained included."""
    return sum(parameter.numel() for parameter in network.parameters())


class PEERHead(nn.Module):
    """A linear path, and a PEER layer beside it: W (x + peer(x)), or W x + U peer(D x) if the layer is narrower.

    Args:
        in_features: Width of the features.
        classes: Number of classes.
        experts: Experts of one neuron, a square number.
        width: Width of the layer.

    Shape:
        (rows, in_features) -> (rows, classes).

    Its output starts at zero, as that of the heads of experts does; the package draws neurons of unit variance, which
    is too much for a residual at any width.
    """

    def __init__(self, in_features: int, classes: int, experts: int, width: int) -> None:
        super().__init__()
        narrow, key = width != in_features, _key_width(width)
        retrieved = min(RETRIEVED, math.isqrt(experts))
        self.direct = nn.Linear(in_features, classes)
        self.down = nn.Linear(in_features, width, bias=False) if narrow else None
        self.up = nn.Linear(width, classes, bias=False) if narrow else None
        self.peer = check_peer().PEER(
            width,
            heads=RETRIEVALS,
            num_experts=experts,
            num_experts_per_head=retrieved,
            dim_key=key,
            non_competing_scores=False,
        )
        nn.init.normal_(self.peer.weight_down_embed.weight, std=width**-0.5)
        nn.init.zeros_(self.peer.weight_up_embed.weight)
        nn.init.normal_(self.peer.keys, std=key**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.down is None or self.up is None:
            y: Tensor = self.direct(x + self.peer(x[:, None])[:, 0])
            return y
        return self.direct(x) + self.up(self.peer(self.down(x)[:, None])[:, 0])

    @torch.no_grad()
    def retrieved(self, x: Tensor) -> Tensor:
        """Experts that process each row, (rows, RETRIEVALS * retrieved) int64, in no order."""
        held: list[Tensor] = []
        hook = self.peer.weight_down_embed.register_forward_hook(lambda module, given, output: held.append(given[0]))
        try:
            self(x)
        finally:
            hook.remove()
        return held[0].flatten(1)


def make_network(config: TrainConfig, inputs: Inputs) -> Network:
    """The network that a config names, its initial weights a function of the seed alone.

    Raises:
        UserError: If the head is not known, or needs a package that is not installed.
    """
    if not any(form.fullmatch(config.head) for form in FORMS.values()):
        network = task_of(config).network(inputs)
        assert isinstance(network, Network)
        return network
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(config.seed, 0))
        layer = _layer(config.head, inputs.num_features, len(inputs.data.classes))
    head = Head(layer, inputs.num_features, drop=config.dropout)
    assert inputs.features is not None
    head.standardize(*column_statistics(inputs.features, inputs.data.indices("train")), config.zscore_floor)
    return Network(head)


def _layer(name: str, in_features: int, classes: int) -> nn.Module:
    if match := FORMS["mlp"].fullmatch(name):
        hidden = int(match[1])
        return nn.Sequential(nn.Linear(in_features, hidden), nn.GELU(), nn.Linear(hidden, classes))
    match = FORMS["peer"].fullmatch(name)
    assert match
    return PEERHead(in_features, classes, int(match[1]), int(match[2]))


def fit(network: Network, inputs: Inputs, config: TrainConfig) -> Network:
    """Train a network on features as `mumoe.train` does, without a folder; the steps are the same, bit by bit.

    Args:
        network: The network, changed in place, and left in evaluation mode.
        inputs: The data, with features.
        config: Settings of the optimizer, the schedule and the term for specialization.
    """
    assert inputs.features is not None
    rows, source = inputs.data.indices("train"), FeatureSource(inputs.features, inputs.data.labels)
    epochs = [epoch_batches(rows, config.batch_size, config.seed, epoch) for epoch in range(config.epochs)]
    total, step = sum(map(len, epochs)), 0
    optimizer = make_optimizer(network.train(), config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(config.seed, 1, 0))
        for epoch, batches in enumerate(epochs):
            for x, labels in source.stream(batches, epoch):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step, total)
                _loss(network, config, x, labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
    return network.eval()


def _loss(network: Network, config: TrainConfig, x: Tensor, labels: Tensor) -> Tensor:
    if not (network.has_experts and config.specialize):
        return F.cross_entropy(network(x)[0], labels, reduction="sum") / len(labels)
    logits, information = network(x, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / len(labels) - config.specialize * information
