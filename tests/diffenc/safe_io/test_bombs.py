"""Files that claim or unpack to more than anybody has: refused by name, with little memory taken.

Each is read in a process of its own that may take 1 GB more than it has, and says how much it took.
"""

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

TEN_GB = 10 * 2**30

READER = """
import json, resource, sys
from pathlib import Path
from diffenc.data import recipe
from diffenc.errors import UserError
from diffenc_plugins.datasets import Cifar10, Imagenet32, Imagenet32Oord, Mnist

KINDS = {"cifar10": Cifar10, "imagenet32": Imagenet32, "imagenet32_oord": Imagenet32Oord, "mnist": Mnist}
megabyte = 2**20

def pages(place):
    return int(Path("/proc/self/statm").read_text().split()[place]) * resource.getpagesize()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

limit = pages(0) + 1024 * megabyte
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for line in sys.stdin:
    name, folder = json.loads(line)
    before = peak()
    try:
        for _ in recipe.make_recipe(KINDS[name], Path(folder)).read("test", 0):
            pass
        told = "nothing was refused"
    except UserError as error:
        told = str(error)
    except BaseException as error:
        told = repr(error)
    print(json.dumps([told, (peak() - before) / megabyte]), flush=True)
"""


@pytest.fixture(scope="module")
def reader() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]


@pytest.fixture
def refused(reader, tmp_path) -> Callable[[str], tuple[str, float]]:
    """Reads the official files of a data set in `tmp_path`: what was told, and the megabytes that it took."""

    def ask(name: str) -> tuple[str, float]:
        reader.stdin.write(json.dumps([name, str(tmp_path)]) + "\n")
        reader.stdin.flush()
        return json.loads(reader.stdout.readline())

    return ask


def packed_zeros(size: int) -> bytes:
    """`size` zero bytes, gzipped; a thousandth of that."""
    member = gzip.compress(bytes(2**24))
    return member * (size // 2**24)


def write_mnist(folder: Path, images: bytes, labels: bytes = b"") -> None:
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            labels or gzip.compress(struct.pack(">2I", 0x801, 7) + bytes(7))
        )


def test_an_idx_header_that_claims_ten_gigabytes(refused, tmp_path):
    write_mnist(tmp_path, gzip.compress(struct.pack(">4I", 0x803, TEN_GB // 784, 28, 28) + bytes(784)))
    told, megabytes = refused("mnist")
    assert "t10k-images-idx3-ubyte.gz: dimensions" in told
    assert megabytes < 50


def test_a_gzip_bomb_behind_an_idx_header(refused, tmp_path):
    labels = struct.pack(">2I", 0x801, 200_000) + bytes(200_000)
    images = gzip.compress(struct.pack(">4I", 0x803, 200_000, 28, 28)) + packed_zeros(2**28)
    write_mnist(tmp_path, images, gzip.compress(labels))
    told, megabytes = refused("mnist")
    assert "holds more than the 156800000 bytes" in told
    assert megabytes < 60


def cifar(folder: Path, content: bytes, claims: int | None = None, kind: bytes = tarfile.REGTYPE) -> None:
    """An archive whose test batch is `content`, the header of which may claim another size."""
    member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    member.size, member.type = len(content) if claims is None else claims, kind
    packed = tarfile.TarInfo.tobuf(member, tarfile.GNU_FORMAT) + content
    (folder / "cifar-10-python.tar.gz").write_bytes(gzip.compress(packed + bytes(-len(packed) % 512 + 1024)))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_member_or_header_that_claims_ten_gigabytes(refused, tmp_path, kind):
    cifar(tmp_path, b"abc", claims=TEN_GB, kind=kind)
    told, megabytes = refused("cifar10")
    assert "cifar-10-python.tar.gz" in told
    assert "refused" not in told
    assert megabytes < 50


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, pytest.param(tarfile.XHDTYPE, marks=pytest.mark.slow)])
def test_a_gzip_bomb_in_a_tar(refused, tmp_path, kind):
    member = tarfile.TarInfo("padding")
    member.size, member.type = TEN_GB, kind
    header = gzip.compress(member.tobuf(tarfile.GNU_FORMAT))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(header + packed_zeros(2**30))
    told, megabytes = refused("cifar10")
    assert "cifar-10-python.tar.gz" in told
    assert ("claims" in told) or ("unpacks to more than the 268,435,456 bytes" in told)
    assert megabytes < (50 if kind == tarfile.REGTYPE else 700)


def test_small_members_without_end_in_a_tar(refused, tmp_path):
    member = tarfile.TarInfo("padding")
    member.size = 2**24
    block = gzip.compress(member.tobuf() + bytes(2**24))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(block * 64)
    told, megabytes = refused("cifar10")
    assert "unpacks to more than the 268,435,456 bytes" in told
    assert megabytes < 50


FRAME = b"\x80\x04\x95" + struct.pack("<Q", TEN_GB)
PICKLES = {
    "a frame": FRAME + b"}.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", TEN_GB) + b"abc.",
    "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", TEN_GB) + b"abc.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", TEN_GB) + b"abc.",
    "a number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "an array": pickle.dumps({"data": np.zeros((4, 3072), np.uint8)}, 2).replace(
        b"K\x04M\x00\x0c\x86", b"J\x00\x00\x40\x00M\x00\x0c\x86"
    ),
    "a memo": b"\x80\x02}r\xff\xff\xff\x7f}u",
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_of_which_something_claims_ten_gigabytes(refused, tmp_path, what):
    cifar(tmp_path, PICKLES[what])
    told, megabytes = refused("cifar10")
    assert "cifar-10-python.tar.gz:test_batch: " in told
    assert "MemoryError" not in told
    assert megabytes < 50


