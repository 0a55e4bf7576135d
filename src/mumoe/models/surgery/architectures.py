"""Facts about a network's modules: the MLPs of known architectures, causal modules, modules whose weights are read.

Some parents read a child's weight instead of calling it, so that no other module can take its place: T5 looks at
``self.wo.weight.dtype`` before it calls ``wo``; BEiT, EVA and Swin V2 multiply by ``self.qkv.weight``. Such reads are
found in the source of the methods that ``forward`` reaches. A forward with an example (`Watched`) verifies it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn

from mumoe.errors import UserError, unknown_name
from mumoe.layers import MuMoE

__all__ = ["CAUSAL_ENDINGS", "GATED", "PRESETS", "Preset", "Watched", "is_causal", "preset_patterns", "read_outside"]


@dataclass(frozen=True)
class Preset:
    """An architecture.

    Attributes:
        library: Package that its classes come from.
        classes: Names of the classes that hold the blocks; a subclass counts too.
        patterns: Names of the MLPs, from within such a class.
        about: The architecture in words.
    """

    library: str
    classes: tuple[str, ...]
    patterns: tuple[str, ...]
    about: str

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is of this architecture."""
        bases = [base for base in type(module).__mro__ if base.__module__.partition(".")[0] == self.library]
        return any(base.__name__ in self.classes for base in bases)


GATED = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Olmo2", "SmolLM3")

PRESETS = {
    "vit": Preset("timm", ("VisionTransformer",), ("blocks.*.mlp",), "timm's ViT, also with CLIP or DINO weights"),
    "mixer": Preset("timm", ("MlpMixer",), ("blocks.*.mlp_tokens", "blocks.*.mlp_channels"), "timm's MLP-Mixer"),
    "convnext": Preset("timm", ("ConvNeXt",), ("stages.*.blocks.*.mlp",), "timm's ConvNeXt"),
    "gpt2": Preset("transformers", ("GPT2Model",), ("h.*.mlp",), "Hugging Face's GPT-2"),
    "hf-vit": Preset("transformers", ("ViTModel",), ("layers.*.mlp",), "Hugging Face's ViT"),
    "clip-vision": Preset(
        "transformers",
        ("CLIPVisionModel", "CLIPVisionTransformer"),
        ("encoder.layers.*.mlp",),
        "the vision half of Hugging Face's CLIP",
    ),
    "llama": Preset(
        "transformers",
        tuple(f"{name}Model" for name in GATED),
        ("layers.*.mlp",),
        f"gated MLPs of Hugging Face's {', '.join(GATED)}",
    ),
}
"""Name -> architecture. ``auto`` uses all that fit."""

CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
CAUSAL_CLASSES = ("CLIPTextModel", "CLIPTextTransformer", "CLIPTextModelWithProjection")
"""Causal models whose attention modules are not marked as causal."""


def preset_patterns(model: nn.Module, preset: str, who: str = "replace_modules") -> list[str]:
    """Patterns of a preset's MLPs in a model, which may hold the architecture somewhere within.

    Args:
        model: The model.
        preset: A name in `PRESETS`, or ``auto``.
        who: Prefix of errors.

    Raises:
        UserError: If there is no such preset, or the model is of another architecture.
    """
    if preset != "auto" and preset not in PRESETS:
        raise unknown_name(who, "preset", preset, [*PRESETS, "auto"])
    chosen = PRESETS if preset == "auto" else {preset: PRESETS[preset]}
    found: list[str] = []
    for name, module in model.named_modules():
        for known in chosen.values():
            if known.fits(module):
                prefix = f"{name}." if name else ""
                found.extend(prefix + pattern for pattern in known.patterns)
    if not found:
        raise UserError(
            f"{who}: expected a model of preset {preset!r} ({_architectures(chosen)}), got {type(model).__name__}. "
            "Name the modules with a pattern such as 'blocks.*.mlp'; named_targets(model) lists them."
        )
    return list(dict.fromkeys(found))


def _architectures(presets: dict[str, Preset]) -> str:
    return "; ".join(preset.about for preset in presets.values())


