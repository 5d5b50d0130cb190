"""Runs a command that is killed when its parent exits (on Linux), on selected CPU cores.

  python parent_death.py PARENT CORES COMMAND...      PARENT is a pid; CORES are numbers separated by commas, or "all"

A separate program, since Python code between fork and exec of a process with threads can deadlock.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sequence

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


def tie_to_parent(command: Sequence[str], cores: Iterable[int] = ()) -> list[str]:
    """Returns `command` with a prefix, by which it is killed when this process exits, and runs on `cores` (none = all)."""
    chosen = ",".join(map(str, sorted(cores))) or "all"
    return [sys.executable, "-S", "-E", __file__, str(os.getpid()), chosen, *command]


def main() -> None:
    parent, cores, *command = sys.argv[1:]
    if sys.platform == "linux":
        # The setting survives execvp, so the kernel kills the command without its cooperation.
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != int(parent):  # gone before this was tied to it
            os._exit(128 + signal.SIGKILL)
    if cores != "all":
        os.sched_setaffinity(0, map(int, cores.split(",")))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
