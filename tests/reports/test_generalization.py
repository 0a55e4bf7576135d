"""The page on other seeds and data: what `stability` and `shift` measured, with their controls."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import mumoe
from mumoe.reports.generalization import read_stability

sys.path.insert(0, str(Path(__file__).parents[1] / "commands"))

from made_up_analysis import make_data, make_features


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Two seeds of two heads on a file of features."""
    folder = tmp_path_factory.mktemp("generalization")
    data = make_data(400)
    np.save(folder / "x.npy", make_features(data))
    np.save(folder / "labels.npy", data.labels)
    np.save(folder / "split.npy", data.split)
    return mumoe.train(
        data=f"features:{folder / 'x.npy'}",
        head="CPMuMoE-r6-e12",
        against=["linear"],
        seeds=2,
        epochs=20,
        batch_size=30,
        lr=0.02,
        out=str(folder / "job"),
        progress=False,
    )


def test_what_was_not_measured_is_named_with_its_command(job, tmp_path):
    written = job.report(tmp_path / "before")
    rows = [row for row in written.rows() if "stability" in row["command"]]
    assert [row["command"] for row in rows] == [f"mumoe stability {job.path} --spec CPMuMoE-r6-e12"]
    assert not list((tmp_path / "before").glob("*linear*/generalization.html"))


def test_numbers_of_the_page_are_those_of_the_records(job, tmp_path):
    stability, shift = job.stability(least_lost=2, draws=2), job.shift("test", least_lost=2)
    written = job.report(tmp_path / "after")
    assert not any("stability" in row["command"] for row in written.rows())
    (page,) = (path for path in (tmp_path / "after").glob("*/generalization.html") if "linear" not in str(path.parent))
    text = page.read_text()
    numbers = json.loads((page.parent / "data" / "generalization.json").read_text())
    assert {"schema_version": 1, **numbers["stability"]} == json.loads(stability.to_json())
    assert stability.headline() in text
    assert shift.headline().replace("->", "-&gt;") in text
    shown = re.search(r"Pairs of seeds.*?</table>", text, re.S)[0]
    (pair,) = stability.pairs
    for name in ("share", "same_class", "similarity", "similarity_all"):
        for part in ("agreement", "control"):
            value = getattr(getattr(pair, part), name)
            at = f'data-at="stability.pairs.0.{part}.{name}"'
            assert value is None or f'<data value="{value}" {at}>{value:.3f}</data>' in shown
    linear = re.search(r'<tr><th scope="row">linear</th>.*?</tr>', text, re.S)[0]
    before = np.mean([run.before.accuracy for run in shift.runs if run.head == "linear"])
    assert f">{before:.3f}</data>" in linear
    for name in re.findall(r'(?:srcset|src)="([^"]+)"', text):
        assert (page.parent / name).is_file(), name


def test_the_file_of_another_head_is_not_taken(job):
    from mumoe.reports.views import HeadFacts

    job.stability(least_lost=2, draws=1)
    runs = [run._stored for run in job.runs if run.config.head != "linear"]
    head = HeadFacts("CPMuMoE-r7-e12", "cp", (12,), "entmax15", "batch", "final", 10, 6)
    found, missing = read_stability(str(job.path), runs, head)
    assert found is None
    assert missing[0].part == "stability"
