"""The ledger: every claim of the book in one summary, one picture, one table.

Claims themselves live in :mod:`ncutils.claims`; its names can be had here too.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .claims import (
    AS_PREDICTED,
    FAILS,
    HOLDS,
    IN_PART,
    MEDIA_TYPE,
    SOURCES,
    TOY,
    UNDECIDED,
    VERDICTS,
    Claim,
    Claims,
    read_claims,
)

__all__ = [
    "MARKS",
    "MEDIA_TYPE",
    "ROWS",
    "VERDICTS",
    "Claim",
    "Claims",
    "excess",
    "full_table",
    "in_one_line",
    "nearest",
    "read_claims",
    "row_of",
    "strip_chart",
    "summary",
]

#: A sign for each verdict, so that nothing is said by colour alone.
MARKS = {HOLDS: "✓", IN_PART: "◐", AS_PREDICTED: "✗ᵖ", FAILS: "✗", UNDECIDED: "?", TOY: "toy"}
COLOURS = {HOLDS: "#0173b2", IN_PART: "#56b4e9", AS_PREDICTED: "#949494", FAILS: "#d55e00", UNDECIDED: "#de8f05"}
COLOURS[TOY] = "#949494"

#: Of each row of the summary: name, what it says, chapter, and which ids belong to it.
ROWS = (
    ("Theorem 3.1", "Low error, balance and conditioning of a linear head force NC1, NC2 and NC3.", "02", r"[TL]3\.1"),
    ("Theorem 4.4", "Gradient descent with weight decay fits, then balances, and so collapses.", "03", r"[TPL]4|C4"),
    ("Theorem 5.2", "Nearly optimal weights have a well conditioned head.", "04", r"[TPL]5(?!\.3)"),
    ("Proposition 5.3", "So have weights that are stable under a large step.", "05", r"[PL]5\.3"),
    ("Figures 1 and 4", "NC1 falls layer by layer, NC2 along the head; linear layers balance.", "06", r"F[14]"),
    ("Figures 2 and 5", "A deeper linear head collapses more.", "07", r"F[25]"),
    ("Figure 3", "The more ReLU layers, the more linear and balanced they are.", "08", r"F3"),
    ("Four signs", "Training with weight decay ends in NC1 to NC4.", "01", r"S-"),
    ("Beyond the paper", "Other losses, optimisers, labels, networks: this book's own questions.", "10", r"(?!C-)"),
    ("Cost", "The library computes what the usual loop computes, faster.", "11", r"C-"),
)  # fmt: skip


def row_of(claim: Claim) -> str:
    """The row of the summary that a claim belongs to.

    >>> row_of(Claim("F2X-nc1", "NC1 falls.", "paper", "07", "", "holds")), row_of(Claim("N-x", "", "ours", "12", "", "toy"))
    ('Figures 2 and 5', 'Beyond the paper')
    """  # noqa: E501
    return next(name for name, _, _, pattern in ROWS if re.match(pattern, claim.id))


def excess(claim: Claim) -> float | None:
    """How far a claim is on the wrong side of its threshold: log10 of the ratio, negative where it holds.

    None where the claim is no number against a threshold (an identity, a count, a result from several conditions).

    >>> excess(Claim("a", "", "ours", "02", "", "holds", {"value": 0.01, "below": 0.1}))
    -1.0
    >>> excess(Claim("b", "", "ours", "02", "", "fails", {"value": 0.5, "above": 5.0}))
    1.0
    """
    value, (side, threshold) = claim.numbers.get("value"), _asked(claim)
    if value is None and "worst ratio" in claim.numbers:  # of a measured value to its bound, over all that was tried
        value, threshold = claim.numbers["worst ratio"], 1.0
    if value is None or threshold is None or not (0 < value < math.inf and 0 < threshold < math.inf):
        return None
    return math.log10(value / threshold) * (-1 if side == "above" else 1)


def _asked(claim: Claim) -> tuple[str, float | None]:
    """The side of its threshold that a claim asks for, and the threshold, if it is a number against one."""
    return next(((side, claim.numbers[side]) for side in ("below", "above") if side in claim.numbers), ("below", None))


def nearest(claims: Iterable[Claim]) -> Claim | None:
    """The claim that holds by the least ratio, of those with a threshold; None where there is none."""
    holding = [(abs(by), claim.id, claim) for claim in claims if claim.verdict == HOLDS and (by := excess(claim))]
    return min(holding)[2] if holding else None


def _count(claims: Iterable[Claim]) -> dict[str, int]:
    found = dict.fromkeys(VERDICTS, 0)
    for claim in claims:
        found[claim.verdict] += 1
    return {verdict: count for verdict, count in found.items() if count}


def _said(counts: Mapping[str, int]) -> str:
    words = {HOLDS: ("holds", "hold"), IN_PART: ("holds in part", "hold in part"), FAILS: ("fails", "fail")}
    words |= {AS_PREDICTED: ("fails as predicted", "fail as predicted"), UNDECIDED: ("is undecided", "are undecided")}
    words[TOY] = ("is a toy's", "are toys'")
    return ", ".join(f"{count} {words[verdict][count > 1]}" for verdict, count in counts.items())


def in_one_line(claims: Iterable[Claim]) -> str:
    """The verdict of the whole book, by whose the claims are.

    >>> in_one_line([Claim("F2-a", "", "paper", "07", "", "holds"), Claim("F2-b", "", "ours", "07", "", "fails")])
    "The paper's own claims, 1: 1 holds. Our own, 1: 1 fails."
    """
    names = {"paper": "The paper's own claims", "inferred": "Inferred from it", "ours": "Our own"}
    claims = list(claims)
    parts = {name: [claim for claim in claims if claim.source == source] for source, name in names.items()}
    return " ".join(f"{name}, {len(part)}: {_said(_count(part))}." for name, part in parts.items() if part)


def _mark(claims: list[Claim]) -> str:
    """One verdict for several claims: theirs if they agree, else "holds in part"; toys decide nothing."""
    kinds = {claim.verdict for claim in claims if claim.verdict != TOY}
    return IN_PART if len(kinds) > 1 else kinds.pop() if kinds else TOY


def _exceptions(claims: list[Claim]) -> list[Claim]:
    return [claim for claim in claims if claim.verdict in (FAILS, UNDECIDED)]


def summary(claims: Iterable[Claim]):
    """One row a statement of the paper: how many of its claims hold, whose they are, and a computed sentence (pandas).

    Returns:
        Columns statement, says, chapter; paper, inferred, ours (verdict and mark of those claims, and how many hold, or
        None where there are none); found.
    """
    import pandas as pd

    claims, rows = list(claims), []
    for name, says, chapter, _ in ROWS:
        part = [claim for claim in claims if row_of(claim) == name]
        if not part:
            continue
        cells = []
        for source in SOURCES:
            mine = [claim for claim in part if claim.source == source]
            holding = sum(claim.verdict == HOLDS for claim in mine)
            cells.append((_mark(mine), f"{MARKS[_mark(mine)]} {holding} of {len(mine)}") if mine else None)
        found = _said(_count(part))
        if bad := _exceptions(part):
            found += f" ({', '.join(claim.id for claim in bad)})"
        if (least := nearest(part)) is not None:
            found += f". Least margin: {least.id}, a factor of {10 ** abs(excess(least) or 0.0):.3g}"
        rows.append((name, says, chapter, *cells, f"{found}."))
    return pd.DataFrame(rows, columns=["statement", "says", "chapter", *SOURCES, "found"])


def strip_chart(claims: Iterable[Claim], reach: float = 3.0):
    """One dot a claim against log10(value / threshold), wrong side to the right; a row a statement (matplotlib).

    Claims that are no number against a threshold are not drawn. Dots beyond ``reach`` decades stand at the edge.
    """
    import matplotlib.pyplot as plt

    found = [(claim, decades) for claim in claims if (decades := excess(claim)) is not None]
    names = [name for name, *_ in ROWS if any(row_of(claim) == name for claim, _ in found)]
    figure, axis = plt.subplots(figsize=(6.0, 0.9 + 0.5 * max(1, len(names))))
    shapes = {HOLDS: "o", IN_PART: "D", AS_PREDICTED: "v", FAILS: "X", UNDECIDED: "s", TOY: "*"}
    for verdict in VERDICTS:
        xs, ys = [], []
        for name in names:
            part = sorted(((d, c) for c, d in found if row_of(c) == name), key=lambda pair: (pair[0], pair[1].id))
            for place, (decades, claim) in enumerate(part):
                if claim.verdict == verdict:
                    xs.append(min(max(decades, -reach), reach))
                    ys.append(names.index(name) + 0.5 * ((place * 3) % 5 / 4 - 0.5))
        if xs:
            axis.scatter(xs, ys, s=36, marker=shapes[verdict], color=COLOURS[verdict], label=verdict, alpha=0.85, lw=0)
    axis.axvline(0, color="0.2", lw=1)
    axis.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlim=(-reach - 0.15, max([1.2, *(decades + 0.2 for _, decades in found)]) if found else 1),
        ylim=(len(names) - 0.4, -0.6),
        xlabel="decades from the threshold (left: holds; right: does not)",
    )
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def _scales(claims: Iterable[Claim]) -> dict[str, str]:
    """A short code for each scale: Q quick, on the page; A archive; P the paper's length; X anything else."""
    kinds = (("quick", "Q"), ("what two cores can", "A"), ("paper-scale:", "P"))
    codes: dict[str, str] = {}
    counts: dict[str, int] = {}
    for claim in claims:
        if claim.scale not in codes:
            letter = next((letter for start, letter in kinds if claim.scale.startswith(start)), "X")
            counts[letter] = counts.get(letter, 0) + 1
            codes[claim.scale] = f"{letter}{counts[letter]}"
    return codes


