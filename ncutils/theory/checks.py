"""What a checked statement is: hypotheses with their values, a measured number and the bound it respects."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ncutils._arguments import anything, checked, instance, many, number, scalar, table, text

__all__ = ["COLUMNS", "RELATIVE_TOLERANCE", "Check", "Hypothesis", "Tally", "bound_text", "tally", "to_frame"]

# Both sides of a check come out of float64 linear algebra. An inequality that is attained (a balanced head, an
# identity) may miss by rounding; this much, relative to the larger side, is forgiven and nothing more.
RELATIVE_TOLERANCE = 1e-9

COLUMNS = (
    "statement",
    "quantity",
    "form",
    "measured",
    "bound",
    "sense",
    "hypotheses_met",
    "holds",
    "vacuous",
    "violated",
)

_SENSES = ("<=", ">=", "<", ">", "==")
_FORMS = ("paper", "simple", "sharp", "exact")
_SIGNS = {"<=": "≤", ">=": "≥", "<": "<", ">": ">", "==": "="}


# Where a bound on a quantity excludes nothing that matters. A cosine is never below −1; a spread of the samples as
# large as that of the class means is no collapse; a float64 matrix with κ ≥ 1e12 counts as rank-deficient here.
VACUOUS_FROM = {"nc1": 1.0, "nc2": 1e12, "kappa_W_L": 1e12, "kappa_head": 1e12}
VACUOUS_FROM |= {f"log_{name}": math.log(VACUOUS_FROM[name]) for name in ("kappa_W_L", "kappa_head")}
VACUOUS_BELOW = {"nc3": -1.0}


def _plain(value: float | Tensor, name: str = "value") -> float:
    value = value.detach() if isinstance(value, Tensor) else value
    number()(name, scalar(value))
    return float(value)


def _number(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return {"nan": "undefined", "inf": "∞", "-inf": "−∞"}[str(value)]
    return f"{value:.4g}"


@dataclass(frozen=True, init=False)
class Hypothesis:
    """One condition of a statement: ``value sense threshold``.

    Attributes:
        name: what is compared, for example ``"‖E‖_F < s_K(Y)"``.
        value: the measured left side.
        threshold: the right side.
        sense: one of ``"<=", ">=", "<", ">"``; compared exactly, without tolerance.

    Example:
        >>> print(Hypothesis("rank W_L = K", 0.5, 1e-12, ">"))
        rank W_L = K: 0.5 > 1e-12 (met)
    """

    name: str
    value: float
    threshold: float
    sense: str

    def __init__(self, name: str, value: float | Tensor, threshold: float | Tensor, sense: str):
        if sense not in _SENSES[:4]:
            raise ValueError(f"sense must be one of {_SENSES[:4]}; got {sense!r}")
        text("name", name)
        value, threshold = _plain(value, "value"), _plain(threshold, "threshold")
        self.__dict__.update(name=name, value=value, threshold=threshold, sense=sense)

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


@dataclass(frozen=True, init=False)
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

    >>> check = Check("Theorem 3.1 (NC3)", "nc3", "simple", (), 0.98, -47.0, ">=")
    >>> check.holds, check.vacuous, check.violated
    (True, True, False)
    >>> print(check)
    Theorem 3.1 (NC3), simple: nc3 = 0.98 ≥ -47: holds, but the bound is vacuous
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

    def __init__(
        self,
        statement: str,
        quantity: str,
        form: str,
        hypotheses: Iterable[Hypothesis],
        measured: float | Tensor,
        bound: float | Tensor,
        sense: str,
        tolerance: float = RELATIVE_TOLERANCE,
        rounding: float | Tensor = 0.0,
    ):
        if form not in _FORMS:
            raise ValueError(f"form must be one of {_FORMS}; got {form!r}")
        if sense not in ("<=", ">=", "=="):
            raise ValueError(f"sense must be '<=', '>=' or '=='; got {sense!r}")
        text("statement", statement)
        text("quantity", quantity)
        many(instance("Hypothesis"))("hypotheses", hypotheses)
        self.__dict__.update(statement=statement, quantity=quantity, form=form, hypotheses=tuple(hypotheses))
        self.__dict__.update(measured=_plain(measured, "measured"), bound=_plain(bound, "bound"), sense=sense)
        slack = {"tolerance": _plain(tolerance, "tolerance"), "rounding": _plain(rounding, "rounding")}
        for name, value in slack.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0; got {value}")
        self.__dict__.update(slack)

    @property
    def hypotheses_met(self) -> bool:
        """Whether the statement says anything; under an infinite slack, which compares nothing, it does not."""
        return all(h.holds for h in self.hypotheses) and math.inf not in (self.tolerance, self.rounding)

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
    def silent(self) -> bool:
        """Whether a hypothesis fails, so that the statement says nothing."""
        return not self.hypotheses_met

    @property
    def violated(self) -> bool:
        """Whether the hypotheses are met and the claim is false, or not a number."""
        return self.holds is False

    @property
    def vacuous(self) -> bool:
        """Whether the hypotheses are met and the bound excludes nothing: NC3 ≥ −47, NC1 ≤ 300, κ ≤ 1e14, x ≤ ∞.

        The limits are −1 for NC3, 1 for NC1, 1e12 for κ and NC2, and 0 for a floor under anything else.
        """
        if self.silent or self.sense == "==":
            return False
        quantity = re.sub(r"_\d+$", "", self.quantity)  # "nc1_2" is NC1 at another layer
        if self.sense == ">=":
            return self.bound <= VACUOUS_BELOW.get(quantity, 0.0)
        return self.bound >= VACUOUS_FROM.get(quantity, math.inf)

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
        if self.holds and self.vacuous:
            return "holds, but the bound is vacuous"
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


@dataclass(frozen=True)
class Tally:
    """How many checks said something, how many did not, and how many came out false; see :func:`tally`.

    Attributes:
        spoke: hypotheses met and a bound that excludes something, or a violation.
        silent: a hypothesis fails.
        vacuous: hypotheses met, but the bound excludes nothing.
        violated: how many of those that spoke are false.

    Example:
        >>> Tally(spoke=3, silent=1, vacuous=0, violated=0).sound
        True
    """

    spoke: int
    silent: int
    vacuous: int
    violated: int

    @property
    def sound(self) -> bool:
        """Whether something was said and none of it is false; checks that said nothing are no evidence."""
        return self.spoke > 0 and self.violated == 0

    def __str__(self) -> str:
        return f"{self.violated} violated of {self.spoke} that speak ({self.silent} silent, {self.vacuous} vacuous)"


@checked(checks=anything)
def tally(checks) -> Tally:
    """Count what checks said.

    Args:
        checks: :class:`Check` objects, or a frame with the columns of :func:`to_frame`.

    >>> checks = [Check("S", "nc1", "sharp", (), 0.1, bound, "<=") for bound in (0.2, 0.05, 300.0)]
    >>> print(tally(checks))
    1 violated of 2 that speak (0 silent, 1 vacuous)
    """
    if hasattr(checks, "columns"):
        table("hypotheses_met", "vacuous", "violated")("checks", checks)
        rows = list(zip(checks["hypotheses_met"], checks["vacuous"], checks["violated"], strict=True))
    else:
        many(instance("Check"))("checks", checks)
        rows = [(check.hypotheses_met, check.vacuous, check.violated) for check in checks]
    silent = sum(not met for met, _, _ in rows)
    vacuous = sum(bool(empty and not violated) for _, empty, violated in rows)
    return Tally(len(rows) - silent - vacuous, silent, vacuous, sum(bool(violated) for _, _, violated in rows))


@checked()
def bound_text(value: float, floor: float = 1e-12) -> str:
    """A number for print: four digits, or ``"below 1e-12"`` where float64 rounding is all that is left.

    >>> bound_text(0.0123456), bound_text(3e-27), bound_text(float("inf"))
    ('0.01235', 'below 1e-12', '∞')
    """
    return f"below {floor:g}" if abs(value) < floor else _number(float(value))


@checked()
def to_frame(checks: Iterable[Check]):
    """Checks as a pandas ``DataFrame``, one row each, with the columns :data:`COLUMNS`.

    ``holds`` is None where a hypothesis fails; ``violated`` and ``vacuous`` are True or False throughout.

    Example:
        >>> frame = to_frame([Check("S", "nc1", "sharp", (), 0.1, 0.2, "<=")])
        >>> frame[["quantity", "holds", "violated"]].values.tolist()
        [['nc1', True, False]]
    """
    import pandas as pd

    checks = checks if isinstance(checks, Sequence) else list(checks)
    frame = pd.DataFrame([c.row() for c in checks], columns=list(COLUMNS))
    # object, not bool: None ("the statement says nothing") must survive
    frame["holds"] = pd.Series([c.holds for c in checks], dtype=object)
    return frame
