"""Make a plugin that runs as it stands, with its test and a gin file.

python -m diffenc.new encoder my_blur                     in a checkout of diffenc: a part of diffenc
python -m diffenc.new encoder my_blur --package=my_pack   a package of your own, new or made so before
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffenc import registry
from diffenc.cli.console import status_of
from diffenc.tools.scaffold import targets
from diffenc.tools.scaffold.plugin_spec import PluginSpec
from diffenc.tools.scaffold.writing import write


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m diffenc.new",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", metavar="KIND", help=", ".join(registry.REGISTRIES))
    parser.add_argument(
        "name", metavar="NAME", help="what configs call it, as my_blur; its class is then MyBlur"
    )
    parser.add_argument("--package", metavar="DIR", help="a folder for a package of your own")
    return parser.parse_args(argv)


def new(kind: str, name: str, package: str | None) -> str:
    """Make the plugin. Returns what was made and what to run next, for people.

    Raises:
      UserError: it cannot be made, and nothing was.
    """
    wanted = PluginSpec(kind, name)
    wanted.check()
    place = targets.checkout(wanted) if package is None else targets.package(package, wanted)
    written = write(place, wanted)
    here = Path.cwd()
    shown = [path.relative_to(here) if path.is_relative_to(here) else path for path in written]
    lines = ["wrote", *(f"  {path}" for path in shown), "now run", *(f"  {line}" for line in place.commands)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parse(argv)

    def perform() -> None:
        registry.discover()
        print(new(given.kind, given.name, given.package))

    return status_of(
        perform,
        "interrupted; nothing was written",
        lambda error: f"{error.strerror or error}: {error.filename or 'no file named'}",
    )
