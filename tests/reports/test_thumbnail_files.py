"""Thumbnails that an analysis drew: read from its folder alone, and their place is not written into a report."""

from __future__ import annotations

from mumoe.plots.sprites import ImageView
from mumoe.reports.expert_views import _drawn
from mumoe.reports.site import _json


def test_a_grid_names_no_file_elsewhere(tmp_path):
    item = {"image": 3, "label": "cat", "coefficient": 0.5, "thumbnail": "../../../../home/me/private.png"}
    (view,) = _drawn([item], tmp_path / "grid.json")
    assert view.thumbnail == str(tmp_path / "thumbnails" / "3.png")


def test_the_json_of_a_report_does_not_say_where_thumbnails_were(tmp_path):
    found = _json({"images": (ImageView(3, "cat", 0.5, str(tmp_path / "3.png")),), "file": "edits/a.json"})
    assert found == {"images": [{"image": 3, "label": "cat", "coefficient": 0.5}], "file": "edits/a.json"}
