import pytest

from diffenc.config.figure_settings import Figures
from diffenc.errors import UserError


def test_the_defaults_are_the_papers():
    """Fig. 6: t = 0.1, ..., 1.0 and s = t - 0.1."""
    assert Figures().times == tuple(k / 10 for k in range(1, 11))
    assert Figures().gap == 0.1


@pytest.mark.parametrize(
    ("change", "key"),
    [({"times": ()}, "times"), ({"times": (0.5, 0.4)}, "times"), ({"times": (0.5, 0.5)}, "times"),
     ({"times": (0.5, 1.1)}, "times"), ({"gap": 0.0}, "gap"), ({"gap": 0.2}, "gap"), ({"split": "all"}, "split"),
     ({"num_images": 1}, "num_images"), ({"num_images": 0}, "num_images"), ({"seed": -1}, "seed")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change, key):
    with pytest.raises(UserError, match=rf"^figures\.{key} = "):
        Figures(**change)


def test_the_gap_may_reach_to_zero():
    assert Figures(times=(0.3, 0.6), gap=0.3).gap == 0.3
