"""What a run records of where it is trained, and on what."""

import getpass
import json
import platform
import socket
import subprocess
from typing import NamedTuple

import jax
import pytest

from diffenc import registry
from diffenc.workdir import provenance


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """The environment, made up: [what it says now]."""
    now = {"jax": "1"}
    monkeypatch.setattr(provenance, "describe_environment", lambda experiment: dict(now))
    return now


def recorded(workdir):
    return json.loads((workdir / "environment.json").read_text())["starts"]


def test_each_environment_stands_with_the_step_it_holds_from(tiny, tmp_path, told):
    provenance.write_provenance(tiny(), tmp_path, 0, 23)
    provenance.write_provenance(tiny(), tmp_path, 400, 23)  # resumed, nothing else
    assert recorded(tmp_path) == [{"step": 0, "jax": "1"}]
    told["jax"] = "2"
    provenance.write_provenance(tiny(), tmp_path, 800, 23)
    assert recorded(tmp_path) == [{"step": 0, "jax": "1"}, {"step": 800, "jax": "2"}]
    told["jax"] = "3"
    provenance.write_provenance(
        tiny(), tmp_path, 600, 23
    )  # from an earlier checkpoint: what followed is gone
    assert recorded(tmp_path) == [{"step": 0, "jax": "1"}, {"step": 600, "jax": "3"}]
    provenance.write_provenance(tiny(), tmp_path, 0, 23)
    assert recorded(tmp_path) == [{"step": 0, "jax": "3"}]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"starts": 3}', '{"starts": [1, {"step": "x"}]}'])
def test_a_damaged_record_is_begun_anew(tiny, tmp_path, damage):
    (tmp_path / "environment.json").write_text(damage)
    provenance.write_provenance(tiny(), tmp_path, 5, 23)
    assert recorded(tmp_path) == [{"step": 5, "jax": "1"}]


def test_the_data_set(tiny, tmp_path, read_record):
    provenance.write_provenance(tiny(), tmp_path, 0, 23)
    assert read_record(tmp_path / "dataset.json") == {
        "dataset": "dots",
        "source": None,
        "image_shape": [4, 4, 1],
        "num_levels": 5,
        "num_classes": 3,
        "train_images": 23,
        "train_identity": "train of dots",
    }


def test_the_environment(tiny, monkeypatch):
    monkeypatch.undo()
    found = provenance.describe_environment(tiny())
    assert found["python"] == platform.python_version()
    assert (found["jax"], found["backend"]) == (jax.__version__, "cpu")
    assert found["devices"] == f"{len(jax.devices())} x cpu"
    assert (found["precision"], found["processes"]) == ("float32", 1)


def test_neither_user_nor_host_nor_folder_is_named(tiny, monkeypatch, tmp_path):
    monkeypatch.undo()
    said = json.dumps(provenance.describe_environment(tiny()))
    names = [socket.gethostname(), str(tmp_path)]
    names += [getpass.getuser()] if len(getpass.getuser()) > 4 else []  # "root" may be part of a word
    assert not [name for name in names if len(name) > 2 and name in said]


def test_a_package_that_is_not_installed_has_no_version():
    assert provenance.installed_version("no-such-package-anywhere") is None


def git(folder, *words):
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(folder), *names, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_of_a_checkout(tmp_path):
    assert provenance.git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert provenance.git_commit(tmp_path) is None  # nothing was committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.git_commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert provenance.git_commit(tmp_path) == f"{head}+"
    (tmp_path / "inside").mkdir()
    assert provenance.git_commit(tmp_path / "inside") is None  # not what happens to lie in one


class Distribution(NamedTuple):
    name: str
    version: str


def test_other_packages_that_plugins_come_from_are_named(tiny, monkeypatch):
    """Those of this experiment's, of which conftest.py is one here; not diffenc itself, which has its own line."""
    root = type(tiny().dataset).__module__.partition(".")[0]
    brought = {
        root: Distribution("my-pack", "0.3"),
        "unused": Distribution("other", "1"),
        "diffenc_plugins": Distribution("diffenc", "0"),
    }
    monkeypatch.setattr(registry, "plugin_distributions", lambda: brought)
    assert provenance.plugin_packages(tiny()) == "my-pack 0.3"
    monkeypatch.setattr(registry, "plugin_distributions", lambda: {})
    assert provenance.plugin_packages(tiny()) == ""


@pytest.mark.parametrize(
    ("plugins", "absent"),
    [
        ("no-such-package 0.3", "no-such-package 0.3"),
        ("jax 0.1, no-such-package 0.3", "no-such-package 0.3"),
        ("jax 0.1", ""),
        ("", ""),
    ],
)
def test_packages_that_are_gone_are_told(plugins, absent):
    record = {"starts": [{"step": 0, "plugins": "older 1"}, {"step": 5, "plugins": plugins}]}
    assert provenance.missing_plugins(json.dumps(record).encode()) == absent


@pytest.mark.parametrize(
    "record", [None, b"", b"{", b"[]", b'{"starts": []}', b'{"starts": [{"step": 0}]}', b"\xff"]
)
def test_without_a_record_nothing_is_known_to_be_gone(record):
    assert provenance.missing_plugins(record) == ""
