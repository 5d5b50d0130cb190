import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import pytest

from diffenc import interfaces, registry, testing
from diffenc.errors import UserError
from diffenc.testing import any_plugin as checks


@dataclasses.dataclass(frozen=True)
class Fine:
    """p = 0, q = share."""

    share: float = 0.5
    several: tuple[int, ...] = (1,)
    word: str | None = "it's = #"
    inner: interfaces.Parameterization | None = None

    def __call__(self, log_snr):
        return 0 * log_snr, self.share + 0 * log_snr


@dataclasses.dataclass(frozen=True)
class Empty:
    """Not a parameterization at all."""


@dataclasses.dataclass(frozen=True)
class Undocumented(Fine):
    pass


@dataclasses.dataclass
class Open:
    """Can be changed."""

    share: float = 0.5

    def __call__(self, log_snr):
        return 0 * log_snr, self.share + 0 * log_snr


@dataclasses.dataclass(frozen=True, eq=False)
class Unequal:
    """Equals itself alone."""

    def __call__(self, log_snr):
        return log_snr


@dataclasses.dataclass(frozen=True)
class Unpickled(Fine):
    """Holds a function without a name."""

    function: Callable = lambda x: x


@dataclasses.dataclass(frozen=True)
class Forgets(Fine):
    """Comes back from a pickle as another."""

    def __reduce__(self):
        return Forgets, (0.25,)


@dataclasses.dataclass(frozen=True)
class Unspellable(Fine):
    """Has a field that no config can say."""

    anything: Any = object


@dataclasses.dataclass(frozen=True)
class Hidden(Fine):
    """Has a field that no config sets."""

    late: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True)
class Rounds(Fine):
    """Changes what it is given."""

    def __post_init__(self):
        object.__setattr__(self, "share", self.share / 2)


@dataclasses.dataclass(frozen=True)
class Listed(Fine):
    """Holds a list where a tuple is said: configs give a tuple back."""

    several: tuple[int, ...] = dataclasses.field(default_factory=lambda: [1])  # pyright: ignore[reportAssignmentType]


@dataclasses.dataclass(frozen=True)
class Sizes(Fine):
    """Says a list, and holds one."""

    sizes: list[int] = dataclasses.field(default_factory=lambda: [8, 8])
    named: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Own(Fine):
    """Can be no key by its own choice."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]


@dataclasses.dataclass(frozen=True)
class Required(Fine):
    """Takes no word where a number is said."""

    share: float = "half"  # pyright: ignore[reportAssignmentType]


def late() -> Hidden:
    plugin = Hidden()
    object.__setattr__(plugin, "late", 3)
    return plugin


FAULTS = [
    (
        checks.implements_its_interface,
        Empty(),
        r"parameterization\.empty: it lacks a member of diffenc\.interfaces\.Parameterization",
    ),
    (checks.has_a_docstring, Undocumented(), "no docstring"),
    (checks.is_a_value, Open(), "it is mutable"),
    (checks.is_a_value, Unequal(), "does not equal its copy"),
    (checks.is_a_value, Unpickled(), "cannot be pickled"),
    (checks.is_a_value, Forgets(), "after pickling"),
    (
        checks.is_hashable,
        Sizes(),
        "not hashable: its field sizes is a list, its field named is a dict; use tup",
    ),
    (checks.is_hashable, Fine(inner=Sizes()), "its field inner is a Sizes"),
    (checks.is_hashable, Own(), "its class sets __hash__ to None"),
    (
        checks.round_trips_through_config,
        Unspellable(),
        r"unspellable\.anything = .*a config cannot say this",
    ),
    (checks.round_trips_through_config, late(), "are there fields outside __init__"),
    (checks.round_trips_through_config, Rounds(), r"its field share is 0\.25, parsed .* 0\.125"),
    (checks.round_trips_through_config, Listed(), r"its field several is \[1\], parsed .* \(1,\)"),
    (checks.round_trips_through_config, Required(), "expected float"),
]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Each class above under its name in lower case."""
    classes = [Fine, *(type(plugin) for _, plugin, _ in FAULTS)]
    known = {cls.__name__.lower(): cls for cls in classes}
    monkeypatch.setattr(
        registry.parameterizations, "_classes", {**registry.parameterizations._classes, **known}
    )


@pytest.mark.thin
@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("inner", [None, Fine(0.25), Fine()], ids=["bare", "of another", "of an equal"])
def test_what_keeps_all_passes_all(check, inner):
    check(Fine(inner=inner))


@pytest.mark.parametrize(("check", "plugin", "says"), FAULTS)
def test_a_check_refuses_its_own_fault(check, plugin, says):
    with pytest.raises(AssertionError, match=says):
        check(plugin)


def test_what_is_not_registered_is_told_so():
    @dataclasses.dataclass(frozen=True)
    class Own(Fine):
        """Bare."""

    with pytest.raises(AssertionError, match=r"Own: its class is not registered.*@encoders\.register"):
        checks.is_registered(Own())
    with pytest.raises(AssertionError, match="Own: its class is not registered"):
        testing.check(Own())


def test_a_class_in_place_of_an_instance_is_told_so():
    with pytest.raises(UserError, match=r"pass an instance, as Fine\(\)"):
        testing.check(Fine)


@pytest.mark.parametrize("other", [None, "encoder.identity", 3])
def test_what_is_no_plugin_is_told_so(other):
    with pytest.raises(UserError, match="pass an instance of a plugin, which is a dataclass"):
        testing.check(other)


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS} | {checks.is_registered} == set(checks.CHECKS)


def test_every_kind_has_checks_of_its_own():
    assert set(testing.CHECKS) == set(registry.REGISTRIES)
    for kind, found in testing.CHECKS.items():
        assert set(found) > set(checks.CHECKS), kind
        assert len({each.__name__ for each in found}) == len(found)
        assert all(each.__doc__ for each in found)


def test_one_call_runs_them_all():
    testing.check(Fine())
    with pytest.raises(AssertionError, match="does not equal its copy"):
        testing.check(late())
    with pytest.raises(AssertionError, match="q alpha - p sigma = 0"):
        testing.check(Fine(share=0.0))
    assert jax.config.jax_enable_x64 is False  # pyright: ignore[reportAttributeAccessIssue]
