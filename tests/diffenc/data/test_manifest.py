import functools
import json
import operator
from pathlib import Path

import pytest

from diffenc.data import manifest
from diffenc.data.manifest import Manifest, Shard, Split
from diffenc.errors import UserError

MADE = Manifest(
    name="toy",
    source="toys",
    image_shape=(4, 5, 3),
    num_levels=256,
    num_classes=2,
    classes=("ant", "bee"),
    splits={
        "train": Split("aa", (Shard("train-0", 1200, 9, "cc"), Shard("train-1", 34, 8, "dd"))),
        "test": Split("bb", (Shard("test-0", 5, 7, "ee"),)),
    },
    files={"a.zip": {"sha256": "ff"}},
    note="",
    diffenc_version="0",
)


def forged(folder: Path, place: str, value) -> None:
    """A manifest that is MADE but for what lies at `place`, keys joined by dots; ... = it is not there."""
    manifest.write(MADE, folder)
    said = json.loads((folder / "manifest.json").read_text())
    *outer, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inner = functools.reduce(operator.getitem, outer, said)
    inner[last] = value
    if value is ...:
        del inner[last]
    (folder / "manifest.json").write_text(json.dumps(said))


SHARD = "splits.train.shards.1"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("image_shape", shape) for shape in ([4, 5], [4, 5, 3, 1], [], "abc", ["4", 5, 3], 3, None)),
        *(("image_shape", [4, 5, size]) for size in (0, -1, 3.0, True, 2**70)),
        ("image_shape", [2**32, 2**32, 3]),
        *(("num_levels", value) for value in (0, 257, "256", None, True)),
        *(("num_classes", value) for value in (0, 2**40, 2.0)),
        ("classes", [1, 2]),
        *((key, value) for key in ("name", "source", "note", "diffenc_version") for value in (3, None, ...)),
        *(("files", value) for value in ([], {"a": 3}, None)),
        *(("splits", value) for value in ({}, [], 3, None)),
        *((f"splits.{split}", ...) for split in ("train", "test")),
        ("splits.validation", {"sha256": "aa", "shards": []}),
        ("splits.train.sha256", 3),
        *(
            (f"{SHARD}.name", name)
            for name in ("../out", "/etc/passwd", "a/b", "", "..", ".a", "a\0b", "a\n", 3)
        ),
        *(
            (f"{SHARD}.{key}", value)
            for key in ("count", "bytes")
            for value in (0, -1, 2.5, 2**60, "9", True)
        ),
        (f"{SHARD}.sha256", None),
        (f"{SHARD}.more", 1),
    ],
)
def test_a_forged_one_is_told_with_the_way_out(tmp_path, place, value):
    forged(tmp_path, place, value)
    with pytest.raises(UserError) as caught:
        manifest.read(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path}/manifest.json: is damaged; delete {tmp_path} and prepare it again")
    assert "\n" not in told


@pytest.mark.parametrize(
    ("place", "value"),
    [("num_levels", 2), ("image_shape", [2**12, 2**12, 3]), ("classes", []), (f"{SHARD}.name", "test-1_a.b")],
)
def test_one_that_is_only_unusual_is_read(tmp_path, place, value):
    forged(tmp_path, place, value)
    assert manifest.read(tmp_path) is not None


def test_it_is_read_as_it_was_written(tmp_path):
    manifest.write(MADE, tmp_path)
    assert manifest.read(tmp_path) == MADE
    said = json.loads((tmp_path / "manifest.json").read_text())
    assert (said["format"], said["splits"]["train"]["count"], said["classes"]) == (1, 1234, ["ant", "bee"])
    assert MADE.counted == "1,234 train images, 5 test images"


def test_where_there_is_none_it_is_none(tmp_path):
    assert manifest.read(tmp_path) is None
    (tmp_path / "file").write_text("")
    assert manifest.read(tmp_path / "file") is None


def test_one_of_another_format_is_none(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "mnist", "files": {}}')
    assert manifest.read(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 100_000, b"{", b"[]", b'{"format": 1}', b"\xff\xfe", b'{"format": 1, "splits": 3}'],
)
def test_a_damaged_one_is_told_with_the_way_out(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"manifest\.json: is damaged; delete .* and prepare it again"
    ) as caught:
        manifest.read(tmp_path)
    assert "\n" not in str(caught.value)
