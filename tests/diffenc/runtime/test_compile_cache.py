"""What is compiled ahead, what is said of it, and where it is kept."""

import os
import pwd
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.files import directories
from diffenc.runtime import compile_cache


@pytest.fixture
def told(monkeypatch):
    """The log lines."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(
            compile_cache.logging,
            level,
            lambda text, *values: lines.append(text % values if values else text),
        )
    return lines


def test_a_program_is_compiled_before_it_has_data(told):
    function = jax.jit(lambda x: 2 * x + 1)
    compiled = compile_cache.compile_ahead("twice", function, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert told[:2] == ["tracing twice", "compiling twice"]
    assert re.fullmatch(r"compiled twice in \d s \(\d s of it tracing\)", told[2])
    np.testing.assert_array_equal(compiled(jnp.arange(3.0)), [1, 3, 5])
    with pytest.raises(TypeError, match=r"compiled with float32\[3\] and called with float32\[4\]"):
        compiled(jnp.arange(4.0))


def test_how_long_it_took_and_how_much_of_it_tracing(told, monkeypatch):
    """Tracing from 100 s to 130 s, compiling till 195 s."""
    times = iter([100.0, 130.0, 195.0])
    monkeypatch.setattr(compile_cache.time, "monotonic", lambda: next(times, 195.0))

    class Jitted:
        """What jax.jit would make."""

        def __call__(self):
            raise AssertionError("nothing is run")

        def lower(self):
            return self

        def compile(self):
            return self

    jitted = Jitted()
    assert compile_cache.compile_ahead("it", jitted) is jitted
    assert told[-1] == "compiled it in 1 min 35 s (30 s of it tracing)"


KEEP = """
import logging, sys
import jax, jax.numpy as jnp
from absl import logging as absl_logging
from diffenc.runtime import compile_cache

absl_logging.set_verbosity(absl_logging.INFO)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
compile_cache.enable_cache()
lines = [jax.ShapeDtypeStruct((n,), jnp.float32) for n in (3, 4)]
for line in lines:
    compile_cache.compile_ahead("it", jax.jit(lambda x: jnp.sin(x).sum()), line)
"""


def _keeping(**environment: str) -> list[str]:
    """What two programs say of the cache, in a process that has this environment, and warnings."""
    free = {name: value for name, value in os.environ.items() if "JAX_" not in name or "PLATFORMS" in name}
    done = subprocess.run(
        [sys.executable, "-c", KEEP], env=free | environment, capture_output=True, text=True, check=True
    )
    return re.findall(r"tracing(?:; (.*))?\)|(not kept.*)", done.stderr)


def test_what_was_compiled_once_is_taken_from_the_users_cache(tmp_path):
    here = {"XDG_CACHE_HOME": str(tmp_path)}
    assert _keeping(**here) == [("", ""), ("", "")]
    assert len(list((tmp_path / "diffenc" / "xla").glob("jit__lambda*"))) == 2
    assert _keeping(**here) == [("taken from the cache", "")] * 2


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """jax's settings as those of a process without a cache; what is set stays in here."""
    settings = {"jax_enable_compilation_cache": True, "jax_compilation_cache_dir": None}

    class Config:
        def __getattr__(self, name):
            return settings[name]

        def update(self, name, value):
            settings[name] = value

    monkeypatch.setattr(compile_cache.jax, "config", Config())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return settings


def test_the_cache_lies_beside_that_of_the_data(configured, tmp_path, told):
    compile_cache.enable_cache()
    assert configured["jax_compilation_cache_dir"] == str(tmp_path / "cache" / "diffenc" / "xla")
    assert directories.cache_directory("xla").is_dir()
    assert told == []


def test_without_a_home_folder_nothing_is_kept_and_that_is_told(configured, monkeypatch, told):
    def unknown(user):
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    compile_cache.enable_cache()
    assert configured["jax_compilation_cache_dir"] is None
    (line,) = told
    assert "is not kept for the next run: this user has no home folder" in line


@pytest.mark.parametrize(
    "chosen", [{"jax_enable_compilation_cache": False}, {"jax_compilation_cache_dir": "/other"}]
)
def test_the_users_own_settings_win(configured, tmp_path, chosen):
    configured.update(chosen)
    before = dict(configured)
    compile_cache.enable_cache()
    assert configured == before
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_costs_one_line(configured, tmp_path, told):
    (tmp_path / "cache").write_text("a file")
    compile_cache.enable_cache()
    assert configured["jax_compilation_cache_dir"] is None
    (line,) = told
    assert "not kept for the next run" in line
    assert str(tmp_path / "cache") in line


def test_a_disk_that_refuses_costs_one_line(configured, monkeypatch, told):
    def refuse(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compile_cache.tempfile, "TemporaryFile", refuse)
    compile_cache.enable_cache()
    assert configured["jax_compilation_cache_dir"] is None
    assert len(told) == 1
