"""The names that `diffenc` exports, and the script in docs/using.md that needs no others."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import diffenc
from diffenc.cli.run import MODES
from diffenc.evaluation import commands
from diffenc.training import loop

ROOT = Path(__file__).parents[2]


def test_every_name_is_what_type_checkers_take_it_for():
    tree = ast.parse(Path(diffenc.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    checked = {}
    for node in block.body:
        assert isinstance(node, ast.Import | ast.ImportFrom)
        module = node.module if isinstance(node, ast.ImportFrom) else None
        checked |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
    assert set(checked) == set(diffenc.__all__) <= set(dir(diffenc))
    for name, (module, original) in checked.items():
        value = getattr(diffenc, name)
        if isinstance(value, ModuleType):
            assert value.__name__ == (f"{module}.{original}" if module else original)
        else:
            assert value is getattr(sys.modules[module], original)


def test_functions_are_those_of_the_modes():
    assert diffenc.train is loop.train
    assert (diffenc.evaluate, diffenc.sample) == (commands.evaluate, commands.sample)
    for name in set(MODES) & set(diffenc.__all__):
        module, _, function = MODES[name].function.partition(":")
        assert getattr(diffenc, name) is getattr(sys.modules[module], function)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'diffenc' has no attribute 'trian'"):
        diffenc.trian  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]


def test_an_import_gives_the_function_and_not_a_module():
    code = "from diffenc import train, evaluate, sample, load; print(*map(callable, [train, evaluate, sample, load]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4


def test_a_training_script_is_short():
    """At most 15 lines, with at most two imports."""
    text = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
    (script,) = [block for block in text.split("```python\n")[1:] if "train(" in block]
    lines = [line for line in script.partition("```")[0].splitlines() if line.strip()]
    imports = [
        node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(lines) <= 15
    assert len(imports) <= 2
    assert "evaluate(" in script


def test_an_experiment_of_a_file_needs_one_argument():
    assert diffenc.load_experiment("gin/quickstart.gin").seed == 0
    assert diffenc.load_experiment("gin/quickstart.gin", "Experiment.seed = 3").seed == 3
    assert diffenc.load_experiment(["gin/quickstart.gin"], ["Experiment.seed = 3"]).seed == 3


def test_load_refuses_what_is_no_path():
    """In a process of its own, for these tests check the types of arguments before the function does."""
    done = subprocess.run(
        [sys.executable, "-c", "import diffenc; diffenc.load(None)"], capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1].startswith(
        "diffenc.errors.UserError: path = None: must be the path of a workdir"
    )


def test_every_settings_class_of_an_experiment_is_exported():
    fields = inspect.signature(diffenc.Experiment).parameters.values()
    settings = {
        type(field.default)
        for field in fields
        if type(field.default).__module__.startswith("diffenc.config.")
    }
    assert settings == {getattr(diffenc, cls.__name__) for cls in settings}
    assert len(settings) == 11
