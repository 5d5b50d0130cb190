"""What --describe shows: every field with its type and default, and how to use the part."""

import dataclasses

import pytest

from diffenc import registry
from diffenc.config import names
from diffenc.config.plugin_help import describe
from diffenc.errors import UserError
from diffenc_plugins.encoders import Identity


@pytest.mark.parametrize("selector", sorted(names.known_classes()))
def test_every_field_has_a_line_with_its_type(selector):
    lines = describe(selector).splitlines()
    assert lines[0] == selector
    cls = names.known_classes()[selector]
    for field in dataclasses.fields(cls):
        found = [line for line in lines if line.split()[:1] == [f"{selector}.{field.name}"]]
        assert len(found) == (1 if field.init else 0)
    assert any(
        line.startswith("class: ") and line.endswith(f"{cls.__module__}.{cls.__qualname__}") for line in lines
    )


def row(selector, field):
    line = next(line for line in describe(selector).splitlines() if line.startswith(f"{selector}.{field} "))
    return line.split(maxsplit=2)[1:]


def test_types_and_defaults():
    assert row("encoder.trainable", "network") == ["Network", "must be bound"]
    assert row("evaluate", "passes") == ["int", "1"]
    assert row("evaluate", "split") == ["str", "'test'"]
    assert row("Experiment", "variance") == ["Variance", "@variance.equal()"]
    assert row("Experiment", "model") == ["Model", "must be bound"]
    assert "network.unet.fourier_powers" in describe("unet"), "the kind may be left out"


def test_how_it_is_used():
    assert "bound by:        Model.encoder = @encoder.trainable()" in describe("encoder.trainable")
    assert "bound by:        Experiment.writers = (@writer.wandb(),)" in describe("writer.wandb")
    assert (
        "bound by:        Experiment.variance = @variance.fixed() or evaluate.variance = @variance.fixed()"
        in describe("variance.fixed")
    )


@pytest.mark.parametrize(
    ("selector", "mean"),
    [
        ("encoder.identity", "Model.generative_mean = @generative_mean.vdm()"),
        ("encoder.nontrainable", "Model.generative_mean = @generative_mean.counterterm()"),
        ("encoder.trainable", "Model.generative_mean = @generative_mean.counterterm()"),
        ("encoder.class_template", "Model.generative_mean = @generative_mean.counterterm()"),
        ("encoder.blurring", "that of encoder.blurring.encoder"),
    ],
)
def test_the_mean_that_goes_with_an_encoder(selector, mean):
    """As docs/concepts.md has them."""
    assert f"generative mean: {mean}" in describe(selector).splitlines()


def test_an_encoder_that_declares_no_mean(monkeypatch):
    monkeypatch.setattr(registry.encoders, "_classes", {})

    @registry.encoders.register("silent")
    @dataclasses.dataclass(frozen=True)
    class Silent:
        """Says nothing."""

        init, apply = Identity.init, Identity.apply

    assert "generative mean: not declared" in describe("encoder.silent")
    assert describe("encoder.silent").endswith("It has no fields.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.trainabel", "no encoder is called 'trainabel'; nearest: encoder.trainable"),
        ("experiment", "nothing is called 'experiment'; nearest: Experiment"),
        ("", "nothing is called ''; nearest: "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(UserError) as refused:
        describe(name)
    assert str(refused.value).startswith(message)
