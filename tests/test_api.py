"""Opening runs: one way for every kind, old ones included, from any folder, with one run picked out of a job."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mumoe
from mumoe import cli
from mumoe.errors import JobError, UserError
from mumoe.training import TrainConfig, resume, train
from training.made_up_training import make_data, make_features

OLD = Path(__file__).parent / "fixtures" / "runs"
KINDS = {
    "job/CPMuMoE-r4-e3x2/seed-0": "features:classes.safetensors",
    "job/linear/seed-1": "features:classes.safetensors",
    "attributes": "features:attributes.safetensors",
    "trmumoe": "features:classes.safetensors",
    "sparse": "features:classes.safetensors",
    "highrank": "features:classes.safetensors",
    "given": "folder:images",
    "finetuned": "folder:images",
    "mixer": "folder:images",
    "text": "tokens:tokens",
}


def where(name: str) -> str:
    """The data of an old run, where they are now."""
    kind, _, path = KINDS[name].partition(":")
    return f"{kind}:{OLD / path}"


def given(name: str) -> dict[str, Any]:
    """What an old run needs besides: the objects that were passed to it."""
    if name == "given":
        return {"features": np.load(OLD / "given.npy")}
    if name != "finetuned":
        return {}
    spec = importlib.util.spec_from_file_location("make_old_runs", OLD / "make.py")
    assert spec
    assert spec.loader
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return {"backbone": maker.TinyBackbone()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old runs, so that no test changes them."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("name", KINDS)
def test_an_old_run_opens_and_gives_the_numbers_it_gave(name: str) -> None:
    expected = json.loads((OLD / name / "expected.json").read_text())
    run = mumoe.load(OLD / name, data=where(name), device="cpu", progress=False, **given(name))
    for split in ("val", "test"):
        found = run.evaluate(split)
        assert found.accuracy == expected[split]["accuracy"]
        assert found.loss == pytest.approx(expected[split]["loss"], rel=1e-5)
        assert found.per_class == pytest.approx(expected[split]["per_class"])
        assert found.bits_per_byte == pytest.approx(expected[split]["bits_per_byte"])
    if run.config.mode == "features":
        output = run.head(torch.linspace(-2, 4, 30).reshape(5, 6))
    elif run.config.mode == "text":
        output = run.model(torch.arange(32).reshape(2, 16) * 3 % 250).logits[:, -1, :12]
    else:
        output = run.network(torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16))
    wanted = torch.tensor(expected["logits"])
    assert wanted.std() > 1e-3
    assert torch.allclose(output, wanted, atol=1e-5)


def test_an_old_run_is_resumed_as_it_stands(old: Path, monkeypatch) -> None:
    """Its config lacks settings of today, and run.json a schema."""
    monkeypatch.chdir(old)
    again = resume("attributes", progress=False)
    assert again.runs[0].evaluations["test"].accuracy == pytest.approx(
        json.loads((old / "attributes" / "expected.json").read_text())["test"]["accuracy"]
    )


def test_a_job_opens_as_its_runs_and_the_best_head_is_picked(old: Path) -> None:
    job = mumoe.load(old / "job", data=where("attributes"), device="cpu", progress=False)
    assert isinstance(job, mumoe.Job)
    names = [str(run.path.relative_to(old / "job")) for run in job.runs]
    assert names == ["CPMuMoE-r4-e3x2/seed-0", "CPMuMoE-r4-e3x2/seed-1", "linear/seed-0", "linear/seed-1"]
    mean = {
        head: np.mean(
            [run.facts["result"]["evaluations"]["val"]["accuracy"] for run in job.runs if head in str(run.path)]
        )
        for head in ("CPMuMoE", "linear")
    }
    best = max(mean, key=lambda head: mean[head])
    assert mean["CPMuMoE"] != mean["linear"]
    assert job.best.path.name == "seed-0"
    assert best in str(job.best.path)


def test_a_verb_takes_a_job_and_says_which_run_it_took(old: Path, capsys) -> None:
    data = ["--data", where("job/linear/seed-1"), "--device", "cpu", "--quiet"]
    assert cli.main(["analyze", str(old / "job"), "--resamples", "0", "--images", "0", *data]) == 0
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"mumoe analyze: using {old}/job/CPMuMoE-r4-e3x2/seed-0, the first seed")
    for head in ("CPMuMoE-r4-e3x2", "linear"):
        assert all(f"{head}/seed-{seed}" in told for seed in (0, 1))
    assert (old / "job" / "CPMuMoE-r4-e3x2" / "seed-0" / "analysis" / "analysis.json").is_file()


def test_a_job_of_which_one_run_is_there_is_a_job(old: Path) -> None:
    job = mumoe.load(old / "job" / "linear", progress=False)
    assert [run.path.name for run in job.runs] == ["seed-0", "seed-1"]
    shutil.rmtree(old / "job" / "linear" / "seed-1")
    job = mumoe.load(old / "job" / "linear", progress=False)
    assert isinstance(job, mumoe.Job)
    assert job.best.path == old / "job" / "linear" / "seed-0"
    assert isinstance(mumoe.load(job.best.path, progress=False), mumoe.Run)


def test_every_head_counts_where_no_experts_are_needed(old: Path) -> None:
    """With better results on record, the linear head is picked, but not by a verb that looks at experts."""
    for seed in (0, 1):
        path = old / "job" / "linear" / f"seed-{seed}" / "run.json"
        facts = json.loads(path.read_text())
        facts["result"]["evaluations"]["val"]["accuracy"] = 1.5
        path.write_text(json.dumps(facts))
    job = mumoe.load(old / "job", progress=False)
    assert job.best.path == old / "job" / "linear" / "seed-0"
    from mumoe.api import open_run

    assert open_run(old / "job", experts=True).path == old / "job" / "CPMuMoE-r4-e3x2" / "seed-0"


# Training -------------------------------------------------------------------------------------------------------


def test_a_job_is_trained_and_compared_in_one_call(old: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = where("attributes").replace(str(OLD), str(old))
    settings = {"epochs": 3, "batch_size": 16, "log_every": 1, "device": "cpu", "out": "job"}
    job = mumoe.train(data, "CPMuMoE-r4-e3", against=["linear"], seeds=2, progress=False, **settings)
    frame = job.to_frame()
    assert list(frame["head"] + frame["seed"].astype(str)) == [
        f"{h}{s}" for s in "01" for h in ("CPMuMoE-r4-e3", "linear")
    ]
    for row, run in zip(frame.to_dict("records"), job.result.runs, strict=True):
        assert row["test_accuracy"] == run.evaluations["test"].accuracy
        assert row["parameters"] == run.parameters > 0
        assert Path(row["run"]).is_dir()
    again = mumoe.load("job", device="cpu", progress=False)
    assert sorted(again.result.runs, key=lambda run: (run.seed, run.head)) == list(job.result.runs)
    assert (again.result.accuracy, again.result.comparisons) == (job.result.accuracy, job.result.comparisons)
    assert job.best.path == again.best.path
    accuracy = job.result.accuracy
    assert job.best.config.head == max(accuracy, key=lambda head: accuracy[head]["val"].mean)
    assert job.best.config.seed == 0
    lines = job.plot().axes[0].get_lines()
    assert len(lines) == 6  # four runs and the means of two heads
    mean = np.mean([lines[0].get_ydata(), lines[1].get_ydata()], axis=0)
    assert np.allclose(lines[2].get_ydata(), mean)


def test_one_run_is_a_job_too_and_objects_are_used_as_they_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_data()
    job = mumoe.train(data, "CPMuMoE-r4-e3", features=make_features(data), epochs=2, device="cpu", progress=False)
    assert job.path == Path("runs/made-up-CPMuMoE-r4-e3")
    assert [run.path for run in job.runs] == [job.path] == [job.best.path]
    found = job.best.evaluate("test")
    assert found == job.result.runs[0].evaluations["test"]
    frame = found.to_frame()
    assert list(frame["class"]) == list(data.classes)
    assert list(frame["accuracy"]) == list(found.per_class.values())
    assert frame["count"].sum() == found.count
    assert f"accuracy {found.accuracy:.4f}" in repr(found).splitlines()[0]


def test_an_expert_is_named_and_the_name_is_kept_with_the_run(old: Path) -> None:
    run = mumoe.load(old / "job" / "CPMuMoE-r4-e3x2" / "seed-0", progress=False)
    assert run.notes.rows() == []
    run.name_expert(2, "cat faces", note="Foxes too.")
    found = mumoe.load(run.path, progress=False).name_expert(1, "drawn", level=1)
    assert found == run.notes
    assert (run.notes.of(2).note, run.notes.name(1, 1)) == ("Foxes too.", "drawn")
    with pytest.raises(UserError, match=r"expected an expert in 0\.\.2, got 3"):
        run.name_expert(3, "none")
    with pytest.raises(UserError, match=r"expected a level in 0\.\.1, got 2"):
        run.name_expert(0, "none", level=2)
    linear = mumoe.load(old / "job" / "linear" / "seed-1", progress=False)
    with pytest.raises(UserError, match="expected a run with experts, got the head 'linear'"):
        linear.name_expert(0, "none")


def test_an_unfinished_job_shows_what_is_finished(old: Path) -> None:
    path = old / "job" / "linear" / "seed-1" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "interrupted"}))
    job = mumoe.load(old / "job", progress=False)
    assert len(job.runs) == 4
    assert len(job.to_frame()) == 3
    assert job.result.comparisons == ()  # not the same seeds
    shutil.rmtree(old / "job" / "CPMuMoE-r4-e3x2")
    path.with_name("run.json").rename(path.parent.parent / "seed-0" / "run.json")
    with pytest.raises(JobError, match=r"expected a finished run, got none. Resume with: mumoe train --resume"):
        _ = mumoe.Job(old / "job", {}).result


def test_wrong_settings_name_the_argument() -> None:
    with pytest.raises(UserError, match=r"expected a setting out of .*, got 'epoch'. Did you mean 'epochs'"):
        mumoe.train("emoji", epoch=3)
    with pytest.raises(UserError, match=r"expected against to be a list of strings, got 'linear'"):
        mumoe.train("emoji", against="linear")


# Unknown backbones ----------------------------------------------------------------------------------------------


def test_a_run_whose_backbone_is_unknown_says_so_and_exports_its_head(old: Path, tmp_path: Path, capsys) -> None:
    run = old / "given"
    for verb in (["evaluate", str(run)], ["predict", str(run), str(old / "images")], ["analyze", str(run)]):
        extra = ["--data", f"folder:{old / 'images'}"] if verb[0] != "predict" else []
        assert cli.main([*verb, *extra]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "expected a run that knows its backbone, got one trained on features that were passed in" in error
        assert "others" not in error
    assert cli.main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "head.onnx")]) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "head.onnx")
    x = torch.linspace(-2, 4, 30).reshape(5, 6)
    (logits,) = session.run(None, {"features": x.numpy()})
    expected = json.loads((run / "expected.json").read_text())["logits"]
    assert np.abs(expected).max() > 0.1
    assert np.allclose(logits, expected, atol=1e-4)
    described = json.loads((tmp_path / "head.json").read_text())
    assert (described["input"], described["num_features"]) == ("features", 6)
    assert described["classes"] == ["ant", "bee", "cat"]


def test_a_run_on_a_feature_file_says_so(old: Path, capsys) -> None:
    assert cli.main(["predict", str(old / "trmumoe"), str(old / "images")]) == 2
    assert "got one trained on features of a file (classes.safetensors)" in capsys.readouterr().err
    opened = mumoe.load(old / "trmumoe", progress=False)
    assert opened.transform is None
    assert opened.model is opened.head


def test_features_passed_in_with_their_backbone_are_those_of_a_run_on_images(tmp_path: Path, monkeypatch) -> None:
    """What the demo does; then every verb that needs images works."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "images", tmp_path / "images")
    config = TrainConfig(data="folder:images", backbone="test_efficientnet", pretrained=False, image_size=32)
    config = config.replace(head="CPMuMoE-r4-e3", epochs=2, batch_size=16, out="run", device="cpu")
    from mumoe.models.features import extract_features
    from mumoe.training.inputs import load_backbone, load_images

    data, backbone = load_images(config, progress=False), load_backbone(config)
    features = extract_features(data, backbone, progress=False).x
    trained = train(config, data=data, backbone=backbone, features=features, progress=False)
    run = mumoe.load("run", device="cpu", progress=False)
    assert run.facts["backbone"] == backbone.fingerprint
    assert run.evaluate("test").loss == pytest.approx(trained.runs[0].evaluations["test"].loss)
    (found,) = run.predict(["images/ant/0.png"])
    assert found.likeliest is not None
    from PIL import Image

    with Image.open("images/ant/0.png") as image:
        (same,) = run.predict([image])
    assert same.likeliest.logit == found.likeliest.logit


