import dataclasses
import os
import subprocess
import sys

import pytest

from diffenc.errors import UserError
from diffenc.registry import Registry


@dataclasses.dataclass(frozen=True)
class One:
    pass


@dataclasses.dataclass(frozen=True)
class Other:
    pass


@pytest.fixture
def registry() -> Registry:
    return Registry("schedule", "Schedule")


def test_a_class_is_known_by_its_name(registry):
    assert registry.register("one")(One) is One
    registry.register("another")(Other)
    assert registry["one"] is One
    assert list(registry) == ["another", "one"]
    assert registry.name_of(Other) == "another"
    assert registry.name_of(int) is None


def test_a_name_taken_twice_is_refused_with_both_classes(registry):
    registry.register("one")(One)
    with pytest.raises(ValueError, match=r"schedule\.one is already .*One.*Other") as error:
        registry.register("one")(Other)
    assert One.__module__ in str(error.value)
    assert registry["one"] is One


def redefined(module):
    @dataclasses.dataclass(frozen=True)
    class Cell:
        """As a notebook's cell defines it."""

    Cell.__module__ = module
    return Cell


def test_a_class_of_main_may_be_defined_again(registry):
    first, second = redefined("__main__"), redefined("__main__")
    registry.register("cell")(first)
    registry.register("cell")(second)
    assert registry["cell"] is second
    with pytest.raises(ValueError, match=r"schedule\.cell is already __main__\..*Cell"):
        registry.register("cell")(One)
    registry.register("imported")(redefined("package"))
    with pytest.raises(ValueError, match=r"schedule\.imported is already package\..*Cell"):
        registry.register("imported")(redefined("package"))


@pytest.mark.parametrize("name", ["two words", "kebab-case", "a.b", "", "1st"])
def test_a_name_that_no_config_could_spell_is_refused(registry, name):
    with pytest.raises(ValueError, match="identifier"):
        registry.register(name)


def test_decorators_in_the_wrong_order_are_refused(registry):
    class Bare:
        pass

    with pytest.raises(TypeError, match=r"Bare must be a dataclass"):
        registry.register("bare")(Bare)


def test_an_unknown_name_is_answered_with_the_nearest(registry):
    with pytest.raises(
        UserError,
        match=r"^no schedule is called 'liner'; none is registered: call diffenc.registry.discover\(\) first$",
    ):
        registry["liner"]
    registry.register("linear")(One)
    registry.register("learned_endpoints")(Other)
    with pytest.raises(UserError, match=r"^no schedule is called 'liner'; nearest: schedule\.linear$"):
        registry["liner"]


DISCOVER = """
from absl import logging
logging.use_absl_handler()
from diffenc import registry
for line in registry.discover():
    print("BROKEN", line)
for kind, known in registry.REGISTRIES.items():
    print(kind, *known)
"""


def install(site, name, code):
    """A package as an installer leaves it: its module, and a .dist-info with the entry point."""
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[diffenc.plugins]\n{name} = {name}\n")


def test_packages_are_found_and_a_broken_one_is_skipped_by_name(tmp_path):
    install(tmp_path, "broken_pack", "import a_module_that_is_not_there\n")
    install(
        tmp_path,
        "fine_pack",
        "import dataclasses\n"
        "from diffenc.registry import schedules\n"
        "@schedules.register('fine')\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Fine: pass\n",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", DISCOVER], capture_output=True, text=True, env=environment, check=True
    )
    broken = [line for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    assert len(broken) == 1
    assert "plugin package broken_pack" in broken[0]
    assert "a_module_that_is_not_there" in broken[0]
    assert "broken_pack" in done.stderr
    schedules = next(line.split() for line in done.stdout.splitlines() if line.startswith("schedule "))
    assert {"fine", "linear"} <= set(schedules)
