"""Exact confidence interval of a probability from independent draws."""

from __future__ import annotations

import math

import numpy as np


def binomial_interval(hits: int, draws: int, tail: float) -> tuple[float, float]:
    """Return the Clopper-Pearson interval: the rates under which neither ``>= hits`` nor ``<= hits`` is too rare.

    Args:
        hits: number of successes.
        draws: number of draws.
        tail: what too rare means: below this probability.

    Source: Clopper and Pearson, Biometrika 1934.

    Example:
        >>> [round(end, 4) for end in binomial_interval(5, 10, 0.025)]
        [0.1871, 0.8129]
    """

    def lowest(hits: int) -> float:
        n = np.arange(hits, min(draws, hits + 10 * math.isqrt(draws) + 100) + 1)  # beyond: below 1e-80
        ways = np.array([-math.lgamma(m + 1) - math.lgamma(draws - m + 1) for m in n.tolist()])
        low, high = 0.0, hits / draws
        while high - low > 1e-12 * high:
            p = (low + high) / 2
            logs = math.lgamma(draws + 1) + ways + n * math.log(p) + (draws - n) * math.log1p(-p)
            low, high = (p, high) if np.exp(logs).sum() < tail else (low, p)
        return low

    return lowest(hits), 1 - lowest(draws - hits)