# Random backbones, moved data, versions ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["features", "finetune"])
def test_a_run_on_a_random_backbone_opens_again_and_from_another_folder(mode, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "images", tmp_path / "images")
    config = TrainConfig(data="folder:images", backbone="test_efficientnet", pretrained=False, image_size=32, mode=mode)
    config = config.replace(head="CPMuMoE-r4-e3", epochs=1, batch_size=16, out="run", device="cpu", cache_dir="cache")
    trained = train(config, progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.manual_seed(123)
    run = mumoe.load("../run", device="cpu", progress=False)
    assert run.evaluate("test").loss == pytest.approx(trained.runs[0].evaluations["test"].loss)
    assert run.data.name == "folder:images"
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="images"):
        mumoe.load("../run", device="cpu", progress=False).evaluate("test")
    moved = mumoe.load("../run", data="folder:../moved", device="cpu", progress=False)
    assert moved.evaluate("test").loss == pytest.approx(trained.runs[0].evaluations["test"].loss)


def test_backbone_seeds_give_backbones_of_their_own() -> None:
    from mumoe.training.inputs import load_backbone

    config = TrainConfig(backbone="test_efficientnet", pretrained=False)
    state = torch.get_rng_state()
    prints = [load_backbone(config.replace(backbone_seed=seed)).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(state, torch.get_rng_state())


def test_other_data_under_the_name_given_are_refused(old: Path) -> None:
    with pytest.raises(UserError, match="expected the data that it was trained on .* got other content"):
        mumoe.load(old / "sparse", data=where("attributes"), progress=False).evaluate("test")


def test_a_run_of_a_later_version_names_the_version_that_reads_it(old: Path, capsys) -> None:
    path = old / "sparse" / "run.json"
    facts = json.loads(path.read_text())
    facts |= {"schema": 99, "versions": {**facts["versions"], "mumoe": "7.1"}}
    path.write_text(json.dumps(facts))
    for verb in ("evaluate", "analyze", "report"):
        assert cli.main([verb, str(old / "sparse")]) == 2
        error = capsys.readouterr().err
        assert "got schema 99, written by mumoe 7.1. Install that version or a later one." in error
        assert error.count("\n") == 1


def test_unknown_keys_are_ignored_with_a_warning(old: Path, caplog) -> None:
    run = old / "sparse"
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "schema": 2, "mood": "good"}))
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(f'flavour = "sweet"\n{text}\n[kitchen]\nsink = 1\n')
    opened = mumoe.load(run, data=where("sparse"), progress=False)
    assert opened.evaluate("test").count == 16
    said = " ".join(caplog.messages)
    assert "ignored the unknown settings flavour, sink of config.toml (written by mumoe 0.1.0.dev0)" in said
    assert "ignored the unknown key mood of run.json" in said


