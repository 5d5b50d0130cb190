import json

import pytest

from diffenc import manifest
from diffenc.errors import UserError
from diffenc.manifest import Manifest, Shard, Split

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
    "content", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe", b'{"format": 1, "splits": 3}']
)
def test_a_damaged_one_is_told_with_the_way_out(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"manifest\.json: is damaged; delete .* and prepare it again"
    ) as caught:
        manifest.read(tmp_path)
    assert "\n" not in str(caught.value)
