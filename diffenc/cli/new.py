"""Make a plugin that runs as it stands, with its test and a gin file.

python -m diffenc.new encoder my_blur                     in a checkout of diffenc: a part of diffenc
python -m diffenc.new encoder my_blur --package=my_pack   a package of your own, new or made so before
"""

import argparse
from collections.abc import Sequence

from diffenc.registry import REGISTRIES
from diffenc.runtime.console import exit_status
from diffenc.tools.scaffold.writing import make_plugin


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments; exits with a message if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m diffenc.new",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", metavar="KIND", help=", ".join(REGISTRIES))
    parser.add_argument(
        "name", metavar="NAME", help="what configs call it, as my_blur; its class is then MyBlur"
    )
    parser.add_argument("--package", metavar="DIR", help="a folder for a package of your own")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = parse_args(argv)
    return exit_status(
        lambda: print(make_plugin(args.kind, args.name, args.package)), "interrupted; nothing was written"
    )
