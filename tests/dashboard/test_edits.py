"""Edits made on a page are those of `mumoe edit`: the same numbers, and files that either reads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from dashboard.made_up_run import CLASSES, STUDIOS
from dashboard.talking import get, post, refused, request
from mumoe import cli
from mumoe.editing.edit_files import load_edits, read_edit_file

WHO = {"head": "round", "sensitive": "studio", "value": "<i>inked</i>", "label": 1}
ABLATION = {"name": "ablate-1", "kind": "ablate", "expert": 9, "level": 0, "strength": 1}
SCALING = {"name": "scale-1", "kind": "scale", "expert": 7, "factor": -1.5, "level": 0, "strength": 1}
BY_HAND = ("ablate:9", "scale:7=-1.5")


@pytest.fixture(autouse=True)
def _no_files(run):
    yield
    for path in (run / "edits").glob("*"):
        path.unlink()


def call(*arguments) -> None:
    assert cli.main([*map(str, arguments), "--quiet"]) == 0


def flags(subgroup) -> list[str]:
    """A subgroup on the command line."""
    return [f"--{'target' if name == 'head' else name}={value}" for name, value in subgroup.items()]


def done(running, **given):
    """The result of a rewriting."""
    number = post(running, "/api/rewrite", **given)["job"]
    while (job := get(running, "/api/job", number=number))["state"] == "running":
        pass
    return job


def flat(report):
    """Every number of a fairness report by name."""
    groups = {str(group["subgroup"]): group["accuracy"]["value"] for group in report["subgroups"]}
    return {name: value["value"] for name, value in report["metrics"].items()} | groups


def test_numbers_are_those_of_mumoe_edit_by_hand(running, run, tmp_path, capsys):
    call("edit", run, "--do", *BY_HAND, "--out", tmp_path / "hand.json")
    facts = read_edit_file(tmp_path / "hand.json").provenance
    found = post(running, "/api/compare", split="val", edits=[ABLATION, SCALING])
    before, after = facts["metrics_before"], facts["metrics_after"]
    assert found["accuracy"] == pytest.approx([before["accuracy"], after["accuracy"]], abs=1e-12)
    assert found["accuracy"][0] != found["accuracy"][1]
    assert found["classes"]["after"] == pytest.approx(list(after["classes"].values()), abs=1e-12)
    assert found["images"] == after["images"]
    said = capsys.readouterr().out
    assert f"{found['mended']} answers corrected, {found['broken']} newly wrong" in said


@pytest.mark.parametrize("split", ["val", "test"])
def test_numbers_are_those_of_mumoe_fairness(running, run, tmp_path, capsys, split):
    call("edit", run, "--do", *BY_HAND, "--out", tmp_path / "hand.json")
    capsys.readouterr()
    who = flags({name: WHO[name] for name in ("head", "sensitive", "value")})
    call("fairness", run, *who, "--edits", tmp_path / "hand.json", "--split", split, "--json", "--resamples", 200)
    expected = json.loads(capsys.readouterr().out)["+ edits"]
    given = {"split": split, "edits": [ABLATION, SCALING], "subgroup": WHO}
    quick = post(running, "/api/compare", **given)["fairness"]["after"]
    assert flat(quick) == pytest.approx(flat(expected), abs=1e-12)
    slow = post(running, "/api/compare", resamples=200, **given)["fairness"]["after"]
    assert slow["metrics"] == expected["metrics"]
    assert slow["subgroups"] == expected["subgroups"]


@pytest.mark.parametrize(
    "subgroup",
    [
        WHO,
        {"head": CLASSES[0], "sensitive": "studio", "value": STUDIOS[0], "label": 0},
        {"head": CLASSES[1], "sensitive": "studio", "value": STUDIOS[0], "label": 1},
    ],
    ids=["nothing to gain", "lowered", "raised"],
)
def test_a_rewriting_is_the_one_of_mumoe_edit(running, run, tmp_path, capsys, subgroup):
    who = flags(subgroup)
    call("edit", run, *who, "--out", tmp_path / "edit.json")
    stored = read_edit_file(tmp_path / "edit.json")
    job = done(running, subgroup=subgroup, edits=[], strength="auto")
    entry = job["result"]["entry"]
    assert (abs(entry["strength"]) > 1) == (subgroup is not WHO)
    assert entry["strength"] == pytest.approx(stored.edits["rewrite-1"].strength, rel=1e-5)
    assert job["result"]["images"] == stored.provenance["subgroup"]["training_images"]
    named = {**entry, "name": "rewrite-1"}
    found = post(running, "/api/compare", split="test", edits=[named], subgroup=subgroup)["fairness"]["after"]
    assert flat(found) == pytest.approx(flat(stored.provenance["metrics_after"]), abs=1e-6)
    post(running, "/api/save", name="mine", edits=[named], split="test", subgroup=subgroup)
    mine = read_edit_file(run / "edits" / "mine.json")
    assert mine.edits["rewrite-1"].factors == stored.edits["rewrite-1"].factors
    assert flat(mine.provenance["metrics_after"]) == pytest.approx(flat(stored.provenance["metrics_after"]), abs=1e-6)


def test_the_papers_rewriting_and_a_subgroup_that_is_not_there(running):
    job = done(running, subgroup=WHO, edits=[], strength="paper")
    assert job["result"]["entry"]["strength"] == 12
    lowered = done(running, subgroup={**WHO, "label": 0}, edits=[ABLATION], strength="paper")
    assert lowered["result"]["entry"]["strength"] == -12
    assert "expected `value` out of" in done(running, subgroup={**WHO, "value": "x"})["error"]


def test_a_saved_file_is_read_by_mumoe_edit_and_by_the_page(running, run, session, tmp_path, capsys):
    path = post(running, "/api/save", name="hand", edits=[ABLATION, SCALING], split="val")["path"]
    assert path == str(run / "edits" / "hand.json")
    stack = load_edits(path, session.run.layer)
    assert list(stack.edits) == ["ablate-1", "scale-1"]
    call("edit", run, "--base", path, "--do", "ablate:1", "--out", tmp_path / "more.json")
    assert list(read_edit_file(tmp_path / "more.json").edits) == ["ablate-1", "scale-1", "ablate-2"]
    loaded = post(running, "/api/load", name="hand")["entries"]
    given = {"split": "val", "subgroup": WHO}
    assert post(running, "/api/compare", edits=loaded, **given) == post(
        running, "/api/compare", edits=[ABLATION, SCALING], **given
    )
    listed = get(running, "/api/edits")
    assert [(item["name"], item["fits"]) for item in listed] == [("hand", True)]


def test_a_file_of_mumoe_edit_is_loaded(running, run, capsys):
    call("edit", run, "--do", "swap:4=9", "set-output:5:round=2")
    (entry,) = get(running, "/api/edits")
    loaded = post(running, "/api/load", name=entry["name"])["entries"]
    assert [item["kind"] for item in loaded] == ["swap", "set-output"]
    assert post(running, "/api/compare", edits=loaded)["edits"][0] == "swap experts 4 and 9 of level 0"


def test_existing_files_are_kept_unless_they_are_to_be_replaced(running, run):
    first = post(running, "/api/save", name="hand", edits=[ABLATION])["version"]
    assert "which exists" in refused(running, "/api/save", name="hand", edits=[SCALING])
    assert post(running, "/api/load", name="hand")["version"] == first
    second = post(running, "/api/save", name="hand", edits=[SCALING], replace=first)["version"]
    assert second != first
    assert list(read_edit_file(run / "edits" / "hand.json").edits) == ["scale-1"]


def test_a_file_that_was_changed_elsewhere_is_not_replaced(running, run):
    first = post(running, "/api/save", name="hand", edits=[ABLATION])["version"]
    post(running, "/api/save", name="hand", edits=[ABLATION, SCALING], replace=first)
    said = refused(running, "/api/save", name="hand", edits=[SCALING], replace=first)
    assert "got one that was changed elsewhere. Load it again" in said
    assert list(read_edit_file(run / "edits" / "hand.json").edits) == ["ablate-1", "scale-1"]
    (run / "edits" / "hand.json").unlink()
    assert "was deleted elsewhere" in refused(running, "/api/save", name="hand", edits=[SCALING], replace=first)


def test_of_many_clients_that_save_a_name_at_once_one_is_accepted(running, run):
    edits = [{**ABLATION, "name": f"of-{n}"} for n in range(8)]
    bodies = [json.dumps({"name": "race", "edits": [edit]}).encode() for edit in edits]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: request(running, "POST", "/api/save", body), bodies))
    assert sorted(status for status, _, _ in answers) == [200] + [400] * 7
    accepted = next(n for n, answer in enumerate(answers) if answer[0] == 200)
    assert list(read_edit_file(run / "edits" / "race.json").edits) == [f"of-{accepted}"]


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", "..", ".hidden", "", "a\\b", "x" * 90, "a\0b", "a.json", "/etc/x", "é"]
)
def test_names_that_are_paths_are_refused(running, run, name):
    before = sorted(path.name for path in run.parent.iterdir())
    assert "expected a name of letters" in refused(running, "/api/save", name=name, edits=[ABLATION])
    assert "expected a file of edits" in refused(running, "/api/load", name=name)
    assert sorted(path.name for path in run.parent.iterdir()) == before


def test_links_out_of_the_run_are_neither_read_nor_written(running, run, tmp_path):
    outside = tmp_path / "outside.json"
    post(running, "/api/save", name="hand", edits=[ABLATION])
    (run / "edits" / "hand.json").rename(outside)
    (run / "edits" / "link.json").symlink_to(outside)
    content = outside.read_text()
    assert get(running, "/api/edits") == []
    assert "expected a file of edits" in refused(running, "/api/load", name="link")
    assert "got a link" in refused(running, "/api/save", name="link", edits=[SCALING], replace=True)
    assert outside.read_text() == content


def test_a_damaged_file_is_named_and_the_others_are_listed(running, run):
    post(running, "/api/save", name="good", edits=[ABLATION])
    (run / "edits" / "bad.json").write_text("{")
    found = {item["name"]: item for item in get(running, "/api/edits")}
    assert "expected JSON in bad.json" in found["bad"]["error"]
    assert found["good"]["fits"]
    assert "expected JSON" in refused(running, "/api/load", name="bad")


def test_no_edits_are_not_saved(running):
    assert "expected edits to save, got none" in refused(running, "/api/save", name="none", edits=[])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ablate:999", "Ablate: expected an expert in 0..11, got 999"),
        ("swap:1=12", "Swap: expected an expert in 0..11"),
    ],
)
def test_an_edit_of_an_expert_that_does_not_exist_is_named_as_what_it_is(running, text, said):
    assert refused(running, "/api/parse", text=text).startswith(said)
    entry = {**ABLATION, "expert": 999}
    assert refused(running, "/api/compare", edits=[entry]).startswith("Ablate: expected an expert in 0..11, got 999")
