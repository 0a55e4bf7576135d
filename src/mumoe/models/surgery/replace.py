"""Replace modules of a network by MuMoE layers, and put them back."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from torch import nn

from mumoe.calling import checked
from mumoe.errors import UserError, unknown_name
from mumoe.factorizations import Rank
from mumoe.models.surgery.architectures import is_causal, preset_patterns, read_outside
from mumoe.models.surgery.parts import Parts, count_hooks, read_parts, refusal
from mumoe.models.surgery.planning import INITS, Plan, Surgery, measure
from mumoe.models.surgery.targets import LayerOptions, Target, resolve_ranks
from mumoe.specs import parse_spec

__all__ = ["Surgery", "SurgeryOptions", "named_targets", "plan", "replace_head", "replace_modules"]

WHO = "replace_modules"


class SurgeryOptions(TypedDict, total=False):
    """Options of `plan`, `replace_modules` and `replace_head`; see `plan` for their meaning."""

    factorization: str
    rank: Rank | list[Rank] | str | None
    init: str
    gate: str | nn.Module
    norm: str | None
    gate_options: Mapping[str, Any] | None
    gate_init: str
    sigma: float
    causal: bool | None
    example: Any


@checked
def named_targets(model: nn.Module) -> dict[str, str]:
    """What can be replaced: name -> kind and widths, such as ``mlp 192 -> 768 -> 192``."""
    return {
        name: str(read_parts(module))
        for name, module in model.named_modules(remove_duplicate=False)
        if read_parts(module) is not None and not _refusal(model, name, module)
    }


def _refusal(model: nn.Module, name: str, module: nn.Module) -> str:
    """Why a module of a model cannot be replaced, as the end of "it is ..."; empty if it can."""
    reader = read_outside(model, name) if name else ""
    if reader:
        return f"within {reader}: it could not be replaced without a change there"
    return refusal(module, model.get_submodule(name.rpartition(".")[0]) if name else None)


@checked
def plan(
    model: nn.Module,
    *patterns: str,
    num_experts: int | Sequence[int],
    preset: str | None = None,
    factorization: str = "cp",
    rank: Rank | list[Rank] | str | None = None,
    init: str = "random",
    gate: str | nn.Module = "entmax15",
    norm: str | None = None,
    gate_options: Mapping[str, Any] | None = None,
    gate_init: str = "normal",
    sigma: float = 0.0,
    causal: bool | None = None,
    example: Any = None,
) -> Plan:
    """What `replace_modules` would change; nothing is changed.

    Args:
        model: Any network.
        patterns: Names of modules, with ``*`` for any characters, dots too (fnmatch). Without patterns,
            ``preset="auto"`` is used.
        num_experts: As in `MuMoE`.
        preset: Name of an architecture in `PRESETS` whose MLPs are replaced in addition, or ``auto``.
        factorization: As in `MuMoE`.
        rank: None and ``matched`` use the ranks with which a module keeps its number of parameters, gate included;
            ``exact`` those that can hold every linear layer (the default of ``upcycle``; it adds parameters).
            Otherwise one rank, or a list with one for each linear layer.
        init: ``random``, or ``upcycle``: every expert starts as a copy of the trained layers, so that with exact
            rank the network computes the same function until it is trained.
        gate: As in `MuMoE`.
        norm: As in `MuMoE`. By default ``batch`` as in the paper, and ``layer`` in causal models, where ``batch``
            is refused: its statistics would let a position see later ones.
        gate_options: As in `MuMoE`.
        gate_init: As in `MuMoE`.
        sigma: Noise between upcycled experts, relative to their weights; 0 is exact.
        causal: Whether the model is causal; None determines it (`is_causal`).
        example: Arguments of one forward (a tensor, a tuple, or a dict by name). With it the FLOPs are those of
            this forward; without, those of one row.

    Raises:
        UserError: If a pattern matches nothing, or a module that cannot be replaced; if one target lies within
            another; or if an option does not fit.
    """
    wanted = _patterns(model, patterns, preset)
    names = _targets(model, wanted)
    _check_options(init, sigma)
    levels = (num_experts,) if isinstance(num_experts, int) else tuple(num_experts)
    targets = []
    for group in names:
        module = model.get_submodule(group[0])
        parts = read_parts(module)
        assert parts is not None
        options = LayerOptions(
            levels,
            factorization,
            _ranks(group[0], parts, rank, init, factorization, levels),
            gate,
            _norm(model, group[0], norm, causal),
            dict(gate_options or {}),
            gate_init,
            parts.bias,
        )
        targets.append(_noted(model, Target(group, module, parts, options)))
    total = sum(parameter.numel() for parameter in model.parameters())
    return measure(Plan(model, tuple(targets), init, sigma, total), example)


@checked
def replace_modules(
    model: nn.Module,
    *patterns: str,
    num_experts: int | Sequence[int],
    preset: str | None = None,
    **options: Unpack[SurgeryOptions],
) -> Surgery:
    """Replace modules of a network, in place, by MuMoE layers and blocks.

    A linear layer becomes a `MuMoE`, a two-layer MLP a `MuMoEBlock`, a gated MLP a `MuMoEGatedBlock`; dropout and
    norms inside are kept. Without a rank every module keeps its number of parameters. `plan` takes the same
    arguments, explains them, and shows what would change.

    Args:
        model: Any network, such as one of timm or Hugging Face.
        patterns: Names of modules such as ``blocks.*.mlp``; without any, ``preset="auto"`` is used.
        num_experts: As in `MuMoE`.
        preset: Name of an architecture in `PRESETS`, or ``auto``.
        options: As in `plan`.

    Returns:
        The handle that restores the old modules.

    Raises:
        UserError: As `plan`; nothing is changed then.

    >>> surgery = replace_modules(model, "blocks.*.mlp", num_experts=64, factorization="cp")
    >>> surgery.undo()
    """
    return plan(model, *patterns, num_experts=num_experts, preset=preset, **options).apply()


@checked
def replace_head(
    model: nn.Module,
    spec: str | None = None,
    *,
    num_experts: int | Sequence[int] | None = None,
    num_classes: int | None = None,
    **options: Unpack[SurgeryOptions],
) -> Surgery:
    """Replace the classifier of a network, in place, by a `MuMoE` layer.

    Args:
        model: A timm model (`get_classifier`), or any whose ``classifier``, ``score``, ``lm_head``, ``head``,
            ``heads`` or ``fc`` is or ends with a linear layer, as in torchvision and Hugging Face.
        spec: The layer, such as ``CPMuMoE-r256-e128``; without a rank it has the parameters of the linear layer.
        num_experts: As in `MuMoE`, instead of a specification.
        num_classes: Number of classes of the new head, if it differs; such a head starts from random weights.
        options: As in `plan`; a specification sets factorization and rank.

    Raises:
        UserError: If no head is found, or it cannot be replaced.

    >>> surgery = replace_head(model, "CPMuMoE-r256-e128", num_classes=10)
    """
    if spec is not None:
        if num_experts is not None or options.keys() & {"factorization", "rank"}:
            raise UserError(
                f"replace_head: expected {spec!r} to set experts, factorization and rank, got one of these as well. "
                "Give the specification alone."
            )
        parsed = parse_spec(spec, "replace_head")
        num_experts, options["factorization"], options["rank"] = parsed.values()
    if num_experts is None:
        raise UserError("replace_head: expected a specification or num_experts, got none. Give 'CPMuMoE-r256-e128'.")
    name = _head_name(model)
    planned = plan(model, _literal(name), num_experts=num_experts, **options)
    if num_classes is None or num_classes == planned.targets[0].parts.widths[-1]:
        return planned.apply()
    if planned.init == "upcycle":
        raise UserError(
            "replace_head: expected init='random' for another number of classes, got 'upcycle'. Leave num_classes out."
        )
    target = planned.targets[0]
    levels = target.options.num_experts
    ranks = _ranks(name, target.parts, options.get("rank"), "random", target.options.factorization, levels, num_classes)
    target = replace(target, options=replace(target.options, out_features=num_classes, ranks=ranks))
    surgery = replace(planned, targets=(target,)).apply()
    surgery.set_classes(num_classes)
    return surgery


# Which modules --------------------------------------------------------------------------------------------


def _patterns(model: nn.Module, patterns: Sequence[str], preset: str | None) -> list[str]:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"{WHO}: expected patterns as text, got {pattern!r}. Use 'blocks.*.mlp', say.")
    if preset is None and not patterns:
        preset = "auto"
    return [*patterns, *(preset_patterns(model, preset, WHO) if preset is not None else ())]


def _targets(model: nn.Module, patterns: Sequence[str]) -> list[tuple[str, ...]]:
    """The names that match, those of one module together, in the model's order."""
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    matched = {name for pattern in patterns for name in _matching(model, pattern, modules)}
    names: dict[int, list[str]] = {}
    for name, module in modules.items():
        names.setdefault(id(module), []).append(name)
    groups = [tuple(group) for group in names.values() if matched & set(group)]
    for group in groups:
        if reason := next(filter(None, (_refusal(model, name, modules[name]) for name in group)), ""):
            pattern = next(p for p in patterns if any(fnmatch.fnmatchcase(name, p) for name in group))
            raise UserError(
                f"{WHO}: expected {pattern!r} to match replaceable modules, got {group[0]!r}, which is {reason}. "
                "All targets: named_targets(model)."
            )
    _check_overlap({name for group in groups for name in group})
    return groups


