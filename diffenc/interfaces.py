"""What a plugin can be. Each is a small protocol; a plugin is a frozen dataclass that keeps it.

Notation, as in VDM (arXiv:2107.00630) and DiffEnc (arXiv:2310.19789):

  t        diffusion time in [0, 1]; 0 = data, 1 = noise; s < t
  log_snr  lambda = log(alpha^2 / sigma^2), strictly decreasing in t; variance preserving, so
           alpha^2 = sigmoid(lambda), sigma^2 = sigmoid(-lambda)
  x        pixels scaled to the open interval (-1, 1)
  x_phi    the encoded data x_phi(lambda): the mean of the diffusion process is alpha * x_phi
  z        alpha * x_phi + sigma * eps  [10]
  x_hat    the network's estimate of x_phi

Arrays carry a leading batch axis `b`; images are [B, H, W, C] float32. What happens to an image depends on no other
image of its batch, its dropout mask neither: so results are the same however a batch is divided.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

import jaxtyping
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, UInt8

Params = Any  # a pytree of arrays
Key = PRNGKeyArray
ImageKeys = jaxtyping.Key[Array, " b"]  # one for each image
Data = Float[Array, "b *d"]
PerExample = Float[Array, " b"]
Times = Float[Array, " b"]
LogSNR = Float[Array, " b"]
PerStep = Float[Array, " steps"]
Condition = Int[Array, " b"]  # 0 tells nothing of an image, k + 1 its class k

SPLITS = ("train", "validation", "test")


class Example(TypedDict):
    """One element of a data source."""

    image: UInt8[np.ndarray, "h w c"]
    label: Int[np.ndarray, ""] | int


class Batch(TypedDict):
    """Examples stacked along a leading axis."""

    image: UInt8[np.ndarray, "b h w c"]
    label: Int[np.ndarray, " b"]


class Images(NamedTuple):
    """A batch as compiled functions are given it. Without a condition it is its levels alone, also to XLA."""

    levels: Integer[Array, "b h w c"]
    condition: Condition | None = None


@runtime_checkable
class Encoder(Protocol):
    """A family x_phi(lambda) of representations of x, smooth in lambda [10].

    One that looks at the condition has a field `classes`, how many there are; so has such a network.
    """

    def init(self, key: Key, x: Data, log_snr: LogSNR, *, condition: Condition | None = None) -> Params:
        """Parameters; only the shapes of `x` and `log_snr` matter."""
        ...

    def apply(
        self,
        params: Params,
        x: Data,
        log_snr: LogSNR,
        *,
        condition: Condition | None = None,
        keys: ImageKeys | None = None,
    ) -> Data:
        """x_phi at `log_snr`, shaped like `x`. An image's key draws its dropout mask; None means no dropout."""
        ...


@runtime_checkable
class Network(Protocol):
    """A function of (z, log_snr) shaped like z. It knows nothing of the loss."""

    def init(self, key: Key, z: Data, log_snr: LogSNR, *, condition: Condition | None = None) -> Params:
        """Parameters; only the shapes of `z` and `log_snr` matter. Raises UserError if it cannot take them."""
        ...

    def apply(
        self,
        params: Params,
        z: Data,
        log_snr: LogSNR,
        *,
        condition: Condition | None = None,
        keys: ImageKeys | None = None,
    ) -> Data:
        """Output shaped like `z`. An image's key draws its dropout mask; None means no dropout."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """log_snr as a strictly decreasing function of t."""

    def init(self, key: Key) -> Params: ...

    def apply(self, params: Params, t: Times) -> LogSNR: ...


@runtime_checkable
class LearnedInterior(Schedule, Protocol):
    """A schedule that learns how log_snr falls between its ends; diffenc.training.schedule_objective says for what."""

    def interior(self, params: Params, t: Times) -> LogSNR:
        """The value of `apply`. Its gradients reach the interior's parameters, those of `apply` all others."""
        ...


@runtime_checkable
class Parameterization(Protocol):
    """What the network estimates: p(lambda) x_phi + q(lambda) eps."""

    def __call__(self, log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
        """(p, q) at `log_snr`."""
        ...


@runtime_checkable
class GenerativeMean(Protocol):
    """kappa(lambda): the reverse process assumes d x_phi / d lambda = kappa x_hat [17]."""

    def __call__(self, log_snr: LogSNR) -> LogSNR: ...


@runtime_checkable
class Conditioning(Protocol):
    """What the model is told of an image beside its noisy self (see diffenc.core.conditioning)."""

    @property
    def what(self) -> str | None:
        """In one word, as figures state it; None if the model is told nothing."""
        ...

    @property
    def drop(self) -> float:
        """Share of the images that training tells nothing of."""
        ...

    def __call__(self, labels: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"] | None:
        """The condition of images of these classes; None if the model is told nothing."""
        ...


@runtime_checkable
class Variance(Protocol):
    """sigma_P^2 of a chain's reverse steps, as w = sigma_Q^2 / sigma_P^2 [9]."""

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        """log w of each step from log_snr_t to log_snr_s.

        Args:
          excess: E || mu_P - mu_Q ||^2 / (d sigma_Q^2) as measured for each step; None if it was not, and
            for a variance that does without.

        Raises:
          UserError: `excess` is needed, and None.
        """
        ...


@runtime_checkable
class TimeSampler(Protocol):
    """The density on [0, 1] that diffusion times are drawn from."""

    def __call__(self, u: Times, curve: Float[Array, " bins"] | None) -> tuple[Times, PerExample]:
        """Times t, and 1 / their density, for u uniform on [0, 1); t rises with u.

        Args:
          curve: root mean square of the diffusion loss in equal bins of t; None if it was not measured.

        Raises:
          UserError: `curve` is needed, and None.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """Examples by index; grain's RandomAccessDataSource with a vectorised look-up beside it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def __getitems__(self, indices: Int[np.ndarray, " b"]) -> Batch:
        """The examples at `indices`, gathered in one go."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """Images of integer levels 0 .. num_levels - 1, in splits `train`, `validation` and `test`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        ...

    @property
    def num_levels(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def source(self, split: str) -> Source:
        """Raises UserError if the files are absent, truncated or not what they claim to be."""
        ...

    def fingerprint(self, split: str) -> str:
        """Hex SHA-256 of the split's uint8 [N, H, W, C] pixels in source order."""
        ...


Extract = Callable[[UInt8[Array, "b h w c"]], Float[Array, "b features"]]


@runtime_checkable
class Features(Protocol):
    """A fixed network, by whose features sets of images are compared."""

    def metric(self) -> str:
        """What the Fréchet distance is called: "fid" for Inception's of the published weights, and for no others.

        Raises:
          UserError: the weights are not there.
        """
        ...

    @property
    def num_features(self) -> int: ...

    def identity(self) -> str:
        """Tells these features from any others: the SHA-256 of their weights, a version of their code, and all else.

        Raises:
          UserError: the weights are not there.
        """
        ...

    def load(self) -> Extract:
        """Images of levels 0 .. 255, with 1 or 3 channels, to float32 features; each image on its own.

        To be compiled, and a pytree of its weights (`jax.tree_util.Partial`), so that it can be an argument of what
        is compiled: as constants they would take minutes.

        Raises:
          UserError: the weights are not there, damaged or other ones.
        """
        ...


@runtime_checkable
class Writer(Protocol):
    """Where a run's metrics go besides its workdir."""

    def open(self, workdir: Path, resume_step: int | None) -> Any:
        """A metric writer as clu has them (`diffenc.workdir.writers.NullWriter` is one to derive from).

        Called once by each process that trains, and in the main process of several alone.

        Args:
          resume_step: the step the run goes on from; None = it starts.

        Raises:
          UserError: it cannot be written there.
        """
        ...


@runtime_checkable
class Optimizer(Protocol):
    """Makes an optax transformation."""

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """Returns the transformation for a training of `num_steps` steps, as schedules of the learning rate need it."""
        ...
