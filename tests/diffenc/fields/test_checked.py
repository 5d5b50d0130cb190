"""Values of wrong types are refused where an object is made in Python, with the field and its type."""

import dataclasses
import enum
import inspect
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry
from diffenc.config import gin_loader, names
from diffenc.config.experiment import Experiment
from diffenc.config.settings import Evaluate, MeshConfig, Sample
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.fields.checked import checked
from diffenc.interfaces import NO_CONTEXT
from diffenc_plugins.datasets import Digits
from diffenc_plugins.encoders import Identity, Trainable
from diffenc_plugins.networks import UNet
from diffenc_plugins.optimizers import AdamW
from diffenc_plugins.schedules import Linear

NOT_FOR = {int: "3", float: "3", str: 3, bool: 3}


def refusal(cls, **values):
    with pytest.raises(UserError) as refused:
        cls(**values)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("selector", sorted(names.known_classes()))
def test_every_class_of_a_config_refuses_a_value_of_another_type(selector):
    """Of each field that holds a number, a truth value or a text."""
    cls = names.known_classes()[selector]
    for field in names.bindable_fields(cls).values():
        if field.hint in NOT_FOR:
            message = refusal(cls, **{**_required(cls), field.name: NOT_FOR[field.hint]})
            assert (
                message
                == f"{selector}.{field.name} = {NOT_FOR[field.hint]!r}: expected {field.hint.__name__}"
            )


def _required(cls) -> dict[str, Any]:
    """Something for each field that must be given; its type is looked at after those that are wrong."""
    values = {
        "model": gin_loader.load_experiment(["gin/quickstart.gin"], []).model,
        "network": UNet(),
        "dataset": Digits(),
        "optimizer": AdamW(),
        "folder": "x",
    }
    return {name: values.get(name) for name, field in names.bindable_fields(cls).items() if field.required}


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.array(3), 3),
        (jnp.int32(3), 3),
        (enum.IntEnum("Number", {"THREE": 3}).THREE, 3),  # pyright: ignore[reportAttributeAccessIssue]
    ],
)
def test_numbers_of_other_libraries_are_pythons_own(value, held):
    passes = Evaluate(passes=value).passes
    assert (passes, type(passes)) == (held, int)


def test_values_are_held_as_a_config_would_hold_them():
    assert UNet(fourier_powers=[2, 3]).fourier_powers == (2, 3)  # pyright: ignore[reportArgumentType]
    assert type(Linear(8, -5).log_snr_max) is float
    assert type(AdamW(learning_rate=np.float32(0.5)).learning_rate) is float  # pyright: ignore[reportArgumentType]
    assert MeshConfig(rules=[["a", None]]).rules == (("a", None),)  # pyright: ignore[reportArgumentType]
    assert Sample(classes=None).classes is None


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), 3.0, np.float64(3), "3", None, [3], 2**63, -(2**63) - 1, 1j, object(), int],
)
def test_what_is_no_int(value):
    assert refusal(Evaluate, passes=value).startswith(f"evaluate.passes = {value!r}: expected ")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), np.float32("nan"), 10**400, True, "1e-3", None]
)
def test_what_is_no_float(value):
    assert refusal(AdamW, learning_rate=value).startswith("optimizer.adamw.learning_rate = ")


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Trainable, {"network": Linear(3.0, -3.0)}, "encoder.trainable.network = Linear("),
        (Trainable, {"network": Identity()}, "encoder.trainable.network = Identity(): expected Network"),
        (Trainable, {"network": "unet"}, "encoder.trainable.network = 'unet': expected Network"),
        (Trainable, {"network": object()}, "encoder.trainable.network = <object object"),
        (Trainable, {"network": UNet}, "expected Network, and this is a class: make one of it"),
        (Evaluate, {"variance": Linear(3.0, -3.0)}, "evaluate.variance = Linear("),
    ],
)
def test_plugins_of_another_kind(cls, values, message):
    assert message in refusal(cls, **values)


def test_settings_and_writers_of_an_experiment():
    good = gin_loader.load_experiment(["gin/quickstart.gin"], [])
    for change, message in (
        ({"steps": "3"}, "Experiment.steps = '3': expected int"),
        ({"evaluate": Sample()}, "expected Evaluate"),
        ({"dataset": AdamW()}, "expected Dataset"),
        ({"writers": object()}, "expected tuple[diffenc.interfaces.Writer, ...]"),
        ({"writers": [object()]}, "expected tuple[diffenc.interfaces.Writer, ...]"),
        ({"model": good}, "expected Model"),
    ):
        with pytest.raises(UserError) as refused:
            dataclasses.replace(good, **change)
        assert str(refused.value).endswith(message)


def test_an_object_that_is_no_registered_plugin_is_taken_by_its_methods():
    class Odd:
        def init(self, key, z, log_snr):
            return {}

        def apply(self, params, z, log_snr, context=NO_CONTEXT):
            return z

    assert isinstance(Trainable(Odd()).network, Odd)  # pyright: ignore[reportArgumentType]


def test_a_plugin_is_checked_once_it_is_registered(monkeypatch):
    monkeypatch.setattr(registry.networks, "_classes", {})

    @registry.networks.register("mine")
    @dataclasses.dataclass(frozen=True)
    class Mine(UNet):
        names: Sequence[str] = ()
        anything: Any = None

    assert refusal(Mine, names=[3]).startswith("network.mine.names = [3]: expected ")
    assert refusal(Mine, channels="8") == "network.mine.channels = '8': expected int"
    assert Mine(names=["a"]).names == ("a",)
    assert Mine(anything=len).anything is len


def test_a_class_keeps_its_signature_and_pythons_own_errors():
    assert list(inspect.signature(Evaluate).parameters) == [
        field.name for field in dataclasses.fields(Evaluate)
    ]
    with pytest.raises(TypeError, match="unexpected keyword argument 'passs'"):
        Evaluate(passs=3)  # pyright: ignore[reportCallIssue]
    assert {Experiment, Model} <= set(names.known_classes().values())


def test_annotations_that_cannot_be_evaluated_are_not_checked():
    @checked("odd")
    @dataclasses.dataclass(frozen=True)
    class Odd:
        value: "NotThere" = 0  # pyright: ignore[reportUndefinedVariable]

    assert Odd(value=3).value == 3
