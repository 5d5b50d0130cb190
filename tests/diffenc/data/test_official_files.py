from pathlib import Path

import pytest

from diffenc.data import official_files
from diffenc.errors import UserError

FILES = official_files.OfficialFiles(
    name="toy",
    parts={
        "images": (("images.gz",), ("images",)),
        "batches": (("all.zip",), ("unpacked/one", "unpacked/two")),
    },
    downloads=(),
    origin="the attic",
)


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_locate_takes_the_first_whole_layout(tmp_path):
    put(tmp_path, "images", "unpacked/one", "unpacked/two")
    assert FILES.locate(tmp_path) == {
        name: tmp_path / name for name in ("images", "unpacked/one", "unpacked/two")
    }
    put(tmp_path, "images.gz", "all.zip")
    assert set(FILES.locate(tmp_path)) == {"images.gz", "all.zip"}


@pytest.mark.parametrize("named", ["unpacked", "images"])
def test_locate_prefers_the_layout_that_is_named(tmp_path, named):
    put(tmp_path, "images", "images.gz", "all.zip", "unpacked/one", "unpacked/two")
    found = set(FILES.locate(tmp_path / named))
    assert found == (
        {"images.gz", "unpacked/one", "unpacked/two"} if named == "unpacked" else {"images", "all.zip"}
    )


def test_locate_refuses_a_file_that_is_none_of_them(tmp_path):
    put(tmp_path, "images", "all.zip", "letter.txt")
    with pytest.raises(UserError, match=r"letter\.txt: not a file of toy"):
        FILES.locate(tmp_path / "letter.txt")
    with pytest.raises(UserError, match="nowhere: no such file"):
        FILES.locate(tmp_path / "nowhere")


def test_what_is_missing_is_said_of_the_layout_that_was_begun(tmp_path):
    put(tmp_path, "images", "unpacked/one")
    with pytest.raises(UserError, match="lacks unpacked/two"):
        FILES.locate(tmp_path)


def test_a_download_is_named_by_its_url():
    assert official_files.Download("https://host/a/b.tar.gz", "0", 1).name == "b.tar.gz"
