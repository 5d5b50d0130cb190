"""Official files are prepared before they are read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffenc import registry
from diffenc.data.prepare import PrepareArgs, prepare
from diffenc.interfaces import Source


@pytest.fixture
def read(monkeypatch, tmp_path) -> Callable[[str, Path, str], Source]:
    """Prepares data set `name` from `files`, and opens a split of it."""
    data_dir = tmp_path / "data"
    monkeypatch.setenv("DIFFENC_DATA", str(data_dir))

    def read(name: str, files: Path, split: str) -> Source:
        if not (data_dir / name).exists():
            prepare(PrepareArgs(name, files, data_dir))
        return registry.datasets[name]().source(split)

    return read
