"""`mumoe report` through the command line: what it says, what it refuses, how runs are named."""

import json
import shutil

import pytest

from mumoe.cli import main
from mumoe.commands.report import run_names
from reports.made_up_results import made_up_data, write_run


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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "mumoe report: expected the folder of a run, got none. Name one or several."),
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
