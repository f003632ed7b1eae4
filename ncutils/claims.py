"""Claims and verdicts: what a chapter or an archive is asked, what it answers, and by how much.

A chapter collects :class:`Claims` with :meth:`Claims.add` and displays them as a table. The same rows travel in the
cell's output under a media type of our own, so the ledger reads them from the notebooks the reader sees. What an
archive is asked stands in ``claims.toml``, committed before the archive; :func:`judge_archives` answers it.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ncutils import _arguments, _files
from ncutils._arguments import check_fields, checked, instance, many

__all__ = ["MEDIA_TYPE", "VERDICTS", "Claim", "Claims", "judge_archives", "read_claims", "read_questions", "verdict"]

MEDIA_TYPE = "application/vnd.ncutils.claims+json"
HOLDS, IN_PART = "holds", "holds in part"
AS_PREDICTED, FAILS, UNDECIDED, TOY = "fails as predicted", "fails", "undecided", "toy"
VERDICTS = (HOLDS, IN_PART, AS_PREDICTED, FAILS, UNDECIDED, TOY)
SOURCES = ("paper", "inferred", "ours")
EDGE = 0.05  # with one run there is no spread: a value within this part of its threshold decides nothing


def _threshold(below: float | None, above: float | None) -> float:
    """The one that is given."""
    if below is not None and above is None:
        return below
    if above is not None and below is None:
        return above
    raise ValueError(f"exactly one of below, above must be given; got below={below}, above={above}")


@checked()
def verdict(
    value: float,
    below: float | None = None,
    above: float | None = None,
    spread: float | None = None,
    margin: float = 1.0,
    expects: str = HOLDS,
) -> str:
    """What a number says about its threshold.

    Undecided if the value is not finite, or ``|value - threshold| < margin * spread``; without a spread (one run),
    if it lies within a twentieth of the threshold. Exact statements, whose value is no estimate, are given
    ``spread=0``.

    Args:
        value: the number, a mean over runs where there are several.
        below, above: the threshold; exactly one of the two.
        spread: sample standard deviation of the value over the runs, or None for one run.
        margin: the distance from the threshold that a verdict needs, in spreads.
        expects: ``"holds"``, or ``"fails"`` where theory predicts that the claim fails.

    Raises:
        ValueError: not exactly one threshold, a negative or non-finite spread or margin, an unknown expectation.

    >>> verdict(0.5, below=1.0, spread=0.1), verdict(0.95, below=1.0, spread=0.1), verdict(2.0, below=1.0, spread=0.1)
    ('holds', 'undecided', 'fails')
    >>> verdict(2.0, below=1.0, spread=0.1, expects="fails"), verdict(0.99, below=1.0)
    ('fails as predicted', 'undecided')
    """
    if expects not in ("holds", "fails"):
        raise ValueError(f"expects must be 'holds' or 'fails'; got {expects!r}")
    for name, number in (("spread", spread), ("margin", margin)):
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{name} must be finite and not negative; got {number}")
    threshold = _threshold(below, above)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite; got {threshold}")
    needed = EDGE * abs(threshold) if spread is None else margin * spread
    if not math.isfinite(value) or abs(value - threshold) < needed:
        return UNDECIDED
    if value > threshold if below is None else value < threshold:
        return HOLDS
    return AS_PREDICTED if expects == "fails" else FAILS


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        id: short and unique, e.g. ``"T3.1-nc1"`` or ``"F2-nc2-depth"``.
        claim: one sentence.
        source: ``"paper"`` (its abstract, captions, theorems), ``"inferred"`` (second-hand) or ``"ours"``.
        where: the chapter that checks it, e.g. ``"02"``.
        scale: what was run, e.g. ``"quick: 1,000 digits, 3 seeds, CPU"``.
        verdict: one of :data:`VERDICTS`; compute it, with :func:`verdict` or :meth:`judge` for instance.
        numbers: the few numbers it rests on: "value", "below" or "above" (the threshold), "spread", "seeds" and
            "distance" (in spreads) where it was judged against a threshold; "meet", how many runs meet it each by
            itself, where an archive was asked.

    Example:
        >>> claim = Claim("X-1", "NC1 falls.", "ours", "02", "1,000 digits", Claim.judge(0.01 < 0.1), {"NC1": 0.01})
        >>> claim.verdict
        'holds'
    """

    id: str
    claim: str
    source: str
    where: str
    scale: str
    verdict: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        check_fields(self, numbers=instance("dict", "Mapping"))
        for name, value in self.numbers.items():
            _arguments.number()(f"numbers[{name!r}]", value)
        for name, allowed in (("verdict", VERDICTS), ("source", SOURCES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}; got {getattr(self, name)!r}")

    @staticmethod
    @checked()
    def judge(holds: bool, partly: bool = False) -> str:
        """The verdict for a claim that holds, holds in part, or fails."""
        return HOLDS if holds else IN_PART if partly else FAILS

    @staticmethod
    def decide(*found: tuple[float, float], below: float = math.inf, above: float = -math.inf) -> str:
        """The verdict on one or several results, each a number and its standard deviation over the runs.

        A result nearer to a threshold than its standard deviation is undecided. Of several, all must agree for
        ``holds``, ``fails`` or ``undecided``; where some hold the claim holds in part, where none does it is undecided.

        >>> Claim.decide((0.5, 0.1), below=0.8), Claim.decide((0.75, 0.1), below=0.8)
        ('holds', 'undecided')
        >>> Claim.decide((0.5, 0.1), (0.9, 0.0), below=0.8)
        'holds in part'
        """
        if not found or (below == math.inf and above == -math.inf):
            raise ValueError(f"found must hold a result, and below or above be finite; got {found}, {below}, {above}")
        if math.isnan(below) or math.isnan(above) or below == -math.inf or above == math.inf:
            raise ValueError(f"below, above must be numbers that a result can meet; got {below}, {above}")
        if bad := [spread for _, spread in found if not spread >= 0]:
            raise ValueError(f"spread must be at least 0; got {bad[0]}")
        if not all(math.isfinite(value) for value, _ in found):
            return UNDECIDED
        distances = [(min(below - value, value - above), spread) for value, spread in found]
        holds = [distance > 0 and distance >= spread for distance, spread in distances]
        fails = [not distance > 0 and not -distance < spread for distance, spread in distances]
        if all(fails):
            return FAILS
        return HOLDS if all(holds) else IN_PART if any(holds) else UNDECIDED


class Claims(list):
    """A list of :class:`Claim` that shows as a table.

    Args:
        claims: claims to begin with.
        where: the chapter, for those that :meth:`add` adds.
        scale: what was run, likewise.

    >>> found = Claims(where="02", scale="1,000 digits, 3 seeds")
    >>> _ = found.add("T3.1-nc1", "ours", "NC1 is below its bound.", value=0.2, below=1.0, spread=0.05, seeds=3)
    >>> found
    [T3.1-nc1] NC1 is below its bound. -> holds (value 0.2, below 1, spread 0.05, distance 16, seeds 3; 1,000 digits, 3 seeds)
    """  # noqa: E501

    def __init__(self, claims: Iterable[Claim] = (), *, where: str = "", scale: str = ""):
        many(instance("Claim"))("claims", claims)
        super().__init__(claims)
        self.where, self.scale = where, scale
        ids = [c.id for c in self]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"claim ids must be unique; more than once: {twice}")

    def append(self, claim: Claim) -> None:
        """Add a claim whose id is new.

        >>> found = Claims()
        >>> found.append(Claim("X-1", "NC1 falls.", "ours", "02", "", "holds"))
        >>> found.append(Claim("X-1", "NC1 falls.", "ours", "02", "", "fails"))
        Traceback (most recent call last):
        ValueError: id must be unique; got 'X-1' again
        """
        instance("Claim")("claim", claim)
        if claim.id in (known.id for known in self):
            raise ValueError(f"id must be unique; got {claim.id!r} again")
        super().append(claim)

    def extend(self, claims: Iterable[Claim]) -> None:
        """Add claims whose ids are new.

        >>> found = Claims()
        >>> found.extend([Claim("X-1", "NC1 falls.", "ours", "02", "", "holds")])
        >>> len(found)
        1
        """
        Claims([*self, *(claims := list(claims))])  # all of them are new, or none is added
        super().extend(claims)

    def __iadd__(self, claims: Iterable[Claim]) -> Claims:  # type: ignore[override,misc]
        self.extend(claims)
        return self

    @checked(numbers=instance("dict", "Mapping"))
    def add(
        self,
        id: str,
        source: str,
        text: str,
        value: float | None = None,
        *,
        below: float | None = None,
        above: float | None = None,
        spread: float | None = None,
        seeds: int | None = None,
        margin: float = 1.0,
        expects: str = HOLDS,
        holds: bool | None = None,
        toy: bool = False,
        scale: str | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> Claim:
        """Judge a claim and append it.

        Either a ``value`` with ``below`` or ``above`` (see :func:`verdict`), or ``holds``, for what is no number
        against a threshold: an identity, a count of violations.

        Args:
            id, source, text: as in :class:`Claim`.
            value, below, above, spread, margin, expects: as in :func:`verdict`.
            seeds: how many runs the value is the mean of; with fewer than 2 a spread says nothing and must be None
                or 0.
            holds: whether it holds, where there is no value.
            toy: a toy was run, and nothing larger: the verdict is "toy" whatever the number.
            scale: what was run, if not what all of these claims rest on.
            numbers: further numbers to print.

        Raises:
            ValueError: an id given twice; neither or both of ``value`` and ``holds``; a spread over fewer than two
            runs.
        """
        if id in (claim.id for claim in self):
            raise ValueError(f"id must be unique; got {id!r} again")
        if (value is None) == (holds is None):
            raise ValueError(f"exactly one of value, holds must be given for {id}; got value={value}, holds={holds}")
        if spread and seeds is not None and seeds < 2:
            raise ValueError(f"spread must come from at least two seeds for {id}; got seeds={seeds}")
        found: dict[str, float] = {}
        if value is None:
            said = HOLDS if holds else AS_PREDICTED if expects == "fails" else FAILS
        else:
            said = verdict(value, below, above, spread, margin, expects)
            threshold = _threshold(below, above)
            found = {"value": value, "above" if below is None else "below": threshold}
            if spread is not None:
                found["spread"] = spread
            if spread:
                found["distance"] = abs(value - threshold) / spread
            if seeds is not None:
                found["seeds"] = seeds
        where = self.scale if scale is None else scale
        claim = Claim(id, text, source, self.where, where, TOY if toy else said, {**found, **(numbers or {})})
        self.append(claim)
        return claim

    def to_frame(self):
        """One row per claim (pandas)."""
        import pandas as pd

        return pd.DataFrame([{**asdict(c), "numbers": _numbers(c)} for c in self])

    def __repr__(self) -> str:
        return "\n".join(f"[{c.id}] {c.claim} -> {c.verdict} ({_numbers(c)}; {c.scale})" for c in self)

    def _repr_mimebundle_(self, include=None, exclude=None):
        heads = ("id", "claim", "source", "where", "scale", "verdict", "numbers")
        rows = [(c.id, c.claim, c.source, c.where, c.scale, c.verdict, _numbers(c)) for c in self]
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(v))}</td>' for v in row)}</tr>" for row in rows)
        head = "".join(f"<th>{h}</th>" for h in heads)
        return {
            "text/plain": repr(self),
            "text/html": f"<table class='claims'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
            MEDIA_TYPE: [{**asdict(c), "numbers": _shown(c)} for c in self],
        }


