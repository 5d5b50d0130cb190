import dataclasses
import enum
import hashlib
import re
from typing import Any

import pytest

from diffenc import registry
from diffenc.config import gin_loader, names
from diffenc.config.experiment import ADDED_LATER, FREE_TO_MEASURE, Experiment
from diffenc.config.network_precision import network_precision
from diffenc.config.serialize import (
    config_hash,
    config_text,
    find_differences,
    hash_text,
    hparams,
    unimportable_classes,
)
from diffenc.config.settings import Evaluate, Sample
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.interfaces import Network
from diffenc.workdir.config_check import check_config

PRECISIONS = ("float32", "bfloat16")


def plugin(kind, name, **values):
    return registry.REGISTRIES[kind][name](**values)


def experiment(**changes):
    model = Model(
        encoder=plugin("encoder", "identity"),
        schedule=plugin("schedule", "linear", log_snr_max=8.0),
        parameterization=plugin("parameterization", "epsilon"),
        generative_mean=plugin("generative_mean", "vdm"),
        network=changes.pop("network", plugin("network", "unet", blocks=1, channels=16)),
    )
    for part in changes.keys() & {"encoder", "stochasticity"}:
        model = dataclasses.replace(model, **{part: changes.pop(part)})
    dataset, optimizer = plugin("dataset", "digits"), plugin("optimizer", "adamw")
    return Experiment(model=model, dataset=dataset, optimizer=optimizer, **changes)


def round_trip(tmp_path, item):
    path = tmp_path / "config.gin"
    path.write_text(config_text(item))
    return gin_loader.load_experiment([str(path)], [], ["tests"])


@pytest.fixture
def scratch_networks(monkeypatch):
    """The networks' registry, as it was again after the test."""
    monkeypatch.setattr(registry.networks, "_classes", dict(registry.networks._classes))
    return registry.networks


@pytest.fixture
def nest(scratch_networks):
    """A network of networks, with a field that takes anything."""

    @scratch_networks.register("nest")
    @dataclasses.dataclass(frozen=True)
    class Nest(scratch_networks["unet"]):
        inner: tuple[Network, ...] = ()
        named: dict[str, Network] = dataclasses.field(default_factory=dict)
        other_one: Network | None = None
        anything: Any = None
        rate: float = 0.5

    return Nest


def test_every_field_has_its_line_and_the_lines_are_sorted():
    lines = config_text(experiment()).splitlines()
    assert lines == sorted(lines)
    keys = [line.split(" = ")[0] for line in lines]
    assert len(keys) == len(set(keys))
    for cls, name in (
        (Experiment, "Experiment"),
        (Model, "Model"),
        (Evaluate, "evaluate"),
        (Sample, "sample"),
    ):
        assert [key for key in keys if key.startswith(f"{name}.")] == sorted(
            f"{name}.{field.name}" for field in dataclasses.fields(cls) if field.init
        )
    assert "Model.encoder = @encoder.identity()" in lines
    assert "schedule.linear.log_snr_max = 8.0" in lines
    assert "Experiment.init_from = None" in lines
    assert "evaluate.split = 'test'" in lines
    assert "network.unet.fourier_powers = (6, 7)" in lines


def test_the_text_is_read_back_as_an_equal_experiment(tmp_path):
    item = experiment(
        seed=3,
        init_from='it\'s a "path" with = and #',
        ema_decay=1e-7,
        evaluate=Evaluate(passes=3, split="train"),
        encoder=plugin("encoder", "trainable", network=plugin("network", "encoder_unet", groups=4)),
    )
    assert round_trip(tmp_path, item) == item
    assert config_text(round_trip(tmp_path, item)) == config_text(item)


def test_equal_values_have_equal_text(nest):
    thirteen = [config_text(experiment(network=nest(rate=value))) for value in (13, 13.0)]
    assert thirteen[0] == thirteen[1]
    assert "network.nest.rate = 13.0" in thirteen[0]
    assert "network.nest.anything = 13\n" in config_text(experiment(network=nest(anything=13)))


