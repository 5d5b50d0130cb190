"""Reading the config of somebody's run imports nothing that was not allowed."""

import sys

import pytest

from diffenc.config import gin_loader, serialize
from diffenc.errors import UserError


@pytest.fixture
def stranger(tmp_path, monkeypatch, loud_unimported):
    """A workdir whose config imports a module that lies in the current folder, and leaves a trace if it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "loud.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "theirs").mkdir()
    text = serialize.config_text(gin_loader.load_experiment(["gin/quickstart.gin"], []))
    (tmp_path / "theirs" / "config.gin").write_text("import loud\n" + text)
    return tmp_path


CONFIG = "theirs/config.gin"


def test_code_does_not_run(stranger):
    with pytest.raises(UserError) as refused:
        gin_loader.load_experiment([CONFIG], [])
    assert str(refused.value).startswith("theirs/config.gin:1: imports loud, and so would run code")
    assert "--allow_imports=loud" in str(refused.value)
    assert not (stranger / "ran").exists()
    assert "loud" not in sys.modules


def test_another_name_of_the_file_changes_nothing(stranger):
    (stranger / "mine.gin").symlink_to(CONFIG)
    with pytest.raises(UserError, match="would run code"):
        gin_loader.load_experiment(["mine.gin"], [])
    assert not (stranger / "ran").exists()


def test_it_runs_where_it_is_allowed(stranger):
    gin_loader.load_experiment([CONFIG], [], ["loud"])
    assert (stranger / "ran").exists()


def test_a_module_is_allowed_by_its_package_and_by_no_part_of_its_name(stranger):
    (stranger / "theirs" / "config.gin").write_text("import loud.deeper\n")
    for allowed in (["lou"], ["loud.deep"], ["deeper"]):
        with pytest.raises(UserError, match="would run code"):
            gin_loader.load_experiment([CONFIG], [], allowed)
    with pytest.raises(UserError, match=r"import loud\.deeper failed"):
        gin_loader.load_experiment([CONFIG], [], ["loud"])


@pytest.mark.parametrize("said", ["file", "included", "binding"])
def test_what_the_users_own_config_imports_may_be(stranger, said):
    (stranger / "own.gin").write_text("import loud\n")
    (stranger / "outer.gin").write_text("include 'own.gin'\n")
    own = {"file": ["own.gin"], "included": ["outer.gin"], "binding": []}[said]
    bindings = ["import loud"] if said == "binding" else []
    assert gin_loader.load_experiment([CONFIG, *own], bindings).steps == 1_200
    assert (stranger / "ran").exists()


def test_an_installed_plugin_package_needs_no_permission(stranger):
    text = (stranger / "theirs" / "config.gin").read_text()
    (stranger / "theirs" / "config.gin").write_text(
        text.replace("import loud", "import diffenc_plugins.networks")
    )
    assert gin_loader.load_experiment([CONFIG], []).steps == 1_200


def test_a_config_of_a_run_is_whole(stranger):
    """An include would bring in what the check has not seen."""
    (stranger / "theirs" / "more.gin").write_text("import loud\n")
    (stranger / "theirs" / "config.gin").write_text("Experiment.seed = 1\ninclude 'more.gin'\n")
    with pytest.raises(
        UserError, match=r"^theirs/config.gin:2: includes 'more.gin', and the config of a run"
    ):
        gin_loader.load_experiment([CONFIG], [])
    assert not (stranger / "ran").exists()


def test_one_that_is_included_is_trusted_no_more(stranger):
    (stranger / "own.gin").write_text("include 'theirs/config.gin'\n")
    with pytest.raises(UserError, match=r"^theirs/config.gin:1: imports loud"):
        gin_loader.load_experiment(["own.gin"], [])
    assert not (stranger / "ran").exists()


def test_nothing_is_imported_before_all_is_checked(stranger):
    """The first import of a file is allowed, the second is not: neither runs."""
    (stranger / "theirs" / "config.gin").write_text("import loud\nimport louder\n")
    with pytest.raises(UserError, match="imports louder"):
        gin_loader.load_experiment([CONFIG], [], ["loud"])
    assert not (stranger / "ran").exists()
