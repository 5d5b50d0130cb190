"""What both U-Nets have beside their residual blocks, as functions of parameters."""

from typing import NamedTuple

import haiku as hk
from haiku.experimental import name_scope

from diffenc.interfaces import Condition, LogSNR
from diffenc_plugins.networks import layers
from diffenc_plugins.networks.layers import Embedding, Maps, MapsOut


class Pieces(NamedTuple):
    """Transforms whose parameters lie side by side.

    Attributes:
      stem: (features, log_snr, condition) -> (maps, embedding of noise level and class).
      attention: in the middle, maps -> maps.
      head: maps -> channels of an image.
    """

    stem: hk.Transformed
    attention: hk.Transformed
    head: hk.Transformed


def make_pieces(
    *,
    channels: int,
    image_channels: int,
    groups: int,
    head_groups: int,
    classes: int,
    log_snr_range: tuple[float, float],
    precision: str,
) -> Pieces:
    """Returns the pieces of a network; `log_snr_range` is (smallest, largest)."""
    smallest, largest = log_snr_range

    def stem(features: Maps, log_snr: LogSNR, condition: Condition | None) -> tuple[MapsOut, Embedding]:
        embedding = layers.embed_log_snr(log_snr, condition, channels, largest, smallest, classes)
        return layers.stem(features, channels, precision), embedding

    def attention(h: Maps) -> Maps:
        with name_scope("attention"):
            return layers.attention_block(h, groups)

    def head(h: Maps) -> MapsOut:
        return layers.head(h, image_channels, head_groups)

    return Pieces(*map(hk.transform, (stem, attention, head)))
