"""Where the MLPs of known architectures are, and which modules see positions of a causal model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mumoe.errors import UserError, unknown_name

__all__ = ["PRESETS", "Preset", "is_causal", "preset_patterns"]


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
"""Name -> architecture. ``auto`` takes all that fit."""

CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
CAUSAL_CLASSES = ("CLIPTextModel", "CLIPTextTransformer", "CLIPTextModelWithProjection")
"""Causal models whose attention does not say so."""


def preset_patterns(model: nn.Module, preset: str, who: str = "replace_modules") -> list[str]:
    """Patterns of a preset's MLPs in a model, which may hold the architecture somewhere within.

    Args:
        model: The model.
        preset: A name in `PRESETS`, or ``auto``.
        who: Named in errors.

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

    It is the case within the known causal classes, and where the nearest attention says so (``is_causal``).
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