def test_an_old_run_opens_with_a_warning_and_a_new_one_without(old: Path, tmp_path: Path, caplog) -> None:
    mumoe.load(old / "sparse", progress=False)
    assert "opened a run of the earlier schema 1, written by mumoe 0.1.0.dev0" in " ".join(caplog.messages)
    caplog.clear()
    data = make_data()
    config = TrainConfig(data="made-up", head="linear", epochs=1, batch_size=16, out=str(tmp_path / "new"))
    train(config, data=data, features=make_features(data), progress=False)
    mumoe.load(tmp_path / "new", progress=False)
    assert json.loads((tmp_path / "new" / "run.json").read_text())["schema"] == 2
    assert caplog.messages == []


def test_a_damaged_run_is_one_line(old: Path) -> None:
    path = old / "sparse" / "run.json"
    facts = json.loads(path.read_text())
    del facts["classes"]
    path.write_text(json.dumps(facts))
    with pytest.raises(JobError, match=r"got a run\.json without classes"):
        mumoe.load(old / "sparse")


def test_a_device_that_is_not_there_is_a_wrong_call_of_every_verb(old: Path, capsys) -> None:
    run = str(old / "attributes")
    verbs = {
        "evaluate": [run],
        "predict": [run, str(old / "images")],
        "analyze": [run],
        "audit": [run, "--target", "ant"],
        "fairness": [run, "--target", "ant", "--sensitive", "kind"],
        "edit": [run, "--do", "ablate:1"],
        "export": [run, "--to", "onnx"],
        "generate": [str(old / "text")],
        "dashboard": [run, "--no-browser"],
        "train": ["--data", f"folder:{old / 'images'}", "--out", str(old / "new")],
        "sweep": ["--out", str(old / "sweep"), "--set", f'data="folder:{old / "images"}"'],
        "demo": ["--out", str(old / "demo")],
        "convert": ["test_vit", "--experts", "2", "--out", str(old / "converted")],
    }
    for verb, arguments in verbs.items():
        assert cli.main([verb, *arguments, "--device", "cuda:77"]) == 2, verb
        error = capsys.readouterr().err.splitlines()[-1]
        assert "expected a device of this machine (auto, cpu" in error, verb
        assert "got 'cuda:77'" in error, verb


