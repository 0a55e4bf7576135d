"""A trained, analyzed and edited run for the tests of what is shown of it."""

import shutil
import sys
from pathlib import Path

import pytest

from mumoe.reports.gather import gather
from mumoe.reports.site import write_report

sys.path.insert(0, str(Path(__file__).parent))

from made_up_report import NAMES, analyzed, edited, named_data, trained
from made_up_results import made_up_data, write_run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A hierarchy with everything there can be; tests only read it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trained(folder)
    analyzed(folder)
    edited(folder)
    return folder


@pytest.fixture(scope="session")
def site(whole, tmp_path_factory):
    """A report and its views: the run above and made-up results whose names look like HTML, sent as a zip."""
    folder = tmp_path_factory.mktemp("site")
    data = made_up_data(800, NAMES, name="<script>alert(2)</script>")
    write_run(folder / "other <i>run", data, experts=60, focused=0.8)
    views = [
        *gather(whole, data=named_data(), most_images=3),
        *gather(folder / "other <i>run", data=data, most_images=4),
    ]
    write_report(views, folder / "out", data={views[0].name: named_data(), views[1].name: data})
    shutil.make_archive(str(folder / "sent"), "zip", folder / "out")
    shutil.rmtree(folder / "out")
    shutil.unpack_archive(folder / "sent.zip", folder / "else where")
    return folder / "else where", views
