"""What a checked statement is: hypotheses with their values, a measured number and the bound it respects."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["COLUMNS", "RELATIVE_TOLERANCE", "Check", "Hypothesis", "to_frame"]

# Both sides of a check come out of float64 linear algebra. An inequality that is attained (a balanced head, an
# identity) may miss by rounding; this much, relative to the larger side, is forgiven and nothing more.
RELATIVE_TOLERANCE = 1e-9

COLUMNS = ("statement", "quantity", "form", "measured", "bound", "sense", "hypotheses_met", "holds")

_SENSES = ("<=", ">=", "<", ">", "==")
_FORMS = ("paper", "simple", "sharp", "exact")
_SIGNS = {"<=": "≤", ">=": "≥", "<": "<", ">": ">", "==": "="}


def _number(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return {"nan": "undefined", "inf": "∞", "-inf": "−∞"}[str(value)]
    return f"{value:.4g}"


def _as_float(value) -> float:
    return value if isinstance(value, float) else float(value)


@dataclass(frozen=True)
class Hypothesis:
    """One condition of a statement: ``value sense threshold``.

    Attributes:
        name: what is compared, for example ``"‖E‖_F < s_K(Y)"``.
        value: the measured left side.
        threshold: the right side.
        sense: one of ``"<=", ">=", "<", ">"``; compared exactly, without tolerance.
    """

    name: str
    value: float
    threshold: float
    sense: str

    def __post_init__(self):
        if self.sense not in _SENSES[:4]:
            raise ValueError(f"sense: got {self.sense!r}, expected one of {_SENSES[:4]}")
        object.__setattr__(self, "value", _as_float(self.value))
        object.__setattr__(self, "threshold", _as_float(self.threshold))

    @property
    def holds(self) -> bool:
        """Whether the condition is met; a NaN on either side never meets it."""
        return {
            "<=": self.value <= self.threshold,
            ">=": self.value >= self.threshold,
            "<": self.value < self.threshold,
            ">": self.value > self.threshold,
        }[self.sense]

    def __str__(self) -> str:
        mark = "met" if self.holds else "NOT met"
        return f"{self.name}: {_number(self.value)} {_SIGNS[self.sense]} {_number(self.threshold)} ({mark})"


@dataclass(frozen=True)
class Check:
    """A statement evaluated on one network: is ``measured sense bound`` true, given the hypotheses?

    Attributes:
        statement: the statement's number, for example ``"Theorem 3.1 (NC1)"``.
        quantity: what is bounded, for example ``"nc1"``.
        form: ``"paper"``, ``"simple"``, ``"sharp"`` or ``"exact"`` (an identity).
        hypotheses: the conditions under which the statement says anything.
        measured: the left side.
        bound: the right side; infinite or NaN where the statement leaves it undefined.
        sense: ``"<="``, ``">="`` or ``"=="``.
        tolerance: slack relative to the larger side, for rounding only.
        rounding: absolute slack, the size of a difference of float64 numbers that would be 0 in exact arithmetic.
    """

    statement: str
    quantity: str
    form: str
    hypotheses: tuple[Hypothesis, ...]
    measured: float
    bound: float
    sense: str
    tolerance: float = RELATIVE_TOLERANCE
    rounding: float = 0.0

    def __post_init__(self):
        if self.form not in _FORMS:
            raise ValueError(f"form: got {self.form!r}, expected one of {_FORMS}")
        if self.sense not in ("<=", ">=", "=="):
            raise ValueError(f"sense: got {self.sense!r}, expected '<=', '>=' or '=='")
        object.__setattr__(self, "hypotheses", tuple(self.hypotheses))
        object.__setattr__(self, "measured", _as_float(self.measured))
        object.__setattr__(self, "bound", _as_float(self.bound))
        object.__setattr__(self, "rounding", _as_float(self.rounding))

    @property
    def hypotheses_met(self) -> bool:
        return all(h.holds for h in self.hypotheses)

    @property
    def holds(self) -> bool | None:
        """``None`` when a hypothesis fails (the statement says nothing), else whether it came out true."""
        if not self.hypotheses_met:
            return None
        m, b = self.measured, self.bound
        if math.isnan(m) or math.isnan(b):
            return False
        finite = [abs(v) for v in (m, b) if math.isfinite(v)]
        slack = self.tolerance * max(finite, default=0.0) + self.rounding
        if self.sense == "<=":
            return m <= b + slack
        if self.sense == ">=":
            return m >= b - slack
        return m == b or abs(m - b) <= slack

    @property
    def ratio(self) -> float:
        """How much of the bound is used up: at most 1 exactly when the inequality holds, 1 when it is attained.

        The side that should be smaller over the side that should be larger (the other way round when the larger one
        is negative); NaN where a side is undefined.
        """
        small, large = (self.bound, self.measured) if self.sense == ">=" else (self.measured, self.bound)
        if math.isnan(small) or math.isnan(large):
            return math.nan
        if large > 0:
            return small / large if math.isfinite(small) or math.isfinite(large) else 1.0
        if small == large:
            return 1.0
        if large == 0:
            return 0.0 if small < 0 else math.inf
        return large / small if small < 0 else math.inf

    def row(self) -> dict:
        """The check as one row of :func:`to_frame`."""
        return {name: getattr(self, name) for name in COLUMNS}

    @property
    def verdict(self) -> str:
        return {None: "says nothing here", True: "holds", False: "VIOLATED"}[self.holds]

    def __str__(self) -> str:
        head = (
            f"{self.statement}, {self.form}: {self.quantity} = {_number(self.measured)} "
            f"{_SIGNS[self.sense]} {_number(self.bound)}: {self.verdict}"
        )
        return "\n".join([head, *(f"  {h}" for h in self.hypotheses)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(h.name)}</td><td>{_number(h.value)}</td>"
            f"<td>{html.escape(_SIGNS[h.sense])}</td><td>{_number(h.threshold)}</td>"
            f"<td>{'✓' if h.holds else '✗'}</td></tr>"
            for h in self.hypotheses
        )
        claim = (
            f"<tr><th>{html.escape(self.quantity)}</th><th>{_number(self.measured)}</th><th>{_SIGNS[self.sense]}</th>"
            f"<th>{_number(self.bound)}</th><th>{html.escape(self.verdict)}</th></tr>"
        )
        title = f"{html.escape(self.statement)} ({self.form} form)"
        return f"<table><caption>{title}</caption><tbody>{rows}{claim}</tbody></table>"


def to_frame(checks: Iterable[Check]):
    """Checks as a pandas ``DataFrame``, one row each, with the columns :data:`COLUMNS`."""
    import pandas as pd

    checks = checks if isinstance(checks, Sequence) else list(checks)
    frame = pd.DataFrame([c.row() for c in checks], columns=list(COLUMNS))
    # object, not bool: None ("the statement says nothing") must survive
    frame["holds"] = pd.Series([c.holds for c in checks], dtype=object)
    return frame