@checked(notebooks=many(_arguments.path))
def read_claims(notebooks: Iterable[str | os.PathLike]) -> Claims:
    """Claims stored in executed notebooks, in their order.

    Raises:
        ValueError: a notebook that is missing, unreadable, or holds no claims.
    """
    claims = []
    for path in map(Path, notebooks):
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            found = [
                Claim(**row)
                for cell in cells
                for output in cell.get("outputs", ())
                for row in output.get("data", {}).get(MEDIA_TYPE, ())
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a readable executed notebook ({error})") from error
        if not found:
            raise ValueError(f"{path}: holds no claims; execute it first (`make notebooks`)")
        claims += found
    return Claims(claims)


def _rounded(value: float, digits: int = 2) -> float:
    return float(f"{float(value):.{digits}g}")


def _shown(claim: Claim) -> dict[str, float]:
    """Its numbers to two digits; the threshold as it is, and the value to so many that it stays on its side."""
    shown = {name: _rounded(value) for name, value in claim.numbers.items()}
    for side in {"below", "above"} & set(shown):
        asked, value = claim.numbers[side], claim.numbers.get("value", math.nan)
        shown[side] = _rounded(asked, 6)
        found = (_rounded(value, digits) for digits in range(2, 17))
        if asked != value == value:
            shown["value"] = next((v for v in found if v != asked and (v > asked) == (value > asked)), value)
    return shown


def _numbers(claim: Claim) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in _shown(claim).items())


