"""Signals, sent for real to this very process or to a child."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from diffenc.devices.interrupts import Interrupted, Interrupts

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture(autouse=True)
def _handlers():
    """Nothing here may leave pytest with other handlers than it had."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before


@pytest.mark.parametrize("signum", SIGNALS)
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


def test_a_second_sigterm_ends_a_process_that_does_not_leave():
    hang = """
import time
from diffenc.devices.interrupts import Interrupts
with Interrupts():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""
    with subprocess.Popen([sys.executable, "-c", hang], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM
