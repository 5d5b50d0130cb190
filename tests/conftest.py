"""Shared by all tests: the CPU, a compilation cache, every plugin, real data where it is named, a tiny run."""

import dataclasses
import functools
import gc
import hashlib
import io
import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
CACHE = Path(__file__).parent.parent / ".cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# nohup, and a shell that starts the tests behind it, have these ignored, in all children too: tests are of their handling.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def accepted_flags(flags: tuple[str, ...], cache: Path) -> str:
    """Returns those of XLA's flags that the installed jaxlib knows; it aborts the process on any other.

    Each is tried in a process of its own, once per version of jaxlib.
    """
    file = cache / f"xla_flags_{metadata.version('jaxlib')}.json"
    known: dict[str, bool] = json.loads(file.read_text()) if file.exists() else {}
    missing = [flag for flag in flags if flag not in known]
    for flag in missing:
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
        child = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"], env=env, capture_output=True
        )
        known[flag] = child.returncode == 0
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known))
        partial.replace(file)
    return " ".join(flag for flag in flags if known[flag])


# Most of the time goes into compilation, of which these save more than half. With XLA_FLAGS= all is compiled as for users.
if "XLA_FLAGS" not in os.environ:
    FAST = (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
    os.environ["XLA_FLAGS"] = accepted_flags(FAST, CACHE.parent)


@functools.cache
def _distributions_on(_: tuple[str, ...], read: Callable = metadata.packages_distributions):
    return read()


# What every installed package brings takes half a second to read, at the start of each run of a plugin of the tests.
metadata.packages_distributions = lambda: _distributions_on(tuple(sys.path))

import jax  # noqa: E402 - reads the environment set above
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from beartype import BeartypeConf  # noqa: E402
from beartype.claw import beartype_packages  # noqa: E402

# What pyproject.toml does not name to jaxtyping, whose checks take longer than what these do.
WITHOUT_ARRAYS = ("cli", "config", "errors", "files", "runtime", "safe_io")
TOOLS = ("foreign_weights", "planning", "report", "scaffold", "sweep", "tables")
beartype_packages(
    [f"diffenc.{name}" for name in (*WITHOUT_ARRAYS, *(f"tools.{tool}" for tool in TOOLS))],
    conf=BeartypeConf(claw_is_pep526=False),
)

from diffenc import registry  # noqa: E402
from diffenc.config.experiment import Experiment  # noqa: E402
from diffenc.config.settings import Evaluate, Sample  # noqa: E402
from diffenc.core.model import Model  # noqa: E402
from diffenc.data.sources import ArraySource  # noqa: E402
from diffenc.interfaces import NO_CONTEXT, ClassConditional, Source  # noqa: E402
from diffenc_plugins.conditionings import ByClass  # noqa: E402
from diffenc_plugins.encoders import Trainable  # noqa: E402
from diffenc_plugins.generative_means import Counterterm  # noqa: E402
from diffenc_plugins.optimizers import AdamW  # noqa: E402
from diffenc_plugins.parameterizations import V  # noqa: E402
from diffenc_plugins.schedules import LearnedEndpoints  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
registry.discover()


def pytest_collection_finish() -> None:
    """What stays until the end is not looked through again at every collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow the cases that `thin` leaves to `make test-slow`.

    Of a test of many factors, `schedule` x `encoder` x `T`, `@pytest.mark.thin` keeps so few cases that every value of
    every factor still comes; `thin("encoder")` sees to the encoders alone, where the values of other factors differ
    little, as seeds and shapes do; and `thin(pairs=True)` keeps each pair of values of two factors. A factor is a
    name that `parametrize` runs over, or a fixture with `params`.
    """
    groups: dict[tuple, list[pytest.Function]] = {}
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("slow"):
            continue
        if item.get_closest_marker("thin"):
            groups.setdefault((item.path, item.cls, item.originalname), []).append(item)
    for group in groups.values():
        kept = cover([_factors(item) for item in group])
        for item in (item for k, item in enumerate(group) if k not in kept):
            item.add_marker(pytest.mark.slow)


def cover(cases: Sequence[frozenset]) -> set[int]:
    """The indices of a few cases that hold together whatever any case holds: each is the one that adds most."""
    missing, chosen = frozenset().union(*cases), set()
    while missing:
        best = max(range(len(cases)), key=lambda k: len(cases[k] & missing))  # of several, the first
        missing -= cases[best]
        chosen.add(best)
    return chosen


def _factors(item: pytest.Function) -> frozenset:
    """(factor, which of its values) of each factor that `thin` names, or of all; or every two of them."""
    marker, values = item.get_closest_marker("thin"), item.callspec.params
    assert marker is not None
    if unknown := set(marker.args) - set(values):
        raise pytest.UsageError(f"{item.nodeid}: thin names {sorted(unknown)}, which are not in {[*values]}")
    each = [(name, id(values[name])) for name in marker.args or sorted(values)]
    return frozenset(itertools.combinations(each, 2 if marker.kwargs.get("pairs") else 1))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material: real data sets and golden arrays."""
    folder = os.environ.get("DIFFENC_SHARED")
    if not folder:
        pytest.skip("DIFFENC_SHARED is not set")
    return Path(folder)


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@pytest.fixture(scope="session")
def read_record():
    """Reads a record without its checksum, which must match, and without that of its .npz."""

    def read(path: Path) -> dict[str, Any]:
        found = json.loads(path.read_text())
        assert found.pop("sha256") == _checksum(found)
        found.pop("npz", None)
        return found

    return read


@pytest.fixture(scope="session")
def write_record():
    """Writes a record with its checksum."""

    def write(path: Path, record: dict[str, Any]) -> None:
        rest = {key: value for key, value in record.items() if key != "sha256"}
        path.write_text(json.dumps({**rest, "sha256": _checksum(rest)}))

    return write


@pytest.fixture(scope="session")
def check_shown():
    """Checks a line of a table on the console: a figure to the second digit of its smallest error, and both errors."""

    def check(out: str, figures: dict[str, Any], key: str) -> None:
        line = next(line for line in out.splitlines() if f" {key} " in line)
        _, _, mean, over_images, draws, _ = (cell.strip() for cell in line.split("│"))
        value, upper = figures[key], figures.get(f"{key}_se_upper")
        error = figures.get(f"{key}_se")
        assert over_images.startswith("<= ") == (error is None and upper is not None)
        errors = {over_images.removeprefix("<= "): upper if error is None else error}
        shown = [*errors.items(), (draws, figures.get(f"{key}_mc_se"))]
        known = [one for _, one in shown if one is not None and one > 1e-7 * abs(value)]
        for text, one in shown:
            assert (
                text == "-"
                if one is None
                else float(text) == pytest.approx(one if one in known else 0, rel=0.051)
            )
        assert float(mean) == pytest.approx(value, abs=0.051 * min(known, default=1e-3), rel=6e-6)

    return check


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@dataclasses.dataclass(frozen=True)
class Affine(ClassConditional):
    """w z + b, pixel by pixel, half of it dropped in training; `scale` is how large w starts.

    With `classes`, each has a b of its own, and so have images without one.
    """

    scale: float = 0.1
    classes: int = 0

    def init(self, key, z, log_snr):
        b = jnp.zeros((self.classes + 1, *z.shape[1:])) if self.classes else jnp.zeros(z.shape[1:])
        return {"w": self.scale * jax.random.normal(key, z.shape[1:]), "b": b}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        b = params["b"][context.condition] if self.classes else params["b"][None]
        out = params["w"][None] * z + b
        if context.keys is None:
            return out
        return out * jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, out.shape[1:]))(context.keys)


@dataclasses.dataclass(frozen=True)
class Dots:
    """4x4x1 images in 5 levels: 23 to train on, 13 to test on."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 4, 4, 1

    @property
    def num_levels(self) -> int:
        return 5

    @property
    def num_classes(self) -> int:
        return 3

    def source(self, split: str) -> Source:
        count = {"train": 23, "validation": 7, "test": 13}[split]
        images = np.random.default_rng(count).integers(0, 5, (count, 4, 4, 1)).astype(np.uint8)
        return ArraySource(images, np.arange(len(images), dtype=np.int32) % 3)

    def fingerprint(self, split: str) -> str:
        return f"{split} of dots"


def make(**changes) -> Experiment:
    """12 steps of 4 dots, with changes."""
    base = Experiment(
        model=Model(Trainable(Affine()), LearnedEndpoints(6.0, -5.0), V(), Counterterm(), Affine()),
        dataset=Dots(),
        optimizer=AdamW(learning_rate=0.01, warmup_steps=2),
        steps=12,
        batch_size=4,
        ema_decay=0.8,
        log_every=3,
        checkpoint_every=5,
        evaluate=Evaluate(passes=2),
        sample=Sample(num_timesteps=6, num=3),
    )
    return dataclasses.replace(base, **changes)


def told(**changes) -> Experiment:
    """The same with all told their classes, but for one image in four in training."""
    affine, model = Affine(classes=3), make().model
    model = dataclasses.replace(
        model, encoder=Trainable(affine), network=affine, conditioning=ByClass(drop=0.25)
    )
    return make(**{"model": model, **changes})


@pytest.fixture(scope="module")
def tiny() -> Iterator[Callable[..., Experiment]]:
    """Makes such experiments. Their plugins are registered while one module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.networks._classes, "affine", Affine)
        patch.setitem(registry.datasets._classes, "dots", Dots)
        yield make


class TorchWriter:
    """Writes files as torch.save does, by the description of its formats: no torch is there.

    What a pickle names is made up for as long as it is written.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
        for name in ("torch", "torch._utils"):
            monkeypatch.setitem(sys.modules, name, {"torch": torch, "torch._utils": utils}[name])
        self.storage_types = {}
        for dtype, name in (("f4", "Float"), ("f2", "Half"), ("i8", "Long"), ("?", "Bool"), ("f8", "Double")):
            made = type(f"{name}Storage", (), {"__module__": "torch"})
            setattr(torch, made.__name__, made)
            self.storage_types[np.dtype(dtype)] = made
        for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            function = types.FunctionType((lambda *args: None).__code__, {}, name)
            function.__module__, function.__qualname__ = "torch._utils", name
            setattr(utils, name, function)
        self.utils = utils

    def tensor(self, base: np.ndarray, view: np.ndarray | None = None, key: str | None = None, **changes):
        """What stands for a tensor, `view`, in the storage `base`."""
        view = base if view is None else view
        start = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // base.itemsize
        strides = tuple(stride // base.itemsize for stride in view.strides)
        said = {"offset": start, "shape": view.shape, "strides": strides, "numel": base.size, **changes}
        return _Tensor(self, base, key or str(id(base)), said)

    def state(self, arrays: dict[str, np.ndarray]) -> OrderedDict:
        """A state dict, with the attribute that torch gives it."""
        found = OrderedDict((name, self.tensor(array)) for name, array in arrays.items())
        found._metadata = OrderedDict({"": {"version": 1}})  # pyright: ignore[reportAttributeAccessIssue]
        return found

    def archive(self, path: Path, value, byteorder: str = "little", **members: bytes) -> Path:
        """The format since PyTorch 1.6."""
        content, storages = self._pickle(value, ())
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{path.stem}/data.pkl", content)
            file.writestr(f"{path.stem}/byteorder", byteorder)
            for key, base in storages.items():
                raw = members.get(f"data_{key}", self._raw(base, byteorder))
                file.writestr(f"{path.stem}/data/{key}", raw)
            file.writestr(f"{path.stem}/version", "3\n")
        return path

    def older(self, path: Path, value, byteorder: str = "little") -> Path:
        """The format before."""
        content, storages = self._pickle(value, (None,))
        sizes = {"protocol_version": 1001, "little_endian": byteorder == "little", "type_sizes": {"int": 4}}
        with open(path, "wb") as file:
            for part in (0x1950A86A20F9469CFC6C, 1001, sizes):
                pickle.dump(part, file, protocol=2)
            file.write(content)
            pickle.dump(list(storages), file, protocol=2)
            for base in storages.values():
                file.write(struct.pack("<q" if byteorder == "little" else ">q", base.size))
                file.write(self._raw(base, byteorder))
        return path

    def _raw(self, base: np.ndarray, byteorder: str) -> bytes:
        return base.astype(base.dtype.newbyteorder(">" if byteorder == "big" else "<")).tobytes()

    def _pickle(self, value, view: tuple) -> tuple[bytes, dict[str, np.ndarray]]:
        storages, buffer = {}, io.BytesIO()

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj):
                if not isinstance(obj, _Block):
                    return None
                storages[obj.key] = obj.base
                return "storage", obj.kind, obj.key, "cpu", obj.numel, *view

        Pickler(buffer, protocol=2).dump(value)
        return buffer.getvalue(), storages


class _Block(NamedTuple):
    base: np.ndarray
    kind: type
    key: str
    numel: int


@dataclasses.dataclass
class _Tensor:
    writer: TorchWriter
    base: np.ndarray
    key: str
    said: dict

    def __reduce__(self):
        block = _Block(self.base, self.writer.storage_types[self.base.dtype], self.key, self.said["numel"])
        view = (self.said["offset"], self.said["shape"], self.said["strides"])
        return self.writer.utils._rebuild_tensor_v2, (block, *view, False, OrderedDict())


@pytest.fixture
def torch_writer(monkeypatch) -> TorchWriter:
    return TorchWriter(monkeypatch)
