"""What every writer keeps."""

import pytest

from diffenc import registry
from diffenc.interfaces import Writer


@pytest.mark.parametrize("name", list(registry.writers))
def test_it_is_made_without_arguments_and_compares_by_value(name):
    made = registry.writers[name]()
    assert isinstance(made, Writer)
    assert made == registry.writers[name]()
    assert hash(made) == hash(registry.writers[name]())
