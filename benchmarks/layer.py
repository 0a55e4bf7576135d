"""The layer against a plain implementation, other layers, and the floor of its matrix products.

    python -m benchmarks.layer [--full] [PART ...]

Everything that is compared is timed in turn within one process, on the same inputs; times are medians. Peak memory is
measured in a fresh process for each case, beyond inputs, parameters and gradients. Before a case is timed, the paths of
the layer and the plain implementation are checked to give the same numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measuring, rivals
from benchmarks.measuring import Options, Pass, Work
from mumoe import kernels
from mumoe.coefficients import SparseCoefficients
from mumoe.layers import MuMoE, MuMoEBlock

OURS = ("torch", "native")
SAME = 2e-4
"""Largest difference between paths, relative to the largest output, with which a case is timed."""


@dataclass(frozen=True)
class Case:
    """One layer, its input, and what it is compared with (names of `make`)."""

    part: str
    batch: int
    experts: int
    against: tuple[str, ...]
    factorization: str = "cp"
    rank: int = 512
    inputs: int = 768
    outputs: int = 1000
    gate_init: str = "normal"
    kinds: tuple[str, ...] = ("forward", "both")
    memory: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    seconds: float = 2.0
    """About as long for the times of one kind."""


SIZES = ((256, 128), (256, 1024), (256, 8192), (4096, 8192), (256, 65536))
PACKED = tuple(rivals.PACKAGES)


def quick_cases() -> list[Case]:
    """A look at every comparison, in about a minute."""
    beside = ("floor", "plain", *OURS)
    memory = ("plain", *OURS)
    others = ("linear", "matched", "plain", *OURS, "sparse-moe", *PACKED)
    return [
        Case("sizes", 256, 128, beside, seconds=1),
        Case("sizes", 256, 1024, beside, memory=memory, threads=(1, 2), seconds=1),
        Case("sizes", 256, 8192, beside, memory=memory, seconds=1),
        Case("sizes", 1, 1024, beside, kinds=("forward",), seconds=1),
        Case("others", 256, 128, others, outputs=768, seconds=2),
        Case("dense", 256, 16, (*OURS, "soft", "tensorly"), kinds=("forward",), seconds=1.5),
        *(Case("factorizations", 256, 128, ("floor", *OURS), kind, rank, seconds=0.7) for kind, rank in RANKS.items()),
        Case("block", 8 * 197, 1024, ("mlp", "dense", *OURS), rank=128, inputs=384, outputs=384, seconds=1),
        Case("zero", 256, 1024, ("plain", *OURS), gate_init="zeros", seconds=1),
    ]


RANKS = {"tucker": 64, "tt": 512, "tr": 512}
"""As in the paper's tables."""


def full_cases() -> list[Case]:
    """Every size, one and two threads, enough repeats for a median that stays."""
    both = (1, 2)
    beside = ("floor", "plain", *OURS, "linear", "matched")
    memory = ("plain", *OURS)
    rings = [(kind, rank, batch, n) for kind, rank in RANKS.items() for batch in (256, 4096) for n in (128, 1024)]
    return [
        *(Case("sizes", *size, beside, memory=memory, threads=both, seconds=20) for size in SIZES),
        Case("sizes", 1, 1024, beside, kinds=("forward",), memory=memory, threads=both, seconds=8),
        *(
            Case(
                "others", 256, n, ("linear", "matched", "plain", *OURS, "sparse-moe", *PACKED), outputs=768, seconds=20
            )
            for n in (128, 1024)
        ),
        Case("dense", 256, 16, ("plain", *OURS, "soft", "tensorly", "literal"), seconds=20),
        Case("dense", 256, 128, ("plain", *OURS, "soft", "literal"), seconds=20),
        *(
            Case(
                "factorizations",
                batch,
                n,
                ("floor", *("plain",) * (batch == 256), *OURS),  # at 4,096 the plain layer takes ten seconds and more
                kind,
                rank,
                threads=both,
                seconds=4,
                memory=memory if batch == 256 else OURS,
            )
            for kind, rank, batch, n in rings
        ),
        *(
            Case(
                "block",
                8 * 197,
                n,
                ("mlp", "dense", *OURS),
                rank=128,
                inputs=384,
                outputs=384,
                threads=both,
                seconds=10,
                memory=("mlp", "dense", *OURS),
            )
            for n in (64, 1024, 8192)
        ),
        *(
            Case("zero", 256, n, ("plain", *OURS), gate_init="zeros", seconds=8, memory=memory)
            for n in (128, 1024, 8192)
        ),
    ]