def is_causal(model: nn.Module, name: str) -> bool:
    """Whether the rows that a module sees are positions of a causal model.

    True within the known causal classes, and if the nearest attention has ``is_causal`` set.
    """
    path = name.split(".")
    ancestors = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path))]
    kinds = [base.__name__ for ancestor in ancestors for base in type(ancestor).__mro__]
    if any(kind.endswith(CAUSAL_ENDINGS) or kind in CAUSAL_CLASSES for kind in kinds):
        return True
    for ancestor in reversed(ancestors):
        flags = [flag for module in ancestor.modules() if isinstance(flag := getattr(module, "is_causal", None), bool)]
        if flags:
            return any(flags)
    return False


# Parents that read a child --------------------------------------------------------------------------------

_ANY = "*"
_KEPT = frozenset(dir(nn.Module)) | {"in_features", "out_features", "training"}
"""Attributes that every replacement has in common with the module it replaces."""

Chain = tuple[str, ...]


def read_outside(model: nn.Module, name: str) -> str:
    """Which ancestor reads what from a module that its replacement would lack, in words; empty if none.

    Args:
        model: The model.
        name: The module's name.
    """
    path = tuple(name.split("."))
    for depth in range(len(path)):
        owner, below = model.get_submodule(".".join(path[:depth])), path[depth:]
        kind: Any = type(owner)
        for chain in sorted(_chains(kind)):
            rest = chain[len(below) :]
            if rest and rest[0] not in _KEPT and _matches(chain, below):
                return f"{type(owner).__name__}, which reads {'.'.join(chain)}"
    return ""


def _matches(chain: Chain, path: Chain) -> bool:
    return len(chain) > len(path) and all(a in (_ANY, b) for a, b in zip(chain, path, strict=False))


@functools.cache
def _chains(kind: Any) -> frozenset[Chain]:
    """Attributes of ``self``, as (child, grandchild, ..., attribute), read by what ``forward`` of a class reaches."""
    found: set[Chain] = set()
    todo, seen = ["forward"], set()
    while todo:
        method = todo.pop()
        if method in seen:
            continue
        seen.add(method)
        defined = [base.__dict__[method] for base in kind.__mro__ if method in base.__dict__]
        chains = [chain for function in defined for chain in _of_function(function)]
        found.update(chains)
        todo.extend(chain[0] for chain in chains)
    return frozenset(found)


def _of_function(function: Any) -> frozenset[Chain]:
    """Chains of one method; of a property its getter."""
    function = getattr(function, "fget", function)
    function = inspect.unwrap(getattr(function, "__func__", function)) if callable(function) else None
    return _parsed(function) if isinstance(function, FunctionType) else frozenset()


@functools.cache
def _parsed(function: FunctionType) -> frozenset[Chain]:
    if function.__module__.startswith("torch.nn.modules"):
        return frozenset()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return frozenset()  # no source: only a forward of an example can show the reads
    names: dict[str, Chain] = {next(iter(inspect.signature(function).parameters), "self"): ()}
    for target, value in _assignments(tree):
        chain = _chain(value, names)
        if chain:
            names[target] = chain
    nodes = (_chain(node, names) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return frozenset(chain for chain in nodes if chain)


def _assignments(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Local names for parts of the module: ``layer = self.fc``, ``for block in self.blocks``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            yield node.target.id, ast.Subscript(node.iter, ast.Constant(0), ast.Load())


def _chain(node: ast.AST, names: dict[str, Chain]) -> Chain | None:
    """``self.blocks[0].fc.weight`` as (blocks, *, fc, weight); None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        before = _chain(node.value, names)
        return None if before is None else (*before, node.attr)
    if isinstance(node, ast.Subscript):
        before = _chain(node.value, names)
        return (*before, _ANY) if before else None
    return None


class Watched(nn.Module):
    """Wraps a module so that it can only be called, like its replacement, and records what else a parent reads.

    Attributes:
        reads: Attributes that were read and that no replacement has.
        rows: Rows that went through, summed over calls.
    """

    def __init__(self, module: nn.Module, channels_first: bool) -> None:
        super().__init__()
        self.__dict__["inner"] = module  # not a child: its parameters stay where they are
        self.reads: list[str] = []
        self.rows, self._features = 0, 1 if channels_first else -1

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = self.__dict__["inner"](*arguments, **options)
        self.rows += output.numel() // output.shape[self._features]
        return output

    def __getattr__(self, name: str) -> Any:
        if name in ("in_features", "out_features"):
            return getattr(self.__dict__["inner"], name)
        self.reads.append(name)
        raise AttributeError(f"{MuMoE.__name__} has no attribute {name!r}")