def test_two_of_a_class_that_differ_get_scopes_named_by_their_path(tmp_path):
    inner = plugin("network", "unet", blocks=2, channels=16)
    item = experiment(encoder=plugin("encoder", "trainable", network=inner))
    lines = config_text(item).splitlines()
    assert "Model.network = @model_network/network.unet()" in lines
    assert "encoder.trainable.network = @model_encoder_network/network.unet()" in lines
    assert "model_network/network.unet.blocks = 1" in lines
    assert "model_encoder_network/network.unet.blocks = 2" in lines
    assert not any(line.startswith("network.unet.") for line in lines)
    assert round_trip(tmp_path, item) == item


def test_two_of_a_class_that_are_equal_need_no_scope(tmp_path):
    inner = plugin("network", "unet", blocks=1, channels=16)
    item = experiment(encoder=plugin("encoder", "trainable", network=inner))
    assert "/" not in config_text(item)
    assert round_trip(tmp_path, item) == item


def test_nests_within_nests_are_read_back(tmp_path, nest):
    def unet(blocks):
        return plugin("network", "unet", blocks=blocks, channels=16)

    middle = nest(
        inner=(unet(1), unet(2)), other_one=nest(inner=(unet(3),), anything=(1, [2.0, {"a": None}]))
    )
    top = nest(inner=(middle, unet(1)), named={"x": unet(5), "y": middle}, other_one=unet(6))
    item = experiment(network=top)
    assert round_trip(tmp_path, item) == item


def test_paths_that_would_read_alike_stay_apart(tmp_path, scratch_networks):
    @scratch_networks.register("pair")
    @dataclasses.dataclass(frozen=True)
    class Pair(scratch_networks["unet"]):
        a_b: Network | None = None
        a: Network | None = None

    @scratch_networks.register("holder")
    @dataclasses.dataclass(frozen=True)
    class Holder(scratch_networks["unet"]):
        b: Network | None = None

    unets = [plugin("network", "unet", blocks=blocks) for blocks in (1, 2)]
    item = experiment(network=Pair(a_b=unets[0], a=Holder(b=unets[1])))
    assert round_trip(tmp_path, item) == item


def test_a_class_that_is_not_registered_is_named(nest):
    unet: Any = registry.networks["unet"]

    @dataclasses.dataclass(frozen=True)
    class Own(unet):
        pass

    with pytest.raises(UserError, match=r"Own as model\.network is not registered.*@networks\.register"):
        config_text(experiment(network=Own()))
    with pytest.raises(UserError, match=r"Own as model\.network\.inner\.1 is not registered"):
        config_text(experiment(network=nest(inner=(plugin("network", "unet"), Own()))))


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize("value", [object(), {1, 2}, Colour.RED, 1j, [len]])
def test_a_value_that_no_config_can_say_is_named(nest, value):
    with pytest.raises(UserError, match=r"^network\.nest\.anything = .*: a config cannot say this$"):
        config_text(experiment(network=nest(anything=value)))


@pytest.mark.parametrize("value", ["fast", True, float("nan")])
def test_a_value_of_another_type_is_named(nest, value):
    with pytest.raises(UserError, match=r"^network\.nest\.rate = .*: expected (a finite )?float$"):
        config_text(experiment(network=nest(rate=value)))


def test_the_hash_is_of_what_is_not_free_to_change():
    kept = [
        line
        for line in config_text(experiment()).splitlines()
        if not line.startswith(("Experiment.log_every", "Experiment.keep_"))
        and not line.startswith(tuple(f"{name}." for name in names.SETTINGS))
        and not line.startswith(tuple(f"Experiment.{name} " for name in names.SETTINGS))
        and "_every = " not in line
        and not line.startswith(
            ("Experiment.steps ", "Experiment.profile_at ", "Experiment.microbatches ", "Experiment.writers ")
        )
        and not line.startswith(("network.unet.scan ", "network.unet.remat "))
        and line not in ADDED_LATER
    ]
    assert config_hash(experiment()) == hashlib.sha256("\n".join(kept).encode()).hexdigest()
    free = experiment(
        steps=7,
        log_every=1,
        checkpoint_every=2,
        evaluate_every=3,
        sample_every=4,
        keep_last=5,
        keep_every=6,
        evaluate=Evaluate(passes=2),
        sample=Sample(num=1),
    )
    assert config_hash(free) == config_hash(experiment())
    for change in ({"seed": 1}, {"batch_size": 1}, {"network": plugin("network", "unet", blocks=3)}):
        assert config_hash(experiment(**change)) != config_hash(experiment())