PARTS = tuple(dict.fromkeys(case.part for case in full_cases()))


# What is compared -----------------------------------------------------------------------------------------


def make(case: Case, name: str) -> tuple[nn.Module | rivals.Floor, Tensor]:
    """A rival of a case by its name, and the input; the same weights wherever two compute the same function."""
    torch.manual_seed(0)
    x = torch.randn(case.batch, case.inputs)
    if case.part == "block":
        hidden = 4 * case.inputs
        if name == "mlp":
            return rivals.MLP(case.inputs, hidden), x
        block = MuMoEBlock(case.inputs, hidden, num_experts=case.experts, rank=case.rank)
        block.gate.route = "dense" if name == "dense" else "auto"
        return block, x
    sizes = (case.inputs, case.outputs, case.experts)
    layer = MuMoE(*sizes, case.factorization, case.rank, gate_init=case.gate_init)
    if name in OURS:
        return layer, x
    if name in rivals.PACKAGES:
        return rivals.from_package(name, case.inputs, case.batch, rivals.parameters(layer)), x
    return _MAKERS[name](layer, x), x


_MAKERS: dict[str, Callable[[MuMoE, Tensor], nn.Module | rivals.Floor]] = {
    "floor": rivals.Floor,
    "plain": lambda layer, x: rivals.Plain(layer),
    "literal": lambda layer, x: rivals.Plain(layer, literal=True),
    "linear": lambda layer, x: nn.Linear(layer.in_features, layer.out_features),
    "matched": lambda layer, x: rivals.matched_linear(layer),
    "soft": lambda layer, x: MuMoE(layer.in_features, layer.out_features, layer.num_experts, "dense"),
    "tensorly": lambda layer, x: rivals.Reconstructed(layer),
    "sparse-moe": lambda layer, x: rivals.sparse_moe(layer),
}


def has_native() -> bool:
    """Whether compiled kernels are chosen here."""
    x = torch.zeros(1)
    with measuring.kernels(True):
        return kernels.of(x) is not None


