"""Writing the files of a new plugin: all of them, or none."""

import os
from collections.abc import Mapping
from pathlib import Path

from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.tools.scaffold import targets
from diffenc.tools.scaffold.plugin_spec import PluginSpec
from diffenc.tools.scaffold.targets import Target


def make_plugin(kind: str, name: str, package: str | None) -> str:
    """Creates a plugin in the checkout, or in a package; returns the written files and the next commands as text.

    Raises:
      UserError: invalid arguments or a failed write; nothing was written.
    """
    plugin = PluginSpec(kind, name)
    plugin.check()
    target = targets.checkout_target(plugin) if package is None else targets.package_target(package, plugin)
    written = write_plugin(target, plugin)
    here = Path.cwd()
    shown = [path.relative_to(here) if path.is_relative_to(here) else path for path in written]
    lines = ["wrote", *(f"  {path}" for path in shown), "now run", *(f"  {line}" for line in target.commands)]
    return "\n".join(lines)


def write_plugin(target: Target, wanted: PluginSpec) -> list[Path]:
    """Writes the new files, then the index that imports the plugin. Returns the paths.

    Existing files with the same content stay, so the same command completes an interrupted one.

    Raises:
      UserError: a file exists with other content, or a failed write; nothing was written.
    """
    files, (index, content) = target.files(wanted), target.index(wanted)
    _refuse_to_overwrite(target.root, files)
    made: list[Path] = []  # in order of creation
    try:
        for path, text in files.items():
            _write_file(target.root / path, text, made)
        if not (target.root / index).exists():
            made.append(target.root / index)
            _create_folder((target.root / index).parent, made)
        # The index last: if it imported a module that is not written yet, no plugin of the package could be imported.
        atomic.write_text(target.root / index, content)
    except BaseException:
        _remove_created(made)
        raise
    return [target.root / path for path in (*files, index)]


def _refuse_to_overwrite(root: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        file = root / path
        if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
            raise UserError(f"{file} already exists: choose another NAME, or move it away")


def _write_file(path: Path, text: str, made: list[Path]) -> None:
    if path.exists():
        return
    _create_folder(path.parent, made)
    # Before the write, so that an interrupted one is cleaned up too.
    made.append(path)
    atomic.write_text(path, text)


def _create_folder(folder: Path, made: list[Path]) -> None:
    """Creates a folder with its parents, and adds the new ones to `made`."""
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            made.append(each)
            try:
                each.mkdir()
            except OSError as error:
                raise atomic.write_error(each, error) from error


def _remove_created(made: list[Path]) -> None:
    for path in reversed(made):
        if path.is_dir():
            path.rmdir()
        elif path.exists():
            os.remove(path)
