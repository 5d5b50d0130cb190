"""DiffEnc: variational diffusion models with a learned, time-dependent encoder (arXiv:2310.19789).

From Python: `diffenc.load(PATH)` reads a trained model; `diffenc.registry.discover()` makes the plugins known;
`diffenc.core.model.Model` puts them together; `diffenc.config.experiment.Experiment` describes a run, and `diffenc.training.loop.train`
runs it. From the shell: `python -m diffenc.run --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffenc.export.trained_model import TrainedModel
    from diffenc.files.stores import PathLike


def load(path: PathLike, step: int | None = None, *, allow_imports: Sequence[str] = ()) -> TrainedModel:
    """A trained model from a workdir, the folder of an export or a .safetensors file; a path or an address as gs://….

    It has `sample`, `elbo` and `encode`. Nothing of what is read is run: see `diffenc.export.loading.load`.

    Args:
      step: of a workdir the checkpoint; None = the newest.
      allow_imports: modules, or packages of such, that its config may import beside installed plugins.

    Raises:
      UserError: nothing of the kind is there, it is damaged, or it is of plugins that are not here.
    """
    from diffenc.export import loading  # here, for jax takes a second to import

    return loading.load(path, step, allow_imports=allow_imports)
