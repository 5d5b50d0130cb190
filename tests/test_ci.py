"""What builds and checks the project elsewhere: shell scripts, the workflow, the citation."""

import os
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


class FakePythons:
    """Interpreters for `.ci/run`, each a script that prints what such a Python would print; and a `make` that prints its arguments."""

    def __init__(self, home: Path):
        self.home = home
        self.first, self.second = home / "first", home / "second"
        self.write(self.first / "python3", "print 3.11", "3.11.7")
        self.write(self.first / "make", 'echo "make $*"', "")

    def write(self, file: Path, says: str, version: str) -> Path:
        says = says.replace("print", "echo")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo Python {version}; exit; fi\n{says}\n')
        file.chmod(0o755)
        return file

    def pyenv(self, version: str, says: str = "") -> Path:
        minor = ".".join(version.split(".")[:2])
        file = self.home / ".pyenv" / "versions" / version / "bin" / f"python{minor}"
        return self.write(file, says or f"print {minor}", version)

    def ci(self, **environment: str) -> list[str]:
        """The lines that `.ci/run` prints, without those of Pythons that this machine's system has."""
        path = os.pathsep.join(map(str, [self.first, self.second, "/usr/bin", "/bin"]))
        environment = {"HOME": str(self.home), "PATH": path, "DIFFENC_SHARED": "", **environment}
        script = subprocess.run(
            ["bash", ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=True
        )
        assert not script.stderr
        return [line for line in script.stdout.splitlines() if "/usr" not in line]


@pytest.fixture
def pythons(tmp_path) -> FakePythons:
    return FakePythons(tmp_path)


def test_a_part_of_the_tests_runs_on_one_python_of_each_other_minor_version(pythons):
    on_path = pythons.write(pythons.second / "python3.91", "print 3.91", "3.91.0")
    of_pyenv = pythons.pyenv("3.92.1")
    pythons.pyenv("3.91.4")  # the PATH has a 3.91
    pythons.pyenv("3.11.9")  # python3 is a 3.11
    lines = pythons.ci()
    assert lines[0] == "make test"
    assert [line for line in lines if line.startswith("make test-short")] == [
        f"make test-short PYTHON={on_path}",
        f"make test-short PYTHON={of_pyenv}",
    ]
    assert lines[-1].startswith("tested on Python 3.11.7, a part on Python 3.91.0")
    assert "a part on Python 3.92.1" in lines[-1]


@pytest.mark.parametrize("says", ["exit 127", "print", "print and fail >&2; exit 1"])
def test_a_python_that_does_not_run_or_will_not_do_is_passed_over(pythons, says):
    pythons.write(pythons.second / "python3.93", says, "3.93.0")  # as a shim of pyenv without its version
    behind = pythons.pyenv("3.93.2")
    short = [line for line in pythons.ci() if line.startswith("make test-short")]
    assert short == [f"make test-short PYTHON={behind}"]


def test_what_is_asked_of_a_python_is_true_of_this_one(tmp_path):
    script = (ROOT / ".ci" / "run").read_text()
    question = script.partition("-c '")[2].partition("' <")[0]
    answer = subprocess.run(
        [sys.executable, "-c", question], capture_output=True, text=True, check=True
    ).stdout
    assert answer == f"3.{sys.version_info.minor}\n"
    for other in ("version_info = (3, 10)", "implementation.name = 'pypy'"):
        pretending = f"import sys; sys.{other}"
        told = subprocess.run(
            [sys.executable, "-c", f"{pretending}\n{question}"], capture_output=True, text=True
        )
        assert not told.stdout


def test_a_job_of_the_matrix_runs_its_own_python_alone(pythons):
    pythons.pyenv("3.92.1")
    (step,) = (step for step in WORKFLOW["jobs"]["test"]["steps"] if step.get("run") == "bash .ci/run")
    assert pythons.ci(**step["env"]) == ["make test"]


def test_the_short_part_is_of_tests_that_exist():
    short = re.search(r"^SHORT := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert short is not None
    for test in short[1].split():
        file, _, name = test.partition("::")
        assert f"def {name or 'test_'}" in (ROOT / file).read_text()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {key: citation[key] for key in ("title", "version", "license")} == {
        "title": PROJECT["name"], "version": PROJECT["version"], "license": PROJECT["license"],
    }  # fmt: skip
    (paper,) = citation[
        "references"
    ]  # not "preferred-citation", which would be cited in place of the software
    assert paper["url"].endswith("2310.19789")


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = re.escape(PROJECT["version"])
    assert re.fullmatch(rf"Unreleased: {version}|{version} \(\d{{4}}-\d\d-\d\d\)", headings[0])


def test_every_extra_of_an_accelerator_is_jaxs_own():
    for name in ("cuda12", "cuda13", "tpu"):
        (requirement,) = PROJECT["optional-dependencies"][name]
        assert requirement.startswith(f"jax[{name}]>=")
    assert PROJECT["optional-dependencies"]["plan-tpu"] == PROJECT["optional-dependencies"]["tpu"]


def test_flags_of_xla_are_tried_once_before_they_are_set(request, tmp_path, monkeypatch):
    accepted_flags = request.config.pluginmanager.get_plugin(
        str(ROOT / "tests" / "conftest.py")
    ).accepted_flags
    known, unknown = "--xla_backend_optimization_level=1", "--xla_is_not_a_flag=1"
    assert accepted_flags((unknown, known), tmp_path) == known
    monkeypatch.setattr(sys, "executable", "/not/there")  # no further process is started
    assert accepted_flags((known, unknown), tmp_path) == known
