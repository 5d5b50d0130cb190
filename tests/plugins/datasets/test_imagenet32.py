import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.interfaces import Source
from diffenc_plugins.datasets import Imagenet32

TRAIN = [f"train_data_batch_{k}" for k in range(1, 11)]
NAMES = [*TRAIN, "val_data"]


def content(name: str) -> dict:
    k = NAMES.index(name)
    data = np.random.default_rng(k).integers(0, 256, (2 + k % 2, 3072), dtype=np.uint8)
    return {"data": data, "labels": [k + 1, 1000, 500][: len(data)], "mean": np.zeros(3072)}


def pickled(name: str, **other) -> bytes:
    return pickle.dumps(content(name) | other, 2)


def npz(name: str, **other) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in (content(name) | other).items()}
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


LAYOUTS = {
    "zip": ("Imagenet32_{}.zip", "", pickled),
    "npz in zip": ("Imagenet32_{}_npz.zip", ".npz", npz),
    "unpacked": ("", "", pickled),
    "unpacked npz": ("", ".npz", npz),
    "folders": ("Imagenet32_{}/", "", pickled),
    "folders of npz": ("Imagenet32_{}_npz/", ".npz", npz),
}


def lay(folder: Path, layout: str, **replaced: bytes) -> Path:
    """All official files; `replaced` gives other contents by name."""
    archive, suffix, make = LAYOUTS[layout]
    folder.mkdir(exist_ok=True)
    for part, names in (("train", TRAIN), ("val", ["val_data"])):
        files = {name + suffix: replaced.get(name) or make(name) for name in names}
        if not archive.endswith(".zip"):
            (folder / archive.format(part)).mkdir(exist_ok=True)
            for name, written in files.items():
                (folder / archive.format(part) / name).write_bytes(written)
        else:
            with zipfile.ZipFile(folder / archive.format(part), "w", zipfile.ZIP_DEFLATED) as packed:
                for name, written in files.items():
                    packed.writestr(name, written)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "files"


