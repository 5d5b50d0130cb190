"""Grids: what is read from them, what they are called, and what is refused."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffenc.errors import UserError
from diffenc.tools.sweep.sweep import parse_pairs
from diffenc.tools.sweep.variants import MAX_NAME_LENGTH, Grid, Variant, make_variants, parse_grid

PLAIN = st.one_of(
    st.integers().map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text().map(repr),
    st.sampled_from(["@encoder.identity()", "@train/generative_mean.vdm()", "%LOG_SNR_MAX", "None", "True"]),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(inner, min_size=2, max_size=3).map(lambda items: f"({','.join(items)})"),
        st.lists(inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"'k{n}': {item}" for n, item in enumerate(items)) + "}"
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=50)
@given(
    st.lists(VALUES, min_size=1, max_size=5),
    st.sampled_from([",", ", ", " ,\n    ", ",\n", "\n\t , "]),
    st.booleans(),
)
def test_values_are_what_stands_between_the_outermost_commas(values, separator, last):
    text = f"a.b = [{separator.join(values)}{separator if last else ''}]"
    assert parse_grid(text) == Grid(("a.b",), tuple((value,) for value in values))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=3), st.sampled_from([", ", ",\n  "]))
def test_rows_bind_their_names_together(rows, separator):
    text = separator.join(f"({first}, {second})" for first, second in rows)
    assert parse_grid(f"a.b, c = [{text}]") == Grid(("a.b", "c"), tuple(rows))


@given(st.text(), st.sampled_from(["{}", "a = {}", "a = [{}]", "a, b = [({})]"]))
def test_whatever_is_written_is_read_or_refused_in_a_line(text, frame):
    said = None
    try:
        grid = parse_grid(frame.replace("{}", text))
    except UserError as error:
        said = str(error)
    else:
        assert grid.values
        assert {len(row) for row in grid.values} == {len(grid.names)}
    assert said is None or re.fullmatch("--grid=.*", said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", r"not of the form NAME = \[VALUE"),
        ("= [1]", "not of the form NAME"),
        ("a, = [(1, 2)]", "not of the form NAME"),
        ("a = 1", r"1 must be enclosed in \[\]"),
        ("a = (1, 2)", r"must be enclosed in \[\]"),
        ("a = [1, 2", r"must be enclosed in \[\]"),
        ("a = []", "no values"),
        ("a = [ ]", "no values"),
        ("a = [,]", "nothing between"),
        ("a = [1,,2]", "nothing between"),
        ("a = [1], [2]", r"unexpected \]"),
        ("a = [1)]", r"unexpected \)"),
        ("a = [(1, 2]", "EOF"),
        ("a = [1, # two\n 3]", "unexpected # two  3"),
        ("a = ['x, 'y']", "'"),
        ("a, b = [1, 2]", r"1 must be enclosed in \(\)"),
        ("a, b = [(1, 2), (3,)]", r"2 names, but \(3\)"),
        ("a, b = [(1, 2, 3)]", r"2 names, but \(1, 2, 3\)"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(UserError, match=f"--grid=.*{said}"):
        parse_grid(text)


def test_the_product_of_the_grids_over_what_is_given():
    grids = [parse_grid("x.a = [1, 2]"), parse_grid("y.b, z.c = [(3, 4), (5, 6), (7, 8)]")]
    made = make_variants(["f.gin", "g.gin"], ["x.d = 0"], grids, "unused")
    want = [
        Variant(
            f"a={a},b={b},c={c}", ("f.gin", "g.gin"), ("x.d = 0", f"x.a = {a}", f"y.b = {b}", f"z.c = {c}")
        )
        for a, (b, c) in itertools.product((1, 2), ((3, 4), (5, 6), (7, 8)))
    ]
    assert made == want


def test_without_grids_there_is_one_by_the_given_name():
    assert make_variants(["f.gin"], ["a = 1"], [], "f") == [Variant("f", ("f.gin",), ("a = 1",))]


def names(*grids: str) -> list[str]:
    return [variant.name for variant in make_variants([], [], [parse_grid(grid) for grid in grids], "f")]


@pytest.mark.parametrize(
    ("grid", "want"),
    [
        ("network.encoder_unet.blocks = [1, 16]", ["blocks=1", "blocks=16"]),
        ("Model.encoder = [@encoder.identity(), @eval/encoder.trainable]", ["encoder=identity", "encoder=trainable"]),
        ("a.rate = [1e-3, -.5, +2]", ["rate=1e-3", "rate=-.5", "rate=+2"]),
        ("a.act = ['tanh', \"re lu\", None]", ["act=tanh", "act=re_lu", "act=None"]),
        ("a.powers = [(2, 3), [4], %MACRO]", ["powers=2_3", "powers=4", "powers=MACRO"]),
        ("a.folder = ['../x/y', '']", ["folder=.._x_y", "folder="]),
        ("eval/STEPS = [1]", ["eval_STEPS=1"]),
    ],
)  # fmt: skip
def test_names_of_folders(grid, want):
    assert names(grid) == want


def test_fields_of_the_same_name_are_told_apart():
    assert names("n.unet.blocks, n.other.blocks, n.c = [(1, 2, 3)]") == [
        "n.unet.blocks=1,n.other.blocks=2,c=3"
    ]


@given(
    st.text(min_size=1, max_size=8), st.text(max_size=8)
)  # escaped, ten letters each: below MAX_NAME_LENGTH
def test_any_file_system_takes_them(name, value):
    (variant,) = make_variants([], [], [Grid((f"a.{name}",), ((repr(value),),))], "f")
    assert re.fullmatch(r"[A-Za-z0-9_.+-]*=[A-Za-z0-9_.+-]*", variant.name)


@pytest.mark.parametrize(
    ("grids", "said"),
    [
        (["a.b = [1]", "a.b = [2]"], "binds a.b 2 times"),
        (["a.b, a.b = [(1, 2)]"], "binds a.b 2 times"),
        (["a.b = [1, 2, 1]"], "2 variants would share the folder b=1"),
        (["a.b = ['x y', 'x_y']"], "2 variants would share the folder b=x_y"),
        ([f"a.b = ['{'x' * MAX_NAME_LENGTH}']"], "too long for a folder name"),
    ],
)
def test_grids_that_do_not_go_together(grids, said):
    with pytest.raises(UserError, match=f"--grid.*{said}"):
        names(*grids)


def test_the_longest_name_is_taken():
    (name,) = names(f"a.b = ['{'x' * (MAX_NAME_LENGTH - 2)}']")
    assert len(name) == MAX_NAME_LENGTH


def test_each_file_of_a_variant_stacks_on_all_and_multiplies_with_the_grids():
    grids = [parse_grid("a.b = [1, 2]")]
    made = make_variants(["base.gin"], ["c = 0"], grids, "base", ["arms/one.gin", "arms/two.gin"])
    assert made[0] == Variant("one,b=1", ("base.gin", "arms/one.gin"), ("c = 0", "a.b = 1"))
    assert [variant.name for variant in made] == ["one,b=1", "one,b=2", "two,b=1", "two,b=2"]
    alone = make_variants(["base.gin"], [], [], "base", ["arms/one.gin"])
    assert alone == [Variant("one", ("base.gin", "arms/one.gin"))]
    with pytest.raises(UserError, match=r"2 variants would share the folder one: .*rename a file"):
        make_variants(["base.gin"], [], [], "base", ["arms/one.gin", "legs/one.gin"])


def test_pairs_are_those_named_or_each_with_the_first():
    names = ["one", "two,b=1", "three"]
    assert parse_pairs([], names) == [("two,b=1", "one"), ("three", "one")]
    assert parse_pairs(["three,two,b=1"], names) == [("three", "two,b=1")]
    for text in ("three", "three,four", "one,one"):
        with pytest.raises(
            UserError, match=rf"--compare={text}: must be two of the variants one two,b=1 three"
        ):
            parse_pairs([text], names)
    with pytest.raises(
        UserError, match=r"--compare=x,y,z: can be x with y,z or x,y with z; rename a --variant"
    ):
        parse_pairs(["x,y,z"], ["x", "x,y", "z", "y,z"])
