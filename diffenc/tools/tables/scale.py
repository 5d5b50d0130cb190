"""Published trainings scaled down, and their deviations from the published ones."""

import dataclasses

from diffenc.config import gin_loader, serialize
from diffenc.config.experiment import Experiment
from diffenc.tools.sweep.variants import Variant
from diffenc.tools.tables.paper import Row

WITHOUT_ENCODER_NETWORK = ("VDMv", "nt")  # models without a network in the encoder


@dataclasses.dataclass(frozen=True)
class Scale:
    """Settings that replace published ones; None keeps the published value.

    Attributes:
      blocks, channels: size of the score network.
      encoder_channels: channels of the encoder's network, in rows that have one; its number of blocks is kept.
      num_images, passes: settings of the evaluation.
      bindings: bindings that override all others, in every row.
    """

    steps: int | None = None
    seeds: int | None = None
    batch_size: int | None = None
    blocks: int | None = None
    channels: int | None = None
    encoder_channels: int | None = None
    num_images: int | None = None
    passes: int | None = None
    bindings: tuple[str, ...] = ()

    def seeds_of(self, row: Row) -> range:
        return range(row.seeds if self.seeds is None else self.seeds)

    def variant(self, row: Row) -> Variant:
        """Returns the row's training at this scale."""
        published = row.variant
        settings = (
            ("Experiment.steps", self.steps),
            ("Experiment.batch_size", self.batch_size),
            ("network.unet.blocks", self.blocks),
            ("network.unet.channels", self.channels),
            ("network.encoder_unet.channels", self.encoder_channels if has_encoder_network(row) else None),
            ("evaluate.num_images", self.num_images),
            ("evaluate.passes", self.passes),
        )
        scaled = tuple(f"{name} = {value}" for name, value in settings if value is not None)
        bindings = (*published.bindings, *self._cadences(), *scaled, *self.bindings)
        return dataclasses.replace(published, bindings=bindings)

    def _cadences(self) -> tuple[str, ...]:
        """Returns bindings of the intervals for `steps` steps; those in the files are meant for millions."""
        if self.steps is None:
            return ()
        every = {"log": max(1, self.steps // 50), "checkpoint": max(1, self.steps // 4)}
        every |= dict.fromkeys(("evaluate", "sample"), 0)
        return (*(f"Experiment.{hook}_every = {steps}" for hook, steps in every.items()), "Experiment.keep_every = 0")  # fmt: skip


def has_encoder_network(row: Row) -> bool:
    """Returns whether the row's encoder has a network."""
    return not any(part in WITHOUT_ENCODER_NETWORK for part in row.model.split("-"))


def find_deviations(row: Row, experiment: Experiment, seeds: int) -> list[str]:
    """Returns a line `KEY: PUBLISHED -> HERE` for each difference between `experiment` with `seeds` and the published row."""
    published = gin_loader.load_experiment(row.variant.gin_files, row.variant.bindings)
    lines = []
    if experiment.steps != published.steps:
        lines.append(f"steps: {published.steps:,} -> {experiment.steps:,}")
    if seeds < row.seeds:
        lines.append(f"seeds: {row.seeds} -> {seeds}")
    # The runs of a line differ in their seeds, which are no deviation.
    here = dataclasses.replace(experiment, seed=published.seed)
    return lines + serialize.find_differences(serialize.config_text(published), serialize.config_text(here))
