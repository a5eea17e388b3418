"""When a solve stops, and in which precision it runs; known to the command line before JAX is."""

from __future__ import annotations

import dataclasses
from typing import Literal

Precision = Literal["float64", "float32"]

#: Steps between two looks at a point: few at first, then a tenth of the steps so far.
FIRST_CHUNK = 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        tol: relative duality gap to reach.
        residual: relative norm of the projected gradient to reach as well, because the geometry is only as
            exact as the square root of the gap.
        stationary: residual below which no further progress is possible in this precision.
        max_steps: step limit.
    """

    tol: float
    residual: float
    stationary: float
    max_steps: int

    def chunk(self, steps: int) -> int:
        """Return how many steps to take before the next look, after ``steps`` of them: an even number or all."""
        return min(max(FIRST_CHUNK, steps // 20 * 2), self.max_steps - steps)
