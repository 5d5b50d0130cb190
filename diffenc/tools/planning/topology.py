"""Absent machines as targets of XLA's compilers: `v5e:4x8`, `h100:8`.

A TPU's compiler is in the package libtpu, that of NVIDIA's GPUs in JAX's CUDA plugin; neither needs the device.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from jax.experimental import topologies

from diffenc.errors import UserError, nearest
from diffenc.runtime.accelerators import ACCELERATORS, Accelerator

TPU, CUDA = "tpu", "cuda"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of chip.

    Attributes:
      accelerator: its key in ACCELERATORS.
      platform: the compiler it needs, TPU or CUDA.
      name: the compiler's name of the chip, or its description of a GPU.
      clock: cycles per second of a TPU compiler's estimates; the stated peak is that of the multipliers at this clock.
      dims: number of sides of a topology.
      cores: devices per chip, as JAX counts them.
      options: options of the compiler.
    """

    accelerator: str
    platform: str
    name: str
    clock: float = 0.0
    dims: int = 1
    cores: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _nvidia(name: str, multiprocessors: int, gigahertz: float, gigabytes: float, bandwidth: float) -> str:
    """Returns XLA's target config of a GPU of compute capability 9.0: sizes in bytes, `bandwidth` in GB/s."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: {multiprocessors} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth * 1e9:.0f} l2_cache_size: 52428800 clock_rate_ghz: {gigahertz}
  device_memory_size: {gigabytes * 1e9:.0f} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""


_MEGACORE = {"chip_config_name": "megacore"}  # both cores of a chip are one device, as in practice
KINDS = {
    "v2": Kind("tpu_v2", TPU, "v2", 0.70e9, 2, 2),
    "v3": Kind("tpu_v3", TPU, "v3", 0.94e9, 2, 2),
    "v4": Kind("tpu_v4", TPU, "v4", 1.05e9, 3, 1, _MEGACORE),
    "v5e": Kind("tpu_v5e", TPU, "v5e", 1.50e9, 2),
    "v5p": Kind("tpu_v5p", TPU, "v5p", 1.75e9, 3),
    "v6e": Kind("tpu_v6e", TPU, "v6e", 1.75e9, 2),
    "v7x": Kind("tpu_v7", TPU, "TPU7x", 2.20e9, 3, 2),
    "h100": Kind("h100", CUDA, _nvidia("NVIDIA H100 80GB HBM3", 132, 1.98, 84.93, 3352.0)),
    "h200": Kind("h200", CUDA, _nvidia("NVIDIA H200", 132, 1.98, 150.0, 4800.0)),
}
ALIASES = {"tpu7x": "v7x"} | {kind.accelerator: name for name, kind in KINDS.items()}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind, with their number along each side; GPUs are in one host."""

    text: str
    kind: Kind
    sides: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        return math.prod(self.sides) * self.kind.cores

    @property
    def accelerator(self) -> Accelerator:
        return ACCELERATORS[self.kind.accelerator]


def parse_topology(text: str) -> Topology:
    """Returns the machine named by `text`, as "v5e:4x8". Raises UserError if there is no such machine."""
    name, _, layout = text.lower().partition(":")
    name = ALIASES.get(name, name)
    if name not in KINDS:
        raise UserError(f"--topology={text}: no such machine; nearest: {nearest(name, KINDS)}; {examples()}")
    kind = KINDS[name]
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*", layout) or layout.count("x") + 1 != kind.dims:
        raise UserError(f"--topology={text}: {name} takes {_layout(kind)}; {examples()}")
    return Topology(text, kind, tuple(map(int, layout.split("x"))))


def examples() -> str:
    """Returns examples of topologies, for a message."""
    return "one is " + ", ".join(f"{name}:{'x'.join('2' * kind.dims)}" for name, kind in KINDS.items())


def _layout(kind: Kind) -> str:
    return (
        "a number of GPUs, as 8" if kind.dims == 1 else f"{kind.dims} sides, as {'x'.join('4' * kind.dims)}"
    )


def missing_compiler(topology: Topology) -> str | None:
    """Returns the command that installs the compiler for `topology`; None if it is installed."""
    if topology.kind.platform == TPU:
        absent = importlib.util.find_spec("libtpu") is None
        return "pip install 'diffenc[plan-tpu]'" if absent else None
    if any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return None
    parts = (f"jax-cuda12-{part}=={metadata.version('jaxlib')}" for part in ("plugin", "pjrt"))
    return f"pip install --no-deps {' '.join(parts)}"


def list_devices(topology: Topology) -> list[Any]:
    """Returns devices to compile for, which cannot compute.

    Raises:
      UserError: the compiler cannot be loaded, or does not support the machine.
    """
    try:
        if topology.kind.platform == TPU:
            return list(_tpu_devices(topology))
        return list(
            topologies.get_topology_desc(
                platform=CUDA, target_config=topology.kind.name, topology=f"1x1x{topology.sides[0]}"
            ).devices
        )
    except Exception as error:  # of a library of another version, whatever it raises
        raise UserError(f"--topology={topology.text}: the installed compiler says: {error}") from error


def _tpu_devices(topology: Topology) -> list[Any]:
    # Without these, libtpu searches at length for the host's own TPU, and refuses to be loaded by two processes at once.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    sides = (*topology.sides, 1)[:3]
    # A host has 2 x 2 chips where the sides are even, else fewer.
    host = tuple(math.gcd(side, 2) for side in sides[:2])
    return topologies.get_topology_desc(
        platform=TPU,
        topology_name=f"{topology.kind.name}:{'x'.join(map(str, topology.sides))}",
        chips_per_host_bounds=(*host, 1),
        **topology.kind.options,
    ).devices
