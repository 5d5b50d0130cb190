"""Names of machines."""

import importlib.util

import pytest

from diffenc.errors import UserError
from diffenc.runtime.accelerators import ACCELERATORS
from diffenc.tools.planning import topology as topologies
from diffenc.tools.planning.topology import KINDS, TPU, list_devices, missing_compiler, parse_topology


@pytest.mark.parametrize(
    ("text", "accelerator", "devices"),
    [
        ("v5e:4x8", "tpu_v5e", 32),
        ("v5p:4x4x4", "tpu_v5p", 64),
        ("v3:2x2", "tpu_v3", 8),  # two cores a chip
        ("TPU7x:2x2x1", "tpu_v7", 8),
        ("tpu_v6e:1x1", "tpu_v6e", 1),
        ("h100:8", "h100", 8),
    ],
)
def test_a_machine_is_its_chips(text, accelerator, devices):
    found = parse_topology(text)
    assert (found.kind.accelerator, found.num_devices) == (accelerator, devices)
    assert found.accelerator is ACCELERATORS[accelerator]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5:2x2", "no such machine; nearest: v5"),
        ("v5e", "v5e takes 2 sides, as 4x4; one is v2:2x2, "),
        ("v5e:4x4x4", "takes 2 sides"),
        ("v5p:4x4", "takes 3 sides"),
        ("v5e:0x4", "takes 2 sides"),
        ("h100:2x2", "takes a number of GPUs"),
    ],
)
def test_what_is_none_is_told(text, said):
    with pytest.raises(UserError, match=f"^--topology={text}: .*{said}"):
        parse_topology(text)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.platform == TPU])
def test_a_tpus_clock_is_the_one_of_its_peak(name):
    """Multipliers of 128 x 128 or 256 x 256 in all; 2 FLOPs in each place of one at each tick."""
    multipliers = {"v2": 1, "v3": 2, "v4": 8, "v5e": 4, "v5p": 8, "v6e": 16, "v7x": 16}[name]
    kind = KINDS[name]
    peak = 2 * 128**2 * multipliers * kind.clock
    assert peak == pytest.approx(ACCELERATORS[kind.accelerator].tflops["bfloat16"] * 1e12, rel=0.02)


@pytest.mark.parametrize(
    ("text", "package", "command"),
    [
        ("v5e:2x2", "libtpu", r"pip install 'diffenc\[plan-tpu\]'"),
        ("h100:1", "jax_cuda12_plugin", r"pip install --no-deps jax-cuda12-plugin==\S+ jax-cuda12-pjrt==\S+"),
    ],
)
def test_what_to_install(text, package, command, monkeypatch):
    machine = parse_topology(text)
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    said = missing_compiler(machine)
    assert said is not None
    with pytest.raises(AssertionError, match=command):
        raise AssertionError(said)
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: name == package or None)
    assert missing_compiler(machine) is None


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(
    "text", ["v5e:1x1", "v5e:4x8", "v4:2x2x1", "v3:2x2", "v7x:1x1x1", "v6e:1x2", "v5p:2x2x2"]
)
def test_a_tpus_compiler_knows_it(text):
    machine = parse_topology(text)
    devices = list_devices(machine)
    assert len(devices) == machine.num_devices
    assert devices[0].device_kind in machine.accelerator.kinds
