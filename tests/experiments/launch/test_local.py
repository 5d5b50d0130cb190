"""Real processes: a stand-in for the run writes, fails, hangs or is killed, and so is the launcher itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffenc.errors import UserError
from experiments.launch import local

ROOT = Path(__file__).parents[3]
# The launcher in a process of its own; its first argument is the text of the program to launch.
LAUNCHER = """
import sys
from experiments.launch import local
sys.exit(local.main(sys.argv[2:], [sys.executable, "-S", "-c", sys.argv[1]]))
"""
# A program finds `k`, its own number, and `flags`, what it was started with.
START = """
import os, signal, sys, time
flags = dict(flag[2:].split("=") for flag in sys.argv[1:])
k = int(flags["process_id"])
"""
READY = "print('ready', os.getpid(), flush=True)\n"


def start(program, *own, grace="60", processes="2") -> Any:
    flags = [f"--processes={processes}", f"--grace={grace}", *own, "--", "--gin_file=x.gin"]
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, START + program, *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--of_the_user"},
    )  # fmt: skip


def finish(launcher):
    """(status, lines of standard output, lines of standard error)"""
    out, err = launcher.communicate(timeout=30)
    return launcher.returncode, out.splitlines(), err.splitlines()


def pids(launcher, count=2):
    """Of the launched processes, once each has said that it is ready."""
    return [int(launcher.stdout.readline().split()[-1]) for _ in range(count)]


def gone(pid):
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


def test_each_process_gets_the_runs_flags_and_its_own():
    status, out, err = finish(start("print(sorted(flags.items()))", processes="3"))
    assert (status, err) == (0, [])
    seen = {line[:4]: dict(eval(line[4:])) for line in out}
    assert set(seen) == {"[0] ", "[1] ", "[2] "}
    ports = {flags["coordinator"] for flags in seen.values()}
    assert len(ports) == 1
    assert ports.pop().startswith("127.0.0.1:")
    for k in range(3):
        assert (
            seen[f"[{k}] "].items()
            >= {"gin_file": "x.gin", "num_processes": "3", "process_id": str(k)}.items()
        )


def test_lines_come_whole_in_order_and_to_the_stream_they_were_written_to():
    program = """
for i in range(200):
    for piece in ("line ", "of %d: " % k, "%d\\n" % i):
        os.write(1, piece.encode())
os.write(2, b"no end")
os.write(1, b"x" * 300_000)
"""
    status, out, err = finish(start(program))
    assert status == 0
    for k in range(2):
        mine = [line.removeprefix(f"[{k}] ") for line in out if line.startswith(f"[{k}] ")]
        assert mine == [*(f"line of {k}: {i}" for i in range(200)), "x" * 300_000]
    assert sorted(err) == ["[0] no end", "[1] no end"]


def test_the_first_failure_gives_the_status_and_the_others_may_end_by_themselves():
    program = "time.sleep(0.5 * (1 - k)); print('over', flush=True); sys.exit(7 - k)"
    status, out, err = finish(start(program))
    assert status == 6
    assert out == ["[1] over", "[0] over"]
    assert err == ["[launch] process 1 ended with status 6; the others have 60 s to end"]


def test_what_a_signal_ends_counts_as_a_failure():
    program = "k or os.kill(os.getpid(), signal.SIGKILL)"
    assert finish(start(program))[0] == 128 + signal.SIGKILL


def test_a_process_that_is_through_early_ends_nobody():
    status, out, err = finish(start("time.sleep(0.4 * k); print('over')", grace="0"))
    assert (status, out, err) == (0, ["[0] over", "[1] over"], [])


def test_others_that_hang_are_killed_after_the_grace():
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    launcher = start(deaf + READY + "time.sleep(60 * k); sys.exit(3)", grace="0.3")
    began, found = time.monotonic(), pids(launcher)
    status, _, err = finish(launcher)
    assert status == 3
    assert time.monotonic() - began < 10
    assert err[-1] == "[launch] the others did not end within 0.3 s: killed"
    assert all(gone(pid) for pid in found)


COUNTING = """
came = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: came.append(number))
print("ready", os.getpid(), flush=True)
while not came:
    time.sleep(0.01)
