"""Parts of the benchmark in which the host takes part: the input pipeline, and checkpoints."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import UInt8

from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.data.batches import train_batches
from diffenc.interfaces import Batch, Images
from diffenc.parallel.sharding import images_to_devices
from diffenc.training.clock import Clock
from diffenc.training.prefetch import InFlightLimiter, Prefetcher
from diffenc.training.state import abstract_state
from experiments.benchmark.subject import Subject
from experiments.timing import Call, Times, time_call, time_interleaved


def pipeline(subject: Subject) -> dict[str, Any]:
    """Images a second from a data set in memory onto the devices, and how long the step waits for them."""
    experiment, settings = subject.experiment, subject.settings
    batches = train_batches(subject.source, experiment.batch_size, experiment.seed)

    def put() -> Images:
        return images_to_devices(next(batches), experiment.model.conditioning, subject.mesh)

    logging.info("timing the input pipeline")
    try:
        took = time_interleaved({"batch": put}, settings.rounds, settings.least)["batch"]
        return {
            "images": len(subject.source),
            "batch": took.figures(),
            "images_per_second": experiment.batch_size / took.median,
            **fed(subject, batches),
        }
    finally:
        batches.close()


def fed(subject: Subject, batches: Iterator[Batch]) -> dict[str, Any]:
    """Steps on batches of the pipeline, as training takes them, beside steps on one that stays on the devices."""
    stepper, clock, in_flight = subject.stepper, Clock(), InFlightLimiter()
    feed = Prefetcher(batches, subject.experiment.model.conditioning, subject.mesh, clock)

    def step() -> jax.Array:
        done = jnp.copy(stepper.take(feed.take()))
        in_flight.add(done)
        clock.tick()
        return done

    logging.info("timing steps that are fed")
    calls = {"resident": stepper, "fed": step}
    took = time_interleaved(calls, subject.settings.rounds, subject.settings.least)
    clock.restart()  # alone now: while others step, batches pile up
    in_a_row = time_call(step, subject.settings.rounds * took["fed"].calls)
    waited = clock.speed().data_wait
    return {
        "steps": {name: times.figures() for name, times in took.items()},
        "fed_over_resident": took["fed"].over(took["resident"]),
        "wait_seconds_per_step": waited,
        "share_waited": waited / in_a_row,
    }


def checkpoints(subject: Subject, folder: Path | None = None) -> dict[str, Any]:
    """Saving and restoring the state, beside the same bytes in one file.

    Args:
      folder: on the disk in question; None = where temporary files are.
    """
    rounds, state, flat = subject.settings.rounds, subject.stepper.state, bytes_of(subject.stepper.state)
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        Checkpoints(Path(name, "ours"), keep_last=1) as ours,
    ):
        logging.info("timing checkpoints of %.1f MB", flat.nbytes / 1e6)
        saver, file = Saver(ours, state), File(Path(name), flat)
        writes = time_interleaved({"save": saver, "file": file}, rounds, least=0.0)
        abstract = abstract_state(subject.experiment, subject.mesh)
        calls = {"restore": lambda: ours.restore(abstract).tree, "file": lambda: np.load(file.path)}
        cached = time_interleaved(calls, rounds, least=0.0)
        reads = from_disk(calls, Path(name), rounds)
    held = Times(np.asarray(saver.held[-rounds:]))
    return {
        "bytes": flat.nbytes,
        "save": writes["save"].figures(),
        "save_holds_training_up": held.figures(),
        "held_up_over_save": held.over(writes["save"]),
        "file_write": writes["file"].figures(),
        "save_over_file": writes["save"].over(writes["file"]),
        "restore": reads["restore"].figures(),
        "file_read": reads["file"].figures(),
        "restore_over_file": reads["restore"].over(reads["file"]),
        "restore_cached": cached["restore"].figures(),
        "file_read_cached": cached["file"].figures(),
        "restore_over_file_cached": cached["restore"].over(cached["file"]),
    }


def from_disk(calls: Mapping[str, Call], folder: Path, rounds: int) -> dict[str, Times]:
    """`time_interleaved`, where what is in `folder` has to come from the disk, as after a machine's restart."""
    rows: list[dict[str, float]] = []
    for _ in range(1 + rounds):  # the first warms up
        rows.append({})
        for name, call in calls.items():
            forget(folder)
            rows[-1][name] = time_call(call, 1)
    return {name: Times(np.asarray([row[name] for row in rows[1:]])) for name in calls}


def forget(folder: Path) -> None:
    """Have the operating system give up its copies, in memory, of the files in `folder`."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class File:
    """Calling it writes `array` to a new file, on disk when it returns, and then removes the one before.

    Attributes:
      path: the newest.
    """

    def __init__(self, folder: Path, array: np.ndarray):
        self._folder, self._array, self._number = folder, array, 0

    def __call__(self) -> None:
        before = self.path
        self._number += 1
        write(self.path, self._array)
        before.unlink(missing_ok=True)

    @property
    def path(self) -> Path:
        return self._folder / f"{self._number}.npy"


class Saver:
    """Calling it saves, and waits until the checkpoint is on disk.

    Attributes:
      held: seconds that each call of `save` took to return.
    """

    def __init__(self, checkpoints: Checkpoints, state: Any):
        self._checkpoints, self._state, self._step = checkpoints, state, 0
        self.held: list[float] = []

    def __call__(self) -> None:
        began = time.perf_counter()
        self._step += 1
        self._checkpoints.save(self._step, self._state, {})
        self.held.append(time.perf_counter() - began)
        self._checkpoints.wait()


def bytes_of(tree: Any) -> UInt8[np.ndarray, " n"]:
    """All leaves one after the other."""
    return np.concatenate([np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(tree)])


def write(path: Path, array: np.ndarray) -> None:
    """np.save, on disk when it returns."""
    with open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
