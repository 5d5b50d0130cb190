"""The programs of a run, compiled for a mesh of devices that may be absent."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffenc.config.experiment import Experiment
from diffenc.core.model import UNIFORM
from diffenc.core.rng import root_key
from diffenc.evaluation.batches import PassDraws, compile_on_mesh, resolve_batch_size
from diffenc.evaluation.evaluated_bound import continuous_rule
from diffenc.evaluation.evaluator import batch_terms
from diffenc.evaluation.sample_images import compile_stretch, count_stretches
from diffenc.parallel import param_sharding
from diffenc.parallel.sharding import batch_sharded, check_divisible, platform_of, replicated
from diffenc.runtime.compile_cache import compile_ahead
from diffenc.sampling.sampler import ReverseChain
from diffenc.sampling.solvers import SOLVERS
from diffenc.tools.planning import flops, hlo
from diffenc.tools.planning.flops import Work
from diffenc.training.gradient import check_batch
from diffenc.training.state import abstract_images, abstract_state, make_train_step

Number = int | float
FULL = "RESOURCE_EXHAUSTED"  # how XLA's message begins when a program needs more memory than there is
MEMORY = ("arguments", "results", "temporary", "code")  # bytes, the parts of "total"


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and its abstract arguments.

    Attributes:
      what: name of the program in messages.
      images: images of one execution, on all devices together.
      steps: steps of the run in one execution.
      shares: number of devices that share the arithmetic.
    """

    what: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    images: int
    steps: int
    shares: int

    def count_work(self) -> Work:
        """Returns the contractions of one execution, all devices together; traces it."""
        return flops.count_work(self.function, *self.arguments)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The compiler's numbers for one execution of a program on one device.

    Attributes:
      numbers: memory by part, and the counts of `hlo.Counts`, by name, in bytes, calls and cycles; empty if the program
        does not fit.
      too_large: the compiler's message if the program does not fit.
    """

    numbers: Mapping[str, Number]
    too_large: str | None = None


def make_programs(experiment: Experiment, mesh: Mesh) -> dict[str, Program]:
    """Returns the train step, a batch of the evaluation in continuous time and a stretch of the sampler, by name.

    Raises:
      UserError: a batch does not divide over the devices, or a plugin cannot be built for these images.
    """
    makers = {"train": _train_program, "evaluate": _evaluation_program, "sample": _sampling_program}
    wanted = ["train"] if experiment.plan.only_training else list(makers)
    return {name: makers[name](experiment, mesh) for name in wanted}


def _train_program(experiment: Experiment, mesh: Mesh) -> Program:
    check_batch(experiment, mesh)
    arguments = abstract_state(experiment, mesh), abstract_images(experiment, mesh)
    step = make_train_step(experiment, mesh)
    return Program("the train step", step, arguments, experiment.batch_size, 1, mesh.devices.size)


def _evaluation_program(experiment: Experiment, mesh: Mesh) -> Program:
    settings = resolve_batch_size(experiment.evaluation, experiment.batch_size)
    batch = settings.batch_size
    check_divisible("evaluate.batch_size", batch, mesh)
    draws = jax.eval_shape(
        lambda: PassDraws(
            root_key(0, "evaluate"), jnp.zeros(batch, jnp.int32), jnp.zeros((batch, settings.times_per_image))
        )
    )
    params = param_sharding.abstract_params(experiment, mesh)
    levels = experiment.dataset.num_levels
    terms = compile_on_mesh(mesh, batch_terms, experiment.model, levels, continuous_rule, UNIFORM)
    arguments = ((params, None), abstract_images(experiment, mesh, batch), draws)
    return Program("the evaluation of a batch", terms, arguments, batch, 1, mesh.devices.size)


def _sampling_program(experiment: Experiment, mesh: Mesh) -> Program:
    settings, model = experiment.sampling, experiment.model
    length = settings.num_timesteps // count_stretches(settings.num_timesteps)
    whole = settings.num % mesh.devices.size  # each device then draws all
    sharding = replicated(mesh) if whole else batch_sharded(mesh)
    walk = compile_stretch(model, SOLVERS[settings.sampler], settings.guidance, sharding, platform_of(mesh))
    z = jax.ShapeDtypeStruct((settings.num, *experiment.dataset.image_shape), jnp.float32, sharding=sharding)
    rest = jax.eval_shape(
        lambda: (
            ReverseChain(jnp.zeros(length + 1), jnp.zeros(length)),
            root_key(0, "sample"),
            jnp.zeros((), jnp.int32),
            model.conditioning(np.zeros(settings.num, np.int32)),
        )
    )
    arguments = (param_sharding.abstract_params(experiment, mesh), z, *rest)
    shares = 1 if whole else mesh.devices.size
    return Program("a stretch of sampling", walk, arguments, settings.num, length, shares)


def measure_program(program: Program) -> Measured:
    """Compiles a program and returns the compiler's numbers; takes minutes for a large program with a TPU's compiler.

    Raises:
      jax.errors.JaxRuntimeError: the program does not compile, for another reason than its size.
    """
    began = time.process_time()
    try:
        compiled: Any = compile_ahead(program.what, program.function, *program.arguments)
    except jax.errors.JaxRuntimeError as error:
        if FULL not in str(error):
            raise
        return Measured({}, " ".join(str(error).partition(FULL)[2].lstrip(": ").split("\n\n")[0].split()))
    seconds = time.process_time() - began
    return Measured({**memory_numbers(compiled), **_counts(compiled), "processor_seconds": seconds})


def memory_numbers(compiled: Any) -> dict[str, Number]:
    """Returns the bytes of a compiled program on one device. Results in donated arguments count once, as `arguments`."""
    analysis = compiled.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    parts = (analysis.argument_size_in_bytes, results, analysis.temp_size_in_bytes, code)
    return {**dict(zip(MEMORY, parts, strict=True)), "total": sum(parts)}


def _counts(compiled: Any) -> dict[str, Number]:
    counts = hlo.count_program(compiled.as_text())
    numbers = {
        field.name: getattr(counts, field.name)
        for field in dataclasses.fields(counts)
        if field.name not in ("collectives", "sent")
    }
    calls = {f"calls of {kind}": number for kind, number in counts.collectives.items()}
    return numbers | calls | {f"bytes of {kind}": number for kind, number in counts.sent.items()}


def extrapolate(small: Measured, large: Measured, sizes: tuple[int, int], size: int) -> Measured:
    """Returns the numbers at `size`, extrapolated linearly from those at two `sizes`, with the sum of `processor_seconds`.

    Beyond the larger of `sizes` none is below its value there, as of a compiler that spends less code on more blocks.
    """
    if small.too_large or large.too_large:
        return small if small.too_large else large
    slope = (size - sizes[0]) / (sizes[1] - sizes[0])
    names = dict.fromkeys([*small.numbers, *large.numbers])
    pairs = {name: (small.numbers.get(name, 0), large.numbers.get(name, 0)) for name in names}
    line = {name: first + slope * (second - first) for name, (first, second) in pairs.items()}
    if size > sizes[1]:
        line = {name: max(value, pairs[name][1]) for name, value in line.items()}
        if line.keys() >= set(MEMORY):
            line["total"] = sum(line[part] for part in MEMORY)
    return Measured(line | {"processor_seconds": sum(pairs["processor_seconds"])})
