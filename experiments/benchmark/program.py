"""The train step as a program: the cost of tracing, and the size of the program to compile. Nothing is compiled or run."""

import time
from collections import Counter
from typing import Any

import jax
from jax.extend import core as jax_core

from diffenc.parallel.sharding import make_mesh
from diffenc.training.state import abstract_images, abstract_state, make_train_step
from experiments.benchmark.steps import with_encoders
from experiments.benchmark.subject import Subject


def measure_program(subject: Subject) -> dict[str, dict[str, float]]:
    """Measures the steps of VDMv, DiffEnc-nt and the file's own encoder, by name."""
    return {name: describe_step(one) for name, one in with_encoders(subject.experiment).items()}


def describe_step(experiment: Any) -> dict[str, float]:
    """Returns the numbers of arrays, equations and contractions, and the processor seconds of tracing."""
    mesh = make_mesh()
    state, images = abstract_state(experiment, mesh), abstract_images(experiment, mesh)
    step: Any = make_train_step(experiment, mesh)
    begin = time.process_time()
    traced = step.trace(state, images).jaxpr
    seconds = time.process_time() - begin
    equations = count_equations(traced.jaxpr)
    return {
        "arrays of parameters": len(jax.tree.leaves(state.params)),
        "arguments": len(jax.tree.leaves((state, images))),
        "equations": equations.total(),
        "convolutions": equations["conv_general_dilated"],
        "matrix products": equations["dot_general"],
        "seconds to trace": seconds,
    }


def count_equations(jaxpr: Any) -> Counter[str]:
    """Counts equations by primitive, those within loops, branches and calls once each."""
    counts = Counter(equation.primitive.name for equation in jaxpr.eqns)
    for equation in jaxpr.eqns:
        for inner in jax_core.jaxprs_in_params(equation.params):
            counts += count_equations(inner)
    return counts
