"""What builds and checks the project elsewhere: shell scripts, the workflow, the citation."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
SCRIPTS = sorted(path for path in (ROOT / ".ci").iterdir() if path.is_file())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_fault_that_shellcheck_knows(script):
    subprocess.run([Path(sys.executable).with_name("shellcheck"), script], check=True)
    assert script.stat().st_mode & 0o100


def test_the_workflow_runs_every_script_on_every_version():
    assert len(SCRIPTS) == 2
    jobs = WORKFLOW["jobs"].values()
    commands = {step["run"] for job in jobs for step in job["steps"] if "run" in step}
    assert commands == {f"bash .ci/{script.name}" for script in SCRIPTS}
    oldest = PROJECT["requires-python"].removeprefix(">=")
    for job in jobs:
        assert job["strategy"]["matrix"]["python"] == [oldest, "3.12", "3.13"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {key: citation[key] for key in ("title", "version", "license")} == {
        "title": PROJECT["name"], "version": PROJECT["version"], "license": PROJECT["license"],
    }  # fmt: skip
    assert citation["preferred-citation"]["url"].endswith("2310.19789")


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0].endswith(PROJECT["version"])


def test_every_extra_of_an_accelerator_is_jaxs_own():
    for name in ("cuda12", "cuda13", "tpu"):
        (requirement,) = PROJECT["optional-dependencies"][name]
        assert requirement.startswith(f"jax[{name}]>=")


def test_flags_of_xla_are_tried_once_before_they_are_set(request, tmp_path, monkeypatch):
    accepted_flags = request.config.pluginmanager.get_plugin(
        str(ROOT / "tests" / "conftest.py")
    ).accepted_flags
    known, unknown = "--xla_backend_optimization_level=1", "--xla_is_not_a_flag=1"
    assert accepted_flags((unknown, known), tmp_path) == known
    monkeypatch.setattr(sys, "executable", "/not/there")  # no further process is started
    assert accepted_flags((known, unknown), tmp_path) == known
