"""Sweeps as declared experiments: the paper's figures, and your own.

``specification("1", "quick")`` reads like the caption it reproduces. :func:`run` expands it into independent jobs (one
network, several runs), trains those that are not on disk yet, and returns a :class:`Result`: one tidy frame with its
label and provenance. :func:`load_archive` loads a result that was computed earlier and committed under ``results/``.

An experiment of your own, with your own data, widths, step sizes x weight decays x seeds and a swept depth:

>>> from ncutils import data, experiments
>>> mine = experiments.declare(
...     figure="blobs",
...     data=(data.gaussian(20, num_classes=3), data.gaussian(20, num_classes=3, split="test")),
...     nonlinear=2, linear=(1, 2, 3), width=(8, 16),
...     lr=(0.02, 0.05), weight_decay=(0.001, 0.004), seeds=2,
...     epochs=5, batch_size=20, warmup_steps=2, measurements=1,
... )
>>> result = experiments.run(mine, backend="sequential", progress=False)
>>> result.final("test").groupby(["depth", "width"])["run"].nunique().to_dict()[3, 16]
8

Three profiles hold three sizes of the paper's figures:

- ``quick``: the bundled digits, minutes on two CPU cores; what the pages run live;
- ``cores``: what two cores can, which is not the paper's scale: all 60,000 digits for the MLPs, on schedules that cover
  the paper's *flow time* (below), some with fewer seeds and set-ups than the paper; for the ResNet20s one or two
  thousand images, most of them shrunken, larger weight decays and less flow time;
- ``paper``: the paper's data, numbers of set-ups and of seeds; hours of two cores for an MLP, a GPU for the ResNet20s.

Flow time is the sum over all steps of the effective step size lr / (1 - momentum): the time t up to which gradient
descent follows the gradient flow. The paper's MLPs take 10,000 epochs of lr 0.001 (inferred; momentum unknown, taken
as 0), so 10 units an epoch-long sweep through the batches; 20 epochs with lr 0.05 and momentum 0.9 cover the same
flow time at the same batch size, in larger and noisier steps. Width 64, batch size, momentum, warm-up and Kaiming's
initialisation are ours everywhere: the paper's are not known.
"""

from ncutils.experiments.archive import archive, archived, check_committed, load_archive, results_dir, save_archive
from ncutils.experiments.cost import Cost, cost, duration
from ncutils.experiments.figures import DECLARED, FIGURES, specification
from ncutils.experiments.jobs import DataConfig, Job, NetworkConfig
from ncutils.experiments.result import (
    Result,
    class_grams,
    class_means,
    final,
    flow_time,
    head_ends,
    label,
    nonlinear_head,
)
from ncutils.experiments.run import BACKENDS, Stopped, check_engine, progress, run
from ncutils.experiments.specification import PROFILES, Specification, declare

__all__ = [
    "BACKENDS",
    "DECLARED",
    "FIGURES",
    "PROFILES",
    "Cost",
    "DataConfig",
    "Job",
    "NetworkConfig",
    "Result",
    "Specification",
    "Stopped",
    "archive",
    "archived",
    "check_committed",
    "check_engine",
    "class_grams",
    "class_means",
    "cost",
    "declare",
    "duration",
    "final",
    "flow_time",
    "head_ends",
    "label",
    "load_archive",
    "nonlinear_head",
    "progress",
    "results_dir",
    "run",
    "save_archive",
    "specification",
]
