"""DiffEnc: variational diffusion models with a learned, time-dependent encoder (arXiv:2310.19789).

    from diffenc import Experiment, Model, evaluate, plugins, train

`Model` combines plugins (`plugins.networks.UNet`, ...), `Experiment` describes a run of it, `train`, `evaluate`, `sample`
and the other modes perform it, and `load` reads a trained model. Every name is imported when it is first used.
From the shell: `python -m diffenc.run --help`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import diffenc_plugins as plugins
    from diffenc import registry
    from diffenc.compression.commands import compress, decompress
    from diffenc.config.experiment import Experiment
    from diffenc.config.fid_settings import Fid
    from diffenc.config.figure_settings import Figures
    from diffenc.config.gin_loader import load_experiment
    from diffenc.config.settings import (
        Compress,
        Diagnose,
        Evaluate,
        Fit,
        KSample,
        Likelihood,
        MeshConfig,
        Plan,
        Sample,
    )
    from diffenc.core.model import Model
    from diffenc.data.sources import read_images
    from diffenc.errors import UserError
    from diffenc.evaluation.bound import BoundResult, bound
    from diffenc.evaluation.commands import evaluate, sample
    from diffenc.evaluation.diagnose import diagnose
    from diffenc.evaluation.fit_schedule import fit_schedule
    from diffenc.evaluation.fit_variance import fit_variance
    from diffenc.evaluation.k_sample import k_sample
    from diffenc.evaluation.likelihood import likelihood
    from diffenc.export.loading import load
    from diffenc.export.trained_model import TrainedModel
    from diffenc.training.loop import train

__all__ = [
    "BoundResult",
    "Compress",
    "Diagnose",
    "Evaluate",
    "Experiment",
    "Fid",
    "Figures",
    "Fit",
    "KSample",
    "Likelihood",
    "MeshConfig",
    "Model",
    "Plan",
    "Sample",
    "TrainedModel",
    "UserError",
    "bound",
    "compress",
    "decompress",
    "diagnose",
    "evaluate",
    "fit_schedule",
    "fit_variance",
    "k_sample",
    "likelihood",
    "load",
    "load_experiment",
    "plugins",
    "read_images",
    "registry",
    "sample",
    "train",
]

_NAMES = {  # by module
    "diffenc.compression.commands": ("compress", "decompress"),
    "diffenc.config.experiment": ("Experiment",),
    "diffenc.config.fid_settings": ("Fid",),
    "diffenc.config.figure_settings": ("Figures",),
    "diffenc.config.gin_loader": ("load_experiment",),
    "diffenc.config.settings": (
        "Compress",
        "Diagnose",
        "Evaluate",
        "Fit",
        "KSample",
        "Likelihood",
        "MeshConfig",
        "Plan",
        "Sample",
    ),
    "diffenc.core.model": ("Model",),
    "diffenc.data.sources": ("read_images",),
    "diffenc.errors": ("UserError",),
    "diffenc.evaluation.bound": ("BoundResult", "bound"),
    "diffenc.evaluation.commands": ("evaluate", "sample"),
    "diffenc.evaluation.diagnose": ("diagnose",),
    "diffenc.evaluation.fit_schedule": ("fit_schedule",),
    "diffenc.evaluation.fit_variance": ("fit_variance",),
    "diffenc.evaluation.k_sample": ("k_sample",),
    "diffenc.evaluation.likelihood": ("likelihood",),
    "diffenc.export.loading": ("load",),
    "diffenc.export.trained_model": ("TrainedModel",),
    "diffenc.training.loop": ("train",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_PACKAGES = {"plugins": "diffenc_plugins", "registry": "diffenc.registry"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(_PACKAGES[name])
    raise AttributeError(f"module 'diffenc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
