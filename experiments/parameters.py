"""The number of parameters of every run file shipped with diffenc, compared with the published number.

  python -m experiments.parameters [--json=FILE]

Only shapes are computed, in seconds and with little memory. Published numbers are those of the authors'
code for DiffEnc (arXiv:2310.19789), which hold for fixed ends of the log-SNR; learned ends add 2.
The exit status is 1 if any number differs from the published one.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffenc import registry
from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.config.gin_files import shipped_files
from diffenc.core.parameters import count_parameters
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import exit_status

STACKABLE = (
    "gin/by_class.gin",
    "gin/learned_endpoints.gin",
    "gin/learned_path.gin",
    "gin/learned_schedule.gin",
    "gin/separable.gin",
    "gin/two_heads.gin",
    "gin/vdm_released.gin",
)  # no runs of their own

# (score network, encoder), in the authors' code
PUBLISHED = {
    "cifar10_diffenc_32_2": (30_578_179, 1_906_243),
    "cifar10_diffenc_32_4": (30_578_179, 2_744_131),
    "cifar10_diffenc_8_2": (8_905_219, 1_906_243),
    "cifar10_diffenc_8_4": (8_905_219, 2_744_131),
    "cifar10_diffenc_8_nt": (8_905_219, 0),
    "cifar10_vdmv_32": (30_578_179, 0),
    "cifar10_vdmv_8": (8_905_219, 0),
    "imagenet32_diffenc_32_8": (122_137_603, 4_419_907),
    "imagenet32_vdmv_32": (122_137_603, 0),
    "mnist_diffenc_8_2": (8_891_393, 1_903_937),
    "mnist_diffenc_8_nt": (8_891_393, 0),
    "mnist_vdmv_8": (8_891_393, 0),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One run. `published` is (score network, encoder), or None for a run of our own."""

    name: str
    network: int
    encoder: int
    schedule: int
    published: tuple[int, int] | None
    stochasticity: int = 0
    generative_mean: int = 0
    variance: int = 0

    @property
    def total(self) -> int:
        learned_with = self.schedule + self.stochasticity + self.generative_mean + self.variance
        return self.network + self.encoder + learned_with

    @property
    def agrees(self) -> bool:
        return self.published is None or self.published == (self.network, self.encoder)


def count_by_part(experiment: Experiment) -> dict[str, int]:
    """Returns the number of parameters of each part of the model, by shape evaluation.

    Raises:
      UserError: a plugin cannot be built for these images.
    """
    params = experiment.abstract_params()
    return {part: count_parameters(branch) for part, branch in params.items()}


def load_rows() -> list[Row]:
    """Returns a row for every shipped run, in the order of names."""
    files = [name for name in shipped_files() if name not in STACKABLE]
    return [load_row(name) for name in files]


def load_row(gin_file: str) -> Row:
    """Returns the row of one run file."""
    name = Path(gin_file).stem
    return Row(
        name, published=PUBLISHED.get(name), **count_by_part(gin_loader.load_experiment([gin_file], []))
    )


def format_table(runs: Sequence[Row]) -> Table:
    """Returns the table; published numbers that differ from the run's are marked with ≠."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("parameters", "network", "encoder", "total", "published"):
        result.add_column(column, justify="left" if column == "parameters" else "right", no_wrap=True)
    for run in runs:
        published = "-" if run.published is None else f"{sum(run.published):,}"
        verdict = published if run.agrees else f"≠ {published}"
        result.add_row(
            escape(run.name), *(f"{number:,}" for number in (run.network, run.encoder, run.total)), verdict
        )
    return result


def to_records(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns one JSON object per run; `published` is the total."""
    return [
        {**dataclasses.asdict(run), "published": run.published and sum(run.published), "total": run.total}
        for run in runs
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.parameters", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--json", metavar="FILE", type=path_argument, help="write the table there too, as JSON"
    )
    given = parser.parse_args(argv)
    found: list[Row] = []

    def perform() -> None:
        registry.discover()
        found.extend(load_rows())
        Console(width=1000, soft_wrap=True).print(
            format_table(found)
        )  # a narrow terminal wraps: no number is cut
        if given.json:
            atomic.write_json(given.json, to_records(found))

    return exit_status(perform) or int(not all(run.agrees for run in found))


if __name__ == "__main__":
    sys.exit(main())
