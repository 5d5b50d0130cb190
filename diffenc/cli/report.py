"""Writes one HTML page about one or several runs: python -m diffenc.report WORKDIR... [--output=FILE.html]

Every WORKDIR is a folder, or a URL such as gs://BUCKET/RUN; it is only read. Runs whose configs differ only in the seed
form a group. The page opens from disk and loads nothing else.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffenc.errors import UserError
from diffenc.files import web_page
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import exit_status

DEFAULT = "report.html"
MARK = b'<meta name="generator" content="diffenc.report">'  # a file with it may be overwritten by default
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
    web_page.write(output, data, DEFAULT)
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
        output = args.output or web_page.default_path(DEFAULT, MARK, "not a report")
        print(f"{output}: {write_report(args.workdirs, output):,} bytes")

    return exit_status(perform)
