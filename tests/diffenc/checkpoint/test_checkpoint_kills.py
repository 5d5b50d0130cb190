"""Killed again and again, a process that saves every few steps ends with the bits of one that nothing disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from diffenc.checkpoint.checkpoints import Checkpoints

# Imports once, then a fresh process for every line it reads: it goes on from the newest checkpoint for ever.
NURSERY = """
import os, sys
import jax, numpy as np
from diffenc.checkpoint.checkpoints import Checkpoints
size = int(sys.argv[2])
for line in sys.stdin:
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    checkpoints, step = Checkpoints(sys.argv[1], keep_last=2), 0
    state = {name: np.full(size, i, np.uint32) for i, name in enumerate("abc")}
    if checkpoints.steps():
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
        tree, metadata, step = checkpoints.restore(abstract)
        assert metadata == {"step": step} and step == checkpoints.steps()[-1], "the newest could not be read"
        state = {name: np.asarray(leaf) for name, leaf in tree.items()}
    while True:
        state = {name: leaf * np.uint32(1664525) + np.uint32(1013904223) for name, leaf in state.items()}
        step += 1
        if step % 3 == 0:
            checkpoints.save(step, state, {"step": step})
"""


class Nursery:
    """Of processes that compute on three leaves of `size` numbers, and save."""

    def __init__(self, directory: Path, size: int):
        command = [sys.executable, "-c", NURSERY, str(directory), str(size)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def let_live(self, seconds: float) -> int:
        """The status of a process that is killed after so long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("go", file=self._process.stdin, flush=True)
        child = int(self._process.stdout.readline())
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.mark.slow
def test_thirty_kills_at_random_moments_leave_no_trace(tmp_path):
    size, rng = 20_000, random.Random(0)
    nursery, torn, newest = Nursery(tmp_path, size), [], [0]
    nursery.let_live(3.0)  # the imports
    for _ in range(30):
        assert nursery.let_live(rng.uniform(0.05, 0.3)) == -signal.SIGKILL
        torn.append(sum(not (tmp_path / name / "META.json").exists() for name in os.listdir(tmp_path)))
        newest.append(Checkpoints(tmp_path).steps()[-1])
    nursery.close()
    assert max(torn) == 1, "more than one thing left behind, or no kill fell into a write"
    assert newest == sorted(newest), "none was lost"
    assert newest[-1] > 100
    _assert_undisturbed(tmp_path, newest[-1], size)


def _assert_undisturbed(directory: Path, step: int, size: int) -> None:
    abstract = {name: jax.ShapeDtypeStruct((size,), np.uint32) for name in "abc"}
    tree = Checkpoints(directory).restore(abstract, step).tree
    for i, name in enumerate("abc"):
        value = i
        for _ in range(step):
            value = (value * 1664525 + 1013904223) % 2**32
        np.testing.assert_array_equal(tree[name], np.full(size, value, np.uint32))
