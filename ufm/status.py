"""How a run ended: one value, one actionable sentence each."""

from __future__ import annotations

import enum


class Status(enum.StrEnum):
    """Why the solver stopped. Only `ufm.certificate` decides about ``certified``."""

    CERTIFIED = "certified"
    MAX_STEPS = "max_steps"
    STALLED = "stalled"
    NO_CERTIFICATE = "no_certificate"
    NONFINITE = "nonfinite"

    @property
    def sentence(self) -> str:
        """What the status means and what to do next."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CERTIFIED: "The duality gap proves that this is the global optimum to the tolerance asked for.",
    Status.MAX_STEPS: "The step limit came first; raise max_steps, or start again from this solution.",
    Status.STALLED: (
        "No step and no escape move improves the point, yet the gap is open: with dim < K the bound need not be "
        "attained (raise dim to at least K); otherwise tol is below what this precision can show."
    ),
    Status.NO_CERTIFICATE: (
        "The loss is not convex, so no bound exists: this is a stationary point, compare several seeds."
    ),
    Status.NONFINITE: "The iterates overflowed; lower the learning rate, or use the default solver in float64.",
}
