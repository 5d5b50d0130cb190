"""The change of the bound when float32 products are computed in bfloat16 or TensorFloat-32, measured on a CPU.

  python -m diffenc.run --gin_file=gin/quickstart.gin
  python -m experiments.rounded_products --workdir=runs/quickstart

By default a TPU multiplies float32 in bfloat16, an NVIDIA GPU in TensorFloat-32, and both accumulate in float32. This program
emulates them: the loss is traced, and the factors of its matrix products and convolutions are rounded to the format's mantissa
before each. Some products are held at full precision (`jax.default_matmul_precision("highest")`). The table lists the shift of
the bound from that of float32 on the same draws, with these products held (as on such a device), and with more of them rounded:

- held: products at full precision stay so; all others are rounded
- held but encoder: those of the encoder are rounded too; held but network: those of the network (its first convolution)
- none held: every product is rounded
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich import box
from rich.console import Console
from rich.table import Table

from diffenc.config import gin_loader
from diffenc.config.experiment import Experiment
from diffenc.core.discretization import equal_steps
from diffenc.core.model import Model, bits_per_dim, draw_noise
from diffenc.core.objective import StepRule, continuous, discrete
from diffenc.errors import UserError
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.evaluation.uncertainty_format import round_to_error
from diffenc.files.user_paths import path_argument
from diffenc.interfaces import NO_CONTEXT, Context, Data, Encoder, Key, LogSNR, Params
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.console import exit_status, start_up
from diffenc.runtime.progress import Progress
from diffenc.workdir.config_check import CONFIG

CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")
PRODUCTS = ("dot_general", "conv_general_dilated")
# Both formats have float32's exponent, so that rounding changes the mantissa alone.
EXPONENT_BITS = 8
MANTISSA_BITS = {"tfloat32": 10, "bfloat16": 7}
ENCODER = "the_encoder"  # in the names of its operations

IsRounded = Callable[
    [str, bool], bool
]  # (names of an operation, at full precision) -> whether its factors are rounded

# The products of a float32 program that are rounded, by case.
CASES: dict[str, IsRounded] = {
    "held": lambda names, is_full: not is_full,
    "held but encoder": lambda names, is_full: not is_full or ENCODER in names,
    "held but network": lambda names, is_full: not is_full or ENCODER not in names,
    "none held": lambda names, is_full: True,
}


@dataclasses.dataclass(frozen=True)
class NamedEncoder:
    """An encoder with `ENCODER` in the names of its operations."""

    encoder: Encoder

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        return self.encoder.init(key, x, log_snr)

    def apply(self, params: Params, x: Data, log_snr: LogSNR, context: Context = NO_CONTEXT) -> Data:
        with jax.named_scope(ENCODER):
            return self.encoder.apply(params, x, log_snr, context)


def round_products(function: Callable[..., Any], bits: int, is_rounded: IsRounded) -> Callable[..., Any]:
    """Returns `function` with the factors of the chosen products rounded to `bits` of mantissa.

    Raises:
      NotImplementedError: a product is within a `while` loop or a branch.
    """

    def rounded(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), "", bits, is_rounded)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return rounded


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], names: str, bits: int, is_rounded: IsRounded
) -> list[Any]:
    """Evaluates a traced function, with the factors of its products rounded where `is_rounded`."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    for eqn in jaxpr.eqns:
        factors, own_names = list(map(read, eqn.invars)), f"{names}/{eqn.source_info.name_stack}"
        called = _called(eqn)
        if called is not None:
            outputs = _evaluate(called.jaxpr, called.consts, factors, own_names, bits, is_rounded)
        elif eqn.primitive.name == "scan":
            outputs = _scan(eqn.params, factors, own_names, bits, is_rounded)
        else:
            if eqn.primitive.name in PRODUCTS and is_rounded(own_names, _is_full(eqn)):
                factors = [jax.lax.reduce_precision(factor, EXPONENT_BITS, bits) for factor in factors]
            outputs = eqn.primitive.bind(*factors, **eqn.params)
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _scan(
    params: dict[str, Any], inputs: Sequence[Any], names: str, bits: int, is_rounded: IsRounded
) -> list[Any]:
    """Evaluates a scan of these parameters, with the factors of the products in its body rounded where `is_rounded`."""
    body, num_consts, num_carry = params["jaxpr"], params["num_consts"], params["num_carry"]
    begin = num_consts + num_carry
    consts, carry, xs = inputs[:num_consts], inputs[num_consts:begin], inputs[begin:]

    def turn(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = _evaluate(body.jaxpr, body.consts, [*consts, *carry, *x], names, bits, is_rounded)
        return outputs[:num_carry], outputs[num_carry:]

    last, rows = jax.lax.scan(turn, list(carry), list(xs), params["length"], reverse=params["reverse"])
    return [*last, *rows]


def _called(eqn: Any) -> Any:
    """Returns the closed jaxpr that an equation merely calls; None for any other equation."""
    if eqn.primitive.name in CALLS:
        inner = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
        return inner if hasattr(inner, "consts") else jax.extend.core.ClosedJaxpr(inner, ())
    if eqn.primitive.name != "scan" and any(map(_has_product, jax.extend.core.jaxprs_in_params(eqn.params))):
        raise NotImplementedError(f"a product within {eqn.primitive.name}")
    return None


def _has_product(jaxpr: Any) -> bool:
    inner = (one for eqn in jaxpr.eqns for one in jax.extend.core.jaxprs_in_params(eqn.params))
    return any(eqn.primitive.name in PRODUCTS for eqn in jaxpr.eqns) or any(map(_has_product, inner))


def _is_full(eqn: Any) -> bool:
    precision = eqn.params["precision"]
    return jax.lax.Precision.HIGHEST in (precision if isinstance(precision, tuple) else (precision,))


@dataclasses.dataclass(frozen=True)
class Shift:
    """The shift of the bound in bits/dim.

    Attributes:
      mean: mean over images.
      mean_se: its standard error over images, with the same draws before and after.
      largest: largest absolute shift of one image.
    """

    mean: float
    mean_se: float
    largest: float


def measure_shifts(
    experiment: Experiment, workdir: Path, num_images: int, rules: dict[str, StepRule]
) -> Iterator[tuple[str, str, str, float, Shift]]:
    """Yields (rule, format, case, the bound in float32, shift) of the averaged parameters on test images.

    Raises:
      UserError: there is no run.
    """
    dataset, mesh = experiment.dataset, data_mesh()
    params, _ = restore_for_bound(experiment, workdir, mesh, None)
    source = dataset.source("test")
    batch = source.__getitems__(np.arange(min(num_images, len(source))))
    levels, condition = jnp.asarray(batch["image"]), experiment.model.conditioning(batch["label"])
    model: Any = dataclasses.replace(experiment.model, encoder=NamedEncoder(experiment.model.encoder))
    progress = Progress("bounds with rounded products", len(rules) * (1 + len(MANTISSA_BITS) * len(CASES)))
    for name, rule in rules.items():

        def bound(params: Params, rule: StepRule = rule) -> Float[Array, " images"]:
            return _bound(model, params, levels, condition, dataset.num_levels, rule)

        exact = np.asarray(jax.jit(bound)(params), np.float64)
        progress()
        for number_format, bits in MANTISSA_BITS.items():
            for case, is_rounded in CASES.items():
                rounded = jax.jit(round_products(bound, bits, is_rounded))(params)
                change = np.asarray(rounded, np.float64) - exact
                error = float(change.std(ddof=1) / np.sqrt(len(change)))
                shift = Shift(float(change.mean()), error, float(np.abs(change).max()))
                progress()
                yield name, number_format, case, float(exact.mean()), shift


def _bound(
    model: Model, params: Params, levels: Any, condition: Any, num_levels: int, rule: StepRule
) -> Float[Array, " images"]:
    """Returns -ELBO of each image in bits/dim, from one draw of its time and noise."""
    draws = draw_noise(jax.random.key(0), levels.shape)
    terms = model.elbo(params, levels, draws, num_levels=num_levels, condition=condition, step_rule=rule)
    return bits_per_dim(terms.total, levels[0].size)


def format_table(shifts: Sequence[tuple[str, str, str, float, Shift]]) -> Table:
    """Returns the shifts as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("T", "in float32", "factors", "products", "bits/dim move by", "at most, of one image")
    for column in columns:
        table.add_column(column, justify="left" if column in ("factors", "products") else "right")
    for rule, number_format, case, exact, shift in shifts:
        moved = str(round_to_error(shift.mean, shift.mean_se))
        table.add_row(rule, f"{exact:.4f}", number_format, case, moved, f"{shift.largest:.2g}")
    return table


def run_command(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.rounded_products", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", type=path_argument, required=True, help="of a trained run")
    parser.add_argument("--images", type=int, default=256, help="how many test images (default: 256)")
    parser.add_argument(
        "--num_timesteps", type=int, default=1000, help="T beside continuous time (default: 1000)"
    )
    args = parser.parse_args(argv)
    if args.images < 2 or args.num_timesteps < 1:
        raise UserError(f"--images={args.images} --num_timesteps={args.num_timesteps}: at least 2 and 1")
    start_up()
    experiment: Any = gin_loader.load_experiment([str(args.workdir / CONFIG)], [])
    rules = {"continuous": continuous, str(args.num_timesteps): discrete(equal_steps(args.num_timesteps))}
    Console().print(format_table(list(measure_shifts(experiment, args.workdir, args.images, rules))))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status(lambda: run_command(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
