"""Write one HTML page about one or several runs: python -m diffenc.report WORKDIR... [--output=FILE.html]

Every WORKDIR is a folder, or an address such as gs://BUCKET/RUN; it is only read. Runs that differ in no more than
their seed are shown together. The page opens from disk and loads nothing.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from diffenc.cli.console import exit_status
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument

DEFAULT = "report.html"
MARK = b'<meta name="generator" content="diffenc.report">'  # in pages; one with it may be replaced unasked
HEAD = 1000  # bytes of a page within which the mark stands
MOST_RUNS = 32  # that colours, dashes and marks tell apart


def write(workdirs: Sequence[str], output: Path) -> int:
    """Writes the page of `workdirs` to `output`, whole or not at all; returns its size in bytes.

    Raises:
      UserError: a workdir holds no run, or the disk refused.
    """
    from diffenc.tools.report import page, run_data  # not for --help: they take seconds to import

    if len(workdirs) > MOST_RUNS:
        raise UserError(f"{len(workdirs)} workdirs: a page shows {MOST_RUNS} runs at most; name fewer")
    data = page.render(run_data.read_all(workdirs)).encode()
    if output.is_dir():
        raise UserError(f"--output={output}: is a folder; name a file in it, as {output / 'report.html'}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot make the folder {output.parent}: {error.strerror}"
        ) from error
    try:
        atomic.write_bytes(output, data)
    except UserError as error:
        raise UserError(f"{error}; or name another place, as --output=FOLDER/{DEFAULT}") from error
    return len(data)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m diffenc.report", description=f"{summary.split(':')[0]}. {rest}"
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="a run: a folder, or an address")
    where = f"where the page goes; default: {DEFAULT} in the current folder"
    parser.add_argument("--output", type=path_argument, metavar="FILE.html", help=where)
    args = parser.parse_args(argv)

    def perform() -> None:
        output = args.output or _default_output()
        print(f"{output}: {write(args.workdirs, output):,} bytes")

    return exit_status(perform)


def _default_output() -> Path:
    """Returns the default path. Raises UserError if the file there is no report."""
    path = Path(DEFAULT)
    if os.path.lexists(path) and not (path.is_file() and MARK in path.read_bytes()[:HEAD]):
        raise UserError(f"{path}: is there, and no report wrote it: name another file, as --output=runs.html")
    return path
