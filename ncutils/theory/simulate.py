"""Gradient flow and plain gradient descent on C_λ, small enough to be followed to the end: the dynamics of Section 4.

The objective is that of the theorems, ``C_λ(θ) = ½‖f(X) − Y‖_F² + (λ/2)‖θ‖²``: a sum over samples. A training run on
the mean over N samples with weight decay λ' and step η' is this with ``λ = Nλ'`` and ``η = η'/N``. Rows are samples,
weights are ``(out, in)``, everything is float64. It runs in NumPy, where a step on a small network costs microseconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ncutils._arguments import check_fields, checked, integer, many, number
from ncutils.metrics import imbalance_matrix
from ncutils.theory.head import LinearHead

__all__ = [
    "DESCENT_ROUNDING",
    "Objective",
    "Trajectory",
    "descend",
    "flow",
    "general_position",
    "imbalances",
    "initialise",
    "largest_step",
    "pack",
    "unpack",
]

# How much of the cost, relatively, the descent inequality may be missed by: the rounding of two costs.
DESCENT_ROUNDING = 1e-12

# Gradients that the flow may ask for: on its way to a stationary point it needs some thousands, and a time so large
# that rounding moves the weights to and fro would never come.
EVALUATIONS = 20_000

_ACTIVATIONS = ("smooth", "relu", "identity")


# --- the objective


@dataclass(frozen=True, eq=False)
class Objective:
    """C_λ of one bias-free network on one data set: its value, gradient and Hessian.

    Attributes:
        x: inputs ``(N, d)``.
        y: ``(N,)`` labels 0..K−1, every class equally often.
        num_nonlinear: L1, how many layers are followed by the activation.
        weight_decay: λ.
        activation: ``"smooth"`` (Assumption 4.2), ``"relu"`` or ``"identity"``.
        gamma: least slope of the smooth activation.

    Weights are sequences of L arrays or tensors ``(out, in)``; a *state* is all of them in one flat array.

    Raises:
        ValueError: shapes that do not fit, unbalanced classes, entries that are not finite.

    Example:
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> objective.num_samples, objective.num_classes, bool(objective.cost(weights) >= objective.data_cost(weights))
        (4, 2, True)
    """

    x: np.ndarray
    y: np.ndarray
    num_nonlinear: int
    weight_decay: float
    activation: str = "smooth"
    gamma: float = 0.5

    def __post_init__(self):
        check_fields(self)
        x, y = as_matrix(self.x, "x"), np.asarray(detached(self.y))
        if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(x):
            raise ValueError(f"y must be {len(x)} integer labels; got {y.dtype} of shape {y.shape}")
        counts = np.bincount(y)
        if len(counts) < 2 or counts.min() != counts.max():
            raise ValueError(f"y must be at least 2 classes of one size; got class counts {counts.tolist()}")
        if self.num_nonlinear < 1:
            raise ValueError(f"num_nonlinear must be at least 1; got {self.num_nonlinear}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be >= 0; got {self.weight_decay}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {_ACTIVATIONS}; got {self.activation!r}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be 0 < gamma <= 1; got {self.gamma}")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y.astype(np.int64))

    @property
    def num_samples(self) -> int:
        return len(self.x)

    @property
    def num_classes(self) -> int:
        return int(self.y.max()) + 1

    @cached_property
    def one_hot(self) -> np.ndarray:
        """Yᵀ, ``(N, K)``."""
        return np.eye(self.num_classes)[self.y]

    # --- the activation and its two derivatives

    def sigma(self, h: np.ndarray) -> np.ndarray:
        if self.activation == "relu":
            return np.maximum(h, 0)
        if self.activation == "identity":
            return h
        return self.gamma * h + (1 - self.gamma) * (h + np.sqrt(h * h + 1) - 1) / 2

    def slope(self, h: np.ndarray) -> np.ndarray:
        if self.activation == "relu":
            return (h > 0).astype(np.float64)
        if self.activation == "identity":
            return np.ones_like(h)
        return self.gamma + (1 - self.gamma) * (1 + h / np.sqrt(h * h + 1)) / 2

    def curvature(self, h: np.ndarray) -> np.ndarray:
        if self.activation != "smooth":
            return np.zeros_like(h)
        return (1 - self.gamma) / 2 * (h * h + 1) ** -1.5

    # --- states and weights

    @checked()
    def shapes(self, weights: Sequence) -> tuple[tuple[int, int], ...]:
        """The shapes of ``weights``, checked against each other and the data."""
        shapes = tuple(tuple(w.shape) for w in weights)
        if len(shapes) <= self.num_nonlinear:
            raise ValueError(
                f"weights must be more than num_nonlinear = {self.num_nonlinear}; got {len(shapes)} layers"
            )
        width = self.x.shape[1]
        for i, shape in enumerate(shapes):
            if len(shape) != 2 or shape[1] != width:
                raise ValueError(f"weights[{i}] must be (out, {width}); got shape {shape}")
            width = shape[0]
        if width != self.num_classes:
            raise ValueError(f"weights: the last layer has {width} outputs, expected K = {self.num_classes}")
        return shapes

    @checked()
    def arrays(self, weights: Sequence) -> list[np.ndarray]:
        """``weights`` as float64 arrays."""
        self.shapes(weights)
        return [as_matrix(w, f"weights[{i}]") for i, w in enumerate(weights)]

    # --- values

    def features(self, weights: Sequence) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Pre-activations H_1..H_L and features Z_0..Z_L, each ``(N, n_ℓ)``."""
        pre, post = [], [self.x]
        for layer, w in enumerate(weights):
            pre.append(post[-1] @ w.T)
            post.append(self.sigma(pre[-1]) if layer < self.num_nonlinear else pre[-1])
        return pre, post

    @checked()
    def data_cost(self, weights: Sequence) -> float:
        """C_0 = ½‖f(X) − Y‖_F²."""
        return 0.5 * float(np.sum((self.features(self.arrays(weights))[1][-1] - self.one_hot) ** 2))

    @checked()
    def cost(self, weights: Sequence) -> float:
        """C_λ."""
        weights = self.arrays(weights)
        return self.data_cost(weights) + 0.5 * self.weight_decay * norm2(weights)

    @checked()
    def data_gradients(self, weights: Sequence) -> list[np.ndarray]:
        """∇_ℓ C_0 for ℓ = 1..L, shaped like the weights."""
        weights = self.arrays(weights)
        pre, post = self.features(weights)
        delta = post[-1] - self.one_hot
        gradients = [np.empty(0)] * len(weights)
        for layer in reversed(range(len(weights))):
            if layer < self.num_nonlinear:
                delta = delta * self.slope(pre[layer])
            gradients[layer] = delta.T @ post[layer]
            if layer:
                delta = delta @ weights[layer]
        return gradients

    @checked()
    def gradients(self, weights: Sequence) -> list[np.ndarray]:
        """∇_ℓ C_λ."""
        weights = self.arrays(weights)
        return [g + self.weight_decay * w for g, w in zip(self.data_gradients(weights), weights, strict=True)]

    @checked()
    def hessian(self, weights: Sequence) -> np.ndarray:
        """∇²C_λ, ``(p, p)``, exact: the derivative of the backward pass along every coordinate at once.

        The tangents of layer ``l``'s coordinates start at layer ``l``, so they are carried from there only.
        """
        weights = self.arrays(weights)
        depth, samples = len(weights), self.num_samples
        pre, post = self.features(weights)
        slopes = [self.slope(h) for h in pre[: self.num_nonlinear]]
        curvatures = [self.curvature(h) for h in pre[: self.num_nonlinear]]
        ends = np.cumsum([0] + [w.size for w in weights])
        # deltas[l] = ∂C_0/∂H_l, errors[l] = ∂C_0/∂Z_l
        deltas, errors = list(post[1:]), list(post[1:])  # to be overwritten, from the last one back
        error = post[-1] - self.one_hot
        for layer in reversed(range(depth)):
            errors[layer] = error
            deltas[layer] = error * slopes[layer] if layer < self.num_nonlinear else error
            error = deltas[layer] @ weights[layer]
        hessian = np.empty((ends[-1], ends[-1]))
        for start in range(depth):
            rows, cols = weights[start].shape
            block = slice(ends[start], ends[start + 1])
            # tangent of H_start along W[i, j]: column i is Z_{start-1}[:, j], the rest zero
            units = np.zeros((rows, cols, samples, rows))
            units[np.arange(rows), :, :, np.arange(rows)] = post[start].T
            tangent = units.reshape(rows * cols, samples, rows)
            tangents, pre_tangents = {}, {}
            for layer in range(start, depth):
                if layer > start:
                    tangent = tangent @ weights[layer].T
                pre_tangents[layer] = tangent
                if layer < self.num_nonlinear:
                    tangent = tangent * slopes[layer]
                tangents[layer] = tangent
            change = tangent
            for layer in reversed(range(depth)):
                if layer < self.num_nonlinear:
                    change = change * slopes[layer]
                    if layer in pre_tangents:
                        change = change + errors[layer] * curvatures[layer] * pre_tangents[layer]
                part = change.transpose(0, 2, 1) @ post[layer]
                if layer - 1 in tangents:
                    part = part + deltas[layer].T @ tangents[layer - 1]
                hessian[block, ends[layer] : ends[layer + 1]] = part.reshape(rows * cols, -1)
                if layer == 0:
                    break
                change = change @ weights[layer]
                if layer == start:
                    # W[i, j] itself also carries the backward pass: delta @ E_ij puts delta[:, i] in column j
                    direct = np.zeros((rows, cols, samples, cols))
                    direct[:, np.arange(cols), :, np.arange(cols)] = deltas[layer].T
                    change = change + direct.reshape(rows * cols, samples, cols)
        hessian[np.diag_indices_from(hessian)] += self.weight_decay
        return hessian


