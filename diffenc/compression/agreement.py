"""The conditions under which a stream can be decoded, and a probe that detects differences before decoding starts."""

import dataclasses
import hashlib
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from diffenc.compression.bits_back import PixelLevels
from diffenc.compression.stack import Stack
from diffenc.compression.trained_chain import TrainedChain
from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.interfaces import Images
from diffenc.runtime.matmul_precision import matmul_precision
from diffenc.workdir.provenance import installed_version

PACKAGES = ("jax", "jaxlib", "numpy", "constriction")


def environment(experiment: Experiment, mesh: Mesh) -> dict[str, str]:
    """Returns the versions, devices and precision settings that determine the last bits of results."""
    devices = mesh.devices.ravel()
    return {
        **{name: str(installed_version(name)) for name in PACKAGES},
        "machine": platform.machine(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "precision": network_precision(experiment),
        "x64": str(jax.config.values["jax_enable_x64"]),
        "matmul_precision": matmul_precision(),
    }


def digest_parameters(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the hex SHA-256 of parameters by name: of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Probe:
    """Digests of all functions that coding computes, on inputs made from their names alone.

    Attributes:
      program: SHA-256 of the functions as lowered for XLA.
      results: SHA-256 of the lattices, of the compiled functions' results at the first, a middle and the last step, and of
        bits made by the entropy coder.
    """

    program: str
    results: str


def probe(chain: TrainedChain) -> Probe:
    """Probes the chain under its own condition; compiles the functions that coding runs."""
    levels = (_uniform("levels", chain.batch_shape) * chain.num_levels).astype(np.uint8)
    z = (4 * _uniform("z", chain.batch_shape) - 2).astype(chain.dtype)
    results = hashlib.sha256(repr(chain.lattices).encode())
    for array in _results(chain, levels, z):
        results.update(np.ascontiguousarray(array).tobytes())
    return Probe(_program(chain, levels, z), results.hexdigest())


def _results(chain: TrainedChain, levels: PixelLevels, z: Float[np.ndarray, "b ..."]) -> Iterator[np.ndarray]:
    last = chain.numbers.num_steps
    posterior = chain.infer(levels)
    yield posterior.mean(last, None)
    for index in sorted({0, last // 2, last - 1}, reverse=True):
        mean = chain.generative_mean(index, z)
        yield mean
        yield posterior.mean(index, z)
        yield _coded_normals(chain, index, mean)
    probabilities = chain.level_probabilities(z)
    yield probabilities
    rows = probabilities.reshape(-1, chain.num_levels)[:64]
    stack = Stack()
    stack.push_categorical(levels.ravel()[:64], rows)
    yield stack.words()


def _coded_normals(chain: TrainedChain, index: int, mean: Float[np.ndarray, "b ..."]) -> np.ndarray:
    """Returns the coded bits of symbols spread over the window of a stop."""
    lattice, stack = chain.lattices[index], Stack()
    offset = lattice.offset(mean, mean).ravel()[:64]
    symbols = np.linspace(-lattice.window, lattice.window, len(offset)).astype(np.int32)
    stack.push_normal(symbols, offset, lattice.std_q, lattice.window)
    stack.push_normal(symbols, offset, lattice.std_p, lattice.window)
    return stack.words()


def _program(chain: TrainedChain, levels: PixelLevels, z: Float[np.ndarray, "b ..."]) -> str:
    """Returns the digest of the programs lowered for XLA, which hold shapes and constants but no source locations."""
    images = Images(levels, chain.condition)  # pyright: ignore[reportArgumentType]
    prepared = chain.programs["prepare"](chain.params, images, None)
    arguments: dict[str, tuple[Any, ...]] = {
        "mean_p": (chain.params, (z, chain.condition), chain.step(0)),
        "mean_q": (None, (z, z, z), chain.step(0)),
        "prepare": (chain.params, images, None),
        "encode": (chain.params, prepared, chain.log_snr(0)),
        "level_probabilities": (None, z, chain.log_snr(0)),
    }
    digest = hashlib.sha256()
    for name, program in chain.programs.items():
        digest.update(program.lower(*arguments[name]).as_text().encode())
    return digest.hexdigest()


def _uniform(name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Returns numbers in [0, 1) determined by `name` alone."""
    count = int(np.prod(shape))
    digest = hashlib.shake_256(f"probe {name}".encode()).digest(2 * count)
    return (np.frombuffer(digest, "<u2") / 2**16).reshape(shape)
