"""What a command may not import: its start costs the processor time of what it uses, and of nothing else."""

import subprocess
import sys

import pytest

PLOTS = {"matplotlib", "PIL", "jinja2"}
NUMERICS = {"scipy", "sklearn", "diffrax"}
METRICS = {"clu", "tensorboardX", "tensorboard", "wandb"}
STORAGE = {"grain", "tensorstore", "array_record", "safetensors", "msgpack"}
JAX = {"jax", "haiku", "optax", "jaxtyping"}
PLUGINS = PLOTS | NUMERICS | METRICS | {"grain", "tensorstore", "beartype", "gin"}  # not of listing them
ALL = PLUGINS | STORAGE | JAX | {"rich"}

PROGRAM = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def imported_by(*command, cwd):
    """Returns the top-level packages that `python -m COMMAND` has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command], capture_output=True, text=True, cwd=cwd, check=True
    )
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        ("diffenc.run --help", ALL),
        ("diffenc.run --list", PLUGINS),
        ("diffenc.run --describe=encoder.trainable,evaluate", PLUGINS - {"beartype"}),
        ("diffenc.new --help", ALL),
        ("diffenc.new encoder my_blur --package=my_pack", ALL),
        ("diffenc.prepare --help", ALL),
        ("diffenc.report --help", ALL),
        ("diffenc.sweep --help", ALL),
        ("diffenc.tools.explore --help", ALL),
    ],
)
def test_a_command_imports_only_what_it_uses(command, forbidden, tmp_path):
    found = imported_by(*command.split(), cwd=tmp_path)
    assert "diffenc" in found
    assert sorted(found & forbidden) == []


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("diffenc", ALL | {"numpy"}),
        ("diffenc.cli.run_mode", PLOTS | NUMERICS | METRICS | {"grain", "rich"}),
        pytest.param("diffenc_plugins", PLUGINS, marks=pytest.mark.slow),
        pytest.param(
            "diffenc.training.loop", NUMERICS | {"matplotlib", "jinja2", "gin"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "diffenc.evaluation.commands",
            NUMERICS | METRICS | {"matplotlib", "jinja2", "gin"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "diffenc.evaluation.likelihood",
            METRICS | {"scipy", "sklearn", "matplotlib", "gin"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "diffenc.export.loading", NUMERICS | METRICS | {"matplotlib", "jinja2"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "diffenc.tools.planning.plan", NUMERICS | METRICS | PLOTS | {"gin"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "diffenc.tools.sweep.sweep", METRICS | PLOTS | {"sklearn", "diffrax"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "diffenc.data.prepare",
            NUMERICS | METRICS | {"matplotlib", "jinja2", "grain", "tensorstore"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_module_imports_only_what_it_uses(module, forbidden, tmp_path):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    found = {name.partition(".")[0] for name in done.stdout.split()}
    assert sorted(found & forbidden) == []