WRONG = {
    "evaluate": ["nope"],
    "predict": ["nope", "x.png"],
    "generate": ["nope"],
    "export": ["nope", "--to", "onnx"],
    "analyze": ["nope"],
    "audit": ["nope"],
    "fairness": ["nope", "--target", "a", "--sensitive", "b"],
    "edit": ["nope", "--do", "ablate:1"],
    "dashboard": ["nope"],
    "train": ["--resume", "nope"],
}


def test_a_run_that_is_not_there_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    """The import is most of the seconds that a wrong call cost."""
    script = (
        "import sys\nfrom mumoe.cli import main\n"
        f"for verb, arguments in {WRONG!r}.items():\n"
        "    assert main([verb, *arguments]) == 2, verb\n"
        "    assert 'torch' not in sys.modules, verb\n"
        "assert main(['train', '--epochs', '0']) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("which does not exist") == len(WRONG)


def evaluated_without_timm(arguments: list[str], folder: Path) -> str:
    script = (
        "import sys\nfrom mumoe.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "assert 'torch' in sys.modules\n"
        "assert 'timm' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_on_cached_features_is_evaluated_without_timm(old: Path) -> None:
    evaluated_without_timm(["evaluate", str(old / "sparse"), "--data", where("sparse"), "--quiet"], old)
    config = TrainConfig(data=f"folder:{old / 'images'}", backbone="test_efficientnet", pretrained=False, image_size=32)
    config = config.replace(head="CPMuMoE-r4-e3", epochs=1, batch_size=16, out=str(old / "new"), device="cpu")
    trained = train(config.replace(cache_dir=str(old / "cache")), progress=False).runs[0].evaluations["test"]
    said = evaluated_without_timm(["evaluate", "new", "--json", "--quiet", "--device", "cpu"], old)
    assert json.loads(said)["loss"] == pytest.approx(trained.loss)
    shutil.rmtree(old / "cache")
    again = mumoe.load(old / "new", device="cpu", progress=False).evaluate("test")
    assert again.loss == pytest.approx(trained.loss)


# Devices and jobs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch) -> None:
    """A machine with another device: torch's meta device, on which nothing is computed."""
    from mumoe import devices

    monkeypatch.setattr(devices, "available", lambda: ["cpu", "meta"])


def test_a_finetuned_run_is_extracted_on_the_device_of_the_call(machine, monkeypatch) -> None:
    from mumoe.models import features
    from mumoe.training import inputs

    asked = {}

    def extract(data, backbone, **options):
        asked.update(options, weights=backbone.conv.weight.device)
        return features.Features(np.zeros((len(data), 6), dtype=np.float32), "", Path("x"))

    monkeypatch.setattr(inputs, "extract_features", extract)
    for name, expected in (("meta", "meta"), ("auto", "meta"), ("cpu", "cpu")):
        run = mumoe.load(OLD / "finetuned", data=where("finetuned"), device=name, progress=False, **given("finetuned"))
        assert run.inputs.features is not None
        assert asked["device"] == asked["weights"] == torch.device(expected)
        assert next(run.head.parameters()).device == torch.device(expected)


def test_a_job_trains_on_the_device_it_names(machine) -> None:
    from mumoe.training.distributed import make_accelerator

    for name in ("meta", "cpu", "meta", "cpu"):
        assert make_accelerator(TrainConfig(device=name)).device == torch.device(name)
    assert make_accelerator(TrainConfig(device="auto")).device == torch.device("meta")


def test_several_processes_have_a_device_each(monkeypatch) -> None:
    from mumoe.training.distributed import make_accelerator

    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="expected a device for each of several processes, got 'cuda:1' for all"):
        make_accelerator(TrainConfig(device="cuda:1"))


@pytest.fixture
def job(old: Path) -> Path:
    """Attributes with two heads of one seed each."""
    shutil.copytree(old / "attributes", old / "both" / "experts" / "seed-0")
    linear = old / "both" / "alinear" / "seed-0"
    shutil.copytree(old / "attributes", linear)
    facts = json.loads((linear / "run.json").read_text())
    facts["head"] = "linear"
    facts["result"]["evaluations"]["val"]["accuracy"] = 2.0
    (linear / "run.json").write_text(json.dumps(facts))
    return old / "both"


VERBS = {
    "audit": ["--target", "ant", "--images", "0", "--min-rows", "2"],
    "fairness": ["--target", "ant", "--sensitive", "kind", "--resamples", "0"],
    "edit": ["--do", "ablate:1"],
    "analyze": ["--images", "0", "--resamples", "0"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_about_experts_skip_a_better_head_without_any(verb, job: Path, capsys) -> None:
    chosen = "alinear" if verb == "fairness" else "experts"
    assert cli.main([verb, str(job), *VERBS[verb], "--data", where("attributes"), "--quiet", "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    why = "best head on validation (2.0000)" if verb == "fairness" else "only head with experts"
    assert f"mumoe {verb}: using {job}/{chosen}/seed-0, the first seed of the {why}." in said
    assert "Runs of this job: alinear/seed-0; experts/seed-0." in said


def test_export_writes_into_the_run_it_took(old: Path, capsys) -> None:
    job = old / "twice"
    for seed in (0, 1):
        shutil.copytree(old / "given", job / f"seed-{seed}")
    assert cli.main(["export", str(job), "--to", "onnx", "--device", "cpu"]) == 0
    assert (job / "seed-0" / "export" / "model.onnx").is_file()
    assert (
        f"mumoe export: using {job}/seed-0, the first seed. Runs of this job: seed-0, seed-1."
        in capsys.readouterr().err
    )


def test_the_dashboard_opens_a_job_too(job: Path, monkeypatch, capsys) -> None:
    opened = []
    monkeypatch.setattr("mumoe.dashboard.server.serve", lambda session, port, ready: opened.append(session))
    assert cli.main(["dashboard", str(job), "--no-browser", "--data", where("attributes"), "--device", "cpu"]) == 0
    session = opened[0](lambda done, total, note: None)
    assert session.folder == job / "experts" / "seed-0"
    assert session.split("val").scores is not None
