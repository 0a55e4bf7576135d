"""Every architecture of the presets, small enough to convert in milliseconds, at random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

IMAGE = (2, 3, 32, 32)


def _timm(name: str, **arguments: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        return timm.create_model(name, num_classes=5, **arguments), torch.randn(IMAGE)

    return make


def mixer() -> tuple[nn.Module, Any]:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=2, embed_dim=24), torch.randn(IMAGE)


VIT_ARGUMENTS = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}
CONVNEXT_ARGUMENTS = {"dims": (8, 12, 16, 20), "depths": (1, 1, 2, 1)}
TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=16, **TEXT)), tokens()


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=16, **TEXT)), tokens()


def hf_vit() -> tuple[nn.Module, Any]:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**VISION, num_labels=5)), torch.randn(IMAGE)


def clip_vision() -> tuple[nn.Module, Any]:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**VISION)), torch.randn(IMAGE)


def tokens() -> Tensor:
    return torch.randint(2, 50, (2, 10))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "vit": _timm("vit_tiny_patch16_224", **VIT_ARGUMENTS),
    "mixer": mixer,
    "convnext": _timm("convnext_tiny", **CONVNEXT_ARGUMENTS),
    "convnext-conv": _timm("convnext_atto", **CONVNEXT_ARGUMENTS),
    "gpt2": gpt2,
    "hf-vit": hf_vit,
    "clip-vision": clip_vision,
    "llama": llama,
}
"""Name -> a maker of the network and one input."""


def network(name: str) -> tuple[nn.Module, Any]:
    """With weights that let every part matter: some models start with zero heads and vanishing branches."""
    model, x = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval(), x


def output(model: nn.Module, x: Tensor) -> Tensor:
    """Logits, or the last features, in evaluation mode."""
    flag = model.training
    with torch.no_grad():
        y = model.eval()(x)
    model.train(flag)
    if isinstance(y, Tensor):
        return y
    return y.logits if "logits" in y else y.last_hidden_state


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())
