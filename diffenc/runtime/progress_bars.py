"""Progress on standard error, one bar a task."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]  # told how many more are done
Start = Callable[[str, int | None], Advance]  # `Bars.start`


def unseen(task: str, total: int | None) -> Advance:
    """A bar that is not shown."""
    del task, total
    return lambda count: None


class Bars:
    """Shown while entered."""

    def __init__(self):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self._progress.stop()

    def start(self, task: str, total: int | None) -> Advance:
        """A bar of `total` things (None: it is not known how many); moved on by what is returned."""
        number = self._progress.add_task(task, total=total)
        return lambda count: self._progress.advance(number, count)