# --- what archives are asked: claims.toml

# Every function below takes the archive's frame and returns one number a run, or, for a ratio between depths, one a
# (set-up, seed). Their mean is judged, their sample standard deviation is the spread.


def _layers(frame, column: str, step=None):
    """A quantity on the training samples at the end: a row a run, a column a layer (without the backbone)."""
    from . import experiments

    rows = experiments.final(frame) if step is None else frame[(frame["step"] == step) & (frame["split"] == "train")]
    rows = rows[rows["layer"] >= 1]
    return rows.pivot_table(index=["setup", "seed"], columns="layer", values=column)


def _relu(frame) -> int:
    """L1, the number of ReLU layers."""
    return int(frame["num_nonlinear"].iloc[0])


def _steps(table):
    return (table / table.shift(axis=1)).iloc[:, 1:]


def _worst_rate(frame):
    """Of each run, the largest of r and 1/r, r a linear pair's decay rate of the imbalance over twice the weight decay.

    Fitted to the logarithm of the norm where the law exp(-2 lambda t) lies between 1 and 1/10, as chapter 6 does.
    """
    import numpy as np

    from . import experiments

    rows = frame.assign(time=experiments.flow_time(frame))
    rows = rows[(rows["split"] == "train") & (rows["part"] == "linear") & rows["balancedness"].notna()]
    rates = {}
    for run, part in rows.groupby(["setup", "seed"]):
        law = 2 * part["weight_decay"].iloc[0]
        table = part.pivot_table(index="time", columns="layer", values="balancedness")
        early = table[np.exp(-law * table.index.to_numpy()) > 0.1]
        slopes = [-np.polyfit(early.index, np.log(early[pair]), 1)[0] / law for pair in early]
        rates[run] = max(max(r, 1 / r) if r > 0 else math.inf for r in slopes)
    import pandas as pd

    return pd.Series(rates)


