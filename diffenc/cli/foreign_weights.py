"""The command `python -m MODULE FILE --gin_file=… --output=DIR`: exports parameters that other code trained.

MODULE calls `main` with a function that translates the other code's parameter names.
"""

import argparse
from collections.abc import Sequence

from diffenc.config import gin_loader
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import exit_status
from diffenc.tools.foreign_weights import Translate, convert_weights


def parse_args(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments; exits with a message if they are wrong."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file", type=path_argument, help="a checkpoint of flax (msgpack), or an .npz of the same names"
    )
    parser.add_argument(
        "--gin_file", action="append", required=True, help="the run that these parameters are of"
    )
    parser.add_argument("--gin_bindings", action="append", default=[], help="a binding over the files")
    parser.add_argument("--output", type=path_argument, required=True, help="the folder to write")
    return parser.parse_args(argv)


def main(translate: Translate, what: str, description: str, argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. `what` describes the origin of the weights."""
    args = parse_args(description, argv)

    def perform() -> None:
        experiment = gin_loader.load_experiment(args.gin_file, args.gin_bindings)
        count = convert_weights(args.file, experiment, args.output, translate, what)
        print(f"{count:,} parameters in {args.output}: diffenc.load({str(args.output)!r}) reads them")

    return exit_status(perform)
