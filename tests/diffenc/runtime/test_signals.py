"""Signals, sent for real to this very process or to a child; Ctrl-C where Python ignores what it raises."""

import contextlib
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from diffenc.runtime.progress import Progress
from diffenc.runtime.signals import (
    RAISE_AGAIN_AFTER,
    Interrupted,
    Interrupts,
    raise_lost_interrupt,
    reliable_ctrl_c,
)

SIGNALS = [signal.SIGTERM, signal.SIGINT]
NOTICES = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(autouse=True)
def _handlers():
    """Nothing here may leave pytest with other handlers than it had."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS + NOTICES}
    yield
    assert {signum: signal.getsignal(signum) for signum in SIGNALS + NOTICES} == before


@pytest.mark.parametrize("signum", SIGNALS + NOTICES)
def test_a_signal_is_remembered_until_asked_for(signum):
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signum)
        with pytest.raises(Interrupted, match=signum.name) as interrupted:
            interrupts.check()
    assert interrupted.value.signum == signum


def test_nothing_is_raised_before_it_is_asked_for():
    seen = []
    with Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("still here")
    assert seen == ["still here"]


def test_after_the_first_signal_the_second_does_what_it_did():
    def press_twice():
        with Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        press_twice()


@pytest.mark.parametrize(("first", "then"), [SIGNALS, SIGNALS[::-1]])
def test_one_of_the_other_kind_is_the_same_request(first, then, capfd):
    with Interrupts() as interrupts:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), then)
        with pytest.raises(Interrupted) as interrupted:
            interrupts.check()
    assert interrupted.value.signum == first
    assert capfd.readouterr().err.count("stopping") == 1


def test_what_is_ignored_before_is_heeded_once_and_then_ignored_again():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Interrupted):
                interrupts.check()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_there_is_nothing_to_remember():
    failures = []

    def enter():
        try:
            with Interrupts() as interrupts:
                interrupts.check()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert failures == []


@pytest.mark.parametrize("signum", NOTICES)
def test_what_may_come_twice_for_one_cause_is_one_request(signum, capfd):
    """The terminal and the shell both tell of a closed connection."""
    with Interrupts() as interrupts:
        for _ in range(3):
            os.kill(os.getpid(), signum)
        with pytest.raises(Interrupted, match=signum.name):
            interrupts.check()
    assert capfd.readouterr().err == "stopping after this step, and saving\n"


@pytest.mark.parametrize("signum", NOTICES)
def test_what_is_ignored_as_by_nohup_or_has_a_handler_of_its_own_stays_so(signum):
    heard = []
    for handler in (signal.SIG_IGN, lambda number, frame: heard.append(number)):
        before = signal.signal(signum, handler)
        try:
            with Interrupts() as interrupts:
                os.kill(os.getpid(), signum)
                interrupts.check()
            assert signal.getsignal(signum) is handler
        finally:
            signal.signal(signum, before)
    assert heard == [signum]


def test_a_handler_of_faulthandlers_stays_which_python_does_not_know_of(tmp_path):
    with (tmp_path / "stacks").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file)
        try:
            with Interrupts() as interrupts:
                os.kill(os.getpid(), signal.SIGUSR1)
                interrupts.check()
        finally:
            faulthandler.unregister(signal.SIGUSR1)
    assert "test_signals.py" in (tmp_path / "stacks").read_text()


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


# Native code that no signal wakes, and that keeps Python from running any other thread.
HANG = """
import ctypes, os, sys
from diffenc.runtime.signals import Interrupts, reliable_ctrl_c
lock, libc = ctypes.create_string_buffer(256), ctypes.PyDLL(None)
with reliable_ctrl_c(), Interrupts():
    os.write(1, b"ready\\n")
    while True:
        libc.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_second_one_ends_a_program_also_amid_native_code(signum):
    with running(HANG) as process:
        process.send_signal(signum)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.send_signal(signum)
        assert process.wait(timeout=10) == -signum


def test_amid_python_too():
    hang = HANG.replace("libc.pthread_mutex_lock(lock)", "pass")
    with running(hang) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT


@pytest.fixture
def at_terminal():
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


def test_one_that_was_lost_ends_the_work_at_its_next_part(at_terminal, capsys):
    progress = Progress("work", 3)
    with reliable_ctrl_c():
        progress()
        lost = Pressed()
        del lost
        with pytest.raises(KeyboardInterrupt):
            progress()
        progress()  # once is enough
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_one_that_was_lost_is_raised_again_also_where_nobody_asks(at_terminal):
    """Lost twice, in callbacks of the garbage collector."""
    presses = [press, lambda: work(5)]

    def collected(phase, info):
        if phase == "start" and presses:
            presses.pop(0)()

    def collect_and_work():
        with reliable_ctrl_c():
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


def test_one_that_is_to_be_raised_again_does_not_end_the_next_work(at_terminal):
    def lose_and_ask():
        with reliable_ctrl_c():
            lost = Pressed()
            del lost
            raise_lost_interrupt()

    with pytest.raises(KeyboardInterrupt):
        lose_and_ask()
    with reliable_ctrl_c():
        work(4 * RAISE_AGAIN_AFTER)


@pytest.mark.parametrize("where", ["libc.pthread_mutex_lock(lock)", "pass"])
def test_a_second_one_ends_a_program_whatever_is_going_on(at_terminal, where):
    """Native code that no signal wakes and no thread can run beside; and Python that swallows everything."""
    hang = f"""
import ctypes, os
from diffenc.runtime.signals import reliable_ctrl_c
lock, libc = ctypes.create_string_buffer(256), ctypes.PyDLL(None)
with reliable_ctrl_c():
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


def test_it_raises_at_once_as_ever_and_what_this_process_does_next_goes_on(at_terminal):
    with pytest.raises(KeyboardInterrupt), reliable_ctrl_c():
        press()
    with reliable_ctrl_c():
        Progress("the next work", 1)()


def test_what_ctrl_c_means_to_others_is_left(at_terminal):
    def others(signum, frame):
        heard.append(signum)

    heard = []
    before = signal.signal(signal.SIGINT, others)
    with reliable_ctrl_c():
        press()
        Progress("work", 1)()
    assert heard == [signal.SIGINT]
    assert signal.signal(signal.SIGINT, before) is others
