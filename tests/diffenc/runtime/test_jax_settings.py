"""Settings of JAX that the programs turn off, or refuse in one line."""

import os
import platform
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from diffenc.errors import UserError
from diffenc.runtime import jax_settings
from diffenc.runtime.compile_cache import compile_ahead


@pytest.fixture
def set_jax():
    """Sets JAX's settings for one test, which may change them again."""
    before = dict(jax.config.values)
    yield jax.config.update
    for name in (*jax_settings.OFF, "jax_enable_x64", "jax_disable_jit", "jax_default_matmul_precision"):
        jax.config.update(name, before[name])


def test_what_the_programs_cannot_run_under_is_off(set_jax):
    set_jax("jax_numpy_dtype_promotion", "strict")
    set_jax("jax_transfer_guard", "disallow")
    jax_settings.override_settings()
    assert jax.config.values["jax_numpy_dtype_promotion"] == "standard"
    assert jax.config.values["jax_transfer_guard"] == "allow"
    assert float(jnp.zeros(3, jnp.int32)[0] + jnp.ones(3, jnp.uint8)[0]) == 1


def test_training_is_in_float32(set_jax):
    set_jax("jax_enable_x64", True)
    jax_settings.train_in_float32()
    assert jnp.zeros(()).dtype == jnp.float32


def test_products_that_the_device_cannot_make_are_one_line(set_jax):
    jax_settings.check_backend()
    set_jax("jax_default_matmul_precision", "ANY_F8_ANY_F8_F32")
    with pytest.raises(UserError, match=r"^JAX_DEFAULT_MATMUL_PRECISION=ANY_F8_ANY_F8_F32: .*not supported"):
        jax_settings.check_backend()


def test_a_platform_that_is_not_there_is_one_line(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'nonsense'")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match=r"JAX_PLATFORMS.*'nonsense'"):
        jax_settings.check_backend()


def test_without_jit_nothing_is_compiled_ahead(set_jax):
    set_jax("jax_disable_jit", True)
    kinds = []
    function = compile_ahead(
        "it", jax.jit(lambda x: kinds.append(isinstance(x, Tracer)) or x + 1), jnp.ones(())
    )
    assert float(function(jnp.ones(()))) == 2
    assert kinds == [False]


@pytest.fixture
def machine(monkeypatch):
    """Makes JAX one that was told no platform, on a machine with these compilers, plugins, files and variables."""
    before = jax.config.values["jax_platforms"]

    def make(compilers=("libtpu",), plugins=(), files=(), platforms=None):
        jax.config.update("jax_platforms", platforms)
        monkeypatch.setattr(jax_settings.importlib.util, "find_spec", lambda name: name in compilers or None)
        monkeypatch.setattr(
            jax_settings.glob, "glob", lambda pattern: [file for file in files if pattern in file]
        )
        named = [type("EntryPoint", (), {"name": name}) for name in plugins]
        monkeypatch.setattr(jax_settings.metadata, "entry_points", lambda group: named)
        jax_settings.pass_over_compilers()
        return jax.config.values["jax_platforms"]

    yield make
    jax.config.update("jax_platforms", before)


def test_compilers_for_absent_devices_are_passed_over(machine):
    assert machine() == "cpu"
    assert machine(compilers=("libtpu", "jax_cuda12_plugin"), plugins=("xla_cuda12",)) == "cpu"


@pytest.mark.parametrize(
    "there",
    [
        {"compilers": ()},
        {"plugins": ("some_accelerator",)},
        {"files": ("/dev/accel*",)},
        {"compilers": ("libtpu", "jax_cuda13_plugin"), "files": ("/dev/nvidia*",)},
        {"files": ("/sys/bus/pci/devices/*/vendor",)},  # which cannot be read
        {"platforms": "tpu,cpu"},
    ],
)
def test_what_may_be_there_is_left_to_jax(machine, there):
    assert machine(**there) == there.get("platforms")


def test_a_wanted_tpu_is_left_to_jax(machine, monkeypatch):
    monkeypatch.setenv("TPU_NAME", "pod")
    assert machine() is None


def test_an_installed_compiler_is_not_loaded(tmp_path):
    """A package of its name, whose library is some other: JAX loads it into the process as soon as it tries it."""
    if jax_settings._may_be_here("libtpu") or platform.libc_ver()[0] != "glibc":
        pytest.skip("there may be a TPU, or the dynamic linker does not say what it loads")
    library = str(shutil.copy(np.random._mt19937.__file__, tmp_path / "library.so"))
    (tmp_path / "libtpu.py").write_text(f"def get_library_path():\n    return {library!r}\n")
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    env |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), env.get("PYTHONPATH", "")]), "LD_DEBUG": "files"}

    def run(name, before):
        code = f"import jax; from diffenc.runtime import jax_settings; {before}; print(jax.devices()[0].platform)"
        said = {**env, "LD_DEBUG_OUTPUT": str(tmp_path / name)}
        done = subprocess.run([sys.executable, "-c", code], env=said, capture_output=True, text=True)
        return done.stdout, any(library in file.read_text() for file in tmp_path.glob(f"{name}.*"))

    assert run("ours", "jax_settings.pass_over_compilers()") == ("cpu\n", False)
    assert run("without", "pass") == ("cpu\n", True)  # or the package of this test is none to JAX
