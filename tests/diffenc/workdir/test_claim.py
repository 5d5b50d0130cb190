"""One trainer a workdir; with real processes."""

import os
import signal
import subprocess
import sys

import pytest

from diffenc.errors import UserError
from diffenc.workdir import claim

HOLD = """
import sys, time
from diffenc.workdir.claim import claim
with claim(sys.argv[1]):
    print("claimed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that trains in tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_trainer_is_refused_by_the_firsts_pid(tmp_path, holder):
    with pytest.raises(UserError, match=rf"run is in use .* pid {holder.pid};") as refused:
        claim.claim(tmp_path / "run").__enter__()
    assert "\n" not in str(refused.value)


def test_a_killed_trainer_leaves_the_workdir_free(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with claim.claim(tmp_path / "run") as claimed:
        assert claimed.folder == tmp_path / "run"
        assert (claimed.folder / ".lock").read_text() == f"{os.getpid()}\n"


def test_leaving_frees_the_workdir_also_by_an_error(tmp_path):
    def fail():
        with claim.claim(tmp_path / "deep" / "run"):
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    with claim.claim(tmp_path / "deep" / "run"):
        pass


@pytest.mark.parametrize("below", ["", "run", "run/deeper"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match=r"/file is a file; choose another --workdir$") as refused:
        claim.claim(tmp_path / "file" / below).__enter__()
    assert "\n" not in str(refused.value)
    assert (tmp_path / "file").read_text() == "precious"
