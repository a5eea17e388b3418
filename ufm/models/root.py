"""Roots of increasing functions that are expensive to evaluate."""

from __future__ import annotations

import math

import numpy as np


class Root:
    """Where an increasing function crosses zero: ask for `next`, answer with `tell`.

    Growing steps find a bracket; then the secant through its ends, the value at an end that stays being
    reduced by the rule of Anderson and Bjorck (BIT 13, 1973) so that both ends move.

    Example:
        >>> root = Root(first=1.0, step=0.5)
        >>> while not root.width <= 1e-12 and abs(root.last) != 0:
        ...     root.tell(root.next**3 - 2)
        >>> round(root.next, 9)
        1.25992105
    """

    def __init__(self, first: float, step: float) -> None:
        self.next, self.step, self.evaluations, self.last = first, step, 0, math.nan
        self.low: tuple[float, float] | None = None
        self.high: tuple[float, float] | None = None

    @property
    def width(self) -> float:
        """Length of the bracket."""
        return math.inf if self.low is None or self.high is None else self.high[0] - self.low[0]

    @property
    def finished(self) -> bool:
        """Whether floating-point numbers cannot tell the ends of the bracket apart."""
        return bool(self.width <= 4 * np.finfo(np.float64).eps * abs(self.next))

    def tell(self, value: float) -> None:
        """Take the function's value at `next`, and choose the next point."""
        if value == 0:
            self.low = self.high = (self.next, value)
            self.evaluations, self.last = self.evaluations + 1, value
            return
        share = value / self.last  # positive if the same end of the bracket moves again
        shrink = 1 - share if 0 < share < 1 else 0.5
        if value > 0:
            self.high = (self.next, value)
            if share > 0 and self.low is not None:
                self.low = (self.low[0], self.low[1] * shrink)
        else:
            self.low = (self.next, value)
            if share > 0 and self.high is not None:
                self.high = (self.high[0], self.high[1] * shrink)
        self.evaluations, self.last = self.evaluations + 1, value
        if self.low is None or self.high is None:
            self.next -= math.copysign(self.step, value)
            self.step *= 3
            return
        (left, below), (right, above) = self.low, self.high
        self.next = (left * above - right * below) / (above - below)
