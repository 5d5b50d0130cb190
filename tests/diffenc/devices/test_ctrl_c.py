"""Ctrl-C where Python ignores what it raises."""

import os
import signal
import sys

import pytest

from diffenc.devices import ctrl_c
from diffenc.progress import Progress


@pytest.fixture(autouse=True)
def _a_terminal():
    """Ctrl-C means what it does in a program begun at a terminal, and what is changed is put back."""
    before, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    yield
    after = signal.signal(signal.SIGINT, before)
    assert (after, sys.unraisablehook) == (signal.default_int_handler, hook)


def press():
    os.kill(os.getpid(), signal.SIGINT)


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