def _gain_of_middle_layers(frame):
    middle = range(3, _relu(frame))
    start, end = _layers(frame, "nc2", frame["step"].min()), _layers(frame, "nc2")
    return (end[[*middle]] / start[[*middle]]).max(axis=1)


def _over_coarse_steps(frame):
    """A ratio of means: the two archives' runs are not pairs."""
    from . import experiments

    coarse = experiments.archive(frame.attrs["provenance"]["specification"]["figure"], "cores")
    relu = _relu(frame)
    return _layers(frame, "nc2")[relu] / _layers(coarse, "nc2")[relu].mean()


def _between_depths(column: str, deep: int, shallow: int, table: str, complement: bool = False) -> Callable:
    """The ratio of a quantity at two depths, of the runs that share set-up and seed."""

    def ratio(frame):
        from . import experiments

        rows = getattr(experiments, table)(frame).set_index(["depth", "setup", "seed"])[column]
        rows = 1 - rows if complement else rows
        return rows.loc[deep] / rows.loc[shallow]

    return ratio


def _end(column: str, layer: int) -> Callable:
    def values(frame):
        from . import experiments

        return experiments.head_ends(frame).set_index(["depth", "setup", "seed"])[column].loc[layer]

    return values


def _worst_step_of_nc2(frame):
    from . import experiments

    ends = experiments.head_ends(frame)
    return _steps(ends.pivot_table(index=["setup", "seed"], columns="depth", values="nc2_last")).max(axis=1)