def test_a_run_from_before_paths_keeps_its_hash_and_goes_on():
    """The paper's path is what a config without one meant; another is a difference, and of another hash."""
    new = config_text(experiment())
    old = new.replace("Model.stochasticity = @stochasticity.markov()\n", "")
    assert len(new.splitlines()) - len(old.splitlines()) == 1
    assert find_differences(old, new) == []
    assert hash_text(old) == hash_text(new)
    other = config_text(experiment(stochasticity=plugin("stochasticity", "constant", eta=2.0)))
    assert hash_text(other) != hash_text(new)
    first = "Model.stochasticity: absent -> @stochasticity.constant()"
    assert find_differences(old, other) == [first, "stochasticity.constant.eta: absent -> 2.0"]


def test_differences_name_key_old_and_new():
    old = experiment()
    new = experiment(seed=2, steps=77, evaluate=Evaluate(passes=5), encoder=plugin("encoder", "nontrainable"))
    assert find_differences(config_text(old), "# a comment\n\n" + config_text(new)) == [
        "Experiment.seed: 0 -> 2",
        "Model.encoder: @encoder.identity() -> @encoder.nontrainable()",
    ]
    assert find_differences("Experiment.steps_ahead = 1\n", "Experiment.steps_ahead = 2\n") != []
    assert find_differences("A.x = 1\nB.y = 'a = b'\n", "B.y = 2\n") == [
        "A.x: 1 -> absent",
        "B.y: 'a = b' -> 2",
    ]
    assert find_differences(config_text(old), config_text(experiment(steps=9))) == []


def test_how_networks_are_computed_may_change(tmp_path):
    """`scan` and `remat` of any network, in a scope or not; nothing else of one."""
    network = plugin("network", "unet", blocks=1, channels=16)
    encoder = plugin("encoder", "trainable", network=dataclasses.replace(network, channels=8))
    plain = experiment(encoder=encoder)
    other = dataclasses.replace(network, scan=True, remat=True)
    encoder = plugin("encoder", "trainable", network=dataclasses.replace(other, channels=8))
    computed = experiment(encoder=encoder, network=other)
    assert "model_network/network.unet.scan = True" in config_text(computed)
    assert config_hash(computed) == config_hash(plain)
    assert not find_differences(config_text(plain), config_text(computed))
    assert round_trip(tmp_path, computed) == computed
    wider = experiment(encoder=encoder, network=dataclasses.replace(other, channels=32))
    assert config_hash(wider) != config_hash(plain)


def test_a_run_is_trained_in_one_precision_and_measured_in_any(tmp_path):
    trained, other = (experiment(network=plugin("network", "unet", precision=p)) for p in PRECISIONS)
    (tmp_path / "config.gin").write_text(config_text(trained))
    change = "network.unet.precision: 'float32' -> 'bfloat16'"
    assert find_differences(config_text(trained), config_text(other)) == [change]
    with pytest.raises(UserError, match=re.escape(change)):
        check_config(other, tmp_path)
    check_config(other, tmp_path, FREE_TO_MEASURE)
    assert config_hash(trained) != config_hash(other)


def test_the_precision_is_the_lowest_of_any_network(x64):
    network = plugin("network", "encoder_unet", precision="bfloat16")
    assert network_precision(experiment()) == "float64"
    assert (
        network_precision(experiment(encoder=plugin("encoder", "trainable", network=network))) == "bfloat16"
    )


def test_hparams_are_numbers_where_the_config_has_numbers():
    text = (
        "import mine\nA.rate = 1e-3\nA.steps = 5\nA.name = 'x = y'\nA.flag = True\nA.sizes = (1, 2)\n"
        "A.part = @b.c()\ns/b.c.d = None\n"
    )
    assert hparams(text) == {
        "A.rate": 1e-3,
        "A.steps": 5,
        "A.name": "x = y",
        "A.flag": True,
        "A.sizes": "(1, 2)",
        "A.part": "@b.c()",
        "s/b.c.d": "None",
    }


def test_classes_that_no_import_makes_known(nest):
    """One of a function, and one of the program itself."""
    assert unimportable_classes(experiment()) == []
    here = experiment(network=nest(anything=3))
    assert unimportable_classes(here) == [f"{__name__}.nest.<locals>.Nest"]
    nest.__qualname__, nest.__module__ = "Nest", "__main__"
    assert unimportable_classes(here) == ["__main__.Nest"]