def check(source: Source, names: list[str]) -> None:
    expected = [
        (row, label) for name in names for row, label in zip(*list(content(name).values())[:2], strict=True)
    ]
    assert len(source) == len(expected)
    for k, (row, label) in enumerate(expected):
        example = source[k]
        assert int(example["label"]) == label - 1
        for y, x, channel in ((0, 0, 0), (0, 1, 2), (31, 30, 1)):
            assert example["image"][y, x, channel] == row[1024 * channel + 32 * y + x]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(folder, read, layout):
    lay(folder, layout)
    check(read("imagenet32", folder, "train"), TRAIN)
    check(read("imagenet32", folder, "test"), ["val_data"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("labels", [[0, 1], [1, 1001]])
def test_labels_count_from_1_to_1000(folder, read, layout, labels):
    make = LAYOUTS[layout][2]
    lay(folder, layout, train_data_batch_3=make("train_data_batch_3", labels=labels))
    with pytest.raises(UserError, match=r"train_data_batch_3.*not within 1 \.\. 1000"):
        read("imagenet32", folder, "train")


def test_an_empty_batch_is_refused(folder, read):
    empty = npz("val_data", data=np.zeros((0, 3072), np.uint8), labels=np.zeros(0, np.int64))
    lay(folder, "npz in zip", val_data=empty)
    with pytest.raises(UserError, match=r"val_data\.npz: holds no image"):
        read("imagenet32", folder, "test")


def test_a_missing_batch_is_named(folder, read):
    lay(folder, "unpacked npz")
    (folder / "train_data_batch_7.npz").unlink()
    with pytest.raises(UserError, match=r"lacks train_data_batch_7\.npz"):
        read("imagenet32", folder, "train")


def test_a_missing_member_is_named(folder, read):
    lay(folder, "zip")
    with zipfile.ZipFile(folder / "Imagenet32_val.zip", "w") as packed:
        packed.writestr("other", b"")
    with pytest.raises(UserError, match=r"Imagenet32_val\.zip: has no member val_data"):
        read("imagenet32", folder, "test")


def test_object_arrays_in_an_npz_are_not_unpickled(folder, read, tmp_path):
    stream = io.BytesIO()
    np.savez(stream, data=np.array([Evil(tmp_path / "trace")], object), labels=np.array([1]))
    lay(folder, "npz in zip", val_data=stream.getvalue())
    with pytest.raises(UserError, match=r"val_data\.npz:data: is of dtype object"):
        read("imagenet32", folder, "test")
    assert not (tmp_path / "trace").exists()


def everything(folder: Path) -> None:
    """Reads what testing needs."""
    for _ in Imagenet32.read(Imagenet32.files.locate(folder), "test", 0):
        pass


class Evil:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def forged_size(path: Path, size: int) -> None:
    """Set the uncompressed size in the first entry of the archive's directory."""
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.index(b"PK\x01\x02") + 24, size)
    path.write_bytes(raw)


def test_a_member_that_claims_too_much_is_refused(folder, read):
    lay(folder, "zip")
    forged_size(folder / "Imagenet32_val.zip", 2**32 - 2)
    with pytest.raises(UserError, match=r"Imagenet32_val\.zip:val_data: claims 4,294,967,294 bytes"):
        read("imagenet32", folder, "test")


def test_a_member_that_holds_more_than_it_claims_is_refused(folder, read):
    lay(folder, "zip")
    forged_size(folder / "Imagenet32_val.zip", 100)
    with pytest.raises(UserError, match=r"Imagenet32_val\.zip:val_data"):
        read("imagenet32", folder, "test")


@pytest.mark.parametrize("claim", [(2**50, 3072), (3_500_000, 3072), (-1, 3072)])
def test_an_array_that_claims_more_than_there_is_is_refused(folder, read, claim):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": claim})
        packed.writestr("data.npy", header.getvalue())
        packed.writestr("labels.npy", b"")
    lay(folder, "npz in zip", val_data=stream.getvalue())
    with pytest.raises(UserError, match=r"val_data\.npz:data: (claims|has not)"):
        read("imagenet32", folder, "test")


def test_names_that_lead_elsewhere_write_nothing(folder, read, tmp_path):
    lay(folder, "zip")
    with zipfile.ZipFile(folder / "Imagenet32_val.zip", "a") as packed:
        packed.writestr("../../escaped", b"out")
        packed.writestr(f"{tmp_path}/escaped", b"out")
    check(read("imagenet32", folder, "test"), ["val_data"])
    assert not list(tmp_path.rglob("escaped"))
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize("layout", ["zip", "npz in zip"])
def test_every_way_to_damage_an_archive_is_a_user_error(folder, layout):
    lay(folder, layout)
    path = folder / LAYOUTS[layout][0].format("val")
    good = path.read_bytes()
    for cut in (0, 1, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError, match=path.name):
            everything(folder)
    refused = 0
    places = range(0, len(good), len(good) // 100)
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        try:
            everything(folder)
        except UserError:
            refused += 1
    assert refused > 0.9 * len(places)


@pytest.mark.parametrize("kind", ["", "_npz"])
def test_the_real_sample(read, tmp_path, kind):
    if "DIFFENC_SHARED" not in os.environ:
        pytest.skip("DIFFENC_SHARED is not set")
    real = Path(os.environ["DIFFENC_SHARED"]) / "data" / "imagenet32_sample"
    (tmp_path / "files").mkdir()
    for part in ("train", "val"):
        name = f"Imagenet32_{part}{kind}.zip"
        (tmp_path / "files" / name).symlink_to(real / name)
    for split, archive, names, count in (("train", "train", TRAIN, 900), ("test", "val", ["val_data"], 100)):
        rows, labels = [], []
        with zipfile.ZipFile(real / f"Imagenet32_{archive}.zip") as packed:
            for name in names:  # the stock unpickler, on files that are trusted
                batch = pickle.loads(packed.read(name))
                rows.append(batch["data"])
                labels += list(batch["labels"])
        planes = [np.concatenate(rows)[:, 1024 * c : 1024 * (c + 1)].reshape(-1, 32, 32) for c in range(3)]
        source = read("imagenet32", tmp_path / "files", split)
        assert len(source) == count
        found = source.__getitems__(np.arange(len(source)))
        np.testing.assert_array_equal(found["image"], np.stack(planes, axis=-1))
        np.testing.assert_array_equal(found["label"], np.array(labels) - 1)
