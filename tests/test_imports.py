"""The law of imports, experiments -> plugins -> diffenc, and the packaging that goes with it."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("diffenc", "plugins", "experiments", "tests")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(source, module=""):
    """Full names of all modules a text imports, relative ones resolved against `module`'s package."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def roots(path):
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(["diffenc_plugins" if folder == "plugins" else folder, *rest])
    return {name.partition(".")[0] for name in imported(path.read_text(), module)}


def under(folder):
    return [path for path in SOURCES if path.relative_to(ROOT).parts[0] == folder]


def test_the_reader_of_imports_sees_every_form():
    text = "import a.b\nfrom c import d\ndef f():\n    from e.f import g as h\n"
    assert imported(text) == {"a.b", "c", "c.d", "e.f", "e.f.g"}
    assert imported("from . import y\nfrom .z import w", "p.q.r") == {"p.q", "p.q.y", "p.q.z", "p.q.z.w"}


def test_there_is_something_to_read():
    assert all(under(folder) for folder in ("diffenc", "plugins", "tests"))


def test_the_core_imports_no_plugin_and_no_experiment():
    """But for `diffenc.plugins`, which type checkers are shown, and which is imported where it is used."""
    shown = ROOT / "diffenc" / "__init__.py"
    found = {path: roots(path) & {"diffenc_plugins", "experiments"} for path in under("diffenc")}
    assert found.pop(shown) == {"diffenc_plugins"}
    assert "if TYPE_CHECKING:\n    import diffenc_plugins as plugins\n" in shown.read_text()
    assert found == {path: set() for path in found}


@pytest.mark.parametrize("path", under("plugins"), ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_import_neither_experiments_nor_gin(path):
    assert not roots(path) & {"experiments", "gin"}
    assert "diffenc.config.gin_loader" not in imported(path.read_text())


def test_one_module_knows_gin():
    users = {str(path.relative_to(ROOT)) for path in SOURCES if "gin" in roots(path)}
    assert {user for user in users if not user.startswith("tests/")} == {"diffenc/config/gin_loader.py"}


def test_haiku_appears_only_where_networks_are_written():
    users = {path.relative_to(ROOT).parent for path in SOURCES if roots(path) & {"haiku"}}
    assert users <= {Path("plugins/networks"), Path("tests/plugins/networks")}
    assert Path("plugins/networks") in users


def test_nobody_imports_the_folder_of_plugins_by_its_own_name():
    """It would register everything twice: the package is diffenc_plugins."""
    assert not [str(path) for path in SOURCES if "plugins" in roots(path)]


def test_nothing_shadows_the_gin_library():
    assert not (ROOT / "gin" / "__init__.py").exists()


def test_every_folder_of_plugins_is_in_the_package_list():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT / "plugins") for path in under("plugins")}
    want = {".".join(["diffenc_plugins", *folder.parts]) for folder in folders}
    assert {name for name in settings["packages"] if name.startswith("diffenc_plugins")} == want
    assert all((ROOT / "plugins" / folder / "__init__.py").exists() for folder in folders)
    core = {".".join(path.parent.relative_to(ROOT).parts) for path in under("diffenc")}
    assert {name for name in settings["packages"] if name.split(".")[0] == "diffenc"} == core
    assert settings["package-dir"]["diffenc_plugins"] == "plugins"
