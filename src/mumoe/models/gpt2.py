"""Hugging Face's GPT-2 with every MLP a mixture of experts under one gate.

The gate reads what the MLP would read, the output of the block's own layer norm, and its logits are normalized
over the experts of each position, without scale or shift, before the entmax (``norm="layer"``; the later version
of the paper calls it the layer norm before the gate). Statistics over a batch would mix positions: a later token
would change the prediction of an earlier one. They are refused.

A model is saved and loaded by Hugging Face's `save_pretrained` and `from_pretrained`, as safetensors with a
config.json, and `generate` works as for any GPT-2, with its cache of keys and values.

Source: Radford et al. 2019; the later version of Oldfield et al. 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mumoe.errors import UserError, require
from mumoe.models.block_specs import BlockSpec, build_block, check_sizes, named_shape
from mumoe.modes import evaluating

if TYPE_CHECKING:
    from mumoe.data.tokenizing import Tokenizer

require("transformers", "text", "gpt2")

from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel  # noqa: E402

__all__ = ["GPT2S", "GPT2MuMoE", "GPT2MuMoEConfig", "GPT2Shape", "create_gpt2", "generate_text"]


@dataclass(frozen=True)
class GPT2Shape:
    """Sizes of a GPT-2.

    Attributes:
        depth: Blocks.
        heads: Attention heads.
        width: Width of the residual stream.
        context: Longest sequence.
        vocabulary: Number of tokens.
        hidden: Hidden width of the MLPs; 0 means four times the width.
    """

    depth: int = 12
    heads: int = 12
    width: int = 768
    context: int = 1024
    vocabulary: int = 50257
    hidden: int = 0

    def check(self) -> GPT2Shape:
        """Return the shape, or raise a one-line `UserError`."""
        check_sizes(vars(self), "gpt2", optional=["hidden"])
        if self.width % self.heads:
            raise UserError(
                f"gpt2: expected a width that is a multiple of heads={self.heads}, got {self.width}. "
                "Change one of them."
            )
        return self


GPT2S = {"gpt2": GPT2Shape(), "gpt2-medium": GPT2Shape(24, 16, 1024), "gpt2-large": GPT2Shape(36, 20, 1280)}
"""Sizes by name; ``gpt2`` is the one of 124M parameters."""


class GPT2MuMoEConfig(GPT2Config):  # type: ignore[no-untyped-call]
    """The configuration of GPT-2 and of its mixtures.

    Args:
        mumoe: ``CPMuMoE-e256`` or another specification of `models.block_specs`; ``mlp`` keeps the ordinary MLPs.
        mumoe_gate: Activation of the gates.
        mumoe_norm: ``layer`` or ``none``.
        mumoe_bias: One bias per expert and layer; the paper's language models have none.
        mumoe_wiring: ``block`` or ``layer``.
        options: Those of `GPT2Config`.

    Raises:
        UserError: For a gate normalized over the batch.
    """

    model_type = "gpt2-mumoe"
    mumoe: str = "CPMuMoE-e256"
    mumoe_gate: str = "entmax15"
    mumoe_norm: str = "layer"
    mumoe_bias: bool = False
    mumoe_wiring: str = "block"

    def __post_init__(self, **options: Any) -> None:
        if self.mumoe_norm == "batch":
            raise UserError(
                "gpt2: expected a gate norm over each position alone (layer or none), got 'batch', whose statistics "
                "over positions would leak later tokens into earlier ones. Use norm='layer'."
            )
        super().__post_init__(**options)  # type: ignore[no-untyped-call]


class GPT2MuMoE(GPT2LMHeadModel):  # type: ignore[no-untyped-call]
    """GPT-2 with a language-model head whose MLPs are mixtures of experts.

    Shape:
        input_ids (B, T) -> logits (B, T, vocabulary), in Hugging Face's output object.
    """

    config_class = GPT2MuMoEConfig

    def __init__(self, config: GPT2MuMoEConfig) -> None:
        spec = BlockSpec.parse(config.mumoe, config.mumoe_wiring)
        super().__init__(config)
        if spec.factorization is None:
            return
        hidden = config.n_inner or 4 * config.hidden_size
        for block in self.transformer.h:
            block.mlp = build_block(
                spec,
                config.hidden_size,
                hidden,
                config.hidden_size,
                bias=config.mumoe_bias,
                gate=config.mumoe_gate,
                norm=config.mumoe_norm,
                act_layer=partial(nn.GELU, approximate="tanh"),
                dropout=config.resid_pdrop,
            )


AutoConfig.register("gpt2-mumoe", GPT2MuMoEConfig, exist_ok=True)
AutoModelForCausalLM.register(GPT2MuMoEConfig, GPT2MuMoE, exist_ok=True)


def create_gpt2(
    mlp: str = "CPMuMoE-e256",
    *,
    shape: GPT2Shape | str = "gpt2",
    gate: str = "entmax15",
    norm: str = "layer",
    wiring: str = "block",
    dropout: float = 0.0,
    bias: bool = False,
) -> GPT2MuMoE:
    """A GPT-2 with new weights, whose MLPs are ordinary ones or mixtures of experts.

    The mixtures' rank is matched to an MLP with the same bias (none by default, as in the paper), so that the
    networks differ by the biases of Hugging Face's MLPs, 0.04% at 124M parameters, and the rounding of the rank.

    Args:
        mlp: ``mlp``, or a mixture such as ``CPMuMoE-e256``.
        shape: Sizes, or a name of `GPT2S`.
        gate: Activation of the gates.
        norm: ``layer`` or ``none``: see the module.
        wiring: ``block`` or ``layer``: see `models.block_specs`.
        dropout: Dropout of embeddings, attention and residual branches; 0 in the paper.
        bias: One bias per expert and layer.

    Raises:
        UserError: For an unknown specification or name, sizes that do not fit, or a gate normalized over the batch.
    """
    sizes = named_shape(shape, GPT2S, "gpt2").check()
    config = GPT2MuMoEConfig(
        vocab_size=sizes.vocabulary,
        n_positions=sizes.context,
        n_embd=sizes.width,
        n_layer=sizes.depth,
        n_head=sizes.heads,
        n_inner=sizes.hidden or None,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=None,
        eos_token_id=None,
        mumoe=mlp,
        mumoe_gate=gate,
        mumoe_norm=norm,
        mumoe_bias=bias,
        mumoe_wiring=wiring,
    )
    return GPT2MuMoE(config)


def generate_text(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> str:
    """The prompt and its continuation by the model, generated with the cache of keys and values.

    Args:
        model: A GPT-2.
        tokenizer: Its tokenizer.
        prompt: The beginning; an empty one starts a document.
        new_tokens: Tokens to write.
        temperature: Sampling temperature; 0 picks the likeliest token each time.
        top_k: Number of the likeliest tokens to sample among; 0 for all.
        seed: Seed of the sampling; the global generators are not affected.

    Raises:
        UserError: If prompt and new tokens together are longer than the context, or an option is out of range.
    """
    ids = tokenizer.encode_all([prompt])[0] or [tokenizer.end]
    context = int(model.config.n_positions)
    if new_tokens < 1 or temperature < 0 or top_k < 0:
        raise UserError(
            f"generate: expected new_tokens >= 1, temperature >= 0 and top_k >= 0, got {new_tokens}, {temperature:g} "
            f"and {top_k}."
        )
    if len(ids) + new_tokens > context:
        raise UserError(
            f"generate: expected at most {context} tokens, the model's context, got {len(ids)} of the prompt and "
            f"{new_tokens} new ones. Shorten one of them."
        )
    tokens = torch.tensor([ids], device=model.device)
    options: dict[str, Any] = {
        "do_sample": temperature > 0,
        "max_new_tokens": new_tokens,
        "pad_token_id": tokenizer.end,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": top_k}
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.generate(tokens, attention_mask=torch.ones_like(tokens), use_cache=True, **options)
    return prompt + tokenizer.decode(found[0, len(ids) :].tolist())
