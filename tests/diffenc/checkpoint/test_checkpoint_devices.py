"""A checkpoint of any devices and processes comes back on any others, bit for bit; with real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffenc.checkpoint.checkpoints import Checkpoints

# What is saved and restored, and how it can be split; each script starts with it.
COMMON = """
import json, pathlib, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from diffenc.checkpoint import meta
from diffenc.checkpoint.checkpoints import Checkpoints, restore_from
from diffenc.errors import UserError

def whole():
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.normal(size=(3, 16, 8)).astype(np.float32),
        "moment": {"kernel": rng.normal(size=(16, 24)).astype(np.float32)},
        "bias": rng.integers(0, 2**32, 16, np.uint32),
        "half": jax.numpy.asarray(rng.normal(size=(8, 2)), "bfloat16"),
        "step": np.int32(7),
    }

SPLIT = {"kernel": P(None, "fsdp"), "moment": {"kernel": P("fsdp", "data")}, "bias": P("fsdp"), "half": P("data"),
         "step": P()}

def shardings(data, fsdp, split):
    devices = jax.devices()[:data * fsdp]
    mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    return jax.tree.map(lambda leaf, spec: NamedSharding(mesh, spec if split else P()), whole(), SPLIT)

def placed(data, fsdp, split):
    place = lambda leaf, sharding: jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at])
    return jax.tree.map(lambda l, s: place(np.asarray(l), s), whole(), shardings(data, fsdp, split))

def same(restored, data, fsdp, split):
    '''Sharded as asked for, and every shard the very bits.'''
    def leaf(found, expected, sharding):
        shards = found.addressable_shards
        bits = all(np.asarray(s.data).tobytes() == np.asarray(expected)[s.index].tobytes() for s in shards)
        return bits and found.sharding == sharding and found.dtype == expected.dtype
    return all(jax.tree.leaves(jax.tree.map(leaf, restored, whole(), shardings(data, fsdp, split))))

def abstract(data, fsdp, split):
    return jax.tree.map(lambda l, s: jax.ShapeDtypeStruct(l.shape, l.dtype, sharding=s), whole(), shardings(data, fsdp, split))
"""

EIGHT = """
root, found = pathlib.Path(sys.argv[1]), {}
MESHES = [(8, 1, False), (1, 8, True), (2, 4, True), (4, 1, False), (1, 4, True), (2, 1, False), (1, 2, True), (1, 1, False)]
for place in ("replicated", "split"):
    with Checkpoints(root / place) as checkpoints:
        checkpoints.save(7, placed(*((8, 1, False) if place == "replicated" else (2, 4, True))), {})
    for mesh in MESHES:
        tree = Checkpoints(root / place).restore(abstract(*mesh)).tree
        found[f"{place} on {mesh}"] = same(tree, *mesh)
        if mesh[:2] == (2, 4):  # each of eight copies is given up on its own
            added = jax.jit(lambda t: jax.tree.map(lambda x: x + x, t), donate_argnums=0)(tree)
            double = np.asarray(added["moment"]["kernel"])
            found[f"{place} given up"] = bool(np.array_equal(double, 2 * whole()["moment"]["kernel"]))
print(json.dumps(found))
"""

TWO = """
from jax.experimental import multihost_utils
root, index = pathlib.Path(sys.argv[1]), int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", num_processes=2, process_id=index)
barrier = multihost_utils.sync_global_devices
found = {"of one": same(Checkpoints(root / "split").restore(abstract(1, 2, True)).tree, 1, 2, True)}
barrier("before")
checkpoints = Checkpoints(root / "two", keep_last=2)
barrier("after")
for step in (1, 2, 3):
    if step == 2 and index == 0:
        (root / "two" / "000000002").mkdir()
        (root / "two" / "000000002" / "process_1").write_text("in the way of the other")
    barrier(f"save {step}")
    checkpoints.save(step, placed(1, 2, True), {"at": step})
    try:
        checkpoints.wait()
    except UserError as error:
        found["refused"] = str(error)
checkpoints.save(3, placed(1, 2, True), {"at": 33})
checkpoints.wait()
barrier("saved")
damaged = root / "two" / "000000003-1" / "process_1" / "blocks" / "c" / "0"
whole_again = damaged.read_bytes()
found["same"] = same(checkpoints.restore(abstract(1, 2, True)).tree, 1, 2, True)
barrier("restored")
if index == 1:
    damaged.write_bytes(b"")
