"""Lines of progress, by a clock that the test moves."""

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
    assert progress.duration(float(seconds)) == text
