"""tpu_pod.sh as it stands, with a stand-in for gcloud that runs what is sent to the hosts in a folder for each."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "experiments" / "launch" / "tpu_pod.sh"

# The states it tells, and the exit statuses of runs, are written down beforehand, one a line.
GCLOUD = f"""#!{sys.executable} -IS
import json, os, pathlib, shutil, subprocess, sys
folder, given = pathlib.Path(os.environ["LOG"]), sys.argv[1:]
with open(folder / "calls", "a") as file:
    file.write(json.dumps(given) + "\\n")

def following(name):
    first, *rest = (folder / name).read_text().split()
    (folder / name).write_text(" ".join(rest or [first]))
    return first

assert given[:2] == ["compute", "tpus"], given
group, verb, *rest = given[2:]
if (group, verb) == ("queued-resources", "describe"):
    state = following("states")
    print(state) if state != "-" else sys.exit(1)
elif (group, verb) == ("tpu-vm", "scp"):
    for host in ("host0", "host1"):
        shutil.copy(rest[0], folder / host)
elif (group, verb) == ("tpu-vm", "ssh"):
    (command,) = (flag.removeprefix("--command=") for flag in rest if flag.startswith("--command="))
    status = following("statuses") if "diffenc.run" in command else "0"
    for host in ("host0", "host1"):
        env = {{**os.environ, "HOME": str(folder / host), "STATUS": status}}
        done = subprocess.run(["bash", "-c", command], cwd=folder / host, env=env)
        if done.returncode:
            sys.exit(done.returncode)
