"""Putting the files of a new plugin where they belong: all of them, or none."""

import os
from collections.abc import Mapping
from pathlib import Path

from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.tools.scaffold import targets
from diffenc.tools.scaffold.plugin_spec import PluginSpec
from diffenc.tools.scaffold.targets import Target


def make_plugin(kind: str, name: str, package: str | None) -> str:
    """Makes the plugin, in the checkout or in a package; returns the files written and the commands to run next.

    Raises:
      UserError: it cannot be made; nothing was written.
    """
    plugin = PluginSpec(kind, name)
    plugin.check()
    target = targets.checkout_target(plugin) if package is None else targets.package_target(package, plugin)
    written = write_plugin(target, plugin)
    here = Path.cwd()
    shown = [path.relative_to(here) if path.is_relative_to(here) else path for path in written]
    lines = ["wrote", *(f"  {path}" for path in shown), "now run", *(f"  {line}" for line in target.commands)]
    return "\n".join(lines)


def write_plugin(place: Target, wanted: PluginSpec) -> list[Path]:
    """Write the new files, then the index that imports the plugin. Returns what was written.

    A file that is there is left if it says the same, as after a kill; the same command goes on.

    Raises:
      UserError: a file says something else, or the disk refused; then nothing was written.
    """
    files, (index, content) = place.files(wanted), place.index(wanted)
    _refuse_to_overwrite(place.root, files)
    made: list[Path] = []  # in their order
    try:
        for path, text in files.items():
            _write_file(place.root / path, text, made)
        if not (place.root / index).exists():
            made.append(place.root / index)
            _create_folder((place.root / index).parent, made)
        atomic.write_text(place.root / index, content)
    except BaseException:
        _remove_created(made)
        raise
    return [place.root / path for path in (*files, index)]


def _refuse_to_overwrite(root: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        there = root / path
        if there.exists() and (not there.is_file() or there.read_bytes() != text.encode()):
            raise UserError(f"{there} is there already: choose another NAME, or move it away")


def _write_file(path: Path, text: str, made: list[Path]) -> None:
    if path.exists():
        return
    _create_folder(path.parent, made)
    made.append(path)
    atomic.write_text(path, text)


def _create_folder(folder: Path, made: list[Path]) -> None:
    """With those it lies in."""
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