time.sleep(0.3)  # a second one would come now
print(*map(int, came))
sys.exit(128 + came[0])
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_process_once(signum):
    launcher = start(COUNTING)
    pids(launcher)
    launcher.send_signal(signum)
    status, out, _ = finish(launcher)
    assert status == 128 + signum
    assert sorted(out) == [f"[0] {int(signum)}", f"[1] {int(signum)}"]


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1])
def test_what_comes_twice_for_one_cause_is_passed_on_once(signum):
    """A closed terminal tells of itself, and the shell does again."""
    launcher = start(COUNTING)
    pids(launcher)
    for _ in range(3):
        launcher.send_signal(signum)
        time.sleep(0.05)
    status, out, _ = finish(launcher)
    assert status == 128 + signum
    assert sorted(out) == [f"[0] {int(signum)}", f"[1] {int(signum)}"]


def test_ctrl_c_at_a_terminal_does_too():
    """The terminal signals the whole foreground group: the launcher's, to which the processes must not belong."""
    launcher = start(COUNTING)
    found = pids(launcher)
    assert not {os.getpgid(pid) for pid in found} & {os.getpgid(launcher.pid)}
    launcher.send_signal(signal.SIGINT)
    finish(launcher)


def test_a_second_signal_ends_what_the_first_did_not():
    deaf = "[signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]\n"
    launcher = start(deaf + READY + "time.sleep(60)")
    found = pids(launcher)
    launcher.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    assert finish(launcher)[0] == 128 + signal.SIGKILL
    assert all(gone(pid) for pid in found)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_nothing_outlives_a_killed_launcher():
    launcher = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "time.sleep(60)")
    found = pids(launcher)
    launcher.kill()
    assert all(gone(pid) for pid in found)
    finish(launcher)


def test_nothing_outlives_a_reader_that_went_away():
    launcher = start(READY + "time.sleep(0.5)\nwhile True: print('more', flush=True); time.sleep(0.01)")
    found = pids(launcher)
    launcher.stdout.close()
    assert launcher.wait(timeout=30) != 0
    assert all(gone(pid) for pid in found)


def test_a_grandchild_that_stays_holds_nobody_up():
    program = """
if os.fork() == 0:
    time.sleep(8)
    os._exit(0)
os.write(1, b"child %d" % k)
"""
    began = time.monotonic()
    status, out, _ = finish(start(program))
    assert (status, sorted(out)) == (0, ["[0] child 0", "[1] child 1"])
    assert time.monotonic() - began < 4


def test_virtual_devices_are_asked_for_beside_the_users_own_flags():
    status, out, _ = finish(start("print(os.environ['XLA_FLAGS'])", "--devices=4"))
    count = "--xla_force_host_platform_device_count=4"
    assert (status, sorted(out)) == (0, [f"[{k}] --of_the_user {count}" for k in range(2)])
    assert finish(start("print(os.environ['XLA_FLAGS'])", processes="1"))[1] == ["[0] --of_the_user"]


@pytest.mark.parametrize(
    ("processes", "devices", "want"),
    [
        (2, None, ["0,1", "2,3"]),
        (4, None, ["0", "1", "2", "3"]),
        (2, 1, ["0", "1"]),
        (3, None, ["0", "1", "2"]),
    ],
)
def test_each_process_has_its_share_of_the_gpus(processes, devices, want):
    shares = local.make_environments(processes, devices, {"A": "b"}, ["0", "1", "2", "3"])
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == want
    assert all(share["A"] == "b" and "XLA_FLAGS" not in share for share in shares)


@pytest.mark.parametrize(("processes", "devices"), [(5, None), (2, 3)])
def test_more_gpus_than_there_are_is_refused(processes, devices):
    with pytest.raises(UserError, match="there are 4"):
        local.make_environments(processes, devices, {}, ["0", "1", "2", "3"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--processes=2"], "put them after --"),
        (["--processes=2", "--"], "put them after --"),
        (["--processes=0", "--", "--gin_file=x"], "--processes=0: must be at least 1"),
        (["--processes=1", "--devices=-1", "--", "--gin_file=x"], "--devices=-1: must be at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(argv, said, capsys):
    assert local.main(argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_what_is_launched_is_the_run():
    assert (sys.executable, "-m", "diffenc.run") == local.PROGRAM
