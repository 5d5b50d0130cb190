"""Runs whose parameters are no dicts of dicts: everything that is made of a run, for each form of pytree."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from safetensors.numpy import load_file

import diffenc
from diffenc import registry
from diffenc.checkpoint.checkpoints import Checkpoints
from diffenc.cli.report import write_report as write_report
from diffenc.config.figure_settings import Figures
from diffenc.config.settings import Evaluate, MeshConfig, Sample
from diffenc.core.model import Model
from diffenc.core.parameters import name_leaves
from diffenc.errors import UserError
from diffenc.evaluation import commands
from diffenc.export import export
from diffenc.export.loading import unflatten_named
from diffenc.interfaces import NO_CONTEXT
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import data_mesh
from diffenc.tools import foreign_weights
from diffenc.tools.figures import figures
from diffenc.tools.planning import plan
from diffenc.training import loop
from diffenc.training.state import abstract_state, init_state
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.optimizers import AdamW


class Pair(NamedTuple):
    w: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    w: Any
    b: Any
    form: str = dataclasses.field(default="affine", metadata={"static": True})


class Module(eqx.Module):
    w: Any
    b: Any
    activation: Any = eqx.field(static=True, default=jnp.tanh)


@jax.tree_util.register_pytree_node_class
class Nameless:
    """Registered without keys."""

    def __init__(self, w, b):
        self.w, self.b = w, b

    def tree_flatten(self):
        return (self.w, self.b), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


MAKERS = {
    "list": lambda w, b: [w, b],
    "nested": lambda w, b: ({"w": [w, None]}, (b, {}), None),
    "namedtuple": Pair,
    "dataclass": Record,
    "equinox": Module,
    "nameless": Nameless,
    "frozendict": lambda w, b: freeze({"params": {"dense/0": {"kernel": w, "bias": b}}}),
    "numpy": lambda w, b: {"w": w, "b": np.zeros(b.shape), "gain": 1.0, "offset": np.float32(0)},
    "slashes": lambda w, b: {"a/b": {"c": w}, "a": {"b/c": b}},
    "integers": lambda w, b: {0: w, 1: b},
}


@dataclasses.dataclass(frozen=True)
class Formed:
    """w z + b, w and b in a pytree of the form that MAKERS has."""

    form: str = "list"

    def init(self, key, z, log_snr):
        return MAKERS[self.form](0.1 * jax.random.normal(key, z.shape[1:]), jnp.zeros(z.shape[1:]))

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        w, b, *rest = _by_size(params)
        return w[None] * z + b[None] + 0 * sum(rest)


def _by_size(params):
    """w and b, then scalars."""
    leaves = jax.tree.leaves(params)
    if isinstance(params, dict) and "gain" in params:
        return params["w"], params["b"], params["gain"], params["offset"]
    if isinstance(params, dict) and "a/b" in params:
        return params["a/b"]["c"], params["a"]["b/c"]
    if not isinstance(params, dict) and hasattr(params, "unfreeze"):
        layer = params["params"]["dense/0"]
        return layer["kernel"], layer["bias"]
    return leaves


@dataclasses.dataclass(frozen=True)
class Bare:
    """w z, w an array by itself."""

    def init(self, key, z, log_snr):
        return 0.1 * jax.random.normal(key, z.shape[1:])

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return params[None] * z


@dataclasses.dataclass(frozen=True)
class NoParameters:
    """z / 2, with None for parameters."""

    def init(self, key, z, log_snr):
        return None

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return 0.5 * z


class _Dense(nn.Module):
    @nn.compact
    def __call__(self, z):
        return nn.Dense(z.shape[-1])(nn.tanh(nn.Dense(4)(z)))


@dataclasses.dataclass(frozen=True)
class Linen:
    """Two layers of flax.linen over channels, and the noise level."""

    def init(self, key, z, log_snr):
        return _Dense().init(key, z)

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return _Dense().apply(params, z + 0.01 * log_snr[:, None, None, None])


class _Layers(nnx.Module):
    def __init__(self, channels, rngs):
        self.first = nnx.Linear(channels, 4, rngs=rngs)
        self.last = nnx.Linear(4, channels, rngs=rngs)

    def __call__(self, z):
        return self.last(nnx.tanh(self.first(z)))


@dataclasses.dataclass(frozen=True)
class Nnx:
    """The same in flax.nnx, whose state is the parameters."""

    def init(self, key, z, log_snr):
        return nnx.state(_Layers(z.shape[-1], nnx.Rngs(key)), nnx.Param)

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        graph = nnx.graphdef(nnx.eval_shape(lambda: _Layers(z.shape[-1], nnx.Rngs(0))))
        return nnx.merge(graph, params)(z + 0.01 * log_snr[:, None, None, None])


@dataclasses.dataclass(frozen=True)
class Equinox:
    """A perceptron of equinox.nn over channels; its functions stay outside of the parameters."""

    def _make(self, channels, key):
        return eqx.partition(eqx.nn.MLP(channels, channels, 4, 1, key=key), eqx.is_inexact_array)

    def init(self, key, z, log_snr):
        return self._make(z.shape[-1], key)[0]

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        channels = z.shape[-1]
        module = eqx.combine(params, self._make(channels, jax.random.key(0))[1])
        pixels = (z + 0.01 * log_snr[:, None, None, None]).reshape(-1, channels)
        return jax.vmap(module)(pixels).reshape(z.shape)


@dataclasses.dataclass(frozen=True)
class WholeEquinox(Equinox):
    """Gives the module as it is, with its functions."""

    def init(self, key, z, log_snr):
        return eqx.nn.MLP(z.shape[-1], z.shape[-1], 4, 1, key=key)


NETWORKS = {
    "bare": Bare(),
    "none": NoParameters(),
    "linen": Linen(),
    "nnx": Nnx(),
    "mlp": Equinox(),
    **{form: Formed(form) for form in MAKERS},
}
CLASSES = {
    "formed": Formed,
    "bare": Bare,
    "no_parameters": NoParameters,
    "linen": Linen,
    "nnx": Nnx,
    "mlp": Equinox,
}


SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def make(tiny):
    """Makes a short run with a network, in the encoder too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, cls in CLASSES.items():
            patch.setitem(registry.networks._classes, name, cls)

        def run(network, **changes):
            base = tiny().model
            model = Model(
                Trainable(network), base.schedule, base.parameterization, base.generative_mean, network
            )
            settings = {"evaluate": Evaluate(passes=1), "sample": Sample(num_timesteps=2, num=2)}
            return tiny(model=model, steps=2, checkpoint_every=1, log_every=1, **{**settings, **changes})

        yield run


