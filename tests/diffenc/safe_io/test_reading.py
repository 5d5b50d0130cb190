import pytest

from diffenc.errors import UserError
from diffenc.safe_io import reading


def test_reading_makes_one_line_of_any_error():
    with pytest.raises(UserError) as caught, reading.convert_errors("some.gz"):
        raise KeyError("first\nsecond")
    assert str(caught.value).startswith("some.gz: cannot be read")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^as it was$"), reading.convert_errors("some.gz"):
        raise UserError("as it was")
    with pytest.raises(KeyboardInterrupt), reading.convert_errors("some.gz"):
        raise KeyboardInterrupt
