"""Claims and verdicts: what each chapter found, stored in its executed notebook and gathered by the ledger.

A chapter ends by displaying a :class:`Claims` table. The same rows travel in the cell's output under a media type of
our own, so the ledger chapter reads them from the notebooks the reader sees: nothing is typed twice.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["MEDIA_TYPE", "VERDICTS", "Claim", "Claims", "read_claims"]

MEDIA_TYPE = "application/vnd.ncutils.claims+json"
VERDICTS = ("holds", "holds in part", "fails", "undecided")
SOURCES = ("paper", "inferred", "ours")


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        id: short and unique, e.g. ``"T3.1-nc1"`` or ``"F2-nc2-depth"``.
        claim: one sentence.
        source: ``"paper"`` (its abstract, captions, theorems), ``"inferred"`` (second-hand) or ``"ours"``.
        where: the chapter that checks it, e.g. ``"02"``.
        scale: what was run, e.g. ``"quick: 1,000 digits, 3 seeds, CPU"``.
        verdict: one of :data:`VERDICTS`; compute it, with :meth:`judge` for instance.
        numbers: the few numbers it rests on.
    """

    id: str
    claim: str
    source: str
    where: str
    scale: str
    verdict: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        for name, allowed in (("verdict", VERDICTS), ("source", SOURCES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}; got {getattr(self, name)!r}")

    @staticmethod
    def judge(holds: bool, partly: bool = False) -> str:
        """The verdict for a claim that holds, holds in part, or fails."""
        return VERDICTS[0] if holds else VERDICTS[1] if partly else VERDICTS[2]

    @staticmethod
    def decide(*found: tuple[float, float], below: float = float("inf"), above: float = float("-inf")) -> str:
        """The verdict on one or several results, each a number and its standard deviation over the runs.

        A result nearer to a threshold than its standard deviation is undecided. Of several, all must agree for
        ``holds``, ``fails`` or ``undecided``; where some hold the claim holds in part, where none does it is undecided.

        >>> Claim.decide((0.5, 0.1), below=0.8), Claim.decide((0.75, 0.1), below=0.8)
        ('holds', 'undecided')
        >>> Claim.decide((0.5, 0.1), (0.9, 0.0), below=0.8)
        'holds in part'
        """
        distances = [(min(below - value, value - above), spread) for value, spread in found]
        holds = [distance > 0 and distance >= spread for distance, spread in distances]
        fails = [not distance > 0 and not -distance < spread for distance, spread in distances]
        if all(fails):
            return VERDICTS[2]
        return VERDICTS[0] if all(holds) else VERDICTS[1] if any(holds) else VERDICTS[3]


class Claims(list):
    """A list of :class:`Claim` that shows as a table."""

    def __init__(self, claims: Iterable[Claim] = ()):
        super().__init__(claims)
        ids = [c.id for c in self]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"claim ids must be unique; more than once: {twice}")

    def to_frame(self):
        """One row per claim (pandas)."""
        import pandas as pd

        return pd.DataFrame([{**asdict(c), "numbers": _numbers(c)} for c in self])

    def __repr__(self) -> str:
        return "\n".join(f"[{c.id}] {c.claim} -> {c.verdict} ({_numbers(c)}; {c.scale})" for c in self)

    def _repr_mimebundle_(self, include=None, exclude=None):
        head = "".join(f"<th>{h}</th>" for h in ("id", "claim", "source", "where", "scale", "verdict", "numbers"))
        body = "".join(
            "<tr>"
            + "".join(
                f"<td style='text-align:left'>{html.escape(str(v))}</td>"
                for v in (c.id, c.claim, c.source, c.where, c.scale, c.verdict, _numbers(c))
            )
            + "</tr>"
            for c in self
        )
        return {
            "text/plain": repr(self),
            "text/html": f"<table class='claims'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
            MEDIA_TYPE: [{**asdict(c), "numbers": {k: _rounded(v) for k, v in c.numbers.items()}} for c in self],
        }


def read_claims(notebooks: Iterable[str | os.PathLike]) -> Claims:
    """Claims stored in executed notebooks, in their order.

    Raises:
        ValueError: a notebook that is missing, unreadable, or holds no claims.
    """
    claims = []
    for path in map(Path, notebooks):
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a readable executed notebook ({error})") from error
        found = [
            Claim(**row)
            for cell in cells
            for output in cell.get("outputs", ())
            for row in output.get("data", {}).get(MEDIA_TYPE, ())
        ]
        if not found:
            raise ValueError(f"{path}: holds no claims; execute it first (`make notebooks`)")
        claims += found
    return Claims(claims)


def _rounded(value: float, digits: int = 2) -> float:
    return float(f"{float(value):.{digits}g}")


def _numbers(claim: Claim) -> str:
    return ", ".join(f"{name} {_rounded(value):g}" for name, value in claim.numbers.items())
