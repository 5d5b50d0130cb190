"""Weak scaling estimated from data sheets: time of computing, best time of the all-reduce, and efficiency.

  compute     = FLOPs per image x images per device / (peak x share)
  all-reduce  = 2 (N - 1) / N x bytes / bandwidth          a ring, or simultaneous rings along all axes of a torus
  efficiency  = compute / (compute + exposed)              exposed: communication not overlapped with computing

A cluster of several levels reduces within the inner one, then 1 / N of it over the next (hierarchical all-reduce).
Latency, stragglers and the input pipeline are neglected.
"""

import dataclasses
import math

from diffenc.runtime.accelerators import ACCELERATORS
from diffenc.tools.planning.flops import Work
from diffenc.tools.planning.step_time import flops_by_operands

BYTES = 4  # per parameter: gradients are float32


@dataclasses.dataclass(frozen=True)
class Level:
    """A network of `size` devices, or groups of them. `bandwidth`: peak bytes/s sent by a device."""

    size: int
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Devices and the levels of their network, innermost first. `accelerator`: a key of `accelerators.ACCELERATORS`."""

    name: str
    accelerator: str
    levels: tuple[Level, ...]

    @property
    def devices(self) -> int:
        return math.prod(level.size for level in self.levels)


def make_torus(name: str, accelerator: str, link: float, *axes: int) -> Cluster:
    """Returns a TPU slice, where a chip has two links along each axis, or one if the axis does not close to a ring.

    Slices of whole 4 x 4 x 4 cubes close along all axes, smaller ones along none.

    Args:
      link: bytes/s in one direction.
      axes: number of chips along each axis.
    """
    links = 2 if all(size % 4 == 0 for size in axes) else 1
    bandwidth = link * links * sum(size > 1 for size in axes)
    return Cluster(name, accelerator, (Level(math.prod(axes), bandwidth),))


def make_gpu_nodes(name: str, accelerator: str, count: int) -> Cluster:
    """Returns nodes of 8 GPUs, with NVLink within a node and one network card per GPU between nodes."""
    return Cluster(name, accelerator, (Level(8, NVLINK), Level(count, INFINIBAND)))


# Bytes/s in one direction.
V4_LINK = 50e9  # Jouppi et al., TPU v4 (arXiv:2304.01433): six links of 50 GB/s
V5P_LINK = 100e9  # Google Cloud, TPU v5p: 1,200 GB/s a chip in both directions together, six links
NVLINK = 450e9  # NVIDIA, H100 SXM and H200 SXM: NVLink 900 GB/s a GPU, both directions together
INFINIBAND = 50e9  # NVIDIA, DGX H100 and DGX H200: eight ports of 400 Gbit/s for eight GPUs

SOURCES = (
    "TPU v4: 275 TFLOP/s (Google Cloud, TPU v4), six links of 50 GB/s in each direction (arXiv:2304.01433)",
    "TPU v5p: 459 TFLOP/s, 1,200 GB/s of links a chip, both directions (Google Cloud, TPU v5p), so 100 GB/s a link",
    "H100 and H200 SXM: 989 TFLOP/s in bfloat16, NVLink 900 GB/s a GPU, both directions (NVIDIA, data sheets)",
    "DGX H100 and H200: eight network ports of 400 Gbit/s for eight GPUs (NVIDIA, data sheets), so 50 GB/s a GPU",
)

CLUSTERS = (
    make_torus("v4-32", "tpu_v4", V4_LINK, 2, 2, 4),
    make_torus("v4-128", "tpu_v4", V4_LINK, 4, 4, 4),
    make_torus("v5p-128", "tpu_v5p", V5P_LINK, 4, 4, 4),
    make_torus("v5p-256", "tpu_v5p", V5P_LINK, 4, 4, 8),
    make_torus("v5p-512", "tpu_v5p", V5P_LINK, 4, 8, 8),
    make_torus("v5p-1024", "tpu_v5p", V5P_LINK, 8, 8, 8),
    make_gpu_nodes("1 x 8 H100", "h100", 1),
    make_gpu_nodes("4 x 8 H100", "h100", 4),
    make_gpu_nodes("16 x 8 H100", "h100", 16),
    make_gpu_nodes("16 x 8 H200", "h200", 16),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """The estimate for a cluster, with times in seconds per step."""

    cluster: Cluster
    images: int
    compute: float
    all_reduce: float

    @property
    def efficiency(self) -> float:
        """Efficiency without overlap of computing and communication."""
        return self.compute / (self.compute + self.all_reduce)

    @property
    def efficiency_hidden(self) -> float:
        """Efficiency with as much overlap as possible."""
        return self.compute / max(self.compute, self.all_reduce)

    @property
    def images_per_second(self) -> float:
        """Images/s of the whole cluster, without overlap."""
        return self.cluster.devices * self.images / (self.compute + self.all_reduce)

    @property
    def enough(self) -> int:
        """Images per device for an efficiency of 95 % without overlap."""
        # rounded first, so that a rounding error above an integer does not count as an image
        return math.ceil(round(0.95 / 0.05 * self.all_reduce / (self.compute / self.images), 6))


def estimate_row(cluster: Cluster, work: Work, images: int, parameters: int, share: float) -> Row:
    """Returns the estimate for a cluster.

    Args:
      work: contractions of a step on one device.
      images: images per device and step.
      parameters: number of the model's parameters, the size of the all-reduce.
      share: achieved share of peak FLOP/s.
    """
    accelerator = ACCELERATORS[cluster.accelerator]
    at_peak = sum(flops / accelerator.peak(operands) for operands, flops in flops_by_operands(work).items())
    return Row(cluster, images, at_peak / share, all_reduce_seconds(cluster.levels, BYTES * parameters))


def all_reduce_seconds(levels: tuple[Level, ...], size: float) -> float:
    """Returns the minimal seconds of an all-reduce of `size` bytes over all devices."""
    seconds = 0.0
    for level in levels:
        seconds += 2 * (level.size - 1) / level.size * size / level.bandwidth
        # After the reduce-scatter within a level, each device sends its own part alone over the next.
        size /= level.size
    return seconds
