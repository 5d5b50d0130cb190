import ast
from collections.abc import Sequence
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffenc.fields.values import coerce, format_type, format_value, leaf_values


@pytest.mark.parametrize(
    ("value", "hint", "held"),
    [
        (13, float, 13.0),
        (1.5, float, 1.5),
        (3, int, 3),
        (True, bool, True),
        (None, int | None, None),
        (2, int | None, 2),
        (2, float | None, 2.0),
        (2, Optional[float], 2.0),  # noqa: UP045
        (2, float | int, 2),
        ("test", str, "test"),
        ("a", Literal["a", "b"], "a"),
        ([6, 7], tuple[int, ...], (6, 7)),
        ((6, 7), tuple[float, ...], (6.0, 7.0)),
        ([], tuple[int, ...], ()),
        ([1, "a"], tuple[float, str], (1.0, "a")),
        (((1, 2), [3]), tuple[tuple[float, ...], ...], ((1.0, 2.0), (3.0,))),
        ([1, 2], list[float], [1.0, 2.0]),
        ([1, 2], tuple, (1, 2)),
        ([1, 2], Sequence[float], (1.0, 2.0)),
        ({"a": [1]}, dict[str, tuple[float, ...]], {"a": (1.0,)}),
        ({"a": 1}, dict[str, int], {"a": 1}),
        (3, Any, 3),
    ],
)
def test_a_value_that_fits_is_held_as_the_hint_says(value, hint, held):
    result = coerce(value, hint)
    assert repr(result) == repr(held)  # 13 == 13.0, but their spelling tells them apart


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("a", float, "float"),
        (True, float, "float"),
        (float("nan"), float, "a finite float"),
        (float("inf"), float, "a finite float"),
        (-(10**400), float, "a finite float"),
        (True, int, "int"),
        (1e6, int, "int"),
        (1, bool, "bool"),
        (True, int | None, "int | None"),
        (1, str, "str"),
        (None, float, "float"),
        ("c", Literal["a", "b"], r"Literal['a', 'b']"),
        (6, tuple[int, ...], "tuple[int, ...]"),
        ([6, True], tuple[int, ...], "tuple[int, ...]"),
        ([6], tuple[int, int], "tuple[int, int]"),
        ({"a": "b"}, dict[str, int], "int"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(value, hint, expected):
    with pytest.raises(TypeError) as error:
        coerce(value, hint)
    assert str(error.value) == f"expected {expected}"


def test_what_is_not_a_literal_passes():
    plugin = object()
    assert coerce(plugin, float) is plugin
    assert coerce([plugin], tuple[float, ...]) == (plugin,)


LITERAL = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(LITERAL)
def test_spelling_is_read_back_as_the_same_value(value):
    assert repr(ast.literal_eval(format_value(value))) == repr(value)


def test_parts_are_what_is_not_a_container():
    assert list(leaf_values([1, (2, {"a": [3]}), "bc"])) == [1, 2, "a", 3, "bc"]


def test_hints_are_spelled_as_written():
    assert [format_type(hint) for hint in (int, int | None, Optional[int], tuple[float, ...])] == [  # noqa: UP045
        "int",
        "int | None",
        "Optional[int]",
        "tuple[float, ...]",
    ]
