"""Trains and evaluates the runs of the study that are missing, then writes its tables, figures and models.

  python -m experiments.study
  python -m experiments.study --only_tables

Runs go to experiments/study/records; those of the primary comparisons first, all arms of one seed before the next. The program
can be stopped at any time: the same command goes on. Tables and figures are made from the records alone; models, which a release
contains, from the checkpoints of seed 0.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from absl import logging

from diffenc.export import export, model_card, weights
from diffenc.files import atomic
from diffenc.files.user_paths import path_argument
from diffenc.runtime.console import STOPPED, exit_status, start_up
from diffenc.tools.sweep.execution import require_done, run_locally, run_sweep
from diffenc.tools.sweep.runs import Run, is_trained, make_runs
from experiments.study.other_paths import measure_other_paths
from experiments.study.parts import (
    DIGITS_SIZE,
    DIGITS_TIME,
    FOLDER,
    MNIST,
    MODELS,
    MODELS_FOLDER,
    PARTS,
    PRIMARIES,
    SIZES,
    STAGES,
    TIMES,
    VDM,
    Part,
    Stage,
)

TABLES = FOLDER / "tables.md"
FIGURES = FOLDER / "figures"


def check_stages() -> None:
    """Reads the configs and the test images of all stages, as an error in a late one would show after many hours.

    Raises:
      UserError: a config is invalid, or a data set is not prepared.
    """
    experiments = [
        run.experiment
        for stage in STAGES
        for run in make_runs(stage.part.records, stage.part.variants(stage.arms), stage.part.seeds[:1])
    ]
    for dataset, split in {(each.dataset, each.evaluation.split) for each in experiments}:
        dataset.fingerprint(split)


def run_stage(stage: Stage, jobs: int) -> list[Run]:
    """Trains and evaluates the missing runs of a stage, `jobs` at a time; returns all its runs."""
    execute = partial(run_locally, jobs)
    variants = stage.part.variants(stage.arms)
    return run_sweep(stage.part.records, variants, stage.part.seeds, execute=execute)


def export_models(models: Mapping[str, tuple[Part, str]]) -> None:
    """Exports the models of a release that were not exported before and whose checkpoints are here, to MODELS_FOLDER."""
    for name, (part, arm) in models.items():
        (run,) = make_runs(part.records, part.variants([arm]), part.seeds[:1])
        folder = MODELS_FOLDER / name
        if is_trained(run) and not (folder / weights.FILE).is_file():
            exported = export.export(run.experiment, run.workdir)
            with export.replace_folder(folder) as new:
                shutil.copytree(exported, new, dirs_exist_ok=True)
                state_license(new / export.README)
            logging.info("exported %s", os.path.relpath(folder))


def state_license(card: Path) -> None:
    """States diffenc's own license in a model's card, which leaves its line for it open."""
    text = card.read_text(encoding="utf-8")
    assert model_card.LICENSE in text
    atomic.write_text(card, text.replace(model_card.LICENSE, "license: apache-2.0", 1))


def write_results() -> None:
    """Writes the tables and, of the parts that have records, the figures; makes the records fit to be kept."""
    # They take seconds to import.
    from diffenc.evaluation.plots import render_files
    from experiments.study import figures, records, tables

    for part in PARTS:
        for run in make_runs(part.records, part.variants(part.arms), part.seeds):
            if (run.workdir / "evaluation.json").exists():
                records.check_record(run)
                records.complete_record(run.workdir, run.variant.name in part.learned)
    drawn = {
        "differences": figures.plot_differences(PARTS, PRIMARIES),
        "sizes": figures.plot_sizes([(DIGITS_SIZE, SIZES), (DIGITS_TIME, TIMES)], VDM),
        "training": figures.plot_training(MNIST, VDM),
        **{
            f"learned_{part.name}": figures.plot_kept_learned(part, figures.first_log_snr(part))
            for part in PARTS
            if part.learned
        },
    }
    atomic.write_text(TABLES, tables.tables(PARTS, PRIMARIES))
    for name, figure in drawn.items():
        if figure is not None:
            FIGURES.mkdir(exist_ok=True)
            for suffix, data in render_files(figure).items():
                atomic.write_bytes(FIGURES / f"{name}{suffix}", data)
    logging.info("wrote %s", os.path.relpath(TABLES))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m experiments.study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only_tables", action="store_true", help="run nothing")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, which share the machine (default: 1)"
    )
    parser.add_argument(
        "--data_dir", type=path_argument, help="folder of data sets (default: $DIFFENC_DATA, else a cache)"
    )
    args = parser.parse_args(argv)

    def perform() -> None:
        start_up()
        if args.data_dir:
            os.environ["DIFFENC_DATA"] = os.path.abspath(args.data_dir)
        runs: list[Run] = []
        if not args.only_tables:
            check_stages()
            runs = [run for stage in STAGES for run in run_stage(stage, args.jobs)]
            for part in PARTS:
                measure_other_paths(part, [run for run in runs if run.folder == part.records])
            export_models(MODELS)
        write_results()
        require_done(runs)

    return exit_status(perform, STOPPED)


if __name__ == "__main__":
    sys.exit(main())
