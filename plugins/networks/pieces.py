"""The parts of both U-Nets other than residual blocks, as functions of parameters."""

from typing import NamedTuple

import haiku as hk
from haiku.experimental import name_scope

from diffenc.interfaces import Condition, LogSNR
from diffenc_plugins.networks import layers
from diffenc_plugins.networks.layers import Embedding, Maps, MapsOut


class Pieces(NamedTuple):
    """Transforms with disjoint names of parameters, which share one dict.

    Attributes:
      embed: (log_snr, condition) -> embedding of noise level and class.
      stem: features -> maps.
      attention: in the middle, maps -> maps.
      head: maps -> channels of an image.
    """

    embed: hk.Transformed
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

    def embed(log_snr: LogSNR, condition: Condition | None) -> Embedding:
        return layers.embed_log_snr(log_snr, condition, channels, largest, smallest, classes)

    def stem(features: Maps) -> MapsOut:
        return layers.stem(features, channels, precision)

    def attention(h: Maps) -> Maps:
        with name_scope("attention"):
            return layers.attention_block(h, groups)

    def head(h: Maps) -> MapsOut:
        return layers.head(h, image_channels, head_groups)

    # Separate transforms rather than one network: haiku forbids JAX's control flow within a transform, and
    # the loop over blocks and rematerialisation lie between these.
    return Pieces(*map(hk.transform, (embed, stem, attention, head)))
