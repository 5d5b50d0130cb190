"""Networks: functions of (z, log_snr) shaped like z."""

from diffenc_plugins.networks.encoder_unet import EncoderUNet
from diffenc_plugins.networks.unet import UNet

__all__ = ["EncoderUNet", "UNet"]
