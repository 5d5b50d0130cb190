"""Bars as a person sees them, on a pseudo-terminal, and as a file has them."""

import os
import pty
import re
import subprocess
import sys

import pytest

PROGRAM = """
from diffenc.runtime.progress_bars import Bars
with Bars() as bars:
    advance = bars.start("reading", 4)
    advance(3)
"""
ESCAPE = re.compile(r"\x1b\[([\d;]*)m")
COLOURS = re.compile(r"(?:^|;)(?:[34][0-8]|9[0-7]|10[0-7])(?:;|$)")
SAID = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


def environment(**said):
    plain = {name: value for name, value in os.environ.items() if name not in SAID}
    return plain | {"TERM": "xterm-256color", "COLUMNS": "100"} | said


def on_terminal(env):
    """What Bars writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, env=env) as child:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 1 << 16):
                written += part
        except OSError:  # Linux's end of a terminal that nobody holds
            pass
    os.close(ours)
    assert child.returncode == 0
    return written.decode()


@pytest.mark.parametrize(("said", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_takes_the_colours_away_and_leaves_the_bar(said, coloured):
    written = on_terminal(environment(**said))
    assert any(COLOURS.search(style) for style in ESCAPE.findall(written)) == coloured
    assert re.search(r"reading .*━.* .*3/4", ESCAPE.sub("", written))


def test_a_file_has_no_escapes():
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0
    assert "reading" in done.stderr
    assert "3/4" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
