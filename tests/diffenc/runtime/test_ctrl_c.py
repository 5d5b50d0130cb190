"""Ctrl-C where Python ignores what it raises."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from diffenc.runtime import ctrl_c
from diffenc.runtime.progress import Progress


@pytest.fixture(autouse=True)
def _a_terminal():
    """Ctrl-C means what it does in a program begun at a terminal, and what is changed is put back."""
    before, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    yield
    after = signal.signal(signal.SIGINT, before)
    assert (after, sys.unraisablehook) == (signal.default_int_handler, hook)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def work(seconds: float):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


class Pressed:
    """Its destructor is where Ctrl-C comes."""

    def __del__(self):
        press()


def test_one_that_was_lost_ends_the_work_at_its_next_part(capsys):
    progress = Progress("work", 3)
    with ctrl_c.noted():
        progress()
        lost = Pressed()
        del lost
        with pytest.raises(KeyboardInterrupt):
            progress()
        progress()  # once is enough
    assert capsys.readouterr().err == ""


def test_one_that_was_lost_is_raised_again_also_where_nobody_asks():
    """Lost twice, in callbacks of the garbage collector."""
    presses = [press, lambda: work(5)]

    def collected(phase, info):
        if phase == "start" and presses:
            presses.pop(0)()

    def collect_and_work():
        with ctrl_c.noted():
            gc.collect()
            gc.collect()
            work(10)

    began = time.monotonic()
    gc.callbacks.append(collected)
    try:
        with pytest.raises(KeyboardInterrupt):
            collect_and_work()
    finally:
        gc.callbacks.remove(collected)
    assert not presses
    assert time.monotonic() < began + 9


def test_one_that_is_to_be_raised_again_does_not_end_the_next_work():
    def lose_and_ask():
        with ctrl_c.noted():
            lost = Pressed()
            del lost
            ctrl_c.check()

    with pytest.raises(KeyboardInterrupt):
        lose_and_ask()
    with ctrl_c.noted():
        work(4 * ctrl_c.AGAIN)


@contextlib.contextmanager
def running(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said it is ready; killed in the end, if it then still runs."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.5)  # until it hangs
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("where", ["libc.pthread_mutex_lock(lock)", "pass"])
def test_a_second_one_ends_a_program_whatever_is_going_on(where):
    """Native code that no signal wakes and no thread can run beside; and Python that swallows everything."""
    hang = f"""
import ctypes, os
from diffenc.devices import ctrl_c
lock, libc = ctypes.create_string_buffer(256), ctypes.PyDLL(None)
with ctrl_c.noted():
    try:
        os.write(1, b"ready\\n")
        while True:
            {where}
    except BaseException:
        pass
    while True:
        {where}
"""
    with running(hang) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT


def test_it_raises_at_once_as_ever_and_what_this_process_does_next_goes_on():
    with pytest.raises(KeyboardInterrupt), ctrl_c.noted():
        press()
    with ctrl_c.noted():
        Progress("the next work", 1)()


def test_what_ctrl_c_means_to_others_is_left():
    def others(signum, frame):
        heard.append(signum)

    heard = []
    before = signal.signal(signal.SIGINT, others)
    with ctrl_c.noted():
        press()
        Progress("work", 1)()
    assert heard == [signal.SIGINT]
    assert signal.signal(signal.SIGINT, before) is others
