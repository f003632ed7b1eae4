"""Statements along a training: what ``ncutils.training.train(..., measure=...)`` asks for, or over saved heads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from ncutils._arguments import checked, function, many
from ncutils.theory.checks import Check
from ncutils.theory.head import LinearHead

__all__ = ["along", "evaluate"]

FORMS = ("paper", "simple", "sharp")


@checked(statements=many(function))
def evaluate(head: LinearHead, statements: Iterable[Callable[..., Check]], forms: Sequence[str] = FORMS) -> list[Check]:
    """Every statement in every form on one head; a statement that has one form only stands once.

    >>> from ncutils.theory import layer_conditioning, theorem_3_1_nc1
    >>> import torch
    >>> from ncutils.theory import random_head
    >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0)))
    >>> [check.form for check in evaluate(head, (theorem_3_1_nc1, layer_conditioning))]
    ['paper', 'simple', 'sharp', 'sharp']
    """
    checks = []
    for statement in statements:
        if "form" in inspect.signature(statement).parameters:
            checks += [statement(head, form=form) for form in forms]
        else:
            checks.append(statement(head))
    return checks


def along(
    *statements: Callable[..., Check],
    forms: Sequence[str] = FORMS,
    columns: dict[str, Callable[[LinearHead], float | Tensor]] | None = None,
) -> Callable:
    """A ``measure`` for :func:`ncutils.training.train`: the statements on every run, at every measured step.

    Args:
        statements: functions of a head, with or without ``form``.
        forms: of those that have several.
        columns: further numbers of the head, ``{name: function}``, repeated in every row.

    Returns:
        ``measure(network, data, step)``: rows with ``run``, ``step``, ``ratio`` (how much of the bound is used up), the
        columns of :func:`~ncutils.theory.to_frame` and those asked for. ``train(...).frame`` holds them.

    Example:
        >>> from ncutils import MLP, TrainingConfig, data, train
        >>> from ncutils.theory import theorem_3_1_nc1
        >>> network = MLP(64, 3, num_nonlinear=1, num_linear=2, width=8)
        >>> config = TrainingConfig(steps=20, batch_size=20, measurements=2)
        >>> look = along(theorem_3_1_nc1)
        >>> result = train(network, data.gaussian(20, num_classes=3), config, measure=look, progress=False)
        >>> sorted(result.frame["form"].unique())
        ['paper', 'sharp', 'simple']
    """

    def measure(network, data, step: int) -> list[dict]:
        rows = []
        for run in range(network.num_runs):
            head = LinearHead.of(network.sequential(run), data.x, data.y)
            extra = {name: float(function(head)) for name, function in (columns or {}).items()}
            for check in evaluate(head, statements, forms):
                rows.append({"run": run, "step": step, "ratio": check.ratio, **extra, **check.row()})
        return rows

    return measure
