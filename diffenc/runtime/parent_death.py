"""Runs a command that is killed when its parent is gone (on Linux), on some of the machine's cores.

  python tied.py PARENT CORES COMMAND...      PARENT a pid, CORES their numbers with commas between, or "all"

A program of its own, since what runs between fork and exec of a process with threads may never end.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sequence

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


def tie_to_parent(command: Sequence[str], cores: Iterable[int] = ()) -> list[str]:
    """`command`, to be killed when this process is gone, on `cores` or all of them."""
    chosen = ",".join(map(str, sorted(cores))) or "all"
    return [sys.executable, "-S", "-E", __file__, str(os.getpid()), chosen, *command]


def main() -> None:
    parent, cores, *command = sys.argv[1:]
    if sys.platform == "linux":
        # Survives execvp, which keeps the process; the kernel then needs no cooperation of the command.
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != int(parent):  # gone before this was tied to it
            os._exit(128 + signal.SIGKILL)
    if cores != "all":
        os.sched_setaffinity(0, map(int, cores.split(",")))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
