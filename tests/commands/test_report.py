"""`mumoe report` through the command line: what it says, what it refuses, how runs are named."""

import json
import shutil

import pytest

from mumoe.cli import main
from mumoe.reports.gathering import run_names
from reports.made_up_results import made_up_data, write_run
from soak.mounts import read_only


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "mine", made_up_data(60, ["a", "b"]), experts=4)
    shutil.rmtree(folder / "analysis")
    return folder


def test_a_report_is_written_and_says_what_is_missing(run, tmp_path, capsys):
    assert main(["report", str(run), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(f"Make it with: mumoe analyze {run}")
    assert said[-1] == f"Written to {tmp_path / 'out' / 'index.html'}. Open it in a browser."
    assert json.loads((tmp_path / "out" / "report.json").read_text())["made_by"] == "mumoe report"
    assert main(["report", str(run), "-o", str(tmp_path / "out"), "--quiet", "--max-images", "0"]) == 0


def test_paths_of_this_machine_are_written_only_if_asked_for(run, tmp_path, capsys):
    pages = {}
    for name, more in (("short", []), ("full", ["--local-paths"])):
        assert main(["report", str(run), "-o", str(tmp_path / name), "--quiet", *more]) == 0
        paths = [path for path in (tmp_path / name).rglob("*") if path.suffix in (".html", ".json", ".js", ".svg")]
        pages[name] = "".join(path.read_text() for path in paths)
    assert f"mumoe analyze {run.name}" in pages["short"]
    assert str(run.parent) not in pages["short"]
    assert f"mumoe analyze {run}" in pages["full"]


@pytest.mark.parametrize("logged", [0, 1, 2])
def test_a_run_of_few_steps_has_a_page(run, tmp_path, capsys, logged):
    short = tmp_path / "short"
    shutil.copytree(run, short)
    lines = (short / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in lines if "loss" in json.loads(line) and "val_loss" not in json.loads(line)]
    assert len(steps) >= 2
    (short / "metrics.jsonl").write_text("".join(f"{line}\n" for line in steps[:logged]))
    assert main(["report", str(short), "-o", str(tmp_path / "out"), "--quiet", "--max-images", "0"]) == 0
    said = "Fewer than two steps were logged" in (tmp_path / "out" / "index.html").read_text()
    assert said == (logged < 2)
    assert (tmp_path / "out" / "figures" / "curves.svg").exists() == (logged == 2)


def test_a_run_on_a_read_only_disk_says_where_else_to_write(run, tmp_path, capsys):
    with read_only(run):
        assert main(["report", str(run), "--quiet", "--max-images", "0"]) == 1
        said = capsys.readouterr().err
        assert f"report: expected a folder that can be written, got '{run}'" in said
        assert said.endswith("Choose another place to write to.\n")
        assert said.count("\n") == 1
        assert main(["report", str(run), "-o", str(tmp_path / "out"), "--quiet", "--max-images", "0"]) == 0
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "expected RUN (folders of runs, or of several seeds or heads; or one of mumoe decompose), got nothing."),
        (("nothing",), "run: expected the folder of a run, got 'nothing', which does not exist."),
        (("RUN", "--max-images", "-1"), "mumoe report: expected max_images >= 0, got -1. 0 shows none."),
        (("RUN", "-o", "RUN"), "report: expected a new folder or that of an earlier report, got"),
        (("RUN", "--max-image", "3"), "See mumoe report --help."),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, capsys, arguments, text):
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    if "-o" not in given:
        given += ["-o", str(tmp_path / "out")]
    assert main(["report", *given, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("a/many",), ["many"]),
        (("a/many/seed-0", "a/few/seed-0"), ["many/seed-0", "few/seed-0"]),
        (("a/x/run", "b/x/run", "c"), ["a/x/run", "b/x/run", "c"]),
    ],
)
def test_runs_are_named_as_shortly_as_can_be(paths, names):
    assert run_names(paths) == names
