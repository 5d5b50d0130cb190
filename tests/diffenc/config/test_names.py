import dataclasses

import pytest

from diffenc import interfaces, registry
from diffenc.config import names
from diffenc.config.experiment import Experiment
from diffenc.core.model import Model
from diffenc.errors import UserError


def test_everything_bindable_has_a_selector():
    known = names.known_classes()
    assert {
        "Experiment",
        "Model",
        "evaluate",
        "sample",
        "encoder.trainable",
        "dataset.digits",
    } <= known.keys()
    assert all(names.find_selector(cls) == selector for selector, cls in known.items())
    assert names.find_selector(int) is None


def test_fields_carry_their_hints_and_whether_they_are_required():
    fields = names.bindable_fields(Experiment)
    assert fields["model"] == names.Field("model", Model, True)
    assert fields["seed"] == names.Field("seed", int, False)
    assert fields["evaluate"].required is False


def test_fields_that_cannot_be_given_are_left_out():
    @dataclasses.dataclass(frozen=True)
    class Derived:
        given: list[int] = dataclasses.field(default_factory=list)
        derived: int = dataclasses.field(init=False, default=0)

    assert names.bindable_fields(Derived) == {"given": names.Field("given", list[int], False)}


@pytest.mark.parametrize("selector", ["Model", "encoder.trainable", "sample"])
def test_a_full_selector_stands_for_itself(selector):
    assert names.resolve_selector(selector) == selector


def test_the_kind_may_be_left_out_where_one_thing_is_called_so(monkeypatch):
    assert names.resolve_selector("unet") == "network.unet"
    monkeypatch.setattr(registry.generative_means, "_classes", {"unet": Model})
    with pytest.raises(UserError, match=r"^'unet' can be generative_mean\.unet or network\.unet$"):
        names.resolve_selector("unet")


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("encoder.trainabel", r"no encoder is called 'trainabel'; nearest: encoder\.trainable"),
        ("Modle", "nothing is called 'Modle'; nearest: Model"),
        ("encodr.trainable", r"nothing is called 'encodr\.trainable'; nearest: encoder\.trainable"),
    ],
)
def test_an_unknown_selector_is_answered_with_the_nearest(selector, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        names.resolve_selector(selector)


@pytest.mark.parametrize(
    ("hint", "kinds"),
    [
        (interfaces.Encoder, ["encoder"]),
        (interfaces.Network | None, ["network"]),
        (tuple[interfaces.Schedule, ...], ["schedule"]),
        (dict[str, interfaces.Network | interfaces.Encoder], ["encoder", "network"]),
        (Model, ["Model"]),
        (float, []),
    ],
)
def test_a_hint_says_what_references_may_stand_there(hint, kinds):
    assert names.accepted_kinds(hint) == kinds
