"""Lines of progress, by a clock that the test moves; bars as a person sees them on a pseudo-terminal, and as a file has them."""

import os
import pty
import re
import subprocess
import sys

import pytest

from diffenc.runtime import progress


class Time:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch):
    moved = Time()
    monkeypatch.setattr(progress, "time", moved)
    return moved


@pytest.fixture
def lines(monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(progress.logging, "info", lambda text, *values: written.append(text % values))
    return written


def test_a_line_at_most_every_so_often(time, lines):
    show = progress.Progress("evaluation", total=10, every=10.0)
    for _ in range(10):
        time.now += 6
        show()
    # calls at 6, 12, 18, ... 60 s: the first at or after 10 s since the last line speaks, the last call never
    assert lines == [
        "evaluation: 2 of 10, 48 s left",
        "evaluation: 4 of 10, 36 s left",
        "evaluation: 6 of 10, 24 s left",
        "evaluation: 8 of 10, 12 s left",
    ]


def test_what_is_quick_says_nothing(time, lines):
    show = progress.Progress("samples", total=3)
    for _ in range(3):
        time.now += 3
        show()
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (12.2, "12 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (7519, "2 h 5 min"),
        (86400 * 3 + 3600 * 4 + 59, "3 d 4 h"),
    ],
)
def test_durations_in_their_two_largest_units(seconds, text):
    assert progress.format_duration(float(seconds)) == text


PROGRAM = """
from diffenc.runtime.progress import ProgressBars
with ProgressBars() as bars:
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
    """What bars write to a terminal."""
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
