"""Every numbered statement of the theory as a function that returns a :class:`Check`, in float64."""

from ncutils.theory.checks import Check, Hypothesis, to_frame

__all__ = [
    "Check",
    "Hypothesis",
    "to_frame",
]
