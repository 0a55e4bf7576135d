"""Generated calls of the public functions, classes and methods, and of every verb with its options.

What is called is read from the package: the names of `mumoe` and what they hold, the signatures, the fields that the
documentation of ``**settings`` points to, and the fields of each verb's `Options`. A call is answered if it returns, or
raises a `UserError` or a `JobError` of one line. From Python two more errors are answers, as for any function of
PyTorch: the `TypeError` of Python itself for a missing, unknown or repeated argument; and, of `forward`, what PyTorch
raises for tensors that do not fit. A verb ends with status 0, 1 or 2, and an error is one line of ours. A call that
works for longer than `STOP` seconds is interrupted as by Ctrl-C, a dashboard sooner, and has to end then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import inspect
import io
import os
import pkgutil
import random
import re
import shutil
import sys
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mumoe
from mumoe.cli import VERBS, main
from mumoe.errors import JobError, UserError
from mumoe.parsing import _Option, _options
from soak import small
from soak.part import Found, Given, Part
from soak.samples import FIXTURES, of_today
from soak.trials import Answered, Limits, Tally, Trial, run_trials
from soak.values import NAMED, ODD_TEXTS, Drawn, draw

__all__ = ["PART"]

CALLS = 100_000
"""Calls of a full run."""
MINUTES = 20.0
"""After which a full run stops, whatever its number is; `MUMOE_SOAK_MINUTES` is another number."""
QUICK = 1_500
QUICK_SECONDS = 6.0
STOP = 1.0
"""Seconds after which a call is interrupted."""
CHUNK = 500
"""Calls of one process, which begins with new folders."""
VERB_SHARE = 0.2
DATA = "features:runs/attributes.safetensors"


@dataclass(frozen=True)
class Target:
    """Something that is called.

    Attributes:
        name: Its public name.
        group: What it is counted as.
        call: Makes the function.
        tensors: Whether it is a `forward`, whose errors may be those of PyTorch.
    """

    name: str
    group: str
    call: Callable[[], Callable[..., Any]]
    tensors: bool = False


# What is called ---------------------------------------------------------------------------------------------


def find_targets() -> list[Target]:
    """Every public function, class and method."""
    found: list[Target] = []
    for name in vars(mumoe)["__all__"]:
        thing = getattr(mumoe, name)
        if isinstance(thing, types.ModuleType):
            for inner in vars(thing)["__all__"]:
                if str(getattr(getattr(thing, inner), "__module__", "")).startswith("mumoe"):  # not an alias of a type
                    found += _targets(f"mumoe.{name}.{inner}", getattr(thing, inner), name)
        else:
            found += _targets(f"mumoe.{name}", thing, "")
    return found


def _targets(name: str, thing: Any, module: str) -> list[Target]:
    if inspect.isclass(thing):
        if issubclass(thing, BaseException):
            return []
        made = [Target(name, "constructors", lambda: thing)] * (not inspect.isabstract(thing) and not is_given(thing))
        for method, function in inspect.getmembers(thing, inspect.isroutine):
            ours = str(getattr(function, "__module__", "")).startswith("mumoe")
            if ours and (not method.startswith("_") or method == "__call__"):
                made.append(_method(f"{name}.{method}", thing, method))
        return made
    return [Target(name, f"mumoe.{module}" if module else "functions", lambda: thing)]


def is_given(kind: type) -> bool:
    """Whether the library makes the objects of a class, as its documentation then says."""
    return bool(re.search(r"^\s*Made by ", kind.__doc__ or "", re.MULTILINE))


def _method(name: str, kind: type, method: str) -> Target:
    def bound() -> Callable[..., Any]:
        held = inspect.getattr_static(kind, method)
        owner = kind if isinstance(held, classmethod | staticmethod) else instance(kind)
        return typing.cast("Callable[..., Any]", getattr(owner, method))

    return Target(name, "methods", bound, method == "forward")


@functools.cache
def instance(kind: type) -> Any:
    """An object of a public class, made once in each process."""
    torch.manual_seed(0)
    layer = mumoe.MuMoE(6, 3, num_experts=4, factorization="cp", rank=2).eval()
    given: dict[str, Any] = {"device": "cpu", "progress": False}
    makers: dict[str, Callable[[], Any]] = {
        "Run": lambda: mumoe.load("runs/attributes", data="features:runs/attributes.safetensors", **given),
        "Job": lambda: mumoe.load("runs/job", data="features:runs/classes.safetensors", **given),
        "MuMoE": lambda: layer,
        "MuMoEBlock": lambda: mumoe.MuMoEBlock(6, 8, 6, num_experts=4, factorization="cp", rank=2),
        "MuMoEGatedBlock": lambda: mumoe.MuMoEGatedBlock(6, 8, 6, num_experts=4, factorization="cp", rank=2),
        "Gate": lambda: mumoe.Gate(6, (4,)),
        "HighRankLinear": lambda: mumoe.HighRankLinear(6, 3, rank=4),
        "SparseMoE": lambda: mumoe.SparseMoE(6, 3, num_experts=4, k=2),
        "Factorization": lambda: layer.factorization,
        "EditStack": lambda: mumoe.EditStack(layer),
        "ImageClassifier": lambda: mumoe.load("landed/saved", device="cpu")[0],
        "Ablate": lambda: mumoe.Ablate(1),
        "Scale": lambda: mumoe.Scale(1, 0.5),
        "Correct": lambda: mumoe.Correct.of(1, {2: 0.5}),
        "SetOutput": lambda: mumoe.SetOutput((1,), 2, 0.5),
        "Decomposition": _decomposition,
        "SpecCosts": lambda: mumoe.costs.spec_costs("CPMuMoE-r4-e3", 6, 3),
    }
    for one in kind.__mro__:
        if one.__name__ in makers:
            return makers[one.__name__]()
    return _constructed(kind)


def _decomposition() -> Any:
    """A decomposition of a tiny language model, in the folder of the calls' data."""
    with contextlib.redirect_stderr(io.StringIO()):
        if not Path("dec/run.json").is_file():
            texts, model = small.text_files(Path("dec-texts")), small.language_model(Path("dec-model"))
            given: dict[str, Any] = {"text": f"folder:{texts}", "out": "dec", "cache_dir": "cache", "progress": False}
            mumoe.decompose(str(model), **given, **small.DECOMPOSED)
        return mumoe.load("dec", device="cpu", progress=False)


