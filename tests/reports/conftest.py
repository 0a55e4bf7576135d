"""A trained, analyzed and edited run for the tests of what is shown of it."""

import shutil
import sys
from pathlib import Path

import pytest

from mumoe.analysis import analyzing
from mumoe.reports import site as pages

sys.path.insert(0, str(Path(__file__).parent))

from made_up_report import NAMES, analyzed, audited, edited, named_data, trained
from made_up_results import gathered, made_up_data, write_run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A hierarchy with everything there can be; tests only read it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trained(folder)
    with pytest.MonkeyPatch.context() as changed:  # the analysis' own figures have tests of their own
        changed.setattr(analyzing, "save_figure", lambda *_: None)
        analyzed(folder)
    edited(folder)
    audited(folder)
    return folder


@pytest.fixture(scope="session")
def site(whole, tmp_path_factory):
    """A report and its views: the run above and made-up results whose names look like HTML, sent as a zip.

    Pages are split as those of large runs are, after 8 experts with images and after 10 rows.
    """
    folder = tmp_path_factory.mktemp("site")
    data = made_up_data(200, NAMES, name="<script>alert(2)</script>")
    write_run(folder / "other <i>run", data, experts=12, focused=0.8)
    views = [
        *gathered(whole, named_data(), 3),
        *gathered(folder / "other <i>run", data, 4),
    ]
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(pages, "PER_PAGE", 8)
        changed.setattr(pages, "MOST_ROWS", 10)
        pages.write_pages(views, folder / "out", data={views[0].name: named_data(), views[1].name: data})
    shutil.make_archive(str(folder / "sent"), "zip", folder / "out")
    shutil.rmtree(folder / "out")
    shutil.unpack_archive(folder / "sent.zip", folder / "else where")
    return folder / "else where", views