def _matching(model: nn.Module, pattern: str, names: Iterable[str]) -> list[str]:
    found = fnmatch.filter(names, pattern)
    if not found:
        close = _closest(pattern, named_targets(model)) or _closest(pattern, names)
        offer = f"Closest: {close!r}. " if close else ""
        raise UserError(f"{WHO}: nothing matches {pattern!r}. {offer}All targets: named_targets(model).")
    return found


def _closest(pattern: str, names: Iterable[str]) -> str | None:
    """The first of the names that are most similar to a pattern; None if none is similar."""
    ratios = {name: difflib.SequenceMatcher(None, pattern, name).ratio() for name in names}
    best = max(ratios, key=lambda name: ratios[name], default=None)
    return best if best is not None and ratios[best] >= 0.5 else None


def _check_overlap(names: set[str]) -> None:
    for name in sorted(names):
        path = name.split(".")
        for depth in range(1, len(path)):
            if (outer := ".".join(path[:depth])) in names:
                raise UserError(
                    f"{WHO}: expected disjoint targets, got {name!r} within {outer!r}. "
                    "Narrow the pattern, or replace one of the two."
                )


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _head_name(model: nn.Module) -> str:
    if callable(find := getattr(model, "get_classifier", None)):
        head = find()
        for name, module in model.named_modules():
            if module is head and (found := _last_linear(name, module)):
                return found
    for name in ("classifier", "score", "lm_head", "head", "heads", "fc"):
        module = getattr(model, name, None)
        if isinstance(module, nn.Module) and (found := _last_linear(name, module)):
            return found
    raise UserError(
        f"replace_head: expected a model with a linear classifier, got {type(model).__name__} without one. "
        "Name the layer: replace_modules(model, 'fc', ...)."
    )


