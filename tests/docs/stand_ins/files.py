"""Writes what pages take to be there: official files of the data sets, 80 images a split, of noise.

python files.py FOLDER
"""

import gzip
import io
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

NUM = 80


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def mnist(folder: Path, seed: int) -> None:
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images = struct.pack(">4I", 2051, NUM, 28, 28) + noise(seed, NUM, 28, 28).tobytes()
        labels = struct.pack(">2I", 2049, NUM) + bytes(k % 10 for k in range(NUM))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def batch(seed: int, count: int, classes: int, first: int) -> bytes:
    labels = [first + k % classes for k in range(count)]
    return pickle.dumps({"data": noise(seed, count, 3072), "labels": labels}, 2)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def cifar10(path: Path) -> None:
    counts = {f"data_batch_{k}": NUM // 5 for k in range(1, 6)} | {"test_batch": NUM}
    with tarfile.open(path, "w:gz") as archive:
        for seed, (name, count) in enumerate(counts.items()):
            content = pickle.loads(batch(seed, count, 10, 0))
            told = pickle.dumps({key.encode(): value for key, value in content.items()}, 2)
            add(archive, f"cifar-10-batches-py/{name}", told)


def imagenet32(folder: Path) -> None:
    folder.mkdir()
    parts = {"train": [f"train_data_batch_{k}" for k in range(1, 11)], "val": ["val_data"]}
    for part, names in parts.items():
        with zipfile.ZipFile(folder / f"Imagenet32_{part}.zip", "w") as archive:
            for seed, name in enumerate(names):
                archive.writestr(name, batch(seed, NUM // len(names), 1000, 1))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def imagenet32_oord(folder: Path) -> None:
    for seed, part in enumerate(("train_32x32", "valid_32x32")):
        with tarfile.open(folder / f"{part}.tar", "w") as archive:
            for number in range(NUM):
                add(archive, f"{part}/{number:05d}.png", png(noise(seed + number, 32, 32, 3)))


def photographs(folder: Path) -> None:
    for number in range(NUM):
        path = folder / ("cats" if number % 2 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(noise(number, 70 + number % 3, 66, 3)))


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    mnist(folder / "FOLDER_WITH_THE_FILES", 0)
    mnist(folder / "fashion-mnist", 1)
    cifar10(folder / "cifar-10-python.tar.gz")
    imagenet32(folder / "FOLDER_WITH_THE_ARCHIVES")
    imagenet32_oord(folder)
    for name in ("MY_IMAGES", "pets/cifar_train", "pets/cifar_test", "vehicles"):
        photographs(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
