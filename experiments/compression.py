"""Compressed sizes of a trained run's images, compared with the bound of T steps, and with PNG, WebP and zstd.

  python -m experiments.compression --workdir=runs/quickstart --num_timesteps 50 250 --seeds 0 1 2

Every stream is decoded again and its images compared. Streams with other seeds draw other latents, so that their spread is the
spread of one stream's size. Prints tables in Markdown. Images, times, variances and path are those of `evaluate`.
"""

import argparse
import dataclasses
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffenc.compression.commands import compress, decompress
from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.config.settings import Compress
from diffenc.errors import UserError
from diffenc.evaluation.batches import select_images
from diffenc.files.user_paths import path_argument
from diffenc.runtime.compile_cache import enable_cache
from diffenc.runtime.console import exit_status, print_line, start_up
from diffenc.workdir.config_check import CONFIG
from experiments.evaluate_copy import evaluate_copy

Images = UInt8[np.ndarray, "n h w c"]
MOST_SIDE = 16_383  # of a WebP


class Sizes(NamedTuple):
    """Bytes of all images: each in a file of its own, and all in one."""

    alone: int
    together: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=path_argument, required=True)
    parser.add_argument("--gin_bindings", action="append", default=[])
    parser.add_argument("--num_timesteps", type=int, nargs="+", default=[50, 250])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the initial bits")
    parser.add_argument("--bins", type=int, nargs="+", default=[16])
    parser.add_argument("--batch_size", type=int, default=16)
    given = parser.parse_args(argv)

    def perform() -> None:
        start_up()
        enable_cache()
        print_line(measure(given))

    return exit_status(perform)


def measure(given: argparse.Namespace) -> str:
    """Returns both tables."""
    experiment = gin_loader.load_experiment([str(given.workdir / CONFIG)], given.gin_bindings)
    images = sent_images(experiment)
    lines = ["| T | bins | bound | net, of each seed | initial | file, bytes |", "|--:|--:|--:|--:|--:|--:|"]
    for num_timesteps in given.num_timesteps:
        settings = dataclasses.replace(experiment.evaluate, num_timesteps=num_timesteps)
        at_t = dataclasses.replace(experiment, evaluate=settings)
        bound = evaluate_copy(at_t, given.workdir)
        for bins in given.bins:
            records = [
                compress_and_check(at_t, given.workdir, images, bins, seed, given.batch_size)
                for seed in given.seeds
            ]
            lines.append(row(num_timesteps, bins, bound, records))
    return "\n".join([*lines, "", codecs_table(images)])


def sent_images(experiment: Experiment) -> Images:
    """Returns the images selected by `evaluate`."""
    source = select_images(experiment.dataset, experiment.evaluation)
    return source.__getitems__(np.arange(len(source)))["image"]


def compress_and_check(
    experiment: Experiment, workdir: Path, images: Images, bins: int, seed: int, batch_size: int
) -> dict[str, Any]:
    """Compresses the images, decodes the stream and compares; returns the record of the stream.

    Raises:
      UserError: the decoded images differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {"file": f"{folder}/stream", "decoded": f"{folder}/images.npz"}
        settings = Compress(batch_size=batch_size, bins=bins, seed=seed, **files)
        experiment = dataclasses.replace(experiment, compress=settings)
        record = compress(experiment, workdir)
        with np.load(decompress(experiment, workdir)) as found:
            if not np.array_equal(found["images"], images):
                raise UserError(f"{workdir}: other images came back")
    return record


def row(num_timesteps: int, bins: int, bound: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """Returns a row of the table, in bits/dim."""
    nets = np.array([record["bpd_net"] for record in records])
    each = ", ".join(f"{net:.4f}" for net in nets)
    share = f"{100 * (nets.mean() / bound['bpd'] - 1):+.2f} %"
    stated = f"{bound['bpd']:.4f} ± {bound.get('bpd_mc_se', float('nan')):.4f}"
    initial, size = records[0]["bpd_initial"], records[0]["file_bytes"]
    return f"| {num_timesteps} | {bins} | {stated} | {each}; mean {share} | {initial:.1f} | {size:,} |"


def codecs_table(images: Images) -> str:
    """Returns the sizes by other codecs as a table, in bits/dim."""

    def bits(size: int | None) -> str:
        return "–" if size is None else f"{8 * size / images.size:.3f}"

    lines = ["| | each image alone | all together |", "|---|--:|--:|"]
    for name, sizes in codec_sizes(images).items():
        lines.append(f"| {name} | {bits(sizes.alone)} | {bits(sizes.together)} |")
    return "\n".join(lines)


def codec_sizes(images: Images) -> dict[str, Sizes]:
    """Returns the sizes by PNG, lossless WebP and, if its program is installed, zstd."""
    pictures: dict[str, dict[str, Any]] = {
        "PNG": {"optimize": True},
        "WEBP": {"lossless": True, "quality": 100, "method": 6, "exact": True},
    }
    sizes = {kind: _picture_sizes(images, kind, options) for kind, options in pictures.items()}
    if shutil.which("zstd"):
        alone, (together,) = zstd_sizes([image.tobytes() for image in images]), zstd_sizes([images.tobytes()])
        sizes["zstd -19"] = Sizes(sum(alone), together)
    return sizes


def _picture_sizes(images: Images, kind: str, options: dict[str, Any]) -> Sizes:
    alone = sum(len(encode(image, kind, **options)) for image in images)
    try:
        return Sizes(alone, len(encode(tile(images), kind, **options)))
    except ValueError:  # too large a picture
        return Sizes(alone, None)


def tile(images: Images) -> UInt8[np.ndarray, "h w c"]:
    """Returns the images one below the other, in as few columns as a picture's largest side allows.

    Raises:
      ValueError: they do not fit into one picture.
    """
    count, height, width, channels = images.shape
    rows = min(count, MOST_SIDE // height)
    columns = -(-count // rows)
    if columns * width > MOST_SIDE:
        raise ValueError("too many images for one picture")
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    grid = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def encode(picture: UInt8[np.ndarray, "h w c"], kind: str, **options: Any) -> bytes:
    """Returns a picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def zstd_sizes(contents: Sequence[bytes]) -> list[int]:
    """Returns the compressed size of each of `contents`, by the program zstd."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}") for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        subprocess.run(["zstd", "-19", "-q", "-r", folder], check=True)
        return [file.with_suffix(".zst").stat().st_size for file in files]


if __name__ == "__main__":
    sys.exit(main())