def _last_linear(name: str, module: nn.Module) -> str | None:
    """The name of a linear layer, or of the last one inside a module."""
    found = None
    for child, inner in module.named_modules(prefix=name):
        if (parts := read_parts(inner)) is not None and parts.kind == "linear":
            found = child
    return found


# With what ------------------------------------------------------------------------------------------------


def _check_options(init: str, sigma: float) -> None:
    if init not in INITS:
        raise unknown_name(WHO, "init", init, INITS)
    if sigma and init != "upcycle":
        raise UserError(f"{WHO}: expected sigma with init='upcycle' alone, got {sigma} with {init!r}. Leave it out.")


def _norm(model: nn.Module, name: str, norm: str | None, causal: bool | None) -> str:
    causal = is_causal(model, name) if causal is None else causal
    if norm is None:
        return "layer" if causal else "batch"
    if causal and norm == "batch":
        raise UserError(
            f"{WHO}: expected norm='layer' or 'none' for {name!r} of a causal model, got 'batch', whose statistics "
            "over positions would let a token see later ones. Use norm='layer'."
        )
    return norm


def _ranks(
    name: str,
    parts: Parts,
    rank: Rank | list[Rank] | str | None,
    init: str,
    factorization: str,
    levels: tuple[int, ...],
    out_features: int | None = None,
) -> tuple[Rank | None, ...]:
    try:
        return resolve_ranks(parts, rank, init, factorization, levels, out_features)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _noted(model: nn.Module, target: Target) -> Target:
    """Add notes on repeated use, parameters shared with the rest of the model, and hooks; count the shared ones."""
    inside = {id(parameter) for parameter in target.module.parameters()}
    within = tuple(f"{name}." for name in target.names)
    shared = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in inside and not name.startswith(within)
    }
    notes = [f"used {len(target.names)} times"] if len(target.names) > 1 else []
    notes += [f"no longer tied to {name}" for name in shared]
    if hooks := count_hooks(target.module):
        notes.append(f"its {hooks} hook{'s' * (hooks > 1)} do not run until undo")
    tied = sum({id(parameter): parameter.numel() for parameter in shared.values()}.values())
    return replace(target, notes=tuple(notes), tied=tied)
