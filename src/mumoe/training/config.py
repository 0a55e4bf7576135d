"""The settings of a training job: one frozen dataclass is the schema, TOML and flags hold the values.

Every key has one name, on the command line (``--batch-size``) and in TOML (``batch_size``). A TOML file may
group its keys in the tables of `SECTIONS` or leave them at the top; a run writes them grouped.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mumoe.errors import UserError, nearest, shown, unknown_argument, unknown_name
from mumoe.files import read_toml

__all__ = [
    "DEFAULT_PRESETS",
    "FOR_ALL_HEADS",
    "PLAIN",
    "PRESETS",
    "SECTIONS",
    "SWEPT",
    "TrainConfig",
    "from_mapping",
    "parse_options",
    "read_config",
    "to_toml",
]

SECTIONS = ("input", "model", "optimization", "job")
"""Tables of a configuration file, in the order in which they are written."""

TRACKERS = ("wandb", "trackio", "mlflow")


def _setting(
    default: Any, section: str, low: float | None = None, high: float | None = None, flags: tuple[str, ...] = ()
) -> Any:
    metadata = {"section": section, "group": f"{section} options", "low": low, "high": high, "flags": flags}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training job; `mumoe.training.train` runs it."""

    data: str = _setting("emoji", "input")
    """image set: emoji, cifar100, folder:PATH, csv:PATH, ...; or features:PATH, computed elsewhere; in mode text
    stdlib, or tokens:FOLDER written by mumoe tokenize"""
    root: str = _setting("", "input")
    """folder that holds the image set in its official layout (empty: the user cache)"""
    data_options: tuple[str, ...] = _setting((), "input")
    """options of the image set as KEY=VALUE, e.g. split_by=character"""
    download: bool = _setting(False, "input")
    """fetch the image set when it is not in the folder"""
    strict: bool = _setting(False, "input")
    """stop if an image is damaged, instead of leaving it out and reporting it"""
    split_seed: int = _setting(0, "input", 0)
    """seed of the split if the image set has none"""
    vary_split: bool = _setting(False, "input")
    """give each seed its own split (split_seed + seed), so that spreads cover the choice of images"""
    backbone: str = _setting("efficientnet-lite0", "model")
    """preset or timm name of the network that computes the features; in modes scratch and text the network itself:
    mixer-s16, mixer-s32, mixer-b16; gpt2, gpt2-medium, gpt2-large"""
    network_options: tuple[str, ...] = _setting((), "model")
    """sizes and options of a network in modes scratch and text as KEY=VALUE, e.g. depth=4, wiring=layer"""
    weights: str = _setting("", "model")
    """safetensors file with the backbone's weights (empty: its pretrained ones)"""
    pretrained: bool = _setting(True, "model")
    """start the backbone from pretrained weights"""
    backbone_seed: int = _setting(0, "model", 0)
    """seed of a backbone's random weights (--no-pretrained); the same for every seed of a job"""
    image_size: int = _setting(0, "model", 0, 4096)
    """side of the images in pixels (0: the backbone's own)"""
    mode: Literal["features", "finetune", "scratch", "text"] = _setting("features", "model")
    """features: backbone frozen, its features cached; finetune: everything is trained; scratch: a whole network for
    images from random weights; text: a causal language model from random weights"""
    head: str = _setting("CPMuMoE-r256-e128", "model", flags=("--spec",))
    """CPMuMoE-r256-e128, TuckerMuMoE-..., linear, highrank-linear-r512, sparse-moe-e64-k2; in modes scratch and text
    what every MLP of the network is: mlp, CPMuMoE-e64 (rank matched to the MLP), CPMuMoE-r384-e64"""
    position: Literal["final", "penultimate"] = _setting("final", "model")
    """penultimate: the head keeps the feature width and a linear layer follows it"""
    gate: str = _setting("entmax15", "model")
    """activation of a MuMoE head's gate: entmax15, sparsemax, softmax"""
    norm: str = _setting("batch", "model")
    """normalization of a MuMoE head's gate: batch, layer, none"""
    gate_scale: float = _setting(1.0, "model", 1e-3, 1e3)
    """factor of a MuMoE head's gate logits after the norm; below 1 more experts share an image"""
    init: Literal["scaled", "zero", "paper", "uniform"] = _setting("paper", "model")
    """initial factors of a MuMoE head: scaled (output as large as a linear layer's), zero (scaled, output zero), paper
    (appendix B.1), uniform"""
    dropout: float = _setting(0.0, "optimization", 0.0, 0.99)
    """dropout probability of a head's input in training (of its experts' input, if it has experts)"""
    gate_dropout: float = _setting(0.0, "optimization", 0.0, 0.99)
    """the same for the input of a MuMoE head's gate, drawn separately"""
    specialize: float = _setting(0.0, "optimization", 0.0, 100.0)
    """weight of the mutual information between the class and the expert of the first level, an additional objective
    that training maximizes; 0 turns it off"""
    zscore: bool = _setting(True, "model")
    """standardize cached features by the training split's mean and deviation (kept in the model)"""
    zscore_floor: float = _setting(0.0, "model", 0.0, 1.0)
    """lower bound of the deviation of a feature column, as a share of the median column's"""
    augment: str = _setting("", "input")
    """timm's automatic augmentation in mode scratch, e.g. rand-n2-m10 (RandAugment, 2 layers of magnitude 10)"""
    crop_area: float = _setting(0.08, "input", 0.0, 1.0)
    """smallest share of an image that a random crop covers in mode scratch"""
    lr: float = _setting(3e-3, "optimization", 0.0, 100.0)
    """peak learning rate of AdamW"""
    weight_decay: float = _setting(0.01, "optimization", 0.0)
    """decoupled weight decay"""
    decay: Literal["all", "matrices", "factors", "mumoe"] = _setting("all", "optimization")
    """what decays: all parameters; matrices (no biases, no norms); factors: as matrices, but not gates and expert
    factors; mumoe: as matrices, but not the factors of expert and output modes (the paper's Mixer)"""
    linear_lr: float = _setting(0.0, "optimization", 0.0, 100.0)
    """peak learning rate of heads without experts: linear, highrank-linear (0: as for the others)"""
    linear_weight_decay: float = _setting(-1.0, "optimization", -1.0)
    """weight decay of heads without experts (-1: as for the others)"""
    linear_dropout: float = _setting(-1.0, "optimization", -1.0, 0.99)
    """dropout of heads without experts (-1: as for the others)"""
    beta1: float = _setting(0.9, "optimization", 0.0, 0.999999)
    """AdamW's first moment"""
    beta2: float = _setting(0.999, "optimization", 0.0, 0.999999)
    """AdamW's second moment"""
    schedule: Literal["cosine", "one-cycle", "linear", "constant"] = _setting("one-cycle", "optimization")
    """schedule of the learning rate after the warm-up"""
    warmup_steps: int = _setting(-1, "optimization", -1)
    """steps until the peak learning rate (-1: a tenth of the training)"""
    lr_end: float = _setting(0.0, "optimization", 0.0, 100.0)
    """learning rate at the end of the cosine and linear schedules"""
    clip: float = _setting(0.0, "optimization", 0.0)
    """largest norm of the gradient (0: no clipping)"""
    epochs: int = _setting(20, "optimization", 1)
    """passes over the training split"""
    steps: int = _setting(0, "optimization", 0)
    """optimizer steps, instead of epochs (0: by epochs)"""
    batch_size: int = _setting(256, "optimization", 1)
    """images (or windows of text) of one optimizer step, over all processes and accumulated parts"""
    accumulate: int = _setting(1, "optimization", 1)
    """parts that a batch is split into to save memory"""
    label_smoothing: float = _setting(0.0, "optimization", 0.0, 1.0)
    """label smoothing: share of the target spread evenly over all classes"""
    mixup: float = _setting(0.0, "optimization", 0.0)
    """alpha of Mixup in modes finetune and scratch: each pair of images shares Beta(alpha, alpha) (0: none)"""
    balance: float = _setting(0.01, "optimization", 0.0)
    """weight of the load-balancing loss of a sparse-moe head"""
    precision: Literal["fp32", "bf16", "fp16"] = _setting("fp32", "optimization")
    """number format of matrix products; parameters stay fp32"""
    shard: bool = _setting(False, "optimization")
    """with several processes, shard parameters and optimizer over them (FSDP2) instead of copying them"""
    seed: int = _setting(0, "job", 0)
    """first seed: initial weights, order of the images, augmentation"""
    seeds: int = _setting(1, "job", 1, 10_000)
    """number of seeds to train with"""
    against: tuple[str, ...] = _setting((), "job")
    """heads to compare with on the same data and seeds; without a rank, it is matched to the head's parameters"""
    select: Literal["last", "best"] = _setting("last", "job")
    """which checkpoint is the result: the last, or the best on the validation split"""
    workers: int = _setting(0, "job", 0, 1024)
    """processes that load images"""
    device: str = _setting("auto", "job")
    """auto (an accelerator where there is one), cpu, cuda, cuda:1, mps"""
    log_every: int = _setting(10, "job", 1)
    """steps between two lines of metrics.jsonl"""
    eval_every: int = _setting(1, "job", 0)
    """epochs between evaluations on the validation split (0: only at the end)"""
    eval_steps: int = _setting(0, "job", 0)
    """steps between evaluations, instead of epochs (0: by epochs)"""
    checkpoint_every: int = _setting(0, "job", 0)
    """steps between checkpoints (0: at ends of epochs, at least half a minute apart)"""
    keep: int = _setting(2, "job", 1)
    """checkpoints to keep in addition to the best"""
    track: tuple[str, ...] = _setting((), "job")
    """further trackers: wandb, trackio, mlflow"""
    project: str = _setting("mumoe", "job")
    """project of the trackers"""
    run_name: str = _setting("", "job")
    """name of the run in the trackers (empty: the name of its folder); with several runs, head and seed follow"""
    cache_dir: str = _setting("", "job")
    """folder of cached features (empty: the user cache)"""
    out: str = _setting("", "job", flags=("-o", "--out"))
    """folder of the run (empty: runs/DATA-HEAD)"""

    def check(self) -> TrainConfig:
        """Return the config with its lists split at commas, or raise a one-line `UserError`."""
        for item in dataclasses.fields(self):
            if item.name in _TYPES:
                _check_value(item.name, getattr(self, item.name), item.metadata)
        parse_options(self.data_options)
        if self.shard and self.precision == "fp16":
            raise UserError("train: expected bf16 or fp32 with shard, got fp16. Use `precision=bf16`.")
        split = {key: tuple(_split(getattr(self, key))) for key in ("against", "track")}
        if self.mixup and self.mode not in ("finetune", "scratch"):
            raise UserError(f"train: expected mixup on images (mode finetune or scratch), got mode {self.mode!r}.")
        for name in split["track"]:
            if name not in TRACKERS:
                raise unknown_name("train", "tracker", name, TRACKERS)
        return self.replace(**split)

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed, as a plain `TrainConfig`."""
        values = {name: getattr(self, name) for name in _TYPES}
        return TrainConfig(**{**values, **changes})

    def of_head(self, head: str) -> TrainConfig:
        """A copy for one head: those without experts have their own learning rate, weight decay and dropout."""
        if not head.startswith(("linear", "highrank-linear")):
            return self.replace(head=head)
        lr = self.linear_lr or self.lr
        decay = self.weight_decay if self.linear_weight_decay < 0 else self.linear_weight_decay
        dropout = self.dropout if self.linear_dropout < 0 else self.linear_dropout
        return self.replace(head=head, lr=lr, weight_decay=decay, dropout=dropout)

    def absolute(self) -> TrainConfig:
        """A copy whose paths do not depend on the current folder; `out` stays as it is."""
        paths = {key: _absolute(getattr(self, key)) for key in ("root", "weights", "cache_dir")}
        return self.replace(data=_absolute_data(self.data), **paths)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""


def _absolute_data(name: str) -> str:
    """``folder:PATH`` with the whole path; a name without a path as it is."""
    kind, colon, path = name.partition(":")
    is_path = kind in _WITH_PATH or (kind == "hf" and Path(path).expanduser().is_dir())
    return f"{kind}:{_absolute(path)}" if colon and path and is_path else name


_WITH_PATH = ("folder", "csv", "features", "tokens")
"""Kinds of data whose name holds a path."""

_TYPES: Mapping[str, Any] = get_type_hints(TrainConfig)

_ACCURATE: Mapping[str, Any] = {
    "lr": 6e-3,
    "schedule": "one-cycle",
    "batch_size": 256,
    "epochs": 30,
    "weight_decay": 1.0,
    "decay": "factors",
    "init": "zero",
    "dropout": 0.3,
    "gate_dropout": 0.25,
    "gate_scale": 0.5,
    "specialize": 0.3,
    "zscore_floor": 0.1,
    "linear_lr": 1e-2,
    "linear_weight_decay": 0.01,
    "linear_dropout": 0.2,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "accurate": _ACCURATE,
    "specialized": {**_ACCURATE, "gate_scale": 1.0},
    "finetune": {
        **_ACCURATE,
        "mode": "finetune",
        "lr": 1e-3,
        "weight_decay": 0.1,
        "batch_size": 64,
        "epochs": 5,
        "clip": 1.0,
        "linear_lr": 0.0,
        "linear_weight_decay": -1.0,
    },
    "plain": {},
    "paper": {
        "mode": "finetune",
        "backbone": "clip-b32",
        "lr": 3e-5,
        "weight_decay": 0.1,
        "schedule": "cosine",
        "warmup_steps": 500,
        "clip": 1.0,
        "epochs": 10,
        "zscore": False,
    },
}
"""Settings by name: ``accurate`` and ``specialized`` for heads on features (see the page on experts that mean
something), ``finetune`` for a head and the backbone below it, ``paper`` the fine-tuning of Oldfield et al. 2024 (AdamW,
cosine, clip 1), ``plain`` none: the defaults of `TrainConfig`."""

PLAIN: Mapping[str, Any] = {"preset": "plain"}
"""Base of the settings of a run: values for the settings that were added after the run was made."""

SWEPT = "specialized"
"""Preset of the heads of a sweep, which looks at what experts do."""

DEFAULT_PRESETS: Mapping[str, str] = {"features": "accurate", "finetune": "finetune"}
"""Mode -> preset of a job that names none."""


def read_config(
    path: str | Path,
    base: Mapping[str, Any] | None = None,
    *,
    unknown: Callable[[list[str]], None] | None = None,
) -> TrainConfig:
    """Read a TOML file over `base`, such as a preset's values.

    Args:
        path: The file.
        base: Values of settings that the file leaves open.
        unknown: Called with the settings that this version does not have, which are then ignored. By default they
            are an error.

    Raises:
        UserError: If the file cannot be read, or a key, type or value is wrong.
    """
    source = Path(path)
    if not source.is_file():
        raise _no_file(source)
    try:
        table = read_toml(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{source}: expected a TOML file, got {error}. Correct that line.") from None
    except OSError as error:
        raise UserError(f"{source}: expected a readable file, got {error.strerror}.") from None
    values = {**(base or {}), **_flat(table, str(source), strict=unknown is None)}
    strange = sorted(set(values) - set(_TYPES) - {"preset"})
    if unknown is not None and strange:
        unknown(strange)
        values = {key: value for key, value in values.items() if key not in strange}
    return from_mapping(values, str(source))


def _no_file(source: Path) -> UserError:
    around = source.parent.glob("*.toml") if source.parent.is_dir() else ()
    close = nearest(source.stem, [path.stem for path in around])
    remedy = f"Did you mean '{source.parent / close}.toml'?" if close else "Give a TOML file."
    return UserError(f"`config`: expected a file, got {str(source)!r}, which does not exist. {remedy}")


def _flat(table: Mapping[str, Any], who: str, *, strict: bool) -> dict[str, Any]:
    """The keys of all tables as one mapping; if strict, an error for a key in the wrong table names the right one."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if not isinstance(value, dict):
            flat[key] = value
            continue
        if strict and key not in SECTIONS:
            raise unknown_name(who, "table", key, SECTIONS)
        for inner, setting in value.items():
            if strict and inner in _TYPES and _section(inner) != key:
                right = _section(inner)
                raise UserError(f"{who}: expected {inner} in [{right}], got it in [{key}]. Move it there.")
            flat[inner] = setting
    return flat


