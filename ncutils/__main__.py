"""The command line of ncutils: run the paper's figures, say what they cost, fetch data."""

from __future__ import annotations

import argparse
import os
import sys

from ncutils import __version__, experiments, fetch

EXAMPLES = """examples:
  python -m ncutils list                                  the figures and what each profile runs
  python -m ncutils cost 2-mlp --profile cores            how long that takes on this machine
  python -m ncutils run 1                                 the quick profile on the CPU, minutes
  python -m ncutils run 2-mlp --profile paper --device cuda
  python -m ncutils resume 2-mlp --profile paper --device cuda    after it was stopped
  RAY_ADDRESS=head:6379 python -m ncutils run 5 --profile paper --device cuda --backend ray --jobs 8
  python -m ncutils data mnist cifar10                    fetch the full data sets
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 failed on the way, 2 asked for something that is not there."""
    args = _parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()  # a pipe that nobody reads is found out here and not at exit
        return status
    except BrokenPipeError:  # `... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("\nstopped; finished jobs are kept, `python -m ncutils resume ...` goes on from them", file=sys.stderr)
        return getattr(error, "status", 130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ncutils",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ncutils {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, function, help):
        added = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        added.set_defaults(run=function)
        return added

    listing = command("list", _list, "list the figures, their profiles, and the archived results")
    listing.add_argument("figure", nargs="?", choices=experiments.FIGURES, metavar="FIGURE", help="only this one")
    _sizes(command("cost", _cost, "estimate what a figure takes on this machine, without running it"))
    for name, function, help in (
        ("run", _run, "compute a figure; jobs that are on disk are not computed again"),
        ("resume", _resume, "go on with a run that was stopped; an error if nothing of it is on disk"),
    ):
        running = command(name, function, help)
        _sizes(running)
        _engine(running)
    every = command("paper", _paper, "run every figure at the paper's size (meant for a GPU)")
    every.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="default: cuda")
    _engine(every)
    fetching = command("data", fetch.main, "fetch full data sets")
    fetch.add_arguments(fetching)
    return parser


def _sizes(parser) -> None:
    parser.add_argument(
        "figure", choices=experiments.FIGURES, metavar="FIGURE", help=f"one of {', '.join(experiments.FIGURES)}"
    )
    parser.add_argument(
        "--profile",
        choices=experiments.PROFILES,
        help="quick (default): minutes on a CPU; cores: what two CPU cores can; paper: the paper's size, for a GPU",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu")


def _engine(parser) -> None:
    parser.add_argument(
        "--backend",
        choices=experiments.BACKENDS,
        default="loky",
        help="loky (default): processes here; ray, dask: the cluster of $RAY_ADDRESS or $DASK_SCHEDULER_ADDRESS, "
        "or workers here; each needs its package, pip install '.[ray]'",
    )
    parser.add_argument("--jobs", type=int, help="jobs at a time; default: one for each CPU, one on a GPU")
    parser.add_argument(
        "--results",
        metavar="DIR",
        help="where the archive goes; default: results/ of the checkout (cores and paper only)",
    )
    parser.add_argument("--no-archive", action="store_true", help="compute and cache, archive nothing")


def _list(args) -> int:
    there = experiments.archived()
    for figure in [args.figure] if args.figure else experiments.FIGURES:
        for profile in experiments.PROFILES:
            if (figure, profile) not in experiments.DECLARED:
                continue
            spec = experiments.specification(figure, profile)
            print(
                spec.describe()
                + ("\n  archived  results/" + f"{figure}-{profile}.parquet") * ((figure, profile) in there)
            )
    return 0


def _cost(args) -> int:
    print(experiments.cost(args.figure, args.profile, args.device))
    return 0


def _run(args) -> int:
    spec = experiments.specification(args.figure, args.profile or "quick")
    archiving = spec.profile != "quick" and not args.no_archive
    experiments.check_engine(args.backend, args.jobs, args.device)  # before the estimate, not after it
    if archiving:
        experiments.check_committed()  # before the hours, not after them
    print(experiments.cost(spec, device=args.device), flush=True)
    result = experiments.run(spec, device=args.device, jobs=args.jobs, backend=args.backend)
    print(f"{experiments.label(result)}: {len(result):,} rows")
    diverged = result.frame.groupby(["depth", "run"])["diverged"].any()
    if diverged.any():
        which = "; ".join(f"depth {depth} run {number}" for depth, number in diverged[diverged].index)
        print(f"{diverged.sum()} of {len(diverged)} runs diverged: {which}")
    if archiving:
        print(f"archived as {experiments.save_archive(result, args.results)}")
    return 0


def _resume(args) -> int:
    done, begun, total = experiments.progress(args.figure, args.profile, args.device)
    if not done and not begun:
        raise ValueError(f"nothing of figure {args.figure} is on disk; expected a stopped run to resume: use `run`")
    print(f"{done} of {total} jobs are done, {begun} begun")
    return _run(args)


def _paper(args) -> int:
    args.profile = "paper"
    for figure in experiments.FIGURES:
        if (figure, "paper") in experiments.DECLARED:
            args.figure = figure
            _run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
