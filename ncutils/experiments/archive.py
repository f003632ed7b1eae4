"""Results computed earlier, kept under ``results/`` with their provenance."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from pathlib import Path

from ncutils import _files
from ncutils._arguments import checked, text
from ncutils.experiments import figures, fingerprint, jobs
from ncutils.experiments.result import Result, about_result
from ncutils.experiments.run import git
from ncutils.experiments.specification import PROFILES, Specification, identity


def results_dir() -> Path:
    """results/ of the checkout.

    Example:
        >>> results_dir().name
        'results'
    """
    return _files.results_dir()


@checked()
def archived(folder: str | os.PathLike | None = None) -> list[tuple[str, str]]:
    """The (figure, profile) pairs that have an archived result.

    Example:
        >>> ("1", "cores") in archived()
        True
    """
    folder = results_dir() if folder is None else Path(folder)
    names = [path.stem.rpartition("-") for path in sorted(folder.glob("*.parquet"))]
    return [(figure, profile) for figure, _, profile in names]


@checked(profile=text)
def load_archive(
    figure: str | Specification, profile: str | None = None, folder: str | os.PathLike | None = None
) -> Result:
    """A result computed earlier and kept with its provenance, as :func:`run` returned it (numbers in float32).

    Args:
        figure: a figure's name, or the specification of an experiment of your own.
        profile: which one; when not given the largest there is (``"paper"`` before ``"cores"``).
        folder: where archives are; ``results/`` of the checkout when not given.

    Raises:
        FileNotFoundError: none there; the message holds the command that makes it.
        ValueError: the provenance, the table and today's specification do not belong together.

    Example:
        >>> one = load_archive("1", "cores")
        >>> one.label, one.provenance["seeds"]
        ('what two cores can: 60,000 digits of 28x28, 5 seeds, 20 epochs, float32, CPU', [0, 1, 2, 3, 4])
    """
    import pandas as pd
    import pyarrow.parquet

    folder = results_dir() if folder is None else Path(folder)
    spec, path = _stored(figure, profile, folder)
    about, embedded = path.with_suffix(".json"), _embedded(path)
    try:
        provenance = json.loads(about.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if embedded is None:
            raise ValueError(f"{about}: no readable provenance for {path.name} ({error})") from error
        provenance = embedded
    except (OSError, ValueError) as error:
        raise ValueError(f"{about}: no readable provenance for {path.name} ({error})") from error
    else:
        if not isinstance(provenance, dict) or provenance.pop("sha256", None) != _seal(provenance):
            raise ValueError(f"{about} is damaged (its SHA-256 is not that of its contents); fetch it again")
    needed = ("specification", "git_commit", "device", "seconds", "data_checksum", "versions")
    if lacking := [name for name in needed if name not in provenance]:
        raise ValueError(f"{about}: the provenance lacks {', '.join(lacking)}")
    wanted, stored = spec.identity(), identity(provenance["specification"])
    if differ := [name for name in sorted({*wanted, *stored}) if wanted.get(name) != stored.get(name)]:
        seen = "; ".join(f"{name} is {stored.get(name)!r} there, {wanted.get(name)!r} here" for name in differ)
        raise ValueError(f"{about}: made from another specification of figure {spec.figure}, {spec.profile}: {seen}")
    _check_own_code(spec, provenance, about)
    if about.exists() and _sha256(path) != provenance.get("parquet_sha256"):
        raise ValueError(f"{path}: not the table that {about.name} describes (its SHA-256 differs)")
    if embedded is None:  # made before tables carried their own
        frame = pd.read_parquet(path)
    else:
        try:
            frame, _ = jobs.read_table(path)
        except (ValueError, OSError, pyarrow.lib.ArrowException) as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it again or make it anew") from error
        if differ := [name for name in embedded if embedded[name] != provenance.get(name)]:
            raise ValueError(f"{path}: its own provenance is not that of {about.name}: {', '.join(differ)}")
    return Result(frame, spec.label(provenance["device"]), provenance)


archive = load_archive  # the name it had


def _check_own_code(spec: Specification, provenance: dict, about: Path) -> None:
    """That a network, loss and optimizer of the reader's own are those that made the archive."""
    made_by, python = provenance.get("own_code", {}), provenance["versions"].get("python", "")
    if python.split(".")[:2] != platform.python_version().split(".")[:2]:
        if own := ", ".join(spec.own_code):
            warnings.warn(f"{about}: {own} not compared, for Python {python} compiled it to other bytes", stacklevel=4)
        return
    for name, value in spec.own_code.items():
        if (now := fingerprint.fingerprint(value)) != made_by.get(name):
            raise ValueError(f"{about}: made with another {name} of this name: {made_by.get(name)} there, {now} here")


