"""clu's interface of metric writers, importable without TensorFlow; a null writer and a fault-tolerant one."""

import importlib.util
import sys
import types
from collections.abc import Mapping
from typing import Any

from absl import logging


def _stand_in_for_tensorflow() -> None:
    """Makes clu.metric_writers importable without TensorFlow, by a stub module in place of its TensorFlow writer.

    clu.metric_writers imports that writer in any case, and clu.periodic_actions imports clu.metric_writers.
    """
    name = "clu.metric_writers.summary_writer"
    if name in sys.modules or importlib.util.find_spec("tensorflow"):
        return
    module = types.ModuleType(name, "Stands in for clu's TensorFlow writer; see diffenc.workdir.clu_writers.")
    module.__dict__["SummaryWriter"] = _not_here
    sys.modules[name] = module


def _not_here(logdir: Any) -> Any:
    raise ImportError(
        "clu's own writer of event files needs TensorFlow; diffenc.workdir.writers has one that does not"
    )


_stand_in_for_tensorflow()

from clu import metric_writers  # noqa: E402  (only possible after the above)

Scalars = Mapping[str, Any]  # numbers, or 0-d arrays of numpy or jax


class NullWriter(metric_writers.MetricWriter):
    """Discards everything; subclasses override the methods they need."""

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Any = None) -> None: ...

    def write_scalars(self, step: int, scalars: Scalars) -> None: ...

    def write_images(self, step: int, images: Mapping[str, Any]) -> None: ...

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None: ...

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None: ...

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None: ...

    def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class FaultTolerantWriter(metric_writers.MetricWriter):
    """Wraps another writer, and drops it at its first failure, so that the run continues."""

    def __init__(self, writer: metric_writers.MetricWriter):
        self._writer: metric_writers.MetricWriter = writer

    def write_summaries(self, *arguments: Any, **named: Any) -> None:
        self._try("write_summaries", *arguments, **named)

    def write_scalars(self, *arguments: Any, **named: Any) -> None:
        self._try("write_scalars", *arguments, **named)

    def write_images(self, *arguments: Any, **named: Any) -> None:
        self._try("write_images", *arguments, **named)

    def write_videos(self, *arguments: Any, **named: Any) -> None:
        self._try("write_videos", *arguments, **named)

    def write_audios(self, *arguments: Any, **named: Any) -> None:
        self._try("write_audios", *arguments, **named)

    def write_texts(self, *arguments: Any, **named: Any) -> None:
        self._try("write_texts", *arguments, **named)

    def write_histograms(self, *arguments: Any, **named: Any) -> None:
        self._try("write_histograms", *arguments, **named)

    def write_hparams(self, *arguments: Any, **named: Any) -> None:
        self._try("write_hparams", *arguments, **named)

    def flush(self) -> None:
        self._try("flush")

    def close(self) -> None:
        self._try("close")

    def _try(self, method: str, *arguments: Any, **named: Any) -> None:
        try:
            getattr(self._writer, method)(*arguments, **named)
        except Exception as error:
            kind = type(self._writer).__name__
            logging.error("%s failed: %s: %s; the run goes on without it", kind, type(error).__name__, error)
            self._writer = NullWriter()
