"""--mode=compress and --mode=decompress: a split's images in a file of few bytes, and back, bit for bit."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from rich.markup import escape
from rich.table import Table

from diffenc.compression.agreement import Probe, digest_parameters, environment, probe
from diffenc.compression.coding import Encoded, decode_images, encode_images
from diffenc.compression.numbers import ChainNumbers, chain_numbers
from diffenc.compression.stack import constriction
from diffenc.compression.stream import (
    CodedImages,
    Header,
    check_chain,
    check_sizes,
    header_bytes,
    payload_bytes,
    read_stream,
    write_stream,
)
from diffenc.compression.trained_chain import TrainedChain, make_trained_chain
from diffenc.compression.weights import restore_weights
from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.core.discretization import Chain
from diffenc.core.model import Model
from diffenc.data.sources import describe_images
from diffenc.errors import UserError
from diffenc.evaluation.batches import select_images
from diffenc.evaluation.commands import publish_record
from diffenc.evaluation.evaluated_bound import bound_metadata, evaluated_bound
from diffenc.evaluation.evaluation_record import image_metadata, run_metadata
from diffenc.evaluation.measured_path import measured_model, warn_if_fitted_on_another
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.export.export import fetch_parameters
from diffenc.files import atomic
from diffenc.files.user_paths import expand_path
from diffenc.interfaces import Params
from diffenc.parallel.sharding import check_divisible, data_mesh
from diffenc.runtime.progress import Progress
from diffenc.workdir.fitted_chains import measured_path
from diffenc.workdir.mirror import on_local_copy

STREAM = "compressed.diffenc"
IMAGES = "decompressed.npz"


@on_local_copy
def compress(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Encodes the images of `evaluate` into `compress.file`, prints a table and writes compression.json; returns the record.

    Raises:
      UserError: no T is given, there is no run, or something that must be fitted first is missing.
    """
    settings, chosen = experiment.evaluation, experiment.compress
    shape = _batch_shape(experiment)
    mesh = _one_process_mesh(experiment, "compress")
    params, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    constriction()
    check_divisible("compress.batch_size", chosen.batch_size, mesh)
    model, path_of = measured_model(experiment, workdir, step)
    bound = evaluated_bound(settings, model.schedule, network_precision(experiment), workdir, step)
    warn_if_fitted_on_another(bound.fitted_on, path_of)
    steps = bound.chain_of(params)
    assert steps is not None, "T is given"
    numbers = _chain_numbers(model, params, steps)
    chain = _chain(experiment, params, numbers, mesh, shape, chosen.bins)
    found = probe(chain)
    encoded = _encode(experiment, chain)
    weights = digest_parameters(fetch_parameters(params, mesh))
    header = make_header(experiment, chain, encoded, found, environment(experiment, mesh), weights, step)
    path = _path(chosen.file, "compress.file", workdir / STREAM)
    write_stream(path, CodedImages(header, encoded.words))
    logging.info("%d images in %s", header.num_images, path)
    record = compression_record(experiment, header, encoded) | bound.fitted_on | path_of
    arrays = {"net_bits": encoded.net_bits}
    publish_record(workdir, "compression", record, arrays, compression_table(record))
    return record


@on_local_copy
def decompress(experiment: Experiment, workdir: Path) -> Path:
    """Decodes the images in `compress.file` with the weights in the workdir, or of an export, into an .npz; returns its path.

    The chain, the number of steps and the batch size are those of the stream. The .npz is written only if all images agree with
    the stream's checksums.

    Raises:
      UserError: the weights or the stream are missing, the stream is damaged or was encoded by another model or on another
        machine, or a write failed.
    """
    mesh = _one_process_mesh(experiment, "decompress")
    # Before the stream is opened: a run of another config is the first error to report.
    params, step = restore_weights(experiment, workdir, mesh, experiment.evaluate.step)
    constriction()
    name = _path(experiment.compress.file, "compress.file", workdir / STREAM)
    coded = read_stream(name)
    header = coded.header
    if header.step != step:
        params, _ = restore_weights(experiment, workdir, mesh, header.step)
    require_same(name, header, experiment, mesh, digest_parameters(fetch_parameters(params, mesh)))
    check_divisible("the stream's batch size", header.batch_size, mesh)
    chain = _chain(experiment, params, header.chain, mesh, header.batch_shape, header.bins)
    # Before decoding: a single wrong digit would make everything after it garbage.
    _require_same_probe(name, header, chain)
    tick = Progress("decompress", 2 * header.num_batches * (header.chain.num_steps + 1))
    decoded = decode_images(chain, experiment.model.conditioning, coded, tick)
    path = _path(experiment.compress.decoded, "compress.decoded", workdir / IMAGES)
    arrays = {key: value for key, value in decoded._asdict().items() if value is not None}
    atomic.write_bytes(path, atomic.encode_npz(arrays))
    logging.info("%d images in %s", header.num_images, path)
    return path


