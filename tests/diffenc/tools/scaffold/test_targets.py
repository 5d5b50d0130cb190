import subprocess
import sys
import tomllib

import pytest

from diffenc.errors import UserError
from diffenc.tools.scaffold import targets
from diffenc.tools.scaffold.plugin_spec import PluginSpec

WANTED = PluginSpec("encoder", "my_blur")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """What looks like a checkout, with diffenc imported from it."""
    (tmp_path / "plugins" / "encoders").mkdir(parents=True)
    for name in ("plugins/__init__.py", "plugins/encoders/__init__.py"):
        (tmp_path / name).write_text('"""Some."""\n')
    monkeypatch.setattr(targets, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_in_a_checkout_files_go_beside_the_others(clone, monkeypatch):
    monkeypatch.chdir(clone / "plugins")
    place = targets.checkout_target(WANTED)
    assert place.root == clone
    assert list(place.files(WANTED)) == [
        "plugins/encoders/my_blur.py",
        "tests/plugins/encoders/test_my_blur.py",
        "gin/my_blur.gin",
    ]
    path, text = place.index(WANTED)
    assert path == "plugins/encoders/__init__.py"
    assert "from diffenc_plugins.encoders.my_blur import MyBlur\n" in text


def test_outside_a_checkout_the_way_out_is_a_package(clone, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError, match=rf"^{elsewhere} is in no checkout.* --package=DIR .*cd {clone}$"):
        targets.checkout_target(WANTED)
    (clone / "plugins" / "__init__.py").unlink()  # as installed from a wheel
    with pytest.raises(UserError, match=r"--package=DIR for a package of your own$") as refused:
        targets.checkout_target(WANTED)
    assert "\n" not in str(refused.value)


def test_a_new_package_is_called_after_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = targets.package_target("some where/my-pack", WANTED)
    assert place.root == tmp_path / "some where" / "my-pack"
    files = place.files(WANTED)
    assert list(files) == [
        "pyproject.toml",
        "README.md",
        "src/my_pack/my_blur.py",
        "tests/test_my_blur.py",
        "gin/my_blur.gin",
    ]
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["name"] == "my-pack"
    assert project["entry-points"] == {"diffenc.plugins": {"my_pack": "my_pack"}}
    assert place.index(WANTED)[1].startswith(
        '"""Plugins for diffenc."""\n\nfrom my_pack.my_blur import MyBlur\n'
    )
    assert place.commands[0] == "python -m pip install --editable 'some where/my-pack[test]'"
    assert place.commands[2].endswith("'--gin_file=some where/my-pack/gin/my_blur.gin'")


ENTRY = '[project]\nname = "p"\n[project.entry-points."diffenc.plugins"]\n'


def test_a_package_that_is_there_takes_more(tmp_path):
    (tmp_path / "pyproject.toml").write_text(f'{ENTRY}any = "other_name"\n')
    (tmp_path / "src" / "other_name").mkdir(parents=True)
    place = targets.package_target(str(tmp_path), WANTED)
    assert (place.plugins, place.package, place.missing) == ("src/other_name", "other_name", {})
    (tmp_path / "other_name").mkdir()
    assert targets.package_target(str(tmp_path), WANTED).plugins == "other_name"


@pytest.mark.parametrize("name", ["other_name", "diffenc_plugins"])
def test_a_project_whose_package_lies_elsewhere_is_refused(tmp_path, name):
    """As that of diffenc itself, whose `plugins` is imported as `diffenc_plugins`."""
    (tmp_path / "pyproject.toml").write_text(f'{ENTRY}any = "{name}"\n')
    (tmp_path / "plugins").mkdir()
    with pytest.raises(
        UserError, match=f"names {name}, but it contains neither {name} nor src/{name}; create it"
    ) as refused:
        targets.package_target(str(tmp_path), WANTED)
    out = "; in a checkout of diffenc leave --package out"
    assert str(refused.value).endswith(out) == (name == "diffenc_plugins")


@pytest.mark.parametrize("value", ["3", "[1]", "{a = 1}", "true"])
def test_an_entry_point_that_is_no_name_is_refused(tmp_path, value):
    (tmp_path / "pyproject.toml").write_text(f"{ENTRY}mine = {value}\n")
    with pytest.raises(
        UserError, match=r"pyproject\.toml: the entry point diffenc\.plugins\.mine = .*: must be"
    ):
        targets.package_target(str(tmp_path), WANTED)


@pytest.mark.parametrize(
    "text",
    [
        "[project]\n",
        f'{ENTRY}a = "a"\nb = "b"\n',
        "not toml",
        '[project]\nentry-points = "none"\n',
        "project = 1\n",
    ],
)
def test_another_project_is_refused(tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(
        UserError, match=r"pyproject\.toml does not have exactly one entry point diffenc\.plugins"
    ):
        targets.package_target(str(tmp_path), WANTED)


def test_an_entry_point_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text(f'{ENTRY}a = "../../etc"\n')
    with pytest.raises(UserError, match=r"the entry point's package '\.\./\.\./etc': must be"):
        targets.package_target(str(tmp_path), WANTED)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists but is no package of plugins: name a new folder"):
        targets.package_target(str(tmp_path), WANTED)
    with pytest.raises(UserError, match="exists but is no package of plugins"):
        targets.package_target(str(tmp_path / "thesis.tex"), WANTED)


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("2nd", "must be a letter"),
        ("import", "a word of Python's"),
        ("numpy", "numpy already is the import name of .*numpy"),
    ],
)
def test_a_package_that_cannot_be_imported_so_is_refused(tmp_path, folder, says):
    with pytest.raises(UserError, match=says):
        targets.package_target(str(tmp_path / folder), WANTED)


def test_help_says_what_there_is():
    done = subprocess.run(
        [sys.executable, "-m", "diffenc.new", "--help"], capture_output=True, text=True, check=True
    )
    assert "encoder my_blur --package=my_pack" in done.stdout
    assert "optimizer" in done.stdout