def _least_slope(frame):
    """For each seed: least slope of log NC1 in log weight decay between thirds of the range, over all depths."""
    import numpy as np
    import pandas as pd

    from . import experiments

    ends = experiments.head_ends(frame)
    slopes = {}
    for (seed, depth), part in ends.groupby(["seed", "depth"]):
        part = part.sort_values("weight_decay")
        means = [(np.log(t["weight_decay"]).mean(), np.log(t["nc1_last"]).mean()) for t in _thirds(part)]
        slopes[seed, depth] = min((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(means))
    return pd.Series(slopes).groupby(level=0).min()


def _slope_of_the_range(frame):
    """For each seed: slope of log NC1 in log weight decay from its smallest to its largest, least over all depths."""
    import numpy as np

    from . import experiments

    ends = experiments.head_ends(frame)
    table = np.log(ends.pivot_table(index="weight_decay", columns=["seed", "depth"], values="nc1_last"))
    slopes = (table.iloc[-1] - table.iloc[0]) / np.log(table.index[-1] / table.index[0])
    return slopes.groupby(level="seed").min()


def _thirds(part):
    import numpy as np

    return [part.iloc[index] for index in np.array_split(np.arange(len(part)), 3)]


def _at_width(width: int, quantity: Callable) -> Callable:
    return lambda frame: quantity(frame[frame["width"] == width])


def _between_widths(wide: int, narrow: int, quantity: Callable) -> Callable:
    return lambda frame: _at_width(wide, quantity)(frame) / _at_width(narrow, quantity)(frame)


QUANTITIES: dict[str, Callable] = {
    "largest ratio NC1(Z_l) / NC1(Z_{l-1}) from the second layer up to the first linear one": lambda f: (
        _steps(_layers(f, "nc1")).loc[:, : _relu(f) + 1].max(axis=1)
    ),
    "NC1 of the output over NC1 of what enters the linear head": lambda f: (
        _layers(f, "nc1").iloc[:, -1] / _layers(f, "nc1")[_relu(f)]
    ),
    "largest NC1 of a linear layer": lambda f: _layers(f, "nc1").loc[:, _relu(f) + 1 :].max(axis=1),
    "largest ratio NC2(Z_l) / NC2(Z_{l-1}) along the linear layers": lambda f: (
        _steps(_layers(f, "nc2")).loc[:, _relu(f) + 1 :].max(axis=1)
    ),
    "NC2 of Z_{L-1}": lambda f: _layers(f, "nc2").iloc[:, -2],
    "largest NC2 at the end over NC2 at the start, of ReLU layers 3 to L1-1": _gain_of_middle_layers,
    "largest relative imbalance of two neighbouring linear layers": lambda f: (
        _layers(f, "balancedness_relative").loc[:, _relu(f) + 1 :].max(axis=1)
    ),
    "relative imbalance of the last ReLU layer and the first linear one": lambda f: _layers(f, "balancedness_relative")[
        _relu(f)
    ],
    "largest of r and 1/r, r the decay rate of the linear pairs' imbalance over twice the weight decay": _worst_rate,
    "NC3": lambda f: _layers(f, "nc3").max(axis=1),
    "NC2 of what enters the head, here over that of the archive with steps fifty times larger (profile cores)": (
        _over_coarse_steps
    ),
    "NC1 of Z_{L-1} behind six linear layers": _end("nc1_last", 6),
    "NC1 of Z_{L-1}, six linear layers over one": _between_depths("nc1_last", 6, 1, "head_ends"),
    "NC1 of what enters the head, six linear layers over one": _between_depths("nc1_first", 6, 1, "head_ends"),
    "NC2 of Z_{L-1}, six linear layers over one": _between_depths("nc2_last", 6, 1, "head_ends"),
    "largest ratio of NC2 of Z_{L-1} from one head depth to the next": _worst_step_of_nc2,
    "NC2 of what enters the head, six linear layers over one": _between_depths("nc2_first", 6, 1, "head_ends"),
    "1 - NC3, six linear layers over one": _between_depths("nc3", 6, 1, "head_ends", complement=True),
    "least local slope of log NC1 of Z_{L-1} against log weight decay, between the thirds of the range, over all head "
    "depths": _least_slope,
    "slope of log NC1 of Z_{L-1} against log weight decay from its smallest to its largest, least over head depths": (
        _slope_of_the_range
    ),
    "NC1 of Z_{L-1}, 12 layers over 4": lambda f: _nc1_by_depth(f).loc[12] / _nc1_by_depth(f).loc[4],
} | {
    f"{word} {what} of the head's ReLU {of}, 12 layers over {shallow}": _between_depths(
        f"{column}_{short}", 12, shallow, "nonlinear_head"
    )
    for what, of, column, least in (
        ("negativity", "layers", "negativity", 4),
        ("relative imbalance", "pairs", "balancedness", 6),
    )
    for word, short, shallow in (("mean", "mean", least), ("least", "min", 6))
}


QUANTITIES |= {
    f"{name}, at width 1,024": _at_width(1024, QUANTITIES[name])
    for name in (
        "largest NC1 of a linear layer",
        "NC2 of Z_{L-1}",
        "largest relative imbalance of two neighbouring linear layers",
    )
} | {
    f"{name} of Z_{{L-1}}, width 1,024 over 64": _between_widths(
        1024, 64, lambda f, c=column: _layers(f, c).iloc[:, -2]
    )
    for name, column in (("NC1", "nc1"), ("NC2", "nc2"))
}


def _nc1_by_depth(frame):
    from . import experiments

    return experiments.head_ends(frame).set_index(["depth", "setup", "seed"])["nc1_last"]


FIELDS = {"id", "source", "figure", "profile", "quantity", "below", "above", "margin", "was", "expects"}


@checked()
def read_questions(path: str | os.PathLike | None = None) -> list[dict]:
    """The rows of ``claims.toml``, checked, each with the commit that wrote it down ("" if not recorded).

    Without a path, those that the library itself comes with, whatever the current folder is.

    Raises:
        ValueError: the file is unreadable, or a row repeats an id, names an unknown field, quantity or source, or
            has not exactly one threshold; the row and the field are named.

    Example:
        >>> questions = read_questions()
        >>> "id" in questions[0]
        True
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    path = _files.claims_file() if path is None else Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: must be a readable TOML file ({error})") from error
    if unknown := sorted(set(content) - {"version", "claim", "commits"}):
        raise ValueError(f"{path}: unknown table {unknown[0]!r}; expected claim, commits")
    if content.get("version", 1) != 1:
        raise ValueError(f"{path}: version must be 1; got {content['version']!r}")
    rows, commits = content.get("claim", []), content.get("commits", {})
    if not rows or not isinstance(rows, list):
        raise ValueError(f"{path}: must hold at least one [[claim]]; got {rows!r}")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        at = f"{path}: claim {row.get('id', f'number {number}')}"
        if missing := [key for key in ("id", "source", "figure", "profile", "quantity") if key not in row]:
            raise ValueError(f"{at}: {missing[0]} must be given")
        if unknown := sorted(set(row) - FIELDS):
            raise ValueError(f"{at}: unknown field {unknown[0]!r}; expected one of {sorted(FIELDS)}")
        if row["id"] in seen:
            raise ValueError(f"{at}: id must be unique; got it twice")
        seen.add(row["id"])
        if row["quantity"] not in QUANTITIES:
            raise ValueError(f"{at}: quantity must be a known one (ncutils.claims.QUANTITIES); got {row['quantity']!r}")
        if row["source"] not in SOURCES:
            raise ValueError(f"{at}: source must be one of {SOURCES}; got {row['source']!r}")
        if ("below" in row) == ("above" in row):
            raise ValueError(f"{at}: threshold must be given, as exactly one of below, above")
        for key in ("below", "above", "margin", "was"):
            if key in row and (isinstance(row[key], bool) or not isinstance(row[key], int | float)):
                raise ValueError(f"{at}: {key} must be a number; got {row[key]!r}")
        row["commit"] = commits.get(row["id"].partition("-")[0], "")
    return rows


def judge_archives(
    path: str | os.PathLike | None = None,
    archives: Mapping[tuple[str, str], object] | None = None,
    where: str = "09",
    missing: str = "error",
) -> Claims:
    """Ask the archives what ``claims.toml`` asks them.

    Args:
        path: the questions; by default those of the checkout.
        archives: frames by (figure, profile), instead of :func:`ncutils.experiments.archive`.
        where: the chapter that shows the answers.
        missing: ``"error"``, or ``"skip"`` to leave out the questions whose archive is not there.

    Returns:
        One claim a question, its numbers the value (mean over runs), threshold, spread, distance in spreads, runs, and
        how many of them meet the threshold by themselves, which decides nothing. Undecided, with NaN for a value, where
        a run diverged or a number is not finite.

    Raises:
        ValueError: as :func:`read_questions`, and an archive that is missing or does not hold what is asked, by name.
    """
    from . import experiments

    if missing not in ("error", "skip"):
        raise ValueError(f"missing must be 'error' or 'skip'; got {missing!r}")
    rows, frames, found = read_questions(path), dict(archives or {}), Claims(where=where)
    whole: dict[tuple[str, str], bool] = {}
    for row in rows:
        key = (row["figure"], row["profile"])
        at = f"{path or _files.claims_file()}: claim {row['id']}"
        if key not in frames and archives is None and key in experiments.archived():
            frames[key] = experiments.archive(*key)
        if key not in frames:
            if missing == "skip":
                continue
            raise ValueError(f"{at}: there is no archive of figure {key[0]!r}, profile {key[1]!r}, in results/")
        frame = frames[key]
        try:
            values = QUANTITIES[row["quantity"]](frame).dropna()
        except KeyError as error:
            raise ValueError(f"{at}: the archive must hold {error} for {row['quantity']!r}") from error
        count = len(values)
        if not count:
            raise ValueError(f"{at}: the archive must hold {row['quantity']!r}; got no finite value")
        value, margin, expects = float(values.mean()), row.get("margin", 1.0), row.get("expects", HOLDS)
        if key not in whole:
            whole[key] = _whole(frame)
        sound = whole[key] and all(map(math.isfinite, values))
        meet = sum(v < row["below"] if "below" in row else v > row["above"] for v in values)
        found.add(
            row["id"],
            row["source"],
            f"{row['quantity'][0].upper()}{row['quantity'][1:]} is {_asked(row)}.",
            value if sound else math.nan,
            below=row.get("below"),
            above=row.get("above"),
            spread=float(values.std()) if count > 1 and sound else None,
            seeds=count,
            margin=margin,
            expects=expects,
            numbers={"meet": meet} if sound else None,
            scale=experiments.label(frame) + (f"; asked in {row['commit']}" if row["commit"] else ""),
        )
    return found


def _whole(frame) -> bool:
    """Whether no run diverged, and every layer has the numbers at the end that its place gives it."""
    if frame["diverged"].any():
        return False
    end = frame[(frame["step"] == frame["step"].max()) & (frame["split"] == "train") & (frame["layer"] >= 1)]
    last = end["num_nonlinear"] + end["num_linear"]
    return bool(
        end[["nc1", "nc2", "accuracy"]].notna().all(axis=None)
        and end.loc[end["layer"] < last, "balancedness_relative"].notna().all()
        and end.loc[end["layer"] == last - 1, "nc3"].notna().all()
        and len(end) == last.groupby([end["setup"], end["num_nonlinear"], end["num_linear"], end["run"]]).first().sum()
    )


def _asked(row: dict) -> str:
    text = f"below {row['below']:g}" if "below" in row else f"above {row['above']:g}"
    return f"{text} (an earlier archive was asked for {row['was']:g})" if "was" in row else text
