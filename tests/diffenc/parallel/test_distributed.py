"""How processes meet, and that together they see the batches that one would see."""

import hashlib
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffenc.data.sources import epoch_order
from diffenc.errors import UserError
from diffenc.parallel import distributed
from diffenc.parallel.distributed import Address
from diffenc_plugins.datasets import Digits

BATCH, SEED, START, COUNT = 16, 3, 91, 5  # over the end of an epoch of 1,498 images

BATCHES = f"""
import hashlib, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from diffenc.parallel import distributed
from diffenc.data.batches import eval_batches, train_batches
from diffenc.training.clock import Clock
from diffenc.core.conditioning import UNCONDITIONAL
from diffenc.training.prefetch import Prefetcher
from diffenc.parallel.sharding import data_mesh, rows_here
from diffenc_plugins.datasets import Digits

if len(sys.argv) > 2:
    distributed.start_process_group(distributed.Address(sys.argv[1], 2, int(sys.argv[2])), detect=False, notice=False)
mesh, source = data_mesh(), Digits().source("train")
rows = rows_here(mesh, {BATCH})
batches = train_batches(source, {BATCH}, {SEED}, {START}, rows)
feed = Prefetcher(batches, UNCONDITIONAL, mesh, Clock())
for _ in range({COUNT}):
    levels = feed.take().levels
    whole = np.asarray(multihost_utils.process_allgather(levels, tiled=True))
    print(hashlib.sha256(whole.tobytes()).hexdigest(), *levels.shape)
print(len(rows), sum(len(batch["image"]) for batch, _ in eval_batches(source, {BATCH}, rows)))
batches.close()
"""


def _run(environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", BATCHES, *arguments]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _said(process: subprocess.Popen) -> list[str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return [line for line in out.splitlines() if not line.startswith("[Gloo]")]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """Digests of the batches, by hand."""
    images = np.stack([example["image"] for example in Digits().source("train")])
    order = np.concatenate([epoch_order(len(images), SEED, epoch) for epoch in (0, 1)])
    batches = [images[order[k * BATCH : (k + 1) * BATCH]] for k in range(START, START + COUNT)]
    return [f"{hashlib.sha256(batch.tobytes()).hexdigest()} {BATCH} 8 8 1" for batch in batches]


@pytest.mark.slow
def test_eight_devices_see_the_batches(expected):
    said = _said(_run({"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}))
    assert said[:-1] == expected
    assert said[-1] == f"{BATCH} {94 * BATCH}"


def test_two_processes_see_the_batches_each_half_of_them(expected):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    first, second = (_run({}, address, str(k)) for k in range(2))
    said = _said(first)
    _said(second)
    assert said[:-1] == expected
    assert said[-1] == f"{BATCH // 2} {94 * BATCH // 2}", "no image is read twice"


def test_rows_are_all_of_them_where_there_is_one_process():
    from diffenc.parallel.sharding import data_mesh, rows_here

    np.testing.assert_array_equal(rows_here(data_mesh(), 7), np.arange(7))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("h:1", None, None), "go together: give all three"),
        ((None, 2, 0), "go together: give all three"),
        (("h", 2, 0), "--coordinator=h: must be HOST:PORT of the process with --process_id=0"),
        (("h:x", 2, 0), "--coordinator=h:x: must be HOST:PORT"),
        (("h:1", 2, 2), "--process_id=2: must be from 0 to --num_processes - 1 = 1"),
        (("h:1", 2, -1), "--process_id=-1: must be from 0"),
    ],
)
def test_half_an_address_is_refused(given, says):
    with pytest.raises(UserError, match=says):
        distributed.parse_address(*given)


def test_an_address_is_what_the_flags_say():
    assert distributed.parse_address(None, None, None) is None
    assert distributed.parse_address("[::1]:80", 3, 2) == Address("[::1]:80", 3, 2)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4(x2)"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, True),
    ],
)
def test_what_a_launcher_announces(environment, several):
    assert distributed.has_several_processes(environment) is several


def test_alone_nothing_is_waited_for():
    distributed.start_process_group(None, detect=False, notice=True)
    assert not jax.distributed.is_initialized()
    assert distributed.is_main()
    distributed.barrier("nobody")
    assert distributed.main_process_only(lambda a, b=1: a + b)(2, b=3) == 5


def test_alone_an_error_is_raised_as_it_is():
    with pytest.raises(ValueError, match="Gloo"), distributed.translate_lost_process_errors():
        raise ValueError("Gloo, but alone")
    with pytest.raises(SystemExit) as left:
        distributed.exit_process(3)
    assert left.value.code == 3