def _stored(figure: str | Specification, profile: str | None, folder: Path) -> tuple[Specification, Path]:
    """What is asked for and where it lies; FileNotFoundError, with what makes it, if it is not there."""
    if isinstance(figure, Specification):
        path = folder / f"{figure.figure}-{figure.profile}.parquet"
        if profile not in (None, figure.profile):
            raise ValueError(f"profile must be {figure.profile!r}, that of the specification given; got {profile!r}")
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; make it with save_archive(run(...), folder)")
        return figure, path
    text("figure", figure)
    declared = [p for p in reversed(PROFILES) if figure not in figures.FIGURES or (figure, p) in figures.DECLARED]
    candidates = [profile] if profile else declared
    for candidate in candidates:
        spec = figures.specification(figure, candidate)
        if (path := folder / f"{figure}-{candidate}.parquet").exists():
            return spec, path
    commands = " or ".join(f"`python -m ncutils run {figure} --profile {p}`" for p in candidates if p != "quick")
    raise FileNotFoundError(f"no archived result of figure {figure} in {folder.name}/; make it with {commands}")


def _embedded(path: Path) -> dict | None:
    """The provenance inside a table, None if it was made before tables carried theirs."""
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        return json.loads(metadata[b"ncutils"])["provenance"] if b"ncutils" in metadata else None
    except (OSError, ValueError, KeyError, pyarrow.lib.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again or make it anew") from error


def save_archive(result, folder: str | os.PathLike | None = None) -> Path:
    """Keep a result that :func:`run` returned: FIGURE-PROFILE.parquet, its provenance inside and beside it.

    The provenance of a figure names the commit whose code made it. That of an experiment of your own does if there is
    one; an installed copy is known by its version and by the hash of its code.

    Raises:
        ValueError: a figure's name for what is not as the figure is declared; the code that ran for a figure is not the
            code of the commit that the provenance would name, or not that of the files as they are now.
        OSError: naming the file that could not be written.
    """
    folder = results_dir() if folder is None else Path(folder)
    provenance = dict(about_result(result, "provenance"))
    figure, profile = provenance["figure"], provenance["profile"]
    if figure in figures.FIGURES:
        check_committed()
        if provenance["code"] != (now := jobs.code_on_disk()):
            raise ValueError(
                f"result must come from the code that is checked out, {now}; got one of {provenance['code']}: "
                "check out the commit that it was computed at, and save it there"
            )
        declared = figures.DECLARED.get((figure, profile))
        wanted = {} if declared is None else declared.identity()
        if differ := [n for n, v in identity(provenance["specification"]).items() if wanted.get(n) != v]:
            raise ValueError(
                f"result must be of figure {figure}, {profile}, as it is declared, to be kept under that name; got "
                f"another {', '.join(differ)}: run it under a name of its own, spec.but(figure=..., profile='own')"
            )
    frame = result.frame if isinstance(result, Result) else result
    runs = len(
        frame.drop_duplicates([*frame.columns.intersection(["width"]), "num_nonlinear", "num_linear", "setup", "seed"])
    )
    if runs != provenance["runs"]:
        raise ValueError(f"result must hold the {provenance['runs']} runs that its provenance names; got {runs}")
    provenance["git_commit"] = None if _uncommitted() else git("rev-parse", "HEAD")
    path = folder / f"{provenance['figure']}-{provenance['profile']}.parquet"
    small = (result.frame if isinstance(result, Result) else result).copy()
    doubles = small.select_dtypes("float64").columns.difference(["lr", "weight_decay"])
    small[doubles] = small[doubles].astype("float32")
    small.attrs = {}
    about = path.with_suffix(".json")
    about.unlink(missing_ok=True)  # never a new table beside an old provenance
    jobs.write(small, path, provenance=provenance)
    provenance |= {"rows": len(small), "parquet_sha256": _sha256(path)}
    provenance["sha256"] = _seal(provenance)
    with _files.atomic(about) as temporary:
        temporary.write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    return path


def check_committed() -> None:
    """Raise ValueError unless the code behind the results is exactly what HEAD holds."""
    if problem := _uncommitted():
        raise ValueError(f"an archive names the commit whose code made it{problem}")


def _uncommitted() -> str:
    """Why no commit holds the code behind the results; "" if HEAD does."""
    paths = [jobs.PACKAGE / name for name in (*jobs.CODE, *jobs.CODE_OF_OWN, "experiments")]
    files = [str(path) for path in paths if path.exists()]
    if git("rev-parse", "HEAD") is None or not git("ls-files", "--", *files):  # somebody else's checkout does not count
        return ", and this copy is not a git checkout: give --no-archive to compute and cache alone"
    changed = git("status", "--porcelain", "--", *files)
    return f"; commit these first, or use --no-archive:\n{changed}" if changed else ""


def _seal(provenance: dict) -> str:
    """The SHA-256 of a provenance, which its file carries beside it."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
