"""From a specification to its result: the jobs that are not on disk yet, handed to joblib, Ray or Dask."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ncutils import _files
from ncutils._arguments import anything, checked, integer, optional, text
from ncutils.experiments import custom, figures, fingerprint
from ncutils.experiments import jobs as jobs_
from ncutils.experiments.jobs import Job
from ncutils.experiments.result import Result
from ncutils.experiments.specification import Specification

# What loky, Ray and Dask raise when a worker is killed; by name, for two of the three need not be installed.
WORKER_DIED = ("TerminatedWorkerError", "ActorDiedError", "WorkerCrashedError", "KilledWorker")


@checked(figure=anything, profile=text, device=anything, jobs=anything, backend=text)
def run(
    figure: str | Specification,
    profile: str | None = None,
    device: str | None = None,
    jobs: int | None = None,
    backend: str = "loky",
    progress: bool = True,
) -> Result:
    """Compute a figure's measurements; jobs that are on disk already are read from there.

    Args:
        figure: a figure's name, or a :class:`Specification` (``replace(specification("1"), seeds=1)``).
        profile: one of :data:`PROFILES`; $NCUTILS_PROFILE or ``"quick"`` when not given.
        device: ``"cpu"`` or ``"cuda"``; $NCUTILS_DEVICE or ``"cpu"`` when not given.
        jobs: jobs at a time; when not given $NCUTILS_JOBS, else one for each CPU (one on a GPU).
        backend: ``"loky"`` (processes of this machine), ``"sequential"``, or a cluster: ``"ray"`` joins the one of
            $RAY_ADDRESS, ``"dask"`` that of $DASK_SCHEDULER_ADDRESS; without these they start workers here.
        progress: show a bar over the jobs.

    Returns:
        A :class:`Result`. One row of its ``frame`` per (network, run, split, step, layer): ``figure, profile, depth,
        setup`` and what :meth:`Job.compute` measures.

    Raises:
        ValueError: unknown figure, profile, device or backend.
        FileNotFoundError: the data set has not been fetched.
        OSError: a finished job could not be written; the message names the file. Jobs finished before are kept, and
            the next call goes on from them.
        RuntimeError: workers died again and again. What was finished is kept.

    Example:
        >>> from ncutils import data, experiments
        >>> mine = experiments.declare(
        ...     figure="blobs", data=data.gaussian(20, num_classes=3), nonlinear=2, linear=(1, 2), lr=0.02,
        ...     weight_decay=0.001, width=8, seeds=2, epochs=2, batch_size=20, measurements=1,
        ... )
        >>> result = experiments.run(mine, backend="sequential", progress=False)
        >>> result.provenance["runs"], sorted(result["depth"].unique().tolist())
        (4, [1, 2])
    """
    spec = resolve(figure, profile)
    device = checked_device(device)
    jobs = _jobs(jobs, device)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    planned, folder = spec.planned(device), _files.cache_dir()
    code = planned[0][0].own_code()  # the same for all
    keys = [job.key(code) for job, _ in planned]
    frames = {key: frame for key in keys if (frame := jobs_.read(folder, key)) is not None}
    missing = {key: job for key, (job, _) in zip(keys, planned, strict=True) if key not in frames}
    if folder is not None:
        _files.sweep_away(folder)
    what = f"figure {spec.figure}, {spec.profile}"
    with _stoppable(folder), _bar(what, len(keys), len(frames), progress) as bar:
        frames |= _solve_all(missing, folder, jobs, backend, device, bar)
    if any(frame.attrs.get("changed") for frame in frames.values()):
        names = ", ".join(spec.own_code)
        warnings.warn(
            f"{names}: something that they hang on changed while a run went on, such as a list that grows; results "
            "were not kept, and may depend on which runs went before",
            stacklevel=3,
        )
    return _tidy(spec, planned, [frames[key] for key in keys], device)


@checked(figure=anything, device=anything)
def progress(
    figure: str | Specification, profile: str | None = None, device: str | None = None
) -> tuple[int, int, int]:
    """How many jobs of a run are done, how many begun (a checkpoint lies on disk), how many there are.

    Example:
        >>> done, begun, jobs = progress("1")
        >>> jobs
        3
    """
    planned, folder = resolve(figure, profile).jobs(checked_device(device)), _files.cache_dir()
    keys = [job.key() for job in planned]
    done = [folder is not None and (folder / f"{key}.parquet").exists() for key in keys]
    begun = [folder is not None and (folder / f"{key}.checkpoint").exists() for key in keys]
    return sum(done), sum(b and not d for b, d in zip(begun, done, strict=True)), len(keys)


def _solve_all(missing, folder, jobs, backend, device, bar) -> dict:
    """Hand the jobs to joblib; when a worker is killed, take up what is left."""
    import joblib

    found: dict = {}
    if backend == "loky" and (jobs == 1 or len(missing) == 1):
        backend = "sequential"  # no second process, no second import of torch
    for _ in range(3):
        left = {key: job for key, job in missing.items() if key not in found}
        if not left:
            return found
        try:
            with ENGINES[backend](min(jobs, len(left)), device) as parallel:
                tasks = (
                    joblib.delayed(_solve)(*custom.packed(job), key, folder, os.getpid(), job.library)
                    for key, job in left.items()
                )
                for key, frame in parallel(bar)(tasks):
                    found[key] = frame
                    # solved on a machine with another disk
                    keep = folder is not None and not frame.attrs.get("changed")
                    if keep and not (folder / f"{key}.parquet").exists():
                        jobs_.write(frame, folder / f"{key}.parquet", key=key, seconds=frame.attrs["seconds"])
        except Exception as error:
            if type(error).__name__ not in WORKER_DIED:
                raise
            found |= {key: frame for key in left if (frame := jobs_.read(folder, key)) is not None}
    where = "kept and the next call goes on from them" if folder else "lost, for caching is off"
    raise RuntimeError(
        f"worker processes were killed three times (out of memory?); {len(found)} of {len(missing)} jobs are {where}. "
        "Try fewer jobs."
    )


def _solve(job: Job, code: bytes | None, key: str, folder: Path | None, parent: int, library: str):
    _end_with(parent)
    job = custom.unpacked(job, code)
    if job.library != library:
        raise RuntimeError(
            f"ncutils must be the same in a worker as where the sweep began ({library}); got {job.library}: its files "
            "were edited since they were imported, start Python again; or another version is installed there"
        )
    return key, jobs_.solve(job, key, folder)


@functools.cache
def _end_with(parent: int) -> None:
    """Let this process, if it is a child of that one, end when that one does, killed or not; looks once a second."""
    if os.getppid() != parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Stopped(KeyboardInterrupt):
    """A signal ended a run; ``status`` is the exit status that goes with it.

    Example:
        >>> Stopped(signal.SIGTERM, None).status
        143
    """

    def __init__(self, number: int, folder: Path | None):
        self.status = 128 + number
        kept = "finished jobs are kept, the same call resumes" if folder else "caching is off, nothing is kept"
        super().__init__(f"stopped by {signal.Signals(number).name}; {kept}")


def _signals() -> list[int]:
    """Those that end a run; none outside the main thread, which alone is given any by Python.

    Where ``signal.getsignal`` says None, C code listened before Python began, and Python could not give it back.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def _stoppable(folder: Path | None) -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C raise :class:`Stopped` in the main thread; whatever stops a run, its workers end."""

    def stop(number, _):
        raise Stopped(number, folder)

    before = {n: signal.signal(n, stop) for n in _signals() if signal.getsignal(n) not in (signal.SIG_IGN, None)}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _end_workers()
        if isinstance(interrupt, Stopped):
            raise
        raise Stopped(signal.SIGINT, folder) from interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_workers() -> None:
    """Kill the processes of loky, which otherwise compute on for minutes after their parent."""
    from joblib.externals.loky import reusable_executor

    if reusable_executor._executor is not None:
        reusable_executor._executor.shutdown(wait=True, kill_workers=True)


@functools.cache
def _parallel_type() -> type:
    import joblib

    class Parallel(joblib.Parallel):
        """``joblib.Parallel`` that moves a bar."""

        def __init__(self, bar, **options):
            super().__init__(batch_size=1, **options)
            self.bar, self.seen = bar, 0

        def print_progress(self):  # the one hook that every joblib backend calls after every task
            self.bar.update(self.n_completed_tasks - self.seen)
            self.seen = self.n_completed_tasks

    return Parallel


def _streamed(bar):
    return _parallel_type()(bar, return_as="generator_unordered")


def _distributed(bar):
    return _parallel_type()(bar, return_as="generator_unordered", pre_dispatch="all")


@contextlib.contextmanager
def _sequential(jobs: int, device: str) -> Iterator[Callable]:
    import joblib

    with joblib.parallel_config(backend="sequential"):
        yield _streamed


@contextlib.contextmanager
def _loky(jobs: int, device: str) -> Iterator[Callable]:
    import joblib

    with joblib.parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1):
        yield _streamed


@contextlib.contextmanager
def _dask(jobs: int, device: str) -> Iterator[Callable]:
    import joblib

    distributed, dask = _import("distributed", "dask"), _import("dask", "dask")
    here = dask.config.get("scheduler-address", None) is None
    options = dict(n_workers=jobs, threads_per_worker=1, dashboard_address=None) if here else {}
    with distributed.Client(**options), joblib.parallel_config(backend="dask"):
        yield _distributed


@contextlib.contextmanager
def _ray(jobs: int, device: str) -> Iterator[Callable]:
    import joblib

    ray, ray_joblib = _import("ray", "ray"), _import("ray.util.joblib", "ray")
    started = not ray.is_initialized()
    if started:
        local = {} if os.environ.get("RAY_ADDRESS") else dict(num_cpus=jobs, include_dashboard=False)
        before = {number: signal.getsignal(number) for number in _signals()}
        ray.init(log_to_driver=False, **local)
        for number, handler in before.items():  # Ray takes SIGTERM for itself
            if handler is not None:
                signal.signal(number, handler)
    ray_joblib.register_ray()
    options = dict(ray_remote_args={"num_gpus": 1}) if device == "cuda" else {}
    try:
        with joblib.parallel_config(backend="ray", n_jobs=jobs, **options):
            # Ray's joblib backend cannot stream; each worker stores its own jobs
            yield functools.partial(_parallel_type(), pre_dispatch="all")
    finally:
        if started:
            ray.shutdown()


# Each yields a function that makes the joblib.Parallel of its engine, which is set up and torn down around it.
ENGINES = {"loky": _loky, "sequential": _sequential, "ray": _ray, "dask": _dask}
BACKENDS = tuple(ENGINES)


def check_engine(backend: str, jobs: int | None = None, device: str | None = None) -> None:
    """Raise ValueError for a device, number of jobs or backend that :func:`run` would refuse, without starting one.

    >>> check_engine("loky", jobs=2)
    >>> check_engine("loky", jobs=0)
    Traceback (most recent call last):
    ValueError: jobs must be at least 1; got 0
    """
    _jobs(jobs, checked_device(device))
    for module in {"ray": ("ray",), "dask": ("distributed", "dask")}.get(backend, ()):
        _import(module, backend)


def _import(module: str, extra: str):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"dask": "distributed"}.get(extra, extra)
        wanted = f'pip install {package}, or pip install ".[{extra}]" in a checkout'
        raise ValueError(f"backend {extra!r} needs the package: {wanted} ({error})") from error


def _tidy(spec: Specification, planned: list, frames: list, device: str) -> Result:
    import pandas as pd

    seconds, parts = 0.0, []
    numbers: dict[tuple, int] = {}  # of the runs at one depth, in the order of the jobs
    swept = [name for name, _ in spec.swept]
    for (job, runs), frame in zip(planned, frames, strict=True):
        seconds += frame.attrs.get("seconds", 0.0)
        nonlinear, linear = job.network.num_nonlinear, job.network.num_linear
        depth = linear if len(spec.linear) > 1 else nonlinear
        depth = depth if len(spec.networks) > 1 else nonlinear + linear
        own = [numbers.setdefault((depth, job.network, run), sum(d == depth for d, *_ in numbers)) for run in runs]
        front = {
            "figure": spec.figure,
            "profile": spec.profile,
            "depth": depth,
            "num_nonlinear": nonlinear,
            "num_linear": linear,
            "setup": frame["run"].map(lambda r, runs=runs: spec.setup_name(runs[r] // spec.seeds)),
        }
        if len(spec.widths) > 1:
            front["width"] = job.network.width
        front |= {name: getattr(job.training, name) for name in swept}
        run = frame["run"].map(lambda r, own=own: own[r])
        parts.append(frame.assign(run=run, **front)[[*front, *frame.columns]])
    for part in parts:
        part.attrs = {}
    name = device_name(device)
    provenance = _provenance(spec, planned[0][0], device, name, seconds)
    return Result(pd.concat(parts, ignore_index=True), spec.label(name), provenance)


def _provenance(spec, job: Job, device: str, name: str, seconds: float) -> dict:
    import numpy
    import pandas

    import ncutils

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"numpy": numpy.__version__, "pandas": pandas.__version__, "ncutils": ncutils.__version__}
    own = {name: fingerprint.fingerprint(value) for name, value in spec.own_code.items()}
    own |= {"library": jobs_.HASH_OF_OWN} if own else {}
    return ({"own_code": own} if own else {}) | {
        "figure": spec.figure,
        "profile": spec.profile,
        "specification": spec.options(),
        "seeds": list(range(spec.seeds)),
        "runs": spec.runs,
        "samples": spec.data.count,
        "flow_time": None if spec.optimizer else round(spec.flow_time, 1),
        "device": name,
        "device_type": device,
        "seconds": round(seconds, 1),
        "data_checksum": job.data.checksum(),
        "code": jobs_.code_hash(),
        "git_commit": git("rev-parse", "HEAD"),
        "versions": versions,
    }


def git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def resolve(figure: str | Specification, profile: str | None) -> Specification:
    if not isinstance(figure, Specification):
        return figures.specification(figure, profile or os.environ.get("NCUTILS_PROFILE") or "quick")
    if profile not in (None, figure.profile):
        raise ValueError(f"profile: the specification given has {figure.profile!r}; got {profile!r}")
    return figure


def checked_device(device: str | None) -> str:
    optional(text)("device", device)
    device = device or os.environ.get("NCUTILS_DEVICE") or "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda'; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: CUDA is not available to this torch; expected a GPU, or device 'cpu'")
    return device


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _jobs(jobs: int | None, device: str) -> int:
    if jobs is None:
        given = os.environ.get("NCUTILS_JOBS", "")
        if given and not (given.isdecimal() and int(given) > 0):
            raise ValueError(f"NCUTILS_JOBS must be a number of jobs, at least 1; got {given!r}")
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = int(given) if given else 1 if device == "cuda" else cpus
    integer()("jobs", jobs)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    return jobs


def _bar(what: str, total: int, done: int, show: bool):
    from tqdm import tqdm

    off = not show or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    return tqdm(total=total, initial=done, desc=what, unit="job", disable=off)
