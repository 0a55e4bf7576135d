"""Every option of every verb changes what comes out. A new option without a case here fails a test.

`VERBS_CALLED` holds each verb's plain call, and `CASES` another value for each of its options; both calls run, and
what they print and write must differ in more than the value itself. Options that no small call can show are proved
one by one below (`ELSEWHERE`). The few that are left are listed with their reasons (`EXEMPT`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from commands.every_option import (
    Change,
    Outcome,
    call,
    default_of,
    fields_of,
    inside,
    to,
    without_echo,
)
from commands.every_training import PICTURED, TRAIN, TRAINED
from commands.every_world import WORLDS
from mumoe.cli import VERBS, main
from mumoe.errors import JobError

pytestmark = pytest.mark.usefixtures("undrawn")

EXEMPT = {
    "quiet": "shows no progress, which is written to a terminal alone",
    "device": "the same numbers on every device; one machine has one",
}

PEOPLE = {"run": "run", "target": "blond", "sensitive": "male", "resamples": 20, "quiet": True}
EDIT = {**PEOPLE, "value": "1", "out": "edit.json", "max_loss": 0.05}
HAND = {"do": ("ablate:3",), "target": "", "sensitive": "", "value": ""}
ANALYZE = {"run": "run", "resamples": 20, "images": 2, "quiet": True}
SWEEP = {
    "out": "sweep",
    "config": "sweep.toml",
    "heads": ("CPMuMoE-r4",),
    "experts": (4,),
    "gates": ("entmax15",),
    "seeds": 1,
    "quiet": True,
}
STABILITY = {"run": "run", "head": "CPMuMoE-r6-e4x2", "least_lost": 1, "draws": 1, "quiet": True}
SHIFT = {"run": "other", "to": "test", "least_lost": 1, "quiet": True}
CONVERT = {"model": "vit", "experts": (4,), "dry_run": True}
WRITTEN = {"dry_run": False, "output": "out"}

DECOMPOSE = {
    "model": "model",
    "text": "folder:text",
    "out": "out",
    "layer": 1,
    "k": 4,
    "width": 4.0,
    "tokens": 600,
    "context": 17,
    "lr": (4e-3,),
    "batch_size": 64,
    "contexts": 4,
    "precision": "float32",
    "experts_shown": 0,
    "quiet": True,
}

VERBS_CALLED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "fairness": ("attributes", PEOPLE),
    "audit": ("attributes", {"run": "run", "target": "blond", "quiet": True}),
    "edit": ("attributes", EDIT),
    "evaluate": ("attributes", {"run": "run", "quiet": True}),
    "sweep": ("attributes", SWEEP),
    "train": ("training", TRAIN),
    "stability": ("seeds", STABILITY),
    "shift": ("seeds", SHIFT),
    "predict": ("pictures", {"run": "run", "images": ("0.png", "1.png", "2.png")}),
    "analyze": ("pictures", ANALYZE),
    "report": ("pictures", {"runs": ("run",), "max_images": 1, "quiet": True}),
    "export": ("pictures", {"run": "run", "to": "safetensors"}),
    "generate": ("text", {"run": "run", "prompt": "def", "tokens": 12}),
    "decompose": ("language", DECOMPOSE),
    "tokenize": ("text", {"files": ("files",), "out": "tokens", "val": 0.2, "test": 0.2}),
    "convert": ("networks", CONVERT),
    "cost": ("nothing", {"in_features": 64, "out_features": 10, "experts": (8,)}),
}
"""Verb -> the world it works in and its plain call."""

NOWHERE = "features:nowhere.safetensors"
"""Not there, so that a verb which heeds it fails."""
MEASURED = ("run/analysis/analysis.json", "run/analysis/images/grid.json")

CASES: dict[str, dict[str, Change]] = {
    "fairness": {
        "run": to("other"),
        "target": to("smiling"),
        "sensitive": to("sex"),
        "label": to(0, value="1"),
        "value": to("0"),
        "edits": to("edits.json"),
        "split": to("val"),
        "resamples": to(10),
        "seed": to(1),
        "json": Change(True, echo=True),
        "data": to(NOWHERE),
    },
    "audit": {
        "run": to("other"),
        "data": to(NOWHERE),
        "target": to("smiling"),
        "split": to("test"),
        "threshold": to(0.3),
        "pairs": to(False),
        "min_rows": to(30),
        "alpha": to(1e-6),
        "correction": to("holm"),
        "merge": to(0.0),
        "top": to(2),
        "images": to(0),
        "propose": to("proposals"),
        "json": Change(True, echo=True),
    },
    "edit": {
        "run": to("other"),
        "data": to(NOWHERE),
        "target": to("smiling"),
        "sensitive": to("smiling"),
        "value": to("0"),
        "do": to(("ablate:3",), **{**HAND, "do": ("ablate:2",)}),
        "split": to("test", do=("ablate:3",)),
        "label": to(0),
        "strength": to("2"),
        "objective": to("match"),
        "max_loss": to(0.0, run="other", target="male", sensitive="smiling", value="0", max_loss=0.3),
        "reading": to("levels", run="hierarchy", strength="3"),
        "base": to("edits.json"),
        "out": Change("elsewhere.json", echo=True),
        "export": to("head.safetensors"),
        "resamples": to(10),
        "seed": to(1),
    },
    "evaluate": {
        "run": to("other"),
        "data": to(NOWHERE),
        "split": to("val"),
        "json": Change(True, echo=True),
        "classes": to(1),
    },
    "sweep": {
        "out": Change("elsewhere", echo=True),
        "config": to("other.toml"),
        "set": to(("weight_decay=3.0",)),
        "heads": to(("CPMuMoE-r2",)),
        "experts": to((8,)),
        "gates": to(("softmax",)),
        "seeds": to(2),
        "split": to("val"),
        "least_lost": to(1),
        "limit": to(1, seeds=2),
    },
    "train": TRAINED,
    "predict": {
        "run": to("other"),
        "images": to(("1.png",)),
        "top": to(1, run="single"),
        "experts": to(1),
        "threshold": to(1.0),
        "json": Change(True, echo=True),
    },
    "analyze": {
        "run": to("other"),
        "data": to("csv:nowhere.csv"),
        "out": Change("elsewhere", echo=True),
        "split": Change("val", files=(*MEASURED, "run/analysis/neighbours.json")),
        "modes": to(("zero", "mean")),
        "experts": to((1, 2)),
        "images": to(3),
        "threshold": Change(0.05, files=MEASURED),
        "resamples": to(10),
        "seed": Change(1, files=MEASURED),
    },
    "stability": {
        "run": to("other"),
        "data": to(NOWHERE),
        "head": to("CPMuMoE-r6-e8"),
        "split": to("train"),
        "level": to(1),
        "threshold": to(0.95, run="other", level=1),
        "least_lost": to(30),
        "draws": to(2),
        "seed": to(1),
        "out": Change("elsewhere.json", echo=True),
        "json": Change(True, echo=True),
    },
    "shift": {
        "run": to("linear"),
        "to": to("train", before="test"),
        "data": to(NOWHERE),
        "before": to("train"),
        "split": to("val", to="features:shifted.safetensors"),
        "data_options": to(("fractions=[0.2, 0.4, 0.4]",), to="features:unsplit.safetensors"),
        "against": to(("linear",)),
        "images": to(10),
        "level": to(1),
        "least_lost": to(30),
        "seed": to(1),
        "out": Change("elsewhere.json", echo=True),
        "json": Change(True, echo=True),
    },
    "report": {
        "runs": to(("run", "other")),
        "out": Change("elsewhere", echo=True),
        "max_images": to(2),
        "local_paths": Change(True, echo=True),
    },
    "export": {
        "run": to("other"),
        "out": Change("elsewhere", echo=True),
        "images": to(("0.png",)),
        "edits": to("edits.json"),
        "overwrite": to(True, out="saved"),
    },
    "generate": {
        "run": to("other"),
        "data": to("tokens:nowhere"),
        "prompt": Change("value Key", echo=True),
        "tokens": to(6),
        "samples": to(2),
        "temperature": to(0.0),
        "top_k": to(1),
        "seed": to(1),
        "scale": to(("0:0=9", "0:1=-9", "0:2=9")),
    },
    "decompose": {
        "model": to("other"),
        "layer": to(2),
        "kind": to("hadamard", width=8.0),
        "text": to("folder:more"),
        "out": Change("elsewhere", echo=True),
        "tokens": to(1200),
        "width": to(6.0),
        "experts": to("9"),
        "rank": to(7),
        "k": to(3),
        "init": to("random"),
        "lr": to((1e-3,)),
        "most_dead": to(0.0, kind="transcoder", lr=(1e-3, 3e-2)),
        "context": to(9),
        "batch_size": to(32),
        "contexts": to(6),
        "experts_shown": to(2),
        "coefficients": to("a.parquet"),
        "transcoder": to("other-layout", kind="transcoder"),
        "precision": to("bfloat16"),
        "seed": to(1),
    },
    "tokenize": {
        "files": to(("rows.jsonl",)),
        "out": Change("elsewhere", echo=True),
        "tokenizer": to("tokenizer.json"),
        "val": to(0.4),
        "test": to(0.4),
        "column": to("body", files=("rows.jsonl",)),
        "credits": to(("made up",)),
    },
    "convert": {
        "model": to("other"),
        "experts": to((8,)),
        "pattern": to(("blocks.0.mlp",)),
        "preset": to("mixer"),
        "factorization": to("tr"),
        "rank": to("5"),
        "init": to("upcycle"),
        "gate": to("softmax", **WRITTEN),
        "norm": to("layer", **WRITTEN),
        "num_classes": to(3, model="test_vit", pattern=("head",)),
        "output": Change("elsewhere", also=WRITTEN, echo=True),
        "max_shard_size": to("20KB", **WRITTEN),
        "overwrite": to(True, dry_run=False, output="taken"),
        "targets": to(True),
        "dry_run": to(False, output="out"),
        "seed": to(1, **WRITTEN),
    },
    "cost": {
        "in_features": to(32),
        "out_features": to(20),
        "experts": to((8, 2)),
        "ranks": to(("cp=16", "tr=4x6x2")),
        "bias": to(True),
        "gate": to(True),
    },
}


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A world's folder by name, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "world"
            folder.mkdir()
            WORLDS[name](folder)
            made[name] = folder
        return made[name]

    return get


@pytest.fixture(scope="session")
def known() -> dict[Any, Outcome]:
    """Outcomes of calls that several cases compare with."""
    return {}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_case(verb: str) -> None:
    covered = [*CASES.get(verb, ()), *ELSEWHERE.get(verb, ())]
    assert sorted(covered) == sorted(set(fields_of(verb)) - set(EXEMPT)), "give a new option a case, drop an old one's"
    assert all(callable(globals()[name]) for name in ELSEWHERE.get(verb, {}).values())


@pytest.mark.parametrize("verb", VERBS_CALLED)
def test_the_same_call_gives_the_same(verb: str, worlds, known, tmp_path: Path) -> None:
    """Without this a difference would prove nothing."""
    world, options = VERBS_CALLED[verb]
    first = remembered(known, verb, options, tmp_path / "first", worlds(world))
    assert not first.error
    assert first.printed or first.files
    assert call(verb, options, tmp_path / "second", worlds(world)) == first


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, cases in CASES.items() for name in cases])
def test_every_option_changes_what_comes_out(verb: str, name: str, worlds, known, tmp_path: Path) -> None:
    case = CASES[verb][name]
    world, options = VERBS_CALLED[verb]
    options = {**options, **case.also}
    before = options.get(name, default_of(verb, name))
    assert before != case.value, "expected another value than the plain call's"
    plain = remembered(known, verb, options, tmp_path / "plain", worlds(world))
    changed = call(verb, {**options, name: case.value}, tmp_path / "changed", worlds(world))
    assert not (plain.error and changed.error), (plain.error, changed.error)
    if not case.echo:
        plain, changed = (without_echo(outcome, before, case.value) for outcome in (plain, changed))
    assert changed != plain
    for file in case.files:
        assert changed.files[file] != plain.files[file], file


def remembered(known: dict[Any, Outcome], verb: str, options: Mapping[str, Any], place: Path, world: Path) -> Outcome:
    key = (verb, tuple(sorted(options.items())))
    if key not in known:
        known[key] = call(verb, options, place, world)
    return known[key]


# Options that are proved one by one -------------------------------------------------------------------------------

ELSEWHERE: dict[str, dict[str, str]] = {
    "analyze": {
        "batch_size": "test_images_go_through_the_model_in_batches",
        "windows": "test_windows_of_text_that_are_analyzed",
        "ablated_windows": "test_windows_of_text_that_are_analyzed",
        "least_lost": "test_the_least_number_of_lost_answers_of_a_strong_expert",
    },
    "audit": {"out": "test_the_sheet_of_an_audit_goes_where_it_is_asked_for"},
    "convert": {"pretrained": "test_convert_asks_for_published_weights"},
    "dashboard": dict.fromkeys(
        ("run", "data", "port", "split", "browser"), "test_the_dashboard_serves_what_it_is_asked_for"
    ),
    "demo": {
        **dict.fromkeys(("out", "seeds", "least_lost"), "test_the_demo_gets_its_settings"),
        "text": "test_the_demo_of_text_is_another_one",
    },
    "export": {"to": "test_every_format_is_written_by_its_own_writer"},
    "predict": {"batch_size": "test_images_go_through_the_model_in_batches"},
    "train": {
        **dict.fromkeys(("config", "preset"), "test_settings_from_files_and_presets"),
        **dict.fromkeys(("root", "download"), "test_where_and_whether_to_fetch_reaches_the_image_set"),
        "resume": "test_resume_trains_what_is_left",
        "shard": "test_sharding_needs_several_processes",
        **dict.fromkeys(("track", "project", "run_name"), "test_trackers_are_opened"),
        "workers": "test_processes_that_load_images",
    },
}
"""Verb -> option -> the test below that proves it."""


def recorded(target: Any, name: str, monkeypatch: pytest.MonkeyPatch, result: Any = None) -> list[Any]:
    """Replace a function by one that keeps the arguments of its calls and gives `result`."""
    calls: list[Any] = []

    def stand_in(*given: Any, **named: Any) -> Any:
        calls.append((given, named))
        return result

    monkeypatch.setattr(target, name, stand_in)
    return calls


def test_the_least_number_of_lost_answers_of_a_strong_expert(worlds, monkeypatch, tmp_path: Path) -> None:
    """What the study makes of it: `tests/analysis/test_class_effects.py`."""
    from mumoe.analysis import analyzing

    worlds("pictures")  # made before anything is watched
    real, given = analyzing.study_layer, []
    monkeypatch.setattr(
        analyzing, "study_layer", lambda *some, **named: given.append(named["least_lost"]) or real(*some, **named)
    )
    for number, changes in enumerate([{}, {"least_lost": 2}]):
        assert not call("analyze", {**ANALYZE, **changes}, tmp_path / str(number), worlds("pictures")).error
    assert given == [5, 2]


@pytest.mark.parametrize(
    "option", [{"split": "test"}, {"base": "edits.json"}, {"seed": 1}, {"export": "head.safetensors"}]
)
@pytest.mark.parametrize("whom", [{}, HAND], ids=["a subgroup", "all"])
def test_options_of_edits_by_hand(option: dict[str, Any], whom: dict[str, Any], worlds, tmp_path: Path) -> None:
    """`--do` goes its own way through the verb, with and without a subgroup to measure."""
    plain = {**EDIT, "do": ("ablate:3",), **whom}
    before = call("edit", plain, tmp_path / "plain", worlds("attributes"))
    after = call("edit", {**plain, **option}, tmp_path / "changed", worlds("attributes"))
    assert not before.error
    assert not after.error
    differs = without_echo(before, *option.values(), "val", 0) != without_echo(after, *option.values(), "val", 0)
    assert differs == (not (whom and "seed" in option))


@pytest.mark.parametrize(("verb", "dimensions"), [("predict", 4), ("analyze", 2)])
def test_images_go_through_the_model_in_batches(verb: str, dimensions: int, worlds, tmp_path: Path) -> None:
    """The most images (or features) that any module of the network sees at once; the answers are the same."""
    name, options = VERBS_CALLED[verb]
    world = worlds(name)  # made before anything is watched
    options = {**options, "images": 0} if verb == "analyze" else options
    found = {}
    for size in (1, 2):
        seen: list[int] = []

        def note(module: Any, inputs: Any, seen: list[int] = seen) -> None:
            seen.extend(len(x) for x in inputs[:1] if isinstance(x, torch.Tensor) and x.dim() == dimensions)

        handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
        try:
            found[size] = call(verb, {**options, "batch_size": size}, tmp_path / str(size), world)
        finally:
            handle.remove()
        assert max(seen) == size
    assert found[1].printed == found[2].printed


def test_windows_of_text_that_are_analyzed(worlds, tmp_path: Path) -> None:
    plain = {"run": "run", "windows": 8, "ablated_windows": 4, "quiet": True}
    outcomes = [
        call("analyze", {**plain, **changes}, tmp_path / str(number), worlds("text"))
        for number, changes in enumerate([{}, {"windows": 9}, {"ablated_windows": 8}])
    ]
    first, windows, ablated = outcomes
    assert " on 192 tokens" in first.printed
    assert " on 216 tokens" in windows.printed
    assert without_echo(ablated, 4, 8) != without_echo(first, 4, 8)


def test_the_sheet_of_an_audit_goes_where_it_is_asked_for(worlds, tmp_path: Path) -> None:
    plain = {"run": "run", "target": "round", "split": "train", "min_rows": 2, "images": 1, "quiet": True}
    plain |= {"threshold": 0.3}
    default = call("audit", plain, tmp_path / "a", worlds("pictures"))
    elsewhere = call("audit", {**plain, "out": "sheets"}, tmp_path / "b", worlds("pictures"))
    assert all(name.startswith("run/audit/round-train/") for name in default.files)
    assert all(name.startswith("sheets/") for name in elsewhere.files)
    assert default.files["run/audit/round-train/findings.json"] == elsewhere.files["sheets/findings.json"]
    findings = json.loads(elsewhere.files["sheets/findings.json"])["findings"]
    assert findings
    for found in findings:
        assert found["wrong_total"] + found["right_total"] == found["finding"]["rows"]


def test_texts_are_of_one_seed_after_another(worlds, tmp_path: Path) -> None:
    plain = VERBS_CALLED["generate"][1]
    both, first, second = (
        call("generate", {**plain, **changes}, tmp_path / str(number), worlds("text")).printed
        for number, changes in enumerate([{"samples": 2, "seed": 3}, {"seed": 3}, {"seed": 4}])
    )
    assert first != second
    assert both == f"{first}---\n{second}"


def test_a_bias_costs_parameters_and_a_gate_operations_too(worlds, tmp_path: Path) -> None:
    def counts(**changes: bool) -> list[tuple[int, int]]:
        """Parameters and operations of each layer."""
        options = {**VERBS_CALLED["cost"][1], **changes}
        printed = call("cost", options, tmp_path / "-".join(["x", *changes]), worlds("nothing")).printed
        rows = [line.replace(",", "").split() for line in printed.splitlines()[1:7]]
        return [(int(row[2]), int(row[3])) for row in rows]

    plain = counts()
    assert all(more[0] > less[0] and more[1] >= less[1] for less, more in zip(plain, counts(bias=True), strict=True))
    assert all(more[0] > less[0] and more[1] > less[1] for less, more in zip(plain, counts(gate=True), strict=True))


def test_convert_asks_for_published_weights(monkeypatch) -> None:
    import timm

    asked: list[Any] = []
    real = timm.create_model

    def made(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append(pretrained)
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", made)
    for wanted in (True, False):
        arguments = [
            "convert",
            "test_vit",
            "--experts",
            "2",
            "--dry-run",
            "--pretrained" if wanted else "--no-pretrained",
        ]
        assert main(arguments) == 0
    assert asked == [True, False]


def test_the_dashboard_serves_what_it_is_asked_for(worlds, monkeypatch, tmp_path: Path) -> None:
    import webbrowser

    from mumoe.dashboard import server

    opened: list[Any] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url))

    class Served:
        url = "http://127.0.0.1:1/"

    served: list[tuple[Any, ...]] = []

    def serve(work: Any, port: int, ready: Any) -> None:
        session = work(lambda *given: None)
        served.append((session.folder.name, port, *session.splits))
        ready(Served())

    monkeypatch.setattr(server, "serve", serve)
    for changes in ({}, {"run": "other"}, {"port": 4321}, {"split": "test"}, {"browser": False}):
        call("dashboard", {"run": "run", **changes}, tmp_path / str(len(served)), worlds("pictures"))
    assert call("dashboard", {"run": "run", "data": "csv:nowhere.csv"}, tmp_path / "none", worlds("pictures")).error
    assert served == [
        ("run", 0, "val"),
        ("other", 0, "val"),
        ("run", 4321, "val"),
        ("run", 0, "test"),
        ("run", 0, "val"),
    ]
    assert len(opened) == 4


def test_the_demo_gets_its_settings(monkeypatch) -> None:
    """What the recipe makes of them: `tests/demo/test_demo_job.py`."""
    from mumoe.demo import demo_job as demo

    calls = recorded(demo, "run_demo", monkeypatch, SimpleNamespace(lines=lambda: ["a line"]))
    for arguments in ([], ["--out", "elsewhere"], ["--seeds", "2"], ["--least-lost", "3"]):
        assert main(["demo", *arguments]) == 0
    assert [(given[0], named["settings"].seeds, named["settings"].least_lost) for given, named in calls] == [
        ("runs/demo", 3, 5),
        ("elsewhere", 3, 5),
        ("runs/demo", 2, 5),
        ("runs/demo", 3, 3),
    ]


def test_the_demo_of_text_is_another_one(monkeypatch, capsys) -> None:
    from mumoe.demo import text_demo

    calls = recorded(text_demo, "run_text_demo", monkeypatch, ["a line"])
    for arguments in (["--text"], ["--text", "--out", "elsewhere"]):
        assert main(["demo", *arguments]) == 0
    assert [given[0] for given, _ in calls] == ["runs/demo-text", "elsewhere"]
    assert capsys.readouterr().out == "a line\n" * 2


def test_every_format_is_written_by_its_own_writer(worlds, monkeypatch, tmp_path: Path) -> None:
    """What each writes: `tests/commands/test_export.py`."""
    from mumoe.deploy import formats

    def stop(subject: Any, path: Path, name: str) -> Any:
        raise JobError(f"written as {name}")

    writers = {name: functools.partial(stop, name=name) for name in formats._WRITERS}
    assert sorted(writers) == ["onnx", "safetensors", "torch-export"]
    monkeypatch.setattr(formats, "_WRITERS", writers)
    for to_format in writers:
        called = call("export", {"run": "run", "to": to_format}, tmp_path / to_format, worlds("pictures"))
        assert called.error == f"JobError: written as {to_format}"


def test_settings_from_files_and_presets(worlds, tmp_path: Path) -> None:
    from mumoe.commands.train import default

    plain = {name: value for name, value in TRAIN.items() if name != "lr"}
    files = []
    for number, arguments in enumerate(([], ["--config", "settings.toml"], ["--preset", "paper"])):
        with inside(worlds("training")):
            settings = {**dataclasses.asdict(default(arguments)), "mode": "features", "backbone": "", **plain}
        files.append(call("train", settings, tmp_path / str(number), worlds("training")).files)
    results = [found["out/run.json"] for found in files]
    assert len(set(results)) == 3
    assert "lr = 0.5" in files[1]["out/config.toml"]
    assert "clip = 1.0" in files[2]["out/config.toml"]


@pytest.mark.parametrize(("name", "value"), [("root", "DATA"), ("download", True)])
def test_where_and_whether_to_fetch_reaches_the_image_set(name: str, value: Any, worlds, monkeypatch, tmp_path) -> None:
    """What a set makes of it: `tests/data/test_official.py`."""
    import mumoe.data
    from mumoe.data import load_data

    asked: list[Any] = []

    def load(data: str, **options: Any) -> Any:
        asked.append(options.get(name))
        return load_data(data, **options)

    monkeypatch.setattr(mumoe.data, "load_data", load, raising=False)
    for number, changes in enumerate(({}, {name: value})):
        call("train", {**TRAIN, **PICTURED, **changes}, tmp_path / str(number), worlds("training"))
    assert asked[0] in (None, False)
    assert asked[-1] == value


def test_resume_trains_what_is_left(worlds, tmp_path: Path) -> None:
    from mumoe.commands.train import Options
    from mumoe.training.config import to_toml

    started = tmp_path / "world" / "started"
    started.mkdir(parents=True)
    features = worlds("training") / "single.safetensors"
    settings = {**TRAIN, "data": f"features:{features}", "out": ""}
    (started / "config.toml").write_text(to_toml(Options(**settings).replace()))
    files = call("train", {"resume": "started", "quiet": True}, tmp_path / "place", tmp_path / "world").files
    assert "started/run.json" in files


def test_sharding_needs_several_processes(monkeypatch) -> None:
    """What it does then: `tests/training/test_distributed.py`."""
    from mumoe.training import TrainConfig, distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert [distributed.wants_shard(TrainConfig(shard=wanted)) for wanted in (False, True)] == [False, True]


def test_trackers_are_opened(worlds, monkeypatch, tmp_path: Path) -> None:
    import sys
    import types
    from importlib.machinery import ModuleSpec

    begun: list[Any] = []
    module = types.ModuleType("trackio")
    module.__spec__ = ModuleSpec("trackio", None)  # Accelerate looks for it
    run = types.SimpleNamespace(name="single-2", log=lambda *given, **named: None, finish=lambda: None)
    module.init = lambda *given, **named: begun.append(named) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    for number, track in enumerate(((), ("trackio",))):
        options = {**TRAIN, "track": track, "project": "birds", "run_name": "first"}
        outcome = call("train", options, tmp_path / str(number), worlds("training"))
        assert not outcome.error
        assert [(made["project"], made["name"]) for made in begun] == [("birds", "first")] * number


def test_processes_that_load_images(worlds, monkeypatch, tmp_path: Path) -> None:
    """Images are decoded by so many processes; here none is started, to stay quick."""
    from torch.utils.data import DataLoader

    asked: list[int] = []
    real = DataLoader.__init__

    def made(self: Any, *given: Any, num_workers: int = 0, **options: Any) -> None:
        asked.append(num_workers)
        options.pop("persistent_workers", None), options.pop("prefetch_factor", None)
        real(self, *given, **{**options, "multiprocessing_context": None})

    monkeypatch.setattr(DataLoader, "__init__", made)
    for mode in ("features", "finetune"):
        asked.clear()
        place = tmp_path / mode
        call("train", {**TRAIN, **PICTURED, "mode": mode, "workers": 2}, place, worlds("training"))
        assert set(asked) == {2}
