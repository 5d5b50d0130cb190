"""A published training, or the same scaled down; and how the two differ."""

import dataclasses

from diffenc.config import gin_loader, serialize
from diffenc.config.experiment import Experiment
from diffenc.tools.sweep.variants import Variant
from diffenc.tools.tables.paper import Row

ENCODERS = ("VDMv", "nt")  # models without a network in the encoder


@dataclasses.dataclass(frozen=True)
class Scale:
    """What to train and to measure in place of the published; None leaves what is published.

    Attributes:
      blocks, channels: of the score network.
      encoder_channels: of the encoder's network, where the row has one; its blocks stay as they are.
      num_images, passes: of the evaluation.
      bindings: over all others, in every row.
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
        """The row's training at this scale."""
        published = row.variant
        bound = (
            ("Experiment.steps", self.steps),
            ("Experiment.batch_size", self.batch_size),
            ("network.unet.blocks", self.blocks),
            ("network.unet.channels", self.channels),
            ("network.encoder_unet.channels", self.encoder_channels if has_network(row) else None),
            ("evaluate.num_images", self.num_images),
            ("evaluate.passes", self.passes),
        )
        given = tuple(f"{name} = {value}" for name, value in bound if value is not None)
        bindings = (*published.bindings, *self._cadences(), *given, *self.bindings)
        return dataclasses.replace(published, bindings=bindings)

    def _cadences(self) -> tuple[str, ...]:
        """Those of the files are for millions of steps."""
        if self.steps is None:
            return ()
        every = {"log": max(1, self.steps // 50), "checkpoint": max(1, self.steps // 4)}
        every |= dict.fromkeys(("evaluate", "sample"), 0)
        return (*(f"Experiment.{what}_every = {steps}" for what, steps in every.items()), "Experiment.keep_every = 0")  # fmt: skip


def has_network(row: Row) -> bool:
    """Whether the row's encoder has a network."""
    return not any(part in ENCODERS for part in row.model.split("-"))


def deviations(row: Row, experiment: Experiment, seeds: int) -> list[str]:
    """`KEY: PUBLISHED -> HERE` of all in which training `experiment` with `seeds` differs from the published `row`."""
    published = gin_loader.load_experiment(row.variant.gin_files, row.variant.bindings)
    found = []
    if experiment.steps != published.steps:
        found.append(f"steps: {published.steps:,} -> {experiment.steps:,}")
    if seeds < row.seeds:
        found.append(f"seeds: {row.seeds} -> {seeds}")
    here = dataclasses.replace(experiment, seed=published.seed)
    return found + serialize.find_differences(serialize.config_text(published), serialize.config_text(here))