def test_a_pickle_that_encodes_one_text_over_and_over(refused, tmp_path):
    """Five bytes of pickle make sixteen megabytes each time."""
    text = b"X" + struct.pack("<I", 2**24) + b"a" * 2**24 + b"q\x01"
    again = b"h\x02h\x01h\x03\x86R"
    content = (
        b"\x80\x02(" + b"c_codecs\nencode\nq\x02" + text + b"X\x06\x00\x00\x00latin1q\x03" + again * 1000
    )
    cifar(tmp_path, content + b"t.")
    told, megabytes = refused("cifar10")
    assert "too many bytes" in told
    assert megabytes < 250


@pytest.mark.slow
def test_a_pickle_of_endless_empty_lists(refused, tmp_path):
    cifar(tmp_path, b"\x80\x02(" + b"]" * 2**21 + b"t.")
    told, megabytes = refused("cifar10")
    assert "more than 1,048,576 operations" in told
    assert megabytes < 300


def imagenet(folder: Path, name: str, content: bytes, forged: int | None = None) -> None:
    """Both archives; the test one has a member `name`, whose entry may claim another size."""
    ending = "_npz" if name.endswith(".npz") else ""
    with zipfile.ZipFile(folder / f"Imagenet32_train{ending}.zip", "w"):
        pass
    path = folder / f"Imagenet32_val{ending}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(name, content)
    if forged is not None:
        raw = bytearray(path.read_bytes())
        struct.pack_into("<I", raw, raw.index(b"PK\x01\x02") + 24, forged)
        path.write_bytes(raw)


def test_a_zip_bomb(refused, tmp_path):
    imagenet(tmp_path, "val_data", b"")
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    content = b"".join(deflate.compress(bytes(2**24)) for _ in range(33)) + deflate.flush()
    bomb = zipfile.ZipInfo("val_data")
    with zipfile.ZipFile(tmp_path / "Imagenet32_val.zip", "w", zipfile.ZIP_STORED) as packed:
        packed.writestr(bomb, content)
    raw = bytearray((tmp_path / "Imagenet32_val.zip").read_bytes())
    for place, size in ((raw.index(b"PK\x03\x04") + 8, None), (raw.index(b"PK\x01\x02") + 10, 33 * 2**24)):
        struct.pack_into("<H", raw, place, zipfile.ZIP_DEFLATED)
        if size:
            struct.pack_into("<I", raw, place + 14, size)
    (tmp_path / "Imagenet32_val.zip").write_bytes(raw)
    told, megabytes = refused("imagenet32")
    assert "Imagenet32_val.zip:val_data: claims 553,648,128 bytes" in told
    assert megabytes < 50


def test_a_zip_member_that_claims_four_gigabytes(refused, tmp_path):
    imagenet(tmp_path, "val_data", b"abc", forged=2**32 - 2)
    told, megabytes = refused("imagenet32")
    assert "claims 4,294,967,294 bytes" in told
    assert megabytes < 50


@pytest.mark.parametrize("claim", [(3_500_000, 3072), (2**50, 3072), (2**62, 2**62)])
def test_an_npz_header_that_claims_ten_gigabytes(refused, tmp_path, claim):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": claim})
        packed.writestr("data.npy", header.getvalue() + bytes(3072))
    imagenet(tmp_path, "val_data.npz", inner.getvalue())
    told, megabytes = refused("imagenet32")
    assert "val_data.npz:data: claims" in told
    assert megabytes < 50


def test_a_png_in_a_tar_that_claims_ten_gigabytes(refused, tmp_path):
    (tmp_path / "train_32x32").mkdir()
    member = tarfile.TarInfo("valid_32x32/1.png")
    member.size = TEN_GB
    (tmp_path / "valid_32x32.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    told, megabytes = refused("imagenet32_oord")
    assert "valid_32x32.tar:valid_32x32/1.png: claims 10,737,418,240 bytes" in told
    assert megabytes < 50
