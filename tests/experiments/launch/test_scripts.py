"""The launchers' files as their readers see them: a shell, a linter, Kubernetes; and what their pages tell."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from absl import flags

from diffenc.cli import run  # noqa: F401 - defines the flags

LAUNCH = Path(__file__).parents[3] / "experiments" / "launch"
SCRIPTS = ["slurm.sbatch", "tpu_pod.sh"]
PAGES = ["local.md", "slurm.md", "tpu_pod.md", "jobset.md"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_and_linter_have_nothing_to_say(name):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for command in (["bash", "-n"], [shellcheck, "--severity=style"]):
        done = subprocess.run([*command, LAUNCH / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def container(job):
    (one,) = job["template"]["spec"]["containers"]
    return one


def test_pods_are_numbered_and_as_many_as_the_run_is_told(job, container):
    assert job["completionMode"] == "Indexed"
    count = job["parallelism"]
    assert count == job["completions"] > 1
    assert f"--num_processes={count}" in container["args"][0].split()
    assert '--process_id="$JOB_COMPLETION_INDEX"' in container["args"][0].split()


def test_the_coordinator_is_the_name_of_the_first_pod(jobset, container):
    """JOBSET-REPLICATEDJOB-JOB-POD.SUBDOMAIN, where the subdomain is the JobSet's name unless it is given."""
    network, name = jobset["spec"]["network"], jobset["metadata"]["name"]
    assert network == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    replicated = jobset["spec"]["replicatedJobs"][0]["name"]
    (port,) = container["ports"]
    wanted = f"--coordinator={name}-{replicated}-0-0.{name}:{port['containerPort']}"
    assert wanted in container["args"][0].split()


def test_the_run_itself_is_told_to_end_and_has_time_to_save(job, container):
    assert container["command"] == ["bash", "-c"]
    assert container["args"][0].startswith("exec python -m diffenc.run ")
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_a_preemption_restarts_all_and_is_not_counted(jobset, job, container):
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy demands it
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"] == [
        {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert 0 < policy["maxRestarts"] < 100
    disrupted, stopped = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == stopped["action"] == "FailJob"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert stopped["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [143]}


def test_what_is_mounted_is_there(job, container):
    there = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == there


@pytest.mark.parametrize("name", [*SCRIPTS, *PAGES, "jobset.yaml"])
def test_flags_of_the_run_exist(name):
    """Those after its name, in any line of the file."""
    text = (LAUNCH / name).read_text().replace("\\\n", " ")
    given = re.findall(r"diffenc\.run(.*?)(?:\n\n|```|$)", text, re.DOTALL)
    named = {flag for part in given for flag in re.findall(r"(?<!\S)--([a-z_]+)(?==)", part)}
    own = {"processes", "devices", "grace"}
    assert named - own <= set(flags.FLAGS), named


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_files_that_are_there(name):
    text = (LAUNCH / name).read_text()
    named = set(re.findall(r"(?:experiments/launch/|gin/)[\w.]+\.(?:gin|sh|sbatch|yaml)", text))
    for path in named:
        assert (LAUNCH.parents[1] / path).exists(), path
    assert named or name == "local.md"