@pytest.mark.parametrize("form", NETWORKS)
def test_parameters_of_this_form_are_named_split_saved_and_read_back(form, make, tmp_path):
    experiment, mesh = make(NETWORKS[form]), data_mesh()
    state = jax.jit(lambda: init_state(experiment))()
    names = list(name_leaves(state.params))
    assert len(set(names)) == len(names) == len(jax.tree.leaves(state.params))
    rules = tuple((name, None) for name in names if "[" not in name)
    specs = param_sharding.specs_of(state.params, MeshConfig(fsdp=2, rules=rules))
    assert jax.tree.structure(jax.tree.map(lambda _: 0, specs)) == jax.tree.structure(
        jax.tree.map(lambda _: 0, state.params)
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    restored = Checkpoints(tmp_path).restore(abstract_state(experiment, mesh)).tree
    jax.tree.map(np.testing.assert_array_equal, restored, state)  # of one structure, too
    again = unflatten_named(experiment, name_leaves(state.params))
    jax.tree.map(np.testing.assert_array_equal, again, state.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=SLOW if form != "mlp" else ()) for form in NETWORKS]
)
def test_a_run_with_parameters_of_this_form(form, make, tmp_path):
    experiment = make(NETWORKS[form], evaluate_every=2, sample_every=2)
    loop.train(experiment, tmp_path / "run")
    longer = dataclasses.replace(experiment, steps=3)
    loop.train(longer, tmp_path / "run")  # restores and goes on
    state = Checkpoints(tmp_path / "run" / "checkpoints").restore(abstract_state(longer, data_mesh()), 3).tree
    names = list(name_leaves(state.params))
    listed = (tmp_path / "run" / "parameters.txt").read_text()
    assert all(f"| {name} " in listed for name in names)

    evaluated = commands.evaluate(longer, tmp_path / "run")
    folder = export.export(longer, tmp_path / "run")
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == set(names)
    for name, leaf in name_leaves(state.ema).items():
        np.testing.assert_array_equal(weights[name], leaf)
    _check_loaded(longer, folder, tmp_path / "run", evaluated)


def _check_loaded(experiment, folder, workdir, evaluated):
    """The export and the workdir load as the same model, which the run's own evaluation measured."""
    of_export, of_workdir = (
        diffenc.load(path, allow_imports=("tests", "conftest")) for path in (folder, workdir)
    )
    assert jax.tree.structure(of_export.params) == jax.tree.structure(of_workdir.params)
    np.testing.assert_array_equal(of_export.sample(2, num_timesteps=2), of_workdir.sample(2, num_timesteps=2))
    images = experiment.dataset.source("test")
    levels = np.stack([images[i]["image"] for i in range(len(images))])
    bound = of_export.elbo(levels, passes=1, seed=experiment.evaluate.seed)
    assert bound.means["bpd"] == pytest.approx(evaluated["bpd"], rel=1e-5)


@pytest.mark.slow
def test_what_else_is_made_of_a_run(make, tmp_path):
    """Plan, figures, report, a run that starts from it; and parameters under the names of the export, given back."""
    experiment = make(Equinox(), figures=Figures(only=("schedule",)))
    loop.train(experiment, tmp_path / "run")
    commands.evaluate(experiment, tmp_path / "run")
    assert plan.plan(experiment, tmp_path / "run")["parameters"]["network"] == (1 * 4 + 4) + (4 * 1 + 1)
    assert figures.figures(experiment, tmp_path / "run")
    assert write_report([str(tmp_path / "run")], tmp_path / "report.html") > 0
    arrays = load_file(export.export(experiment, tmp_path / "run") / "model.safetensors")
    assert foreign_weights.match_to_model(experiment, arrays, "theirs").keys() == arrays.keys()
    still = AdamW(learning_rate=0.0)
    other = dataclasses.replace(
        experiment, init_from=str(tmp_path / "run" / "checkpoints"), steps=1, optimizer=still
    )
    loop.train(other, tmp_path / "other")
    wanted = abstract_state(other, data_mesh())
    first, last = (
        Checkpoints(tmp_path / name / "checkpoints").restore(wanted, step).tree
        for name, step in (("other", 1), ("run", 2))
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, last.params)


class AnotherFunction(Formed):
    """Holds a function made anew at each call."""

    def init(self, key, z, log_snr):
        w, b = super().init(key, z, log_snr)
        return Module(w, b, lambda x: x)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (WholeEquinox(), r"encoder Trainable: init returns activation, which is a function \(relu\)"),
        (
            AnotherFunction(),
            "network AnotherFunction or schedule LearnedEndpoints or stochasticity Markov: two calls of init return pytrees of",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    network, says, make, tmp_path, monkeypatch
):
    monkeypatch.setitem(registry.networks._classes, "not_trainable", type(network))
    with pytest.raises(UserError, match=says) as refused:
        loop.train(make(network), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