def pack(weights: Sequence) -> np.ndarray:
    """All weights in one flat state."""
    return np.concatenate([np.asarray(w).ravel() for w in weights])


def unpack(state: np.ndarray, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Views of a flat state as weights."""
    ends = np.cumsum([0] + [a * b for a, b in shapes])
    return [state[i:j].reshape(s) for (i, j), s in zip(itertools.pairwise(ends), shapes, strict=True)]


def imbalances(weights: Sequence, num_nonlinear: int = 0) -> list[np.ndarray]:
    """D_ℓ = W_{ℓ+1}ᵀW_{ℓ+1} − W_ℓW_ℓᵀ for every pair of neighbours in the linear part, first to last."""
    linear = [as_matrix(w, "weights") for w in weights][num_nonlinear:]
    return [imbalance_matrix(a, b) for a, b in itertools.pairwise(linear)]


# --- trajectories


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A gradient flow or a run of gradient descent, seen at chosen times.

    Attributes:
        objective: C_λ.
        shapes: of the weights.
        times: flow time; for descent the step number times the step size.
        states: ``(T, p)``, all weights in a row.
        path: length travelled so far, ``(T,)``.
        step_size: None for a flow.
        steps: step numbers, for descent.
        descent_gap: for descent, the largest (C⁺ − C + (η/2)‖∇C_λ‖²)/C over *all* steps: at most rounding when every
            step decreased the cost by what smoothness would guarantee.

    Example:
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> trajectory = flow(objective, weights, [0.0, 0.1])
        >>> trajectory.states.shape, [tuple(w.shape) for w in trajectory.weights(1)]
        ((2, 34), [(4, 4), (3, 4), (2, 3)])
    """

    objective: Objective
    shapes: tuple[tuple[int, int], ...]
    times: np.ndarray
    states: np.ndarray
    path: np.ndarray
    step_size: float | None = None
    steps: np.ndarray | None = None
    descent_gap: float = -math.inf

    def __len__(self) -> int:
        return len(self.times)

    @checked()
    def weights(self, index: int) -> list[Tensor]:
        """The weights at ``times[index]``, float64 tensors ``(out, in)``."""
        return [torch.from_numpy(w.copy()) for w in unpack(self.states[index], self.shapes)]

    @cached_property
    def heads(self) -> tuple[LinearHead, ...]:
        """The linear layers and what enters them at every recorded time, for Theorem 3.1."""
        labels, nonlinear = torch.from_numpy(self.objective.y), self.objective.num_nonlinear
        out = []
        for index in range(len(self)):
            weights = self.weights(index)
            features = self.objective.features([w.numpy() for w in weights])[1][nonlinear]
            out.append(LinearHead(weights[nonlinear:], torch.from_numpy(features), labels))
        return tuple(out)

    @cached_property
    def data_costs(self) -> np.ndarray:
        """C_0 at the recorded times."""
        return np.array([self.objective.data_cost(unpack(s, self.shapes)) for s in self.states])

    @cached_property
    def costs(self) -> np.ndarray:
        """C_λ at the recorded times."""
        return self.data_costs + 0.5 * self.objective.weight_decay * np.sum(self.states**2, axis=1)

    @property
    def errors(self) -> np.ndarray:
        """‖E‖_F at the recorded times."""
        return np.sqrt(2 * self.data_costs)

    @cached_property
    def imbalances(self) -> np.ndarray:
        """max_ℓ‖D_ℓ‖_op at the recorded times."""
        pairs = (imbalances(unpack(s, self.shapes), self.objective.num_nonlinear) for s in self.states)
        return np.array([max(op_norm(d) for d in ds) for ds in pairs])

    @cached_property
    def nc1(self) -> np.ndarray:
        """NC1(Z_{L−1}) at the recorded times."""
        return np.array([float(h.nc1(h.layers[-2])) for h in self.heads])


@checked(times=many(number(finite=True)), rtol=number(least=1e-12, finite=True), atol=number(above=0, finite=True))
def flow(
    objective: Objective,
    weights: Sequence,
    times: Sequence[float] | np.ndarray,
    *,
    rtol: float = 1e-9,
    atol: float = 1e-13,
) -> Trajectory:
    """Gradient flow θ' = −∇C_λ, by LSODA with the exact Hessian as its Jacobian.

    The flow is stiff: the fitting phase lives on the scale 1/α, the balancing phase on 1/λ. An implicit solver crosses
    both in about a thousand steps; the Hessian and its factorisation make the cost grow like the cube of the number of
    parameters.

    Args:
        objective: C_λ.
        weights: θ_0.
        times: increasing, at least two, from the starting time 0; where to record.
        rtol: relative tolerance of the solver, at least 1e-12.
        atol: absolute tolerance.

    Raises:
        ValueError: times that do not increase from 0.
        RuntimeError: the solver gave up, or had not arrived after 20,000 gradients.

    Example:
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> trajectory = flow(objective, weights, [0.0, 0.1, 0.2])
        >>> len(trajectory), bool((np.diff(trajectory.costs) < 0).all())
        (3, True)
    """
    from scipy.integrate import solve_ivp

    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2 or times[0] != 0 or not (np.diff(times) > 0).all():
        raise ValueError(f"times must be at least two, increasing from 0; got {times}")
    shapes = objective.shapes(weights)
    start = np.append(pack(objective.arrays(weights)), 0.0)

    evaluations = itertools.count(1)

    # The last component is the length of the path.
    def velocity(t, state):
        if next(evaluations) > EVALUATIONS:
            raise RuntimeError(f"LSODA was at t = {t:.3g} of {times[-1]:.3g} after {EVALUATIONS:,} gradients")
        gradient = pack(objective.gradients(unpack(state[:-1], shapes)))
        return np.append(-gradient, np.linalg.norm(gradient))

    def jacobian(_, state):
        weights = unpack(state[:-1], shapes)
        gradient, hessian = pack(objective.gradients(weights)), objective.hessian(weights)
        out = np.zeros((len(state), len(state)))
        out[:-1, :-1] = -hessian
        out[-1, :-1] = hessian @ gradient / max(np.linalg.norm(gradient), 1e-300)
        return out

    with np.errstate(over="ignore", invalid="ignore"):
        solution = solve_ivp(
            velocity, (0.0, times[-1]), start, "LSODA", t_eval=times, jac=jacobian, rtol=rtol, atol=atol
        )
    if not solution.success or not np.isfinite(solution.y).all():
        raise RuntimeError(f"LSODA stopped at t = {solution.t[-1]:.3g} of {times[-1]:.3g}: {solution.message}")
    return Trajectory(
        objective,
        shapes,
        times,
        np.ascontiguousarray(solution.y[:-1].T),
        solution.y[-1],
    )


@checked(step_size=number(above=0, finite=True), steps=integer(least=0), record=integer(least=1))
def descend(objective: Objective, weights: Sequence, step_size: float, steps: int, *, record: int = 200) -> Trajectory:
    """Plain gradient descent θ⁺ = θ − η∇C_λ, and at every step the test of the descent inequality.

    Theorem 4.4 needs smoothness for one thing only: C_λ(θ⁺) ≤ C_λ(θ) − (η/2)‖∇C_λ(θ)‖². A run in which every step
    satisfies it satisfies the theorem, however large the step; ``descent_gap`` says whether it did.

    Args:
        objective: C_λ with the smooth activation.
        weights: θ_0.
        step_size: η.
        steps: how many.
        record: how many states to keep, half of them spaced geometrically, half evenly.

    Example:
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> run = descend(objective, weights, step_size=0.001, steps=50)
        >>> int(run.steps[-1]), bool(run.descent_gap <= DESCENT_ROUNDING)
        (50, True)
    """
    if step_size <= 0 or steps < 1:
        raise ValueError(f"step_size and steps must be positive numbers; got {step_size} and {steps}")
    shapes = objective.shapes(weights)
    chosen = {0, steps, *np.geomspace(1, steps, max(record // 2, 2)).round().astype(int).tolist()}
    chosen |= set(np.linspace(0, steps, max(record // 2, 2)).round().astype(int).tolist())
    marks = sorted(chosen)
    state = pack(objective.arrays(weights))
    gradient = np.empty_like(state)
    views, slots = unpack(state, shapes), unpack(gradient, shapes)
    transposed = [w.T for w in views]
    x, y, decay, depth, nonlinear = (
        objective.x,
        objective.one_hot,
        objective.weight_decay,
        len(shapes),
        objective.num_nonlinear,
    )
    sigma, slope, dot = objective.sigma, objective.slope, np.dot
    # σ and σ' share a square root, and this loop is all the cost there is: write the smooth ones out.
    smooth, b = objective.activation == "smooth", (1 - objective.gamma) / 2
    a = objective.gamma + b
    states, paths = [], []
    path, worst, previous, promised = 0.0, -math.inf, math.inf, math.inf
    for start, stop in itertools.pairwise([0, *marks]):
        for step in range(start, stop + 1):
            post, slopes, z = [x], [], x
            for layer in range(depth):
                h = dot(z, transposed[layer])
                if layer >= nonlinear:
                    z = h
                elif smooth:
                    root = np.sqrt(h * h + 1)
                    slopes.append(a + b * (h / root))
                    z = a * h + b * (root - 1)
                else:
                    slopes.append(slope(h))
                    z = sigma(h)
                post.append(z)
            delta = z - y
            flat = delta.ravel()
            cost = 0.5 * dot(flat, flat) + 0.5 * decay * dot(state, state)
            if cost - promised > worst * previous:
                worst = (cost - promised) / previous
            if step == stop:
                break
            for layer in range(depth - 1, -1, -1):
                if layer < nonlinear:
                    delta = delta * slopes[layer]
                dot(delta.T, post[layer], out=slots[layer])
                if layer:
                    delta = dot(delta, views[layer])
            gradient += decay * state
            square = dot(gradient, gradient)
            previous, promised = cost, cost - 0.5 * step_size * square
            path += step_size * math.sqrt(square)
            state -= step_size * gradient
        states.append(state.copy())
        paths.append(path)
        if not math.isfinite(cost) or cost > 1e8:
            worst = math.inf
            break
        # the record step is recomputed at the start of the next stretch; do not test it twice
        previous, promised = math.inf, math.inf
    kept = np.array(marks[: len(states)])
    return Trajectory(
        objective,
        shapes,
        kept * step_size,
        np.array(states),
        np.array(paths),
        step_size=step_size,
        steps=kept,
        descent_gap=worst,
    )


@checked(trial_steps=integer(least=1))
def largest_step(objective: Objective, weights: Sequence, trial_steps: int = 500, *, precision: float = 0.02) -> float:
    """The largest step size for which descent from ``weights`` keeps the descent inequality for ``trial_steps`` steps.

    Found by bisection around 1/‖∇²C_λ(θ_0)‖_op. The run that follows must confirm it: see ``descent_gap``.

    Example:
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> largest_step(objective, weights, trial_steps=50) > 0
        True
    """
    if not 1e-12 <= precision < 1:
        raise ValueError(f"precision must be at least 1e-12 and below 1; got {precision}")
    unit = 1 / float(np.abs(np.linalg.eigvalsh(objective.hessian(weights))).max())

    def kept(factor: float) -> bool:
        return descend(objective, weights, factor * unit, trial_steps, record=4).descent_gap <= DESCENT_ROUNDING

    low, high = 0.5, 2.5
    while not kept(low):
        low, high = low / 2, low
    while high - low > precision * low:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low * unit


# --- data and initialisation


@checked(samples=integer(least=1), dimension=integer(least=1), seed=integer(least=0))
def general_position(samples: int, dimension: int, norm: float = 3.0, noise: float = 0.15, seed: int = 0) -> np.ndarray:
    """Inputs without any structure: orthonormal directions plus ``noise`` times unit noise, all of one norm.

    No sample is closer to those of its own class than to the others, so collapse cannot be read off the data.

    Args:
        samples: N, at most ``dimension``.
        dimension: d.
        norm: ‖x_i‖.
        noise: 0 for orthogonal inputs.
        seed: of the draw.

    Returns:
        ``(N, d)``.

    Example:
        >>> x = general_position(3, 5, norm=2.0)
        >>> x.shape, np.linalg.norm(x, axis=1).round(6).tolist()
        ((3, 5), [2.0, 2.0, 2.0])
    """
    if samples > dimension:
        raise ValueError(f"samples must be at most dimension = {dimension}; got {samples}")
    if not (0 < norm < math.inf and 0 <= noise < math.inf):
        raise ValueError(f"norm, noise must be positive, at least 0, and finite; got {norm}, {noise}")
    generator = np.random.default_rng(seed)
    x = np.linalg.qr(generator.standard_normal((dimension, samples)))[0].T
    x = x + noise * generator.standard_normal((samples, dimension)) / math.sqrt(dimension)
    return norm * x / np.linalg.norm(x, axis=1, keepdims=True)


@checked(
    widths=many(integer(least=1, most=10**6), least=1),
    scale=number(above=0, most=1e100),
    small=number(above=0, most=1e100),
    seed=integer(least=0),
)
def initialise(
    objective: Objective, widths: Sequence[int], scale: float, *, small: float = 1e-3, seed: int = 0
) -> list[Tensor]:
    """An initialisation that meets Assumption 4.3 once ``scale`` is large enough.

    Every W_ℓ is a random matrix with orthonormal rows or columns times a number: 1e-3 for W_2 (so that f(X) ≈ 0),
    ``scale`` for W_3..W_L, and for W_1 whatever makes λ_F = ``scale`` ‖X‖_op, so that no layer is the weak one.

    Args:
        objective: for its inputs and activation.
        widths: n_1..n_L.
        scale: μ.
        small: factor of W_2.
        seed: of the random matrices.

    Returns:
        Float64 tensors ``(out, in)``.

    Raises:
        ValueError: n_1 < N, n_L ≠ K, or features σ(W_1X) that no scaling gives full rank.

    Example:
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> [tuple(w.shape) for w in weights]
        [(4, 4), (3, 4), (2, 3)]
    """
    from scipy.optimize import brentq

    if widths[0] < objective.num_samples:
        raise ValueError(f"widths must be at least N = {objective.num_samples}; got n_1 = {widths[0]}")
    generator = np.random.default_rng(seed)
    weights = []
    for fan_in, fan_out in itertools.pairwise([objective.x.shape[1], *widths]):
        q = np.linalg.qr(generator.standard_normal((max(fan_in, fan_out), min(fan_in, fan_out))))[0]
        weights.append(q if fan_out >= fan_in else q.T)
    objective.shapes(weights)
    target = scale * op_norm(objective.x)

    def gap(log_factor: float) -> float:
        features = objective.sigma(math.exp(log_factor) * (objective.x @ weights[0].T))
        return math.log(max(smallest(features), 1e-300) / target)

    guess = math.log(scale)
    low, high = guess - 3, guess + 3
    while gap(low) > 0:
        low -= 3
    while gap(high) < 0:
        high += 3
        if high > guess + 40:
            raise ValueError("objective.x: σ(W_1X) stays rank-deficient; expected inputs in general position")
    factors = [math.exp(brentq(gap, low, high, xtol=1e-13)), small] + [scale] * (len(weights) - 2)
    return [torch.from_numpy(np.ascontiguousarray(f * w)) for f, w in zip(factors, weights, strict=True)]


# --- small pieces


def detached(value):
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def as_matrix(value, name: str) -> np.ndarray:
    """``value`` as a finite float64 matrix."""
    array = np.asarray(detached(value), dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"{name} must have two dimensions; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; got NaN or infinite entries")
    return array


def norm2(arrays: Sequence[np.ndarray]) -> float:
    return float(sum(np.vdot(a, a) for a in arrays))


def op_norm(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


def smallest(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[-1])
