"""How a run ended: one value, one actionable sentence each."""

from __future__ import annotations

import enum


class Status(enum.StrEnum):
    """Why the solver stopped; ``sentence`` says what it means and what to do.

    Only the certificate decides about ``certified``: that the relative duality gap ``(P - D)/P`` is at most ``tol``.

    Example:
        >>> str(Status.MAX_STEPS), Status("certified") is Status.CERTIFIED
        ('max_steps', True)
    """

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
        "No step and no escape move (if allowed) improves the point, yet the gap is open: the point may be the "
        "optimum and the bound not attained (always possible with dim < K; with dim >= K where classes share "
        "directions), or tol is below what this precision can show."
    ),
    Status.NO_CERTIFICATE: (
        "This is a stationary point, but the loss is not convex: its lower bound need not be attained, and the gap "
        "stays open here; compare several seeds."
    ),
    Status.NONFINITE: "The iterates overflowed; lower the learning rate, or use the default solver in float64.",
}
