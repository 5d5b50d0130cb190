"""Ctrl-C where Python ignores what it raises."""

import os
import signal
import sys

import pytest

from diffenc.devices import ctrl_c
from diffenc.progress import Progress


@pytest.fixture
def noting():
    before, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    ctrl_c.note()
    yield
    sys.unraisablehook = hook
    signal.signal(signal.SIGINT, before)
    ctrl_c._noted.clear()


class Interrupted:
    """Its destructor is where Ctrl-C comes."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


def test_one_that_was_lost_ends_the_work_at_its_next_part(noting):
    progress = Progress("work", 3)
    progress()
    lost = Interrupted()
    del lost
    with pytest.raises(KeyboardInterrupt):
        progress()
    progress()  # once is enough


def test_it_raises_at_once_as_ever(noting):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_ctrl_c_means_to_others_is_left(noting):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctrl_c.note()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
