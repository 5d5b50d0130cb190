"""Who has given no sign of life for too long; with real processes in tests/cli/test_processes.py."""

import time

from diffenc.parallel.heartbeat import BEAT, Heartbeat


class Board:
    """A key-value store like JAX's."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.values.items() if name.startswith(f"{key}/")]


def long_ago(watcher: Heartbeat, seconds: float):
    """Has it seen the last sign of everybody so long ago."""
    watcher._seen = dict.fromkeys(watcher._seen, time.monotonic() - seconds)


def test_who_gives_signs_is_not_silent_and_who_stops_is():
    board = Board()
    first, second = (Heartbeat(board, number, 3, lost_after=30.0, message="") for number in (0, 1))
    first.exchange(1)
    second.exchange(1)
    long_ago(second, 29)
    assert second.lost_processes(time.monotonic()) == []
    long_ago(second, 31)
    second.exchange(2)
    assert second.lost_processes(time.monotonic()) == ["0", "2"], "the sign of 0 is that of before"
    first.exchange(2)
    second.exchange(3)
    assert second.lost_processes(time.monotonic()) == ["2"]


def test_the_first_which_keeps_the_board_lets_the_others_see_it_too():
    first = Heartbeat(Board(), 0, 2, lost_after=30.0, message="")
    long_ago(first, 31)
    first.exchange(1)
    assert first.lost_processes(time.monotonic()) == []
    long_ago(first, 31 + 2 * BEAT)
    first.exchange(2)
    assert first.lost_processes(time.monotonic()) == ["1"]
