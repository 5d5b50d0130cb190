import pwd

import pytest

from diffenc.errors import UserError
from diffenc.files import directories


def test_the_environment_variable_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path / "here"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert directories.data_directory() == tmp_path / "here"


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIFFENC_DATA", "~/sets")
    assert directories.data_directory() == tmp_path / "sets"


def test_who_has_no_home_folder_is_told_where_to_name_one(monkeypatch):
    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "DIFFENC_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        UserError, match=r"no home folder: set \$XDG_CACHE_HOME .* --data_dir and \$DIFFENC_DATA"
    ):
        directories.data_directory()


@pytest.mark.parametrize(
    ("cache", "below"), [("/abs/cache", "/abs/cache"), ("relative", "HOME/.cache"), ("", "HOME/.cache")]
)
def test_without_it_the_per_user_cache(monkeypatch, tmp_path, cache, below):
    monkeypatch.delenv("DIFFENC_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert str(directories.data_directory()) == below.replace("HOME", str(tmp_path)) + "/diffenc/data"
