import pwd
from pathlib import Path

import pytest

from diffenc.data import paths
from diffenc.errors import UserError

FILES = paths.OfficialFiles(
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


def test_the_environment_variable_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "here"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert paths.data_directory() == tmp_path / "here"


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIFFENC_DATA", "~/sets")
    assert paths.data_directory() == tmp_path / "sets"


def test_who_has_no_home_folder_is_told_where_to_name_one(monkeypatch):
    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "DIFFENC_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        UserError, match=r"no home folder: set \$XDG_CACHE_HOME .* --data_dir and \$DIFFENC_DATA"
    ):
        paths.data_directory()


@pytest.mark.parametrize(
    ("cache", "below"), [("/abs/cache", "/abs/cache"), ("relative", "HOME/.cache"), ("", "HOME/.cache")]
)
def test_without_it_the_per_user_cache(monkeypatch, tmp_path, cache, below):
    monkeypatch.delenv("DIFFENC_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert str(paths.data_directory()) == below.replace("HOME", str(tmp_path)) + "/diffenc/data"


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


def test_reading_makes_one_line_of_any_error():
    with pytest.raises(UserError) as caught, paths.reading("some.gz"):
        raise KeyError("first\nsecond")
    assert str(caught.value).startswith("some.gz: cannot be read")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^as it was$"), paths.reading("some.gz"):
        raise UserError("as it was")
    with pytest.raises(KeyboardInterrupt), paths.reading("some.gz"):
        raise KeyboardInterrupt


def test_a_download_is_named_by_its_url():
    assert paths.Download("https://host/a/b.tar.gz", "0", 1).name == "b.tar.gz"
