"""Bindings made by hand, as the parser would make them; what is built is given as a list of visits."""

import pytest
from absl import logging

from diffenc.config import names
from diffenc.config.bindings import (
    MACRO,
    REQUIRED,
    Binding,
    BindingSet,
    Macro,
    Reference,
    missing_field_error,
)
from diffenc.config.experiment import Experiment
from diffenc.core.model import Model
from diffenc.errors import UserError

TRAINABLE = Reference("", "encoder.trainable", True)


def from_file(name, value, line=1):
    return bind(name, value, f"run.gin:{line}", False)


def on_command_line(name, value):
    return bind(name, value, "--gin_bindings", True)


def bind(name, value, where, typed):
    scope, _, key = name.rpartition("/")
    selector, _, field = key.rpartition(".")
    return Binding(scope, selector or MACRO, field, value, where, typed)


def refuses(said, visits=()):
    """The message with which the bindings are refused."""
    with pytest.raises(UserError) as error:
        BindingSet(said).check_unread(visits)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_last_binding_of_a_key_is_in_effect_and_macros_are_resolved():
    said = [
        from_file("HIGH", 13),
        from_file("schedule.linear.log_snr_max", Macro("HIGH")),
        from_file("network.unet.fourier_powers", [6, 7]),
        from_file("a/unet.channels", 64),
        from_file("Model.encoder", Reference("a", "trainable", True)),
        from_file("Model.schedule", Macro(REQUIRED)),
        on_command_line("HIGH", 8),
    ]
    assert BindingSet(said).lines() == [
        "schedule.linear.log_snr_max = 8.0",
        "network.unet.fourier_powers = (6, 7)",
        "a/network.unet.channels = 64",
        "Model.encoder = @a/encoder.trainable()",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schedule.linear.log_snr_max", "a", "schedule.linear.log_snr_max = 'a': expected float"),
        ("Experiment.steps", True, "Experiment.steps = True: expected int"),
        (
            "Model.encoder",
            Reference("", "encoder.trainabel", True),
            "no encoder is called 'trainabel'; nearest: encoder.trainable",
        ),
        ("Model.encoder", "trainable", "Model.encoder = 'trainable': expected @encoder.NAME()"),
        (
            "Model.encoder",
            Reference("", "encoder.trainable", False),
            "Model.encoder = @encoder.trainable: expected @encoder.NAME()",
        ),
        (
            "Model.encoder",
            Reference("", "network.unet", True),
            "Model.encoder = @network.unet(): expected @encoder.NAME()",
        ),
        ("Experiment.model", TRAINABLE, "Experiment.model = @encoder.trainable(): expected @Model()"),
        ("Experiment.seed", TRAINABLE, "Experiment.seed = @encoder.trainable(): expected int"),
        ("encoder.trainabel.x", 1, "no encoder is called 'trainabel'; nearest: encoder.trainable"),
        ("Experiment.step", 1, "Experiment has no field 'step'; nearest: Experiment.steps"),
        ("Experiment.steps", Macro("STEPS"), "no macro is called 'STEPS'; nearest: none"),
    ],
)
def test_a_binding_that_cannot_be_is_refused_with_its_place(name, value, message):
    assert refuses([from_file(name, value, 12)]) == f"run.gin:12: {message}"
    assert refuses([on_command_line(name, value)]) == f"--gin_bindings: {message}"


def test_a_macro_of_the_wrong_type_is_blamed_on_the_macro():
    said = [from_file("Experiment.steps", Macro("STEPS"), 3), on_command_line("STEPS", "many")]
    assert refuses(said) == ("--gin_bindings (STEPS) for run.gin:3: Experiment.steps = 'many': expected int")


def test_a_macro_defined_by_itself_is_refused():
    said = [
        from_file("A", Macro("B")),
        from_file("B", (1, Macro("A"))),
        from_file("Experiment.steps", Macro("A")),
    ]
    assert refuses(said) == "run.gin:1: Experiment.steps = %A: the macro 'A' is defined by itself"


def test_macros_that_multiply_each_other_are_refused_before_they_fill_the_memory():
    """A billion values from ten short lines."""
    said = [from_file("A0", (1,) * 10)]
    said += [from_file(f"A{k}", (Macro(f"A{k - 1}"),) * 10) for k in range(1, 9)]
    message = refuses([*said, from_file("Experiment.steps", Macro("A8"))])
    assert message == "run.gin:1: more than 100,000 values, with all macros written out"


