"""The command line: help is quick, an error is one line with the nearest right word and the right status."""

import re
import subprocess
import sys

import pytest

from mumoe import cli
from mumoe.errors import JobError

COST = ("cost", "--in-features", "8", "--out-features", "4")


def call(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_names_every_verb_and_imports_no_torch():
    code = "import sys; from mumoe import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in cli.VERBS:
        assert f"  {verb} " in run.stdout


def test_help_of_a_verb_does_not_wait_for_torch():
    code = "import sys; from mumoe import cli; [cli.main([verb, '--help']) for verb in cli.VERBS]; "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_every_verb_has_help(capsys):
    for verb in cli.VERBS:
        status, out, _ = call(capsys, verb, "--help")
        assert status == 0
        assert f"mumoe {verb}" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cots"], "mumoe: expected a verb out of"),
        (["cots"], "Did you mean 'cost'?"),
        ([*COST, "--expert", "8"], "--experts"),
        (["cost", "--in-features", "eight", "--out-features", "4", "--experts", "8"], "--in-features"),
        ([*COST], "--experts"),
        (["train", "--mode", "feature"], "Did you mean 'features'?"),
        (["train", "--data", "emojy"], "Did you mean 'emoji'?"),
        (["train", "--data-options", "splitby=image"], "got 'splitby'. Did you mean 'split_by'?"),
        (
            [*COST, "--experts", "8", "--ranks", "cp=0"],
            "expected rank as an int >= 1, got 0",
        ),
        (
            [*COST, "--experts", "0"],
            "expected --experts >= 1 for each level, got 0",
        ),
        (["cost", "--in-features", "0", "--out-features", "4", "--experts", "8"], "expected --in-features >= 1, got 0"),
        (
            ["cost", "--in-features", "8", "--out-features", "-4", "--experts", "8"],
            "expected --out-features >= 1, got -4",
        ),
        (
            [*COST, "--experts", "8", "--ranks", "cp"],
            "expected --ranks as NAME=RANK",
        ),
        (
            [*COST, "--experts", "8", "--ranks", "tr=3x4"],
            "expected one rank or 3 (in order",
        ),
        (
            [*COST, "--experts", "8", "--ranks", "ct=3"],
            "out of cp, dense",
        ),
        (
            [*COST, "--experts", "8", "--gates"],
            "got --gates. Did you mean '--gate'?",
        ),
        (
            [*COST, "--expert", "8"],
            "got --expert 8. Did you mean '--experts'?",
        ),
        (["evaluate", "one", "two"], "mumoe evaluate: expected known options, got two. See mumoe evaluate --help."),
        (["export", "one", "--to", "onx"], "Did you mean 'onnx'?"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(capsys, arguments, expected):
    status, out, err = call(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err


def test_what_is_missing_is_named_once(capsys):
    status, _, err = call(capsys, "evaluate")
    assert (status, err) == (
        2,
        "mumoe evaluate: expected RUN (folder of the run, or of the job that holds it), got nothing. "
        "See mumoe evaluate --help.\n",
    )
    assert call(capsys, "cost", "--in-features", "8")[2] == (
        "mumoe cost: expected --out-features (Width of the output) and "
        "--experts (Number of experts, one for each level), got nothing. See mumoe cost --help.\n"
    )


@pytest.mark.parametrize("verb", cli.VERBS)
def test_positional_arguments_have_names(capsys, verb):
    _, out, _ = call(capsys, verb, "--help")
    assert "usage:" in out
    assert not re.search(r"^[│|] +\[?(STR|INT)\b", out, re.MULTILINE)


TABLE_1 = ("cost", "--in-features", "768", "--out-features", "1000", "--experts", "512")


def test_cost_prints_table_1(capsys):
    status, out, _ = call(capsys, *TABLE_1)
    assert status == 0
    cells = {line.split()[0]: line.split() for line in out.splitlines()}
    assert cells["dense"][3] == "393,216,000"
    assert cells["cp"][3] == "1,167,360"
    assert cells["tucker"][3] == "2,405,376"
    assert cells["tr"][3] == "3,637,248"
    _, out, _ = call(
        capsys,
        "cost",
        "--in-features",
        "768",
        "--out-features",
        "1000",
        "--experts",
        "512",
        "--ranks",
        "cp=7",
        "tr=4x512x4",
    )
    cells = {line.split()[0]: line.split() for line in out.splitlines()}
    assert cells["tr"][1:4] == ["4x512x4", "2,637,440", "2,645,632"]  # the large bond where Table 1 has it
    assert cells["cp"][1] == "7"
    assert cells["hadamard"][1:4] == ["-", "1,280,000", "1,280,000"]


def test_statuses_of_failures(capsys, monkeypatch):
    from mumoe.commands import cost

    def fail(error):
        def run(options):
            raise error

        monkeypatch.setattr(cost, "run", run)
        return call(capsys, *COST, "--experts", "8")

    assert fail(JobError("train: it\nbroke."))[::2] == (1, "train: it broke.\n")
    named = JobError("Run.cost: expected less. Lower `experts`, or set `in_features=1` and `bias=True`, or `spoon`.")
    flags = "mumoe cost: expected less. Lower --experts, or set --in-features 1 and --bias, or spoon.\n"
    assert fail(named)[::2] == (1, flags)
    assert fail(KeyboardInterrupt())[0] == 130
    assert fail(ZeroDivisionError("oops"))[::2] == (1, "mumoe: ZeroDivisionError: oops (--debug shows where)\n")
    with pytest.raises(ZeroDivisionError):
        cli.main([*COST, "--experts", "8", "--debug"])


def test_version(capsys):
    from mumoe import __version__

    assert call(capsys, "--version") == (0, f"mumoe {__version__}\n", "")