def present(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Those that can be measured here, and why the others cannot."""
    missing = {}
    for name in names:
        if name == "native" and not has_native():
            missing[name] = "the extra native is not installed"
        elif name in rivals.PACKAGES and rivals.installed(name) is None:
            missing[name] = "the extra bench is not installed"
    return [name for name in names if name not in missing], missing


# Times ----------------------------------------------------------------------------------------------------


def time_case(case: Case, threads: int) -> list[dict[str, Any]]:
    """Records of one case on a number of threads, one for each kind of pass; run it in a fresh process."""
    torch.set_num_threads(threads)
    names, missing = present(case.against)
    made = {name: make(case, name) for name in names}
    passes = {name: Pass(module, x) for name, (module, x) in made.items() if isinstance(module, nn.Module)}
    difference = check_same(passes)
    about = {name: getattr(p.module, "about", "") for name, p in passes.items()}
    record = {
        **_described(case),
        "threads": threads,
        "parameters": {name: rivals.parameters(p.module) for name, p in passes.items()},
        "about": {name: text for name, text in about.items() if text},
        "missing": missing,
        "largest_difference": difference,
    }
    rows = []
    for kind in case.kinds:
        works = {name: _work(name, made[name][0], passes.get(name), kind) for name in names}
        seconds = measuring.in_turn(works, case.seconds)
        rows.append({**record, "kind": kind, "support": support(passes["torch"], kind), "seconds": seconds})
    return rows


def _described(case: Case) -> dict[str, Any]:
    left_out = ("against", "kinds", "memory", "threads", "seconds")
    return {key: value for key, value in asdict(case).items() if key not in left_out}


def _work(name: str, rival: nn.Module | rivals.Floor, ready: Pass | None, kind: str) -> Work:
    if isinstance(rival, rivals.Floor):
        return Work(rival.both if kind == "both" else rival.forward)
    assert ready is not None
    return Work(ready.ready(kind), native=name != "torch")


def check_same(passes: dict[str, Pass]) -> float:
    """Largest difference between the layer's paths and the plain one in evaluation, relative to the largest output.

    Raises:
        ArithmeticError: If it is more than `SAME`: then there is nothing to compare.
    """
    outputs = {}
    for name in ("plain", "literal", "tensorly", "dense", *OURS):
        if name in passes:
            with measuring.kernels(name != "torch"):
                outputs[name] = passes[name].ready("forward")()
    reference = outputs.pop("plain", None)
    reference = outputs["torch"] if reference is None else reference
    worst = max(float((y - reference).abs().max() / reference.abs().max()) for y in outputs.values())
    if not worst <= SAME:
        raise ArithmeticError(f"bench: expected equal outputs of {', '.join(outputs)}, got {worst:.2g} apart.")
    return float(f"{worst:.2g}")


@torch.no_grad()
def support(ours: Pass, kind: str) -> float | None:
    """Mean number of experts with a coefficient above zero for a row."""
    module = ours.module.train(kind == "both")
    assert isinstance(module, MuMoE | MuMoEBlock)
    (a,) = module.gate(ours.x)
    count = len(a.indices) if isinstance(a, SparseCoefficients) else int((a.to_dense() > 0).sum())
    return round(count / len(ours.x), 1)


# Memory ---------------------------------------------------------------------------------------------------


def memory_case(case: Case, name: str, kind: str) -> int | None:
    """Peak bytes of a pass of one rival; run it in a fresh process."""
    torch.set_num_threads(1)
    if not present([name])[0]:
        return None
    with measuring.kernels(name != "torch"):
        module, x = make(case, name)
        assert isinstance(module, nn.Module)
        return measuring.peak_bytes(Pass(module, x), kind)


def add_memory(rows: list[dict[str, Any]], cases: list[Case]) -> None:
    """Put the peak memory of each case beside its times on one thread."""
    calls = [(case, name, kind) for case in cases for kind in case.kinds for name in case.memory]
    if not calls or not measuring.measures_memory():
        return
    peaks = measuring.fresh(memory_case, calls, at_once=min(2, len(measuring.cores())))
    for (case, name, kind), peak in zip(calls, peaks, strict=True):
        for row in rows:
            same = all(row[key] == value for key, value in _described(case).items())
            if peak is not None and same and row["kind"] == kind and row["threads"] == 1:
                row.setdefault("peak_bytes", {})[name] = peak


# The command ----------------------------------------------------------------------------------------------


def run(
    cases: list[Case], tell: Callable[[str], None], keep: Callable[[list[dict[str, Any]]], object] = len
) -> list[dict[str, Any]]:
    """All records of some cases; a line for each, and `keep` gets those there are whenever there are more."""
    counts = measuring.thread_counts()
    calls = [(case, threads) for case in cases for threads in case.threads if threads in counts]
    rows: list[dict[str, Any]] = []
    for found in measuring.fresh(time_case, calls):
        rows.extend(found)
        for row in found:
            tell(_line(row))
        keep(rows)
    add_memory(rows, cases)
    return rows


def _line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {found['median'] * 1e3:.3g}" for name, found in row["seconds"].items())
    size = f"{row['factorization']} {row['batch']} x {row['experts']}"
    return f"{row['part']}: {size}, {row['kind']}, {row['threads']} threads, ms: {times}"


def main(asked: Options) -> None:
    """Measure and write the record; with parts on the command line, the other parts stay as they were."""
    cases = full_cases() if asked.full else quick_cases()
    before: list[dict[str, Any]] = []
    if asked.only:
        cases = [case for case in cases if case.part in asked.only]
        before = [row for row in _recorded(asked) if row["part"] not in asked.only]

    def keep(rows: list[dict[str, Any]]) -> None:
        measuring.write("layer", asked, {"rows": sorted(before + rows, key=lambda row: PARTS.index(row["part"]))})

    keep(run(cases, lambda line: print(line, flush=True), keep))


def _recorded(asked: Options) -> list[dict[str, Any]]:
    path = asked.out / "layer.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


if __name__ == "__main__":
    main(measuring.options(__doc__ or "", sys.argv[1:], PARTS))
