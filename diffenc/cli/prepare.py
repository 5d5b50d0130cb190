"""Convert a data set, once, into the shards that training reads.

  python -m diffenc.prepare mnist|cifar10|imagenet32|imagenet32_oord --source=FILE_OR_DIR [--data_dir=DIR] [--as=FOLDER]
  python -m diffenc.prepare mnist|cifar10 --download [--data_dir=DIR] [--as=FOLDER]
  python -m diffenc.prepare folder --source=DIR_OF_IMAGES [--size=32] [--background=white] [--data_dir=DIR] [--as=FOLDER]
  python -m diffenc.prepare folder --train=DIR [--test=DIR] --as=FOLDER [--size=32] [--background=white] [--data_dir=DIR]
  python -m diffenc.prepare tfds --source=DIR --as=FOLDER [--data_dir=DIR]

Interrupted at any moment, the same command continues.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from diffenc.errors import UserError
from diffenc.files.directories import data_directory
from diffenc.runtime.console import exit_status
from diffenc.safe_io.reading import one_line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffenc.prepare",
        description="Convert a data set into the shards that training reads, in DATA_DIR/FOLDER.",
    )
    parser.add_argument(
        "name",
        help="mnist, cifar10, imagenet32, imagenet32_oord or another registered data set in its official "
        "files; folder: any folder of images; tfds: what tensorflow-datasets has prepared as array_record",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--source", metavar="FILE_OR_DIR", help="the files: a folder, or one of them")
    where.add_argument("--download", action="store_true", help="fetch them (mnist, cifar10)")
    where.add_argument(
        "--train", metavar="DIR", help="folder: the train split, whose sub-folders are classes"
    )
    parser.add_argument(
        "--test", metavar="DIR", help="folder: the test split; default: a tenth of --train is held out"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="default: $DIFFENC_DATA, else a per-user cache")
    parser.add_argument("--as", metavar="FOLDER", dest="folder", help="its name in DATA_DIR; default: NAME")
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="folder: cut the square in the centre of every image and reduce it to N x N",
    )
    parser.add_argument(
        "--background",
        metavar="COLOUR",
        help="folder: put transparent images on this colour (white, #808080); default: they are refused",
    )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the arguments; exits with a message if they are wrong."""
    return _parser().parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = parse_args(argv)
    return exit_status(
        lambda: print(_prepare(args)),
        "interrupted; the same command goes on",
        lambda error: f"{one_line(error)}; once that is fixed, the same command goes on",
    )


def _prepare(args: argparse.Namespace) -> str:
    from diffenc.data.prepare import PrepareArgs, prepare  # not for --help: they take seconds to import

    source, train, test = (
        None if path is None else _absolute(path) for path in (args.source, args.train, args.test)
    )
    if test is not None and train is None:
        raise UserError(f"--test={args.test}: give --train=DIR too, in place of --source")
    data_dir = _absolute(args.data_dir) if args.data_dir else data_directory()
    return prepare(
        PrepareArgs(
            args.name, source, data_dir, args.folder, args.size, train, test, args.background, args.download
        )
    )


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
