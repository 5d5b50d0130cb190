import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffenc.data import sources
from diffenc.errors import UserError
from diffenc_plugins.datasets import Imagenet32Oord

NAMES = {"train_32x32": 7, "valid_32x32": 3}


def levels(part: str, number: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng((len(part), number)).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(array: np.ndarray, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def pack(folder: Path, **replaced: bytes) -> Path:
    """Both archives, their members in no order; `replaced` gives other contents by number."""
    folder.mkdir(exist_ok=True)
    for part, count in NAMES.items():
        with tarfile.open(folder / f"{part}.tar", "w") as archive:
            for number in reversed(range(count)):
                content = replaced.get(f"{part}_{number}") or png(levels(part, number))
                member = tarfile.TarInfo(f"{part}/{number:05d}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def unpack(folder: Path) -> Path:
    for part, count in NAMES.items():
        (folder / part).mkdir(parents=True)
        for number in range(count):
            (folder / part / f"{number:05d}.png").write_bytes(png(levels(part, number)))
    return folder


@pytest.mark.parametrize("lay", [pack, unpack])
def test_archives_and_folders_are_read_in_the_order_of_names(read, tmp_path, lay):
    folder = lay(tmp_path / "files")
    for split, part in (("train", "train_32x32"), ("test", "valid_32x32")):
        source = read("imagenet32_oord", folder, split)
        found = source.__getitems__(np.arange(len(source)))
        expected = np.stack([levels(part, number) for number in range(NAMES[part])])
        np.testing.assert_array_equal(found["image"], expected)
        assert not found["label"].any()
    assert Imagenet32Oord().source_name == "unknown version of ImageNet32 (van den Oord et al. 2016)"


@pytest.mark.parametrize("lay", [pack, unpack])
def test_reading_can_begin_anywhere(tmp_path, lay):
    found = Imagenet32Oord.files.locate(lay(tmp_path / "files"))
    for first in (0, 3, 7):
        batches = list(Imagenet32Oord.read(found, "train", first))
        assert sum(len(batch["image"]) for batch in batches) == 7 - first


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png(levels("x", 0, 31)), "is 31x31, not 32x32"),
        (png(levels("x", 0))[:-40], "cannot be read"),
        (b"not a png", "cannot be read"),
        (png(levels("x", 0), "bmp"), "cannot be read"),
    ],
)
def test_a_bad_image_is_named(read, tmp_path, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read("imagenet32_oord", pack(tmp_path / "files", train_32x32_4=content), "train")
    assert "train_32x32.tar:train_32x32/00004.png" in str(caught.value)


def test_names_and_links_in_an_archive_lead_nowhere(read, tmp_path):
    folder = pack(tmp_path / "files")
    with tarfile.open(folder / "valid_32x32.tar", "a") as archive:
        for name in ("../../escaped.png", "/escaped.png", f"{tmp_path}/escaped.png"):
            member = tarfile.TarInfo(name)
            member.size = len(content := png(levels("x", 1)))
            archive.addfile(member, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("valid_32x32/link.png")
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    assert len(read("imagenet32_oord", folder, "test")) == 3 + 3
    assert not list(tmp_path.parent.rglob("escaped.png"))
    assert not Path("/escaped.png").exists()


def test_an_archive_without_images_is_refused(read, tmp_path):
    folder = pack(tmp_path / "files")
    with tarfile.open(folder / "train_32x32.tar", "w"):
        pass
    with pytest.raises(UserError, match=r"train_32x32\.tar: holds no \.png"):
        read("imagenet32_oord", folder, "train")


def test_its_figures_are_not_those_of_the_other_imagenet32(read, tmp_path):
    """As evaluation records state them."""
    read("imagenet32_oord", pack(tmp_path / "files"), "test")
    ours = {
        "dataset": "imagenet32_oord",
        "split": "test",
        "num_images": 3,
        "fingerprint": Imagenet32Oord().fingerprint("test"),
        "source": Imagenet32Oord().source_name,
    }
    theirs = ours | {
        "dataset": "imagenet32",
        "fingerprint": "0" * 64,
        "source": "ImageNet32 (Chrabaszcz et al. 2017)",
    }
    sources.require_same_images([ours, dict(ours)])
    with pytest.raises(UserError, match="different images") as caught:
        sources.require_same_images([ours, ours, theirs])
    for words in (
        "imagenet32_oord test (unknown version of ImageNet32 (van den Oord",
        "imagenet32 test (ImageNet32 (Chrab",
    ):
        assert words in str(caught.value)
