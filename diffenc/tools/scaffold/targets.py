"""Projects that receive the files of a new plugin: a checkout of diffenc, or a package of plugins."""

import dataclasses
import importlib.util
import shlex
import tomllib
from pathlib import Path

from diffenc.errors import UserError
from diffenc.registry import ENTRY_POINT_GROUP
from diffenc.tools.scaffold import index
from diffenc.tools.scaffold.plugin_spec import PluginSpec, fill_template, require_identifier

ROOT = Path(__file__).parents[3]  # of the checkout that Python imports, if any


@dataclasses.dataclass(frozen=True)
class Target:
    """A project that receives plugins. Paths are relative to `root`.

    Attributes:
      plugins: the folder of plugin modules, with an `__init__.py` that imports each.
      package: name under which that folder is imported.
      tests: the folder of their tests.
      missing: texts of project files that do not exist yet, by path.
      commands: shell commands to run next.
    """

    root: Path
    plugins: str
    package: str
    tests: str
    missing: dict[str, str]
    commands: tuple[str, ...]

    def files(self, wanted: PluginSpec) -> dict[str, str]:
        """Returns the texts of the new files by path, without the index of plugins."""
        module = f"{self.package}.{wanted.name}"
        header = fill_template("header.gin", kind=wanted.kind, name=wanted.name)
        doc = f'"""Conformance of {wanted.kind}.{wanted.name}, and its formula worked by hand."""\n\n'
        return {
            **self.missing,
            f"{self.plugins}/{wanted.name}.py": wanted.text("plugin.py"),
            f"{self.tests}/test_{wanted.name}.py": doc + wanted.text("test.py", module=module),
            f"gin/{wanted.name}.gin": header + wanted.text("plugin.gin"),
        }

    def index(self, wanted: PluginSpec) -> tuple[str, str]:
        """Returns path and text of the index with the new plugin.

        Raises:
          UserError: the existing index has other content.
        """
        path = f"{self.plugins}/__init__.py"
        file = self.root / path
        text = file.read_text(encoding="utf-8") if file.exists() else '"""Plugins for diffenc."""\n'
        added = index.parse_index(text, str(file)).with_class(
            f"{self.package}.{wanted.name}", wanted.class_name
        )
        return path, str(added)


def checkout_target(wanted: PluginSpec) -> Target:
    """Returns the checkout that contains the working directory.

    Raises:
      UserError: the working directory is in no checkout.
    """
    root, here = ROOT, Path.cwd()
    is_checkout = (root / "plugins" / "__init__.py").is_file()
    if not is_checkout or not here.is_relative_to(root):
        hint = f", or go to the checkout of diffenc that Python imports: cd {root}" if is_checkout else ""
        raise UserError(
            f"{here} is in no checkout of diffenc: give --package=DIR for a package of your own{hint}"
        )
    package = f"diffenc_plugins.{wanted.folder}"
    tests = f"tests/plugins/{wanted.folder}"
    commands = (
        f"python -m pytest {tests}/test_{wanted.name}.py",
        "python -m diffenc.run --list",
        f"python -m diffenc.run --gin_file=gin/quickstart.gin --gin_file=gin/{wanted.name}.gin",
    )
    return Target(root, f"plugins/{wanted.folder}", package, tests, {}, commands)


def package_target(folder: str, wanted: PluginSpec) -> Target:
    """Returns the package of plugins in `folder`, an existing or a new one.

    Raises:
      UserError: the folder has other content, or its name is not valid as a package name.
    """
    root = Path(folder).expanduser().resolve()
    pyproject = root / "pyproject.toml"
    if pyproject.is_file():
        module = _read_module(pyproject)
        missing = _missing_files(root, module, wanted)
    else:
        module = _new_module_name(root)
        missing = _project_files(module, wanted)
    source = module if (root / module).is_dir() else f"src/{module}"
    shown = _display_path(root)
    commands = (
        f"python -m pip install --editable {shlex.quote(f'{shown}[test]')}",
        f"python -m pytest {shlex.quote(shown)}",
        "python -m diffenc.run --gin_file=gin/quickstart.gin "
        + shlex.quote(f"--gin_file={shown}/gin/{wanted.name}.gin"),
    )
    return Target(root, source, module, "tests", missing, commands)


def _project_files(module: str, wanted: PluginSpec) -> dict[str, str]:
    """Returns the texts of project files of a new package, by path."""
    project = module.replace("_", "-")
    return {
        "pyproject.toml": fill_template("pyproject.toml", project=project, module=module),
        "README.md": fill_template("README.md", kind=wanted.kind, name=wanted.name, project=project),
    }


def _missing_files(root: Path, module: str, wanted: PluginSpec) -> dict[str, str]:
    """Returns the project files that an interrupted call did not write; none if another tool made the package.

    Raises:
      UserError: the folder of the package named by its entry point does not exist.
    """
    files = _project_files(module, wanted)
    # Byte for byte the text of this module, so an earlier call wrote it.
    if (root / "pyproject.toml").read_bytes() == files["pyproject.toml"].encode():
        return {path: text for path, text in files.items() if not (root / path).exists()}
    if not any((root / source).is_dir() for source in (module, f"src/{module}")):
        checkout = "; in a checkout of diffenc leave --package out" * (module == "diffenc_plugins")
        raise UserError(
            f"--package={root}: its entry point names {module}, but it contains neither {module} nor src/{module}; "
            f"create it{checkout}"
        )
    return {}


def _read_module(pyproject: Path) -> str:
    """Returns the package named by a project's entry point."""
    try:
        parsed = tomllib.loads(pyproject.read_text(encoding="utf-8"))
        ((key, value),) = parsed["project"]["entry-points"][ENTRY_POINT_GROUP].items()
    except (ValueError, KeyError, TypeError, AttributeError):  # tomllib's own error is a ValueError
        raise UserError(
            f"{pyproject} does not have exactly one entry point {ENTRY_POINT_GROUP}: name a new folder for --package, "
            f'or add [project.entry-points."{ENTRY_POINT_GROUP}"] to it'
        ) from None
    if not isinstance(value, str):
        raise UserError(
            f"{pyproject}: the entry point {ENTRY_POINT_GROUP}.{key} = {value!r}: must be the name of a package"
        )
    require_identifier(value, f"{pyproject}: the entry point's package")
    return value


def _new_module_name(root: Path) -> str:
    """Returns the module name of a package in a new folder."""
    if root.exists() and (not root.is_dir() or not all(map(_is_temporary, root.iterdir()))):
        raise UserError(f"--package={root} exists but is no package of plugins: name a new folder")
    module = root.name.replace("-", "_")
    require_identifier(module, "--package: the folder's name")
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:  # None for a plain folder
        raise UserError(
            f"--package: {module} already is the import name of {spec.origin}: choose another name"
        )
    return module


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".pyproject.toml.tmp-")  # as named by `diffenc.files.atomic`


def _display_path(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