def _section(name: str) -> str:
    return str(TrainConfig.__dataclass_fields__[name].metadata["section"])


def from_mapping(values: Mapping[str, Any], who: str = "train") -> TrainConfig:
    """Build a checked config from plain values (TOML's types; lists for tuples) over those of a preset.

    Args:
        values: Settings by name. ``preset`` names one of `PRESETS`; by default that of the mode.
        who: Prefix of errors.

    Raises:
        UserError: For an unknown key, a wrong type or a value out of range.
    """
    values = dict(values)
    name = values.pop("preset", "") or DEFAULT_PRESETS.get(values.get("mode", "features"), "plain")
    if name not in PRESETS:
        raise unknown_argument(who, "preset", name, PRESETS)
    for key in values:
        if key not in _TYPES:
            raise unknown_name(who, "setting", key, [*_TYPES, "preset"])
    values = {**PRESETS[name], **_for_all_heads(values), **values}
    return TrainConfig(**{key: _coerce(key, value, who) for key, value in values.items()}).check()


FOR_ALL_HEADS: Mapping[str, tuple[str, float]] = {
    "lr": ("linear_lr", 0.0),
    "weight_decay": ("linear_weight_decay", -1.0),
    "dropout": ("linear_dropout", -1.0),
}
"""Settings that, if given, also apply to heads without experts, although the preset has separate values for these."""