VISITS = [("", "Experiment"), ("", "schedule.linear"), ("a", "network.unet"), ("b/c", "network.unet")]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        (
            "schedule.learned_endpoints.log_snr_max",
            "schedule.linear.log_snr_max; to use it, bind Model.schedule = @schedule.learned_endpoints()",
        ),
        ("c/network.unet.blocks", "network.unet.blocks"),
        ("b/a/network.unet.blocks", "network.unet.blocks"),
        ("LOG_SNR_MX", "LOG_SNR_MAX"),
        ("x/LOG_SNR_MAX", "LOG_SNR_MAX"),
    ],
)
def test_what_nothing_reads_is_refused_on_the_command_line(name, nearest):
    said = [from_file("LOG_SNR_MAX", 13), from_file("linear.log_snr_max", Macro("LOG_SNR_MAX"))]
    binding = on_command_line(name, 8)
    if name == "x/LOG_SNR_MAX":
        binding = Binding("", MACRO, name, 8, "--gin_bindings", True)
    message = refuses([*said, binding], VISITS)
    assert message.startswith(f"--gin_bindings: {name} = 8")
    assert message.endswith(f"; nearest: {nearest}")


@pytest.mark.parametrize("name", ["network.unet.blocks", "a/network.unet.blocks", "b/network.unet.blocks"])
def test_what_some_scope_reads_is_accepted_on_the_command_line(name):
    BindingSet([on_command_line(name, 8)]).check_unread(VISITS)


def test_what_inner_scopes_always_override_is_not_read():
    said = [from_file(f"{scope}/network.unet.blocks", 4) for scope in ("a", "b/c")]
    message = refuses([*said, on_command_line("network.unet.blocks", 8)], VISITS)
    assert message == (
        "--gin_bindings: network.unet.blocks = 8: nothing reads it; nearest: a/network.unet.blocks"
    )
    BindingSet([*said[:1], on_command_line("network.unet.blocks", 8)]).check_unread(VISITS)


def test_macros_that_read_macros_are_read():
    said = [
        on_command_line("A", 8),
        from_file("B", Macro("A")),
        from_file("network.unet.fourier_powers", (1, Macro("B"))),
    ]
    BindingSet(said).check_unread(VISITS)
    assert "A = 8: nothing reads it" in refuses(said, [("", "Experiment")])


def test_a_files_bindings_of_a_plugin_out_of_use_are_dropped_with_one_line_of_log(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda line, *values: lines.append(line % values))
    said = [
        from_file("HIGH", 13),
        from_file("encoder.trainable.network", Reference("y", "network.encoder_unet", True), 2),
        from_file("y/network.encoder_unet.blocks", 4, 3),
        from_file("network.encoder_unet.channels", 4, 4),
        from_file("network.encoder_unet.log_snr_max", Macro("HIGH"), 5),
        from_file("y/network.unet.blocks", 4, 6),
    ]
    BindingSet(said).check_unread(VISITS)
    assert lines == [
        "encoder.trainable is not used in this experiment; dropped: run.gin:2",
        "network.encoder_unet is not used in this experiment; dropped: run.gin:3, run.gin:4, run.gin:5",
        "y/network.unet is not used in this experiment; dropped: run.gin:6",
    ]
    BindingSet(said).check_unread(VISITS)
    assert len(lines) == 3, "a line is logged once in a process"


def test_a_files_binding_that_is_overridden_in_every_scope_is_no_mistake():
    said = [from_file(f"{scope}network.unet.blocks", 4) for scope in ("", "a/", "b/c/")]
    BindingSet(said).check_unread(VISITS)


@pytest.mark.parametrize("name", ["LOG_SNR_MX", "elsewhere/network.unet.blocks"])
def test_a_files_binding_that_nothing_could_ever_read_is_refused(name):
    assert refuses([from_file(name, 8, 7)], VISITS).startswith(f"run.gin:7: {name} = 8: nothing reads it")


def test_a_value_left_to_be_given_is_refused_where_it_is_read():
    said = [from_file("schedule.linear.log_snr_max", Macro(REQUIRED), 5)]
    assert refuses(said, VISITS) == (
        "run.gin:5: schedule.linear.log_snr_max must be given: add schedule.linear.log_snr_max = VALUE"
    )
    BindingSet(said).check_unread([("", "Experiment")])


def test_a_missing_field_is_answered_with_the_binding_to_add():
    encoder, model = names.bindable_fields(Model)["encoder"], names.bindable_fields(Experiment)["model"]
    message = str(missing_field_error("s", "Model", encoder))
    assert message.startswith("s/Model.encoder is not bound: add s/Model.encoder = @encoder.NAME() (known: ")
    assert "encoder.trainable" in message
    assert str(missing_field_error("", "Experiment", model)).endswith("add Experiment.model = @Model()")
    seed = names.Field("seed", int, True)
    assert str(missing_field_error("", "Experiment", seed)).endswith("add Experiment.seed = VALUE")


def test_an_error_about_a_binding_gets_its_place():
    settings = BindingSet([from_file("Experiment.steps", 0, 9)])
    assert (
        str(settings.with_location(UserError("Experiment.steps = 0: bad")))
        == "run.gin:9: Experiment.steps = 0: bad"
    )
    assert (
        str(settings.with_location(UserError("Experiment.steps_more: bad"))) == "Experiment.steps_more: bad"
    )
