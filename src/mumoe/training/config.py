"""The settings of a training job: one frozen dataclass is the schema, TOML and flags hold the values.

Every key has one name, on the command line (``--batch-size``) and in TOML (``batch_size``). A TOML file may
group its keys in the tables of `SECTIONS` or leave them at the top; a run writes them grouped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mumoe.errors import UserError, nearest, unknown_name

__all__ = [
    "PRESETS",
    "SECTIONS",
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
    """stop at the first damaged image instead of leaving it out and naming it"""
    split_seed: int = _setting(0, "input", 0)
    """seed of the split where the image set brings none"""
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
    zscore: bool = _setting(True, "model")
    """standardize cached features by the training split's mean and deviation (kept in the model)"""
    augment: str = _setting("", "input")
    """timm's automatic augmentation in mode scratch, e.g. rand-n2-m10 (RandAugment, 2 layers of magnitude 10)"""
    crop_area: float = _setting(0.08, "input", 0.0, 1.0)
    """smallest share of an image that a random crop takes in mode scratch"""
    lr: float = _setting(3e-3, "optimization", 0.0, 100.0)
    """peak learning rate of AdamW"""
    weight_decay: float = _setting(0.01, "optimization", 0.0)
    """decoupled weight decay"""
    decay: Literal["all", "matrices", "mumoe"] = _setting("all", "optimization")
    """what decays: all parameters; matrices (no biases, no norms); mumoe: as matrices, but for the factors of
    expert and output modes too (the paper's Mixer)"""
    beta1: float = _setting(0.9, "optimization", 0.0, 0.999999)
    """AdamW's first moment"""
    beta2: float = _setting(0.999, "optimization", 0.0, 0.999999)
    """AdamW's second moment"""
    schedule: Literal["cosine", "one-cycle", "linear", "constant"] = _setting("one-cycle", "optimization")
    """course of the learning rate after the warm-up"""
    warmup_steps: int = _setting(-1, "optimization", -1)
    """steps until the peak learning rate (-1: a tenth of the training)"""
    lr_end: float = _setting(0.0, "optimization", 0.0, 100.0)
    """learning rate at the end of the cosine and linear schedules"""
    clip: float = _setting(0.0, "optimization", 0.0)
    """largest norm of the gradient (0: no clipping)"""
    epochs: int = _setting(20, "optimization", 1)
    """passes over the training split"""
    steps: int = _setting(0, "optimization", 0)
    """optimizer steps, instead of epochs (0: as many as the epochs make)"""
    batch_size: int = _setting(256, "optimization", 1)
    """images (or windows of text) of one optimizer step, over all processes and accumulated parts"""
    accumulate: int = _setting(1, "optimization", 1)
    """parts that a batch is cut into to save memory"""
    label_smoothing: float = _setting(0.0, "optimization", 0.0, 1.0)
    """share of the target given to all classes alike"""
    mixup: float = _setting(0.0, "optimization", 0.0)
    """alpha of Mixup in modes finetune and scratch: each pair of images shares Beta(alpha, alpha) (0: none)"""
    balance: float = _setting(0.01, "optimization", 0.0)
    """weight of the load-balancing loss of a sparse-moe head"""
    precision: Literal["fp32", "bf16", "fp16"] = _setting("fp32", "optimization")
    """arithmetic of the products; parameters stay fp32"""
    shard: bool = _setting(False, "optimization")
    """with several processes, shard parameters and optimizer over them (FSDP2) instead of copying them"""
    seed: int = _setting(0, "job", 0)
    """first seed: initial weights, order of the images, augmentation"""
    seeds: int = _setting(1, "job", 1, 10_000)
    """number of seeds to train with"""
    against: tuple[str, ...] = _setting((), "job")
    """heads to compare with on the same data and seeds; a rank left out is matched by parameters"""
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
    """checkpoints to keep besides the best"""
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
            raise UserError("train: expected bf16 or fp32 with shard, got fp16. Take --precision bf16.")
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

PRESETS: Mapping[str, Mapping[str, Any]] = {
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
"""Settings by name: ``paper`` is the fine-tuning of Oldfield et al. 2024 (AdamW, cosine, clip 1)."""


def read_config(
    path: str | Path,
    base: Mapping[str, Any] | None = None,
    *,
    unknown: Callable[[list[str]], None] | None = None,
) -> TrainConfig:
    """Read a TOML file over `base` (a preset's values, say).

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
        table = tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: expected a TOML file, got {error}. Correct that line.") from None
    except OSError as error:
        raise UserError(f"{source}: expected a readable file, got {error.strerror}.") from None
    values = {**(base or {}), **_flat(table, str(source), strict=unknown is None)}
    strange = sorted(set(values) - set(_TYPES))
    if unknown is not None and strange:
        unknown(strange)
        values = {key: value for key, value in values.items() if key in _TYPES}
    return from_mapping(values, str(source))


def _no_file(source: Path) -> UserError:
    around = source.parent.glob("*.toml") if source.parent.is_dir() else ()
    close = nearest(source.stem, [path.stem for path in around])
    remedy = f"Did you mean '{source.parent / close}.toml'?" if close else "Give a TOML file."
    return UserError(f"--config: expected a file, got {str(source)!r}, which does not exist. {remedy}")


def _flat(table: Mapping[str, Any], who: str, *, strict: bool) -> dict[str, Any]:
    """The keys of all tables side by side; where it is strict, a key in the wrong table is named with its right one."""
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
    """Build a checked config from plain values (TOML's types; lists for tuples).

    Raises:
        UserError: For an unknown key, a wrong type or a value out of range.
    """
    for key in values:
        if key not in _TYPES:
            raise unknown_name(who, "setting", key, _TYPES)
    return TrainConfig(**{key: _coerce(key, value, who) for key, value in values.items()}).check()


def _coerce(name: str, value: Any, who: str) -> Any:
    """TOML's value as the field's type: an int stands for a float, a list for a tuple of strings."""
    kind = _TYPES[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
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
        raise UserError(f"train: expected {name} >= {low:g}, got {value:g}.")
    if high is not None and value > high:
        raise UserError(f"train: expected {name} <= {high:g}, got {value:g}.")


def _split(parts: Iterable[str]) -> Iterable[str]:
    return (word.strip() for part in parts for word in part.split(",") if word.strip())


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """``["split=character", "size=96"]`` as keyword arguments, numbers and true/false as such.

    Raises:
        UserError: If one is not KEY=VALUE.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UserError(f"data_options: expected KEY=VALUE, got {option!r}. Write e.g. split_by=character.")
        try:
            parsed[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
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
