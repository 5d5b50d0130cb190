"""Writes one HTML page about one or several runs: python -m diffenc.report WORKDIR... [--output=FILE.html]

Every WORKDIR is a folder, or a URL such as gs://BUCKET/RUN; it is only read. Runs whose configs differ only in the seed
form a group. The page opens from disk and loads nothing else.
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
MARK = b'<meta name="generator" content="diffenc.report">'  # a file with it may be overwritten by default
MARK_BYTES = 1000  # at the start of a page, which contain the mark
MAX_RUNS = 32  # that colours, dashes and marks distinguish


def write_report(workdirs: Sequence[str], output: Path) -> int:
    """Writes the page of `workdirs` to `output` atomically; returns its size in bytes.

    Raises:
      UserError: a workdir holds no run, or the page cannot be written.
    """
    from diffenc.tools.report import (  # here, as these imports take seconds, which --help need not
        page,
        run_data,
    )

    if len(workdirs) > MAX_RUNS:
        raise UserError(f"{len(workdirs)} workdirs: a page shows at most {MAX_RUNS} runs; name fewer")
    data = page.render_page(run_data.read_runs(workdirs)).encode()
    if output.is_dir():
        raise UserError(f"--output={output}: is a folder; name a file in it, e.g. {output / 'report.html'}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot create the folder {output.parent}: {error.strerror}"
        ) from error
    try:
        atomic.write_bytes(output, data)
    except UserError as error:
        raise UserError(f"{error}; or name another file, e.g. --output=FOLDER/{DEFAULT}") from error
    return len(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m diffenc.report", description=f"{summary.split(':')[0]}. {rest}"
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of a run: a folder, or a URL")
    output_help = f"the page (default: {DEFAULT} in the current folder)"
    parser.add_argument("--output", type=path_argument, metavar="FILE.html", help=output_help)
    args = parser.parse_args(arguments)

    def perform() -> None:
        output = _default_output() if args.output is None else args.output
        print(f"{output}: {write_report(args.workdirs, output):,} bytes")

    return exit_status(perform)


def _default_output() -> Path:
    """Returns the default name of the page. Raises UserError if another file has it."""
    path = Path(DEFAULT)
    if os.path.lexists(path) and not (path.is_file() and MARK in path.read_bytes()[:MARK_BYTES]):
        raise UserError(f"{path}: exists, and is not a report: name another file, e.g. --output=runs.html")
    return path