def _constructed(kind: type) -> Any:
    """An object of usual arguments, or None."""
    rng = random.Random(0)
    for _ in range(20):
        with contextlib.suppress(Exception):
            source = Drawn(rng, 0.0, lambda other: None)
            hints = _hints(vars(kind).get("__init__", kind))
            return kind(**{name: draw(source, name, hints.get(name, Any)) for name in hints if name != "return"})
    return None


# Arguments --------------------------------------------------------------------------------------------------


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    from mumoe.calling import _hints as evaluated

    found = evaluated(function)
    return found or dict.fromkeys(getattr(function, "__annotations__", {}), Any)


@functools.cache
def _settings(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Names and types of what ``**settings`` takes, as the documentation says: fields or parameters of something."""
    text = inspect.getdoc(function) or ""
    for path in re.findall(r"(?:ettings as for|fields of|ields of|as for|as in) `+(?:mumoe\.)?([\w.]+)`+", text):
        thing = _resolved(path, function)
        if dataclasses.is_dataclass(thing):
            hints = typing.get_type_hints(thing)
            return {field.name: hints[field.name] for field in dataclasses.fields(thing)}
        if callable(thing):
            names = inspect.signature(thing).parameters
            return {name: hint for name, hint in _hints(thing).items() if name in names and name != "return"}
    return {}


def _resolved(path: str, function: Callable[..., Any]) -> Any:
    """What a dotted name in a docstring means."""
    first = inspect.unwrap(function)
    if path in getattr(first, "__globals__", {}):
        return first.__globals__[path]
    module, _, name = f"mumoe.{path}".rpartition(".")
    while module:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
        module, _, above = module.rpartition(".")
        name = f"{above}.{name}"
    return None


def _arguments(function: Callable[..., Any], source: Drawn) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a call: the required ones, usually, and some of the others."""
    rng, by_place, by_name = source.rng, [], {}
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [], {}
    hints = _hints(function.__init__ if inspect.isclass(function) else inspect.unwrap(function))
    skipped = False
    for one in parameters:
        hint = hints.get(one.name, Any)
        if one.kind is one.VAR_POSITIONAL:
            by_place += [draw(source, one.name, hint) for _ in range(rng.choice((0, 0, 1, 2)))] if not skipped else []
        elif one.kind is one.VAR_KEYWORD:
            settings = _settings(function)
            for name in rng.sample(sorted(settings), min(len(settings), rng.choice((0, 0, 1, 2, 3)))):
                by_name[name] = draw(source, name, settings[name])
        elif rng.random() < (0.97 if one.default is one.empty else 0.3):
            value = draw(source, one.name, hint)
            if one.kind is one.POSITIONAL_ONLY or (
                one.kind is one.POSITIONAL_OR_KEYWORD and not skipped and not by_name
            ):
                by_place.append(value)
            else:
                by_name[one.name] = value
        else:
            skipped = True
    if rng.random() < 0.02:
        by_name[rng.choice(("unknown", "seed", "device", "k"))] = rng.choice((0, None, "x"))
    return by_place, by_name


def _python_call(target: Target, source: Drawn) -> Trial:
    function = target.call()
    by_place, by_name = _arguments(function, source)
    shown = [_shown(value) for value in by_place] + [f"{name}={_shown(value)}" for name, value in by_name.items()]

    def run() -> None:
        try:
            found = function(*by_place, **by_name)
            _use(found)
        except TypeError as error:
            if _by_python(error) or target.tensors:
                raise Answered from error
            raise
        except (RuntimeError, ValueError, IndexError, AttributeError) as error:
            if target.tensors and not isinstance(error, UserError | JobError):
                raise Answered from error
            raise

    serves = target.name.endswith(".dashboard")
    return Trial(target.group, run, f"{target.name}({', '.join(shown)})", serves=serves)


def _use(found: Any) -> None:
    """Go on with a result as a user would: print it, and enter what is a context."""
    if isinstance(found, nn.Module | torch.Tensor):
        return
    if isinstance(found, types.GeneratorType):
        for _ in zip(range(3), found, strict=False):
            pass
        return
    if hasattr(found, "__enter__") and hasattr(found, "__exit__"):
        with found:
            pass
        return
    _ = repr(found)[:100]


def _by_python(error: TypeError) -> bool:
    """Whether Python refused the arguments before any line of the function ran."""
    text = str(error)
    words = r"missing \d+ required|unexpected keyword|positional arguments? but|multiple values for|takes no arguments"
    trace, last = error.__traceback__, ""
    while trace is not None:
        last, trace = trace.tb_frame.f_code.co_filename, trace.tb_next
    ours = (
        last in (__file__, sys.modules["mumoe.calling"].__file__)
        or "/torch/nn/" in last
        or last.endswith("contextlib.py")
    )
    return bool(re.search(words, text)) and ours


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}:{str(value.dtype).removeprefix('torch.')}"
    text = f"<{type(value).__name__}>" if isinstance(value, nn.Module) else repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."


