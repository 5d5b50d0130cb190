"""Writes a page to explore one or two trained models: python -m diffenc.tools.explore WORKDIR [WORKDIR2]

The page shows images of a split, and at any t what a model encodes them to, their noisy version, the model's estimate, its
error, and the share of the bound. Two models are shown side by side, on the same images, noise and t. It is one file that
opens from disk and loads nothing else. A WORKDIR is a folder, or a URL such as gs://BUCKET/RUN; it is only read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffenc.errors import UserError
from diffenc.files import web_page
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import exit_status, start_up

DEFAULT = "explore.html"
# A file that starts with it may be overwritten by default.
MARK = b'<meta name="generator" content="diffenc.tools.explore">'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m diffenc.tools.explore", description=f"{summary.split(':')[0]}. {rest}"
    )
    add = parser.add_argument
    add("workdirs", nargs="+", metavar="WORKDIR", help="of a trained run; one or two")
    page_help = f"the page (default: {DEFAULT} in the current folder)"
    add("--output", type=path_argument, metavar="FILE.html", help=page_help)
    add("--num_images", type=int, metavar="N", help="default: 12, fewer of large images")
    add("--num_times", type=int, metavar="N", help="values of t; default: 25, fewer of large images")
    add("--allow_imports", action="append", default=[], help="a module that the runs' configs may import")
    return parser.parse_args(argv)


def make_page(args: argparse.Namespace) -> str:
    """Returns the page of the command line.

    Raises:
      UserError: more than two workdirs, one that has no trained model, or two of different images.
    """
    from diffenc import load  # here, as these imports take seconds, which --help need not
    from diffenc.runtime.progress import Progress
    from diffenc.tools.explore import arrays, page

    if len(args.workdirs) > 2:
        raise UserError(f"{len(args.workdirs)} workdirs: a page shows one model or two; name one or two")
    for name in ("num_images", "num_times"):
        if (count := getattr(args, name)) is not None and count < 1:
            raise UserError(f"--{name}={count}: must be at least 1")
    models = [load(workdir, allow_imports=args.allow_imports) for workdir in args.workdirs]
    experiments = [model.experiment for model in models]
    num_images, num_times = page.choose_counts(experiments, args.num_images, args.num_times)
    shown, times = arrays.choose_images(models, num_images), arrays.midpoint_times(num_times)
    progress = Progress("times", num_times * len(models))
    panels = [arrays.measure_panels(model, shown, times, progress) for model in models]
    return page.render_page(models, shown, times, panels)


def write_page(args: argparse.Namespace) -> tuple[Path, int]:
    """Writes the page of the command line; returns its path and its size in bytes."""
    # Checked first: the arrays take longer to compute.
    output = args.output or web_page.default_path(DEFAULT, MARK, "no page of this program")
    data = make_page(args).encode()
    web_page.write(output, data, DEFAULT)
    return output, len(data)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_args(argv)

    def perform() -> None:
        start_up()
        output, size = write_page(args)
        print(f"{output}: {size:,} bytes")

    return exit_status(perform)


if __name__ == "__main__":
    sys.exit(main())
