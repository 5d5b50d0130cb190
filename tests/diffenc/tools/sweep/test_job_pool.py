"""Real processes: stand-ins for runs that note what they are given, fail, hang or are killed, and so is their parent."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from diffenc.errors import UserError
from diffenc.runtime.signals import Interrupted
from diffenc.tools.sweep import job_pool
from diffenc.tools.sweep.job_pool import Job, Share, read_last_line, run_jobs, split_machine

ROOT = Path(__file__).parents[4]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
COUNTING = """
import os, signal, sys, time
came = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: came.append(int(number)))
print("ready", os.getpid(), flush=True)
while not came:
    time.sleep(0.01)
time.sleep(0.4)  # a second one would come now
print("came", *came, flush=True)
sys.exit(128 + came[0])
"""
DEAF = """
import os, signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("ready", os.getpid(), flush=True)
time.sleep(60)
"""
# A parent of its own: its arguments are the text of a program to be run twice at a time, and a folder.
PARENT = """
import sys
from pathlib import Path
from diffenc.tools.sweep.job_pool import Job, Share, run_jobs
import os
log = Path(sys.argv[2])
jobs = [Job(str(k), [[sys.executable, "-S", "-c", sys.argv[1]]], log / str(k)) for k in range(2)]
run_jobs(jobs, [Share(frozenset(), dict(os.environ)) for _ in range(2)], print)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(job_pool, "POLL_SECONDS", 0.02)