def _batch_shape(experiment: Experiment) -> tuple[int, ...]:
    """Returns the shape of a batch. Raises UserError without T, and for sizes that a decoder would refuse: before hours of coding."""
    settings, chosen = experiment.evaluation, experiment.compress
    if settings.num_timesteps == 0:
        raise UserError("--mode=compress needs T: give --num_timesteps=T")
    shape = (chosen.batch_size, *experiment.dataset.image_shape)
    try:
        check_sizes(shape, experiment.dataset.num_levels, settings.num_timesteps)
    except ValueError as error:
        raise UserError(
            f"--mode=compress: {error}: bind compress.batch_size lower, or take a smaller T"
        ) from None
    return shape


def _chain_numbers(model: Model, params: Params, steps: Chain) -> ChainNumbers:
    """Returns the numbers of the chain. Raises UserError if float32 does not tell its times apart."""
    numbers = chain_numbers(model, params, steps)
    try:
        check_chain(numbers)
    except ValueError as error:
        raise UserError(
            f"--mode=compress: {error}: two of its times have the same log-SNR in float32; take a smaller T, or --x64"
        ) from None
    return numbers


def _encode(experiment: Experiment, chain: TrainedChain) -> Encoded:
    source = select_images(experiment.dataset, experiment.evaluation)
    num_batches = -(-len(source) // chain.batch_shape[0])
    return encode_images(
        chain,
        experiment.model.conditioning,
        source,
        num_classes=_num_classes(experiment),
        seed=experiment.compress.seed,
        tick=Progress("compress", num_batches * len(chain.lattices)),
    )


def make_header(
    experiment: Experiment,
    chain: TrainedChain,
    encoded: Encoded,
    found: Probe,
    environment: Mapping[str, str],
    weights: str,
    step: int,
) -> Header:
    """Returns the header, the decoder's information besides the weights."""
    dataset, chosen = experiment.dataset, experiment.compress
    return Header(
        config_hash=serialize.config_hash(experiment),
        weights=weights,
        step=step,
        num_images=encoded.num_images,
        image_shape=dataset.image_shape,
        num_levels=dataset.num_levels,
        num_classes=_num_classes(experiment),
        batch_size=chosen.batch_size,
        bins=chosen.bins,
        seed=chosen.seed,
        initial_words=encoded.initial_words,
        words=len(encoded.words),
        payload=hashlib.sha256(payload_bytes(encoded.words)).hexdigest(),
        pixels=encoded.pixels,
        batch_checks=encoded.batch_checks,
        whitened=encoded.whitened,
        environment=environment,
        **dataclasses.asdict(found),
        chain=chain.numbers,
    )


def require_same(name: Path, header: Header, experiment: Experiment, mesh: Mesh, weights: str) -> None:
    """Raises UserError with the differences unless the stream was encoded by this model, and with these versions and devices."""
    here = environment(experiment, mesh)
    keys = [key for key in here if here[key] != header.environment.get(key)]
    if keys or header.environment.keys() != here.keys():
        there = ", ".join(f"{key} {header.environment.get(key, 'unknown')}" for key in keys)
        ours = ", ".join(f"{key} {here[key]}" for key in keys)
        raise UserError(
            f"{name} was encoded with {there}, and here there is {ours}: means would differ in their last digits; decode it with what "
            "it was encoded with"
        )
    dataset = experiment.dataset
    model = {
        "config": (header.config_hash, serialize.config_hash(experiment)),
        "weights": (header.weights, weights),
        "image shape": (header.image_shape, tuple(dataset.image_shape)),
        "levels": (header.num_levels, dataset.num_levels),
        "classes": (header.num_classes, _num_classes(experiment)),
    }
    differing = [key for key, (there, here) in model.items() if there != here]
    if differing:
        raise UserError(
            f"{name} was encoded by another model (of other {', '.join(differing)}): name the run that it was encoded with as --workdir"
        )


def _require_same_probe(name: Path, header: Header, chain: TrainedChain) -> None:
    found = probe(chain)
    if found.program != header.program:
        raise UserError(
            f"{name} was encoded by another version of the code (another program is compiled): decode it with the version of "
            "diffenc that encoded it"
        )
    if found.results != header.results:
        raise UserError(
            f"{name}: a probe of the model gives other digits here than where it was encoded, so that images would not decode: decode it "
            "on the same machine, with the same XLA_FLAGS"
        )


def _chain(
    experiment: Experiment,
    params: Params,
    numbers: ChainNumbers,
    mesh: Mesh,
    batch_shape: tuple[int, ...],
    bins: int,
) -> TrainedChain:
    model, num_levels = experiment.model, experiment.dataset.num_levels
    chain = make_trained_chain(
        model, params, numbers, mesh, batch_shape=batch_shape, num_levels=num_levels, bins=bins
    )
    # A condition of the right shape for the probe; coding replaces it by that of each batch.
    return dataclasses.replace(chain, condition=model.conditioning(np.zeros(batch_shape[0], np.int32)))


def _num_classes(experiment: Experiment) -> int:
    """Returns the number of classes of coded labels; 0 for a model that needs no labels."""
    return experiment.dataset.num_classes if experiment.model.condition_metadata() else 0


def _one_process_mesh(experiment: Experiment, mode: str) -> Mesh:
    if jax.process_count() > 1:
        raise UserError(f"--mode={mode} runs in one process: leave out --num_processes")
    return data_mesh(experiment.mesh)


def _path(given: str | None, name: str, default: Path) -> Path:
    return default if given is None else Path(expand_path(given, name))


def compression_record(experiment: Experiment, header: Header, encoded: Encoded) -> dict[str, Any]:
    """Returns the content of compression.json: the stream's bits by purpose, and metadata of images, bound and run.

    `bpd_net` counts the bits that the images added to the stack, without those of labels; `initial_bits` were drawn first, and
    are in the stream too. `file_bytes` is the size of the whole file.
    """
    settings, num_dims = experiment.evaluation, int(np.prod(header.image_shape))
    dims = header.num_images * num_dims
    label_bits = header.num_images * np.log2(header.num_classes) if header.num_classes else 0.0
    net_bits = float(encoded.net_bits.sum()) - label_bits
    initial_bits = 32 * encoded.initial_words
    about = header_bytes(header)
    return {
        "bpd_net": net_bits / dims,
        "bpd_initial": initial_bits / dims,
        "net_bits": net_bits,
        "initial_bits": initial_bits,
        **({"label_bits": label_bits} if header.num_classes else {}),
        "header_bytes": len(about),
        "file_bytes": len(about) + 4 * header.words,
        "bins": header.bins,
        "batch_size": header.batch_size,
        "seed": settings.seed,
        "initial_seed": header.seed,
        "pixels": header.pixels,
        **image_metadata(experiment.dataset, experiment.model, settings.split, header.num_images),
        **bound_metadata(settings),
        **run_metadata(experiment),
        **measured_path(experiment),
        "step": header.step,
    }


def compression_table(record: Mapping[str, Any]) -> Table:
    """Returns the bits of a stream as a table."""
    title = (
        f"{describe_images(record)}, {record['num_images']} images, T {record['T']}, {record['times']} times, "
        f"{record['variance']} variance, {record['bins']} bins, step {record['step']}"
    )
    table = Table(title=escape(title), caption=escape(f"pixels {record['fingerprint'][:16]}"))
    for column in ("", "bits/dim", "bytes"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("net", f"{record['bpd_net']:.4f}", f"{record['net_bits'] / 8:,.0f}")
    table.add_row("initial", f"{record['bpd_initial']:.4f}", f"{record['initial_bits'] / 8:,.0f}")
    table.add_row("header", "", f"{record['header_bytes']:,}")
    table.add_row("file", "", f"{record['file_bytes']:,}")
    return table