# Verbs ------------------------------------------------------------------------------------------------------


@functools.cache
def _verb_options(verb: str) -> list[_Option]:
    command = importlib.import_module(f"mumoe.commands.{verb.replace('-', '_')}")
    return _options(command.Options)


def _verb_call(rng: random.Random) -> Trial:
    verb = rng.choice(list(VERBS))
    words = [verb]
    for option in _verb_options(verb):
        likely = 0.95 if option.required else 0.12
        if rng.random() < likely:
            words += _words(option, rng)
    if rng.random() < 0.9:
        words += ["--quiet"] if any(option.name == "quiet" for option in _verb_options(verb)) else []
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words) + 1), rng.choice(ODD_TEXTS))
    if rng.random() < 0.03:
        words.append(rng.choice(("--unknown", "--no-quiet", "-x", "--json=3", "--help", "--seed", "--device=")))
    debug = rng.random() < 0.5

    def run() -> None:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = main([*words, *["--debug"] * debug])
        if status == 130:
            raise KeyboardInterrupt
        text = errors.getvalue()
        assert status in (0, 1, 2), f"status {status}"
        assert "Traceback" not in text, f"a traceback: {text[-300:]}"
        assert "--debug shows where" not in text, f"an error that is not ours: {text[-300:]}"
        assert status == 0 or text.strip(), "an error without a message"

    return Trial(f"verb {verb}", run, " ".join(map(repr, words)), serves=verb == "dashboard")


def _words(option: _Option, rng: random.Random) -> list[str]:
    """An option with a value, or with none where it takes one."""
    if option.type is bool:
        flag = option.flags[-1]
        return [flag if rng.random() < 0.8 else f"--no-{flag.lstrip('-')}"]
    count = rng.choice((1, 1, 2, 3)) if option.many else 1
    values = [_text(option, rng) for _ in range(count if rng.random() < 0.97 else 0)]
    if option.argument.positional:
        return values
    return (
        [option.flags[-1], *values] if rng.random() < 0.8 or len(values) != 1 else [f"{option.flags[-1]}={values[0]}"]
    )


def _text(option: _Option, rng: random.Random) -> str:
    if rng.random() < 0.15:
        return rng.choice(ODD_TEXTS)
    choices = typing.get_args(option.type)
    if choices:
        return str(rng.choice(choices))
    known = NAMED.get(option.name) or NAMED.get(option.name.removesuffix("s"))
    if known and rng.random() < 0.9:
        return str(rng.choice(known))
    if option.type is int:
        return rng.choice(("1", "2", "3", "4", "8", "0", "-1", "100"))
    if option.type is float:
        return rng.choice(("0.5", "1", "0", "0.1", "2", "-1", "1e-3"))
    return rng.choice(("ant", "bee", "CPMuMoE-r4-e3", "out/c", "runs/attributes", "seed=1", "1", "x"))