"""
# What the hosts have: pip does nothing, uv makes a python that notes what it is called with.
UV = """#!/bin/bash
echo "$@" >> uv.log
[[ $1 == venv ]] && mkdir -p venv/bin && cp "$PROGRAMS/host_python" venv/bin/python
exit 0
"""
HOST_PYTHON = """#!/bin/bash
printf '%s\\n' "$@" > run.log
[[ $(cat run.pid) == $$ ]] || exit 99
exit "$STATUS"
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cloud:
    """Stand-ins, and what they were asked."""

    def __init__(self, folder, states, statuses=(0,)):
        self.folder = folder
        program(folder / "bin" / "gcloud", GCLOUD)
        program(folder / "bin" / "python3", "#!/bin/bash\n")
        program(folder / "bin" / "host_python", HOST_PYTHON)
        for host in ("host0", "host1"):
            program(folder / host / ".local" / "bin" / "uv", UV)
        (folder / "states").write_text(" ".join(states))
        (folder / "statuses").write_text(" ".join(map(str, statuses)))

    def call(self, *arguments, **settings):
        env = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "LOG": str(self.folder),
            "PROGRAMS": str(self.folder / "bin"),
            "NAME": "one", "ZONE": "z-a", "ACCELERATOR": "v4-32", "RUNTIME": "r", "PAUSE": "0.01", **settings,
        }  # fmt: skip
        return subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=60)

    @property
    def calls(self):
        """Group, verb and the rest of each call of gcloud."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [(call[2], call[3], call[4:]) for call in map(json.loads, lines)]

    def verbs(self):
        """All calls but questions."""
        return [verb for _, verb, _ in self.calls if verb != "describe"]


def test_create_asks_for_the_slice_and_waits_until_it_is_there(tmp_path):
    cloud = Cloud(tmp_path, ["-", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = cloud.call("create")
    assert done.returncode == 0, done.stderr
    group, verb, rest = cloud.calls[0]
    assert (group, verb, rest[0]) == ("queued-resources", "create", "one")
    wanted = {"--node-id=one", "--zone=z-a", "--accelerator-type=v4-32", "--runtime-version=r", "--spot"}
    assert set(rest[1:]) == wanted
    assert [verb for _, verb, _ in cloud.calls[1:]] == ["describe"] * 4
    assert "WAITING_FOR_RESOURCES; waiting" in done.stderr


@pytest.mark.parametrize("price", ["", "--reserved"])
def test_other_prices(tmp_path, price):
    cloud = Cloud(tmp_path, ["ACTIVE"])
    assert cloud.call("create", PRICE=price).returncode == 0
    rest = cloud.calls[0][2]
    assert "--spot" not in rest
    assert ("--reserved" in rest) == bool(price)
    assert "" not in rest


def test_a_slice_that_is_not_available(tmp_path):
    done = Cloud(tmp_path, ["PROVISIONING", "FAILED"]).call("create")
    assert done.returncode == 1
    assert "not available: FAILED" in done.stderr


def test_install_puts_this_checkout_on_every_host(tmp_path):
    cloud = Cloud(tmp_path, ["ACTIVE"])
    (tmp_path / "host1" / "diffenc").mkdir()
    (tmp_path / "host1" / "diffenc" / "stale").touch()
    done = cloud.call("install", PREPARE="echo 'prepared  here' > prepared && pwd >> prepared")
    assert done.returncode == 0, done.stderr
    for host in ("host0", "host1"):
        for file in ("constraints.txt", "pyproject.toml", "plugins/__init__.py", "gin/quickstart.gin"):
            assert (tmp_path / host / "diffenc" / file).read_bytes() == (ROOT / file).read_bytes()
        make, install = (tmp_path / host / "uv.log").read_text().splitlines()
        assert make.split()[0] == "venv"
        assert install.split()[-2:] == ["./diffenc", "jax[tpu]"]
        assert (tmp_path / host / install.split("--constraint ")[1].split()[0]).is_file()
        assert (tmp_path / host / "prepared").read_text() == f"prepared  here\n{tmp_path / host}\n"
    assert not (tmp_path / "host1" / "diffenc" / "stale").exists()
    assert all("--worker=all" in rest for _, _, rest in cloud.calls)


@pytest.fixture
def installed(tmp_path):
    def make(*arguments):
        cloud = Cloud(tmp_path, *arguments)
        for host in ("host0", "host1"):
            program(tmp_path / host / "venv" / "bin" / "python", HOST_PYTHON)
        return cloud

    return make


def test_run_gives_every_host_the_command_as_it_was_given(installed, tmp_path):
    given = ["--gin_file=gin/quickstart.gin", "--gin_bindings=a.b = 'two  words'", "--workdir=gs://b/$x"]
    done = installed(["ACTIVE"]).call("run", *given)
    assert done.returncode == 0, done.stderr
    for host in ("host0", "host1"):
        assert (tmp_path / host / "run.log").read_text().splitlines() == [
            "-m",
            "diffenc.run",
            "--distributed",
            *given,
        ]


SAVING = "trap 'sleep 0.5; touch saved; exit 143' TERM; touch ready; while :; do sleep 0.05; done"


@pytest.mark.parametrize("verb", ["stop", "run"])
def test_a_run_that_is_there_saves_before_anything_else(installed, tmp_path, verb):
    """Also one that a lost connection left behind: it holds the TPU."""
    cloud, there = installed(["ACTIVE"]), subprocess.Popen(["bash", "-c", SAVING], cwd=tmp_path)
    threading.Thread(target=there.wait).start()  # or it would stay on as a zombie
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    (tmp_path / "host0" / "run.pid").write_text(f"{there.pid}\n")
    done = cloud.call(verb)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "host0" / "run.pid").exists() == (verb == "run")


def test_delete(tmp_path):
    cloud = Cloud(tmp_path, ["ACTIVE"])
    assert cloud.call("delete").returncode == 0
    assert cloud.calls == [("queued-resources", "delete", ["one", "--zone=z-a", "--force", "--quiet"])]


NEW = ["delete", "create", "scp", "ssh"]


def test_train_makes_the_slice_and_runs(installed):
    cloud = installed(["-", "ACTIVE"])
    assert cloud.call("train", "--gin_file=x.gin").returncode == 0
    assert cloud.verbs() == [*NEW, "ssh"]


def test_train_takes_up_a_slice_that_is_there(installed):
    cloud = installed(["ACTIVE"])
    assert cloud.call("train", "--gin_file=x.gin").returncode == 0
    assert cloud.verbs() == ["ssh"]


@pytest.mark.parametrize("status", [255, 143, 1])
def test_train_goes_on_after_a_preemption(installed, status):
    cloud = installed(["ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"], [status, 0])
    assert cloud.call("train", "--gin_file=x.gin").returncode == 0
    assert cloud.verbs() == ["ssh", *NEW, "ssh"]
    sent = [rest[-1] for _, verb, rest in cloud.calls if verb == "ssh"]
    assert sent[0] == sent[-1]


def test_train_tries_thrice_what_fails_by_itself(installed):
    cloud = installed(["ACTIVE"], [7])
    done = cloud.call("train", "--gin_file=x.gin")
    assert done.returncode == 7
    assert cloud.verbs() == ["ssh"] * 3
    assert "status 7, 3 of 3 times" in done.stderr


def test_train_ends_when_the_run_was_stopped(installed):
    cloud = installed(["ACTIVE"], [143])
    assert cloud.call("train", "--gin_file=x.gin").returncode == 143
    assert cloud.verbs() == ["ssh"]


def test_without_a_verb_it_tells_them(tmp_path):
    done = Cloud(tmp_path, ["ACTIVE"]).call()
    assert done.returncode == 2
    for verb in ("create", "install", "run", "stop", "delete", "train"):
        assert f"tpu_pod.sh {verb} " in done.stderr


def test_without_a_name_it_says_what_is_missing(tmp_path):
    done = Cloud(tmp_path, ["ACTIVE"]).call("create", NAME="")
    assert done.returncode == 1
    assert "NAME: of the slice" in done.stderr
