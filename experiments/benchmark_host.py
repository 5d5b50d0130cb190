"""Parts of the benchmark in which the host takes part: the input pipeline, and checkpoints."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import UInt8

from diffenc.batches import train_batches
from diffenc.checkpoint import Checkpoints
from diffenc.clock import Clock
from diffenc.feed import Feed, InFlight
from diffenc.interfaces import Batch
from diffenc.sharding import to_devices
from diffenc.train_state import abstract_state
from experiments.benchmark_subject import Subject
from experiments.timing import Times, side_by_side, timed


def pipeline(subject: Subject) -> dict[str, Any]:
    """Images a second from a data set in memory onto the devices, and how long the step waits for them."""
    experiment, settings = subject.experiment, subject.settings
    batches = train_batches(subject.source, experiment.batch_size, experiment.seed)

    def put() -> jax.Array:
        return to_devices(next(batches)["image"], subject.mesh)

    logging.info("timing the input pipeline")
    try:
        took = side_by_side({"batch": put}, settings.rounds, settings.least)["batch"]
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
    stepper, clock, in_flight = subject.stepper, Clock(), InFlight()
    feed = Feed(batches, subject.mesh, clock)

    def step() -> jax.Array:
        done = jnp.copy(stepper.take(feed.take()))
        in_flight.add(done)
        clock.tick()
        return done

    logging.info("timing steps that are fed")
    calls = {"resident": stepper, "fed": step}
    took = side_by_side(calls, subject.settings.rounds, subject.settings.least)
    clock.restart()  # alone now: while others step, batches pile up
    in_a_row = timed(step, subject.settings.rounds * took["fed"].calls)
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
    rounds, least = subject.settings.rounds, 0.0
    state, flat = subject.stepper.state, bytes_of(subject.stepper.state)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        at = Path(name)
        with Checkpoints(at / "ours", keep_last=1) as ours:
            saver = Saver(ours, state)
            logging.info("timing checkpoints of %.1f MB", flat.nbytes / 1e6)
            writes = side_by_side(
                {"save": saver, "file": lambda: write(at / "flat.npy", flat)}, rounds, least
            )
            abstract = abstract_state(subject.experiment, subject.mesh)
            reads = side_by_side(
                {"restore": lambda: ours.restore(abstract).tree, "file": lambda: np.load(at / "flat.npy")},
                rounds,
                least,
            )
    held = Times(np.asarray(saver.held[-rounds:]))
    return {
        "bytes": flat.nbytes,
        "save": writes["save"].figures(),
        "save_holds_training_up": held.figures(),
        "file_write": writes["file"].figures(),
        "save_over_file": writes["save"].over(writes["file"]),
        "restore": reads["restore"].figures(),
        "file_read": reads["file"].figures(),
        "restore_over_file": reads["restore"].over(reads["file"]),
    }


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