# The part ---------------------------------------------------------------------------------------------------


def _fresh(work: Path) -> None:
    """New folders of runs and results, and the working directory among them."""
    os.chdir(work)
    for name in ("runs", "landed", "out", "cache"):
        shutil.rmtree(work / name, ignore_errors=True)
    shutil.copytree(FIXTURES / "runs", work / "runs")
    shutil.copytree(FIXTURES / "landed", work / "landed")
    rows = [f"images/{name}/{n}.png,{name}" for name in ("ant", "bee", "cat") for n in range(5)]
    for path in work.rglob("run.json"):
        path.write_bytes(of_today(path.read_bytes()))
    (work / "runs" / "table.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    (work / "sweep.toml").write_text('data = "features:runs/classes.safetensors"\nepochs = 1\n')


def make_call(targets: Sequence[Target], seed: int, number: int) -> Trial:
    """The call of a number."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < VERB_SHARE:
        return _verb_call(rng)
    torch.manual_seed(number)
    target = rng.choice(targets)
    return _python_call(target, Drawn(rng, rng.choice((0.0, 0.05, 0.3)), instance))


def run(given: Given) -> Found:
    """Make the calls."""
    torch.set_num_threads(1)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ["MUMOE_CACHE"] = str(given.work / "cache")
    back = Path.cwd()
    try:
        return _run(given)
    finally:
        os.chdir(back)


def _run(given: Given) -> Found:
    found = Found()
    _fresh(given.work)
    targets = []
    for target in find_targets():
        try:
            target.call()
            targets.append(target)
        except AttributeError:  # of a class that only a longer job makes
            found.skipped.append(f"{target.name}: no object of its class")
    found.count("public functions, classes and methods", len(targets))
    found.count("verbs", len(VERBS))
    found.count("options of the verbs", sum(len(_verb_options(verb)) for verb in VERBS))
    if not given.quick:  # else every process would import what it happens to need
        _import_all()
    gc.collect()
    gc.freeze()
    seconds = QUICK_SECONDS if given.quick else 60 * float(os.environ.get("MUMOE_SOAK_MINUTES", MINUTES))
    begun = time.monotonic()
    labels = [*dict.fromkeys(target.group for target in targets), *(f"verb {verb}" for verb in VERBS)]
    tally = run_trials(
        lambda number: make_call(targets, given.seed, number),
        range(given.many(CALLS, QUICK)),
        labels,
        Limits(seconds=1e9, hang=20.0, stop=STOP, memory=4 << 30, tight=False, alone=True),
        until=begun + seconds,
        chunk=CHUNK,
        prepare=lambda: _fresh(given.work),
    )
    _count(found, tally, time.monotonic() - begun)
    return found


def _import_all() -> None:
    """Import every module of ours and what they use, once for all processes."""
    for module in pkgutil.walk_packages(mumoe.__path__, "mumoe."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("pandas", "matplotlib.pyplot", "timm", "transformers", "pyarrow.parquet", "datasets", "scipy.stats"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for words in (("fairness", "--target", "bee", "--sensitive", "cat"), ("audit", "--target", "bee"), ("analyze",)):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main([words[0], "runs/attributes", *words[1:], "--data", DATA, "--device", "cpu", "--quiet"])


def _count(found: Found, tally: Tally, seconds: float) -> None:
    found.count("calls", tally.total())
    for outcome, words in (
        ("returned", "that returned"),
        ("refused", "refused in one line"),
        ("stopped", f"interrupted after {STOP:g} s, which ended"),
    ):
        found.count(f"calls {words}", tally.total(outcome))
    for name, counts in tally.counts.items():
        found.count(f"{name}: calls", sum(counts.values()))
    found.measured["calls per second"] = tally.total() / max(seconds, 1e-9)
    found.measured["hours of one core for 100,000"] = 1e5 / max(found.measured["calls per second"], 1e-9) / 3600
    seen: dict[str, list[str]] = {}
    for line in tally.faults:
        seen.setdefault(re.sub(r"trial \d+|\d+", "", line.partition(" | ")[0])[:160], []).append(line)
    found.faults += [f"{lines[0]} ({len(lines)} times)" for lines in seen.values()]


PART = Part(
    "A call of the public functions, or of a verb with any options, is answered by a result or by one line: no "
    "traceback, no hang.",
    run,
)
