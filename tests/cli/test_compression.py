"""Images encoded in one process and decoded in another, by the program as users start it."""

import shutil

import numpy as np
import pytest

from diffenc.data.sources import subsample
from diffenc_plugins.datasets import Digits

ENCODING = ["evaluate.num_images = 20", "compress.batch_size = 8", "compress.bins = 8"]
DECODING = ["compress.batch_size = 3", "evaluate.batch_size = 5", "compress.bins = 2"]


@pytest.fixture(scope="module")
def coded(start, tiny, tmp_path_factory):
    """The workdir of a run with a stream of 20 images."""
    folder = tmp_path_factory.mktemp("compression")
    command = [f"--gin_file={tiny}", f"--workdir={folder}/run"]
    child = start([*command, "--gin_bindings=Experiment.evaluate_every = 0"], cwd=folder)
    assert child.wait() == 0, child.err
    bindings = [f"--gin_bindings={one}" for one in ENCODING]
    child = start([f"--workdir={folder}/run", "--mode=compress", "--num_timesteps=6", *bindings], cwd=folder)
    assert child.wait() == 0, child.err
    assert "net" in child.out
    return folder / "run"


def decode(start, workdir, *flags, **options):
    bindings = [f"--gin_bindings={one}" for one in DECODING]
    child = start(
        [f"--workdir={workdir}", "--mode=decompress", *bindings, *flags], cwd=workdir.parent, **options
    )
    return child.wait(), child.err


def test_another_process_gets_every_image_back(coded, start):
    status, err = decode(start, coded)
    assert status == 0, err
    with np.load(coded / "decompressed.npz") as found:
        images = found["images"]
    expected = subsample(Digits().source("test"), 20, 0).__getitems__(np.arange(20))["image"]
    np.testing.assert_array_equal(images, expected)


def test_one_bit_the_other_way_is_one_line_and_no_file(coded, start, tmp_path):
    data = bytearray((coded / "compressed.diffenc").read_bytes())
    data[-30] ^= 1
    shutil.copytree(coded, tmp_path / "run")
    (tmp_path / "run" / "decompressed.npz").unlink(missing_ok=True)
    (tmp_path / "run" / "compressed.diffenc").write_bytes(data)
    status, err = decode(start, tmp_path / "run")
    assert status == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert "compressed.diffenc: is damaged: its words have another checksum" in err
    assert not (tmp_path / "run" / "decompressed.npz").exists()


def test_another_number_of_steps_is_refused(coded, start):
    status, err = decode(start, coded, "--num_timesteps=6")
    assert (status, err.splitlines()[-1]) == (
        1,
        "error: --num_timesteps is not for --mode=decompress: T is that of the file",
    )
