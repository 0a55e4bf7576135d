"""AdamW over the parameters of a network, and which of them decay."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.optim import AdamW

from mumoe.factorizations import Factorization
from mumoe.gating import Gate
from mumoe.training.config import TrainConfig

__all__ = ["decayed", "make_optimizer"]


def decayed(network: nn.Module, rule: str) -> set[str]:
    """Names of the trained parameters that decay.

    Args:
        network: The network.
        rule: ``all``; ``matrices`` (parameters of two or more dimensions: no biases, no scales of norms); ``factors``,
            as matrices, but without gates and the factors of expert modes; or ``mumoe``, as matrices, but without the
            factors of expert and output modes. A mixture's biases are a column of its input factor and decay with it.

    Source: Oldfield et al. 2024, appendix F, for ``mumoe``.
    """
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    if rule == "all":
        return names
    names = {name for name, parameter in network.named_parameters() if name in names and parameter.ndim >= 2}
    if rule == "matrices":
        return names
    free = ("expert_",) if rule == "factors" else ("expert_", "out_")
    spared = set(_named_like(network, Factorization, free))
    return names - spared - (set(_named_like(network, Gate, ("",))) if rule == "factors" else set())


def _named_like(network: nn.Module, kind: type[nn.Module], starts: tuple[str, ...]) -> Iterator[str]:
    """Names of parameters in all modules of a kind whose name within the module has one of these prefixes."""
    for prefix, module in network.named_modules():
        if isinstance(module, kind):
            for name, _ in module.named_parameters():
                if name.startswith(starts):
                    yield f"{prefix}.{name}" if prefix else name


def make_optimizer(network: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW on the trained parameters, in one group or, if some of them do not decay, in two."""
    names = decayed(network, config.decay)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[name in names].append(parameter)
    decays = [
        {"params": parameters, "weight_decay": config.weight_decay if decay else 0.0}
        for decay, parameters in groups.items()
        if parameters
    ]
    return AdamW(decays, lr=config.lr, betas=(config.beta1, config.beta2))