def _for_all_heads(given: Mapping[str, Any]) -> dict[str, Any]:
    return {own: neutral for name, (own, neutral) in FOR_ALL_HEADS.items() if name in given}


def _coerce(name: str, value: Any, who: str) -> Any:
    """A TOML value as the field's type: an int becomes a float, a list of strings a tuple."""
    kind = _TYPES[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{who}: expected {name} to be a number, got one of {len(str(value))} digits.") from None
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(value)
    _check_type(name, value, who)
    return value


def _check_type(name: str, value: Any, who: str) -> None:
    kind = _TYPES[name]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise unknown_name(who, name, str(value), get_args(kind))
    elif get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not all(isinstance(part, str) for part in value):
            raise UserError(f"{who}: expected {name} to be a list of strings, got {value!r}.")
    elif type(value) is not kind:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
        raise UserError(f"{who}: expected {name} to be {words[kind]}, got {value!r}.")


def _check_value(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    _check_type(name, value, "train")
    low, high = bounds["low"], bounds["high"]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"train: expected {name} to be a finite number, got {value}.")
    if low is not None and value < low:
        raise UserError(f"train: expected {name} >= {low:g}, got {shown(value)}.")
    if high is not None and value > high:
        raise UserError(f"train: expected {name} <= {high:g}, got {shown(value)}.")


def _split(parts: Iterable[str]) -> Iterable[str]:
    return (word.strip() for part in parts for word in part.split(",") if word.strip())


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """``["split=character", "size=96"]`` as keyword arguments; numbers and true/false are converted.

    Raises:
        UserError: If one is not KEY=VALUE.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UserError(f"data_options: expected KEY=VALUE, got {option!r}. Write e.g. split_by=character.")
        try:
            parsed[key.strip()] = read_toml(f"value = {text}")["value"]
        except ValueError:
            parsed[key.strip()] = text.strip()
    return parsed


def to_toml(config: TrainConfig) -> str:
    """The config as TOML that `read_config` reads back to an equal one (but for `out`, which may move)."""
    lines: list[str] = []
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for name in _TYPES:
            if _section(name) == section and name != "out":
                lines.append(f"{name} = {_toml_value(getattr(config, name))}")
    return "\n".join(lines[1:]) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # JSON's strings are TOML's basic strings, but for U+007F, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F") if isinstance(value, str) else repr(value)
