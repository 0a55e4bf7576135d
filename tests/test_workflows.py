"""The workflows of .github: they parse, call what the Makefile has, and publish without a secret."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
Flow = dict[Any, Any]


def flow(name: str) -> Flow:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))


def steps(found: Flow) -> list[Flow]:
    return [step for job in found["jobs"].values() for step in job["steps"]]


def made(found: Flow) -> list[str]:
    """Targets of make that a workflow calls."""
    commands = "\n".join(step.get("run", "") for step in steps(found))
    return re.findall(r"(?m)^\s*make ([\w-]+)", commands)


def targets(makefile: str) -> set[str]:
    return set(re.findall(r"(?m)^([\w-]+):(?!=)", makefile))


def test_there_is_one_for_tests_docs_and_the_wheel():
    assert [path.stem for path in FILES] == ["docs", "tests", "wheel"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_workflow_is_whole(path):
    found = flow(path.stem)
    assert found["name"] == path.stem
    assert found[True]  # YAML 1.1 reads the key `on` as true
    assert found["permissions"] == {"contents": "read"}
    for name, job in found["jobs"].items():
        assert job["runs-on"], name
        assert set([job.get("needs")] if "needs" in job else []) <= set(found["jobs"])
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[\w./]*v\d+", step["uses"]) for step in steps(found) if "uses" in step)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_it_makes_is_in_the_makefile(path):
    called = made(flow(path.stem))
    assert called
    assert set(called) <= targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    for target in called:
        dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert dry.returncode == 0, dry.stderr


def test_a_wrong_target_is_found():
    assert made({"jobs": {"a": {"steps": [{"run": "make dcos X=1\nmake test"}]}}}) == ["dcos", "test"]
    assert targets("A := 1\n.PHONY: b\ndocs: x\n\t@echo y: z\n") == {"docs"}


def test_three_pythons_and_macos():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = {item.rpartition(" ")[2] for item in project["classifiers"] if "Python :: 3." in item}
    rows = flow("tests")["jobs"]["test"]["strategy"]["matrix"]["include"]
    pythons = {row["python"] for row in rows}
    assert len(pythons) >= 3
    assert pythons <= supported
    assert min(supported, key=lambda text: int(text.split(".")[1])) in pythons
    assert any(row["os"].startswith("macos") for row in rows)


def test_the_site_that_is_published_is_the_one_that_is_made():
    upload = next(step for step in steps(flow("docs")) if "upload-pages-artifact" in step.get("uses", ""))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"-b html docs {upload['with']['path']}" in makefile


def test_publishing_needs_a_tag_and_no_secret():
    jobs = flow("wheel")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert all("secrets." not in path.read_text(encoding="utf-8") for path in FILES)
