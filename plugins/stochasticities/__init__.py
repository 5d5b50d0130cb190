"""Stochasticities: how noisy the forward path is, at given marginals."""

from diffenc_plugins.stochasticities.builtin import Constant, Markov, Nontrainable
from diffenc_plugins.stochasticities.learned import Learned

__all__ = ["Constant", "Learned", "Markov", "Nontrainable"]