def _asked_found_distance(claim: Claim) -> tuple[str, str, str]:
    numbers = dict(claim.numbers)
    value, (side, threshold) = numbers.pop("value", None), _asked(claim)
    numbers.pop(side, None)
    spread, distance, seeds, meet = (numbers.pop(name, None) for name in ("spread", "distance", "seeds", "meet"))
    rest = ", ".join(f"{name} {float(f'{number:.2g}'):g}" for name, number in numbers.items())
    if value is None or threshold is None:
        return "", rest, ""
    asked = f"{'<' if side == 'below' else '>'} {threshold:g}"
    runs = f" ({seeds:g} runs{'' if meet is None else f', {meet:g} meet it'})" if seeds else ""
    found = f"{value:.3g}" + (f" ± {spread:.1g}" if spread else "") + runs
    return asked, found + (f"; {rest}" if rest else ""), f"{distance:.3g} sd" if distance else ""


def full_table(claims: Iterable[Claim], names: Mapping[str, Path | str] | None = None) -> str:
    """Every claim as an HTML table, a row a claim, with a legend of the scales.

    Args:
        claims: what to show.
        names: file name of each chapter by its number, e.g. ``{"02": "02_sufficient_conditions"}``: rows then carry it
            as ``data-page``, from which the book makes links.
    """
    claims, names = list(claims), dict(names or {})
    codes = _scales(claims)
    heads = ("claim", "verdict", "asked", "found", "distance", "source", "scale")
    lines = [
        "<table class='claims ledger'><thead><tr>",
        *(f"<th>{head}</th>" for head in heads),
        "</tr></thead><tbody>",
    ]
    for claim in claims:
        asked, found, distance = map(html.escape, _asked_found_distance(claim))
        scale, code = html.escape(claim.scale, quote=True), codes[claim.scale]
        cells = (
            f"<b class='claim-id'>{claim.id}</b> {html.escape(claim.claim)}",
            f"<span class='v v-{claim.verdict.split()[-1]}'>{MARKS[claim.verdict]}</span> {claim.verdict}",
            asked,
            found,
            distance,
            claim.source,
            f'<abbr title="{scale}">{code}</abbr>',
        )
        lines.append(f"<tr id='claim-{claim.id}' data-page='{names.get(claim.where, '')}'>")
        lines += [f"<td data-head='{head}'>{cell}</td>" for head, cell in zip(heads, cells, strict=True)]
        lines.append("</tr>")
    lines.append("</tbody></table><details><summary>The scales</summary><dl class='scales'>")
    lines += [
        f"<dt>{code}</dt><dd>{html.escape(scale)}</dd>"
        for scale, code in sorted(codes.items(), key=lambda x: (x[1][0], int(x[1][1:])))
    ]
    return "".join([*lines, "</dl></details>"])