barrier("damaged")
found["fell back to"] = checkpoints.restore(abstract(1, 2, True)).step  # only one of them reads that part
barrier("fell back")
damaged.write_bytes(whole_again)
found["steps"] = checkpoints.steps()
barrier("before the listing")
real = meta.list_checkpoints
if index == 1:
    meta.list_checkpoints = lambda store: {}  # as on a disk that is slow to show what the other wrote
stale = Checkpoints(root / "two", keep_last=2)
found["found"] = stale.found
found["step named"] = stale.restore(abstract(1, 2, True), 1).step
found["same then"] = stale.unchanged()
stale.save(1, placed(1, 2, True), {"at": 11})
stale.wait()
meta.list_checkpoints = real
found["same now"] = stale.unchanged()
found["saved again"] = restore_from(root / "two", abstract(1, 2, True), 1).metadata["at"]
(root / f"found_{index}.json").write_text(json.dumps(found))
"""


def _start(script: str, *arguments, devices: int = 1) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMMON + script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def of_eight(root) -> dict[str, bool]:
    """What a process of eight devices found; it left checkpoints in root/replicated and root/split."""
    process = _start(EIGHT, root, devices=8)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)


@pytest.fixture(scope="module")
def of_two(root, of_eight) -> list[dict]:
    """What each of two processes found; they left a checkpoint in root/two."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [_start(TWO, root, index, port) for index in (0, 1)]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads((root / f"found_{index}.json").read_text()) for index in (0, 1)]


def _whole() -> dict:
    namespace: dict = {}
    exec(COMMON, namespace)
    return namespace["whole"]()


def _assert_here(place: Path) -> None:
    """On this process's one device."""
    expected = _whole()
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), expected)
    found = Checkpoints(place).restore(abstract).tree
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, np.asarray(a).tobytes()) == (b.dtype, np.asarray(b).tobytes())


def test_of_eight_devices_on_eight_four_two_and_one(of_eight):
    assert len(of_eight) == 2 * 9
    assert [name for name, same in of_eight.items() if not same] == []


@pytest.mark.parametrize("place", ["replicated", "split"])
def test_of_eight_devices_in_another_process(root, of_eight, place):
    _assert_here(root / place)


def test_of_two_processes_on_one(root, of_two):
    _assert_here(root / "two")


def test_each_process_writes_its_own_shards_and_no_others(root, of_two):
    sizes = {name: leaf.nbytes for name, leaf in _whole().items() if name != "moment"}
    sizes["moment/kernel"] = 16 * 24 * 4
    for index in (0, 1):
        part = json.loads((root / "two" / "000000003-1" / f"process_{index}" / "index.json").read_text())
        halved = {"kernel", "moment/kernel", "bias"}
        assert set(part["pieces"]) == (halved if index else set(sizes)), "what both have the first writes"
        assert part["pieces"]["bias"] == [[[8 * index], [8], part["pieces"]["bias"][0][2]]]
        whole = sum(-(-sizes[name] // 64) * 64 for name in set(part["pieces"]) - halved)
        assert (
            part["size"] == whole + sum(sizes[name] // 2 for name in halved) + 32
        )  # half of the bias fills up


def test_two_processes_read_what_one_wrote_and_what_they_wrote(of_two):
    assert [(found["of one"], found["same"]) for found in of_two] == [(True, True)] * 2


def test_where_one_process_cannot_write_neither_saves_and_both_go_on(root, of_two):
    assert [found["steps"] for found in of_two] == [[1, 3]] * 2
    assert "step 2 was not saved" in of_two[0]["refused"]
    assert "process 1: " in of_two[0]["refused"]
    assert "step 2 was not saved" in of_two[1]["refused"]
    assert sorted(path.name for path in (root / "two").iterdir()) == ["000000001-1", "000000003-1"]


def test_where_one_process_cannot_read_both_take_an_older_one(of_two):
    assert [found["fell back to"] for found in of_two] == [1, 1]


def test_what_is_there_the_first_tells_all(of_two):
    for found in of_two:
        assert (found["found"], found["step named"], found["saved again"]) == ([1, 3], 1, 11)
        assert (found["same then"], found["same now"]) == (True, False)