def python(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-S", "-c", text, *map(str, arguments)]


def free(count: int) -> list[Share]:
    return [Share(frozenset(), dict(os.environ)) for _ in range(count)]


class Ends(list[tuple[str, int]]):
    """(name, status), in the order the jobs ended."""

    def __call__(self, name: str, status: int, seconds: float):
        assert seconds > 0
        self.append((name, status))


def gone(pid: int) -> bool:
    """Whether it ends within seconds."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # dead; nobody has asked for its status
            return True
        time.sleep(0.01)
    return False


def ready(log: Path) -> int:
    """The pid it wrote, once it has."""
    while not (log.exists() and log.read_text().startswith("ready") and log.read_text().endswith("\n")):
        time.sleep(0.01)
    return int(log.read_text().split()[1])


def test_jobs_start_in_order_as_shares_come_free_and_commands_follow_each_other(tmp_path):
    """Two at a time: 0 takes longest, so 1, 2 and 3 go through the other share."""
    note = """
import sys, time
name, command, file = sys.argv[1:]
with open(file, "a") as order:
    order.write(name + command + " ")
while name == "0" and "3b" not in open(file).read():
    time.sleep(0.02)
"""
    order = tmp_path / "order"
    jobs = [
        Job(str(k), [python(note, k, c, order) for c in "ab"[: 1 if k == 0 else 2]], tmp_path / str(k))
        for k in range(4)
    ]
    ends = Ends()
    run_jobs(jobs, free(2), ends)
    began = order.read_text().split()
    assert [each for each in began if each != "0a"] == ["1a", "1b", "2a", "2b", "3a", "3b"]
    assert ends[:2] == [("1", 0), ("2", 0)]
    assert sorted(ends[2:]) == [("0", 0), ("3", 0)]


def test_no_more_run_than_there_are_shares(tmp_path):
    count = """
import os, sys, time
own = f"{sys.argv[1]}/{os.getpid()}"
open(own, "w").close()
print(len(os.listdir(sys.argv[1])))
time.sleep(0.3)
os.unlink(own)
"""
    (tmp_path / "running").mkdir()
    jobs = [Job(str(k), [python(count, tmp_path / "running")], tmp_path / f"log{k}") for k in range(5)]
    run_jobs(jobs, free(2), Ends())
    assert max(int((tmp_path / f"log{k}").read_text()) for k in range(5)) <= 2


def test_one_that_fails_does_not_go_on_and_stops_no_other(tmp_path):
    ways = {
        "exit": "raise SystemExit(7)",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "well": "print('well')",
    }
    jobs = [
        Job(name, [python(text), python("print('next')")], tmp_path / name) for name, text in ways.items()
    ]
    ends = Ends()
    run_jobs(jobs, free(1), ends)
    assert ends == [("exit", 7), ("killed", 128 + signal.SIGKILL), ("well", 0)]
    assert {name: (tmp_path / name).read_text() for name in ways} == {
        "exit": "",
        "killed": "",
        "well": "well\nnext\n",
    }


def test_a_program_that_is_not_there_is_a_job_that_failed(tmp_path):
    ends = Ends()
    jobs = [
        Job("gone", [["/nowhere/program"]], tmp_path / "gone"),
        Job("well", [python("")], tmp_path / "well"),
    ]
    run_jobs(jobs, free(1), ends)
    assert ends == [("gone", 1), ("well", 0)]
    assert "No such file" in (tmp_path / "gone").read_text()


def test_all_that_is_written_is_added_to_the_log_and_nothing_is_read(tmp_path):
    log = tmp_path / "new" / "folder" / "log"
    text = "import sys; print(repr(sys.stdin.read()), flush=True); print('error', file=sys.stderr)"
    for _ in range(2):
        run_jobs([Job("a", [python(text)], log)], free(1), Ends())
    assert log.read_text() == "''\nerror\n" * 2


@LINUX
def test_each_job_has_the_cores_and_the_environment_of_its_share(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    text = "import os, time; print(sorted(os.sched_getaffinity(0)), os.environ['SHARE']); time.sleep(0.3)"
    given = [Share(frozenset([core]), os.environ | {"SHARE": f"of {core}"}) for core in cores[:2]]
    jobs = [Job(str(k), [python(text)] * 2, tmp_path / str(k)) for k in range(len(given))]
    run_jobs(jobs, given, Ends())
    for k, core in enumerate(cores[:2]):
        assert (tmp_path / str(k)).read_text() == f"[{core}] of {core}\n" * 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_what_runs_once_and_nothing_more_is_started(tmp_path, signum):
    jobs = [Job(str(k), [python(COUNTING), python("print('next')")], tmp_path / str(k)) for k in range(3)]

    def stop():
        for k in "01":
            ready(tmp_path / k)
        os.kill(os.getpid(), signum)

    thread, ends = threading.Thread(target=stop), Ends()
    thread.start()
    with pytest.raises(Interrupted) as interrupted:
        run_jobs(jobs, free(2), ends)
    thread.join()
    assert interrupted.value.signum == signum
    assert sorted(ends) == [("0", 128 + signum), ("1", 128 + signum)]
    assert not (tmp_path / "2").exists()
    for k in "01":
        assert (tmp_path / k).read_text().splitlines()[1:] == [f"came {int(signum)}"]


def test_what_ends_well_though_it_was_asked_to_stop_does_not_go_on(tmp_path):
    patient = COUNTING.replace("sys.exit(128 + came[0])", "")
    job = Job("a", [python(patient), python("print('next')")], tmp_path / "a")
    thread = threading.Thread(target=lambda: (ready(tmp_path / "a"), os.kill(os.getpid(), signal.SIGTERM)))
    thread.start()
    ends = Ends()
    with pytest.raises(Interrupted):
        run_jobs([job], free(1), ends)
    thread.join()
    assert ends == [("a", 128 + signal.SIGTERM)]
    assert "next" not in (tmp_path / "a").read_text()


def test_a_second_signal_kills(tmp_path):
    def stop():
        ready(tmp_path / "a")
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    thread, ends = threading.Thread(target=stop), Ends()
    thread.start()
    with pytest.raises(Interrupted):
        run_jobs([Job("a", [python(DEAF)], tmp_path / "a")], free(1), ends)
    thread.join()
    assert ends == [("a", 128 + signal.SIGKILL)]
    assert gone(ready(tmp_path / "a"))


def parent(tmp_path: Path, text: str) -> subprocess.Popen[bytes]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, text, str(tmp_path)], stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


@LINUX
def test_nothing_outlives_a_killed_parent_and_no_group_is_shared(tmp_path):
    process = parent(tmp_path, DEAF)
    found = [ready(tmp_path / k) for k in "01"]
    groups = {os.getpgid(pid) for pid in (*found, process.pid)}
    assert len(groups) == 3  # a terminal's Ctrl-C reaches the parent alone
    process.kill()
    process.wait()
    assert all(gone(pid) for pid in found)


def test_an_error_leaves_nothing_behind(tmp_path):
    def broken(name, status, seconds):
        raise ValueError(name)

    jobs = [Job("deaf", [python(DEAF)], tmp_path / "deaf"), Job("short", [python("")], tmp_path / "short")]
    with pytest.raises(ValueError, match="short"):
        run_jobs(jobs, free(2), broken)
    log = tmp_path / "deaf"
    assert not log.read_text() or gone(ready(log))


def test_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_jobs([Job("a", [python("")], tmp_path / "a")], free(1), Ends())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_now_and_then_it_is_told_what_runs_and_how_much_waits(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="absl")
    monkeypatch.setattr(job_pool, "PROGRESS_SECONDS", 0.4)
    text = "import time; print('step 3', flush=True); time.sleep(1)"
    run_jobs([Job(k, [python(text)], tmp_path / k) for k in "ab"], free(1), Ends())
    said = [record.getMessage() for record in caplog.records]
    assert said[1] == "1 waiting"
    assert said[0].startswith("a, for ")
    assert any(line.startswith("b, for ") and line.endswith(": step 3") for line in said)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", ""),
        (b"one", "one"),
        (b"one\ntwo\n", "two"),
        (b"one\n  two \n \n\n", "two"),
        (b"\xff\n", "\ufffd"),
        (b"a\n" + b"x" * 5000 + b"\nlast\n", "last"),
        (b"y" * 5000, "y" * 2000),
    ],
)
def test_last_line(tmp_path, text, line):
    (tmp_path / "log").write_bytes(text)
    assert read_last_line(tmp_path / "log") == line


def test_last_line_of_nothing(tmp_path):
    assert read_last_line(tmp_path / "log") == ""


@pytest.mark.parametrize(
    ("count", "parts"), [(1, ["0,1,2,3,4"]), (2, ["0,2,4", "1,3"]), (5, ["0", "1", "2", "3", "4"])]
)
def test_gpus_are_shared_out(count, parts):
    env = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4", "A": "b"}
    assert split_machine(count, env) == [
        Share(frozenset(), {"A": "b", "CUDA_VISIBLE_DEVICES": part}) for part in parts
    ]


def test_more_jobs_than_gpus_are_refused():
    with pytest.raises(UserError, match="--jobs=3: this machine has 2 GPUs"):
        split_machine(3, {"CUDA_VISIBLE_DEVICES": "4,6"})


@LINUX
@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_cores_are_shared_out_evenly_and_none_twice(count, monkeypatch):
    cores = {1, 2, 3, 5, 8, 13, 21}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    parts = [share.cores for share in split_machine(count, {"JAX_PLATFORMS": "cpu"})]
    assert len(parts) == count
    assert sorted(core for part in parts for core in part) == sorted(cores)
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


@LINUX
def test_one_job_has_the_whole_machine_and_more_than_cores_are_refused():
    env = {"JAX_PLATFORMS": "cpu"}
    assert split_machine(1, env) == [Share(frozenset(), env)]
    there = len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match=f"--jobs={there + 1}: this machine has {there} cores"):
        split_machine(there + 1, env)
