"""The script that plants faults: its faults fit the code as it stands, and it tells dead from alive."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load() -> Any:
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "tests" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


mutations = load()


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_code_and_its_tests_exist(fault, tmp_path):
    (tmp_path / fault.file).parent.mkdir(parents=True)
    (tmp_path / fault.file).write_text((ROOT / fault.file).read_text())
    mutations.plant(fault, tmp_path)
    compile((tmp_path / fault.file).read_text(), fault.file, "exec")
    assert all((ROOT / test).exists() for test in fault.tests)


def test_names_are_told_apart():
    names = [fault.name for fault in mutations.FAULTS]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "killed"),
    [
        ("def scale(coefficient: PerExample, x: Data) -> Data:\n    return x\n", True),
        (None, False),
    ],
)
def test_the_dead_are_told_from_the_living(new, killed):
    old = "def scale(coefficient: PerExample, x: Data) -> Data:\n"
    test = "tests/diffenc/core/test_gaussian.py::test_scale_multiplies_each_example_by_its_own_number"
    fault = mutations.Fault("a fault", "diffenc/core/gaussian.py", old, new or old + "    # none\n", (test,))
    found = mutations.killer(fault)
    assert (found is not None and found.startswith(test)) if killed else found is None
